import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa

from app import errors
from app.settings import Settings
from app.store import schema, tables
from app.store.pg.engine import check_database, create_engine

ROOT = Path(__file__).parents[2]

_UNCOMMENTED = """
    SELECT relname, coalesce(attname, '(the table)')
    FROM pg_class
    LEFT JOIN pg_attribute ON attrelid = pg_class.oid AND attnum > 0 AND NOT attisdropped
    WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'v')
      AND (col_description(pg_class.oid, attnum) IS NULL
            OR obj_description(pg_class.oid, 'pg_class') IS NULL)
"""

Alembic = Callable[..., str]


@pytest.fixture
def alembic(empty_dsn: str) -> Alembic:
    """Run `alembic` on the command line against an empty database."""

    def run(*args: str) -> str:
        command = [sys.executable, "-m", "alembic", *args]
        env = {**os.environ, "DATABASE_URL": empty_dsn}
        done = subprocess.run(
            command, cwd=ROOT, env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def _tables(dsn: str) -> set[str]:
    with psycopg.connect(dsn) as connection:
        rows = connection.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
        ).fetchall()
    return {name for (name,) in rows}


def _create_index_by_hand(dsn: str) -> None:
    """Create what the service creates for an index: a partition, and an ivfflat index on it."""
    with psycopg.connect(dsn) as connection:
        connection.execute(
            f"CREATE TABLE items_{'ab' * 16} PARTITION OF items FOR VALUES IN ('{'ab' * 16}')"
        )
        connection.execute(
            f"CREATE INDEX ivf_{'ab' * 16}_1 ON items_{'ab' * 16}"
            " USING ivfflat ((sketch_0::bit(64)) bit_hamming_ops) WITH (lists = 1)"
        )


def test_an_empty_database_goes_to_head_and_back(alembic: Alembic, empty_dsn: str) -> None:
    alembic("upgrade", "head")
    assert set(tables.metadata.tables) < _tables(empty_dsn)
    _create_index_by_hand(empty_dsn)
    assert "No new upgrade operations" in alembic("check")
    alembic("downgrade", "base")
    assert _tables(empty_dsn) == {"sealdex_alembic_version"}
    alembic("upgrade", "head")


_TOKEN_INDEXES = """
    SELECT index.relname, indisvalid, inhparent::regclass::text
    FROM pg_index JOIN pg_class AS index ON index.oid = indexrelid
    LEFT JOIN pg_inherits ON inhrelid = indexrelid
    WHERE indrelid = to_regclass(%s) AND index.relam = (SELECT oid FROM pg_am WHERE amname = 'gin')
    """


def test_partitions_keep_their_index_of_tokens_and_their_items(
    alembic: Alembic, empty_dsn: str
) -> None:
    partition = f"items_{'ab' * 16}"
    alembic("upgrade", "0008")
    with psycopg.connect(empty_dsn) as connection:
        connection.execute(f"CREATE TABLE {partition} (LIKE items INCLUDING ALL)")
        connection.execute(
            f"ALTER TABLE items ATTACH PARTITION {partition} FOR VALUES IN ('{'ab' * 16}')"
        )
        connection.execute(
            "INSERT INTO items (index_id, item_key, sealed_id, sealed_vector, tokens)"
            " VALUES (%s, 'key', 'id', 'vector', '{7}')",
            ("ab" * 16,),
        )
    name = f"{partition}_tokens_idx"
    for revision, parent in (("0009", None), ("0008", "ix_items_tokens"), ("0009", None)):
        alembic("upgrade" if revision == "0009" else "downgrade", revision)
        with psycopg.connect(empty_dsn) as connection:
            found = connection.execute(_TOKEN_INDEXES, (partition,)).fetchall()
            assert found == [(name, True, parent)]
            assert connection.execute("SELECT tokens FROM items").fetchall() == [([7],)]


def test_a_schema_with_sealed_indexes_does_not_go_back(alembic: Alembic, empty_dsn: str) -> None:
    alembic("upgrade", "0009")
    with psycopg.connect(empty_dsn) as connection:
        connection.execute(
            "INSERT INTO indexes"
            " (id, name, metric, storage_precision, sketch_noise, wrapped_dek, kind)"
            " VALUES (gen_random_uuid(), 'sealed', 'cosine', 'float32', 0, '', 'sealed')"
        )
    with pytest.raises(AssertionError, match="Sealed indexes"):
        alembic("downgrade", "0008")


def test_drift_so_far_is_counted_and_the_views_of_before_come_back(
    alembic: Alembic, empty_dsn: str
) -> None:
    alembic("upgrade", "0006")
    with psycopg.connect(empty_dsn) as connection:
        for name, n_items, n_changes in (("grown", 900, 1_000), ("other", 90, 130)):
            # Trained on 80 items, after 100 changes.
            connection.execute(
                "WITH made AS (INSERT INTO indexes (id, name, metric, storage_precision,"
                " sketch_noise, wrapped_dek, trained_at, n_items_at_training,"
                " n_changes_at_training) VALUES (gen_random_uuid(), %s, 'cosine', 'float32', 0.1,"
                " '', now(), 80, 100) RETURNING id)"
                " INSERT INTO item_counts (index_id, shard, n_items, n_changes)"
                " SELECT id, shard, %s / 2, %s / 2 FROM made, generate_series(1, 2) AS shard",
                (name, n_items, n_changes),
            )
    views = _views(empty_dsn)
    alembic("upgrade", "0007")
    with psycopg.connect(empty_dsn) as connection:
        rows = connection.execute(
            "SELECT name, n_outdated_since_training, is_drifted FROM sealdex_views.indexes"
        ).fetchall()
    # Of 900 changes 820 at least were additions, of 30 at least 10. The service judges later.
    assert sorted(rows) == [("grown", 80, False), ("other", 20, False)]
    alembic("downgrade", "0006")
    assert _views(empty_dsn) == views


def _views(dsn: str) -> list[tuple[str, ...]]:
    """Return the views with all of their columns and comments."""
    statement = """
        SELECT nspname, relname, pg_get_viewdef(pg_class.oid), attname,
            col_description(pg_class.oid, attnum), obj_description(pg_class.oid, 'pg_class')
        FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
            JOIN pg_attribute ON attrelid = pg_class.oid AND attnum > 0
        WHERE relkind = 'v' AND (nspname = 'sealdex_views' OR relname = 'index_overview')
        ORDER BY 1, 2, attnum
    """
    with psycopg.connect(dsn) as connection:
        return connection.execute(statement).fetchall()


def test_every_table_and_column_has_a_comment(template_dsn: str) -> None:
    with psycopg.connect(template_dsn) as connection:
        assert connection.execute(_UNCOMMENTED).fetchall() == []


def test_ciphertext_is_never_compressed_and_the_vector_leaves_the_row_last(
    template_dsn: str,
) -> None:
    statement = (
        "SELECT attname, attstorage::text FROM pg_attribute"
        " WHERE attrelid = 'items'::regclass AND starts_with(attname, 'sealed_')"
    )
    with psycopg.connect(template_dsn) as connection:
        assert dict(connection.execute(statement).fetchall()) == {
            "sealed_id": "e",
            "sealed_contents": "e",
            "sealed_metadata": "e",
            "sealed_vector": "m",
        }


def test_services_that_migrate_at_once_do_not_disturb_each_other(
    alembic: Alembic, empty_dsn: str
) -> None:
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda _: alembic("upgrade", "head"), range(3)))
    assert set(tables.metadata.tables) < _tables(empty_dsn)


async def test_a_database_without_schema_is_refused_with_what_to_do(empty_dsn: str) -> None:
    engine = create_engine(Settings(), empty_dsn)
    with pytest.raises(errors.ConfigurationError, match="sealdex migrate"):
        await check_database(engine)
    await schema.upgrade(empty_dsn)
    await check_database(engine)
    await engine.dispose()


async def test_a_database_that_is_not_there_is_a_configuration_error(server_dsn: str) -> None:
    missing = (
        sa.make_url(server_dsn)
        .set(database="no_such_database")
        .render_as_string(hide_password=False)
    )
    engine = create_engine(Settings(), missing)
    with pytest.raises(errors.ConfigurationError, match="no_such_database"):
        await check_database(engine)
    with pytest.raises(errors.ConfigurationError, match="no_such_database"):
        await schema.upgrade(missing)
    await engine.dispose()
