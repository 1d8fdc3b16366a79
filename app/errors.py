"""Every error raised on purpose.

AppError
├── InvalidInput          the request is well formed but cannot be honoured
├── InvalidBody           the body does not fit the schema; carries the list of problems
├── ApiKeyRejected        the X-API-Key header is missing or wrong
├── KeyRejected           the index key is missing or does not unwrap the index
├── Forbidden             a valid caller without the right
├── NotFound              no such index or item
├── Conflict              the name is taken
├── TooLarge              the body is above the limit
├── TooSlow               the body does not come in time
├── Incomplete            the client went away before its body was complete
├── Overloaded            too many requests in work; try again later
│   ├── RateLimited       this key has sent too many requests
│   ├── Unavailable       the database does not answer
│   └── ModelUnavailable  the embedding model of the index cannot be loaded
└── DataCorrupted         a stored value does not open
TrainingFailed            a training came to a bad end; `train` answers it with 200 and the reason
└── TrainingRefused       no training can do what was asked for
ConfigurationError        the service cannot start with these settings or this database

A message is written for the caller: no key, no plaintext, no SQL.
"""

from dataclasses import dataclass


class AppError(Exception):
    """Base class of what a request can end in."""


class InvalidInput(AppError):
    """The request is well formed but cannot be honoured."""


@dataclass(frozen=True, slots=True)
class BodyProblem:
    """One place in a body that does not fit: `loc` starts with "body"."""

    type: str
    loc: tuple[str | int, ...]
    msg: str


class InvalidBody(AppError):
    """The body does not fit the schema."""

    def __init__(self, *problems: BodyProblem) -> None:
        super().__init__("; ".join(problem.msg for problem in problems))
        self.problems = problems


class ApiKeyRejected(AppError):
    """The X-API-Key header is missing or wrong."""


class KeyRejected(AppError):
    """The index key is missing or does not unwrap the index."""


class Forbidden(AppError):
    """The caller is known but has no right to do this."""


class NotFound(AppError):
    """There is no such thing."""


class Conflict(AppError):
    """The name is taken."""


class TooLarge(AppError):
    """The body is above the limit."""


class TooSlow(AppError):
    """The body does not come in time."""


class Incomplete(AppError):
    """The client went away before its body was complete."""


class Overloaded(AppError):
    """Too many requests are in work; `retry_after_s` is a good time to wait."""

    def __init__(self, message: str, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RateLimited(Overloaded):
    """This key has sent too many requests."""


class Unavailable(Overloaded):
    """The database does not answer."""


class ModelUnavailable(Overloaded):
    """The embedding model cannot be loaded, or is not the one the index was made with."""

    def __init__(self, message: str) -> None:
        super().__init__(message, retry_after_s=30)


class DataCorrupted(AppError):
    """A stored value does not open: it was changed, moved or damaged."""


class TrainingFailed(Exception):
    """A training came to a bad end, for the reason given."""


class TrainingRefused(TrainingFailed):
    """What was asked of a training cannot be done; asking again changes nothing."""


class ConfigurationError(Exception):
    """The service cannot start; the message says what to change."""
