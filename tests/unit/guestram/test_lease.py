from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from guestram.errors import (
    EpochMovedError,
    IdentityError,
    LeaseBusyError,
    LeaseError,
    MemfdError,
)
from guestram.lease import ControlPage, RunLease
from guestram.memfd import RAM_SEALS, MemfdOptions, RamMemfd
from tests.unit.guestram.peer import Peer, try_lock, wait_until_dead


@pytest.fixture
def ram() -> Iterator[RamMemfd]:
    with RamMemfd.create("ram0", MemfdOptions(1 << 20)) as memfd:
        yield memfd


@pytest.fixture
def control() -> Iterator[ControlPage]:
    with ControlPage.create() as page:
        yield page


@pytest.fixture
def lease(ram: RamMemfd, control: ControlPage) -> Iterator[RunLease]:
    with RunLease(ram.fileno(), control) as lease:
        yield lease


@pytest.fixture
def peer(ram: RamMemfd, control: ControlPage) -> Iterator[Peer]:
    with Peer(ram.fileno(), control) as peer:
        yield peer


# --- control page -------------------------------------------------------------------------------


def test_fresh_control_page_is_at_epoch_zero_and_sealed(control: ControlPage) -> None:
    assert control.epoch == 0
    assert control.identity().seals == RAM_SEALS
    assert "cpr-run-epoch" in str(Path(f"/proc/self/fd/{control.fileno()}").readlink())
    assert not os.get_inheritable(control.fileno())


def test_raised_epoch_is_seen_through_another_mapping(control: ControlPage) -> None:
    with ControlPage.adopt(os.dup(control.fileno()), control.identity()) as other:
        assert (control.raise_epoch(), control.raise_epoch()) == (1, 2)
        assert other.epoch == 2


def test_adopting_another_file_as_control_page_is_refused(
    ram: RamMemfd, control: ControlPage
) -> None:
    with pytest.raises(IdentityError, match="memfd 'cpr-run-epoch': promised was inode"):
        ControlPage.adopt(os.dup(ram.fileno()), control.identity())


def test_adopting_memory_of_another_size_as_control_page_is_refused(ram: RamMemfd) -> None:
    with pytest.raises(IdentityError, match="memfd 'cpr-run-epoch': 'size' option is 0x1000"):
        ControlPage.adopt(os.dup(ram.fileno()), ram.identity())


def test_closed_control_page_has_no_epoch() -> None:
    page = ControlPage.create()
    page.close()
    page.close()
    with pytest.raises(MemfdError, match="'cpr-run-epoch' is closed"):
        _ = page.epoch
    with pytest.raises(MemfdError, match="'cpr-run-epoch' is closed"):
        page.raise_epoch()


# --- one process --------------------------------------------------------------------------------


def test_lease_is_not_held_at_first(lease: RunLease) -> None:
    assert not lease.held


def test_acquire_and_release_are_idempotent(lease: RunLease) -> None:
    lease.acquire()
    lease.acquire()
    assert lease.held
    lease.release()
    lease.release()
    assert not lease.held


def test_second_lease_of_the_same_ram_is_busy_until_the_first_is_released(
    ram: RamMemfd, control: ControlPage, lease: RunLease
) -> None:
    with RunLease(ram.fileno(), control) as second:
        lease.acquire()
        with pytest.raises(LeaseBusyError, match="another process holds the run lease"):
            second.acquire()
        assert not second.held
        lease.release()
        second.acquire()
        assert second.held


def test_close_releases(ram: RamMemfd, control: ControlPage, lease: RunLease) -> None:
    second = RunLease(ram.fileno(), control)
    second.acquire()
    second.close()
    second.close()
    assert not second.held
    lease.acquire()
    with pytest.raises(LeaseError, match="the run lease is closed"):
        second.acquire()


def test_leases_of_different_guests_do_not_meet(control: ControlPage, lease: RunLease) -> None:
    lease.acquire()
    with (
        RamMemfd.create("ram0", MemfdOptions(4096)) as other_ram,
        RunLease(other_ram.fileno(), control) as other,
    ):
        other.acquire()
        assert other.held


def test_closing_ram_fds_does_not_drop_the_lease(
    ram: RamMemfd, control: ControlPage, lease: RunLease
) -> None:
    lease.acquire()
    os.close(os.dup(ram.fileno()))  # would drop a classic POSIX lock
    os.close(os.open(f"/proc/self/fd/{ram.fileno()}", os.O_RDWR))
    with RunLease(ram.fileno(), control) as second, pytest.raises(LeaseBusyError):
        second.acquire()


def test_lease_outlives_the_fd_it_was_made_from(control: ControlPage) -> None:
    with RamMemfd.create("ram0", MemfdOptions(4096)) as memfd:
        lease = RunLease(memfd.fileno(), control)
    with lease:
        lease.acquire()
        assert lease.held


def test_lease_of_an_fd_that_is_not_open_is_refused(control: ControlPage) -> None:
    with pytest.raises(LeaseError, match=r"fd 1000000\) cannot be opened again through /proc"):
        RunLease(1_000_000, control)


def test_lock_that_the_kernel_refuses_for_another_reason_is_named(
    monkeypatch: pytest.MonkeyPatch, lease: RunLease
) -> None:
    def no_locks(*_arguments: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "fcntl", no_locks)
    with pytest.raises(LeaseError, match="unusable: No locks available") as caught:
        lease.acquire()
    assert not isinstance(caught.value, LeaseBusyError)
    assert not lease.held


def test_forgotten_lease_warns_and_frees_the_lock(ram: RamMemfd, control: ControlPage) -> None:
    forgotten = [RunLease(ram.fileno(), control)]
    forgotten[0].acquire()
    with pytest.warns(ResourceWarning, match="unclosed file"):
        forgotten.clear()  # CPython drops it at once
    with RunLease(ram.fileno(), control) as lease:
        lease.acquire()
        assert lease.held


def test_lease_description_is_its_own_and_not_inherited(ram: RamMemfd, lease: RunLease) -> None:
    lease.acquire()
    assert not try_lock(ram.fileno())
    assert not os.get_inheritable(lease._file.fileno())


# --- epochs -------------------------------------------------------------------------------------


def test_enter_without_the_lease_is_refused_and_raises_nothing(lease: RunLease) -> None:
    with pytest.raises(LeaseError, match="only be entered by the process that holds its run lease"):
        lease.enter()
    assert lease.epoch == 0


def test_every_enter_begins_a_new_epoch(lease: RunLease, control: ControlPage) -> None:
    lease.acquire()
    assert [lease.enter(), lease.enter()] == [1, 2]
    assert lease.epoch == control.epoch == 2


def test_state_of_the_present_epoch_may_run(lease: RunLease) -> None:
    lease.acquire()
    lease.check_epoch(0)
    lease.check_epoch(lease.enter())


def test_state_of_an_older_epoch_is_refused_with_both_numbers(lease: RunLease) -> None:
    lease.acquire()
    lease.enter()
    saved_at = lease.epoch
    lease.enter()
    with pytest.raises(EpochMovedError, match="of epoch 1, but the guest is at epoch 2"):
        lease.check_epoch(saved_at)


# --- two processes ------------------------------------------------------------------------------


def test_lease_held_by_another_process_is_busy_until_released(lease: RunLease, peer: Peer) -> None:
    assert peer.do("acquire") is True
    with pytest.raises(LeaseBusyError):
        lease.acquire()
    assert peer.do("release") is False
    lease.acquire()
    assert peer.do("acquire")[0] == "LeaseBusyError"


def test_taking_over_moves_the_epoch_so_that_the_old_state_is_refused(
    lease: RunLease, peer: Peer
) -> None:
    lease.acquire()
    saved_at = lease.enter()
    lease.release()
    assert peer.do("acquire") is True
    assert peer.do("enter") == saved_at + 1
    peer.kill()
    lease.acquire()
    with pytest.raises(EpochMovedError):
        lease.check_epoch(saved_at)


def test_successor_that_died_before_it_ran_leaves_the_old_state_good(
    lease: RunLease, peer: Peer
) -> None:
    lease.acquire()
    saved_at = lease.enter()
    lease.release()
    assert peer.do("acquire") is True
    peer.kill()
    lease.acquire()
    lease.check_epoch(saved_at)
    assert lease.enter() == saved_at + 1


def test_death_of_the_holder_frees_the_lease_before_its_pidfd_says_so(
    ram: RamMemfd, control: ControlPage, lease: RunLease
) -> None:
    for _round in range(5):
        with Peer(ram.fileno(), control) as peer:
            assert peer.do("acquire") is True
            peer.kill()  # returns when the pidfd is readable; the zombie is not reaped yet
            lease.acquire()
            lease.release()


def test_holder_that_hangs_keeps_the_lease(lease: RunLease, peer: Peer) -> None:
    assert peer.do("acquire") is True
    peer.stop()
    with pytest.raises(LeaseBusyError):
        lease.acquire()
    peer.kill()
    lease.acquire()
    assert lease.held


def test_passed_description_would_share_the_lock_and_a_reopened_one_does_not(
    ram: RamMemfd, peer: Peer
) -> None:
    assert try_lock(ram.fileno())
    # both now "hold" the lock: this is why RunLease opens a description of its own
    assert peer.do("lock_passed_description", pass_fd=ram.fileno()) is True
    assert peer.do("acquire")[0] == "LeaseBusyError"


@pytest.mark.needs_root
def test_successor_of_another_user_takes_the_lease(lease: RunLease, peer: Peer) -> None:
    lease.acquire()
    assert peer.do("become_nobody") == 65534
    assert peer.do("acquire")[0] == "LeaseBusyError"
    lease.release()
    assert peer.do("acquire") is True
    assert peer.do("enter") == 1
    with pytest.raises(LeaseBusyError):
        lease.acquire()


def test_forked_child_keeps_the_lock_alive_until_it_ends(
    ram: RamMemfd, control: ControlPage, lease: RunLease
) -> None:
    read_end, write_end = os.pipe()
    with Peer(ram.fileno(), control, read_end) as peer:
        os.close(read_end)
        assert peer.do("acquire") is True
        grandchild = peer.do("fork_until_eof", pipe=read_end)
        peer.kill()
        with pytest.raises(LeaseBusyError):
            lease.acquire()
        pidfd = os.pidfd_open(grandchild)
        os.close(write_end)
        wait_until_dead(pidfd)
    lease.acquire()
    assert lease.held


def test_forked_child_holds_nothing_and_cannot_drop_the_lock_of_its_parent(
    lease: RunLease, peer: Peer
) -> None:
    assert peer.do("acquire") is True
    report = peer.do("report_from_forked_child")
    assert report == {"held": False, "acquire": "LeaseError", "enter": "LeaseError"}
    with pytest.raises(LeaseBusyError):
        lease.acquire()


def test_lease_object_in_a_forked_child_refuses_to_act(
    monkeypatch: pytest.MonkeyPatch, lease: RunLease
) -> None:
    lease.acquire()
    parent = os.getpid()
    with monkeypatch.context() as child:
        child.setattr(os, "getpid", lambda: parent + 1)
        assert not lease.held
        with pytest.raises(LeaseError, match=f"made by process {parent}; a forked child"):
            lease.acquire()
        lease.release()
    assert lease.held
    assert fcntl.fcntl(lease._file.fileno(), fcntl.F_GETFD) & fcntl.FD_CLOEXEC
