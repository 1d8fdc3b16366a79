"""What a setting costs those who search: candidates, and time."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import UUID

import numpy as np
import psycopg

from app.crypto.keys import IndexKeys
from app.domain import Matrix, Metric
from app.engine import rank
from app.server.postgres import EmbeddedPostgres
from tests.attacks.corpus import Corpus
from tests.attacks.stolen import StolenIndex, as_signs, item_keys
from tests.attacks.structure import nearest_rows

POOLS = (100, 200, 500, 1000)
_TOP_K = 10
_N_QUERIES = 500
_N_TIMED = 60


def recall_in_pools(stolen: StolenIndex, corpus: Corpus) -> dict[int, float]:
    """Share of the true 10 nearest of a query that are among the nearest sketches, by size of the
    pool; no lists.
    """
    queries = corpus.queries[:_N_QUERIES]
    true = nearest_rows(queries, corpus.vectors, _TOP_K)
    sketches = as_signs(stolen.encoder.encode_queries(queries))
    recall = {}
    for pool in POOLS:
        found = nearest_rows(sketches, stolen.signs, pool)
        recall[pool] = float(
            np.mean([np.isin(one, other).mean() for one, other in zip(true, found, strict=True)])
        )
    return recall


@contextmanager
def database() -> Iterator[psycopg.Connection]:
    """A PostgreSQL of our own with pgvector, and nothing in it."""
    with TemporaryDirectory(prefix="sealdex-price-") as directory:
        Path(directory).chmod(0o755)
        with (
            EmbeddedPostgres(Path(directory)) as server,
            psycopg.connect(server.dsn, autocommit=True) as connection,
        ):
            connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
            yield connection


def latency_ms(
    connection: psycopg.Connection, stolen: StolenIndex, corpus: Corpus
) -> dict[int, float]:
    """Median time of a search in milliseconds by pool: scan of a quarter of 256 lists, opening the
    pool, reranking.

    The share of flips changes the pool that is needed, not the time that a pool takes.
    """
    keys = item_keys("one", len(corpus.vectors))
    sealer = IndexKeys.derive(bytes(32), UUID(int=1)).vectors
    bits = stolen.setting.bits
    _fill(connection, stolen, keys, sealer.seal_rows(keys, corpus.vectors))
    queries = corpus.queries[:_N_TIMED]
    sketches = [
        "".join(str(int(one > 0)) for one in row)
        for row in as_signs(stolen.encoder.encode_queries(queries))
    ]
    statement = f"SELECT key, sealed FROM priced ORDER BY sketch <~> %s::bit({bits}) LIMIT %s"  # noqa: S608
    times: dict[int, list[float]] = {pool: [] for pool in POOLS}
    for query, sketch in zip(queries, sketches, strict=True):
        for pool, measured in times.items():
            start = time.perf_counter()
            rows = connection.execute(statement, (sketch, pool), binary=True).fetchall()
            item_keys_of, sealed = [row[0] for row in rows], [row[1] for row in rows]
            vectors = sealer.open_rows(item_keys_of, sealed, np.dtype(np.float32), len(query))
            rank.nearest(Metric.COSINE, query, vectors, _TOP_K)
            measured.append(time.perf_counter() - start)
    return {pool: 1000 * float(np.median(measured)) for pool, measured in times.items()}


def _fill(
    connection: psycopg.Connection, stolen: StolenIndex, keys: list[bytes], sealed: list[bytes]
) -> None:
    bits = stolen.setting.bits
    connection.execute("DROP TABLE IF EXISTS priced")
    connection.execute(
        f"CREATE TABLE priced (key bytea, sketch bit({bits}), sealed bytea STORAGE EXTERNAL)"
    )
    packed: Matrix = (stolen.signs > 0).astype(np.uint8)
    with connection.cursor().copy("COPY priced FROM STDIN") as copy:
        for key, row, value in zip(keys, packed, sealed, strict=True):
            copy.write_row((key, "".join(map(str, row)), value))
    connection.execute("SET maintenance_work_mem = '256MB'")
    connection.execute(
        "CREATE INDEX ON priced USING ivfflat (sketch bit_hamming_ops) WITH (lists = 256)"
    )
    connection.execute("SET ivfflat.probes = 64")
