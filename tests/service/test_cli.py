"""The commands of the operators, against a running service and its database."""

import io
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import psycopg
import pyarrow as pa
import pytest
from pyarrow import parquet

from app import cli
from tests.service.conftest import Service

KEY = secrets.token_hex(32)
N_ITEMS = 250
VECTORS = np.random.default_rng(5).standard_normal((N_ITEMS, 8), dtype=np.float32)


@pytest.fixture
def index(service: Service) -> Iterator[str]:
    name = f"cli-{secrets.token_hex(4)}"
    access = {"index_name": name, "index_key": KEY}
    assert service.post("indexes/create", {**access, "dimension": 8}).status_code == 200
    yield name
    service.post("indexes/delete", access)


def run(service: Service, *arguments: str, status: int = 0, **env: str) -> str:
    environment = {
        **{
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("SEALDEX_", "DATABASE_"))
        },
        "SEALDEX_DATA_DIR": str(service.data_dir),
        "SEALDEX_INDEX_KEY": KEY,
        "PORT": str(service.port),
        **env,
    }
    stdout, stderr = io.TextIOWrapper(io.BytesIO()), io.StringIO()
    # In this process: starting Python for each command would take most of the time.
    with (
        patch.dict(os.environ, environment, clear=True),
        redirect_stdout(stdout),
        redirect_stderr(stderr),
    ):
        found = cli.main(arguments)
        stdout.flush()
    printed = stdout.buffer.getvalue().decode()
    assert found == status, printed + stderr.getvalue()
    assert KEY not in printed + stderr.getvalue()
    return printed if status == 0 else printed + stderr.getvalue()


def document(service: Service, *arguments: str, status: int = 0) -> Any:
    return json.loads(run(service, *arguments, "--json", status=status))


def count(service: Service, index: str) -> int:
    answer = service.post("vectors/num_vectors", {"index_name": index, "index_key": KEY}).json()
    return int(answer["result"])


def write_jsonl(path: Path, rows: range) -> Path:
    path.write_text(
        "\n".join(
            json.dumps(
                {
                    "id": f"item-{row}",
                    "vector": VECTORS[row].tolist(),
                    "contents": f"text {row}",
                    "metadata": {"n": row},
                }
            )
            for row in rows
        )
    )
    return path


def test_items_go_in_and_come_out_as_they_were(
    service: Service, index: str, tmp_path: Path
) -> None:
    source = write_jsonl(tmp_path / "items.jsonl", range(N_ITEMS))
    assert document(service, "import", index, str(source)) == {
        "index": index,
        "imported": N_ITEMS,
        "resumed_after": 0,
    }
    exported = tmp_path / "out.jsonl"
    assert document(service, "export", index, "--output", str(exported)) == {
        "index": index,
        "exported": N_ITEMS,
    }
    assert exported.stat().st_mode & 0o777 == 0o600
    one, other = (
        {item["id"]: item for item in map(json.loads, path.read_text().splitlines())}
        for path in (source, exported)
    )
    assert one == other
    assert len(run(service, "export", index).splitlines()) == N_ITEMS


@pytest.mark.parametrize("suffix", ["npy", "npz", "parquet"])
def test_arrays_and_tables_are_imported(
    service: Service, index: str, tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"items.{suffix}"
    ids, contents = (
        [f"item-{row}" for row in range(N_ITEMS)],
        [f"text {row}" for row in range(N_ITEMS)],
    )
    options = []
    match suffix:
        case "npy":
            np.save(path, VECTORS)
            (tmp_path / "ids.txt").write_text("\n".join(ids))
            options = ["--ids", str(tmp_path / "ids.txt")]
        case "npz":
            np.savez(path, vectors=VECTORS, ids=np.array(ids), contents=np.array(contents))
        case _:
            parquet.write_table(
                pa.table({"id": ids, "vector": VECTORS.tolist(), "contents": contents}), path
            )
    run(service, "import", index, str(path), *options)
    body = {
        "index_name": index,
        "index_key": KEY,
        "ids": ["item-7"],
        "include": ["vector", "contents"],
    }
    (stored,) = service.post("vectors/get", body).json()["results"]
    assert stored["vector"] == VECTORS[7].tolist()
    assert stored["contents"] == ("" if suffix == "npy" else "text 7")
    assert count(service, index) == N_ITEMS


def test_an_interrupted_import_goes_on_where_it_was(
    service: Service, index: str, tmp_path: Path
) -> None:
    path = write_jsonl(tmp_path / "items.jsonl", range(N_ITEMS))
    lines = path.read_text().splitlines()
    # So long that each is a batch of its own, but for the last ones, of which one is bad.
    path.write_text("\n".join([*lines[:200], '{"id": "bad", "vector": "no"}', *lines[200:]]))
    checkpoint = Path(f"{path}.sealdex-import")
    message = run(service, "import", index, str(path), status=1)
    assert "vector" in message
    assert "422" in message
    assert not checkpoint.exists() or json.loads(checkpoint.read_text())["n_done"] == 0
    stat = path.stat()
    checkpoint.write_text(
        json.dumps(
            {
                "url": service.url,
                "index": index,
                "size": stat.st_size,
                "changed_ns": stat.st_mtime_ns,
                "n_done": 201,
            }
        )
    )
    assert document(service, "import", index, str(path))["resumed_after"] == 201
    assert count(service, index) == 50
    assert not checkpoint.exists()


def test_a_checkpoint_of_another_file_is_not_used(
    service: Service, index: str, tmp_path: Path
) -> None:
    path = write_jsonl(tmp_path / "items.jsonl", range(5))
    Path(f"{path}.sealdex-import").write_text('{"url": "x", "n_done": 4}')
    assert document(service, "import", index, str(path))["imported"] == 5


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"id": 5, "vector": [1]}', "line 1: must have an id"),
        ("a.jsonl", '{"id": "a", "vector": [1]}\n[]', "line 2: must be a JSON object"),
        ("a.csv", "1,2", "must end in .jsonl, .npy, .npz or .parquet"),
        ("a.npy", "no array", "cannot be read"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_with_the_place(
    service: Service, index: str, tmp_path: Path, name: str, text: str, message: str
) -> None:
    (tmp_path / name).write_text(text)
    assert message in run(service, "import", index, str(tmp_path / name), status=2)
    assert message in run(service, "import", index, str(tmp_path / name), "--json", status=2)


def test_a_wrong_key_or_no_service_is_exit_status_1(
    service: Service, index: str, tmp_path: Path
) -> None:
    (tmp_path / "key").write_text("00" * 32)
    assert "401" in run(
        service, "export", index, "--index-key-file", str(tmp_path / "key"), status=1
    )
    assert "404" in run(service, "export", "no-such-index", status=1)


def test_status_and_doctor_see_the_indexes_without_a_key(
    service: Service, index: str, tmp_path: Path
) -> None:
    run(service, "import", index, str(write_jsonl(tmp_path / "items.jsonl", range(20))))
    rows = {row["name"]: row for row in document(service, "status")["indexes"]}
    assert rows[index]["n_items"] == 20
    assert rows[index]["size_bytes"] > rows[index]["ivf_size_bytes"] > 0
    assert f"{index} " in run(service, "status")
    findings = {finding["what"]: finding for finding in document(service, "doctor")["findings"]}
    assert {finding["state"] for finding in findings.values()} <= {"ok", "warning"}
    assert {
        "PostgreSQL",
        "pgvector",
        "schema",
        "maintenance_work_mem",
        "invalid indexes",
        "disk space",
    } <= set(findings)


def test_doctor_finds_an_invalid_index(service: Service, index: str, tmp_path: Path) -> None:
    run(service, "import", index, str(write_jsonl(tmp_path / "items.jsonl", range(5))))
    with psycopg.connect(service.dsn, autocommit=True) as database:
        statement = "SELECT id FROM indexes WHERE name = %s"
        (index_id,) = database.execute(statement, (index,)).fetchone() or (None,)
        assert index_id is not None
        with pytest.raises(psycopg.Error):
            database.execute(
                f"CREATE UNIQUE INDEX CONCURRENTLY broken ON items_{index_id.hex} "
                "((length(sealed_id) * 0))"
            )
        try:
            report = document(service, "doctor", status=1)
        finally:
            database.execute("DROP INDEX broken")
    (finding,) = [one for one in report["findings"] if one["state"] == "problem"]
    assert "broken" in finding["text"]


def test_audit_verify_finds_a_rewritten_log(own_service: Service, tmp_path: Path) -> None:
    own_service.environment = {"SEALDEX_WORKERS": "1"}
    own_service.start()
    for name in ("one", "two"):
        assert (
            own_service.post("indexes/create", {"index_name": name, "index_key": KEY}).status_code
            == 200
        )
    heads = tmp_path / "heads.json"
    assert document(own_service, "audit", "verify", "--save", str(heads))["problems"] == []
    assert document(own_service, "audit", "verify", "--against", str(heads))["n_entries"] == 2
    with psycopg.connect(own_service.dsn, autocommit=True) as database:
        database.execute("SET session_replication_role = replica")
        # A forger with all rights: every entry is written anew, with the right hashes, and the
        # heads too.
        rows = database.execute("SELECT count(*) FROM audit_log").fetchone()
        assert rows == (2,)
        database.execute("DELETE FROM audit_log; UPDATE audit_chains SET position = 0, hash = ''")
        database.execute("SET session_replication_role = origin")
        database.execute(
            "INSERT INTO audit_log (caller, operation, request_id, outcome)"
            " VALUES ('a', 'b', '', ''), ('c', 'd', '', '')"
        )
    assert document(own_service, "audit", "verify")["problems"] == []
    report = document(own_service, "audit", "verify", "--against", str(heads), status=1)
    assert report["problems"][0]["problem"].startswith("rewritten")
    assert document(own_service, "audit", "drop", "--before", "2020-01-01") == {"dropped": []}
    assert "YYYY-MM-DD" in run(own_service, "audit", "drop", "--before", "soon", status=2)
    own_service.stop()
    # Without a service the command starts the database itself, and stops it.
    assert document(own_service, "audit", "verify")["n_entries"] == 3
    assert not (own_service.data_dir / "postgres" / "postmaster.pid").exists()
