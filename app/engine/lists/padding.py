"""Padding: what is sealed has one of few lengths, so that the length tells little.

The lengths are 64 bytes times 1, 1.25, 1.5, 1.75, 2, 2.5, 3, 3.5, 4, 5 …: each at most a quarter
longer than the one before.
"""

MIN_BYTES = 64
# Steps between a length and twice that length.
_STEPS = 4


def padded_length(n_bytes: int) -> int:
    """Return the smallest of the lengths that holds `n_bytes`."""
    if n_bytes <= MIN_BYTES:
        return MIN_BYTES
    step = (1 << (n_bytes - 1).bit_length() - 1) // _STEPS
    return -(-n_bytes // step) * step


def largest_length(max_bytes: int) -> int:
    """Return the largest of the lengths that is at most `max_bytes`, 64 or more."""
    step = (1 << max_bytes.bit_length() - 1) // _STEPS
    return max_bytes // step * step


def pad(data: bytes) -> bytes:
    """Return `data` with zeros behind."""
    return data.ljust(padded_length(len(data)), b"\0")
