"""Old versions of a row, one beside the other: does the noise average away?

Somebody keeps a copy of the table after every change, or reads it from backups. Of each item there
are many sketches then, and the attacker takes of each bit the value that most of them have.
"""

from collections.abc import Mapping

import numpy as np

from app.domain import Matrix
from app.engine.sketches.encoder import Encoder
from app.engine.sketches.parameters import COINS_OF_BITS
from tests.attacks.stolen import Setting, item_keys, make_encoder

N_VERSIONS = 15
# How far a version lies from the first, as a share of its length: from the last bits of float32, as
# when a model makes vectors in other batches, to another text.
CHANGES = (1e-6, 1e-4, 1e-2, 1e-1)


def wrong_bits(encoder: Encoder, versions: Matrix, ids: list[bytes]) -> float:
    """Return the share of bits of the last version that the majority of all versions gets wrong.

    `versions` (v, n, d) are v vectors of each of n items, stored one after the other; v is odd.
    """
    stored = [np.unpackbits(encoder.encode_items(one, ids), axis=1) for one in versions]
    majority = np.mean(stored, axis=0) > 0.5
    truth = np.unpackbits(encoder.encode_queries(versions[-1]), axis=1)
    return float(np.mean(majority != truth))


def changed(vectors: Matrix, change: float, n_versions: int = N_VERSIONS) -> Matrix:
    """Return versions (v, n, d) of `vectors` (n, d), each changed by that share of its length."""
    rng = np.random.default_rng(0)
    directions = rng.standard_normal((n_versions, *vectors.shape))
    directions /= np.linalg.norm(directions, axis=2, keepdims=True)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    versions: Matrix = (vectors + change * lengths * directions).astype(np.float32)
    return versions


def averaged(
    vectors: Matrix, setting: Setting, n_items: int = 300, coins: int = COINS_OF_BITS
) -> Mapping[float, float]:
    """Return the share of wrong bits of the majority, by the change between versions."""
    ids = item_keys("one", n_items)
    encoder = make_encoder(vectors, setting, "one", coins)
    return {
        change: wrong_bits(encoder, changed(vectors[:n_items], change), ids) for change in CHANGES
    }
