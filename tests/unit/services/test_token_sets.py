import numpy as np
import pytest

from app.services.token_sets import TokenSet

N_ITEMS = 50


@pytest.mark.parametrize("n_bytes", [8, 64, 77])
@pytest.mark.parametrize("limit", [1, 7, N_ITEMS, 2 * N_ITEMS])
def test_the_nearest_by_hamming_distance_come_first(n_bytes: int, limit: int) -> None:
    sketches = np.random.default_rng(1).integers(0, 256, (N_ITEMS, n_bytes), np.uint8)
    items = [(bytes([row] * 16), bytes([row] * 6)) for row in range(N_ITEMS)]
    query = sketches[3]
    distances = [int(np.unpackbits(row ^ query).sum()) for row in sketches]
    found = TokenSet(0, items, sketches).nearest(query.tobytes(), limit)
    assert [item.distance for item in found] == sorted(distances)[:limit]
    assert found[0] == (*items[3], 0)
    assert all(distances[item.item_key[0]] == item.distance and item.place[0] == item.item_key[0] for item in found)
