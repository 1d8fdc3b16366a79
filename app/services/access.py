"""How a request reaches an index: the row, the right to it, and the keys that open its items.

Rows and unwrapped keys are remembered in the process. A remembered row may be out of date, since
other workers change indexes too: every transaction compares its revision, and
`IndexOpener.with_index` starts over with the new row when the two differ. Keys are remembered for a
bounded time, under a keyed hash of the index key.

The key of a user token is found in the database instead, wrapped. What is remembered of a user
holds for one revision of its index; revoking a user makes a new one, and so takes effect at the
next request on every worker.
"""

import asyncio
import functools
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Concatenate, ParamSpec, Protocol, TypeVar
from uuid import UUID

import psycopg.errors as pg
from cachetools import LRUCache, TTLCache
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app import errors, store
from app.crypto import keys, prf, sessions, user_keys
from app.domain import Caller, Index, IndexAccess, Permission, UserToken
from app.engine import header
from app.engine.keyed import KeyedIndex, open_row, profile_of
from app.observe.stages import stage
from app.services import audit
from app.settings import Settings

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")

_ATTEMPTS = 5
_MAX_REMEMBERED_ROWS = 10_000
# A writer seals all of an hour in one session: a reader derives a key for every session it comes
# across.
_SESSION_TTL_S = 3600.0
# How long, and of how many users, it is remembered that there is none of that name. Names are
# never used again.
_REFUSED_TTL_S = 60.0
_MAX_REFUSED_USERS = 10_000
# What a transaction may end in through no fault of its own, and what repeating it repairs.
_TRANSIENT = (pg.DeadlockDetected, pg.SerializationFailure, pg.UndefinedTable)


@dataclass(frozen=True, slots=True)
class Use:
    """One use of an index: the index with its keys, and the request that uses it."""

    keyed: KeyedIndex
    access: IndexAccess
    engine: AsyncEngine

    @property
    def index(self) -> Index:
        """The row of the index."""
        return self.keyed.index

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """Begin a transaction on the index as it is now. Raises `StaleIndex` if it has changed."""
        async with stage("sql"), self.engine.begin() as connection:
            await store.indexes.check_revision(connection, self.index)
            yield connection

    async def record(
        self, connection: AsyncConnection, operation: str, n_items: int | None = None
    ) -> None:
        """Record in the transaction of `connection` what the request has changed."""
        entry = audit.entry(self.access, operation, self.index.id, n_items=n_items)
        await store.audit.record(connection, entry)


class OnIndexes(Protocol):
    """A service whose methods work on an index."""

    _opener: "IndexOpener"


Service = TypeVar("Service", bound=OnIndexes)
Parameters = ParamSpec("Parameters")


def on_index(
    *, needs: Permission | None
) -> Callable[
    [Callable[Concatenate[Service, Use, Parameters], Awaitable[Answer]]],
    Callable[Concatenate[Service, IndexAccess, Parameters], Awaitable[Answer]],
]:
    """Return a decorator that opens the index which a request names, and again if it has changed.

    The method gets a `Use` in place of the `IndexAccess`. It may run several times: it must be one
    transaction. A user must have the permission that it `needs`; None is for what every user of
    the index may do, and for routes that let in none.
    """

    def decorate(
        method: Callable[Concatenate[Service, Use, Parameters], Awaitable[Answer]],
    ) -> Callable[Concatenate[Service, IndexAccess, Parameters], Awaitable[Answer]]:
        async def run(
            service: Service,
            access: IndexAccess,
            /,
            *args: Parameters.args,
            **options: Parameters.kwargs,
        ) -> Answer:
            opener = service._opener  # noqa: SLF001 - what a service on indexes has

            def use(keyed: KeyedIndex) -> Awaitable[Answer]:
                return method(service, Use(keyed, access, opener.engine), *args, **options)

            return await opener.with_index(access, use, needs=needs)

        functools.update_wrapper(run, method)
        return run

    return decorate


class IndexOpener:
    """Finds indexes, checks index keys, and remembers both for a while."""

    def __init__(self, engine: AsyncEngine, settings: Settings) -> None:
        self._engine = engine
        self._settings = settings
        self._names = prf.Prf(secrets.token_bytes(32))
        self._rows: LRUCache[str, Index] = LRUCache(_MAX_REMEMBERED_ROWS)
        self._opened: TTLCache[bytes, KeyedIndex] = TTLCache(
            settings.key_cache_size, settings.key_cache_ttl_s
        )
        self._sessions: TTLCache[bytes, sessions.Session] = TTLCache(
            settings.key_cache_size, _SESSION_TTL_S
        )
        # Not tried again for a while, where the database takes no changes.
        self._left_headerless: TTLCache[UUID, None] = TTLCache(_MAX_REMEMBERED_ROWS, _REFUSED_TTL_S)
        self._refused_users: TTLCache[bytes, None] = TTLCache(_MAX_REFUSED_USERS, _REFUSED_TTL_S)

    @property
    def engine(self) -> AsyncEngine:
        """What transactions on indexes run on."""
        return self._engine

    async def with_index(
        self,
        access: IndexAccess,
        operation: Callable[[KeyedIndex], Awaitable[Answer]],
        *,
        needs: Permission | None,
    ) -> Answer:
        """Return what `operation` returns for the index as it is now; record a read by setting.

        `operation` may run several times: it must be one transaction, and raise `StaleIndex` when
        it finds the index changed. A user must have the permission that it `needs`; None is for
        what every user of the index may do, and for routes that let in none. Raises `NotFound`,
        `KeyRejected`, `Forbidden`.
        """
        if not self._settings.audit_reads:
            return await self._attempts(access, operation, needs)
        async with audit.reads(self._engine, access):
            return await self._attempts(access, operation, needs)

    async def _attempts(
        self,
        access: IndexAccess,
        operation: Callable[[KeyedIndex], Awaitable[Answer]],
        needs: Permission | None,
    ) -> Answer:
        for attempt in range(_ATTEMPTS):
            remembered = self._rows.get(access.index_name)
            try:
                async with stage("unwrap"):
                    opened = await self.open(access)
                if needs is not None and needs not in opened.permissions:
                    raise errors.Forbidden(f"permission denied: this API key may not {needs} items")
                return await operation(opened)
            except store.indexes.StaleIndex:
                self._rows.pop(access.index_name, None)
            except errors.InvalidInput:
                # Refused for what an old row says? Only the row as it is now has the right to.
                if remembered is None or await self._read_row(access.index_name) == remembered:
                    raise
            except (DBAPIError, pg.Error) as error:
                if not isinstance(getattr(error, "orig", error), _TRANSIENT):
                    raise
                self._rows.pop(access.index_name, None)
            await asyncio.sleep(0.01 * attempt)
        raise errors.Unavailable("The index keeps changing; try again")

    async def open(self, access: IndexAccess) -> KeyedIndex:
        """Return the index that `access` names. Raises `NotFound`, `KeyRejected`, `Forbidden`."""
        if access.caller.user is not None:
            return await self._open_for_user(access.index_name, access.caller.user)
        # Only the key can tell that a remembered row is not of today's index: without one, it may
        # be of a deleted one.
        remembered = self._rows.get(access.index_name) if access.index_key else None
        index = remembered or await self._read_row(access.index_name)
        if not access.index_key:
            raise errors.KeyRejected(f"Index '{index.name}' needs its index_key")
        kek = keys.parse_index_key(access.index_key)
        try:
            keyed = self._unwrap(index, kek)
        except errors.KeyRejected:
            # The remembered row may be that of an index which has been replaced under the same
            # name.
            if remembered is None:
                raise
            keyed = self._unwrap(await self._read_row(access.index_name), kek)
        return keyed if keyed.keys.demands_header else await self._with_header(keyed, kek)

    async def _with_header(self, keyed: KeyedIndex, kek: bytes) -> KeyedIndex:
        """Give an index of before headers its header, and a wrapped key that demands one.

        Raises `StaleIndex` when that is done, or done by another worker: the row is a new one then.
        """
        index = keyed.index
        if index.id in self._left_headerless:
            return keyed
        dek = keys.unwrap_dek(kek, index.wrapped_dek, index.id)
        sealed = header.seal(keyed.keys, header.Header.of(index))
        wrapped = keys.wrap_dek(kek, dek, index.id)
        try:
            async with self._engine.begin() as connection:
                await store.indexes.add_header(connection, index, sealed, wrapped)
        except errors.Unavailable as error:
            # A database that takes no changes can still be read.
            logger.warning("index %s got no sealed header: %s", index.id, error)
            self._left_headerless[index.id] = None
            return keyed
        raise store.indexes.StaleIndex

    async def visible_names(self, caller: Caller) -> list[str]:
        """Return the names of the indexes that `caller` may see. Raises `Forbidden`."""
        async with self._engine.begin() as connection:
            if caller.user is None:
                return list(await store.indexes.names(connection))
            found = await store.users.by_id(connection, caller.user.user_id)
        if found is None:
            raise _no_right()
        return [found[1].name]

    async def check_user(self, token: UserToken) -> None:
        """Raise `Forbidden` for the token of a user that was revoked, at little or no cost.

        A user that is remembered passes, until a transaction finds its index changed.
        """
        await self._index_of(token)

    async def _open_for_user(self, name: str, token: UserToken) -> KeyedIndex:
        """Return a user's own index. Every other name is `Forbidden`, if there is one or not."""
        opened = await self._index_of(token)
        if opened.index.name != name:
            raise _no_right()
        return opened

    async def _index_of(self, token: UserToken) -> KeyedIndex:
        """Return a user's own index, remembered or as it is now. Raises `Forbidden`."""
        if token.user_id in self._refused_users:
            raise _no_right()
        digest = self._names.digest(token.user_id + token.user_key)
        opened = self._opened.get(digest)
        if opened is None or opened.index != self._rows.get(opened.index.name):
            opened = self._opened[digest] = await self._unwrap_for_user(token)
        return opened

    async def _unwrap_for_user(self, token: UserToken) -> KeyedIndex:
        """Return the index of a user with the keys that its token unwraps. Raises `Forbidden`."""
        async with self._engine.begin() as connection:
            found = await store.users.by_id(connection, token.user_id)
        if found is None:
            self._refused_users[token.user_id] = None
            raise _no_right()
        user, index = found
        self._rows[index.name] = index
        # A key that does not unwrap is refused even if another would do: it grants a permission.
        unwrapped = {
            permission: user_keys.unwrap(token, wrapped, index.id, permission)
            for permission, wrapped in user.wrapped_keys.items()
        }
        demands_header = self._settings.require_headers or any(
            map(user_keys.demands_header, user.wrapped_keys.values())
        )
        if Permission.READ in unwrapped:
            index_keys = keys.IndexKeys(
                unwrapped[Permission.READ], index.id, demands_header=demands_header
            )
        else:
            index_keys = self._writer_keys(
                index, unwrapped[Permission.WRITE], demands_header=demands_header
            )
        return open_row(index, index_keys, frozenset(unwrapped))

    def _writer_keys(
        self, index: Index, write_key: bytes, *, demands_header: bool
    ) -> keys.WriterKeys:
        name = self._names.digest(write_key)
        index_keys = keys.WriterKeys(
            write_key, index.id, self._sessions.get(name), demands_header=demands_header
        )
        self._sessions.setdefault(name, index_keys.session)
        return index_keys

    def forget_expired(self) -> None:
        """Let go of the keys whose time is over; else they would stay until the next request."""
        self._opened.expire()
        self._sessions.expire()

    async def _read_row(self, name: str) -> Index:
        if not name:
            raise errors.InvalidInput("index_name cannot be empty")
        # PostgreSQL's text cannot hold U+0000, so no index has such a name.
        if "\0" not in name:
            async with self._engine.begin() as connection:
                index = await store.indexes.by_name(connection, name)
            if index is not None:
                self._rows[name] = index
                return index
        raise errors.NotFound(f"Index '{name}' does not exist")

    def _unwrap(self, index: Index, kek: bytes) -> KeyedIndex:
        # The id too: a wrapped key copied from another index must fail, not find what is remembered
        # of that index.
        name = self._names.digest(kek + index.id.bytes + index.wrapped_dek)
        opened = self._opened.get(name)
        if opened is not None and opened.index.revision == index.revision:
            return opened
        if opened is not None:
            opened = _with_row(opened, index)
        else:
            dek = _unwrap_dek(index, kek)
            demands_header = self._settings.require_headers or keys.demands_header(
                index.wrapped_dek
            )
            index_keys = keys.IndexKeys.derive(dek, index.id, demands_header=demands_header)
            opened = open_row(index, index_keys)
        self._opened[name] = opened
        return opened


def _no_right() -> errors.Forbidden:
    """Return one answer for all that is not the user's: names must not be probed."""
    return errors.Forbidden("permission denied: this API key has no right to this index")


def _unwrap_dek(index: Index, kek: bytes) -> bytes:
    try:
        return keys.unwrap_dek(kek, index.wrapped_dek, index.id)
    except errors.KeyRejected as error:
        raise errors.KeyRejected(f"Wrong index_key for index '{index.name}'") from error


def _with_row(opened: KeyedIndex, index: Index) -> KeyedIndex:
    before = opened.index
    if (before.sealed_encoder, before.sealed_next_encoder) == (
        index.sealed_encoder,
        index.sealed_next_encoder,
    ):
        header.check(index, opened.keys)
        return replace(opened, index=index, profile=profile_of(index))
    return open_row(index, opened.keys, opened.permissions)
