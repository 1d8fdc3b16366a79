"""Routes of liveness and readiness."""

from importlib.metadata import PackageNotFoundError, version

from litestar import get
from litestar.di import NamedDependency

from app.api.around.auth import PUBLIC
from app.api.schemas import HealthAnswer, ReadyAnswer
from app.services.operations import OperationService


def service_version() -> str:
    """Return the version of the installed package; a bare checkout has none."""
    try:
        return version("sealdex")
    except PackageNotFoundError:
        return "0+unknown"


_ANSWER = HealthAnswer(status="healthy", api_version="v1", version=service_version())


@get("/health", opt=PUBLIC, tags=["health"])
async def health() -> HealthAnswer:
    """Say that the worker answers; storage is not touched."""
    return _ANSWER


@get("/ready", opt=PUBLIC, tags=["health"])
async def ready(operations: NamedDependency[OperationService]) -> ReadyAnswer:
    """Say that requests can be served: database, schema and pool are as they must be. Else 503."""
    await operations.check_ready()
    return ReadyAnswer(status="ready")
