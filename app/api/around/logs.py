"""The log: one JSON object a line, or text for people. Either names the request it is about."""

import logging
from datetime import UTC, datetime
from time import monotonic
from typing import Any

import msgspec
from litestar.logging import LoggingConfig
from litestar.types import Logger, Scope

from app.api.around.errors import UNLOGGED
from app.api.around.headers import request_id
from app.observe.stages import current
from app.settings import LogFormat, Settings

_MINUTE_S = 60.0
_MAX_TRACEBACK = 16 * 1024


class JSONFormatter(logging.Formatter):
    """Writes a record as one line of JSON, with the request's id and the traceback, if any."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (watch := current.get()) is not None:
            line["request_id"] = watch.request_id
        if record.exc_info:
            line["traceback"] = _shortened(self.formatException(record.exc_info))
        return msgspec.json.encode(line).decode()


def _shortened(traceback: str) -> str:
    """Return a traceback without its middle, if it is long."""
    if len(traceback) <= _MAX_TRACEBACK:
        return traceback
    half = _MAX_TRACEBACK // 2
    return f"{traceback[:half]}\n…\n{traceback[-half:]}"


class TextFormatter(logging.Formatter):
    """Writes a record as a line of text, its traceback below it."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        watch = current.get()
        record.request_id = f" [{watch.request_id}]" if watch else ""
        return super().format(record)

    def formatException(self, ei: Any) -> str:  # noqa: N802 - the library's name
        """Return the traceback, shortened."""
        return _shortened(super().formatException(ei))


def logging_config(settings: Settings) -> LoggingConfig:
    """Return how the service logs."""
    ours: dict[str, Any] = {"level": settings.log_level.value, "handlers": [], "propagate": True}
    return LoggingConfig(
        # Libraries speak when something is wrong; what they say at lower levels may hold parts of
        # statements.
        root={"level": "WARNING", "handlers": ["console"]},
        loggers={"app": ours, "litestar": ours},
        formatters={
            LogFormat.JSON: {"()": JSONFormatter},
            LogFormat.TEXT: {
                "()": TextFormatter,
                "format": "%(asctime)s %(levelname)s %(name)s%(request_id)s %(message)s",
            },
        },
        handlers={
            "console": {"class": "logging.StreamHandler", "formatter": settings.log_format.value}
        },
        log_exceptions="always",
        exception_logging_handler=FailureLog(settings.max_logged_failures),
        disable_stack_trace=UNLOGGED,
    )


class FailureLog:
    """Logs requests that failed, so many a minute: anybody can repeat a request that does."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._ends_at = 0.0
        self._n_failed = 0

    def __call__(self, logger: Logger, scope: Scope, traceback: list[str]) -> None:
        """Log what went wrong and where, and of the request only its name and route."""
        del traceback  # logged as exc_info
        self._begin_minute(logger)
        self._n_failed += 1
        if self._n_failed <= self._limit:
            route = scope.get("path_template") or "no route"
            logger.error("request %s to %s failed", request_id(scope), route, exc_info=True)  # noqa: LOG014  # called while handling it

    def _begin_minute(self, logger: Logger) -> None:
        if monotonic() < self._ends_at:
            return
        n_more = self._n_failed - self._limit
        if n_more > 0:
            logger.error("%d more requests failed in the minute before", n_more)
        self._ends_at, self._n_failed = monotonic() + _MINUTE_S, 0
