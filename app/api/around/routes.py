"""What a route says of itself, in its `opt`, for those who stand around each request.

The name of the Python function behind a route decides nothing.
"""

from typing import Any

# For everybody, without a key, and without a place in work.
PUBLIC = {"is_public": True}


def reads(operation: str, *, needs_root_key: bool = False) -> dict[str, Any]:
    """Return the options of a route that changes nothing; the audit log calls it `operation`."""
    return {**changes(operation, needs_root_key=needs_root_key), "is_read": True}


def changes(
    operation: str,
    *,
    is_root_only: bool = False,
    needs_root_key: bool = False,
    takes_batches: bool = False,
    takes_long: bool = False,
) -> dict[str, Any]:
    """Return the options of a route that may change something.

    `is_root_only`: no user may. `needs_root_key`: no user may, and it makes no sense in an open
    service. `takes_batches`: its body may be large. `takes_long`: it has no deadline.
    """
    return {
        "operation": operation,
        "is_read": False,
        "is_root_only": is_root_only or needs_root_key,
        "needs_root_key": needs_root_key,
        "takes_batches": takes_batches,
        "takes_long": takes_long,
    }
