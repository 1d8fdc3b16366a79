"""`sealdex backup-check`: prove that a dump or a backup holds no plaintext of given canaries.

A canary is a text, or a vector as a JSON list of numbers, that was stored. It is looked for in
every form in which it could be there: as it is, in UTF-16, in hexadecimal (as dumps show bytea) and
base64; vectors as floats of 2, 4 and 8 bytes in either byte order, and as text. Archives are read
as what they hold: pg_dump's by pg_restore, others by gzip.
"""

import argparse
import base64
import gzip
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

import numpy as np

from app.cli.output import print_json, progress, size
from app.configuration import Configuration
from app.errors import ConfigurationError
from app.server.programs import program

_CHUNK_BYTES = 4 * 1024 * 1024
_MIN_CANARY_BYTES = 4
_ARCHIVE_MAGIC = b"PGDMP"
_GZIP_MAGIC = b"\x1f\x8b"
_TABLE_OF_CONTENTS = "toc.dat"


def backup_check(options: argparse.Namespace, _: Configuration) -> int:
    """Print where canaries were found: exit status 1 if any was."""
    patterns = {form: name for name, forms in _canaries(options.canaries).items() for form in forms}
    longest = max(map(len, patterns))
    found: list[dict[str, str]] = []
    n_bytes = n_files = 0
    expression = re.compile(
        b"|".join(re.escape(form) for form in sorted(patterns, key=len, reverse=True))
    )
    paths = [Path(path) for path in options.paths]
    with progress("reading", sum(_size(path) for path in paths), show=not options.json) as advance:
        for path in paths:
            for name, stream in _streams(path):
                n_files += 1
                seen: set[str] = set()
                for n_read, hit in _scan(stream, expression, longest):
                    n_bytes += n_read
                    advance(n_read)
                    seen |= {patterns[form] for form in hit}
                found += [{"canary": canary, "file": name} for canary in sorted(seen)]
    if n_bytes == 0:
        raise ConfigurationError("There is nothing to read: nothing would be proved")
    if options.json:
        print_json(
            {"found": found, "n_files": n_files, "n_bytes": n_bytes, "n_forms": len(patterns)}
        )
    else:
        for hit_of in found:
            print(f"{hit_of['canary']}: found in {hit_of['file']}")
        verdict = f"{len(found)} canaries found" if found else "no canary found"
        print(f"{verdict} in {size(n_bytes)} of {n_files} files, {len(patterns)} forms looked for")
    return 1 if found else 0


def _canaries(path: str) -> Mapping[str, set[bytes]]:
    """Return the forms of each canary, named by its line: the report must not repeat the secret."""
    try:
        lines = (
            sys.stdin.read().splitlines() if path == "-" else Path(path).read_text().splitlines()
        )
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"--canaries {path}: must be a text file with one canary a line"
        ) from error
    canaries = {
        f"canary {number}": line.strip() for number, line in enumerate(lines, 1) if line.strip()
    }
    for name, text in canaries.items():
        if len(text.encode()) < _MIN_CANARY_BYTES:
            raise ConfigurationError(
                f"{name}: must have at least {_MIN_CANARY_BYTES} bytes, or chance would find it"
            )
    if not canaries:
        raise ConfigurationError(f"--canaries {path}: has no canary")
    return {name: forms(text) for name, text in canaries.items()}


def forms(text: str) -> set[bytes]:
    """Return every form in which a canary could be in a file."""
    plain = {
        text.encode(),
        text.encode("utf-16-le"),
        text.encode("utf-16-be"),
        json.dumps(text)[1:-1].encode(),
    }
    if text.startswith("["):
        try:
            vector = np.array(json.loads(text), np.float64)
        except (ValueError, TypeError) as error:
            raise ConfigurationError(
                "A canary that begins with [ must be a JSON list of numbers"
            ) from error
        numbers = [repr(float(number)) for number in vector]
        plain = {separator.join(numbers).encode() for separator in (",", ", ", " ")}
        plain |= {
            vector.astype(order + kind).tobytes() for order in "<>" for kind in ("f2", "f4", "f8")
        }
    if re.fullmatch("(?:[0-9a-fA-F]{2}){8,}", text):
        # A key is written in hexadecimal, but would be stored as its bytes.
        plain |= {bytes.fromhex(text), text.lower().encode(), text.upper().encode()}
    encoded = {form.hex().encode() for form in plain} | {
        form.hex().upper().encode() for form in plain
    }
    return plain | encoded | {part for form in plain for part in _base64(form)}


def _base64(form: bytes) -> Iterator[bytes]:
    """Yield what is certain of the base64 of `form` at each of the three places it can have in a group."""
    for shift in range(3):
        text = base64.b64encode(b"\0" * shift + form).rstrip(b"=")
        # The first characters hold bits of what is before, the last one of what comes after.
        certain = text[(shift * 8 + 5) // 6 : len(text) - 1]
        if len(certain) >= 2 * _MIN_CANARY_BYTES:
            yield certain


def _streams(path: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Yield name and content of everything in a file or a directory."""
    if not path.exists():
        raise ConfigurationError(f"{path}: does not exist")
    if path.is_dir() and not (path / _TABLE_OF_CONTENTS).is_file():
        for inner in sorted(one for one in path.rglob("*") if one.is_file()):
            yield from _streams(inner)
        return
    if path.is_dir() or _begins_with(path, _ARCHIVE_MAGIC):
        yield from _restored(path)
    elif _begins_with(path, _GZIP_MAGIC):
        with gzip.open(path) as stream:
            yield str(path), stream  # type: ignore[misc]  # a GzipFile reads like any file
    else:
        with path.open("rb") as stream:
            yield str(path), stream


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


def _scan(
    stream: IO[bytes], expression: re.Pattern[bytes], longest: int
) -> Iterator[tuple[int, set[bytes]]]:
    """Yield for each piece read its size and what was found in it and at its seam with the piece before."""
    tail = b""
    while piece := stream.read(_CHUNK_BYTES):
        data = tail + piece
        yield len(piece), set(expression.findall(data))
        tail = data[-longest:]


def _begins_with(path: Path, magic: bytes) -> bool:
    with path.open("rb") as stream:
        return stream.read(len(magic)) == magic


def _size(path: Path) -> int:
    if path.is_dir():
        return sum(one.stat().st_size for one in path.rglob("*") if one.is_file())
    return path.stat().st_size if path.is_file() else 0
