from __future__ import annotations

from vmm.accel.tsc import TscReading

SECOND_NS = 10**9
KHZ = 2_500_000
HZ = KHZ * 1000
U64 = 2**64
HERE = TscReading(host_tsc=1_000 * HZ, host_ns=500 * SECOND_NS, khz=KHZ)


def guest_tsc(reading: TscReading, offset: int, now_ns: int) -> int:
    return (reading.host_tsc_at(now_ns) + offset) % U64


def test_offset_of_this_host_is_kept_exactly() -> None:
    offset = -123_456 % U64
    saved_ns = 600 * SECOND_NS
    saved_tsc = guest_tsc(HERE, offset, saved_ns)

    assert HERE.offset_for(saved_tsc, saved_ns, offset, saved_ns + SECOND_NS) == offset


def test_small_clock_error_does_not_make_it_another_host() -> None:
    saved_ns = HERE.host_ns + 3600 * SECOND_NS
    saved_tsc = guest_tsc(HERE, 77, saved_ns) + int(0.5 * HZ)  # half a second in an hour: slewing

    assert HERE.offset_for(saved_tsc, saved_ns, 77, saved_ns) == 77


def test_state_of_another_host_goes_on_from_its_value_and_not_from_its_offset() -> None:
    saved_ns, saved_tsc = 500 * SECOND_NS, 42 * HZ  # the other host's TSC is far from ours
    now_ns = saved_ns + SECOND_NS // 10

    offset = HERE.offset_for(saved_tsc, saved_ns, 0, now_ns)

    assert guest_tsc(HERE, offset, now_ns) == saved_tsc + HZ // 10


def test_state_without_offset_moves_on_by_the_time_that_has_passed() -> None:
    now_ns = 700 * SECOND_NS

    offset = HERE.offset_for(5 * HZ, now_ns - 2 * SECOND_NS, None, now_ns)

    assert guest_tsc(HERE, offset, now_ns) == 7 * HZ


def test_clock_that_lies_in_the_future_does_not_turn_the_counter_back() -> None:
    now_ns = 10 * SECOND_NS  # the host was restarted since the state was saved

    offset = HERE.offset_for(5 * HZ, 900 * SECOND_NS, None, now_ns)

    assert guest_tsc(HERE, offset, now_ns) == 5 * HZ
