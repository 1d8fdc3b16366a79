"""`sealdex status` and `sealdex doctor`: what is there, and is it well."""

import argparse
from collections.abc import Mapping
from datetime import datetime
from functools import partial
from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine

from app import store
from app.cli import database
from app.cli.output import print_json, print_table, size
from app.configuration import Configuration
from app.server.data_directory import data_dir_of
from app.settings import Settings
from app.store.doctor import Finding

_MARKS = {"ok": "ok  ", "warning": "WARN", "problem": "FAIL"}
_HEADINGS = ("index", "items", "size", "ivf", "lists", "trained", "recall", "changed", "training")


def status(options: argparse.Namespace, configuration: Configuration) -> int:
    """Print each index with its size, its lists, its last training, and what changed since then."""
    rows = database.ask(configuration.settings, _overview)
    if options.json:
        print_json({"indexes": rows})
    else:
        print_table(_HEADINGS, [_cells(row) for row in rows])
    return 0


def doctor(options: argparse.Namespace, configuration: Configuration) -> int:
    """Print whether the database is as the service needs it: exit status 1 if it is not."""
    settings = configuration.settings
    found = database.ask(settings, partial(_findings, settings=settings), needs_schema=False)
    data_dir = data_dir_of(settings) if settings.database_url is None else None
    found.append(store.doctor.disk_space(data_dir))
    if options.json:
        print_json({"findings": [finding._asdict() for finding in found]})
    else:
        for finding in found:
            print(f"{_MARKS[finding.state]}  {finding.what}: {finding.text}")
    return 1 if any(finding.state == "problem" for finding in found) else 0


async def _overview(engine: AsyncEngine) -> list[dict[str, Any]]:
    async with engine.connect() as connection:
        return await store.overview.status(connection)


async def _findings(engine: AsyncEngine, settings: Settings) -> list[Finding]:
    async with engine.connect() as connection:
        return await store.doctor.findings(connection, settings)


def _cells(row: Mapping[str, Any]) -> tuple[object, ...]:
    """Return the row of the table for an index, in the order of `_HEADINGS`."""
    return (
        row["name"],
        row["n_items"],
        size(row["size_bytes"]),
        size(row["ivf_size_bytes"]),
        row["n_lists"],
        _trained(row["trained_at"]),
        "" if row["recall"] is None else f"{row['recall']:.3f}",
        "" if row["changed_share"] is None else f"{row['changed_share']:.0%}",
        _training(row),
    )


def _trained(moment: datetime | None) -> str:
    return "never" if moment is None else f"{moment:%Y-%m-%d %H:%M}"


def _training(row: Mapping[str, Any]) -> str:
    if row["is_training"]:
        return f"{row['training_phase'] or 'queued'} {row['training_progress']} %"
    return "advised" if row["is_drifted"] else ""
