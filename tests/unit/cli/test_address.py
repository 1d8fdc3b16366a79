"""Where client commands send their keys: never to where a file of the working directory says."""

from pathlib import Path

import pytest

from app.cli.remote import address
from app.configuration import Configuration

DEFAULT = "http://127.0.0.1:8000"
STRANGE = "HOST=10.9.8.7\nPORT=666\nSSL_CERT_PATH=/tmp/x\nSEALDEX_URL=http://10.9.8.7\n"


@pytest.fixture(autouse=True)
def no_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SEALDEX_URL", raising=False)


def load(directory: Path, env: dict[str, str] | None = None) -> Configuration:
    return Configuration.load({}, env or {}, directory)


@pytest.mark.parametrize("name", [".env", "sealdex.yaml", "cyborgdb.yml"])
def test_a_file_of_the_working_directory_says_no_address(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = STRANGE if name == ".env" else "service: {host: 10.9.8.7, port: 666}"
    (tmp_path / name).write_text(text)
    configuration = load(tmp_path)
    # The service itself would take them.
    assert configuration.settings.host == "10.9.8.7"
    assert address(None, configuration) == DEFAULT
    assert "HOST of" in (warning := capsys.readouterr().err)
    assert "SEALDEX_URL" in warning


@pytest.mark.parametrize(
    ("env", "url"),
    [
        ({}, DEFAULT),
        ({"PORT": "9000"}, "http://127.0.0.1:9000"),
        ({"HOST": "0.0.0.0"}, DEFAULT),  # noqa: S104
        ({"HOST": "::"}, DEFAULT),
        ({"HOST": "::1"}, "http://[::1]:8000"),
        ({"HOST": "db.example", "SSL_CERT_PATH": "/tls.crt"}, "https://db.example:8000"),
    ],
)
def test_the_environment_says_the_address(
    tmp_path: Path, env: dict[str, str], url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / ".env").write_text("SEALDEX_ROOT_KEY=key\n")
    assert address(None, load(tmp_path, env)) == url
    assert capsys.readouterr().err == ""


def test_an_option_and_a_url_go_before_host_and_port(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configuration = load(tmp_path, {"PORT": "9000"})
    monkeypatch.setenv("SEALDEX_URL", "https://a.example/")
    assert address(None, configuration) == "https://a.example"
    assert address("https://b.example", configuration) == "https://b.example"
