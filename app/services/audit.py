"""What goes into the audit log: every change with its transaction, by setting reads, too."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncEngine

from app import errors, store
from app.crypto import keys
from app.domain import AuditEntry, IndexAccess
from app.observe.stages import stage

# Longer names are refused wherever there could be an index.
_MAX_NAME_LENGTH = 255


def entry(
    access: IndexAccess,
    operation: str,
    index_id: UUID,
    *,
    n_items: int | None = None,
    outcome: str = "done",
) -> AuditEntry:
    """Return the entry of what `access` was used for."""
    # A user's token opens the index, and an index key sent with it is ignored.
    index_key = access.index_key if access.caller.user is None else None
    return AuditEntry(
        caller=access.caller.name,
        key_id=keys.key_id(keys.parse_index_key(index_key), index_id) if index_key else None,
        operation=operation,
        index_id=index_id,
        index_name=access.index_name,
        n_items=n_items,
        request_id=access.caller.request_id,
        outcome=outcome,
    )


async def record_request(
    engine: AsyncEngine, access: IndexAccess, operation: str, index_id: UUID
) -> None:
    """Record in a transaction of its own what a request asks for that is done later."""
    async with stage("audit"), engine.begin() as connection:
        await store.audit.record(connection, entry(access, operation, index_id))


@asynccontextmanager
async def reads(engine: AsyncEngine, access: IndexAccess) -> AsyncIterator[None]:
    """Record what happens in the block: a read before it is answered, or a refusal."""
    try:
        yield
    except errors.AppError as error:
        is_refused = isinstance(error, errors.KeyRejected | errors.Forbidden)
        with suppress(errors.AppError):
            await _record(engine, access, "refused" if is_refused else "failed")
        raise
    if access.caller.is_read:
        await _record(engine, access, "done")


async def _record(engine: AsyncEngine, access: IndexAccess, outcome: str) -> None:
    """Record a use of the index that changes nothing. Neither name nor key has been checked."""
    async with stage("audit"), engine.begin() as connection:
        await store.audit.record(
            connection,
            AuditEntry(
                caller=access.caller.name,
                key_id=None,
                operation=access.caller.operation,
                index_id=None,
                index_name=_storable(access.index_name),
                n_items=None,
                request_id=access.caller.request_id,
                outcome=outcome,
            ),
        )


def _storable(name: str) -> str:
    """Return a name that a client has sent as the log can hold it."""
    # PostgreSQL's text has no U+0000.
    return name[:_MAX_NAME_LENGTH].replace("\0", "\ufffd")
