"""Routes of liveness and readiness, and their bodies."""

from importlib.metadata import PackageNotFoundError, version

from litestar import get
from litestar.datastructures import ResponseHeader
from litestar.di import NamedDependency
from msgspec import Struct

from app.api.around.routes import PUBLIC
from app.services.context import ServiceContext


class HealthAnswer(Struct, frozen=True):
    """Answer to health. Clients read `version` as that of the protocol."""

    status: str
    api_version: str
    version: str


class ReadyAnswer(Struct, frozen=True):
    """Answer to ready."""

    status: str


def service_version() -> str:
    """Return the version of the installed package; a bare checkout has none."""
    try:
        return version("sealdex")
    except PackageNotFoundError:
        return "0+unknown"


_VERSION_HEADER = ResponseHeader(
    name="X-Sealdex-Version", value=service_version(), description="Version of the service itself"
)


@get("/health", opt=PUBLIC, tags=["health"], response_headers=[_VERSION_HEADER])
async def health(services: NamedDependency[ServiceContext]) -> HealthAnswer:
    """Say that the worker answers; storage is not touched."""
    return HealthAnswer("healthy", "v1", services.settings.protocol_version)


@get("/ready", opt=PUBLIC, tags=["health"])
async def ready(services: NamedDependency[ServiceContext]) -> ReadyAnswer:
    """Say that requests can be served: database, schema and pool are as they must be. Else 503."""
    await services.operations.check_ready()
    return ReadyAnswer(status="ready")
