"""What the bodies of several nouns share, and the rules that hold for all of them.

A body lives beside the routes that take or answer it. Unknown fields are ignored and null means
"not given": clients of many versions send more than we know. Answers hold exactly the contract's
fields, because some clients refuse one more; a field that does not apply is absent (`UNSET`), not
null.
"""

from typing import TypeAlias

from msgspec import Struct

from app.domain import Caller, IndexAccess
from app.errors import InvalidInput

# An integer on the wire may be written 2 or 2.0; `integer` turns either into an int.
Integer: TypeAlias = int | float | None

# Fields of the contract that nothing serves yet, and what to answer to those who use them. Ignoring
# one would give a wrong answer. Whoever serves a field deletes its line.
_UNSERVED = {
    "kms_name": "key services are not available: there is no kms_name to choose from",
    "text_fields": "text_fields are not supported",
    "bm25_k1": "bm25_k1 is not supported",
    "bm25_b": "bm25_b is not supported",
    "text": "text search is not supported",
}


class IndexRequest(Struct, frozen=True, kw_only=True):
    """Names an index and the key that opens it; the whole body of describe, delete and stats."""

    index_name: str
    index_key: str | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}(index_name={self.index_name!r}, …)"

    def access(self, caller: Caller) -> IndexAccess:
        """Return what the services need to reach the index."""
        return IndexAccess(self.index_name, self.index_key, caller)


class DoneAnswer(Struct, frozen=True, kw_only=True):
    """Answer to whatever changes something."""

    status: str = "success"
    message: str


def refuse_unserved(body: Struct) -> None:
    """Raise `InvalidInput` if `body` asks for what nothing serves yet."""
    for name, answer in _UNSERVED.items():
        if getattr(body, name, None) not in (None, "", [], {}):
            raise InvalidInput(answer)
