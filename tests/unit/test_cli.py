import json
import re
from pathlib import Path

import pytest

from app import cli


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "HOST",
        "PORT",
        "DATABASE_URL",
        "SEALDEX_ROOT_KEY",
        "CYBORGDB_SERVICE_ROOT_KEY",
        "SEALDEX_ALLOW_OPEN",
    ):
        # Set and removed, so that what `main` writes to the environment is undone, too.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_keygen_prints_a_new_key_each_time(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["keygen"]) == cli.main(["keygen"]) == 0
    one, other = capsys.readouterr().out.split()
    assert re.fullmatch("[0-9a-f]{64}", one)
    assert one != other


def test_an_open_service_is_refused_beyond_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve", "--host", "0.0.0.0"]) == 2  # noqa: S104
    message = capsys.readouterr().err
    assert "SEALDEX_ROOT_KEY" in message
    assert message.count("\n") == 1


def test_a_bad_setting_is_one_line_and_exit_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve", "--port", "http"]) == 2
    assert capsys.readouterr().err == (
        "sealdex: PORT='http' (command line): must be a whole number from 1 to 65535\n"
    )


def test_the_password_of_a_database_that_does_not_answer_is_not_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgres://me:hunter2@127.0.0.1:1/x")
    assert cli.main(["migrate"]) == 2
    message = capsys.readouterr().err
    assert "does not answer" in message
    assert "hunter2" not in message


def test_config_shows_where_each_setting_comes_from_and_no_secret(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("SEALDEX_ROOT_KEY=secret-1\n")
    monkeypatch.setenv("DATABASE_URL", "postgresql://me:secret-2@db:5432/x?password=secret-3")
    assert cli.main(["config"]) == 0
    text = capsys.readouterr().out
    assert cli.main(["config", "--json"]) == 0
    document = capsys.readouterr().out
    assert "secret" not in text + document
    rows = {row["setting"]: row for row in json.loads(document)["settings"]}
    assert rows["DATABASE_URL"] == {
        "setting": "DATABASE_URL",
        "value": "postgresql://me@db:5432/x",
        "from": "environment",
    }
    assert rows["SEALDEX_ROOT_KEY"] == {
        "setting": "SEALDEX_ROOT_KEY",
        "value": "(hidden)",
        "from": ".env",
    }
    assert re.search(r"^SEALDEX_ROOT_KEY +\(hidden\) +\.env$", text, re.MULTILINE)
