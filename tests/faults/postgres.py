"""A PostgreSQL that a test may stop, and a way to it that a test may cut."""

import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from app.server.postgres import DATABASE, EmbeddedPostgres

_PATIENCE_S = 30
# The machine itself does not fail here, so what was written is there, with or without fsync.
_SMALL = {
    "shared_buffers": "64MB",
    "max_wal_size": "256MB",
    "fsync": "off",
    "full_page_writes": "off",
}
# psycopg commits by a simple query: its type, length and text, and a zero.
COMMIT = b"Q\x00\x00\x00\x0bCOMMIT\x00"
_CHUNK = 64 * 1024


class Postgres(EmbeddedPostgres):
    """The embedded server, in a directory of the tests' own."""

    def __init__(self, data_dir: Path) -> None:
        super().__init__(data_dir, overrides=_SMALL)

    @property
    def socket_path(self) -> Path:
        """Where the server listens."""
        return self._socket_dir / ".s.PGSQL.5432"

    def crash(self) -> None:
        """Stop at once, as `pg_ctl stop -m immediate` does; the next start recovers."""
        server = psutil.Process(int((self.pgdata / "postmaster.pid").read_text().split()[0]))
        server.send_signal(signal.SIGQUIT)
        server.wait(_PATIENCE_S)

    def come_back(self) -> None:
        """Start again in the same place."""
        self._stop_orphan()
        self._start_server()


@dataclass
class Cut:
    """When to cut a connection: as `at` goes by after `first`, before or after passing it on."""

    first: bytes
    at: bytes
    is_passed_on: bool
    is_done: bool = False


class Way:
    """A TCP port that leads to the server, and can cut a connection at what goes by on it."""

    def __init__(self, server: Postgres) -> None:
        self._target = str(server.socket_path)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.dsn = (
            f"postgresql://postgres@127.0.0.1:{self._listener.getsockname()[1]}/{DATABASE}"
            "?sslmode=disable&gssencmode=disable"
        )
        self._cut: Cut | None = None
        threading.Thread(target=self._accept, daemon=True).start()

    @contextlib.contextmanager
    def cutting(self, first: bytes, at: bytes, *, is_passed_on: bool = False) -> Iterator[None]:
        """Cut one connection in the block, and see that it happened."""
        self._cut = cut = Cut(first, at, is_passed_on)
        yield
        self._cut = None
        assert cut.is_done, "nothing was cut"

    def close(self) -> None:
        """Take no more connections."""
        # Wakes the thread that accepts.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX)
                server.connect(self._target)
                _Connection(self, client, server).start()

    @property
    def cut(self) -> Cut | None:
        """What to cut at, if anything."""
        return self._cut


class _Connection:
    """One connection on its way: a thread in each direction."""

    def __init__(self, way: Way, client: socket.socket, server: socket.socket) -> None:
        self._way = way
        self._client = client
        self._server = server
        self._has_seen_first = False
        self._is_mute = False

    def start(self) -> None:
        """Pass on what comes, until one side is closed."""
        threading.Thread(
            target=self._pump, args=(self._client, self._server, self._ask), daemon=True
        ).start()
        threading.Thread(
            target=self._pump, args=(self._server, self._client, self._answer), daemon=True
        ).start()

    def _pump(
        self,
        source: socket.socket,
        target: socket.socket,
        pass_on: Callable[[bytes, socket.socket], bool],
    ) -> None:
        with contextlib.suppress(OSError):
            while chunk := source.recv(_CHUNK):
                if not pass_on(chunk, target):
                    break
        self._close()

    def _ask(self, chunk: bytes, server: socket.socket) -> bool:
        cut = self._way.cut
        if cut is not None and not cut.is_done:
            self._has_seen_first = self._has_seen_first or cut.first in chunk
            if self._has_seen_first and cut.at in chunk:
                cut.is_done = True
                if not cut.is_passed_on:
                    return False
                # The answer shows that it was done; the client does not get to see it.
                self._is_mute = True
        server.sendall(chunk)
        return True

    def _answer(self, chunk: bytes, client: socket.socket) -> bool:
        if self._is_mute:
            return False
        client.sendall(chunk)
        return True

    def _close(self) -> None:
        for end in (self._client, self._server):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
