"""The command line: serve, migrate and keygen.

What is wrong with the settings or the database ends in one line on stderr and exit status 2. `serve` is the
process that supervises the workers; it starts and stops the embedded database, but answers no request itself.
"""

import argparse
import asyncio
import contextlib
import ipaddress
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from typing import NoReturn

from granian.constants import Interfaces, Loops
from granian.log import LogLevels
from granian.server.mp import MPServer
from litestar import Litestar

from app.errors import ConfigurationError
from app.main import create_app_from_env
from app.settings import Settings, variables_of
from app.store import schema
from app.store.embedded import EmbeddedPostgres
from app.store.engine import check_database, create_engine

_CONFIGURATION_ERROR = 2
_ROOT_KEY_BYTES = 32
_GRACE_S = 30
_BACKLOG = 1024
_PORT_PATIENCE_S = 5.0
_PARENT_CHECK_INTERVAL_S = 1.0
# Connections beside the workers' pools: trainings, migrations, and whoever looks at the database with psql.
_SPARE_CONNECTIONS = 30
_MIN_CONNECTIONS = 100


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "keygen":
            print(secrets.token_hex(_ROOT_KEY_BYTES))
        elif options.command == "migrate":
            migrate(Settings.from_env(_environment(options)))
        else:
            # The workers read their settings from the environment, too.
            os.environ.update(_environment(options))
            serve(Settings.from_env())
    except ConfigurationError as error:
        print(f"sealdex: {error}", file=sys.stderr)
        return _CONFIGURATION_ERROR
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


def serve(settings: Settings) -> None:
    """Answer requests until SIGTERM or SIGINT. Raises `ConfigurationError` when it cannot start."""
    _check_exposure(settings)
    _check_models_dir(settings)
    _check_port(settings)
    # Until the server takes over, a signal must unwind the stack, so that the database is stopped.
    signal.signal(signal.SIGTERM, _interrupt)
    with _database(settings) as (dsn, kind):
        os.environ["DATABASE_URL"] = dsn
        print(_start_line(settings, kind), flush=True)
        _server(settings).serve()


def migrate(settings: Settings) -> None:
    """Bring the schema of the database to the newest revision."""
    with contextlib.ExitStack() as stack:
        dsn = settings.database_url or stack.enter_context(EmbeddedPostgres(settings.data_dir)).dsn
        asyncio.run(schema.upgrade(dsn))
    print(f"The schema is at revision {schema.head_revision()}.")


def create_worker_app() -> Litestar:
    """Return the application of a worker process, which ends when its supervisor does."""
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    return create_app_from_env()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sealdex",
        description="Encrypted vector indexes on PostgreSQL and pgvector. "
        "Every setting is an environment variable; an option overrides it.",
    )
    parser.add_argument("--version", action="version", version=f"sealdex {version('sealdex')}")
    commands = parser.add_subparsers(dest="command", required=True)
    serve_parser = commands.add_parser("serve", help="start the service")
    serve_parser.add_argument("--host", help="address to listen on (HOST, default 127.0.0.1)")
    serve_parser.add_argument("--port", help="port to listen on (PORT, default 8000)")
    serve_parser.add_argument("--workers", help="worker processes (SEALDEX_WORKERS, default one a core)")
    serve_parser.add_argument(
        "--migrate", action="store_const", const="true", help="migrate the schema first (SEALDEX_MIGRATE)"
    )
    migrate_parser = commands.add_parser("migrate", help="create the schema, or bring it to the newest revision")
    for command in (serve_parser, migrate_parser):
        command.add_argument("--data-dir", help="directory of the embedded database (SEALDEX_DATA_DIR)")
    commands.add_parser("keygen", help="print a new key: 64 hexadecimal digits")
    return parser


def _environment(options: argparse.Namespace) -> dict[str, str]:
    """Return the environment with the options in it, each under the variable it overrides."""
    given = {name: value for name, value in vars(options).items() if value is not None and name != "command"}
    return {**os.environ, **{variables_of(name)[0]: value for name, value in given.items()}}


def _check_exposure(settings: Settings) -> None:
    """Refuse to let the network in without a key, unless told to."""
    if settings.root_key or settings.allow_open:
        return
    if not _is_loopback(settings.host):
        raise ConfigurationError(
            f"Anyone who reaches {settings.host} could use the service: set SEALDEX_ROOT_KEY "
            "(`sealdex keygen` makes one), or SEALDEX_ALLOW_OPEN=true if that is meant"
        )
    print("sealdex: no SEALDEX_ROOT_KEY is set, so any program on this machine can use the service", file=sys.stderr)


def _check_models_dir(settings: Settings) -> None:
    if settings.models_dir is not None and not settings.models_dir.is_dir():
        raise ConfigurationError(f"SEALDEX_MODELS_DIR={settings.models_dir} is no directory")


def _check_port(settings: Settings) -> None:
    """Refuse a port that is in use: the kernel would share the requests out between the two services."""
    patience_ends = time.monotonic() + _PORT_PATIENCE_S
    family, address = _resolve(settings)
    while True:
        try:
            with socket.socket(family) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((address, settings.port))
                return
        except OSError as error:
            # The workers of a service that was killed take a moment to notice.
            if time.monotonic() > patience_ends:
                raise ConfigurationError(
                    f"Cannot listen on {settings.host}:{settings.port}: {error.strerror}"
                ) from error
            time.sleep(0.2)


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
    n_connections = 2 * _n_workers(settings) * settings.pool_size + _SPARE_CONNECTIONS
    with EmbeddedPostgres(settings.data_dir, max_connections=max(n_connections, _MIN_CONNECTIONS)) as server:
        asyncio.run(schema.upgrade(server.dsn))
        yield server.dsn, f"embedded PostgreSQL in {server.data_dir}"


async def _check(settings: Settings, dsn: str) -> None:
    engine = create_engine(settings, dsn)
    try:
        await check_database(engine)
    finally:
        await engine.dispose()


def _server(settings: Settings) -> MPServer:
    if (settings.ssl_cert_path is None) != (settings.ssl_key_path is None):
        raise ConfigurationError("TLS needs both SSL_CERT_PATH and SSL_KEY_PATH")
    try:
        return MPServer(
            "app.cli:create_worker_app",
            factory=True,
            interface=Interfaces.ASGI,
            loop=Loops.uvloop,
            address=_resolve(settings)[1],
            port=settings.port,
            workers=_n_workers(settings),
            # Counts open connections, idle ones too. The application counts requests and answers 503 itself.
            backlog=_BACKLOG,
            backpressure=max(_BACKLOG, 4 * settings.max_requests_in_work),
            websockets=False,
            respawn_failed_workers=True,
            workers_kill_timeout=_GRACE_S,
            log_level=LogLevels.warning,
            ssl_cert=settings.ssl_cert_path,
            ssl_key=settings.ssl_key_path,
        )
    except OSError as error:
        raise ConfigurationError(f"The TLS certificate or its key cannot be read: {error}") from error


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
        family, *_, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise ConfigurationError(f"HOST={settings.host} is no address of this machine") from error
    return family, str(address[0])


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _interrupt(_signal: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _end_with(supervisor: int) -> None:
    """End this worker when its supervisor is gone, be it killed, or it would go on taking requests alone."""
    while os.getppid() == supervisor:
        time.sleep(_PARENT_CHECK_INTERVAL_S)
    os.kill(os.getpid(), signal.SIGTERM)
