"""The words of the command line, and the exit status they end in.

0 is success, 1 what a command found or failed at, 2 settings, arguments or a database that will not
do, in one line on stderr. `--json` prints one JSON document on stdout and nothing else.
"""

import argparse
import secrets
import signal
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any, TypeAlias

from app.cli import audit, backup, show, status, transfer
from app.cli.output import print_json
from app.configuration import Configuration
from app.errors import ConfigurationError
from app.server import supervisor

_CONFIGURATION_ERROR = 2
_KEY_BYTES = 32

Command: TypeAlias = Callable[[argparse.Namespace, Configuration], int]
# What add_subparsers returns has no public name.
_Commands: TypeAlias = Any

# Options that stand for a setting, by field.
_SETTINGS = ("host", "port", "workers", "migrate", "data_dir")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status."""
    options = _parser().parse_args(arguments)
    try:
        given = {name: getattr(options, name, None) for name in _SETTINGS}
        configuration = Configuration.load(
            {name: text for name, text in given.items() if text is not None}
        )
        run: Command = options.run
        return run(options, configuration)
    except ConfigurationError as error:
        print(f"sealdex: {error}", file=sys.stderr)
        return _CONFIGURATION_ERROR
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sealdex",
        description="Encrypted vector indexes on PostgreSQL and pgvector. "
        "Every setting is an environment variable; an option overrides it.",
    )
    parser.add_argument("--version", action="version", version=f"sealdex {version('sealdex')}")
    commands = parser.add_subparsers(dest="command", required=True)
    _add_service(commands)
    _add_looks(commands)
    _add_transfer(commands)
    return parser


def _add(
    commands: _Commands, name: str, summary: str, run: Command, *, json: bool = True
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=summary, description=summary)
    parser.set_defaults(run=run)
    if json:
        parser.add_argument("--json", action="store_true", help="print one JSON document")
    return parser


def _add_service(commands: _Commands) -> None:
    start = _add(commands, "serve", "start the service", _serve, json=False)
    start.add_argument("--host", help="address to listen on (HOST, default 127.0.0.1)")
    start.add_argument("--port", help="port to listen on (PORT, default 8000)")
    start.add_argument("--workers", help="worker processes (SEALDEX_WORKERS, default one a core)")
    start.add_argument(
        "--migrate",
        action="store_const",
        const="true",
        help="migrate the schema first (SEALDEX_MIGRATE)",
    )
    migrate = _add(
        commands, "migrate", "create the schema, or bring it to the newest revision", _migrate
    )
    config = _add(
        commands, "config", "print the effective settings and where each came from", show.config
    )
    for command in (start, migrate, config):
        command.add_argument(
            "--data-dir", help="directory of the embedded database (SEALDEX_DATA_DIR)"
        )
    _add(commands, "keygen", "print a new key: 64 hexadecimal digits", _keygen)


def _add_looks(commands: _Commands) -> None:
    looks = [
        _add(commands, "status", "list the indexes: sizes, lists, recall, training", status.status),
        _add(
            commands,
            "doctor",
            "look whether the database is as the service needs it",
            status.doctor,
        ),
    ]
    log = commands.add_parser("audit", help="the audit log").add_subparsers(
        dest="audit_command", required=True
    )
    verify = _add(
        log, "verify", "report what was changed in or removed from the audit log", audit.verify
    )
    verify.add_argument(
        "--save", metavar="FILE", help="keep the ends of the chains in a file, outside the database"
    )
    verify.add_argument("--against", metavar="FILE", help="compare with what --save has kept")
    drop = _add(log, "drop", "drop the months of the audit log that end before a day", audit.drop)
    drop.add_argument("--before", metavar="YYYY-MM-DD", required=True)
    for command in (*looks, verify, drop):
        command.add_argument(
            "--data-dir", help="directory of the embedded database (SEALDEX_DATA_DIR)"
        )
    check = _add(
        commands,
        "backup-check",
        "prove that a dump or backup holds no canary in plaintext",
        backup.backup_check,
    )
    check.add_argument(
        "paths", nargs="+", metavar="PATH", help="dumps of any format, or directories"
    )
    check.add_argument(
        "--canaries",
        metavar="FILE",
        required=True,
        help="one a line: texts, or vectors as [1.5, …]",
    )


def _add_transfer(commands: _Commands) -> None:
    train = _add(commands, "train", "train an index, and wait for the end", transfer.train)
    train.add_argument("index")
    train.add_argument(
        "--n-lists", type=int, help="how many lists; none is chosen by the number of items"
    )
    load = _add(
        commands,
        "import",
        "store the items of a file; goes on where it was interrupted",
        transfer.import_items,
    )
    load.add_argument("index")
    load.add_argument("file", help=".jsonl, .npy, .npz or .parquet")
    load.add_argument(
        "--ids", metavar="FILE", help="ids for .npy and .npz, one a line; else the row numbers"
    )
    load.add_argument("--restart", action="store_true", help="begin with the first item again")
    save = _add(
        commands, "export", "write all items of an index as JSON lines", transfer.export_items
    )
    save.add_argument("index")
    save.add_argument(
        "--output", metavar="FILE", default="-", help="the file to write; - is stdout, the default"
    )
    for command in (train, load, save):
        command.add_argument("--url", help="the service (SEALDEX_URL, else HOST and PORT)")
        command.add_argument(
            "--index-key-file",
            metavar="FILE",
            help="a file with the index key; else SEALDEX_INDEX_KEY has it",
        )


def _serve(_: argparse.Namespace, configuration: Configuration) -> int:
    supervisor.serve(configuration)
    return 0


def _migrate(options: argparse.Namespace, configuration: Configuration) -> int:
    revision = supervisor.migrate(configuration.settings)
    _say(options, {"revision": revision}, f"The schema is at revision {revision}.")
    return 0


def _keygen(options: argparse.Namespace, _: Configuration) -> int:
    key = secrets.token_hex(_KEY_BYTES)
    _say(options, {"key": key}, key)
    return 0


def _say(options: argparse.Namespace, document: Any, text: str) -> None:
    if options.json:
        print_json(document)
    else:
        print(text)
