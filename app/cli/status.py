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

    indexes = database.ask(configuration.settings, question)
    threshold = configuration.settings.retrain_threshold
    rows = [{**index, "items_per_list": index["n_items"] / index["n_lists"]} for index in indexes]
    if options.json:
        print_json({"indexes": rows, "retrain_threshold": threshold})
        return 0
    print_table(
        ("index", "items", "size", "ivf", "lists", "items/list", "trained", "recall", "training"),
        [
            (
                row["name"],
                row["n_items"],
                size(row["size_bytes"]),
                size(row["ivf_size_bytes"]),
                row["n_lists"],
                round(row["items_per_list"]),
                "never" if row["trained_at"] is None else f"{row['trained_at']:%Y-%m-%d %H:%M}",
                _recall(row["profile"]),
                row["building"] or ("due" if row["items_per_list"] > threshold else ""),
            )
            for row in rows
        ],
    )
    return 0


def doctor(options: argparse.Namespace, configuration: Configuration) -> int:
    """Print whether the database is as the service needs it: exit status 1 if it is not."""

    async def question(engine: AsyncEngine) -> list[store.doctor.Finding]:
        async with engine.connect() as connection:
            return await store.doctor.findings(connection)

    found = database.ask(configuration.settings, question, needs_schema=False)
    found += store.doctor.disk_space(configuration.settings)
    if options.json:
        print_json({"findings": [finding._asdict() for finding in found]})
    else:
        for finding in found:
            print(f"{_MARKS[finding.state]}  {finding.what}: {finding.text}")
    return 1 if any(finding.state == "problem" for finding in found) else 0


def _recall(profile: Mapping[str, Any] | None) -> str:
    """Return the recall that the last training measured for the default target, if it is in its profile."""
    recall = (profile or {}).get("recall")
    return f"{recall:.3f}" if isinstance(recall, int | float) else ""
