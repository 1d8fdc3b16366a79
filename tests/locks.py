"""Requests that are made to wait for a lock in the database."""

import time

import psycopg

_PATIENCE_S = 30


def wait_until_blocked(dsn: str) -> None:
    """Return when somebody waits for a lock in the database at `dsn`."""
    with psycopg.connect(dsn, autocommit=True) as database:
        deadline = time.monotonic() + _PATIENCE_S
        while time.monotonic() < deadline:
            waiting = database.execute("SELECT count(*) FROM pg_locks WHERE NOT granted").fetchone()
            if waiting != (0,):
                return
            time.sleep(0.05)
    raise AssertionError("the request never began")
