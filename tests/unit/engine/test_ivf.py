import pytest

from app.engine.sketches.ivf import automatic_n_lists, build_memory_mb


@pytest.mark.parametrize(
    ("n_items", "n_lists"),
    [
        (0, 1),
        (1, 1),
        (10_000, 128),
        (60_000, 256),
        (70_000, 256),
        (1_280_001, 1024),
        (10**12, 32_768),
    ],
)
def test_the_automatic_number_of_lists_is_the_contracts(n_items: int, n_lists: int) -> None:
    assert automatic_n_lists(n_items) == n_lists


def test_the_memory_of_a_build_is_pgvectors_formula_with_room() -> None:
    # 12,800 samples, 256 lists, 768 bits.
    formula = 4 * 12_800 * 256 + 4 * 256**2 + 12_800 * 104 + 2 * 256 * 104 + 4 * 256 * 768
    assert build_memory_mb(60_000, 768, 256) == 64
    large = build_memory_mb(10_000_000, 768, 4096) * 1024**2
    assert 1.2 < large / (4 * 204_800 * 4096 + 4 * 4096**2 + 204_800 * 104) < 1.3
    assert formula < 64 * 1024**2
