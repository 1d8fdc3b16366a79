"""Some mutated connections; `make fuzz` sends them for minutes."""

import pytest

from tests.resources.fuzz import fuzz


@pytest.mark.parametrize("seed", range(3))
def test_a_neighbour_is_served_whatever_comes(seed: int, caplog: pytest.LogCaptureFixture) -> None:
    assert fuzz(2, seed, at_least=10) >= 10
    assert caplog.records == []
