"""Each wrong setting stops the start with one line: the name, the value, and what is allowed."""

import re
from pathlib import Path

import pytest

from app import cli


@pytest.fixture(autouse=True)
def clean_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Start in an empty directory; nothing gets as far as a database."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SEALDEX_DATA_DIR", "/proc/no-such-place")
    for name in ("HOST", "PORT", "DATABASE_URL", "SEALDEX_ROOT_KEY"):
        monkeypatch.delenv(name, raising=False)


WRONG = [
    ({"PORT": "http"}, r"PORT='http'.*a whole number from 1 to 65535"),
    ({"SEALDEX_WORKERS": "-1"}, r"SEALDEX_WORKERS='-1'.*a whole number from 0"),
    ({"SEALDEX_POOL_TIMEOUT_S": "0"}, r"SEALDEX_POOL_TIMEOUT_S='0'.*a number above 0"),
    ({"SEALDEX_SKETCH_NOISE": "0.5"}, r"SEALDEX_SKETCH_NOISE='0.5'.*a number from 0 below 0.5"),
    ({"AUTO_TRAIN_DISABLED": "perhaps"}, r"AUTO_TRAIN_DISABLED='perhaps'.*true or false"),
    (
        {"SEALDEX_LOG_LEVEL": "loud"},
        r"SEALDEX_LOG_LEVEL='loud'.*DEBUG, INFO, WARNING, ERROR, CRITICAL",
    ),
    (
        {"HOST": "no.such.host.invalid", "SEALDEX_ROOT_KEY": "key"},
        r"HOST='no.such.host.invalid'.*an address or a name of this machine",
    ),
    ({"HOST": "0.0.0.0"}, r"HOST='0\.0\.0\.0'.*set SEALDEX_ROOT_KEY.*or SEALDEX_ALLOW_OPEN=true"),  # noqa: S104
    ({"SSL_CERT_PATH": "tls.crt"}, r"SSL_CERT_PATH is set, so SSL_KEY_PATH must name a file"),
    (
        {"SSL_CERT_PATH": "a", "SSL_KEY_PATH": "b"},
        r"SSL_CERT_PATH='a'.*a PEM file that can be read",
    ),
    (
        {"SSL_CERT_PATH": "/etc/hosts", "SSL_KEY_PATH": "/etc/hosts"},
        r"SSL_CERT_PATH='/etc/hosts'.*a PEM certificate",
    ),
    (
        {"CYBORGDB_CONFIG_FILE": "none.yaml"},
        r"CYBORGDB_CONFIG_FILE='none.yaml'.*a YAML file that exists",
    ),
    ({"DATABASE_URL": "mysql://user:hunter2@db/x"}, r"DATABASE_URL must start with postgresql://"),
]


@pytest.mark.parametrize(("env", "message"), WRONG, ids=[" ".join(env) for env, _ in WRONG])
def test_a_wrong_setting_stops_the_start_with_one_clear_line(
    env: dict[str, str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HOST", "127.0.0.1")
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert cli.main(["serve", "--port", "18099"] if "PORT" not in env else ["serve"]) == 2
    lines = [
        line
        for line in capsys.readouterr().err.splitlines()
        if "no SEALDEX_ROOT_KEY is set" not in line
    ]
    assert len(lines) == 1
    assert re.match(f"sealdex: {message}", lines[0])
    assert "hunter2" not in lines[0]
