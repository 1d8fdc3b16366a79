"""`sealdex audit`: verify the log, keep what proves it, let go of old months."""

import argparse
from datetime import date
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app import store
from app.cli import database
from app.cli.output import print_json
from app.configuration import Configuration
from app.domain import OPERATOR, AuditEntry
from app.errors import ConfigurationError


def verify(options: argparse.Namespace, configuration: Configuration) -> int:
    """Report what was changed in or removed from the log: exit status 1 if anything was."""
    saved = _read_heads(options.against) if options.against else []

    async def question(engine: AsyncEngine) -> dict[str, Any]:
        async with engine.connect() as connection:
            # As of one moment, although writers go on.
            await connection.execute(
                text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            )
            found = [problem._asdict() for problem in await store.audit.problems(connection)]
            heads = await store.audit.heads(connection)
            n_entries = await store.audit.count(connection)
            for head in saved:
                hashes = await store.audit.hashes(connection, head["chain"], head["position"])
                kept_after = max(
                    (one.kept_after for one in heads if one.chain == head["chain"]), default=0
                )
                if head["position"] > kept_after and [one.hex() for one in hashes] != [
                    head["hash"]
                ]:
                    problem = "rewritten: the entry that was the last one then is another one now"
                    found.append(
                        {"chain": head["chain"], "position": head["position"], "problem": problem}
                    )
        return {
            "n_entries": n_entries,
            "problems": found,
            "heads": [
                {"chain": one.chain, "position": one.position, "hash": one.hash.hex()}
                for one in heads
            ],
        }

    report = database.ask(configuration.settings, question)
    if options.save and not report["problems"]:
        Path(options.save).write_bytes(msgspec.json.format(msgspec.json.encode(report["heads"])))
    if options.json:
        print_json(report)
    else:
        for problem in report["problems"]:
            print(f"chain {problem['chain']}, entry {problem['position']}: {problem['problem']}")
        verdict = (
            f"{len(report['problems'])} problems"
            if report["problems"]
            else "as the service wrote them"
        )
        print(f"{report['n_entries']} entries in {len(report['heads'])} chains: {verdict}")
    return 1 if report["problems"] else 0


def drop(options: argparse.Namespace, configuration: Configuration) -> int:
    """Drop the months before a day, and record that."""
    try:
        first_kept = date.fromisoformat(options.before)
    except ValueError:
        raise ConfigurationError(f"--before {options.before}: must be a day, YYYY-MM-DD") from None
    if first_kept > date.today():  # noqa: DTZ011  # the operator's day
        raise ConfigurationError(f"--before {options.before}: must not be in the future")

    async def question(engine: AsyncEngine) -> list[str]:
        async with engine.begin() as connection:
            await connection.execute(text("SET LOCAL lock_timeout = '10s'"))
            names = await store.audit.drop_before(connection, first_kept)
            await store.audit.record(
                connection,
                AuditEntry(
                    caller=OPERATOR.name,
                    key_id=None,
                    operation="drop_audit",
                    index_id=None,
                    index_name=None,
                    n_items=None,
                    request_id=f"before {first_kept}",
                    outcome="done",
                ),
            )
            return names

    names = database.ask(configuration.settings, question)
    if options.json:
        print_json({"dropped": names})
    else:
        print("\n".join(names) if names else f"No month of the audit log ends before {first_kept}.")
    return 0


def _read_heads(path: str) -> list[dict[str, Any]]:
    try:
        heads: list[dict[str, Any]] = msgspec.json.decode(
            Path(path).read_bytes(), type=list[dict[str, Any]]
        )
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigurationError(f"--against {path}: must be a file written by --save") from error
    return heads
