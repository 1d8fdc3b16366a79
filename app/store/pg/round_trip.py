"""Statements that go to the database together, and come back answered together.

psycopg's own pipeline looks at the socket around each of its statements and waits in the
interpreter's time. A search sends three statements and waits for one answer: here they are one
write and one wait (docs/decisions/0072).
"""

import asyncio
import functools
import re
from collections.abc import Generator, Iterator, Sequence
from typing import Any, NamedTuple, Self, TypeAlias

import psycopg
from psycopg import errors as pg
from psycopg.abc import Buffer
from psycopg.adapt import PyFormat
from psycopg.pq import ConnStatus, ExecStatus, Format, PipelineStatus
from psycopg.pq.abc import PGresult

from app.store.pg.connection import SET_TIMEOUT, Connection

# As many as psycopg keeps.
_MAX_PREPARED = 100
_PLACEHOLDER = re.compile("(%[sb])")
_FORMATS = {"%s": PyFormat.AUTO, "%b": PyFormat.BINARY}


class Answer:
    """What a statement returned; there as soon as its round trip is over."""

    rows: Sequence[tuple[Any, ...]]

    def one(self) -> tuple[Any, ...]:
        """Return the row of a statement that always has one."""
        (row,) = self.rows
        return row


# What the database answers to: a statement, one that it prepares, or one that it forgets.
_Expected: TypeAlias = Answer | tuple[bytes, tuple[int, ...]] | None


class _Wait(NamedTuple):
    """What a round trip waits for on the connection's socket."""

    for_writing: bool


# Yields each time that the socket has to be waited for.
_Waits: TypeAlias = Generator[_Wait, None, None]
_TO_READ = _Wait(for_writing=False)
_TO_WRITE_OR_READ = _Wait(for_writing=True)


class _Statement(NamedTuple):
    text: bytes
    values: Sequence[Buffer | None]
    types: tuple[int, ...]
    formats: Sequence[Format]
    answer: Answer


class RoundTrip:
    """Sends the statements of the block as one transaction when it ends, and waits for the answers.

    The statements only read: they may be sent twice. Nothing is sent when the block raises. Each
    statement has the statement timeout of the settings, behind a pooler, too. Raises
    `psycopg.Error` when a statement fails or the connection is lost.
    """

    def __init__(self, raw: Connection) -> None:
        self._raw, self._pgconn = raw, raw.pgconn
        self._statements: list[_Statement] = []
        if raw.is_pooled:
            self.execute(SET_TIMEOUT, (str(raw.statement_timeout_ms),))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            await self._make()

    def execute(self, statement: str, parameters: Sequence[Any] = ()) -> Answer:
        """Add a statement with placeholders `%s` or `%b`; psycopg adapts its values."""
        text, formats = _numbered(statement)
        transformer, answer = self._raw.transformer, Answer()
        values = transformer.dump_sequence(parameters, formats)
        types, pq_formats = transformer.types or (), transformer.formats or []
        self._statements.append(_Statement(text, values, types, pq_formats, answer))
        return answer

    async def _make(self) -> None:
        try:
            await _wait(self._raw, self._steps())
        finally:
            # Answers may still be on their way on a connection that was left in the middle.
            if self._pgconn.pipeline_status != PipelineStatus.OFF:
                self._pgconn.finish()

    def _steps(self) -> _Waits:
        """Make the round trip, a step after each wait."""
        try:
            self._read(*(yield from self._exchanged()))
        except pg.InvalidSqlStatementName:
            # psycopg deallocates all that is prepared when it rolls back, and a pooler may hand on
            # another session.
            self._raw.prepared.clear()
            self._read(*(yield from self._exchanged()))

    def _exchanged(self) -> Generator[_Wait, None, tuple[list[_Expected], list[PGresult]]]:
        """Send all and return the answers, with what each of them is an answer to."""
        self._pgconn.enter_pipeline_mode()
        expected = [each for statement in self._statements for each in self._send(statement)]
        self._pgconn.pipeline_sync()
        while self._pgconn.flush():
            yield _TO_WRITE_OR_READ
            # The database may have to get rid of answers before it takes more.
            self._pgconn.consume_input()
        results: list[PGresult] = []
        # One more for the mark at the end.
        while len(results) <= len(expected):
            results.append((yield from self._next_result()))
        self._pgconn.exit_pipeline_mode()
        return expected, results[:-1]

    def _send(self, statement: _Statement) -> Iterator[_Expected]:
        """Send a statement, prepared if it may be, and yield what the database will answer to."""
        if self._raw.prepare_threshold is None:
            text, values, types, formats, answer = statement
            self._pgconn.send_query_params(text, values, types, formats, Format.BINARY)
            yield answer
            return
        key = (statement.text, statement.types)
        if key not in self._raw.prepared:
            yield from self._prepare(key)
        self._raw.prepared.move_to_end(key)
        self._pgconn.send_query_prepared(
            self._raw.prepared[key], statement.values, statement.formats, Format.BINARY
        )
        yield statement.answer

    def _prepare(self, key: tuple[bytes, tuple[int, ...]]) -> Iterator[_Expected]:
        """Prepare a statement, in the place of the one that was not used for longest."""
        raw = self._raw
        if len(raw.prepared) >= _MAX_PREPARED:
            self._pgconn.send_close_prepared(raw.prepared.popitem(last=False)[1])
            yield None
        raw.n_prepared += 1
        raw.prepared[key] = b"%s%d" % (raw.name_prefix, raw.n_prepared)
        self._pgconn.send_prepare(raw.prepared[key], *key)
        yield key

    def _next_result(self) -> Generator[_Wait, None, PGresult]:
        """Return the next answer. Raises `OperationalError` when there will be none."""
        while self._pgconn.status == ConnStatus.OK:
            while self._pgconn.is_busy():
                yield _TO_READ
                self._pgconn.consume_input()
            # Behind each answer comes None.
            if (result := self._pgconn.get_result()) is not None:
                return result
        raise psycopg.OperationalError("the connection is lost")

    def _read(self, expected: Sequence[_Expected], results: Sequence[PGresult]) -> None:
        """Fill in the answers. Raises the first error among them."""
        for each, result in zip(expected, results, strict=True):
            if isinstance(each, tuple) and result.status != ExecStatus.COMMAND_OK:
                self._raw.prepared.pop(each, None)
        for each, result in zip(expected, results, strict=True):
            if result.status == ExecStatus.FATAL_ERROR:
                raise pg.error_from_result(result, self._raw.info.encoding)
            if isinstance(each, Answer):
                each.rows = self._loaded(result)
        # Until the next round trip, it would keep megabytes.
        self._raw.transformer.set_pgresult(None)

    def _loaded(self, result: PGresult) -> Sequence[tuple[Any, ...]]:
        transformer = self._raw.transformer
        transformer.set_pgresult(result, format=Format.BINARY)
        return transformer.load_rows(0, result.ntuples, tuple)


async def _wait(raw: Connection, waits: _Waits) -> None:
    """Run `waits` to its end, and let the event loop go on whenever it waits."""
    loop, socket = asyncio.get_running_loop(), raw.pgconn.socket
    try:
        for wait in waits:
            ready = loop.create_future()
            loop.add_reader(socket, _wake, ready)
            if wait.for_writing:
                loop.add_writer(socket, _wake, ready)
            await ready
            if wait.for_writing:
                loop.remove_writer(socket)
    finally:
        loop.remove_reader(socket)
        loop.remove_writer(socket)


def _wake(ready: asyncio.Future[None]) -> None:
    # The socket may be ready for both.
    if not ready.done():
        ready.set_result(None)


@functools.lru_cache(4 * _MAX_PREPARED)
def _numbered(statement: str) -> tuple[bytes, Sequence[PyFormat]]:
    """Return a statement with `$1`, `$2` … for its placeholders, and each one's format."""
    first, *others = _PLACEHOLDER.split(statement)
    formats, parts = [_FORMATS[placeholder] for placeholder in others[::2]], others[1::2]
    numbered = "".join(f"${number}{part}" for number, part in enumerate(parts, 1))
    return (first + numbered).encode(), formats
