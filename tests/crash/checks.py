"""What must be true of the database after a crash, whatever was acknowledged. Asked in SQL, which
needs no key.
"""

from typing import Any

import psycopg

# Asks about the index of the run; its name is the driver's.
INDEX_NAME = "crash"

_LEFTOVERS = """
    SELECT 'invalid index ' || indexrelid::regclass FROM pg_index WHERE NOT indisvalid
    UNION ALL
    SELECT 'relation of no index ' || relname FROM pg_class
    WHERE relkind = 'r' AND relname ~ '^items_[0-9a-f]{32}$'
    AND substring(relname FROM 7)::uuid NOT IN (SELECT id FROM indexes)
    UNION ALL
    SELECT 'detached partition ' || relname FROM pg_class
    WHERE relkind = 'r' AND relname ~ '^items_[0-9a-f]{32}$' AND NOT relispartition
    UNION ALL
    SELECT count(*) || ' ivfflat indexes of ' || indrelid::regclass
    FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid WHERE starts_with(relname, 'ivf_')
    GROUP BY indrelid HAVING count(*) > 1
    UNION ALL
    SELECT 'temporary table ' || relname FROM pg_class WHERE relkind = 'r' AND relpersistence = 't'
    """
_PROBLEMS = (
    "SELECT format('chain %s, entry %s: %s', chain, position, problem)"
    " FROM sealdex_views.audit_problems"
)
_N_WRITES = """
    SELECT count(*) FROM sealdex_views.audit
    WHERE index_name = %(name)s AND operation IN ('upsert', 'delete_items') AND outcome = 'done'
    """


def leftovers(dsn: str) -> list[str]:
    """Name what deleted indexes and trainings that came to no end have left."""
    return _texts(dsn, _LEFTOVERS)


def audit_problems(dsn: str) -> list[str]:
    """Name what is not whole in the audit log."""
    return _texts(dsn, _PROBLEMS)


def n_audited_writes(dsn: str) -> int:
    """Return how many upserts and deletes the audit log has of the run's index."""
    return int(_first_column(dsn, _N_WRITES, name=INDEX_NAME)[0])


def _texts(dsn: str, statement: str) -> list[str]:
    return [str(text) for text in _first_column(dsn, statement)]


def _first_column(dsn: str, statement: str, **parameters: str) -> list[Any]:
    with psycopg.connect(dsn, autocommit=True) as database:
        return [row[0] for row in database.execute(statement, parameters or None).fetchall()]
