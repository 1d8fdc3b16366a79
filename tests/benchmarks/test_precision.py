"""What float16 costs: recall of an exact search over rounded vectors, and bytes of a sealed
vector."""

import numpy as np
from numpy.typing import NDArray

from app.crypto import aead
from app.domain import Precision
from app.engine.keyed import VECTOR_DTYPES
from tests.benchmarks import data as datasets

N_QUERIES = 500


def test_float16_finds_what_float32_finds() -> None:
    data = datasets.load(N_QUERIES)
    dimension = data.vectors.shape[1]
    print(f"\n{data.name}: {len(data.vectors):,} x {dimension}, {N_QUERIES} queries, exact search")
    print(
        "| precision | recall@10 | recall@100 | largest error of a number | bytes of a sealed "
        "vector |"
    )
    print("|---|---|---|---|---|")
    for precision in Precision:
        dtype = VECTOR_DTYPES[precision]
        stored = data.vectors.astype(dtype).astype(np.float32)
        nearest = datasets.nearest(stored, data.queries)
        recalls = [recall(data.truth, nearest, k) for k in (10, 100)]
        error = float(np.abs(stored - data.vectors).max())
        n_bytes = dimension * dtype.itemsize + aead.OVERHEAD_BYTES
        print(f"| {precision} | {recalls[0]:.4f} | {recalls[1]:.4f} | {error:.1e} | {n_bytes} |")
        assert recalls[0] >= 0.99


def recall(truth: NDArray[np.intp], found: NDArray[np.intp], k: int) -> float:
    """Return the mean share of the true `k` nearest among the `k` found."""
    return float(
        np.mean([len(np.intersect1d(a[:k], b[:k])) / k for a, b in zip(truth, found, strict=True)])
    )
