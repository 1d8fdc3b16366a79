"""The HTTP server: uvicorn, with connections and a listener of our own that have bounds."""

import asyncio
import socket
import time
from collections.abc import Callable

from uvicorn import Config
from uvicorn.supervisors import Multiprocess

from app.server.bounds import Bounds
from app.server.connection import Connection
from app.server.listener import BoundedLoop
from app.settings import Settings

_GRACE_S = 30
_BACKLOG = 1024
# A worker that does not answer its supervisor for so long is replaced. Machines stand still at
# times, and go on.
_HEALTHCHECK_S = 60


class ServerConfig(Config):
    """What every worker is told of the server."""

    bounds: Bounds

    def get_loop_factory(self) -> Callable[[], asyncio.AbstractEventLoop]:
        """Return what makes the event loop of a worker."""
        return lambda: BoundedLoop(self.bounds)


def run(app: str, listener: socket.socket, settings: Settings, n_workers: int) -> None:
    """Serve `app`, the name of a function that makes an application, until a signal ends it.

    Raises `ConfigurationError` where the system has no room for connections.
    """
    bounds = Bounds.of(settings)
    config = ServerConfig(
        app,
        factory=True,
        interface="asgi3",
        lifespan="on",
        http=Connection,
        ws="none",
        workers=n_workers,
        backlog=_BACKLOG,
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
    config.bounds = bounds
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
