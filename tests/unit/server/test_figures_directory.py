import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from app.errors import ConfigurationError
from app.server.figures_directory import figures_directory

_KILLED = """
import os, signal
from app.server.figures_directory import figures_directory

with figures_directory(None) as directory:
    print(directory, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def test_the_directory_of_a_killed_service_is_removed_at_the_next_start(temporary: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _KILLED], capture_output=True, text=True, check=False
    )
    assert done.returncode == -signal.SIGKILL
    left = Path(done.stdout.strip())
    (left / "123.figures").write_bytes(b"x")
    with figures_directory(None) as directory:
        assert not left.exists()
        assert [path.name for path in temporary.iterdir()] == [Path(directory).name]
    assert list(temporary.iterdir()) == []


def test_the_directory_of_a_service_that_lives_stays(temporary: Path) -> None:
    with figures_directory(None) as one:
        (Path(one) / "123.figures").write_bytes(b"x")
        with figures_directory(None) as other:
            assert other != one
        assert (Path(one) / "123.figures").exists()


def test_what_a_link_leads_to_stays(temporary: Path) -> None:
    target = temporary / "target"
    target.mkdir()
    (target / "kept").write_text("")
    (temporary / "sealdex-figures-link").symlink_to(target)
    with figures_directory(None):
        pass
    assert (target / "kept").exists()
    assert (temporary / "sealdex-figures-link").is_symlink()


def test_a_directory_of_another_user_stays(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (temporary / "sealdex-figures-theirs").mkdir()
    own = os.geteuid()
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: own + 1)
        with figures_directory(None):
            pass
    assert (temporary / "sealdex-figures-theirs").exists()


def test_a_directory_that_was_chosen_is_emptied_of_old_figures_alone(tmp_path: Path) -> None:
    (tmp_path / "1.figures").write_bytes(b"x")
    (tmp_path / "notes").write_text("")
    with figures_directory(tmp_path) as directory:
        assert directory == str(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]


def test_a_chosen_directory_that_cannot_be_written_to_is_refused() -> None:
    with (
        pytest.raises(ConfigurationError, match="SEALDEX_METRICS_DIR"),
        figures_directory(Path("/proc/no-such-place")),
    ):
        pass
