"""Canaries are stored, then looked for everywhere the database and the service write."""

import base64
import secrets
import subprocess
from pathlib import Path

import numpy as np
import psycopg

from app.server.programs import bin_dir
from tests.service.conftest import Service

ROOT_KEY = "root-canary-" + secrets.token_hex(8)
INDEX_KEY = secrets.token_hex(32)
ITEM_ID = "id-canary-5c1f"
CONTENTS = "contents-canary-77ab"
METADATA_KEY = "metadatakeycanary41"
METADATA_VALUE = "metadata-value-canary-9d"
# Numbers whose every encoding is long enough to be no coincidence.
VECTOR = np.array(
    [0.123456789, -0.987654321, 0.314159265, -0.271828182, 0.161803398, 0.577215664], np.float32
)
TALKATIVE = {
    "log_statement": "'all'",
    "log_min_error_statement": "'debug5'",
    "log_min_messages": "'debug1'",
    "log_error_verbosity": "'verbose'",
    "log_parameter_max_length": "-1",
    "log_parameter_max_length_on_error": "-1",
    "log_temp_files": "0",
}


def canaries() -> dict[str, bytes]:
    wide, half = VECTOR.astype("<f8"), VECTOR.astype("<f2")
    return {
        "root key": ROOT_KEY.encode(),
        "index key, hex": INDEX_KEY.encode(),
        "index key, upper-case hex": INDEX_KEY.upper().encode(),
        "index key, raw": bytes.fromhex(INDEX_KEY),
        "index key, base64": base64.b64encode(bytes.fromhex(INDEX_KEY)).rstrip(b"="),
        "id": ITEM_ID.encode(),
        "contents": CONTENTS.encode(),
        "metadata key": METADATA_KEY.encode(),
        "metadata value": METADATA_VALUE.encode(),
        "vector, float32 little-endian": VECTOR.astype("<f4").tobytes(),
        "vector, float32 big-endian": VECTOR.astype(">f4").tobytes(),
        "vector, float64 little-endian": wide.tobytes(),
        "vector, float64 big-endian": VECTOR.astype(">f8").tobytes(),
        "vector, float16": half.tobytes(),
        "vector, base64": base64.b64encode(VECTOR.astype("<f4").tobytes()),
        "vector, text": ", ".join(str(float(number)) for number in VECTOR[:2]).encode(),
        "vector, compact text": ",".join(str(float(number)) for number in VECTOR[:2]).encode(),
        "vector, hex": VECTOR.astype("<f4").tobytes().hex().encode(),
    }


def hits(paths: list[Path]) -> list[str]:
    wanted = canaries()
    # What pg_dump and psql show of bytea is hexadecimal.
    wanted |= {f"{name}, as bytea": value.hex().encode() for name, value in canaries().items()}
    found = []
    for path in paths:
        data = path.read_bytes()
        found += [f"{name} in {path.name}" for name, value in wanted.items() if value in data]
    return found


def use(service: Service) -> None:
    """Every route, right and wrong, with the canaries in the request."""
    index = {"index_name": "leaks", "index_key": INDEX_KEY}
    root = {"X-API-Key": ROOT_KEY}
    item = {
        "id": ITEM_ID,
        "vector": VECTOR.tolist(),
        "contents": CONTENTS,
        "metadata": {METADATA_KEY: METADATA_VALUE, "nested": {METADATA_KEY: [METADATA_VALUE]}},
    }
    assert (
        service.post(
            "indexes/create",
            {**index, "metric": "cosine", "metadata_schema": {METADATA_KEY: {}}},
            **root,
        ).status_code
        == 200
    )
    for _ in range(2):
        assert service.post("vectors/upsert", {**index, "items": [item]}, **root).status_code == 200
    query = {**index, "query_vectors": VECTOR.tolist(), "include": ["distance", "metadata"]}
    assert service.post("vectors/query", query, **root).json()["results"][0]["id"] == ITEM_ID
    assert (
        service.post("vectors/get", {**index, "ids": [ITEM_ID]}, **root).json()["results"][0][
            "contents"
        ]
        == CONTENTS
    )
    for wanted in (
        {METADATA_KEY: METADATA_VALUE},
        {METADATA_KEY: {"$regex": METADATA_VALUE}},
        {f"nested.{METADATA_KEY}": METADATA_VALUE, METADATA_KEY: {"$ne": METADATA_KEY}},
    ):
        found = service.post("vectors/query", {**query, "filters": wanted}, **root)
        assert [match["id"] for match in found.json()["results"]] == [ITEM_ID]
        assert service.post("vectors/num_vectors", {**index, "filters": wanted}, **root).json() == {
            "result": 1
        }
    bad = {METADATA_KEY: {"$regex": "(" + METADATA_VALUE}}
    assert service.post("vectors/query", {**query, "filters": bad}, **root).status_code == 400
    # Refused requests must not end up in a log either.
    assert (
        service.post(
            "vectors/upsert", {**index, "items": [{**item, "vector": [1.0]}]}, **root
        ).status_code
        == 400
    )
    assert (
        service.post("vectors/upsert", {**index, "items": [{**item, "id": 5}]}, **root).status_code
        == 422
    )
    assert service.post("vectors/query", {**query, "top_k": 0}, **root).status_code == 400
    wrong = {**index, "index_key": INDEX_KEY[::-1], "ids": [ITEM_ID]}
    assert service.post("vectors/get", wrong, **root).status_code == 401
    assert service.post("indexes/list", {}, **{"X-API-Key": ROOT_KEY[:-1]}).status_code in {
        401,
        405,
    }


def provoke(service: Service) -> list[bytes]:
    """Requests that fail deep inside, and what is answered: a damaged row, then a table that is not
    as expected.
    """
    index = {"index_name": "leaks", "index_key": INDEX_KEY}
    requests = [
        ("vectors/get", {**index, "ids": [ITEM_ID]}),
        (
            "vectors/query",
            {**index, "query_vectors": VECTOR.tolist(), "filters": {METADATA_KEY: METADATA_VALUE}},
        ),
    ]
    write = {**index, "items": [{"id": ITEM_ID, "vector": VECTOR.tolist(), "contents": CONTENTS}]}
    damages = [
        "UPDATE items SET sealed_contents = sealed_vector, sealed_metadata = sealed_vector",
        "UPDATE items SET sealed_vector = sealed_id",
        # Its parameters are bound when the statement fails.
        "ALTER TABLE items RENAME COLUMN sealed_contents TO renamed",
    ]
    answers = []
    with psycopg.connect(service.dsn, autocommit=True) as database:
        for damage in damages:
            database.execute(damage.encode())
            found = [service.post(path, body, **{"X-API-Key": ROOT_KEY}) for path, body in requests]
            assert found[0].status_code == 500
            answers += found
        answers.append(service.post("vectors/upsert", write, **{"X-API-Key": ROOT_KEY}))
        assert answers[-1].status_code == 500
    return [answer.content for answer in answers]


def look_in_temporary_files(service: Service) -> list[str]:
    """Sort with too little memory, and look at the file while it is there."""
    with psycopg.connect(service.dsn) as database:
        database.execute("SET work_mem = '64kB'")
        database.execute(
            "DECLARE sorted CURSOR FOR SELECT items.* FROM items, generate_series(1, 5000) ORDER "
            "BY sealed_vector"
        )
        database.execute("FETCH 1 FROM sorted")
        files = list((service.data_dir / "postgres" / "base" / "pgsql_tmp").iterdir())
        assert files
        return hits(files)


def statistics(service: Service) -> bytes:
    """What the planner and the monitoring know, as text."""
    views = ("pg_stats", "pg_stats_ext", "pg_stat_activity", "pg_stat_user_tables")
    with psycopg.connect(service.dsn) as database:
        rows = [
            str(row)
            for view in views
            for row in database.execute(b"TABLE " + view.encode()).fetchall()
        ]
    assert any("tokens" in row for row in rows)
    return "\n".join(rows).encode()


def test_nothing_is_readable_in_dump_data_directory_or_logs(own_service: Service) -> None:
    own_service.environment = {
        "SEALDEX_ROOT_KEY": ROOT_KEY,
        "SEALDEX_LOG_LEVEL": "DEBUG",
        "SEALDEX_WORKERS": "1",
        "SEALDEX_AUDIT_READS": "true",
    }
    own_service.start()
    with psycopg.connect(own_service.dsn, autocommit=True) as database:
        # As much as PostgreSQL can be made to tell; the service's own settings say the opposite.
        for name, value in TALKATIVE.items():
            database.execute(f"ALTER SYSTEM SET {name} = {value}".encode())
        database.execute("SELECT pg_reload_conf()")
        use(own_service)
        database.execute("ANALYZE")
        database.execute("CHECKPOINT")
        n_items = database.execute("SELECT count(*) FROM items").fetchone()
        assert n_items == (1,)
    dump = own_service.data_dir / "dump.sql"
    dump.write_bytes(
        subprocess.run(
            [bin_dir() / "pg_dump", own_service.dsn], check=True, capture_output=True
        ).stdout
    )
    # The dump is complete, or nothing would be proved by what it does not hold.
    assert b"sealed_vector" in dump.read_bytes()
    (own_service.data_dir / "statistics.txt").write_bytes(statistics(own_service))
    assert look_in_temporary_files(own_service) == []
    (own_service.data_dir / "answers.txt").write_bytes(b"\n".join(provoke(own_service)))
    own_service.stop()
    assert b"Traceback" in own_service.log.read_bytes()
    server_log = b"".join(
        path.read_bytes() for path in (own_service.data_dir / "postgres" / "log").iterdir()
    )
    assert b"arameters: $1 = " in server_log
    files = [path for path in own_service.data_dir.rglob("*") if path.is_file()]
    assert any("pg_wal" in str(path) for path in files)
    assert own_service.log in files
    assert hits(files) == []


def test_the_scan_finds_what_is_there(tmp_path: Path) -> None:
    for number, value in enumerate(canaries().values()):
        (tmp_path / str(number)).write_bytes(b"before" + value + b"after")
    assert len(hits(sorted(tmp_path.iterdir()))) >= len(canaries())
