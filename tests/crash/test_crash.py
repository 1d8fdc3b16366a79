"""A short run of the crash driver; `make crash-test ARGS='--cycles 1000'` is the long one."""

from tests.crash.driver import FAULTS, crash


def test_nothing_acknowledged_is_lost_in_any_kind_of_crash() -> None:
    # The seed is one that has every fault in its five cycles.
    figures = crash(n_cycles=len(FAULTS), seed=33)
    assert all(fault in figures for fault in FAULTS), figures
