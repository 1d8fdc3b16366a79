"""`sealdex audit`: verify the log, keep what proves it, let go of old months."""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app import store
from app.cli import database, private_files
from app.cli.output import print_json
from app.configuration import Configuration
from app.domain import OPERATOR, AuditEntry
from app.errors import ConfigurationError
from app.store.audit import Head

_SavedHead = dict[str, Any]
_REWRITTEN = "rewritten: the entry that was the last one then is another one now"


def verify(options: argparse.Namespace, configuration: Configuration) -> int:
    """Report what was changed in or removed from the log: exit status 1 if anything was."""
    saved = _read_heads(options.against) if options.against else []
    report = database.ask(configuration.settings, partial(_report, saved=saved))
    if options.save and not report["problems"]:
        with private_files.new_file(Path(options.save), "--save") as stream:
            stream.write(msgspec.json.format(msgspec.json.encode(report["heads"])))
    if options.json:
        print_json(report)
    else:
        _print_report(report)
    return 1 if report["problems"] else 0


def drop(options: argparse.Namespace, configuration: Configuration) -> int:
    """Drop the months before a day, and record that."""
    first_kept = _day(options.before)
    names = database.ask(configuration.settings, partial(_drop_before, first_kept=first_kept))
    if options.json:
        print_json({"dropped": names})
    else:
        print("\n".join(names) if names else f"No month of the audit log ends before {first_kept}.")
    return 0


async def _report(engine: AsyncEngine, saved: Sequence[_SavedHead]) -> dict[str, Any]:
    """Return what the log is like as of one moment, although writers go on."""
    async with engine.connect() as connection:
        await connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))
        heads = await store.audit.heads(connection)
        problems = [problem._asdict() for problem in await store.audit.problems(connection)]
        problems += await _rewritten(connection, heads, saved)
        return {
            "n_entries": await store.audit.count(connection),
            "problems": problems,
            "heads": [_shown(head) for head in heads],
        }


async def _rewritten(
    connection: AsyncConnection, heads: Iterable[Head], saved: Sequence[_SavedHead]
) -> list[dict[str, Any]]:
    """Return the saved ends of chains whose entry is another one now, unless it was dropped."""
    kept_after = {head.chain: head.kept_after for head in heads}
    found = []
    for head in saved:
        chain, position = head["chain"], head["position"]
        hashes = await store.audit.hashes(connection, chain, position)
        is_same = [one.hex() for one in hashes] == [head["hash"]]
        if not is_same and position > kept_after.get(chain, 0):
            found.append({"chain": chain, "position": position, "problem": _REWRITTEN})
    return found


def _shown(head: Head) -> _SavedHead:
    return {"chain": head.chain, "position": head.position, "hash": head.hash.hex()}


def _print_report(report: Mapping[str, Any]) -> None:
    problems = report["problems"]
    for problem in problems:
        print(f"chain {problem['chain']}, entry {problem['position']}: {problem['problem']}")
    verdict = f"{len(problems)} problems" if problems else "as the service wrote them"
    print(f"{report['n_entries']} entries in {len(report['heads'])} chains: {verdict}")


def _day(given: str) -> date:
    """Return the day that `--before` names. Raises `ConfigurationError`."""
    try:
        day = date.fromisoformat(given)
    except ValueError:
        raise ConfigurationError(f"--before {given}: must be a day, YYYY-MM-DD") from None
    if day > date.today():  # noqa: DTZ011  # the operator's day
        raise ConfigurationError(f"--before {given}: must not be in the future")
    return day


async def _drop_before(engine: AsyncEngine, first_kept: date) -> list[str]:
    """Drop the months that end before a day, record that, and return the partitions' names."""
    entry = AuditEntry(
        caller=OPERATOR.name,
        key_id=None,
        operation="drop_audit",
        index_id=None,
        index_name=None,
        n_items=None,
        request_id=f"before {first_kept}",
        outcome="done",
    )
    async with engine.begin() as connection:
        await connection.execute(text("SET LOCAL lock_timeout = '10s'"))
        names = await store.audit.drop_before(connection, first_kept)
        await store.audit.record(connection, entry)
        return names


def _read_heads(path: str) -> list[_SavedHead]:
    try:
        return msgspec.json.decode(Path(path).read_bytes(), type=list[_SavedHead])
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigurationError(f"--against {path}: must be a file written by --save") from error
