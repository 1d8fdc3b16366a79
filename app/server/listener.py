"""Where connections come from: as many as there may be, in all and from one address.

uvicorn leaves the accepting to the event loop, which has no bounds: clients can take every file
descriptor of a worker, also by never beginning TLS. `BoundedLoop` accepts for itself instead. A
client that finds no room takes the place of whoever has been idle the longest, or is told 503.
"""

import asyncio
import ipaddress
import socket
import ssl
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import cast

import uvloop

from app.server.bounds import Bounds
from app.server.connection import Connection

# How long nobody is let in where the system has no more file descriptors or memory.
_SHORTAGE_PAUSE_S = 0.5
# At least so often are the times of connections looked at.
_MAX_INTERVAL_S = 1.0
_BODY = b'{"detail":"too many connections; try again later"}'
_NO_ROOM = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
    b"retry-after: 1\r\nconnection: close\r\n\r\n" % len(_BODY)
) + _BODY


class BoundedLoop(uvloop.Loop):
    """uvloop with a listener that has bounds."""

    def __init__(self, bounds: Bounds) -> None:
        super().__init__()
        self._bounds = bounds

    async def create_server(  # type: ignore[override]  # of its many forms uvicorn uses one
        self,
        protocol_factory: Callable[[], asyncio.Protocol],
        *,
        sock: socket.socket,
        ssl: ssl.SSLContext | None = None,
        backlog: int = 100,
    ) -> "Listener":
        """Listen on `sock`, and let connections in."""
        sock.listen(backlog)
        sock.setblocking(False)  # noqa: FBT003 - it takes no name
        factory = cast("Callable[[], Connection]", protocol_factory)
        return Listener(self, sock, factory, ssl, self._bounds)


class Listener:
    """Lets connections of one worker in, and looks after their times."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        listener: socket.socket,
        factory: Callable[[], Connection],
        tls: ssl.SSLContext | None,
        bounds: Bounds,
    ) -> None:
        self._loop = loop
        self._listener = listener
        self._factory = factory
        self._tls = tls
        self._bounds = bounds
        # Connections by address, also those that have not begun.
        self._n_of: Counter[str] = Counter()
        self._connections: dict[Connection, str] = {}
        # Whose connections are all at work, as seen lately; None stands for all together.
        self._busy: set[str | None] = set()
        shortest_s = min(bounds.receive_timeout_s, bounds.idle_timeout_s)
        self._interval_s = min(shortest_s / 10, _MAX_INTERVAL_S)
        self._timer = loop.call_later(self._interval_s, self._look)
        self._tasks = {loop.create_task(self._accept())}

    def close(self) -> None:
        """Let nobody in any more."""
        for task in self._tasks:
            task.cancel()

    async def wait_closed(self) -> None:
        """Wait until nobody is let in any more."""
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._timer.cancel()

    async def _accept(self) -> None:
        while True:
            try:
                client, address = await self._loop.sock_accept(self._listener)
            except OSError:
                await asyncio.sleep(_SHORTAGE_PAUSE_S)
                continue
            origin = origin_of(str(address[0]))
            if self._has_room(origin):
                self._let_in(client, origin)
            else:
                _turn_away(client, says_why=self._tls is None)

    def _let_in(self, client: socket.socket, origin: str) -> None:
        connection = self._factory()
        connection.on_lost = lambda: self._leave(connection)
        self._connections[connection] = origin
        self._n_of[origin] += 1
        task = self._loop.create_task(self._begin(connection, client))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _begin(self, connection: Connection, client: socket.socket) -> None:
        """Begin a connection; with TLS the client has as long for its handshake as for a head."""
        timeout = {"ssl_handshake_timeout": self._bounds.receive_timeout_s} if self._tls else {}
        try:
            await self._loop.connect_accepted_socket(
                lambda: connection, client, ssl=self._tls, **timeout
            )
        except (OSError, TimeoutError):
            # The client does not speak TLS, or has gone.
            self._leave(connection)
            client.close()

    def _leave(self, connection: Connection) -> None:
        origin = self._connections.pop(connection, None)
        if origin is None:
            return
        self._n_of[origin] -= 1
        if not self._n_of[origin]:
            del self._n_of[origin]

    def _has_room(self, origin: str) -> bool:
        """Whether one more may come from `origin`; whoever has been idle the longest makes room."""
        if self._n_of[origin] >= self._bounds.max_connections_per_address:
            return self._make_room(origin)
        if len(self._connections) >= self._bounds.max_connections:
            return self._make_room(None)
        return True

    def _make_room(self, origin: str | None) -> bool:
        """End who has been idle the longest, of `origin` or of all; return false if none is."""
        if origin in self._busy:
            return False
        idle = [
            connection
            for connection, other in self._connections.items()
            if connection.is_idle and origin in {other, None}
        ]
        if not idle:
            # Nobody looks again until the next look at all connections.
            self._busy.add(origin)
            return False
        min(idle, key=lambda connection: connection.ends_at).hang_up()
        return True

    def _look(self) -> None:
        """End what takes too long, and look again later."""
        self._busy.clear()
        now = self._loop.time()
        for connection in list(self._connections):
            connection.look(now)
        self._timer = self._loop.call_later(self._interval_s, self._look)


def origin_of(address: str) -> str:
    """Return whose address it is: one of IPv6 belongs to whoever has its first 64 bits."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if found.version == 4:  # noqa: PLR2004 - a version of IP
        return address
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.ip_network((int(found), 64), strict=False))


def _turn_away(client: socket.socket, *, says_why: bool) -> None:
    with client, suppress(OSError):
        if says_why:
            client.send(_NO_ROOM)
