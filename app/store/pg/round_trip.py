"""Statements that go to the database together, and come back answered together.

psycopg's own pipeline looks at the socket around each of its statements and waits in the
interpreter's time. A search sends three statements and waits for one answer: here they are one
write and one wait (docs/decisions/0072).
"""

import asyncio
import functools
import re
from collections import OrderedDict
from collections.abc import Generator, Iterator, Sequence
from select import POLLIN, POLLOUT, poll
from typing import Any, NamedTuple, Self, TypeAlias

import psycopg
from psycopg import adapt
from psycopg import errors as pg
from psycopg.abc import Buffer, Transformer
from psycopg.adapt import PyFormat
from psycopg.pq import ConnStatus, ExecStatus, Format, PipelineStatus
from psycopg.pq.abc import PGresult

# As many as psycopg keeps.
_MAX_PREPARED = 100
_PLACEHOLDER = re.compile("(%[sb])")
_FORMATS = {"%s": PyFormat.AUTO, "%b": PyFormat.BINARY}


class ScanConnection(psycopg.Connection[Any]):
    """A connection that makes round trips and knows what it has prepared for them."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # The names of prepared statements; the one used last comes last.
        self.prepared: OrderedDict[tuple[bytes, tuple[int, ...]], bytes] = OrderedDict()
        self.n_prepared = 0

    @functools.cached_property
    def transformer(self) -> Transformer:
        """What turns parameters and answers of this connection into bytes and back."""
        return adapt.Transformer(self)


class Answer:
    """What a statement returned; there as soon as its round trip is over."""

    rows: Sequence[tuple[Any, ...]]

    def one(self) -> tuple[Any, ...]:
        """Return the row of a statement that always has one."""
        (row,) = self.rows
        return row


# What the database answers to: a statement, one that it prepares, or one that it forgets.
_Expected: TypeAlias = Answer | tuple[bytes, tuple[int, ...]] | None
# Yields what to wait for on the connection's socket, in the words of poll(2), each time that it has
# to be waited for.
Waits: TypeAlias = Generator[int, None, None]


class _Statement(NamedTuple):
    text: bytes
    values: Sequence[Buffer | None]
    types: tuple[int, ...]
    formats: Sequence[Format]
    answer: Answer


class RoundTrip:
    """Sends the statements of the block when it ends, as one transaction, and waits for the answers to all of them.

    `with` blocks its thread meanwhile, `async with` lets the event loop go on. The statements only
    read: they may be sent twice. Nothing is sent when the block raises. Raises `psycopg.Error` when
    a statement fails or the connection is lost.
    """

    def __init__(self, raw: ScanConnection) -> None:
        self._raw, self._pgconn = raw, raw.pgconn
        self._statements: list[_Statement] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            _wait(self._raw, self.steps())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            await _wait_on_loop(self._raw, self.steps())

    def execute(self, statement: str, parameters: Sequence[Any] = ()) -> Answer:
        """Add a statement with placeholders `%s` or `%b`; its values are adapted as psycopg does it."""
        text, formats = _numbered(statement)
        transformer, answer = self._raw.transformer, Answer()
        values = transformer.dump_sequence(parameters, formats)
        types, pq_formats = transformer.types or (), transformer.formats or []
        self._statements.append(_Statement(text, values, types, pq_formats, answer))
        return answer

    def steps(self) -> Waits:
        """Make the round trip, a step after each wait."""
        try:
            self._read(*(yield from self._exchanged()))
        except pg.InvalidSqlStatementName:
            # psycopg deallocates all that is prepared when it rolls back, and a pooler may hand on
            # another session.
            self._raw.prepared.clear()
            self._read(*(yield from self._exchanged()))

    def _exchanged(self) -> Generator[int, None, tuple[list[_Expected], list[PGresult]]]:
        """Send all and return the answers, with what each of them is an answer to."""
        self._pgconn.enter_pipeline_mode()
        expected = [each for statement in self._statements for each in self._send(statement)]
        self._pgconn.pipeline_sync()
        while self._pgconn.flush():
            yield POLLIN | POLLOUT
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
            self._pgconn.send_query_params(
                statement.text, statement.values, statement.types, statement.formats, Format.BINARY
            )
            yield statement.answer
            return
        prepared, key = self._raw.prepared, (statement.text, statement.types)
        if key not in prepared:
            if len(prepared) >= _MAX_PREPARED:
                self._pgconn.send_close_prepared(prepared.popitem(last=False)[1])
                yield None
            self._raw.n_prepared += 1
            prepared[key] = b"_trip_%d" % self._raw.n_prepared
            self._pgconn.send_prepare(prepared[key], *key)
            yield key
        prepared.move_to_end(key)
        self._pgconn.send_query_prepared(
            prepared[key], statement.values, statement.formats, Format.BINARY
        )
        yield statement.answer

    def _next_result(self) -> Generator[int, None, PGresult]:
        """Return the next answer. Raises `OperationalError` when there will be none."""
        while self._pgconn.status == ConnStatus.OK:
            while self._pgconn.is_busy():
                yield POLLIN
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
        transformer = self._raw.transformer
        for each, result in zip(expected, results, strict=True):
            if result.status == ExecStatus.FATAL_ERROR:
                raise pg.error_from_result(result, self._raw.info.encoding)
            if isinstance(each, Answer):
                transformer.set_pgresult(result, format=Format.BINARY)
                each.rows = transformer.load_rows(0, result.ntuples, tuple)
        # Megabytes, until the next round trip.
        transformer.set_pgresult(None)


def _wait(raw: ScanConnection, waits: Waits) -> None:
    socket, ready = raw.pgconn.socket, poll()
    try:
        for events in waits:
            ready.register(socket, events)
            ready.poll()
    finally:
        _end(raw)


async def _wait_on_loop(raw: ScanConnection, waits: Waits) -> None:
    loop, socket = asyncio.get_running_loop(), raw.pgconn.socket
    try:
        for events in waits:
            ready = loop.create_future()
            loop.add_reader(socket, _wake, ready)
            if events & POLLOUT:
                loop.add_writer(socket, _wake, ready)
            await ready
            if events & POLLOUT:
                loop.remove_writer(socket)
    finally:
        loop.remove_reader(socket)
        loop.remove_writer(socket)
        _end(raw)


def _end(raw: ScanConnection) -> None:
    """Close a connection on which a round trip was not brought to its end: answers may be on their way."""
    if raw.pgconn.pipeline_status != PipelineStatus.OFF:
        raw.close()


def _wake(ready: asyncio.Future[None]) -> None:
    # The socket may be ready for both.
    if not ready.done():
        ready.set_result(None)


@functools.lru_cache(4 * _MAX_PREPARED)
def _numbered(statement: str) -> tuple[bytes, Sequence[PyFormat]]:
    """Return a statement with `$1`, `$2` … for its placeholders, and in which format each of them wants its value."""
    first, *others = _PLACEHOLDER.split(statement)
    formats, parts = [_FORMATS[placeholder] for placeholder in others[::2]], others[1::2]
    return (
        first + "".join(f"${number}{part}" for number, part in enumerate(parts, 1))
    ).encode(), formats
