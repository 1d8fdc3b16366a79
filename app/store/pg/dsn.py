"""The address of a database, in the forms that its users know."""

from urllib.parse import parse_qsl, urlencode, urlsplit

import sqlalchemy as sa

from app import errors


def database_url(dsn: str) -> sa.URL:
    """Return `dsn` as SQLAlchemy wants it; takes postgres://, postgresql:// and postgresql+psycopg://.

    Raises `errors.ConfigurationError` for anything else, without quoting it: it may hold a
    password.
    """
    scheme = urlsplit(dsn).scheme
    if scheme not in {"postgres", "postgresql", "postgresql+psycopg"}:
        raise errors.ConfigurationError("DATABASE_URL must start with postgresql://")
    try:
        return sa.make_url(_encoded_query(dsn)).set(drivername="postgresql+psycopg")
    except (sa.exc.ArgumentError, ValueError) as error:
        raise errors.ConfigurationError(
            "DATABASE_URL is no valid URL: percent-encode special characters"
        ) from error


def libpq_dsn(dsn: str) -> str:
    """Return `dsn` as libpq and psycopg want it, that is without the name of a driver."""
    return database_url(dsn).set(drivername="postgresql").render_as_string(hide_password=False)


def _encoded_query(dsn: str) -> str:
    """Return `dsn` with its query encoded once more: libpq takes `host=/a path`, SQLAlchemy not."""
    base, mark, query = dsn.partition("?")
    return base + mark + urlencode(parse_qsl(query, keep_blank_values=True))


def first_line(error: BaseException | None) -> str:
    """Return the driver's own sentence, without the statement that SQLAlchemy adds."""
    return str(getattr(error, "orig", None) or error or "no reason given").strip().splitlines()[0]
