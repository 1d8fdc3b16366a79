import os
import stat
from pathlib import Path

import pytest

from app.cli.private_files import new_file, own_bytes
from app.errors import ConfigurationError


def write(path: Path, data: bytes = b"secret") -> None:
    with new_file(path, "--output") as stream:
        stream.write(data)


def test_a_file_is_for_its_own_user_alone_whatever_the_mask(tmp_path: Path) -> None:
    mask = os.umask(0)
    try:
        write(tmp_path / "out")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_others_have_put_in_the_way_is_never_written_to(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("kept")
    (tmp_path / "out.part").hardlink_to(target)
    (tmp_path / "out").hardlink_to(target)
    write(tmp_path / "out")
    assert target.read_text() == "kept"
    assert (tmp_path / "out").read_text() == "secret"


@pytest.mark.parametrize("kind", ["link", "fifo", "directory"])
def test_what_is_no_file_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "out"
    match kind:
        case "link":
            path.symlink_to(tmp_path / "target")
        case "fifo":
            os.mkfifo(path)
        case _:
            path.mkdir()
    with pytest.raises(
        ConfigurationError, match=r"--output .*out: cannot be written: .* no regular"
    ):
        write(path)
    assert [one.name for one in tmp_path.iterdir()] == ["out"]


def test_a_file_that_is_not_finished_goes(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("before")
    writing = new_file(tmp_path / "out", "--output")
    writing.__enter__().write(b"half")
    error = RuntimeError()
    assert not writing.__exit__(RuntimeError, error, None)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]


def test_a_place_that_cannot_be_written_to_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="cannot be written"):
        write(Path("/proc/no-such-place/out"))


def test_only_this_users_own_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "checkpoint"
    assert own_bytes(path) is None
    path.write_bytes(b"{}")
    assert own_bytes(path) == b"{}"
    (tmp_path / "link").symlink_to(path)
    assert own_bytes(tmp_path / "link") is None
    os.mkfifo(tmp_path / "fifo")
    assert own_bytes(tmp_path / "fifo") is None
    own = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: own + 1)
    assert own_bytes(path) is None
