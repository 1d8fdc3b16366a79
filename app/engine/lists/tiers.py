"""Which chunks of a list are joined: two of like size become one.

So a list has few chunks, about as many as the logarithm of its size, and an entry is rewritten as
often as that at most (the logarithmic method of Bentley & Saxe, *Decomposable Searching Problems
I*, Journal of Algorithms 1, 1980).
"""

from collections.abc import Sequence

from app.engine.lists.layout_format import Reference

# Chunks are of like size when the larger one has at most so many times the entries.
_LIKE = 2


def joined_with(n_new: int, chunks: Sequence[Reference], capacity: int) -> list[Reference]:
    """Return those of a list's `chunks` to join with `n_new` entries.

    A chunk of which two are too much for one, of `capacity` entries, is left as it is.
    """
    taken = []
    for chunk in sorted(chunks, key=lambda one: one.n_entries):
        if chunk.n_entries > _LIKE * n_new or 2 * chunk.n_entries > capacity:
            break
        taken.append(chunk)
        n_new += chunk.n_entries
    return taken
