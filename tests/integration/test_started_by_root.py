"""The embedded PostgreSQL of a service that root has started: nothing is opened, no link is
followed.
"""

import os
import pwd
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from app.errors import ConfigurationError
from app.server import data_directory, programs
from app.server.accounts import Account
from app.server.data_directory import data_dir_of
from app.server.postgres import EmbeddedPostgres
from app.settings import Settings

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, who lends a user")

QUICK = {"shared_buffers": "128MB"}
NOBODY = pwd.getpwnam("nobody")
ACCOUNT = Account(NOBODY.pw_uid, NOBODY.pw_gid, is_lent=True)


@pytest.fixture
def closed() -> Iterator[Path]:
    """A directory that only root may pass, in one that all may pass."""
    with tempfile.TemporaryDirectory(prefix="sealdex-test-") as directory:
        Path(directory).chmod(0o711)
        closed = Path(directory) / "closed"
        closed.mkdir(mode=0o700)
        yield closed


@pytest.fixture
def root_directory(open_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands for root's own directory below /var/lib."""
    monkeypatch.setattr(programs, "ROOT_DIRECTORY", open_path / "var")
    return open_path / "var"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_a_directory_that_the_servers_user_cannot_reach_is_refused_and_stays_closed(
    closed: Path,
) -> None:
    with (
        pytest.raises(ConfigurationError, match=f"{closed} is closed: choose another"),
        EmbeddedPostgres(closed / "deep" / "data"),
    ):
        pass
    assert mode(closed) == 0o700


def test_the_default_directory_is_roots_own_where_the_working_directory_is_closed(
    closed: Path, root_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(closed)
    found = data_dir_of(Settings())
    assert found.parent == root_directory
    assert found.name.startswith("closed-")
    data_directory.make_directory(found)
    assert ACCOUNT.can_use(found)
    assert mode(closed) == 0o700
    (closed / "other").mkdir()
    monkeypatch.chdir(closed / "other")
    assert data_dir_of(Settings()) != found
    assert data_dir_of(Settings(data_dir=Path("mine"))) == closed / "other" / "mine"


def test_the_default_directory_stays_where_all_may_pass_and_where_data_are(
    open_path: Path, closed: Path, root_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(open_path)
    assert data_dir_of(Settings()) == open_path / "sealdex-data"
    (closed / "sealdex-data").mkdir()
    monkeypatch.chdir(closed)
    assert data_dir_of(Settings()) == closed / "sealdex-data"


def test_programs_in_a_closed_place_are_copied_for_the_servers_user(
    closed: Path, root_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = programs.bin_dir().parents[1]
    for part in (package, package.with_name(f"{package.name}.libs")):
        if part.exists():
            shutil.copytree(part, closed / part.name, symlinks=True)
    installed = closed / programs.bin_dir().relative_to(package.parent)
    monkeypatch.setattr(programs, "bin_dir", lambda: installed)
    found, again = (programs.bin_dir_for(ACCOUNT) for _ in range(2))
    assert found == again
    assert root_directory in found.parents
    for program in ("postgres", "initdb", "pg_ctl"):
        programs.run(found, ACCOUNT, [program, "--version"], cwd=Path("/"))
    assert len(list(root_directory.iterdir())) == 1
    assert mode(closed) == 0o700


@pytest.mark.parametrize("owner", [0, NOBODY.pw_uid])
def test_a_directory_of_root_that_others_may_write_to_is_refused(
    root_directory: Path, owner: int
) -> None:
    root_directory.mkdir(mode=0o755)
    root_directory.chmod(0o755 if owner else 0o777)
    os.chown(root_directory, owner, 0)
    with pytest.raises(ConfigurationError, match="nobody else may write to"):
        programs.make_root_directory()


def test_the_settings_are_not_written_through_a_link(open_path: Path) -> None:
    treasure = open_path / "of-root"
    treasure.write_text("keep")
    treasure.chmod(0o600)
    data_dir = open_path / "data"
    with EmbeddedPostgres(data_dir, overrides=QUICK) as server:
        owner = server.account.uid
    settings = data_dir / "postgres" / "sealdex.conf"
    settings.unlink()
    settings.symlink_to(treasure)
    (data_dir / "postgres" / "sealdex.conf.new").symlink_to(treasure)
    with pytest.raises(ConfigurationError, match="cannot be written"), EmbeddedPostgres(data_dir):
        pass
    (data_dir / "postgres" / "sealdex.conf.new").unlink()
    with EmbeddedPostgres(data_dir, overrides=QUICK):
        assert settings.lstat().st_uid == owner
        assert stat.S_ISREG(settings.lstat().st_mode)
    assert treasure.read_text() == "keep"
    assert (treasure.stat().st_uid, mode(treasure)) == (0, 0o600)


def test_the_lock_is_closed_to_others_and_no_link(open_path: Path) -> None:
    data_dir = open_path / "data"
    data_dir.mkdir(mode=0o755)
    lock = data_dir / ".lock"
    lock.write_text("")
    lock.chmod(0o644)
    with data_directory.lock(data_dir):
        assert mode(lock) == 0o600
    treasure = open_path / "of-root"
    treasure.write_text("keep")
    lock.unlink()
    lock.hardlink_to(treasure)
    with data_directory.lock(data_dir):
        assert mode(treasure) == 0o644
    lock.unlink()
    lock.symlink_to(treasure)
    with pytest.raises(ConfigurationError, match="cannot be used"):
        data_directory.lock(data_dir)


@pytest.mark.parametrize("name", ["data", "data/postgres"])
def test_a_directory_of_a_stranger_is_refused(open_path: Path, name: str) -> None:
    data_dir = open_path / "data"
    data_dir.mkdir()
    if name == "data":
        os.chown(data_dir, NOBODY.pw_uid, NOBODY.pw_gid)
    else:
        (open_path / "elsewhere").mkdir()
        (data_dir / "postgres").symlink_to(open_path / "elsewhere")
    with (
        pytest.raises(ConfigurationError, match=r"another user|must be a directory of its own"),
        EmbeddedPostgres(data_dir),
    ):
        pass
    assert list(open_path.rglob("PG_VERSION")) == []


def test_the_server_runs_as_whoever_the_data_belong_to(open_path: Path) -> None:
    pgdata = open_path / "data" / "postgres"
    pgdata.mkdir(parents=True, mode=0o700)
    pgdata.chmod(0o700)
    os.chown(pgdata, NOBODY.pw_uid, NOBODY.pw_gid)
    with EmbeddedPostgres(open_path / "data", overrides=QUICK):
        pid = int((pgdata / "postmaster.pid").read_text().splitlines()[0])
        assert set(psutil.Process(pid).uids()) == {NOBODY.pw_uid}
        assert psutil.Process(pid).gids().effective == NOBODY.pw_gid


def test_a_pid_file_that_is_no_file_does_not_stop_the_start(open_path: Path) -> None:
    os.mkfifo(open_path / "pid")
    assert data_directory.lines_of(open_path / "pid") == []
    (open_path / "link").symlink_to("/etc/passwd")
    assert data_directory.lines_of(open_path / "link") == []
    assert data_directory.lines_of(open_path / "missing") == []
