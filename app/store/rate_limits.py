"""Statements on `rate_limits`: one row a caller, shared by all workers and hosts."""

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

_TAKE = sa.text(
    """
    INSERT INTO rate_limits AS used (caller, busy_until)
    VALUES (:caller, clock_timestamp() + make_interval(secs => :cost_s))
    ON CONFLICT (caller) DO UPDATE
    SET busy_until = least(
            greatest(used.busy_until, clock_timestamp()) + make_interval(secs => :cost_s),
            clock_timestamp() + make_interval(secs => :burst_s)
        )
    WHERE greatest(used.busy_until, clock_timestamp()) + make_interval(secs => :cost_s)
            <= clock_timestamp() + make_interval(secs => :burst_s)
        OR used.busy_until > clock_timestamp() + make_interval(secs => 2 * :burst_s)
    RETURNING true
    """
)


async def take(connection: AsyncConnection, caller: str, *, cost_s: float, burst_s: float) -> bool:
    """Take requests worth `cost_s` seconds of the caller's rate; false when it is `burst_s` ahead of it.

    The generic cell rate algorithm (ITU-T I.371): a row remembers until when the caller's rate is
    used up. Nobody is twice its burst ahead unless the clock of the database was set back: such a
    row is put right, or the caller would be refused until the clock has caught up.
    """
    values = {"caller": caller, "cost_s": cost_s, "burst_s": burst_s}
    return (await connection.execute(_TAKE, values)).one_or_none() is not None
