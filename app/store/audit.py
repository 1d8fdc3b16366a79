"""Statements on the audit log. A trigger on `audit_log` chains the entries; see migration 0005."""

from collections.abc import Sequence
from datetime import date
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain import AuditEntry
from app.store.tables import audit_chains, audit_log, indexes

# Months that have a partition before they begin.
_MONTHS_AHEAD = 3
# The trigger replaces these, so what is sent does not matter.
_FILLED_BY_TRIGGER: dict[str, int | bytes] = {
    "chain": 0,
    "position": 0,
    "previous_hash": b"",
    "hash": b"",
}


class Problem(NamedTuple):
    """What is not as the service wrote it."""

    chain: int
    position: int
    problem: str


class Head(NamedTuple):
    """The last entry of a chain, and the last one that retention has dropped."""

    chain: int
    position: int
    hash: bytes
    kept_after: int


async def record(connection: AsyncConnection, entry: AuditEntry) -> None:
    """Append `entry`, best at the end of a transaction.

    The entry holds its chain until the transaction ends; other transactions take other chains.
    """
    await connection.execute(
        sa.insert(audit_log)
        .inline()
        .values(
            **_FILLED_BY_TRIGGER,
            caller=entry.caller,
            key_id=entry.key_id,
            operation=entry.operation,
            index_id=entry.index_id or _id_of(entry.index_name),
            index_name=entry.index_name,
            n_items=entry.n_items,
            request_id=entry.request_id,
            outcome=entry.outcome,
        )
    )


def _id_of(index_name: str | None) -> sa.ScalarSelect[object]:
    return sa.select(indexes.c.id).where(indexes.c.name == index_name).scalar_subquery()


async def add_partitions(connection: AsyncConnection) -> None:
    """Make the partitions of this month and the next ones, where they are missing."""
    await connection.execute(
        sa.text("SELECT sealdex_views.add_audit_partitions(:ahead)"), {"ahead": _MONTHS_AHEAD}
    )


async def problems(connection: AsyncConnection) -> list[Problem]:
    """Return what was changed in the log or removed from it. psql can send the same query."""
    statement = sa.text(
        "SELECT chain, position, problem FROM sealdex_views.audit_problems"
        " ORDER BY chain, position, problem"
    )
    return [Problem(*row) for row in await connection.execute(statement)]


async def heads(connection: AsyncConnection) -> list[Head]:
    """Return the ends of all chains."""
    columns = (
        audit_chains.c.chain,
        audit_chains.c.position,
        audit_chains.c.hash,
        audit_chains.c.kept_after,
    )
    return [
        Head(*row)
        for row in await connection.execute(sa.select(*columns).order_by(audit_chains.c.chain))
    ]


async def hashes(connection: AsyncConnection, chain: int, position: int) -> Sequence[bytes]:
    """Return the hash of one entry, in a list that is empty when there is no such entry."""
    statement = sa.select(audit_log.c.hash).where(
        audit_log.c.chain == chain, audit_log.c.position == position
    )
    return (await connection.execute(statement)).scalars().all()


async def count(connection: AsyncConnection) -> int:
    """Return the number of entries."""
    n_entries: int = (
        await connection.execute(sa.select(sa.func.count()).select_from(audit_log))
    ).scalar_one()
    return n_entries


async def drop_before(connection: AsyncConnection, first_kept: date) -> list[str]:
    """Drop the months that end before `first_kept`, and return the names of their partitions."""
    statement = sa.text("SELECT sealdex_views.drop_audit_before(:first_kept)")
    return list((await connection.execute(statement, {"first_kept": first_kept})).scalars())
