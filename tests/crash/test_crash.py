"""A short run of the driver, which any loss fails; `make crash-test` has long ones."""

from tests.crash.driver import crash

N_CYCLES = 20
SEED = 1


def test_nothing_is_lost_in_twenty_crashes() -> None:
    figures = crash(N_CYCLES, SEED)
    print(figures)
    assert figures.startswith(f"{N_CYCLES} cycles (4 x ")
