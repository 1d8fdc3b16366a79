"""The user that the embedded PostgreSQL runs as.

PostgreSQL refuses to run as root. A service that root has started lends the server a user without
rights: the one whom the data belong to, else `sealdex-postgres`, which is made when it is missing.
Root opens no directory for that user, and writes nothing where that user could have put a link:
files among the data are written by the server's user itself.
"""

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.errors import ConfigurationError

SYSTEM_USER = "sealdex-postgres"

# What the programs inherit: no key of the service is in this environment.
_ENVIRONMENT = {"LC_ALL": "C", "TZ": "UTC"}
_WRITE = 'umask 077 && cat > "$0.new" && mv -f "$0.new" "$0"'
_APPEND = 'cat >> "$0"'


@dataclass(frozen=True, slots=True)
class Account:
    """A user of this machine; `is_lent` when root runs programs as this user."""

    uid: int
    gid: int
    is_lent: bool

    def options(self) -> dict[str, Any]:
        """Return what makes `subprocess` run a program as this user, with none of root's groups."""
        if not self.is_lent:
            return {}
        return {"user": self.uid, "group": self.gid, "extra_groups": []}

    def can_use(self, path: Path) -> bool:
        """Whether this user may enter the directory, or run the program, at `path`."""
        if not self.is_lent:
            return os.access(path, os.X_OK)
        return self._shell('test -x "$0"', str(path), Path("/")).returncode == 0

    def write(self, directory: Path, name: str, text: str) -> None:
        """Replace a file in `directory` at once, with the rights of this user."""
        self._must(_WRITE, directory, name, text)

    def append(self, directory: Path, name: str, text: str) -> None:
        """Add `text` to a file in `directory`, with the rights of this user."""
        self._must(_APPEND, directory, name, text)

    def _must(self, script: str, directory: Path, name: str, text: str) -> None:
        done = self._shell(script, name, directory, text)
        if done.returncode:
            reason = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
            raise ConfigurationError(f"{directory / name} cannot be written: {reason[0]}")

    def _shell(
        self, script: str, argument: str, directory: Path, text: str = ""
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(  # noqa: S603  # scripts of this module; the name is an argument
            ["/bin/sh", "-c", script, argument],
            input=text,
            capture_output=True,
            check=False,
            cwd=directory,
            env=environment(),
            text=True,
            **self.options(),
        )


def environment(**more: str) -> dict[str, str]:
    """Return all that a program of the server inherits."""
    return {"PATH": os.environ.get("PATH", os.defpath), **_ENVIRONMENT, **more}


def account_for(pgdata: Path) -> Account:
    """Return who runs the server on `pgdata`, which may not be there yet.

    Raises `ConfigurationError` when the directory is a link, or root has no user to lend.
    """
    if os.geteuid() != 0:
        return Account(os.geteuid(), os.getegid(), is_lent=False)
    if os.path.lexists(pgdata):
        if pgdata.is_symlink() or not pgdata.is_dir():
            raise ConfigurationError(f"{pgdata}: must be a directory of its own, and no link")
        owner = pgdata.stat()
        if owner.st_uid != 0:
            return Account(owner.st_uid, owner.st_gid, is_lent=True)
    user = _system_user()
    return Account(user.pw_uid, user.pw_gid, is_lent=True)


def closed_directories(path: Path, account: Account) -> Iterator[Path]:
    """Yield `path` and the directories above it that `account` may not pass, the highest first."""
    for place in (*reversed(path.parents), path):
        if place.exists() and not account.can_use(place):
            yield place


def _system_user() -> pwd.struct_passwd:
    """Return the user whom root lends to the server; makes that user when there is none."""
    try:
        return pwd.getpwnam(SYSTEM_USER)
    except KeyError:
        _make_system_user()
    return pwd.getpwnam(SYSTEM_USER)


def _make_system_user() -> None:
    program = shutil.which("useradd")
    options = ("--system", "--user-group", "--no-create-home", "--home-dir", "/nonexistent")
    shell = shutil.which("nologin") or "/bin/false"
    try:
        if program is None:
            raise FileNotFoundError("useradd")
        subprocess.run(  # noqa: S603  # the system's own program
            [program, *options, "--shell", shell, SYSTEM_USER], check=True, capture_output=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise ConfigurationError(
            "PostgreSQL does not run as root, and no user could be made to run the embedded one: "
            f"make a system user named {SYSTEM_USER}, or start Sealdex as an ordinary user"
        ) from error
