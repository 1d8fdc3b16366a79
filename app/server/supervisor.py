"""`sealdex serve` and `sealdex migrate`.

`serve` is the process that supervises the workers; it starts and stops the embedded database, but
answers no request itself. The workers find every setting in the environment, whichever source it
came from.
"""

import asyncio
import contextlib
import ipaddress
import multiprocessing
import os
import signal
import socket
import ssl
import sys
import tempfile
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
from app.server.postgres import EmbeddedPostgres
from app.settings import Settings
from app.store import schema
from app.store.pg.engine import check_database, create_engine

_PORT_PATIENCE_S = 5.0
# Connections beside the workers' pools: trainings, migrations, and whoever looks at the database
# with psql.
_SPARE_CONNECTIONS = 30
_MIN_CONNECTIONS = 100


def serve(configuration: Configuration) -> None:
    """Answer requests until SIGTERM or SIGINT. Raises `ConfigurationError` when it cannot start."""
    settings = configuration.settings
    for notice in configuration.notices:
        print(f"sealdex: {notice}", file=sys.stderr)
    _check_tls(settings)
    check_tracing(settings)
    _check_exposure(settings)
    _check_models_dir(settings)
    # Until the server takes over, a signal must unwind the stack, so that the database is stopped.
    signal.signal(signal.SIGTERM, _interrupt)
    with (
        _listener(settings) as listener,
        _figures_directory(settings) as directory,
        _database(settings) as (dsn, kind),
    ):
        os.environ.update(
            {**configuration.environment, "DATABASE_URL": dsn, "SEALDEX_METRICS_DIR": directory}
        )
        print(_start_line(settings, kind), flush=True)
        http.run(
            "app.server.supervisor:create_worker_app", listener, settings, _n_workers(settings)
        )


def migrate(settings: Settings) -> str:
    """Bring the schema of the database to the newest revision, and return which that is."""
    with contextlib.ExitStack() as stack:
        dsn = settings.database_url or stack.enter_context(EmbeddedPostgres(settings.data_dir)).dsn
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


def _check_exposure(settings: Settings) -> None:
    """Refuse to let the network in without a key, unless told to."""
    if settings.root_key or settings.allow_open:
        return
    if not _is_loopback(settings.host):
        raise ConfigurationError(
            f"HOST={settings.host!r}: anyone who reaches it could use the service: set SEALDEX_ROOT_KEY "
            "(`sealdex keygen` makes one), or SEALDEX_ALLOW_OPEN=true if that is meant"
        )
    print(
        "sealdex: no SEALDEX_ROOT_KEY is set, so any program on this machine can use the service",
        file=sys.stderr,
    )


def _check_models_dir(settings: Settings) -> None:
    if settings.models_dir is not None and not settings.models_dir.is_dir():
        raise ConfigurationError(f"SEALDEX_MODELS_DIR={settings.models_dir} is no directory")


def _check_tls(settings: Settings) -> None:
    """Refuse a certificate or key that is missing, does not parse, or does not belong to the other."""
    certificate, key = settings.ssl_cert_path, settings.ssl_key_path
    if certificate is None and key is None:
        return
    if certificate is None or key is None:
        given, missing = (
            ("SSL_CERT_PATH", "SSL_KEY_PATH") if certificate else ("SSL_KEY_PATH", "SSL_CERT_PATH")
        )
        raise ConfigurationError(f"{given} is set, so {missing} must name a file too")
    for variable, path in (("SSL_CERT_PATH", certificate), ("SSL_KEY_PATH", key)):
        if not os.access(path, os.R_OK) or not path.is_file():
            raise ConfigurationError(
                f"{variable}={str(path)!r}: must name a PEM file that can be read"
            )
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
            certificate, key, password=_no_password
        )
    except (ssl.SSLError, ValueError) as error:
        raise ConfigurationError(
            f"SSL_CERT_PATH={str(certificate)!r} and SSL_KEY_PATH={str(key)!r}: must be a PEM certificate "
            "and the unencrypted PEM key that belongs to it"
        ) from error


def _no_password() -> NoReturn:
    """Refuse an encrypted key; OpenSSL would ask at the terminal."""
    raise ValueError("the key is encrypted")


def _listener(settings: Settings) -> socket.socket:
    """Return the socket that the workers will listen on; until they do, clients are refused."""
    family, address = _resolve(settings)
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    patience_ends = time.monotonic() + _PORT_PATIENCE_S
    while True:
        try:
            listener.bind((address, settings.port))
        except OSError as error:
            # The workers of a service that was killed take a moment to notice.
            if time.monotonic() > patience_ends:
                listener.close()
                raise ConfigurationError(
                    f"Cannot listen on {settings.host}:{settings.port}: {error.strerror}"
                ) from error
            time.sleep(0.2)
        else:
            return listener


@contextlib.contextmanager
def _figures_directory(settings: Settings) -> Iterator[str]:
    """Provide the directory where the workers share their figures, without those of an earlier start."""
    if settings.metrics_dir is None:
        with tempfile.TemporaryDirectory(prefix="sealdex-figures-") as directory:
            yield directory
        return
    try:
        settings.metrics_dir.mkdir(parents=True, exist_ok=True)
        for path in settings.metrics_dir.glob("*.figures"):
            path.unlink()
    except OSError as error:
        raise ConfigurationError(
            f"SEALDEX_METRICS_DIR={str(settings.metrics_dir)!r}: must be a directory to write to"
        ) from error
    yield str(settings.metrics_dir)


@contextlib.contextmanager
def _database(settings: Settings) -> Iterator[tuple[str, str]]:
    """Provide a database that is ready for the workers: its address, and what to call it."""
    if settings.database_url is not None:
        if settings.migrate:
            asyncio.run(schema.upgrade(settings.database_url))
        asyncio.run(_check(settings, settings.database_url))
        yield settings.database_url, "PostgreSQL at DATABASE_URL"
        return
    # Each worker has two pools: one for searches, one for the rest.
    n_connections = _n_workers(settings) * settings.pool_size + _SPARE_CONNECTIONS
    with EmbeddedPostgres(
        settings.data_dir, max_connections=max(n_connections, _MIN_CONNECTIONS)
    ) as server:
        asyncio.run(schema.upgrade(server.dsn))
        yield server.dsn, f"embedded PostgreSQL in {server.data_dir}"


async def _check(settings: Settings, dsn: str) -> None:
    engine = create_engine(settings, dsn)
    try:
        await check_database(engine)
    finally:
        await engine.dispose()


def _start_line(settings: Settings, database: str) -> str:
    scheme = "https" if settings.ssl_cert_path else "http"
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    auth = "on" if settings.root_key else "OFF"
    return (
        f"sealdex {version('sealdex')}: {scheme}://{host}:{settings.port} · {database} · "
        f"workers {_n_workers(settings)} · API key {auth}"
    )


def _n_workers(settings: Settings) -> int:
    return settings.workers or len(os.sched_getaffinity(0))


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


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _interrupt(_signal: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _end_with_supervisor() -> None:
    """End this worker when its supervisor is gone, be it killed, or it would go on taking requests alone."""
    supervisor = multiprocessing.parent_process()
    if supervisor is not None:
        # Also when it went while this worker was starting.
        supervisor.join()
        os.kill(os.getpid(), signal.SIGTERM)
