"""How many requests a worker has in work."""

from types import TracebackType

from app.errors import Overloaded


class Places:
    """The places in work: a request has one from the end of its body to its answer."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._n_taken = 0

    def check(self) -> None:
        """Raise `Overloaded` when all places are taken."""
        if self._n_taken >= self._limit:
            raise Overloaded("too many requests in work; try again later")

    def __enter__(self) -> None:
        self.check()
        self._n_taken += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._n_taken -= 1
