"""The application: the one place where everything is wired."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from litestar import Litestar, Router
from litestar.datastructures import State
from litestar.di import NamedDependency, Provide
from litestar.logging import LoggingConfig
from litestar.types import Logger, Scope

from app.api import health, indexes, training, users, vectors
from app.api.auth import provide_caller, require_api_key
from app.api.bodies import JSONStruct
from app.api.errors import EXCEPTION_HANDLERS, UNLOGGED
from app.api.middleware import ContractPaths, RequestLimit, add_request_id, keep_escaped_slashes, request_id
from app.api.openapi import openapi_route
from app.domain import Caller
from app.services.context import ServiceContext
from app.services.indexes import IndexService
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


def create_app(settings: Settings) -> Litestar:
    """Return the application of one worker; its lifespan connects to the database."""
    routes = Router(
        "/v1",
        route_handlers=[health.health, indexes.router, training.router, vectors.router, users.router],
        dependencies={
            "caller": Provide(provide_caller, sync_to_thread=False),
            "indexes": Provide(provide_indexes, sync_to_thread=False),
            "training": Provide(provide_training, sync_to_thread=False),
            "vectors": Provide(provide_vectors, sync_to_thread=False),
            "users": Provide(provide_users, sync_to_thread=False),
        },
        dto=JSONStruct,
        return_dto=None,
    )
    return Application(
        route_handlers=[routes, Router("/v1", route_handlers=[openapi_route([routes])])],
        state=State({"settings": settings}),
        lifespan=[_services_of(settings)],
        guards=[require_api_key],
        middleware=[ContractPaths(), RequestLimit(settings.max_requests_in_work)],
        before_send=[add_request_id],
        exception_handlers=EXCEPTION_HANDLERS,
        request_max_body_size=settings.max_body_bytes,
        openapi_config=None,
        logging_config=_logging(settings),
        debug=False,
    )


def create_app_from_env() -> Litestar:
    """Return the application of a worker process, which finds its settings in the environment."""
    return create_app(Settings.from_env())


def provide_indexes(state: State, caller: NamedDependency[Caller]) -> IndexService:
    """Return the index service of this worker.

    It asks for the caller only to be resolved after it: the framework starts a task for each of several
    dependencies that could be resolved at once.
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


def log_exception(logger: Logger, scope: Scope, traceback: list[str]) -> None:
    """Log what went wrong and where, and of the request only its name and route."""
    del traceback  # logged as exc_info
    route = scope.get("path_template") or "no route"
    logger.error("request %s to %s failed", request_id(scope), route, exc_info=True)  # noqa: LOG014  # called while handling it


def _services_of(settings: Settings) -> Callable[[Litestar], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def services(app: Litestar) -> AsyncIterator[None]:
        async with ServiceContext.open(settings) as context:
            app.state.services = context
            yield

    return services


def _logging(settings: Settings) -> LoggingConfig:
    ours: dict[str, Any] = {"level": settings.log_level.value, "handlers": [], "propagate": True}
    return LoggingConfig(
        # Libraries speak when something is wrong; what they say at lower levels may hold parts of statements.
        root={"level": "WARNING", "handlers": ["console"]},
        loggers={"app": ours, "litestar": ours},
        log_exceptions="always",
        exception_logging_handler=log_exception,
        disable_stack_trace=UNLOGGED,
    )
