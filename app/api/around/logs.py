"""The log: one JSON object a line, or text for people. Either names the request it is about."""

import logging
from datetime import UTC, datetime
from typing import Any

import msgspec
from litestar.logging import LoggingConfig
from litestar.types import Logger, Scope

from app.api.around.errors import UNLOGGED
from app.api.around.headers import request_id
from app.observe.stages import current
from app.settings import LogFormat, Settings


class JSONFormatter(logging.Formatter):
    """Writes a record as one line of JSON: time, level, logger, message, and request id and traceback, if any."""

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
            line["traceback"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line).decode()


class TextFormatter(logging.Formatter):
    """Writes a record as a line of text, its traceback below it."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        watch = current.get()
        record.request_id = f" [{watch.request_id}]" if watch else ""
        return super().format(record)


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
        exception_logging_handler=log_exception,
        disable_stack_trace=UNLOGGED,
    )


def log_exception(logger: Logger, scope: Scope, traceback: list[str]) -> None:
    """Log what went wrong and where, and of the request only its name and route."""
    del traceback  # logged as exc_info
    route = scope.get("path_template") or "no route"
    logger.error("request %s to %s failed", request_id(scope), route, exc_info=True)  # noqa: LOG014  # called while handling it
