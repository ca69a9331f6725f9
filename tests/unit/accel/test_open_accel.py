from __future__ import annotations

from typing import cast

import pytest

from vmm.accel import open_accel
from vmm.accel.base import Accelerator
from vmm.config import AccelOptions
from vmm.errors import AccelError, AccelUnavailable

WORKING = cast("Accelerator", object())


def works() -> Accelerator:
    return WORKING


def is_absent() -> Accelerator:
    raise AccelUnavailable("no such device")


def is_broken() -> Accelerator:
    raise AccelError("the module is damaged")


OPENERS = {"works": works, "absent": is_absent, "broken": is_broken}


def options(*names: str) -> list[AccelOptions]:
    return [AccelOptions(name) for name in names]


def test_first_accelerator_that_works_is_taken_without_a_reason() -> None:
    assert open_accel(options("works", "absent"), OPENERS) == (WORKING, ())


def test_unavailable_and_unknown_ones_are_passed_over_with_a_reason_each() -> None:
    accelerator, reasons = open_accel(options("absent", "bogus", "works"), OPENERS)

    assert accelerator is WORKING
    assert reasons == ("absent: no such device", "invalid accelerator bogus")


def test_no_working_accelerator_is_an_error_that_lists_every_reason() -> None:
    with pytest.raises(AccelError, match="no accelerator found") as caught:
        open_accel(options("absent", "bogus"), OPENERS)

    assert "absent: no such device; invalid accelerator bogus" in str(caught.value)


def test_empty_list_is_an_error() -> None:
    with pytest.raises(AccelError, match="no accelerator found: none was named"):
        open_accel([], OPENERS)


def test_defect_of_an_accelerator_is_not_hidden_by_the_next_one() -> None:
    with pytest.raises(AccelError, match="the module is damaged"):
        open_accel(options("broken", "works"), OPENERS)
