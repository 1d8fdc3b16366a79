"""The HTTP server: uvicorn, with bounds on what a client may send, and how slowly, before there is a request."""

import asyncio
import socket
import time
from http import HTTPStatus
from typing import Any

from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.supervisors import Multiprocess

from app.settings import Settings

_GRACE_S = 30
_BACKLOG = 1024
# Longer than clients' pools keep a connection, so that they do not find it closed.
_KEEP_ALIVE_S = 75
# A worker that does not answer its supervisor for so long is replaced. Machines stand still at
# times, and go on.
_HEALTHCHECK_S = 60
# Of the request line and the headers; other servers take 8 KB to 1 MB.
_MAX_HEAD_BYTES = 64 * 1024


class ServerConfig(Config):
    """What every worker is told of the server."""

    receive_timeout_s: float


def run(app: str, listener: socket.socket, settings: Settings, n_workers: int) -> None:
    """Answer requests from workers that make their application by calling `app`, until a signal ends it."""
    config = ServerConfig(
        app,
        factory=True,
        interface="asgi3",
        lifespan="on",
        loop="uvloop",
        http=Connection,
        ws="none",
        workers=n_workers,
        backlog=_BACKLOG,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_GRACE_S,
        timeout_worker_healthcheck=_HEALTHCHECK_S,
        ssl_certfile=settings.ssl_cert_path,
        ssl_keyfile=settings.ssl_key_path,
        proxy_headers=False,
        server_header=False,
        access_log=False,
        # The application says how to log; what clients do wrong is no matter for a log.
        log_config=None,
        log_level="error",
    )
    config.receive_timeout_s = settings.receive_timeout_s
    _Supervisor(config, [listener]).run()


class _Supervisor(Multiprocess):
    """Starts the workers, replaces those that die, and does not wait for ever for the last."""

    def join_all(self) -> None:
        """Wait for the workers to end; kill those that take too long."""
        deadline = time.monotonic() + 2 * _GRACE_S
        for worker in self.processes:
            worker.process.join(max(0.0, deadline - time.monotonic()))
            if worker.process.is_alive():
                worker.process.kill()
        super().join_all()


class Connection(HttpToolsProtocol):
    """A client's connection. It closes when the head of a request does not come in time or never ends."""

    def __init__(self, config: Config, *args: Any, **options: Any) -> None:
        super().__init__(config, *args, **options)
        assert isinstance(config, ServerConfig)  # noqa: S101 - `run` makes no other
        self._receive_timeout_s = config.receive_timeout_s
        self._is_in_head = True
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Expect a request."""
        super().connection_made(transport)
        self._bound_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Expect nothing more."""
        self._end_head()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what has come."""
        if self._is_in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._is_in_head:
            self._bound_head()

    def on_message_begin(self) -> None:
        """Begin a request."""
        self._is_in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """End the head of a request: from here on the application looks after it."""
        self._end_head()
        super().on_headers_complete()

    def _bound_head(self) -> None:
        """See to it that the head of which a part has come, or is to come, ends."""
        # A client may send the next request before the answer to the last, which must come first.
        is_answering = bool(self.cycle) and not self.cycle.response_complete
        if self._head_bytes > _MAX_HEAD_BYTES:
            if is_answering:
                self.transport.abort()
            else:
                self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        elif self._head_timer is None and not is_answering:
            self._head_timer = self.loop.call_later(
                self._receive_timeout_s, self._refuse, HTTPStatus.REQUEST_TIMEOUT
            )

    def _end_head(self) -> None:
        self._is_in_head = False
        self._head_bytes = 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _refuse(self, status: HTTPStatus) -> None:
        if not self.transport.is_closing():
            head = f"HTTP/1.1 {status} {status.phrase}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            self.transport.write(head.encode())
            self.transport.close()
