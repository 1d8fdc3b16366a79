"""Which names an open service answers to.

Nobody needs a key for it, so a page in a browser could make its own name mean this machine (DNS
rebinding) and use it as a program here can. What such a page cannot do is to send another name in
`Host` than its own.
"""

import ipaddress
from collections.abc import Sequence

from litestar.datastructures import Headers
from litestar.enums import ScopeType
from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, Middleware, Receive, Scope, Send

from app.errors import Forbidden
from app.settings import Settings


def checked_hosts(settings: Settings) -> Sequence[Middleware]:
    """Return what checks the `Host` of requests; nothing where a key is asked for.

    Beyond this machine nobody knows how clients name it, unless the settings do.
    """
    names = {_bare(name) for name in settings.allowed_hosts.split(",") if name.strip()}
    if settings.root_key is not None or not (names or is_loopback(settings.host)):
        return []
    return [AllowedHosts(names)]


class AllowedHosts(ASGIMiddleware):
    """Lets in who names this machine by one of `names`, or as itself."""

    scopes = (ScopeType.HTTP,)

    def __init__(self, names: set[str]) -> None:
        self._names = names

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        """Pass the request on, or raise `Forbidden`."""
        sent = Headers.from_scope(scope).get("host")
        # Programs that speak HTTP/1.0 may leave it out; no browser does.
        if sent is not None and not self._is_ours(_without_port(sent)):
            raise Forbidden(
                "permission denied: the Host of the request is no name of this service; "
                "SEALDEX_ALLOWED_HOSTS names those that are"
            )
        await next_app(scope, receive, send)

    def _is_ours(self, host: str) -> bool:
        name = _bare(host)
        return name in self._names or is_loopback(name) or name.endswith(".localhost")


def is_loopback(host: str) -> bool:
    """Whether `host` is an address of this machine alone, or its usual name."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdecimal() else host


def _bare(host: str) -> str:
    """Return a name as all of its spellings are compared."""
    return host.strip().lower().rstrip(".")
