"""The audit log, views for whoever owns the database, and rate limits.

`audit_log` is partitioned by month. A trigger numbers and chains each entry as it is inserted: an
entry belongs to one of several chains, takes the next position in it, and its hash covers that of
the entry before. One chain would make all writers wait for each other; so each takes a chain that
no other transaction holds, as the counts of items do.

Entries cannot be updated, deleted or truncated; `sealdex_views.audit_problems` finds what was
changed all the same. `sealdex_views.drop_audit_before` is the one way to let go of old months; the
chains remember where they begin since.

The schema `sealdex_views` is for the role `sealdex_auditor`, which can read its views and nothing
else. Views that later migrations put there are readable by that role, too (ALTER DEFAULT
PRIVILEGES).

Revision ID: 0005
Revises: 0004
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_HASH = """
    CREATE FUNCTION sealdex_views.audit_hash(
        previous_hash bytea, chain integer, "position" bigint, recorded_at timestamptz,
            caller text, key_id text,
        operation text, index_id uuid, index_name text, n_items bigint, request_id text,
        outcome text
    ) RETURNS bytea LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN sha256(previous_hash || convert_to(ARRAY[
        chain::text, "position"::text, extract(epoch FROM recorded_at)::text, caller, key_id,
        operation, index_id::text, index_name, n_items::text, request_id, outcome
    ]::text, 'UTF8'))
"""

_CHAIN_ENTRY = """
    CREATE FUNCTION sealdex_views.chain_audit_entry() RETURNS trigger LANGUAGE plpgsql
    SET search_path FROM CURRENT AS $$
    DECLARE
        head audit_chains%ROWTYPE;
    BEGIN
        SELECT * INTO head FROM audit_chains LIMIT 1 FOR UPDATE SKIP LOCKED;
        IF NOT FOUND THEN
            -- All chains are held by other transactions. The number is random, so that no two make
            -- the same one.
            INSERT INTO audit_chains (chain) VALUES (floor(random() * 2147483647)::integer)
                RETURNING * INTO head;
        END IF;
        NEW.chain := head.chain;
        NEW.position := head.position + 1;
        NEW.previous_hash := head.hash;
        NEW.hash := sealdex_views.audit_hash(
            NEW.previous_hash, NEW.chain, NEW.position, NEW.recorded_at, NEW.caller, NEW.key_id,
            NEW.operation, NEW.index_id, NEW.index_name, NEW.n_items, NEW.request_id, NEW.outcome
        );
        UPDATE audit_chains SET position = NEW.position, hash = NEW.hash WHERE chain = NEW.chain;
        RETURN NEW;
    END
    $$
"""

_REFUSE = """
    CREATE FUNCTION sealdex_views.refuse_audit_change() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE EXCEPTION 'the audit log is append-only: % is not allowed', TG_OP
            USING ERRCODE = 'insufficient_privilege',
                  HINT = 'sealdex_views.drop_audit_before(date) lets go of whole months';
    END
    $$
"""

_ADD_PARTITIONS = """
    CREATE FUNCTION sealdex_views.add_audit_partitions(n_months integer)
        RETURNS void LANGUAGE plpgsql
    SET search_path FROM CURRENT AS $$
    DECLARE
        month date;
        name text;
    BEGIN
        FOR ahead IN 0 .. n_months LOOP
            month := date_trunc('month', now() AT TIME ZONE 'UTC') + make_interval(months => ahead);
            name := to_char(month, '"audit_log_"YYYY_MM');
            CONTINUE WHEN to_regclass(name) IS NOT NULL;
            -- The number is the ASCII codes of "audit": one service at a time.
            PERFORM pg_advisory_xact_lock(418581342580);
            CONTINUE WHEN to_regclass(name) IS NOT NULL;
            EXECUTE format('CREATE TABLE %I (LIKE audit_log INCLUDING ALL)', name);
            EXECUTE format('COMMENT ON TABLE %I IS %L', name,
                'Audit log of the month ' || to_char(month, 'YYYY-MM'));
            EXECUTE format(
                'CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON %I'
                ' EXECUTE FUNCTION sealdex_views.refuse_audit_change()', name
            );
            BEGIN
                EXECUTE format(
                    'ALTER TABLE audit_log ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
                    name, month::text || ' 00:00+00',
                    (month + interval '1 month')::date::text || ' 00:00+00'
                );
            EXCEPTION WHEN check_violation THEN
                -- Entries of this month are in the default partition already, and stay there.
                EXECUTE format('DROP TABLE %I', name);
            END;
        END LOOP;
    END
    $$
"""

_DROP_BEFORE = """
    CREATE FUNCTION sealdex_views.drop_audit_before(first_kept date)
        RETURNS SETOF text LANGUAGE plpgsql
    SET search_path FROM CURRENT AS $$
    DECLARE
        name text;
    BEGIN
        IF first_kept > (now() AT TIME ZONE 'UTC')::date THEN
            RAISE EXCEPTION 'the day must not be in the future';
        END IF;
        FOR name IN
            SELECT relname FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
            WHERE inhparent = 'audit_log'::regclass AND relname ~ '^audit_log_\\d{4}_\\d{2}$'
              AND to_date(substr(relname, 11), 'YYYY_MM') + interval '1 month' <= first_kept
            ORDER BY relname
        LOOP
            EXECUTE format(
                'UPDATE audit_chains SET kept_after = last.position, kept_hash = last.hash
                 FROM (SELECT DISTINCT ON (chain) chain, position, hash FROM %I
                     ORDER BY chain, position DESC) AS last
                 WHERE audit_chains.chain = last.chain AND last.position > kept_after', name
            );
            EXECUTE format('DROP TABLE %I', name);
            RETURN NEXT name;
        END LOOP;
    END
    $$
"""

# Each row is one thing that is not as the service wrote it; none when the log is whole.
_PROBLEMS = """
    CREATE VIEW sealdex_views.audit_problems AS
    WITH entries AS (
        SELECT audit_log.*,
               lag(audit_log.position, 1, heads.kept_after) OVER earlier AS position_before,
               lag(audit_log.hash, 1, heads.kept_hash) OVER earlier AS hash_before,
               heads.chain IS NULL AS has_no_head
        FROM audit_log LEFT JOIN audit_chains AS heads USING (chain)
        WINDOW earlier AS (PARTITION BY audit_log.chain ORDER BY audit_log.position)
    ),
    ends AS (
        SELECT heads.chain, heads.position, heads.hash,
               coalesce(last.position, heads.kept_after) AS last_position,
               coalesce(last.hash, heads.kept_hash) AS last_hash
        FROM audit_chains AS heads
        LEFT JOIN LATERAL (
            SELECT audit_log.position, audit_log.hash FROM audit_log
            WHERE audit_log.chain = heads.chain ORDER BY audit_log.position DESC LIMIT 1
        ) AS last ON true
    )
    SELECT chain, position, recorded_at,
        'changed: the entry does not have the content it was hashed with' AS problem
    FROM entries WHERE hash IS DISTINCT FROM sealdex_views.audit_hash(
        previous_hash, chain, position, recorded_at, caller, key_id,
        operation, index_id, index_name, n_items, request_id, outcome
    )
    UNION ALL
    SELECT chain, position, recorded_at, 'removed: entries are missing before this one'
    FROM entries WHERE NOT has_no_head
        AND (position IS DISTINCT FROM position_before + 1
            OR previous_hash IS DISTINCT FROM hash_before)
    UNION ALL
    SELECT chain, position, recorded_at, 'unknown: the chain of this entry has no head'
        FROM entries WHERE has_no_head
    UNION ALL
    SELECT chain, position, NULL,
        'removed: the last entries of this chain are missing, or its head was changed'
    FROM ends WHERE position <> last_position OR hash <> last_hash
"""

_AUDIT_VIEW = """
    CREATE VIEW sealdex_views.audit AS
    SELECT recorded_at, caller, key_id, operation, index_name, index_id, n_items, outcome,
        request_id,
           chain, position, hash
    FROM audit_log
"""

_INDEXES_VIEW = """
    CREATE VIEW sealdex_views.indexes AS
    SELECT overview.name, overview.id, indexes.metric, indexes.dimension, indexes.storage_precision,
           overview.n_items::bigint AS n_items,
           overview.n_changes_since_training::bigint AS n_changes_since_training,
           overview.changed_share, overview.is_drifted, overview.n_lists, overview.recall,
           overview.trained_at, overview.is_training, overview.training_phase,
           overview.training_progress, indexes.created_at,
           coalesce(pg_total_relation_size(partition.oid), 0) AS size_bytes,
           coalesce(ivf.size_bytes, 0)::bigint AS ivf_size_bytes
    FROM index_overview AS overview
    JOIN indexes USING (id)
    LEFT JOIN pg_class AS partition
        ON partition.relname = overview.partition
        AND partition.relnamespace =
            (SELECT relnamespace FROM pg_class WHERE oid = 'items'::regclass)
    LEFT JOIN LATERAL (
        SELECT sum(pg_relation_size(indexrelid)) AS size_bytes
        FROM pg_index JOIN pg_class AS ivf_class ON ivf_class.oid = indexrelid
        WHERE indrelid = partition.oid AND starts_with(ivf_class.relname, 'ivf_')
    ) AS ivf ON true
"""

_TRAININGS_VIEW = """
    CREATE VIEW sealdex_views.trainings AS
    SELECT indexes.name AS index_name, trainings.index_id, trainings.started_at,
           trainings.finished_at, trainings.outcome, trainings.failure, trainings.n_items,
           trainings.n_lists, trainings.recall
    FROM trainings JOIN indexes ON indexes.id = trainings.index_id
"""

_PARTITIONS_VIEW = """
    CREATE VIEW sealdex_views.audit_partitions AS
    SELECT relname::text AS name, pg_get_expr(relpartbound, pg_class.oid) AS months,
           pg_total_relation_size(pg_class.oid) AS size_bytes
    FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
    WHERE inhparent = 'audit_log'::regclass
"""

_COMMENTS = {
    "audit": (
        "Who changed what and when, newest not first: add ORDER BY recorded_at DESC",
        {
            "recorded_at": "When the transaction of the change began",
            "caller": (
                "Who: root, user and its id, open (no root key), operator (command line), "
                "service (a training)"
            ),
            "key_id": (
                "Keyed fingerprint of the index key that was used; tells keys apart, opens nothing"
            ),
            "operation": (
                "What: create, delete, upsert, delete_items, create_user, delete_user, "
                "train_request, train …"
            ),
            "index_name": "Name of the index at that time",
            "index_id": "Id of the index; null when there was none",
            "n_items": "How many items were written or deleted; null where that means nothing",
            "outcome": (
                "done, or refused or failed for reads and refused requests when they are recorded"
            ),
            "request_id": "The X-Request-Id of the request, as in the service's log",
            "chain": "The chain this entry belongs to",
            "position": "Its place in the chain, from 1, without gaps",
            "hash": "SHA-256 over the hash before and the content of this entry",
        },
    ),
    "audit_problems": (
        (
            "What was changed in or removed from the audit log; no rows when it is as the service "
            "wrote it"
        ),
        {
            "chain": "The chain that is not whole",
            "position": "The entry at which it shows",
            "recorded_at": "When that entry was recorded; null for the end of a chain",
            "problem": "What is wrong",
        },
    ),
    "indexes": (
        "Every index with its size and training",
        {
            "name": "The name clients use",
            "id": "The id; its partition is items_ and the id without hyphens",
            "metric": "cosine, euclidean or squared_euclidean",
            "dimension": "Length of the vectors; null until the first upsert when none was given",
            "storage_precision": "Number format of the vectors before sealing",
            "n_items": "How many items it has",
            "n_changes_since_training": (
                "Items added, replaced or deleted since the last training began to build"
            ),
            "changed_share": (
                "The same as a share of the items there were then; null before the first training"
            ),
            "is_drifted": "Train again: much has changed, or the last training missed its target",
            "n_lists": "IVF lists; 1 until the first training",
            "recall": "Recall@10 measured by the last training; null when it had no key",
            "is_training": "Whether a training is at work or waits for its turn",
            "training_phase": "What the last training does, or did last",
            "training_progress": "Per cent of it that is done",
            "trained_at": "When the last training ended; null before the first",
            "created_at": "When it was created",
            "size_bytes": "Bytes on disk with all that belongs to it",
            "ivf_size_bytes": "Bytes of its ivfflat index alone",
        },
    ),
    "trainings": (
        "The trainings of each index, one row each",
        {
            "index_name": "The name clients use",
            "index_id": "The index",
            "started_at": "When the training began",
            "finished_at": "When it ended",
            "outcome": "succeeded, failed or interrupted",
            "failure": "Why it failed; null when it did not",
            "n_items": "Items there were",
            "n_lists": "IVF lists it made; null when it did not get there",
            "recall": "Recall@10 it measured; null when it had no key",
        },
    ),
    "audit_partitions": (
        "The months of the audit log that are kept",
        {
            "name": "The partition",
            "months": (
                "What is in it; DEFAULT is for entries no other partition takes and is "
                "normally empty"
            ),
            "size_bytes": "Bytes on disk",
        },
    ),
}

# Roles belong to the whole server, so another database may be making this one, or may have made it.
_ROLE = """
    DO $$
    BEGIN
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'sealdex_auditor') THEN
            CREATE ROLE sealdex_auditor NOLOGIN;
        END IF;
    EXCEPTION
        WHEN duplicate_object OR unique_violation THEN NULL;
        WHEN insufficient_privilege THEN
            RAISE NOTICE '%', 'the role sealdex_auditor is not made: '
                || 'this user has no right to; see docs/audit.md';
    END
    $$
"""

_GRANTS = """
    DO $$
    BEGIN
        IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'sealdex_auditor') THEN
            GRANT USAGE ON SCHEMA sealdex_views TO sealdex_auditor;
            GRANT SELECT ON ALL TABLES IN SCHEMA sealdex_views TO sealdex_auditor;
            GRANT SELECT ON index_overview TO sealdex_auditor;
            ALTER DEFAULT PRIVILEGES IN SCHEMA sealdex_views
                GRANT SELECT ON TABLES TO sealdex_auditor;
        END IF;
    END
    $$
"""


def upgrade() -> None:
    _create_rate_limits()
    op.execute("CREATE SCHEMA sealdex_views")
    op.execute(
        "COMMENT ON SCHEMA sealdex_views IS 'Views on Sealdex for whoever owns the database; "
        "need no keys'"
    )
    _create_chains()
    _create_log()
    for statement in (_HASH, _CHAIN_ENTRY, _REFUSE, _ADD_PARTITIONS, _DROP_BEFORE):
        op.execute(statement)
    _create_triggers()
    op.execute("SELECT sealdex_views.add_audit_partitions(3)")
    for statement in (_AUDIT_VIEW, _PROBLEMS, _INDEXES_VIEW, _TRAININGS_VIEW, _PARTITIONS_VIEW):
        op.execute(statement)
    for view, (comment, columns) in _COMMENTS.items():
        op.execute(f"COMMENT ON VIEW sealdex_views.{view} IS {_literal(comment)}")
        for column, text in columns.items():
            op.execute(f"COMMENT ON COLUMN sealdex_views.{view}.{column} IS {_literal(text)}")
    op.execute("REVOKE ALL ON ALL FUNCTIONS IN SCHEMA sealdex_views FROM PUBLIC")
    op.execute("GRANT EXECUTE ON FUNCTION sealdex_views.audit_hash TO PUBLIC")
    op.execute(_ROLE)
    op.execute(_GRANTS)


def downgrade() -> None:
    # The role stays: it belongs to the server, and other databases may use it.
    op.execute("DROP TABLE audit_log CASCADE")
    op.execute("DROP SCHEMA sealdex_views CASCADE")
    op.drop_table("audit_chains")
    op.drop_table("rate_limits")


def _create_rate_limits() -> None:
    op.create_table(
        "rate_limits",
        sa.Column("caller", sa.Text(), nullable=False, comment="Whose rate, as in the audit log"),
        sa.Column(
            "busy_until",
            postgresql.TIMESTAMP(timezone=True),
            nullable=False,
            comment="Until when that rate is used up",
        ),
        sa.PrimaryKeyConstraint("caller", name=op.f("pk_rate_limits")),
        comment="How far each caller is ahead of its rate; empty unless a rate limit is set, and "
        "lost in a crash",
        # No WAL for what is worthless a second later.
        prefixes=["UNLOGGED"],
    )


def _create_chains() -> None:
    op.create_table(
        "audit_chains",
        sa.Column(
            "chain",
            sa.Integer(),
            autoincrement=False,
            nullable=False,
            comment="Number of the chain; writers at work at the same time use different ones",
        ),
        sa.Column(
            "position",
            sa.BigInteger(),
            server_default="0",
            nullable=False,
            comment="Position of the last entry",
        ),
        sa.Column(
            "hash",
            postgresql.BYTEA(),
            server_default=sa.text("'\\x'"),
            nullable=False,
            comment="Hash of the last entry; empty before the first",
        ),
        sa.Column(
            "kept_after",
            sa.BigInteger(),
            server_default="0",
            nullable=False,
            comment="Position of the last entry that retention has dropped",
        ),
        sa.Column(
            "kept_hash",
            postgresql.BYTEA(),
            server_default=sa.text("'\\x'"),
            nullable=False,
            comment="Hash of that entry; empty when none was dropped",
        ),
        sa.PrimaryKeyConstraint("chain", name=op.f("pk_audit_chains")),
        comment="Where each chain of the audit log ends, and where it begins since old months "
        "were dropped",
        postgresql_with={"fillfactor": "50"},
    )


def _create_log() -> None:
    op.create_table(
        "audit_log",
        sa.Column(
            "chain",
            sa.Integer(),
            autoincrement=False,
            nullable=False,
            comment="The chain of this entry",
        ),
        sa.Column(
            "position",
            sa.BigInteger(),
            autoincrement=False,
            nullable=False,
            comment="Place in the chain, from 1, without gaps",
        ),
        sa.Column(
            "recorded_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="When the transaction of the change began; decides the partition",
        ),
        sa.Column(
            "caller",
            sa.Text(),
            nullable=False,
            comment="Who: root, user and its id, open, or operator",
        ),
        sa.Column("key_id", sa.Text(), comment="Keyed fingerprint of the index key that was used"),
        sa.Column("operation", sa.Text(), nullable=False, comment="What was done"),
        sa.Column("index_id", sa.UUID(), comment="To which index"),
        sa.Column("index_name", sa.Text(), comment="Its name at that time"),
        sa.Column("n_items", sa.BigInteger(), comment="How many items were written or deleted"),
        sa.Column("request_id", sa.Text(), nullable=False, comment="X-Request-Id of the request"),
        sa.Column("outcome", sa.Text(), nullable=False, comment="done, refused or failed"),
        sa.Column(
            "previous_hash",
            postgresql.BYTEA(),
            nullable=False,
            comment="Hash of the entry before; empty at first",
        ),
        sa.Column(
            "hash",
            postgresql.BYTEA(),
            nullable=False,
            comment="SHA-256 over previous_hash and the columns before it",
        ),
        sa.PrimaryKeyConstraint("chain", "position", "recorded_at", name=op.f("pk_audit_log")),
        comment="Append-only: who changed what, written in the transaction of the change. No "
        "key, no plaintext",
        postgresql_partition_by="RANGE (recorded_at)",
    )
    op.execute("CREATE TABLE audit_log_default (LIKE audit_log INCLUDING ALL)")
    op.execute(
        "COMMENT ON TABLE audit_log_default IS 'Entries for which no month was made in time; "
        "normally empty'"
    )
    op.execute("ALTER TABLE audit_log ATTACH PARTITION audit_log_default DEFAULT")


def _create_triggers() -> None:
    op.execute(
        "CREATE TRIGGER chain_entry BEFORE INSERT ON audit_log"
        " FOR EACH ROW EXECUTE FUNCTION sealdex_views.chain_audit_entry()"
    )
    op.execute(
        "CREATE TRIGGER refuse_change BEFORE UPDATE OR DELETE ON audit_log"
        " FOR EACH ROW EXECUTE FUNCTION sealdex_views.refuse_audit_change()"
    )
    op.execute(
        "CREATE TRIGGER refuse_delete BEFORE DELETE ON audit_chains"
        " FOR EACH ROW EXECUTE FUNCTION sealdex_views.refuse_audit_change()"
    )
    for table in ("audit_log", "audit_log_default", "audit_chains"):
        op.execute(
            f"CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON {table}"
            " EXECUTE FUNCTION sealdex_views.refuse_audit_change()"
        )


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
