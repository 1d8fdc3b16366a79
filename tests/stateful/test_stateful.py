"""Random requests to a service with two workers; each answer is compared with a dictionary's.

HYPOTHESIS_PROFILE=nightly takes about twenty minutes.
"""

import hashlib
import itertools
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from app.store.pg.dsn import database_url
from tests import filter_strategies, naive_filters
from tests.conftest import new_database
from tests.service.conftest import Service, new_service
from tests.stateful import requests
from tests.stateful.model import Index, Item, Metadata, check_nearest, is_same_item

_IS_NIGHTLY = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"
_NAMES = ["alpha", "beta/β", "gamma"]
# So many that both workers have some.
_N_CONNECTIONS = 4
_ALL_LISTS = 1_000
_ALL_ITEMS = 10_000
_MAX_RESTARTS = 2

_metrics = st.sampled_from(["euclidean", "squared_euclidean", "cosine"])
_dimensions = st.none() | st.integers(2, 4)
_precisions = st.sampled_from(["float32", "float16"])
_top_k = st.sampled_from([1, 3, 10, 2_000])


class Connections:
    """Several connections to the service, used in turn, so that requests meet several workers."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.n_requests = self.n_restarts = 0
        self._clients: list[httpx.Client] = []
        self._turn = itertools.count()

    def send(self, route: str, body: dict[str, Any] | None = None) -> httpx.Response:
        """Send a request: GET without a body."""
        if not self._clients:
            self._clients = [
                httpx.Client(base_url=f"{self.service.url}/v1/", timeout=60)
                for _ in range(_N_CONNECTIONS)
            ]
        client = self._clients[next(self._turn) % len(self._clients)]
        self.n_requests += 1
        return client.get(route) if body is None else client.post(route, json=body)

    def close(self) -> None:
        """Let go of the connections; the next request makes new ones."""
        for client in self._clients:
            client.close()
        self._clients = []

    def restart(self, *, is_killed: bool) -> None:
        """Stop the service in good order, or kill its processes, and start it again."""
        self.close()
        (self.service.kill if is_killed else self.service.stop)()
        self.service.start()
        self.n_restarts += 1


class Requests(RuleBasedStateMachine):
    """Any request in any order; after it the service holds what the model does."""

    connections: ClassVar[Connections]

    def __init__(self) -> None:
        super().__init__()
        self.indexes: dict[str, Index] = {}
        self.n_created = 0

    # ------------------------------------------------------------ indexes

    @initialize(metric=_metrics, dimension=_dimensions, precision=_precisions)
    def create_the_first(self, metric: str, dimension: int | None, precision: str) -> None:
        self._create(_NAMES[0], metric, dimension, precision)

    @rule(
        name=st.sampled_from(_NAMES), metric=_metrics, dimension=_dimensions, precision=_precisions
    )
    def create(self, name: str, metric: str, dimension: int | None, precision: str) -> None:
        self._create(name, metric, dimension, precision)

    def _create(self, name: str, metric: str, dimension: int | None, precision: str) -> None:
        self.n_created += 1
        key = hashlib.sha256(f"{name} {self.n_created}".encode()).hexdigest()
        body = {
            "index_name": name,
            "index_key": key,
            "metric": metric,
            "storage_precision": precision,
        }
        answer = self.connections.send("indexes/create", {**body, "dimension": dimension})
        if name in self.indexes:
            assert answer.status_code == httpx.codes.CONFLICT, answer.text
            self._check(name)
            return
        assert answer.status_code == httpx.codes.OK, answer.text
        self.indexes[name] = Index(key, metric, dimension)

    @precondition(lambda self: self.indexes)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        name = self._choose(data)
        self._ask("indexes/delete", name)
        del self.indexes[name]
        assert (
            self.connections.send("vectors/num_vectors", {"index_name": name}).status_code
            == httpx.codes.NOT_FOUND
        )

    @rule()
    def list_indexes(self) -> None:
        assert self.connections.send("indexes/list").json() == {"indexes": sorted(self.indexes)}

    @precondition(lambda self: self.indexes)
    @rule(data=st.data())
    def describe(self, data: st.DataObject) -> None:
        name = self._choose(data)
        assert self._ask("indexes/describe", name) == self.indexes[name].describe(name)

    @precondition(lambda self: self.indexes)
    @rule(data=st.data(), n_lists=st.integers(2, 9), is_filled=st.booleans())
    def train(self, data: st.DataObject, n_lists: int, is_filled: bool) -> None:
        name = self._choose(data)
        if is_filled and self.indexes[name].dimension is not None:
            self._upsert(name, requests.thousand(self.indexes[name].dimension or 0))
        assert self._ask("indexes/train", name, n_lists=n_lists)["status"] == "success"
        self.indexes[name].train(n_lists)
        assert self._ask("indexes/describe", name) == self.indexes[name].describe(name)

    # ------------------------------------------------------------ items

    @precondition(lambda self: self.indexes)
    @rule(data=st.data())
    def upsert(self, data: st.DataObject) -> None:
        name = self._choose(data)
        dimension = self.indexes[name].dimension or data.draw(st.integers(2, 4), label="dimension")
        self._upsert(name, data.draw(requests.batches(dimension), label="items"))

    @precondition(lambda self: self.indexes)
    @rule(data=st.data(), ids=st.lists(requests.ids, max_size=4))
    def delete_items(self, data: st.DataObject, ids: list[str]) -> None:
        name = self._choose(data)
        self._ask("vectors/delete", name, ids=ids)
        self.indexes[name].delete(ids)

    @precondition(lambda self: self.indexes)
    @rule(data=st.data(), ids=st.lists(requests.ids, max_size=6))
    def get(self, data: st.DataObject, ids: list[str]) -> None:
        name = self._choose(data)
        self._check_items(name, ids)

    @precondition(lambda self: self.indexes)
    @rule(data=st.data())
    def list_and_count(self, data: st.DataObject) -> None:
        self._check(self._choose(data))

    @precondition(lambda self: self.indexes)
    @rule(data=st.data(), filters=st.none() | filter_strategies.filters)
    def count(self, data: st.DataObject, filters: Metadata | None) -> None:
        name = self._choose(data)
        matching = self.indexes[name].matching(filters)
        assert self._ask("vectors/num_vectors", name, filters=filters) == {"result": len(matching)}

    @precondition(lambda self: self.indexes)
    @rule(data=st.data(), top_k=_top_k, n_queries=st.integers(1, 3))
    def query(self, data: st.DataObject, top_k: int, n_queries: int) -> None:
        self._query(data, None, top_k, n_queries)

    @precondition(lambda self: self.indexes)
    @rule(
        data=st.data(), filters=filter_strategies.filters, top_k=_top_k, n_queries=st.integers(1, 3)
    )
    def query_with_filters(
        self, data: st.DataObject, filters: Metadata, top_k: int, n_queries: int
    ) -> None:
        self._query(data, filters, top_k, n_queries)

    # ------------------------------------------------------------ what is refused

    @precondition(lambda self: self.indexes)
    @rule(data=st.data(), route=st.sampled_from(sorted(requests.KEYED)))
    def use_a_wrong_key(self, data: st.DataObject, route: str) -> None:
        name = self._choose(data)
        wrong = [bytes(32).hex(), None, *(other.key for other in self.indexes.values())]
        key = data.draw(
            st.sampled_from([key for key in wrong if key != self.indexes[name].key]), label="key"
        )
        answer = self.connections.send(
            route, {"index_name": name, "index_key": key, **requests.KEYED[route]}
        )
        assert answer.status_code == httpx.codes.UNAUTHORIZED, answer.text
        self._check(name)

    @precondition(lambda self: self.indexes)
    @rule(data=st.data(), what=st.sampled_from(sorted(requests.BAD)))
    def send_what_is_wrong(self, data: st.DataObject, what: str) -> None:
        route, fields = requests.BAD[what]
        self._refuse(route, self._choose(data), fields)

    @rule(name=st.sampled_from(_NAMES), route=st.sampled_from(sorted(requests.KEYED)))
    def use_an_unknown_index(self, name: str, route: str) -> None:
        body = {"index_name": f"{name}?", "index_key": bytes(32).hex(), **requests.KEYED[route]}
        assert self.connections.send(route, body).status_code == httpx.codes.NOT_FOUND

    # ------------------------------------------------------------ steps of the rules

    def _choose(self, data: st.DataObject) -> str:
        return data.draw(st.sampled_from(sorted(self.indexes)), label="index")

    def _send(self, route: str, name: str, fields: dict[str, Any]) -> httpx.Response:
        return self.connections.send(
            route, {"index_name": name, "index_key": self.indexes[name].key, **fields}
        )

    def _ask(self, route: str, name: str, **fields: Any) -> dict[str, Any]:
        answer = self._send(route, name, fields)
        assert answer.status_code == httpx.codes.OK, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def _refuse(self, route: str, name: str, fields: dict[str, Any]) -> None:
        answer = self._send(route, name, fields)
        assert answer.is_client_error, answer.text
        self._check(name)

    def _query(
        self, data: st.DataObject, filters: Metadata | None, top_k: int, n_queries: int
    ) -> None:
        name = self._choose(data)
        index = self.indexes[name]
        dimension = index.dimension or 2
        several = [data.draw(requests.vectors(dimension), label="query") for _ in range(n_queries)]
        # All lists, all items: what is looked for here is not the recall.
        exact = {"n_probes": _ALL_LISTS, "rerank_mult": _ALL_ITEMS // top_k, "top_k": top_k}
        body = {
            **exact,
            "query_vectors": several,
            "filters": filters,
            "include": ["distance", "metadata"],
        }
        if index.dimension is None:
            self._refuse("vectors/query", name, body)
            return
        results = self._ask("vectors/query", name, **body)["results"]
        for asked, found in zip(several, [results] if n_queries == 1 else results, strict=True):
            check_nearest(found, index.distances(asked, filters), top_k)
            for match in found:
                assert naive_filters.same(match["metadata"], index.items[match["id"]].metadata), (
                    match
                )

    def _upsert(self, name: str, batch: list[tuple[str, Item]]) -> None:
        sent = [requests.on_the_wire(*one) for one in batch]
        assert (
            self._ask("vectors/upsert", name, items=sent)["message"]
            == f"Upserted {len(batch)} vectors"
        )
        self.indexes[name].upsert(batch)

    def _check(self, name: str) -> None:
        """Assert that an index holds the model's items, and look at each that rules change."""
        ids = self._ask("vectors/list_ids", name)["ids"]
        assert sorted(ids) == sorted(self.indexes[name].items)
        assert self._ask("vectors/num_vectors", name) == {"result": len(ids)}
        self._check_items(name, ids[:50])

    def _check_items(self, name: str, ids: list[str]) -> None:
        items = self.indexes[name].items
        found = self._ask("vectors/get", name, ids=ids)["results"]
        assert [one["id"] for one in found] == [wanted for wanted in ids if wanted in items]
        assert all(is_same_item(one, items[one["id"]]) for one in found), json.dumps(found)

    def teardown(self) -> None:
        """Compare all that is left, and leave nothing."""
        for name in self.indexes:
            self._check(name)
            self._ask("indexes/delete", name)


class RequestsAndRestarts(Requests):
    """Now and then the service is stopped or killed between two requests."""

    n_restarts = 0

    @precondition(lambda self: self.n_restarts < _MAX_RESTARTS)
    @rule(is_killed=st.booleans())
    def restart(self, is_killed: bool) -> None:
        self.n_restarts += 1
        self.connections.restart(is_killed=is_killed)
        for name in self.indexes:
            self._check(name)

    def teardown(self) -> None:
        """See that no example goes without a restart."""
        if not self.n_restarts:
            self.restart(is_killed=True)
        super().teardown()


@pytest.fixture(scope="module")
def connections(server_dsn: str, template_dsn: str) -> Iterator[Connections]:
    """A service with two workers on a database that outlives them."""
    template = database_url(template_dsn).database or ""
    with (
        tempfile.TemporaryDirectory(prefix="sealdex-test-") as directory,
        new_database(server_dsn, template) as database_dsn,
    ):
        service = new_service(
            Path(directory), SEALDEX_WORKERS="2", SEALDEX_POOL_SIZE="2", DATABASE_URL=database_dsn
        )
        service.start()
        Requests.connections = connections = Connections(service)
        yield connections
        connections.close()
        service.stop()
        print(f"requests: {connections.n_requests}, restarts: {connections.n_restarts}")


def test_the_service_answers_as_a_dictionary_does(connections: Connections) -> None:
    n_examples, n_steps = (500, 60) if _IS_NIGHTLY else (12, 30)
    _run(Requests, n_examples, n_steps)


def test_the_service_answers_as_a_dictionary_does_across_restarts(connections: Connections) -> None:
    n_examples, n_steps = (50, 60) if _IS_NIGHTLY else (3, 15)
    _run(RequestsAndRestarts, n_examples, n_steps)


def _run(machine: type[Requests], n_examples: int, n_steps: int) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=n_examples,
            stateful_step_count=n_steps,
            deadline=None,
            suppress_health_check=[
                HealthCheck.too_slow,
                HealthCheck.filter_too_much,
                HealthCheck.data_too_large,
            ],
        ),
    )
