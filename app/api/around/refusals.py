"""Records in the audit log what was refused before any service could record it."""

from litestar.exceptions import ValidationException
from litestar.types import Scope

from app.api.around.headers import request_id
from app.domain import Caller
from app.errors import ApiKeyRejected, Forbidden, InvalidBody
from app.services.context import ServiceContext

_AT_THE_DOOR = (ApiKeyRejected, Forbidden)
_OF_BODIES = (InvalidBody, ValidationException)


async def record_refusal(error: Exception, scope: Scope) -> None:
    """Record a request without a valid key, with a body that does not fit, or without a right.

    The rights to an index are the services' matter, which have recorded their refusals.
    """
    is_let_in = "body" in scope["state"]
    services: ServiceContext | None = scope["litestar_app"].state.get("services")
    is_ours = isinstance(error, _OF_BODIES if is_let_in else _AT_THE_DOOR)
    if services is not None and is_ours:
        await services.trail.refused(_caller(scope))


def _caller(scope: Scope) -> Caller:
    """Return the sender of a request as far as it is known."""
    known: Caller | None = scope.get("user")
    operation = scope["route_handler"].opt.get("operation", "")
    return known or Caller(name="unknown", request_id=request_id(scope), operation=operation)
