"""Route of liveness."""

from importlib.metadata import PackageNotFoundError, version

from litestar import get

from app.api.auth import PUBLIC
from app.api.schemas import HealthAnswer


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
