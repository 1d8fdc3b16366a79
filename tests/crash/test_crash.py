"""A short run of the crash driver; `make crash-test ARGS='--cycles 1000'` is the long one."""

from tests.crash.driver import FAULTS, crash


def test_nothing_acknowledged_is_lost_in_twenty_crashes() -> None:
    figures = crash(n_cycles=20, seed=9)
    # The seed is one that has every fault in its twenty cycles.
    assert all(fault in figures for fault in FAULTS), figures
