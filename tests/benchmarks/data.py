"""What the benchmarks search: real embeddings where there are any, else clusters that look a little
like them.

`SEALDEX_BENCH_DATA` names a directory with `vectors.f16.npy` (n, d), `queries.f16.npy` and
`items.jsonl.gz` (a line an item with `id`, `text` and `metadata`).
"""

import gzip
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from app.domain import Matrix

N_TRUE = 100


@dataclass(frozen=True)
class Data:
    """Unit vectors to store and to search for, and the rows of the true nearest, nearest first."""

    name: str
    vectors: Matrix
    queries: Matrix
    ids: list[str]
    texts: list[str]
    metadata: list[dict[str, Any]]
    truth: np.ndarray[tuple[int, int], np.dtype[np.intp]]

    def recall(self, position: int, found: list[str], k: int) -> float:
        """Return the share of the true `k` nearest of a query that was found."""
        true = {self.ids[row] for row in self.truth[position, :k]}
        return len(true.intersection(found[:k])) / k


def load(n_queries: int = 1_000) -> Data:
    """Return the real data if the environment names it, else 60,000 generated vectors."""
    directory = os.environ.get("SEALDEX_BENCH_DATA")
    if directory and Path(directory).is_dir():
        return _real(Path(directory), n_queries)
    return generated(60_000, 384, n_queries)


def _real(directory: Path, n_queries: int) -> Data:
    vectors = _unit(np.load(directory / "vectors.f16.npy").astype(np.float32))
    queries = _unit(np.load(directory / "queries.f16.npy")[:n_queries].astype(np.float32))
    with gzip.open(directory / "items.jsonl.gz", "rt") as lines:
        items = [json.loads(line) for line in lines]
    return Data(
        directory.name,
        vectors,
        queries,
        [item["id"] for item in items],
        [item["text"] for item in items],
        [item["metadata"] for item in items],
        nearest(vectors, queries),
    )


class Clusters:
    """Vectors around 2,000 centres of low rank, as embeddings of text have them; the same for every
    process.
    """

    def __init__(self, d: int) -> None:
        rng = np.random.default_rng(20261122)
        self._basis = rng.standard_normal((d // 4, d)).astype(np.float32)
        self._centres = rng.standard_normal((2_000, d // 4)).astype(np.float32)

    def vectors(self, n: int, seed: int) -> Matrix:
        """Return `n` unit vectors, others for each seed."""
        rng = np.random.default_rng([20261122, seed])
        spread = 0.7 * rng.standard_normal((n, len(self._basis)), dtype=np.float32)
        return _unit(
            (self._centres[rng.integers(len(self._centres), size=n)] + spread) @ self._basis
        )


class Nearest:
    """The true nearest neighbours of queries among vectors that come piece by piece, and need not
    be kept.
    """

    def __init__(self, queries: Matrix, k: int) -> None:
        self._queries = queries
        self._k = k
        self._n_seen = 0
        self._similarity = np.full((len(queries), k), -np.inf, np.float32)
        self._rows = np.zeros((len(queries), k), np.intp)

    def add(self, vectors: Matrix) -> None:
        """Look at further unit vectors, whose rows go on where the last ones ended."""
        rows = np.arange(self._n_seen, self._n_seen + len(vectors))
        self._n_seen += len(vectors)
        similarity = np.hstack([self._similarity, self._queries @ vectors.T])
        candidates = np.hstack([self._rows, np.broadcast_to(rows, (len(self._queries), len(rows)))])
        best = np.argpartition(-similarity, self._k - 1, axis=1)[:, : self._k]
        self._similarity = np.take_along_axis(similarity, best, axis=1)
        self._rows = np.take_along_axis(candidates, best, axis=1)

    def recall(self, found: Sequence[set[int]]) -> float:
        """Return the mean share of the true neighbours among the rows found for each query."""
        shares = [
            len(one.intersection(true.tolist())) / self._k
            for one, true in zip(found, self._rows, strict=True)
        ]
        return float(np.mean(shares))


def generated(n: int, d: int, n_queries: int) -> Data:
    """Return vectors of `Clusters`."""
    clusters = Clusters(d)
    vectors, queries = clusters.vectors(n, seed=1), clusters.vectors(n_queries, seed=0)
    kinds = ["noun", "verb", "adj", "adv"]
    return Data(
        f"generated {d}",
        vectors,
        queries,
        [f"item-{row:07d}" for row in range(n)],
        [f"The text of item {row}, as long as a sentence in a dictionary." for row in range(n)],
        [
            {
                "pos": kinds[row % 4],
                "category": f"{kinds[row % 4]}.{row % 45}",
                "words": row % 7,
                "lemma": f"word {row}",
                "gloss_length": row * 37 % 400,
            }
            for row in range(n)
        ],
        nearest(vectors, queries),
    )


def nearest(vectors: Matrix, queries: Matrix) -> np.ndarray[tuple[int, int], np.dtype[np.intp]]:
    """Return the rows of `vectors` (unit length) with the largest cosine to each query, best
    first."""
    rows = []
    for start in range(0, len(queries), 100):
        similarity = queries[start : start + 100] @ vectors.T
        top = np.argpartition(-similarity, N_TRUE, axis=1)[:, :N_TRUE]
        order = np.argsort(-np.take_along_axis(similarity, top, axis=1), axis=1, kind="stable")
        rows.append(np.take_along_axis(top, order, axis=1))
    return np.concatenate(rows)


def _unit(rows: Matrix) -> Matrix:
    unit: Matrix = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit
