"""Traces for OpenTelemetry, when the extra `otel` is installed and an endpoint is set.

A span has the route, the status and the request's id; no header, no body, no query.
"""

from importlib.util import find_spec

from litestar.types import Middleware

from app.errors import ConfigurationError
from app.settings import Settings


def check_tracing(settings: Settings) -> None:
    """Raise `ConfigurationError` when an endpoint is set but the extra is not installed."""
    if settings.otel_endpoint is None:
        return
    if find_spec("opentelemetry") is None or find_spec("opentelemetry.sdk") is None:
        raise ConfigurationError(
            "OTEL_EXPORTER_OTLP_ENDPOINT is set: install sealdex[otel], or unset it"
        )


def tracing(settings: Settings) -> list[Middleware]:
    """Return the middleware that traces requests; none when no endpoint is set."""
    check_tracing(settings)
    if settings.otel_endpoint is None:
        return []
    from app.api.around.traces import traced  # noqa: PLC0415  # only there with the extra

    return [traced(settings.otel_endpoint)]
