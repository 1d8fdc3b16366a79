"""Figures for dashboards: `/metrics` in Prometheus' text format, and the stopwatch of each request.

A scrape shows the figures of all workers of the service, and the sizes of the largest indexes, read
from the database.
"""

from collections.abc import Iterator
from typing import Any

from litestar import Response, get
from litestar.connection import ASGIConnection
from litestar.datastructures import MutableScopeHeaders, State
from litestar.di import NamedDependency
from litestar.enums import ScopeType
from litestar.handlers import BaseRouteHandler
from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, Message, Receive, Scope, Send
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector, CollectorRegistry

from app.api.around.auth import API_KEY_HEADER, identify
from app.api.around.headers import request_id
from app.api.around.routes import PUBLIC
from app.domain import IndexFigures
from app.errors import DataCorrupted, Forbidden
from app.observe.figures import NO_ROUTE, Figures, Totals
from app.observe.stages import Stopwatch, current, stage
from app.services.context import ServiceContext

_BEARER = "Bearer "


def may_scrape(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
    """Let in the root key, also as a bearer token; everybody where it is meant or harms nobody."""
    settings = connection.app.state.settings
    if settings.metrics_open or (settings.root_key is None and not settings.allow_open):
        return
    if settings.root_key is None:
        raise Forbidden("permission denied: set SEALDEX_ROOT_KEY, or SEALDEX_METRICS_OPEN=true")
    authorization = connection.headers.get("authorization", "")
    bearer = authorization.removeprefix(_BEARER) if authorization.startswith(_BEARER) else None
    if identify(connection.headers.get(API_KEY_HEADER) or bearer, settings.root_key) is not None:
        raise Forbidden("permission denied: the metrics require the root API key")


@get("/metrics", opt=PUBLIC, guards=[may_scrape], include_in_schema=False)
async def metrics(state: State, services: NamedDependency[ServiceContext]) -> Response[bytes]:
    """Return the figures of all workers."""
    registry = CollectorRegistry(auto_describe=False)
    indexes = await services.operations.index_figures()
    registry.register(_Scrape(state.figures.read(), indexes))
    return Response(generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})


class Observation(ASGIMiddleware):
    """Starts the stopwatch of a request; `observe` stops it."""

    scopes = (ScopeType.HTTP,)

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        """Pass the request on with its stopwatch running."""
        watch = Stopwatch(request_id(scope))
        scope["state"]["stopwatch"] = watch
        token = current.set(watch)

        async def timed_receive() -> Any:
            watch.dispatched()
            with stage("receive"):
                return await receive()

        try:
            await next_app(scope, timed_receive, send)
        finally:
            current.reset(token)


class TimedResponse(Response[Any]):
    """A response whose encoding is a stage."""

    def render(self, *args: Any, **options: Any) -> bytes:
        """Return the body."""
        with stage("encode"):
            return super().render(*args, **options)


async def observe(message: Message, scope: Scope) -> None:
    """Count an answer when it begins; say in it what took how long if the settings ask for it."""
    if message["type"] != "http.response.start":
        return
    app = scope["litestar_app"]
    figures: Figures = app.state.figures
    route = scope.get("path_template") or NO_ROUTE
    figures.count_request(route, message["status"])
    watch: Stopwatch | None = scope["state"].get("stopwatch")
    if watch is None:
        return
    figures.observe_request(route, watch.total(), watch.seconds)
    if app.state.settings.server_timing:
        MutableScopeHeaders.from_message(message)["Server-Timing"] = _server_timing(watch)


def count_damage(error: Exception, scope: Scope) -> None:
    """Count a stored value that did not open."""
    if isinstance(error, DataCorrupted):
        scope["litestar_app"].state.figures.count_sealed_failure()


def _server_timing(watch: Stopwatch) -> str:
    parts = [*watch.seconds.items(), ("total", watch.total())]
    return ", ".join(f"{name};dur={seconds * 1000:.3f}" for name, seconds in parts)


class _Scrape(Collector):
    """One answer to Prometheus."""

    def __init__(self, totals: Totals, indexes: IndexFigures | None) -> None:
        self._totals = totals
        self._indexes = indexes

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        yield self._requests()
        yield self._durations()
        yield self._stages()
        yield CounterMetricFamily(
            "sealdex_sealed_value_failures",
            "Stored values that did not open",
            value=self._totals.sealed_failures(),
        )
        yield from self._pool()
        yield _gauge("sealdex_database_up", "Whether the database answered", self._is_up())
        if self._indexes is not None:
            yield from _index_metrics(self._indexes)

    def _is_up(self) -> bool:
        return self._indexes is not None

    def _requests(self) -> Metric:
        requests = CounterMetricFamily("sealdex_requests", "Answers", labels=["route", "status"])
        for (route, status), count in self._totals.requests().items():
            requests.add_metric([route, status], count)
        return requests

    def _durations(self) -> Metric:
        text = "From the request's head to the answer's"
        duration = HistogramMetricFamily("sealdex_request_duration_seconds", text, labels=["route"])
        for route, histogram in self._totals.durations().items():
            duration.add_metric([route], histogram.buckets(), histogram.total_s)
        return duration

    def _stages(self) -> Metric:
        text = "Parts of the duration of requests; they add up to it"
        stages = HistogramMetricFamily("sealdex_stage_duration_seconds", text, labels=["stage"])
        for name, histogram in self._totals.stages().items():
            stages.add_metric([name], histogram.buckets(), histogram.total_s)
        return stages

    def _pool(self) -> Iterator[Metric]:
        in_use, size = self._totals.pool()
        yield _gauge("sealdex_pool_connections_in_use", "Database connections in use", in_use)
        yield _gauge("sealdex_pool_connections_max", "Database connections of all workers", size)


# Field of an index → its metric, and what that says.
_OF_INDEX = {
    "n_items": ("sealdex_index_items", "Items of an index"),
    "size_bytes": ("sealdex_index_size_bytes", "Bytes of an index on disk"),
    "n_lists": ("sealdex_index_lists", "IVF lists; 1 is untrained"),
    "recall": ("sealdex_index_recall_ratio", "Recall@10 that the last training measured"),
    "is_drifted": ("sealdex_index_drifted", "Whether to train it again"),
    "trained_at_s": (
        "sealdex_index_trained_timestamp_seconds",
        "End of the last training; 0 is never",
    ),
}


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _index_metrics(figures: IndexFigures) -> Iterator[Metric]:
    n_training = sum(index.is_training for index in figures.largest)
    yield _gauge("sealdex_indexes", "Indexes", figures.n_indexes)
    yield _gauge(
        "sealdex_indexes_in_training", "Indexes whose training is at work or waits", n_training
    )
    yield _gauge("sealdex_index_builds_running", "ivfflat indexes being built", figures.n_builds)
    for field, (name, text) in _OF_INDEX.items():
        family = GaugeMetricFamily(name, text, labels=["index"])
        for index in figures.largest:
            value: float | None = getattr(index, field)
            if value is not None:
                family.add_metric([index.name], value)
        yield family
