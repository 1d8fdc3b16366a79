"""`sealdex backup-check`: prove that a dump or a backup holds no plaintext of given canaries.

A canary is a text, or a vector as a JSON list of numbers, that was stored. `app.cli.canaries` makes
the forms in which a canary could be there. Archives are read as what they hold: pg_dump's by
pg_restore, others by gzip.
"""

import argparse
import gzip
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO

from app.cli.canaries import read_canaries
from app.cli.output import print_json, progress, size
from app.configuration import Configuration
from app.errors import ConfigurationError
from app.server.programs import program

_CHUNK_BYTES = 4 * 1024 * 1024
_ARCHIVE_MAGIC = b"PGDMP"
_GZIP_MAGIC = b"\x1f\x8b"
_TABLE_OF_CONTENTS = "toc.dat"


def backup_check(options: argparse.Namespace, _: Configuration) -> int:
    """Print where canaries were found: exit status 1 if any was."""
    search = _Search(read_canaries(options.canaries))
    paths = [Path(path) for path in options.paths]
    with progress("reading", sum(map(_size, paths)), show=not options.json) as advance:
        for path in paths:
            for name, stream in _streams(path):
                search.read(name, stream, advance)
    if search.n_bytes == 0:
        raise ConfigurationError("There is nothing to read: nothing would be proved")
    if options.json:
        print_json(search.report())
    else:
        search.print_report()
    return 1 if search.found else 0


class _Search:
    """Looks for the forms of all canaries at once, in one file after the other."""

    def __init__(self, canaries: Mapping[str, set[bytes]]) -> None:
        self._names = {form: name for name, forms in canaries.items() for form in forms}
        self._longest = max(map(len, self._names))
        # Of forms that begin alike, the longest is found.
        forms = sorted(self._names, key=len, reverse=True)
        self._expression = re.compile(b"|".join(map(re.escape, forms)))
        self.found: list[dict[str, str]] = []
        self.n_files = self.n_bytes = 0

    def read(self, name: str, stream: IO[bytes], advance: Callable[[int], None]) -> None:
        """Look through a file; `advance` is told how many bytes were read."""
        self.n_files += 1
        seen: set[str] = set()
        tail = b""
        while piece := stream.read(_CHUNK_BYTES):
            # A canary may lie across the seam with the piece before.
            data = tail + piece
            seen.update(self._names[form] for form in self._expression.findall(data))
            tail = data[-self._longest :]
            self.n_bytes += len(piece)
            advance(len(piece))
        self.found += [{"canary": canary, "file": name} for canary in sorted(seen)]

    def report(self) -> dict[str, object]:
        """Return what was found, and in how much."""
        return {
            "found": self.found,
            "n_files": self.n_files,
            "n_bytes": self.n_bytes,
            "n_forms": len(self._names),
        }

    def print_report(self) -> None:
        """Print the same for people."""
        for hit in self.found:
            print(f"{hit['canary']}: found in {hit['file']}")
        verdict = f"{len(self.found)} canaries found" if self.found else "no canary found"
        where = f"{size(self.n_bytes)} of {self.n_files} files"
        print(f"{verdict} in {where}, {len(self._names)} forms looked for")


def _streams(path: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Yield name and content of everything in a file or a directory."""
    if not path.exists():
        raise ConfigurationError(f"{path}: does not exist")
    is_dump = (path / _TABLE_OF_CONTENTS).is_file()
    if path.is_dir() and not is_dump:
        for inner in sorted(one for one in path.rglob("*") if one.is_file()):
            yield from _streams(inner)
    elif is_dump or _begins_with(path, _ARCHIVE_MAGIC):
        yield from _restored(path)
    else:
        with _opened(path) as stream:
            yield str(path), stream


def _opened(path: Path) -> IO[bytes]:
    """Return the content of a file, without the compression of gzip."""
    if _begins_with(path, _GZIP_MAGIC):
        return gzip.open(path)  # type: ignore[return-value]  # a GzipFile reads like any file
    return path.open("rb")


def _restored(path: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Yield an archive of pg_dump as the SQL it stands for."""
    command = [str(program("pg_restore")), "--file=-", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:  # noqa: S603  # our own program
        assert process.stdout is not None  # noqa: S101  # asked for
        assert process.stderr is not None  # noqa: S101  # the same
        yield str(path), process.stdout
        complaint = process.stderr.read().decode(errors="replace").strip()
    if process.returncode:
        raise ConfigurationError(
            f"{path}: pg_restore cannot read it: {complaint.splitlines()[-1:]}"
        )


def _begins_with(path: Path, magic: bytes) -> bool:
    with path.open("rb") as stream:
        return stream.read(len(magic)) == magic


def _size(path: Path) -> int:
    if path.is_dir():
        return sum(one.stat().st_size for one in path.rglob("*") if one.is_file())
    return path.stat().st_size if path.is_file() else 0
