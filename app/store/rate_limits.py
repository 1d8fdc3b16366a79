"""Statements on `rate_limits`: one row a caller, shared by all workers and hosts."""

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

_TAKE = sa.text(
    """
    WITH taken AS (
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
    )
    SELECT CASE WHEN EXISTS (SELECT FROM taken) THEN 0 ELSE greatest(
        extract(epoch FROM busy_until - clock_timestamp())::float8 + :cost_s - :burst_s, 0.001
    ) END
    FROM (SELECT) AS one LEFT JOIN rate_limits ON caller = :caller
    """
)


async def take(connection: AsyncConnection, caller: str, *, cost_s: float, burst_s: float) -> float:
    """Take requests worth `cost_s` seconds of the caller's rate, and return 0.

    When the caller is `burst_s` ahead of its rate, nothing is taken, and the answer is in how many
    seconds it may be.

    The generic cell rate algorithm (ITU-T I.371): a row remembers until when the caller's rate is
    used up. Nobody is twice its burst ahead unless the clock of the database was set back: such a
    row is put right, or the caller would be refused until the clock has caught up.
    """
    values = {"caller": caller, "cost_s": cost_s, "burst_s": burst_s}
    wait_s: float = (await connection.execute(_TAKE, values)).scalar_one()
    return wait_s
