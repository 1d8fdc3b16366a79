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

from app.cli import audit, backup, export_items, import_items, show, status, train
from app.cli.output import print_json
from app.configuration import Configuration
from app.errors import ConfigurationError
from app.server import supervisor

_CONFIGURATION_ERROR = 2
_KEY_BYTES = 32

Command: TypeAlias = Callable[[argparse.Namespace, Configuration], int]
# What add_subparsers returns has no public name.
_Commands: TypeAlias = Any
_Parser: TypeAlias = argparse.ArgumentParser

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


def _parser() -> _Parser:
    parser = argparse.ArgumentParser(
        prog="sealdex",
        description="Encrypted vector indexes on PostgreSQL and pgvector. "
        "Every setting is an environment variable; an option overrides it.",
    )
    parser.add_argument("--version", action="version", version=f"sealdex {version('sealdex')}")
    commands = parser.add_subparsers(dest="command", required=True)
    _add_serve(commands)
    _add_setup(commands)
    _add_looks(commands)
    _add_audit(commands)
    _add_backup_check(commands)
    _add_train(commands)
    _add_import(commands)
    _add_export(commands)
    return parser


def _add(
    commands: _Commands, name: str, summary: str, run: Command, *, json: bool = True
) -> _Parser:
    parser: _Parser = commands.add_parser(name, help=summary, description=summary)
    parser.set_defaults(run=run)
    if json:
        parser.add_argument("--json", action="store_true", help="print one JSON document")
    return parser


def _add_data_dir(*parsers: _Parser) -> None:
    for parser in parsers:
        parser.add_argument(
            "--data-dir", help="directory of the embedded database (SEALDEX_DATA_DIR)"
        )


def _add_serve(commands: _Commands) -> None:
    start = _add(commands, "serve", "start the service", _serve, json=False)
    start.add_argument("--host", help="address to listen on (HOST, default 127.0.0.1)")
    start.add_argument("--port", help="port to listen on (PORT, default 8000)")
    start.add_argument("--workers", help="worker processes (SEALDEX_WORKERS, default one a core)")
    help_text = "migrate the schema first (SEALDEX_MIGRATE)"
    start.add_argument("--migrate", action="store_const", const="true", help=help_text)
    _add_data_dir(start)


def _add_setup(commands: _Commands) -> None:
    summary = "create the schema, or bring it to the newest revision"
    migrate = _add(commands, "migrate", summary, _migrate)
    summary = "print the effective settings and where each came from"
    config = _add(commands, "config", summary, show.config)
    _add_data_dir(migrate, config)
    _add(commands, "keygen", "print a new key: 64 hexadecimal digits", _keygen)


def _add_looks(commands: _Commands) -> None:
    summary = "list the indexes: sizes, lists, recall, training"
    overview = _add(commands, "status", summary, status.status)
    summary = "look whether the database is as the service needs it"
    doctor = _add(commands, "doctor", summary, status.doctor)
    _add_data_dir(overview, doctor)


def _add_audit(commands: _Commands) -> None:
    log = commands.add_parser("audit", help="the audit log").add_subparsers(
        dest="audit_command", required=True
    )
    summary = "report what was changed in or removed from the audit log"
    verify = _add(log, "verify", summary, audit.verify)
    help_text = "keep the ends of the chains in a file, outside the database"
    verify.add_argument("--save", metavar="FILE", help=help_text)
    verify.add_argument("--against", metavar="FILE", help="compare with what --save has kept")
    summary = "drop the months of the audit log that end before a day"
    drop = _add(log, "drop", summary, audit.drop)
    drop.add_argument("--before", metavar="YYYY-MM-DD", required=True)
    _add_data_dir(verify, drop)


def _add_backup_check(commands: _Commands) -> None:
    summary = "prove that a dump or backup holds no canary in plaintext"
    check = _add(commands, "backup-check", summary, backup.backup_check)
    help_text = "dumps of any format, or directories"
    check.add_argument("paths", nargs="+", metavar="PATH", help=help_text)
    help_text = "one a line: texts, or vectors as [1.5, …]"
    check.add_argument("--canaries", metavar="FILE", required=True, help=help_text)


def _add_train(commands: _Commands) -> None:
    summary = "train an index, and wait for the end"
    parser = _add(commands, "train", summary, train.train)
    parser.add_argument("index")
    help_text = "how many lists; none is chosen by the number of items"
    parser.add_argument("--n-lists", type=int, help=help_text)
    _add_access(parser)


def _add_import(commands: _Commands) -> None:
    summary = "store the items of a file; goes on where it was interrupted"
    parser = _add(commands, "import", summary, import_items.import_items)
    parser.add_argument("index")
    parser.add_argument("file", help=".jsonl, .npy, .npz or .parquet")
    help_text = "ids for .npy and .npz, one a line; else the row numbers"
    parser.add_argument("--ids", metavar="FILE", help=help_text)
    help_text = "begin with the first item again"
    parser.add_argument("--restart", action="store_true", help=help_text)
    _add_access(parser)


def _add_export(commands: _Commands) -> None:
    summary = "write all items of an index as JSON lines"
    parser = _add(commands, "export", summary, export_items.export_items)
    parser.add_argument("index")
    help_text = "the file to write, for its owner alone; - is stdout, the default"
    parser.add_argument("--output", metavar="FILE", default="-", help=help_text)
    _add_access(parser)


def _add_access(parser: _Parser) -> None:
    help_text = "the service (else SEALDEX_URL, HOST and PORT of the environment)"
    parser.add_argument("--url", help=help_text)
    help_text = "a file with the index key; else SEALDEX_INDEX_KEY has it"
    parser.add_argument("--index-key-file", metavar="FILE", help=help_text)


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
