"""The application of one worker: routes, and what surrounds them."""

from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from litestar import Litestar, Router
from litestar.connection import Request
from litestar.datastructures import State
from litestar.di import Provide
from litestar.types import Middleware

from app.api import embeddings, health, indexes, items, training, users
from app.api.around import metrics
from app.api.around.admission import Admission
from app.api.around.errors import EXCEPTION_HANDLERS
from app.api.around.headers import cors, header_hook
from app.api.around.hosts import checked_hosts
from app.api.around.logs import logging_config
from app.api.around.paths import ContractPaths, keep_escaped_slashes
from app.api.around.refusals import record_refusal
from app.api.around.telemetry import tracing
from app.api.json_bodies import JSONStruct
from app.api.openapi import openapi_routes
from app.domain import Caller
from app.observe.figures import Figures
from app.server import memory
from app.services.context import ServiceContext
from app.settings import Settings


class Application(Litestar):
    """The framework's application, which looks at a path before it is routed."""

    __slots__ = ()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Route the request with the slashes in its index name out of the way."""
        keep_escaped_slashes(scope)
        await super().__call__(scope, receive, send)


def create_app(settings: Settings, outermost: Sequence[Middleware] = ()) -> Litestar:
    """Return the application of one worker; its lifespan connects to the database."""
    routes = _routes()
    figures = Figures([route.path_format for route in routes.routes], settings.metrics_dir)
    return Application(
        route_handlers=[routes, Router("/v1", route_handlers=openapi_routes([routes])), _metrics()],
        state=State({"settings": settings, "figures": figures}),
        lifespan=[_services_of(settings), memory.looked_after],
        cors_config=cors(settings),
        middleware=[*outermost, *_middleware(settings)],
        before_send=[header_hook(settings), metrics.observe],
        after_exception=[metrics.count_damage, record_refusal],
        response_class=metrics.TimedResponse,
        exception_handlers=EXCEPTION_HANDLERS,
        request_max_body_size=settings.max_body_bytes,
        openapi_config=None,
        logging_config=logging_config(settings),
        debug=False,
    )


def create_app_from_env() -> Litestar:
    """Return the application of a worker process, which finds its settings in the environment."""
    settings = Settings.from_env()
    return create_app(settings, tracing(settings))


def provide_services(state: State) -> ServiceContext:
    """Return the services of this worker."""
    services: ServiceContext = state.services
    return services


def provide_caller(request: Request[Caller, Any, Any]) -> Caller:
    """Return the caller that was let in."""
    return request.user


_SERVICES = {"services": Provide(provide_services, sync_to_thread=False)}


def _routes() -> Router:
    return Router(
        "/v1",
        route_handlers=[
            health.health,
            health.ready,
            indexes.router,
            training.router,
            items.router,
            users.router,
            embeddings.embedding_models,
        ],
        dependencies={"caller": Provide(provide_caller, sync_to_thread=False), **_SERVICES},
        dto=JSONStruct,
        return_dto=None,
    )


def _metrics() -> Router:
    return Router("/", route_handlers=[metrics.metrics], dependencies=_SERVICES)


def _middleware(settings: Settings) -> list[Middleware]:
    return [
        metrics.Observation(),
        *checked_hosts(settings),
        ContractPaths(),
        Admission(settings),
    ]


def _services_of(settings: Settings) -> Callable[[Litestar], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def services(app: Litestar) -> AsyncIterator[None]:
        with ThreadPoolExecutor(1, thread_name_prefix="decode") as decoder:
            app.state.decoder = decoder
            async with ServiceContext.open(settings, app.state.figures) as context:
                app.state.services = context
                yield

    return services
