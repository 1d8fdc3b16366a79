"""A client's connection: uvicorn's, with bounds on all that a client may send or leave undone.

A connection is always in one state, and each state but one ends at a time of its own. The exception
is a request in work: the application looks after its body and its time. `Listener` looks at the
times of all connections now and then, which costs less than a timer for each.

What goes beyond a bound is answered in its turn, after the answers to earlier requests, and ends
the connection. An answer that goes out before its request has come in whole ends the connection as
RFC 9112, section 9.6, has it: nothing more is sent, what still comes is dropped for a moment, and
only then is the connection closed. A client that is still sending would lose the answer otherwise.
"""

import asyncio
import math
from collections.abc import Callable
from enum import Enum, auto
from http import HTTPStatus
from secrets import token_hex
from typing import Any, cast

import httptools
import msgspec
from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from app.server.bounds import LEAST_BYTES_PER_S, Bounds

# How long, and of how many bytes, a client may go on sending what nobody waits for any more.
_LINGER_S = 1.0
_LINGER_BYTES = 100_000
# RFC 9110, section 4.1, recommends at least 8,000. The framework remembers paths it has routed.
MAX_TARGET_BYTES = 8_192
# The parser does not tell where in its input it is, so bounds of bytes are exact to so many.
_PIECE_BYTES = 16_384
_REFUSAL_HEAD = (
    "HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/json\r\n"
    "content-length: {n_bytes}\r\ncache-control: no-store\r\nx-content-type-options: nosniff\r\n"
    "x-request-id: {request_id}\r\nconnection: close\r\n\r\n"
)


class _State(Enum):
    """What a connection waits for."""

    # A request, of which nothing has come.
    IDLE = auto()
    # The end of a head.
    HEAD = auto()
    # The application's answer.
    WORK = auto()
    # The end of a short request that has been answered.
    REST = auto()
    # The client's end of the connection, after the last answer.
    PARTING = auto()
    CLOSED = auto()


class _Refusal(Exception):
    """A head is well formed but cannot be taken."""

    def __init__(self, status: HTTPStatus, detail: str) -> None:
        super().__init__(detail)
        self.status = status


class _Full(Exception):
    """A client has sent as many requests ahead as it may."""


class _Transport:
    """What uvicorn has for its transport: whether it closes at once is up to the connection."""

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        self.write = transport.write
        self.is_closing = transport.is_closing
        self.get_extra_info = transport.get_extra_info
        self.pause_reading = transport.pause_reading
        self.resume_reading = transport.resume_reading
        self.close = close


class Connection(HttpToolsProtocol):
    """A client's connection, bounded in bytes, requests and time."""

    def __init__(self, config: Config, *args: Any, **options: Any) -> None:
        super().__init__(config, *args, **options)
        self._bounds: Bounds = cast("Any", config).bounds
        # Until its handshake is done, if it has one.
        self._state = _State.CLOSED
        self._ends_at = math.inf
        self._wire: asyncio.Transport | None = None
        # The request that the application has; those that have come since are in `pipeline`.
        self._in_work: RequestResponseCycle | None = None
        self._is_in_head = False
        # Bytes beside the body that may still come. A body earns some for the sizes of its chunks.
        self._n_spare = self._bounds.max_head_bytes
        self._keeps_alive = True
        # The last answer, to what cannot be taken; nothing is read any more.
        self._refusal: bytes | None = None
        self._is_deaf = False
        self._n_linger = _LINGER_BYTES
        # Told when the connection is gone.
        self.on_lost: Callable[[], None] = lambda: None

    # ------------------------------------------------------------ states

    @property
    def is_idle(self) -> bool:
        """Whether nothing of a request has come and no answer is under way."""
        return self._state is _State.IDLE

    @property
    def ends_at(self) -> float:
        """When the state of the connection ends, by the clock of the event loop."""
        return self._ends_at

    def look(self, now: float) -> None:
        """End what takes too long."""
        if now < self._ends_at:
            return
        if self._state is _State.HEAD:
            self._refuse(
                HTTPStatus.REQUEST_TIMEOUT, "the head of the request did not arrive in time"
            )
        elif self._state is _State.REST:
            self._part()
        else:
            self.hang_up()

    def hang_up(self) -> None:
        """Close without a word; what a client has left unread of its answer is dropped."""
        assert self._wire is not None  # noqa: S101 - a state ends after it has begun
        self._state, self._ends_at = _State.CLOSED, math.inf
        if self._wire.get_write_buffer_size():
            self._wire.abort()
        else:
            self._wire.close()

    def _enter(self, state: _State, seconds: float) -> None:
        """Begin a state that ends after `seconds`; later where an answer is still to be read."""
        self._state = state
        self._ends_at = self.loop.time() + max(seconds, self._sending_s())

    def _sending_s(self) -> float:
        """Return how long the client may take to read what the system has not taken yet."""
        assert self._wire is not None  # noqa: S101 - as in `hang_up`
        n_unsent = self._wire.get_write_buffer_size()
        return self._bounds.receive_timeout_s + n_unsent / LEAST_BYTES_PER_S if n_unsent else 0

    def _part(self) -> None:
        """Send nothing more, and close when the client has, or after a moment."""
        assert self._wire is not None  # noqa: S101 - as in `hang_up`
        self._enter(_State.PARTING, _LINGER_S)
        if self._wire.can_write_eof():
            self._wire.write_eof()
        self.flow.resume_reading()

    def _close(self) -> None:
        """Close after the last answer: at once, or in peace if the client is still sending."""
        if self._state in {_State.PARTING, _State.CLOSED}:
            return
        if self._is_deaf or not self._is_whole():
            self._part()
            return
        assert self._wire is not None  # noqa: S101 - as in `hang_up`
        # What is not sent yet still is, if the client reads it.
        self._enter(_State.PARTING, 0)
        self._wire.close()

    # ------------------------------------------------------------ what the event loop calls

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Expect a request."""
        self._wire = transport
        super().connection_made(cast("asyncio.Transport", _Transport(transport, self._close)))
        self._enter(_State.IDLE, self._bounds.idle_timeout_s)

    def connection_lost(self, exc: Exception | None) -> None:
        """Expect nothing more, and tell every request of the client that it is gone."""
        self._state, self._ends_at = _State.CLOSED, math.inf
        for cycle in (self._in_work, *(cycle for cycle, _ in self.pipeline)):
            if cycle is not None:
                _abandon(cycle)
        self._in_work = None
        # Each request has the connection, and the connection has them.
        self.pipeline.clear()
        super().connection_lost(exc)
        self.on_lost()

    def data_received(self, data: bytes) -> None:
        """Parse what has come."""
        for start in range(0, len(data), _PIECE_BYTES):
            self._take(data[start : start + _PIECE_BYTES])

    def _take(self, data: bytes) -> None:
        if self._state is _State.PARTING:
            self._drop(len(data))
        elif not self._is_deaf and self._state is not _State.CLOSED:
            self._n_spare -= len(data)
            try:
                self._parse(data)
            except httptools.HttpParserError as error:
                self._give_up(error.__context__)
            else:
                self._look_at_head()

    def _look_at_head(self) -> None:
        """Give a head that has begun its time, and refuse what has too many bytes."""
        if self._n_spare < 0:
            self._refuse_excess()
        elif self._is_in_head and self._state is _State.IDLE:
            self._enter(_State.HEAD, self._bounds.receive_timeout_s)

    def resume_writing(self) -> None:
        """Go on with what waits for the client to read its last answer."""
        super().resume_writing()
        if self._in_work is None and self._state is _State.IDLE:
            self._go_on()

    def shutdown(self) -> None:
        """Take no further request."""
        self._keeps_alive = False
        super().shutdown()

    def _drop(self, n_bytes: int) -> None:
        """Read no further once a client has gone on sending for too long."""
        self._n_linger -= n_bytes
        if self._n_linger > 0:
            return
        if self._sending_s():
            self.flow.pause_reading()
        else:
            self.hang_up()

    # ------------------------------------------------------------ what the parser calls

    def on_message_begin(self) -> None:
        """Begin a request. Raises `_Full` when too many wait for their turn."""
        n_waiting = len(self.pipeline) + (self._in_work is not None)
        if n_waiting >= self._bounds.max_pipelined_requests:
            raise _Full
        self._is_in_head = True
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header; what comes after the body is none (RFC 9110, section 6.5.1)."""
        if self._is_in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """End the head of a request. Raises `_Refusal` for one that no application is to see."""
        if self.parser.should_upgrade():
            # It comes again without its offer.
            return
        self._is_in_head = False
        self._n_spare = self._bounds.max_head_bytes
        names = [name for name, _ in self.headers]
        self._check_head(names.count(b"host"))
        super().on_headers_complete()
        # An answer that overtakes a long body says that it is the last.
        self._keeps_alive = self.cycle.keep_alive
        if b"transfer-encoding" in names or b"content-length" in names:
            self.cycle.keep_alive = self._keeps_alive and _is_short(self.headers)

    def _check_head(self, n_hosts: int) -> None:
        if len(self.url) > MAX_TARGET_BYTES:
            raise _Refusal(
                HTTPStatus.REQUEST_URI_TOO_LONG,
                f"the target of a request can have at most {MAX_TARGET_BYTES} bytes",
            )
        if n_hosts > 1 or (n_hosts == 0 and self.parser.get_http_version() == "1.1"):
            raise _Refusal(HTTPStatus.BAD_REQUEST, "a request must have one Host header")

    def on_body(self, body: bytes) -> None:
        """Keep a part of the body."""
        self._n_spare = min(self._n_spare + 2 * len(body), self._bounds.max_head_bytes)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End a request."""
        if self._is_in_head:
            # It is only its head that has ended, before an offer.
            return
        self._n_spare = self._bounds.max_head_bytes
        super().on_message_complete()
        if not self.cycle.response_started:
            self.cycle.keep_alive = self._keeps_alive
        elif self._state is _State.REST:
            self.cycle.more_body = False
            self._go_on()

    def _parse(self, data: bytes) -> None:
        while True:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as offer:
                data = self._without_offer() + data[offer.args[0] :]
            else:
                return

    def _without_offer(self) -> bytes:
        """Return the head that has just been parsed without its offer to speak another protocol.

        RFC 9110, section 7.8: a server may ignore the offer. The parser ends behind such a head
        and knows nothing of the body, so a new one reads the head again.
        """
        method = self.parser.get_method()
        if method == b"CONNECT":
            raise httptools.HttpParserError("no tunnels")
        version = self.parser.get_http_version().encode()
        self.parser = httptools.HttpRequestParser(self)
        # As uvicorn has it.
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        lines = [b"%b %b HTTP/%b" % (method, self.url, version)]
        lines += [b"%b: %b" % header for header in self.headers if header[0] != b"upgrade"]
        return b"\r\n".join([*lines, b"", b""])

    # ------------------------------------------------------------ requests

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        """Give a request to the application, or keep it until the last answer has been read."""
        if self.flow.write_paused:
            self.flow.pause_reading()
            self.pipeline.append((cycle, app))
            self._enter(_State.IDLE, self._bounds.idle_timeout_s)
            return
        self._in_work = cycle
        self._state, self._ends_at = _State.WORK, math.inf
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        """Go on after an answer."""
        self.server_state.total_requests += 1
        answered, self._in_work = self._in_work, None
        if self._state is not _State.WORK:
            return
        if answered is self.cycle and answered.more_body and self._refusal is None:
            self._enter(_State.REST, _LINGER_S)
            self.flow.resume_reading()
        else:
            self._go_on()

    def _go_on(self) -> None:
        """Begin the next request, if there is one, or wait for it."""
        if self.pipeline and not self.flow.write_paused:
            self._start_asgi_task(*self.pipeline.pop())
            return
        self._enter(_State.IDLE, self._bounds.idle_timeout_s)
        if self.pipeline:
            # The client has to read first.
            return
        if self._is_deaf:
            self._end()
            return
        self._look_at_head()
        self.flow.resume_reading()

    # ------------------------------------------------------------ refusals

    def _give_up(self, cause: BaseException | None) -> None:
        """Answer what the parser has stopped at."""
        if isinstance(cause, _Refusal):
            self._refuse(cause.status, str(cause))
        elif isinstance(cause, _Full):
            # The client sends what it has sent ahead again, on another connection.
            self._is_deaf = True
            self.cycle.keep_alive = False
        else:
            self._refuse(HTTPStatus.BAD_REQUEST, "the request is no valid HTTP")

    def _refuse_excess(self) -> None:
        if self._is_in_head:
            self._refuse(
                HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
                f"the head of a request can have at most {self._bounds.max_head_bytes} bytes",
            )
        else:
            self._refuse(
                HTTPStatus.BAD_REQUEST,
                "the request has too many bytes beside its body: chunk sizes, extensions, trailers",
            )

    def _refuse(self, status: HTTPStatus, detail: str) -> None:
        """Answer what came last after the answers to all that came before it."""
        self._is_deaf = True
        if self._state is _State.REST:
            # The request has its answer already.
            self._part()
            return
        self._refusal = _refusal(status, detail)
        if not self._is_in_head and not self._is_whole():
            self._take_back(self.cycle)
        if self._in_work is None and not self.pipeline:
            self._end()

    def _is_whole(self) -> bool:
        """Whether the last request whose head has come has come in whole."""
        # uvicorn's type leaves out that at first there is none.
        last: RequestResponseCycle | None = self.cycle
        return last is None or not last.more_body

    def _take_back(self, cycle: RequestResponseCycle) -> None:
        """Tell the application that the body of a request will not come; it has no say any more."""
        if cycle is self._in_work:
            self._in_work = None
        if self.pipeline and self.pipeline[0][0] is cycle:
            self.pipeline.popleft()
        _abandon(cycle)

    def _end(self) -> None:
        """Send the last answer, if there is one, and part."""
        assert self._wire is not None  # noqa: S101 - as in `hang_up`
        if self._refusal is not None:
            self._wire.write(self._refusal)
        self._part()


def _refusal(status: HTTPStatus, detail: str) -> bytes:
    body = msgspec.json.encode({"detail": detail})
    head = _REFUSAL_HEAD.format(status=status, n_bytes=len(body), request_id=token_hex(16))
    return head.encode() + body


def _abandon(cycle: RequestResponseCycle) -> None:
    if not cycle.response_complete:
        cycle.disconnected = True
    cycle.message_event.set()


def _is_short(headers: list[tuple[bytes, bytes]]) -> bool:
    """Whether what comes after a head is known to be little."""
    fields = dict(headers)
    return b"transfer-encoding" not in fields and int(fields[b"content-length"]) <= _LINGER_BYTES
