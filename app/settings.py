"""Everything the service can be told.

One field per variable. `SEALDEX_ROOT_KEY` fills `root_key`; names that other services share
(`DATABASE_URL`, `PORT`, …) have no prefix and are listed in `_VARIABLES`. `app.configuration` reads
them. A field that is left out of the `repr` is a secret: neither its value nor a wrong one is ever
shown.
"""

import os
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Self

import msgspec
from msgspec import Meta, inspect

from app.errors import ConfigurationError

_PREFIX = "SEALDEX_"
PREFIXES = (_PREFIX, "CYBORGDB_SERVICE_")

# Field → variables that fill it, first one set wins. Every other field is read from its prefixed
# name.
_VARIABLES: dict[str, tuple[str, ...]] = {
    "host": ("HOST",),
    "port": ("PORT",),
    "database_url": ("DATABASE_URL",),
    "retrain_threshold": ("RETRAIN_THRESHOLD",),
    "auto_train_disabled": ("AUTO_TRAIN_DISABLED",),
    "key_cache_ttl_s": ("INDEX_KEK_CACHE_TTL_SECONDS",),
    "root_key": ("SEALDEX_ROOT_KEY", "CYBORGDB_SERVICE_ROOT_KEY"),
    "log_level": ("SEALDEX_LOG_LEVEL", "CYBORGDB_SERVICE_LOG_LEVEL"),
    "otel_endpoint": ("OTEL_EXPORTER_OTLP_ENDPOINT",),
    "ssl_cert_path": ("SSL_CERT_PATH",),
    "ssl_key_path": ("SSL_KEY_PATH",),
}


# Beside its pool, a worker has a connection for trainings.
_OF_TRAININGS = 1


class LogFormat(StrEnum):
    """How a line of the log looks: an object for machines, or text for people."""

    JSON = "JSON"
    TEXT = "TEXT"


_Natural = Annotated[int, Meta(ge=0)]
_Positive = Annotated[int, Meta(ge=1)]
_Seconds = Annotated[float, Meta(ge=0, lt=1e9)]


class LogLevel(StrEnum):
    """The least severity that is logged."""

    DEBUG = "DEBUG"
    INFO = "INFO"
    WARNING = "WARNING"
    ERROR = "ERROR"
    CRITICAL = "CRITICAL"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the service was told; read once in `app.cli` and passed on as a value."""

    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=1, le=65_535)] = 8000
    workers: _Natural = 0
    database_url: str | None = field(default=None, repr=False)
    maintenance_database_url: str | None = field(default=None, repr=False)
    data_dir: Path = Path("sealdex-data")
    root_key: str | None = field(default=None, repr=False)
    allow_open: bool = False
    log_level: LogLevel = LogLevel.INFO
    log_format: LogFormat = LogFormat.JSON
    max_logged_failures: _Natural = 60
    server_timing: bool = False
    metrics_open: bool = False
    metrics_dir: Path | None = None
    otel_endpoint: str | None = None
    ssl_cert_path: Path | None = None
    ssl_key_path: Path | None = None

    pool_size: _Positive = 8
    pool_timeout_s: Annotated[float, Meta(gt=0, lt=1e9)] = 10.0
    statement_timeout_ms: _Natural = 60_000
    prepare_threshold: int = 5
    migrate: bool = False

    audit_reads: bool = False
    max_audited_refusals: _Natural = 60

    require_headers: bool = False
    key_cache_ttl_s: _Seconds = 60.0
    key_cache_size: _Positive = 256

    max_body_bytes: _Positive = 256 * 1024 * 1024
    max_small_body_bytes: _Positive = 16 * 1024 * 1024
    max_body_values: _Positive = 2_000_000
    max_arriving_bodies: _Positive = 64
    max_held_body_bytes: _Positive = 512 * 1024 * 1024
    max_answer_bytes: _Positive = 64 * 1024 * 1024
    max_batch_items: _Positive = 100_000
    max_metadata_depth: Annotated[int, Meta(ge=1, le=500)] = 250
    max_query_vectors: _Positive = 10_000
    max_results: _Positive = 500_000
    max_top_k: _Positive = 10_000
    max_requests_in_work: _Positive = 64
    max_connections: _Positive = 1_000
    max_connections_per_address: _Positive = 250
    max_pipelined_requests: _Positive = 16
    max_head_bytes: Annotated[int, Meta(ge=1_024)] = 64 * 1024
    idle_timeout_s: Annotated[float, Meta(gt=0, lt=1e6)] = 75.0
    receive_timeout_s: Annotated[float, Meta(gt=0, lt=1e6)] = 30.0
    request_timeout_s: Annotated[float, Meta(gt=0, lt=1e6)] = 300.0
    rate_limit_per_s: Annotated[float, Meta(ge=0, le=1e6)] = 0.0
    rate_limit_burst: _Positive = 100
    cors_origins: str = ""
    allowed_hosts: str = ""

    protocol_version: str = "0.17.1"
    legacy_describe: bool = False

    sketch_bits: Annotated[int, Meta(ge=1, le=64_000)] | None = None
    sketch_noise: Annotated[float, Meta(ge=0, lt=0.5)] = 0.10
    retrain_threshold: _Positive = 10_000
    auto_train_disabled: bool = False
    target_recall: Annotated[float, Meta(ge=0.5, le=1)] = 0.95
    max_trainings: _Positive = 1
    training_memory_mb: _Positive = 1024
    drift_share: Annotated[float, Meta(gt=0)] = 0.3

    models_dir: Path | None = None
    # None: as long as the hub's own switch, HF_HUB_OFFLINE, is not set.
    allow_model_downloads: bool | None = None
    max_loaded_models: _Positive = 2
    max_queued_texts: _Positive = 4096
    embedding_threads: _Natural = 0

    def n_workers(self) -> int:
        """Return how many worker processes there are."""
        return self.workers or len(os.sched_getaffinity(0))

    def n_connections(self) -> int:
        """Return how many connections to the database all workers may have at a time."""
        return self.n_workers() * (self.pool_size + _OF_TRAININGS)

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> Self:
        """Read and convert the variables. Raises `ConfigurationError` naming the variable."""
        values: dict[str, Any] = {}
        for item in fields(cls):
            for variable in variables_of(item.name):
                # An empty variable counts as unset, as compose files produce them.
                if env.get(variable):
                    values[item.name] = convert(item, variable, env[variable])
                    break
        return cls(**values)


def variables_of(name: str) -> tuple[str, ...]:
    """Return the environment variables that fill the field `name`, strongest first."""
    return _VARIABLES.get(name, (_PREFIX + name.upper(),))


def convert(item: Field[Any], variable: str, text: str, source: str = "environment") -> Any:
    """Return `text` as the value of a field. Raises `ConfigurationError` saying what is allowed."""
    if item.type in (str, str | None, Path, Path | None):
        return text if item.type in (str, str | None) else Path(text)
    is_name = isinstance(item.type, type) and issubclass(item.type, StrEnum)
    try:
        return msgspec.convert(text.upper() if is_name else text, item.type, strict=False)
    except msgspec.ValidationError:
        shown = f"={text!r}" if item.repr else ""
        raise ConfigurationError(
            f"{variable}{shown} ({source}): must be {_allowed(item.type)}"
        ) from None


def _allowed(wanted: Any) -> str:
    """Return in words which values a type has."""
    kind = inspect.type_info(wanted)
    if isinstance(kind, inspect.UnionType):
        kind = next(one for one in kind.types if not isinstance(one, inspect.NoneType))
    if isinstance(kind, inspect.IntType):
        return "a whole number" + _range(kind)
    if isinstance(kind, inspect.FloatType):
        return "a number" + _range(kind)
    if isinstance(kind, inspect.EnumType):
        return "one of " + ", ".join(kind.cls)
    return "true or false"


def _range(kind: inspect.IntType | inspect.FloatType) -> str:
    limits = {"from": kind.ge, "above": kind.gt, "to": kind.le, "below": kind.lt}
    parts = [f"{word} {limit:,}" for word, limit in limits.items() if limit is not None]
    return "".join(f" {part}" for part in parts).replace(",", "")
