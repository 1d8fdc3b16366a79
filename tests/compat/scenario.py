"""One scenario with the vendor's Python SDK, any release from 0.11 on: `python scenario.py URL
API_KEY`.

It runs in a virtual environment of that release, so it imports nothing of the project. Prints a
JSON object: what each step ended in, "pass", "fail: …", or "no: …" for what the release itself
cannot do.
"""

import inspect
import json
import secrets
import sys
from collections.abc import Callable
from importlib import metadata
from typing import Any

import cyborgdb
import numpy as np
from cyborgdb import Client

N_ITEMS = 200
DIMENSION = 32
RELEASE = tuple(int(part) for part in metadata.version("cyborgdb").split(".")[:2])
HAS_CONTENTS = RELEASE >= (0, 13)
HAS_FLAT_CREATE = RELEASE >= (0, 17)
HAS_BINARY = RELEASE >= (0, 15)
HAS_BINARY_CONTENTS = RELEASE >= (0, 18)
HAS_LIST_IDS = RELEASE >= (0, 12)


class NotInThisRelease(Exception):
    """The SDK cannot do this, whatever the service answers."""


def vectors() -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(1).standard_normal((N_ITEMS, DIMENSION)).astype(np.float32)


def group(number: int) -> str:
    return "even" if number % 2 == 0 else "odd"


class Scenario:
    """What a user of the SDK does, in order; every step asserts what came back."""

    def __init__(self, url: str, api_key: str) -> None:
        self.client = Client(url, api_key)
        self.name = f"compat-{secrets.token_hex(4)}"
        self.key = secrets.token_bytes(32)
        self.vectors = vectors()
        self.index: Any = None

    def create(self) -> None:
        if HAS_FLAT_CREATE:
            self.index = self.client.create_index(
                self.name, self.key, dimension=DIMENSION, metric="euclidean"
            )
        else:
            config = _config("IndexIVFFlat", dimension=DIMENSION, n_lists=4, metric="euclidean")
            self.index = self.client.create_index(self.name, self.key, config)
        assert self.name in self.client.list_indexes()

    def create_kinds(self) -> None:
        """The other configurations the release offers."""
        if HAS_FLAT_CREATE:
            made = [
                self.client.create_index(f"{self.name}-16", self.key, storage_precision="float16")
            ]
        else:
            kinds = {
                "IndexIVF": {},
                "IndexIVFPQ": {"pq_dim": 8, "pq_bits": 8},
                "IndexIVFSQ": {"sq_bits": 16},
            }
            made = [
                self.client.create_index(
                    f"{self.name}-{kind}",
                    self.key,
                    _config(kind, dimension=DIMENSION, n_lists=4, **more),
                )
                for kind, more in kinds.items()
                if _config_class(kind) is not None
            ]
            if RELEASE >= (0, 12):
                made.append(
                    self.client.create_index(f"{self.name}-bare", self.key, metric="cosine")
                )
        for index in made:
            index.upsert([{"id": "a", "vector": self.vectors[0].tolist()}])
            assert not index.is_trained()
            index.delete_index()

    def upsert(self) -> None:
        items: list[dict[str, Any]] = [
            {
                "id": f"{n}",
                "vector": row.tolist(),
                "metadata": {"n": n, "group": group(n), "tags": ["a", str(n)]},
            }
            for n, row in enumerate(self.vectors[:100])
        ]
        if HAS_CONTENTS:
            for item in items:
                item["contents"] = f"text {item['id']}"
        self.index.upsert(items)
        # Arrays travel packed from 0.15 on.
        self.index.upsert([f"{n}" for n in range(100, N_ITEMS)], self.vectors[100:])

    def upsert_binary(self) -> None:
        if not HAS_BINARY:
            raise NotInThisRelease("binary upsert")
        rows = [{"n": n, "group": group(n)} for n in range(100, N_ITEMS)]
        more = (
            {"contents": [None, *[f"text {n}" for n in range(101, N_ITEMS)]]}
            if HAS_BINARY_CONTENTS
            else {}
        )
        self.index.upsert_binary(
            [f"{n}" for n in range(100, N_ITEMS)], self.vectors[100:], metadata=rows, **more
        )
        got = self.index.get(["150"])[0]
        assert got["metadata"] == rows[50]
        assert got["contents"] == ("text 150" if HAS_BINARY_CONTENTS else "")

    def describe(self) -> None:
        if HAS_FLAT_CREATE:
            assert (self.index.dimension, self.index.metric, self.index.n_lists) == (
                DIMENSION,
                "euclidean",
                1,
            )
        else:
            assert self.index.index_type == "ivfflat"
            config = self.index.index_config
            assert (config["dimension"], config["metric"]) == (DIMENSION, "euclidean")
        assert self.index.is_trained() is False
        assert self.index.index_name == self.name

    def query_single(self) -> None:
        found = self._query(self.vectors[7], top_k=3, include=["distance", "metadata"])
        assert found[0]["id"] == "7"
        assert abs(found[0]["distance"]) < 1e-3
        assert found[0]["metadata"] == {"n": 7, "group": "odd", "tags": ["a", "7"]}
        assert [match["id"] for match in found] == self._truth(self.vectors[7], 3)

    def query_batch(self) -> None:
        found = self._query_batch(self.vectors[[3, 150, 8]], top_k=2)
        assert [[match["id"] for match in matches] for matches in found] == [
            self._truth(self.vectors[n], 2) for n in (3, 150, 8)
        ]

    def query_arrays(self) -> None:
        if RELEASE < (0, 12):
            raise NotInThisRelease("one argument for single vectors and batches")
        found = self.index.query(self.vectors[9], top_k=2)
        # A single vector came back in a list of its own in 0.12.
        assert (found[0] if isinstance(found[0], list) else found)[0]["id"] == "9"
        assert [
            matches[0]["id"] for matches in self.index.query(self.vectors[[9, 4]], top_k=2)
        ] == ["9", "4"]

    def query_defaults(self) -> None:
        assert len(self._query(self.vectors[0])) == 100

    def filters(self) -> None:
        for condition, matches in (
            ({"group": "even"}, lambda n: n % 2 == 0),
            ({"$and": [{"n": {"$gte": 10}}, {"n": {"$lt": 20}}]}, lambda n: 10 <= n < 20),
            ({"tags": {"$in": ["5", "50"]}}, lambda n: n in {5, 50}),
        ):
            found = self._query(self.vectors[0], top_k=500, filters=condition, include=["metadata"])
            # What upsert_binary has stored has a group and a number, but no tags.
            n_known = N_ITEMS if HAS_BINARY and "tags" not in condition else 100
            assert {int(match["id"]) for match in found} == {
                n for n in range(n_known) if matches(n)
            }

    def get(self) -> None:
        got = {item["id"]: item for item in self.index.get(["1", "2", "unknown"])}
        assert set(got) == {"1", "2"}
        assert np.array_equal(np.float32(got["1"]["vector"]), self.vectors[1])
        assert got["2"]["metadata"] == {"n": 2, "group": "even", "tags": ["a", "2"]}
        if HAS_CONTENTS:
            assert _text(got["1"]["contents"]) == "text 1"

    def contents(self) -> None:
        if not HAS_CONTENTS:
            raise NotInThisRelease("contents: its own model refuses them")
        self.index.upsert(
            [{"id": "bytes", "vector": self.vectors[0].tolist(), "contents": b"\x00\xff"}]
        )
        # The SDK sends bytes as base64 text, and does not decode it on the way back.
        assert _text(self.index.get(["bytes"], include=["contents"])[0]["contents"]) == "AP8="
        self.index.delete(["bytes"])

    def list_ids(self) -> None:
        if not HAS_LIST_IDS:
            raise NotInThisRelease("list_ids")
        answer = self.index.list_ids()
        ids = answer if isinstance(answer, list) else answer.ids
        assert sorted(ids) == sorted(f"{n}" for n in range(N_ITEMS))

    def train(self) -> None:
        self.index.train()
        assert self._query(self.vectors[5], top_k=1)[0]["id"] == "5"

    def is_training(self) -> None:
        if not HAS_LIST_IDS:
            raise NotInThisRelease("is_training")
        assert self.index.is_training() is False

    def load(self) -> None:
        if not hasattr(self.client, "load_index"):
            raise NotInThisRelease("load_index")
        loaded = self.client.load_index(self.name, self.key)
        assert loaded.get(["3"], include=[])[0]["id"] == "3"
        if HAS_FLAT_CREATE:
            assert loaded.dimension == DIMENSION

    def wrong_key(self) -> None:
        index = type(self.index)(
            self.name, secrets.token_bytes(32), self.index._api, self.index._api_client
        )
        refusal = ""
        try:
            index.get(["1"])
        except Exception as error:  # noqa: BLE001 - each release has its own
            refusal = str(error)
        assert "401" in refusal or "Wrong index_key" in refusal, refusal

    def delete(self) -> None:
        self.index.delete(["1", "unknown"])
        assert self.index.get(["1"]) == []

    def delete_index(self) -> None:
        self.index.delete_index()
        assert self.name not in self.client.list_indexes()

    def _query(self, vector: Any, **options: Any) -> Any:
        if RELEASE < (0, 12):
            # 0.11 answers one vector with a list of one list.
            return self.index.query(query_vector=vector.tolist(), **options)[0]
        found = self.index.query(vector.tolist(), **options)
        return found[0] if found and isinstance(found[0], list) else found

    def _query_batch(self, rows: Any, **options: Any) -> Any:
        return self.index.query(query_vectors=rows.tolist(), **options)

    def _truth(self, query: Any, count: int) -> list[str]:
        return [f"{n}" for n in np.argsort(np.linalg.norm(self.vectors - query, axis=1))[:count]]


def _config_class(kind: str) -> Any:
    return getattr(cyborgdb, kind, None) or getattr(cyborgdb.client.client, kind, None)


def _config(kind: str, **fields: Any) -> Any:
    """Return the configuration with those of `fields` that this release knows."""
    made = _config_class(kind)
    known = set(inspect.signature(made).parameters)
    return made(**{name: value for name, value in fields.items() if name in known})


def _text(contents: Any) -> Any:
    return getattr(contents, "actual_instance", contents)


STEPS: list[Callable[[Scenario], None]] = [
    Scenario.create,
    Scenario.describe,
    Scenario.create_kinds,
    Scenario.upsert,
    Scenario.query_single,
    Scenario.query_batch,
    Scenario.query_arrays,
    Scenario.query_defaults,
    Scenario.get,
    Scenario.contents,
    Scenario.upsert_binary,
    Scenario.filters,
    Scenario.list_ids,
    Scenario.load,
    Scenario.wrong_key,
    Scenario.train,
    Scenario.is_training,
    Scenario.delete,
    Scenario.delete_index,
]


def run(scenario: Scenario, step: Callable[[Scenario], None]) -> str:
    try:
        step(scenario)
    except NotInThisRelease as error:
        return f"no: {error}"
    except Exception as error:  # noqa: BLE001 - any failure is a result
        return f"fail: {type(error).__name__}: {error}"
    return "pass"


if __name__ == "__main__":
    made = Scenario(*sys.argv[1:3])
    sys.stdout.write(json.dumps({step.__name__: run(made, step) for step in STEPS}))
