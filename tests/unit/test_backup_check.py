import base64
import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from app import cli

TEXT = "the secret of the canary"
VECTOR = [0.1234567, -0.7654321, 3.25]
KEY = "0123456789abcdef" * 4


def check(
    tmp_path: Path, data: bytes, capsys: pytest.CaptureFixture[str], name: str = "dump.sql"
) -> dict[str, object]:
    canaries = tmp_path / "canaries"
    canaries.write_text(f"{TEXT}\n\n{json.dumps(VECTOR)}\n{KEY}\n")
    backup = tmp_path / "backup"
    backup.mkdir(exist_ok=True)
    (backup / name).write_bytes(data)
    status = cli.main(["backup-check", str(backup), "--canaries", str(canaries), "--json"])
    report: dict[str, object] = json.loads(capsys.readouterr().out)
    assert status == (1 if report["found"] else 0)
    return report


@pytest.mark.parametrize(
    ("canary", "data"),
    [
        ("canary 1", TEXT.encode()),
        ("canary 1", TEXT.encode("utf-16-le")),
        ("canary 1", b"\\x" + TEXT.encode().hex().encode()),
        ("canary 1", base64.b64encode(TEXT.encode())),
        ("canary 1", base64.b64encode(b"x" + TEXT.encode() + b"yz")),
        ("canary 1", base64.b64encode(b"xy" + TEXT.encode() + b"z")),
        ("canary 1", gzip.compress(TEXT.encode())),
        ("canary 1", b"x" * (4 * 1024 * 1024 - 5) + TEXT.encode()),
        ("canary 3", np.array(VECTOR, "<f4").tobytes()),
        ("canary 3", np.array(VECTOR, ">f8").tobytes()),
        ("canary 3", np.array(VECTOR, "<f2").tobytes().hex().upper().encode()),
        ("canary 3", b"0.1234567, -0.7654321, 3.25"),
        ("canary 3", b"[0.1234567,-0.7654321,3.25]"),
        ("canary 4", KEY.upper().encode()),
        ("canary 4", bytes.fromhex(KEY)),
        ("canary 4", base64.b64encode(bytes.fromhex(KEY))),
    ],
)
def test_a_canary_is_found_in_every_form(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], canary: str, data: bytes
) -> None:
    report = check(
        tmp_path, b"before " + data + b" after" if data[:2] != b"\x1f\x8b" else data, capsys
    )
    assert report["found"] == [{"canary": canary, "file": str(tmp_path / "backup" / "dump.sql")}]
    assert TEXT not in json.dumps(report)


def test_a_backup_without_canaries_passes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = check(tmp_path, np.random.default_rng(1).bytes(100_000), capsys)
    assert report["found"] == []
    assert report["n_bytes"] == 100_000


@pytest.mark.parametrize(
    ("canaries", "message"),
    [("abc", "at least 4 bytes"), ("", "no canary"), ("[1, x", "JSON list")],
)
def test_canaries_that_prove_nothing_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], canaries: str, message: str
) -> None:
    (tmp_path / "canaries").write_text(canaries)
    (tmp_path / "dump").write_text("x")
    assert (
        cli.main(["backup-check", str(tmp_path / "dump"), "--canaries", str(tmp_path / "canaries")])
        == 2
    )
    assert message in capsys.readouterr().err


def test_an_empty_backup_proves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "canaries").write_text(TEXT)
    (tmp_path / "empty").mkdir()
    assert (
        cli.main(
            ["backup-check", str(tmp_path / "empty"), "--canaries", str(tmp_path / "canaries")]
        )
        == 2
    )
