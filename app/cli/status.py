"""`sealdex status` and `sealdex doctor`: what is there, and is it well."""

import argparse
from collections.abc import Mapping
from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine

from app import store
from app.cli import database
from app.cli.output import print_json, print_table, size
from app.configuration import Configuration

_MARKS = {"ok": "ok  ", "warning": "WARN", "problem": "FAIL"}


def status(options: argparse.Namespace, configuration: Configuration) -> int:
    """Print every index with its size, its lists, what the last training measured, and how much changed since."""

    async def question(engine: AsyncEngine) -> list[dict[str, Any]]:
        async with engine.connect() as connection:
            return await store.overview.status(connection)

    rows = database.ask(configuration.settings, question)
    if options.json:
        print_json({"indexes": rows})
        return 0
    print_table(
        ("index", "items", "size", "ivf", "lists", "trained", "recall", "changed", "training"),
        [
            (
                row["name"],
                row["n_items"],
                size(row["size_bytes"]),
                size(row["ivf_size_bytes"]),
                row["n_lists"],
                "never" if row["trained_at"] is None else f"{row['trained_at']:%Y-%m-%d %H:%M}",
                "" if row["recall"] is None else f"{row['recall']:.3f}",
                "" if row["changed_share"] is None else f"{row['changed_share']:.0%}",
                _training(row),
            )
            for row in rows
        ],
    )
    return 0


def doctor(options: argparse.Namespace, configuration: Configuration) -> int:
    """Print whether the database is as the service needs it: exit status 1 if it is not."""

    async def question(engine: AsyncEngine) -> list[store.doctor.Finding]:
        async with engine.connect() as connection:
            return await store.doctor.findings(connection, configuration.settings)

    found = database.ask(configuration.settings, question, needs_schema=False)
    found += store.doctor.disk_space(configuration.settings)
    if options.json:
        print_json({"findings": [finding._asdict() for finding in found]})
    else:
        for finding in found:
            print(f"{_MARKS[finding.state]}  {finding.what}: {finding.text}")
    return 1 if any(finding.state == "problem" for finding in found) else 0


def _training(row: Mapping[str, Any]) -> str:
    if row["is_training"]:
        return f"{row['training_phase'] or 'queued'} {row['training_progress']} %"
    return "advised" if row["is_drifted"] else ""
