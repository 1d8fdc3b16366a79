"""Bodies on their way in, and in work: each in time, not too large, and not too many at once."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from litestar.types import HTTPScope, Receive

from app.api.around.deadlines import Deadline
from app.errors import Incomplete, Overloaded, TooLarge, TooSlow
from app.settings import Settings

# Slower than any line that a body is sent over on purpose.
_LEAST_BYTES_PER_S = 64 * 1024


class Bodies:
    """What a worker holds of bodies: how many that arrive, by caller, and how many bytes."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._n_arriving: Counter[str] = Counter()
        self._n_bytes = 0

    @contextmanager
    def held(self) -> Iterator["Body"]:
        """Provide the place of a body, for as long as its request is in work."""
        body = Body(self)
        try:
            yield body
        finally:
            self._n_bytes -= body.n_bytes

    @contextmanager
    def arriving(self, caller: str) -> Iterator[None]:
        """Count a body of `caller` that arrives. Raises `Overloaded`."""
        if self._n_arriving[caller] >= self._settings.max_arriving_bodies:
            raise Overloaded("too many of your requests have not arrived yet; try again later")
        self._n_arriving[caller] += 1
        try:
            yield
        finally:
            self._n_arriving[caller] -= 1
            if not self._n_arriving[caller]:
                del self._n_arriving[caller]

    def take(self, n_bytes: int) -> None:
        """Count bytes that are held. Raises `Overloaded`."""
        if self._n_bytes + n_bytes > self._settings.max_held_body_bytes:
            raise Overloaded("too many bytes of requests in work; try again later")
        self._n_bytes += n_bytes

    @property
    def receive_timeout_s(self) -> float:
        """How long a body may take to arrive, and a second more for each 64 KB of it."""
        return self._settings.receive_timeout_s


class Body:
    """The body of one request."""

    def __init__(self, bodies: Bodies) -> None:
        self._bodies = bodies
        self._parts: list[bytes] = []
        self.n_bytes = 0

    async def receive(self, receive: Receive, limit: int, deadline: Deadline) -> bytes:
        """Return the whole body. Raises `TooLarge`, `Overloaded`, `Incomplete`.

        The deadline of the request stands still meanwhile: the body has one of its own.
        """
        started, rest_s, error = time.monotonic(), deadline.ends_at, deadline.error
        deadline.ends_at = started + self._bodies.receive_timeout_s
        deadline.error = TooSlow("the body of the request did not arrive in time")
        while await self._part(receive, limit):
            deadline.ends_at += len(self._parts[-1]) / _LEAST_BYTES_PER_S
        deadline.ends_at, deadline.error = rest_s + time.monotonic() - started, error
        return self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)

    async def _part(self, receive: Receive, limit: int) -> bool:
        """Keep the next part of the body, and return whether there is more."""
        message = await receive()
        if message["type"] != "http.request":
            raise Incomplete("the body of the request is not complete")
        part = message["body"]
        check_length(self.n_bytes + len(part), limit)
        self._bodies.take(len(part))
        self.n_bytes += len(part)
        self._parts.append(part)
        return message["more_body"]


def check_length(n_bytes: int, limit: int) -> None:
    """Raise `TooLarge` for a body of more than `limit` bytes."""
    if n_bytes > limit:
        raise TooLarge(f"the body of this request can have at most {limit} bytes")


def announced_length(scope: HTTPScope) -> int:
    """Return how long the body of a request will be; 0 where its head does not say."""
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value)
    return 0
