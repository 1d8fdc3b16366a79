import numpy as np
import pytest

from app.engine.sketches.statements import Everything
from app.engine.sketches.token_sets import TokenSet

N_ITEMS = 50


@pytest.mark.parametrize("n_bytes", [8, 64, 77])
@pytest.mark.parametrize("limit", [1, 7, N_ITEMS, 2 * N_ITEMS])
def test_the_nearest_by_hamming_distance_come_first(n_bytes: int, limit: int) -> None:
    sketches = np.random.default_rng(1).integers(0, 256, (N_ITEMS, n_bytes), np.uint8)
    item_keys, places = (
        b"".join(bytes([row] * width) for row in range(N_ITEMS)) for width in (16, 6)
    )
    query = sketches[3]
    distances = [int(np.unpackbits(row ^ query).sum()) for row in sketches]
    found = TokenSet(Everything(0, item_keys, places, sketches)).nearest(query.tobytes(), limit)
    assert found.hammings.tolist() == sorted(distances)[:limit]
    rows = [place[0] for place in found.places]
    assert rows[0] == 3
    assert found.places == [bytes([row] * 6) for row in rows]
    assert found.item_keys == [bytes([row] * 16) for row in rows]
    assert found.hammings.tolist() == [distances[row] for row in rows]
