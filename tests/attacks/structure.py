"""What the sketches show without any decoder: neighbours, members, and the same item elsewhere."""

import numpy as np
from numpy.typing import NDArray

from app.domain import Matrix
from tests.attacks.stolen import Setting, StolenIndex, as_signs, item_keys, make_encoder

_NEIGHBOURS = 10


def neighbours_shown(stolen: StolenIndex, n_items: int = 1_000) -> float:
    """Share of the true 10 nearest items of an item that are among the 10 nearest stored sketches
    of its sketch.
    """
    seen = nearest_rows(stolen.signs[:n_items], stolen.signs, _NEIGHBOURS + 1)
    true = nearest_rows(stolen.truth[:n_items], stolen.truth, _NEIGHBOURS + 1)
    shared = [
        len(set(one) & set(other) - {row})
        for row, (one, other) in enumerate(zip(seen, true, strict=True))
    ]
    return float(np.mean(shared)) / _NEIGHBOURS


def membership_advantage(
    stolen: StolenIndex, strangers: Matrix, weights: Matrix, n_items: int = 1_000
) -> float:
    """Largest difference of true and false positives when asking of a text whether it is stored.

    The attacker sends all sketches through `weights` (m, d), a decoder, and takes the largest
    cosine between the text's vector and any decoded item for a sign of membership. `strangers` (q,
    d) are vectors that are not stored.
    """
    decoded = (stolen.signs - stolen.signs.mean(axis=0)) @ weights
    decoded /= np.maximum(np.linalg.norm(decoded, axis=1, keepdims=True), 1e-9)
    members = (stolen.truth[-n_items:] @ decoded.T).max(axis=1)
    others = (stolen.lift(strangers[:n_items]) @ decoded.T).max(axis=1)
    thresholds = np.concatenate([members, others])
    return max(float(np.mean(members >= one) - np.mean(others >= one)) for one in thresholds)


def linked_across_indexes(
    vectors: Matrix, setting: Setting, n_items: int = 2_000
) -> dict[str, float]:
    """How well sketches of the same items in two indexes are told apart from those of different
    items.

    `auc`: chance that two sketches of one item are nearer than two of different items (.5 is
    chance). `rank_1`: share of items whose nearest sketch in the other index is their own (1 / n is
    chance). `equal_keys`: item keys in common.
    """
    one, other = (
        as_signs(
            make_encoder(vectors, setting, secret).encode_items(
                vectors[:n_items], item_keys(secret, n_items)
            )
        )
        for secret in ("one", "other")
    )
    auc, rank_1 = link_rate(one, other)
    equal_keys = set(item_keys("one", n_items)) & set(item_keys("other", n_items))
    return {
        "auc": auc,
        "rank_1": rank_1,
        "chance": 1 / n_items,
        "equal_keys": float(len(equal_keys)),
    }


def link_rate(one: Matrix, other: Matrix) -> tuple[float, float]:
    """`auc` and `rank_1` of `linked_across_indexes` for sketches as ±1 (n, m); row i of both is the
    same item.
    """
    n_items = len(one)
    agreement = one @ other.T
    own = np.diag(agreement)
    different = np.sort(np.delete(agreement.reshape(-1), slice(None, None, n_items + 1)))
    below = np.searchsorted(different, own, side="left") + np.searchsorted(
        different, own, side="right"
    )
    # An attacker may also look for the most different sketch: a rotation could turn a cloud over.
    rank_1 = np.mean(np.abs(agreement).argmax(axis=1) == np.arange(n_items))
    return float(below.mean() / 2 / len(different)), float(rank_1)


def linked_across_upserts(
    vectors: Matrix, setting: Setting, n_items: int = 500
) -> dict[str, float]:
    """Share of bits in which two stored sketches differ: the same item again, and the same vector
    under another id.
    """
    keys = item_keys("one", 2 * n_items)
    first, again, copied = (
        as_signs(make_encoder(vectors, setting, "one").encode_items(vectors[:n_items], ids))
        for ids in (keys[:n_items], keys[:n_items], keys[n_items:])
    )
    return {
        "same_item": float(np.mean(first != again)),
        "same_vector": float(np.mean(first != copied)),
    }


def nearest_rows(queries: Matrix, rows: Matrix, count: int) -> NDArray[np.intp]:
    """Rows with the largest inner products, for each query, in no order: (q, count)."""
    found = np.empty((len(queries), count), np.intp)
    for start in range(0, len(queries), 250):
        part = slice(start, start + 250)
        found[part] = np.argpartition(-(queries[part] @ rows.T), count, axis=1)[:, :count]
    return found
