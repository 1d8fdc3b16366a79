"""Vectors to attack: real embeddings from a directory, or generated ones that look like them.

The directory named by SEALDEX_BENCH_DATA holds `vectors.f16.npy` (n, d), `queries.f16.npy` (q, d)
and `items.jsonl.gz`, a line of JSON for each vector with its `metadata`.
"""

import gzip
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from app.domain import Matrix

VARIABLE = "SEALDEX_BENCH_DATA"
_GENERATED_FIELDS = ("category", "pos")


@dataclass(frozen=True, slots=True)
class Corpus:
    """Vectors of unit length (n, d), as many fields of metadata as are worth a token, and vectors
    not among them.
    """

    name: str
    vectors: Matrix
    queries: Matrix
    fields: Mapping[str, Sequence[str | int]]

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Read real embeddings, in an order that says nothing."""
        vectors = unit(np.load(directory / "vectors.f16.npy").astype(np.float32))
        queries = unit(np.load(directory / "queries.f16.npy").astype(np.float32))
        with gzip.open(directory / "items.jsonl.gz", "rt") as lines:
            metadata = [json.loads(line)["metadata"] for line in lines]
        order = np.random.default_rng(0).permutation(len(vectors))
        fields = {name: [metadata[row][name] for row in order] for name in metadata[0]}
        return cls(directory.name, vectors[order], queries, fields)

    @classmethod
    def from_env(cls) -> Self:
        """Read the directory that SEALDEX_BENCH_DATA names."""
        return cls.read(Path(os.environ[VARIABLE]))

    @classmethod
    def generate(cls, n_vectors: int, dimension: int, seed: int) -> Self:
        """Draw clustered vectors of low effective rank with a mean direction, as sentence
        embeddings have.

        Clusters are of unequal size and spread unequally over the axes, so that axes are told apart
        by variance and skewness, which is what an attack without known pairs goes by.
        """
        # The space is one and the same for every seed, as it is for every corpus that one model
        # embeds.
        space = np.random.default_rng(12345)
        n_clusters = 60
        spectrum = (1 + np.arange(dimension)) ** -0.45
        centres = space.normal(size=(n_clusters, dimension)) * spectrum
        shares = space.dirichlet(np.full(n_clusters, 0.8))
        direction = space.normal(size=dimension) * 0.1
        rng = np.random.default_rng(seed)
        n_all = n_vectors + n_vectors // 10
        cluster = rng.choice(n_clusters, size=n_all, p=shares)
        noise = rng.normal(size=(n_all, dimension)) * spectrum
        vectors = unit((centres[cluster] * 0.8 + noise + direction).astype(np.float32))
        labels = (
            [f"c{number}" for number in cluster[:n_vectors]],
            [f"p{number % 4}" for number in cluster[:n_vectors]],
        )
        fields = dict(zip(_GENERATED_FIELDS, labels, strict=True))
        return cls("generated", vectors[:n_vectors], vectors[n_vectors:], fields)

    def half(self, *, first: bool) -> Self:
        """One half of the items: what is stored, or what an attacker has of the same kind."""
        middle = len(self.vectors) // 2
        part = slice(None, middle) if first else slice(middle, None)
        fields = {name: values[part] for name, values in self.fields.items()}
        return type(self)(self.name, self.vectors[part], self.queries, fields)

    def where(self, field: str, value: str, *, equal: bool) -> Self:
        """The items whose `field` has `value`, or those where it has another."""
        rows = [row for row, found in enumerate(self.fields[field]) if (found == value) is equal]
        fields = {name: [values[row] for row in rows] for name, values in self.fields.items()}
        return type(self)(self.name, self.vectors[rows], self.queries, fields)


def unit(vectors: Matrix) -> Matrix:
    """Rows of length 1."""
    scaled: Matrix = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return scaled
