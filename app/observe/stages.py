"""Where the time of a request goes: a stopwatch by stages, in a context variable.

`with stage("open"): …` adds to the stage's time, if a request is being timed. Stages may nest: the
inner one's time counts for it alone, so the stages of a request add up to its duration.
"""

import functools
from collections.abc import Callable
from contextvars import ContextVar
from time import perf_counter
from types import TracebackType
from typing import ParamSpec, TypeVar

Parameters = ParamSpec("Parameters")
Answer = TypeVar("Answer")

# Until the body is read: routing, guards, dependencies.
DISPATCH = "dispatch"
# Every search waits for its turn, if only for microseconds, and nothing else does.
SCAN_QUEUE = "wait"
# After that, what no stage is named for.
OTHER = "other"
STAGES = (
    DISPATCH,
    "receive",
    "parse",
    "unwrap",
    "sketch",
    SCAN_QUEUE,
    "pool",
    "sql",
    "seal",
    "open",
    "rerank",
    "encode",
    "audit",
    OTHER,
)


class Stopwatch:
    """The stages of one request, in seconds."""

    __slots__ = ("_since", "_stack", "request_id", "seconds", "start")

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.seconds: dict[str, float] = {}
        self._stack = [DISPATCH]
        self.start = self._since = perf_counter()

    def enter(self, name: str) -> None:
        """Begin a stage; the one around it pauses."""
        self._turn()
        self._stack.append(name)

    def leave(self) -> None:
        """End the innermost stage; the one around it goes on."""
        self._turn()
        if len(self._stack) > 1:
            self._stack.pop()

    def dispatched(self) -> None:
        """End `DISPATCH`; what is outside of every stage is `OTHER` from now on."""
        self._turn()
        self._stack[0] = OTHER

    def total(self) -> float:
        """Return the seconds since the start; the running stage's time is up to date then."""
        self._turn()
        return self._since - self.start

    def _turn(self) -> None:
        now = perf_counter()
        name = self._stack[-1]
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
        self._since = now


current: ContextVar[Stopwatch | None] = ContextVar("current_stopwatch", default=None)


class stage:  # noqa: N801  # reads as a statement: with stage("sql")
    """Counts the time of its block for the stage `name` of the current request."""

    __slots__ = ("_name", "_watch")

    def __init__(self, name: str) -> None:
        self._name = name
        self._watch: Stopwatch | None = None

    def __enter__(self) -> None:
        self._watch = watch = current.get()
        if watch is not None:
            watch.enter(self._name)

    async def __aenter__(self) -> None:
        """Begin, in a statement that opens something asynchronous as well."""
        self.__enter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End."""
        self.__exit__(kind, error, traceback)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._watch is not None:
            self._watch.leave()


def timed(name: str) -> Callable[[Callable[Parameters, Answer]], Callable[Parameters, Answer]]:
    """Return a decorator that makes each call of a function a stage."""

    def decorate(function: Callable[Parameters, Answer]) -> Callable[Parameters, Answer]:
        @functools.wraps(function)
        def run(*args: Parameters.args, **options: Parameters.kwargs) -> Answer:
            with stage(name):
                return function(*args, **options)

        return run

    return decorate
