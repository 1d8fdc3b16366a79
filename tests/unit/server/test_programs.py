from collections.abc import Iterator
from pathlib import Path

import pytest

from app.errors import ConfigurationError
from app.server import programs
from app.server.postgres import EmbeddedPostgres


@pytest.fixture
def without_the_extra(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(programs, "_PACKAGE", "no_such_package")
    programs.bin_dir.cache_clear()
    yield
    programs.bin_dir.cache_clear()


def test_without_the_extra_the_service_says_what_to_do(
    without_the_extra: None, tmp_path: Path
) -> None:
    with pytest.raises(
        ConfigurationError, match=r"set DATABASE_URL, or install .*sealdex\[embedded\]"
    ):
        EmbeddedPostgres(tmp_path / "data").start()
    assert list(tmp_path.iterdir()) == []


def test_without_the_extra_client_programs_are_those_on_the_path(
    without_the_extra: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigurationError, match="pg_restore is not installed"):
        programs.program("pg_restore")
    (tmp_path / "pg_restore").touch(mode=0o755)
    assert programs.program("pg_restore") == tmp_path / "pg_restore"


def test_the_programs_of_the_extra_come_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pg_restore").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert programs.program("pg_restore").is_file()
    assert programs.program("pg_restore").parent == programs.bin_dir()
