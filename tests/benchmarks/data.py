"""What the benchmarks search: real embeddings where there are any, else clusters that look a little like them.

`SEALDEX_BENCH_DATA` names a directory with `vectors.f16.npy` (n, d), `queries.f16.npy` and `items.jsonl.gz` (a line an
item with `id`, `text` and `metadata`).
"""

import gzip
import json
import os
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


def generated(n: int, d: int, n_queries: int) -> Data:
    """Return vectors around 2,000 centres of low rank, as embeddings of text have them."""
    rng = np.random.default_rng(20261122)
    basis = rng.standard_normal((d // 4, d)).astype(np.float32)
    centres = rng.standard_normal((2_000, d // 4)).astype(np.float32)

    def around(count: int) -> Matrix:
        spread = 0.7 * rng.standard_normal((count, d // 4)).astype(np.float32)
        return _unit((centres[rng.integers(len(centres), size=count)] + spread) @ basis)

    vectors, queries = around(n), around(n_queries)
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
    """Return the rows of `vectors` (unit length) with the largest cosine to each query, best first."""
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
