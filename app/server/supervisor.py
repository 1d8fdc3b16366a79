"""`sealdex serve` and `sealdex migrate`.

`serve` is the process that supervises the workers; it starts and stops the embedded database, but
answers no request itself. The workers find every setting in the environment, whichever source it
came from.
"""

import asyncio
import contextlib
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from importlib.metadata import version
from typing import NoReturn

from litestar import Litestar
from threadpoolctl import threadpool_limits

from app.api.around.telemetry import check_tracing
from app.configuration import Configuration
from app.errors import ConfigurationError
from app.server import http, memory
from app.server.application import create_app_from_env
from app.server.data_directory import data_dir_of
from app.server.figures_directory import figures_directory
from app.server.postgres import EmbeddedPostgres
from app.server.start_checks import check_exposure, check_models_dir, check_tls
from app.settings import Settings
from app.store import schema, server
from app.store.pg.engine import check_database, create_engine

_PORT_PATIENCE_S = 5.0
# Connections beside the workers': migrations, and whoever looks at the database with psql.
_SPARE_CONNECTIONS = 30
_MIN_CONNECTIONS = 100


def serve(configuration: Configuration) -> None:
    """Answer requests until SIGTERM or SIGINT. Raises `ConfigurationError` when it cannot start."""
    settings = configuration.settings
    for notice in configuration.notices:
        print(f"sealdex: {notice}", file=sys.stderr)
    check_tls(settings)
    check_tracing(settings)
    check_exposure(settings)
    check_models_dir(settings)
    # Until the server takes over, a signal must unwind the stack, so that the database is stopped.
    signal.signal(signal.SIGTERM, _interrupt)
    with (
        _listener(settings) as listener,
        figures_directory(settings.metrics_dir) as directory,
        _database(settings) as (dsn, kind),
    ):
        os.environ.update(
            {**configuration.environment, "DATABASE_URL": dsn, "SEALDEX_METRICS_DIR": directory}
        )
        print(_start_line(settings, kind), flush=True)
        http.run(
            "app.server.supervisor:create_worker_app", listener, settings, settings.n_workers()
        )


def migrate(settings: Settings) -> str:
    """Bring the schema of the database to the newest revision, and return which that is."""
    with contextlib.ExitStack() as stack:
        dsn = (
            settings.database_url
            or stack.enter_context(EmbeddedPostgres(data_dir_of(settings))).dsn
        )
        asyncio.run(schema.upgrade(dsn))
    return schema.head_revision()


def create_worker_app() -> Litestar:
    """Return the application of a worker process, which ends when its supervisor does."""
    threading.Thread(target=_end_with_supervisor, daemon=True).start()
    # The workers are the threads: more of them only wait for each other, and spin while they do.
    threadpool_limits(1, user_api="blas")
    memory.keep_buffers()
    app = create_app_from_env()
    memory.collect_rarely()
    return app


def _listener(settings: Settings) -> socket.socket:
    """Return the socket that the workers will listen on; until they do, clients are refused."""
    family, address = _resolve(settings)
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    patience_ends = time.monotonic() + _PORT_PATIENCE_S
    # The workers of a service that was killed take a moment to notice.
    while (refusal := _bound(listener, address, settings.port)) is not None:
        if time.monotonic() > patience_ends:
            listener.close()
            raise ConfigurationError(
                f"Cannot listen on {settings.host}:{settings.port}: {refusal.strerror}"
            ) from refusal
        time.sleep(0.2)
    return listener


def _bound(listener: socket.socket, address: str, port: int) -> OSError | None:
    """Bind the socket, and return why that failed, if it did."""
    try:
        listener.bind((address, port))
    except OSError as error:
        return error
    return None


@contextlib.contextmanager
def _database(settings: Settings) -> Iterator[tuple[str, str]]:
    """Provide a database that is ready for the workers: its address, and what to call it."""
    if settings.database_url is not None:
        if settings.migrate:
            asyncio.run(schema.upgrade(settings.database_url))
        asyncio.run(_check(settings, settings.database_url))
        yield settings.database_url, "PostgreSQL at DATABASE_URL"
        return
    n_connections = settings.n_connections() + _SPARE_CONNECTIONS
    with EmbeddedPostgres(
        data_dir_of(settings), max_connections=max(n_connections, _MIN_CONNECTIONS)
    ) as embedded:
        asyncio.run(schema.upgrade(embedded.dsn))
        yield embedded.dsn, f"embedded PostgreSQL in {embedded.data_dir}"


async def _check(settings: Settings, dsn: str) -> None:
    """Raise `ConfigurationError` unless the database will do; print what is short there."""
    engine = create_engine(settings, dsn)
    try:
        await check_database(engine)
        async with engine.connect() as connection:
            shortage = await server.connection_shortage(connection, settings.n_connections())
        if shortage is not None:
            print(f"sealdex: {shortage}", file=sys.stderr)
    finally:
        await engine.dispose()


def _start_line(settings: Settings, database: str) -> str:
    scheme = "https" if settings.ssl_cert_path else "http"
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    auth = "on" if settings.root_key else "OFF"
    return (
        f"sealdex {version('sealdex')}: {scheme}://{host}:{settings.port} · {database} · "
        f"workers {settings.n_workers()} · API key {auth}"
    )


def _resolve(settings: Settings) -> tuple[socket.AddressFamily, str]:
    """Return family and text of the first address of `host`; the server takes no names."""
    try:
        family, *_, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM
        )[0]
    except socket.gaierror as error:
        raise ConfigurationError(
            f"HOST={settings.host!r}: must be an address or a name of this machine"
        ) from error
    return family, str(address[0])


def _interrupt(_signal: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _end_with_supervisor() -> None:
    """End this worker when its supervisor is gone: alone it would go on taking requests."""
    supervisor = multiprocessing.parent_process()
    if supervisor is not None:
        # Also when it went while this worker was starting.
        supervisor.join()
        os.kill(os.getpid(), signal.SIGTERM)
