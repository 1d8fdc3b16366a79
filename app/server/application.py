"""The application: the one place where everything is wired."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from litestar import Litestar, Router
from litestar.datastructures import State
from litestar.di import NamedDependency, Provide
from litestar.types import Middleware

from app.api import embeddings, health, indexes, training, users, vectors
from app.api.around import metrics
from app.api.around.auth import limit_rate, provide_caller, require_api_key
from app.api.around.errors import EXCEPTION_HANDLERS
from app.api.around.logs import logging_config
from app.api.around.middleware import (
    ContractPaths,
    RequestLimit,
    cors,
    header_hook,
    keep_escaped_slashes,
)
from app.api.around.slow_bodies import BodyTimeout
from app.api.around.telemetry import tracing
from app.api.json_bodies import JSONStruct
from app.api.openapi import openapi_routes
from app.domain import Caller
from app.observe.figures import Figures
from app.services.context import ServiceContext
from app.services.embedding import EmbeddingService
from app.services.indexes import IndexService
from app.services.operations import OperationService
from app.services.training import TrainingService
from app.services.users import UserService
from app.services.vectors import VectorService
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
    operations = {"operations": Provide(provide_operations, sync_to_thread=False)}
    routes = Router(
        "/v1",
        route_handlers=[
            health.health,
            health.ready,
            indexes.router,
            training.router,
            vectors.router,
            users.router,
            embeddings.embedding_models,
        ],
        dependencies={
            "caller": Provide(provide_caller, sync_to_thread=False),
            "indexes": Provide(provide_indexes, sync_to_thread=False),
            "training": Provide(provide_training, sync_to_thread=False),
            **operations,
            "vectors": Provide(provide_vectors, sync_to_thread=False),
            "users": Provide(provide_users, sync_to_thread=False),
            "embedding": Provide(provide_embedding, sync_to_thread=False),
        },
        dto=JSONStruct,
        return_dto=None,
    )
    documents = Router("/v1", route_handlers=openapi_routes([routes]))
    figures = Figures([route.path_format for route in routes.routes], settings.metrics_dir)
    return Application(
        route_handlers=[
            routes,
            documents,
            Router("/", route_handlers=[metrics.metrics], dependencies=operations),
        ],
        state=State({"settings": settings, "figures": figures}),
        lifespan=[_services_of(settings)],
        guards=[require_api_key, limit_rate],
        cors_config=cors(settings),
        middleware=[
            *outermost,
            metrics.Observation(),
            ContractPaths(),
            RequestLimit(settings.max_requests_in_work),
            BodyTimeout(settings.receive_timeout_s),
        ],
        before_send=[header_hook(settings), metrics.observe],
        after_exception=[metrics.count_damage],
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


def provide_indexes(state: State, caller: NamedDependency[Caller]) -> IndexService:
    """Return the index service of this worker.

    It asks for the caller only to be resolved after it: the framework starts a task for each of
    several dependencies that could be resolved at once.
    """
    del caller
    services: ServiceContext = state.services
    return services.indexes


def provide_training(state: State, caller: NamedDependency[Caller]) -> TrainingService:
    """Return the training service of this worker; `caller` as in `provide_indexes`."""
    del caller
    services: ServiceContext = state.services
    return services.training


def provide_vectors(state: State, caller: NamedDependency[Caller]) -> VectorService:
    """Return the vector service of this worker; `caller` as in `provide_indexes`."""
    del caller
    services: ServiceContext = state.services
    return services.vectors


def provide_users(state: State) -> UserService:
    """Return the user service of this worker."""
    services: ServiceContext = state.services
    return services.users


def provide_embedding(state: State) -> EmbeddingService:
    """Return the embedding service of this worker."""
    services: ServiceContext = state.services
    return services.embedding


def provide_operations(state: State) -> OperationService:
    """Return the service for those who run this one."""
    services: ServiceContext = state.services
    return services.operations


def _services_of(settings: Settings) -> Callable[[Litestar], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def services(app: Litestar) -> AsyncIterator[None]:
        async with ServiceContext.open(settings, app.state.figures) as context:
            app.state.services = context
            yield

    return services
