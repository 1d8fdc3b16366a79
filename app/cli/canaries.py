"""Canaries: secrets that were stored, and every form in which a file could hold one of them.

A canary is a text, or a vector as a JSON list of numbers. A text is looked for as it is, in UTF-16,
in hexadecimal (as dumps show bytea) and base64; a vector as floats of 2, 4 and 8 bytes in either
byte order, and as text.
"""

import base64
import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from app.errors import ConfigurationError

_MIN_CANARY_BYTES = 4
_STDIN = "-"
_SEPARATORS = (",", ", ", " ")
_FLOATS = tuple(order + kind for order in "<>" for kind in ("f2", "f4", "f8"))
_HEXADECIMAL = re.compile("(?:[0-9a-fA-F]{2}){8,}")


def read_canaries(path: str) -> Mapping[str, set[bytes]]:
    """Return the forms of each canary, named by its line: the report must not repeat the secret.

    Raises `ConfigurationError` for a canary that would prove nothing.
    """
    lines = enumerate(_lines(path), 1)
    canaries = {f"canary {number}": line.strip() for number, line in lines if line.strip()}
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
    plain = _forms_of_vector(text) if text.startswith("[") else _forms_of_text(text)
    if _HEXADECIMAL.fullmatch(text):
        # A key is written in hexadecimal, but would be stored as its bytes.
        plain |= {bytes.fromhex(text), text.lower().encode(), text.upper().encode()}
    hexadecimal = {form.hex() for form in plain}
    encoded = {case(digits).encode() for digits in hexadecimal for case in (str.lower, str.upper)}
    return plain | encoded | {part for form in plain for part in _base64(form)}


def _lines(path: str) -> list[str]:
    try:
        text = sys.stdin.read() if path == _STDIN else Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"--canaries {path}: must be a text file with one canary a line"
        ) from error
    return text.splitlines()


def _forms_of_text(text: str) -> set[bytes]:
    encodings = {text.encode(name) for name in ("utf-8", "utf-16-le", "utf-16-be")}
    return {*encodings, json.dumps(text)[1:-1].encode()}


def _forms_of_vector(text: str) -> set[bytes]:
    """Return the forms of a vector; as a text it would be looked for in one spelling alone."""
    try:
        vector = np.array(json.loads(text), np.float64)
    except (ValueError, TypeError) as error:
        raise ConfigurationError(
            "A canary that begins with [ must be a JSON list of numbers"
        ) from error
    numbers = [repr(float(number)) for number in vector]
    texts = {separator.join(numbers).encode() for separator in _SEPARATORS}
    return texts | {vector.astype(kind).tobytes() for kind in _FLOATS}


def _base64(form: bytes) -> Iterator[bytes]:
    """Yield what is certain of the base64 of `form`, for each of its three places in a group."""
    for shift in range(3):
        text = base64.b64encode(b"\0" * shift + form).rstrip(b"=")
        # The first characters hold bits of what is before, the last one of what comes after.
        certain = text[(shift * 8 + 5) // 6 : len(text) - 1]
        if len(certain) >= 2 * _MIN_CANARY_BYTES:
            yield certain
