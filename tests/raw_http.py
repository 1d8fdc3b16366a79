"""A server in a thread, with an application of this file, and what raw clients need."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

from uvicorn import Server

from app.server.bounds import Bounds
from app.server.connection import Connection
from app.server.http import ServerConfig
from app.settings import Settings

TIMEOUT_S = 0.4
BOUNDS = replace(Bounds.of(Settings()), receive_timeout_s=TIMEOUT_S, idle_timeout_s=3 * TIMEOUT_S)
HEAD = b"POST /%b HTTP/1.1\r\nHost: here\r\nContent-Length: 0\r\n\r\n"
CHUNKED = b"POST /%b HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n"
MB = 1024 * 1024


class Application:
    """Answers with what it has got; slowly, early or at length if the path asks for it."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._released = asyncio.Event()
        self.gone: list[str] = []
        self.requests: list[tuple[str, bytes, dict[bytes, bytes]]] = []

    def release(self) -> None:
        """Let slow answers go on."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._released.set)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self._loop = asyncio.get_running_loop()
        path = scope["path"].removeprefix("/")
        body = b""
        if not path.startswith("early"):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    self.gone.append(path)
                    return
                body += message["body"]
                if not message["more_body"]:
                    break
        self.requests.append((path, body, dict(scope["headers"])))
        if path.startswith("slow"):
            await self._released.wait()
        if path.startswith("long"):
            body = b"x" * 64 * MB
        await self.answer(send, path.encode(), body)

    async def answer(self, send: Any, path: bytes, body: bytes) -> None:
        text = b"<%b:%b>" % (path, body)
        headers = [(b"content-length", str(len(text)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": text})


@dataclass
class Running:
    """A server in a thread of this process."""

    application: Application
    address: tuple[str, int]
    server: Server

    def connect(self, source: str = "127.0.0.1") -> socket.socket:
        return socket.create_connection(self.address, timeout=30, source_address=(source, 0))

    def n_connections(self) -> int:
        return len(self.server.server_state.connections)


@contextmanager
def running(bounds: Bounds = BOUNDS, **options: Any) -> Iterator[Running]:
    application = Application()
    config = ServerConfig(
        application,
        http=Connection,
        lifespan="off",
        ws="none",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=1,
        **options,
    )
    config.bounds = bounds
    server = Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield Running(application, listener.getsockname(), server)
        finally:
            application.release()
            server.should_exit = True
            thread.join()


def all_of(client: socket.socket) -> bytes:
    """Everything until the server closes the connection."""
    return b"".join(iter(lambda: client.recv(65_536), b""))


def until(client: socket.socket, end: bytes) -> bytes:
    answer = bytearray()
    while not answer.endswith(end):
        more = client.recv(65_536)
        assert more, answer
        answer += more
    return bytes(answer)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def send_until_cut_off(client: socket.socket, piece: bytes, limit: int = 100 * MB) -> int:
    """Send `piece` again and again until the other side does not take it; return the bytes sent."""
    n_bytes = 0
    with suppress(ConnectionError):
        while n_bytes < limit:
            client.sendall(piece)
            n_bytes += len(piece)
    return n_bytes


def detail_of(answer: bytes) -> str:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"\r\ncontent-type: application/json\r\n" in head, answer
    assert b"\r\nconnection: close" in head
    content = json.loads(body)
    assert list(content) == ["detail"]
    return str(content["detail"])
