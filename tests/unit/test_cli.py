import re

import pytest

from app import cli


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOST", "PORT", "DATABASE_URL", "SEALDEX_ROOT_KEY", "CYBORGDB_SERVICE_ROOT_KEY", "SEALDEX_ALLOW_OPEN"):
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
    assert capsys.readouterr().err == "sealdex: PORT='http': Expected `int`, got `str`\n"


def test_the_password_of_a_database_that_does_not_answer_is_not_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgres://me:hunter2@127.0.0.1:1/x")
    assert cli.main(["migrate"]) == 2
    message = capsys.readouterr().err
    assert "does not answer" in message
    assert "hunter2" not in message
