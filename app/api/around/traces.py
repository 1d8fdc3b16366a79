"""Spans by the OpenTelemetry SDK; imported only when the extra `otel` is installed."""

from litestar.enums import ScopeType
from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, Message, Receive, Scope, Send
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.propagate import extract
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.trace import TracerProvider as AnyTracerProvider

from app.api.around.headers import request_id
from app.observe.figures import NO_ROUTE


def traced(endpoint: str) -> "Traces":
    """Return the middleware whose spans go to the collector at `endpoint`."""
    provider = TracerProvider(resource=Resource.create({"service.name": "sealdex"}))
    provider.add_span_processor(
        BatchSpanProcessor(OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces"))
    )
    return Traces(provider)


class Traces(ASGIMiddleware):
    """One span a request, below the caller's if it says which (traceparent)."""

    scopes = (ScopeType.HTTP,)

    def __init__(self, provider: AnyTracerProvider) -> None:
        self._tracer = provider.get_tracer("sealdex")

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        """Pass the request on inside its span."""
        headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        parent = extract(
            {name: headers[name] for name in ("traceparent", "tracestate") if name in headers}
        )
        route = scope.get("path_template") or NO_ROUTE
        with self._tracer.start_as_current_span(
            route,
            context=parent,
            kind=SpanKind.SERVER,
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            span.set_attribute("http.route", route)
            span.set_attribute("sealdex.request_id", request_id(scope))

            async def noting_send(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.set_attribute("http.response.status_code", message["status"])
                    if message["status"] >= 500:  # noqa: PLR2004  # a server's error
                        span.set_status(StatusCode.ERROR)
                await send(message)

            await next_app(scope, receive, noting_send)
