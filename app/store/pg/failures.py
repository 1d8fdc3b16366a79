"""What a failure of the database turns into: `errors.Unavailable` for whatever passes by itself."""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from sqlalchemy.engine.interfaces import ExceptionContext

from app import errors

SILENCE = "The database does not answer"
TOO_LONG = "The database took too long to answer"

_IN_DOUBT = (
    "The connection to the database was lost while it was told to commit:"
    " whether the change was made is not known. It is safe to send the same items again"
)
# SQLSTATEs, or how they begin, that say "come back later", and what the caller is told. The first
# that fits counts.
_UNAVAILABLE = {
    "08": SILENCE,
    "25006": "The database takes no changes now",
    "25P03": "The database gave up a transaction that was idle for too long",
    "53100": "The database has no room left",
    "53": "The database is short of resources",
    "55P03": TOO_LONG,
    "57014": TOO_LONG,
    "57P": SILENCE,
}


@contextmanager
def translated() -> Iterator[None]:
    """Raise `Unavailable` for errors of the block that mean it, and the driver's for others."""
    try:
        yield
    except psycopg.Error as error:
        if (answer := unavailable(error)) is not None:
            raise answer from error
        raise


def translate(context: ExceptionContext) -> BaseException | None:
    """Return what a caller is told instead of a driver's error, or None to leave it as it is."""
    error = context.original_exception
    if not isinstance(error, psycopg.Error):
        return None
    if not context.is_disconnect:
        return unavailable(error)
    connection = context.connection
    if connection is not None and connection.info.get("is_committing"):
        return errors.Unavailable(_IN_DOUBT)
    return unavailable(error) or errors.Unavailable(SILENCE)


def unavailable(error: psycopg.Error) -> errors.Unavailable | None:
    """Return what a caller is told of `error` if it passes by itself, else None."""
    if error.sqlstate is None:
        return errors.Unavailable(SILENCE) if isinstance(error, psycopg.OperationalError) else None
    reasons = (text for state, text in _UNAVAILABLE.items() if error.sqlstate.startswith(state))
    reason = next(reasons, None)
    return None if reason is None else errors.Unavailable(reason)
