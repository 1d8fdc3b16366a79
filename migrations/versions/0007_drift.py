"""Drift: what was replaced or deleted is counted apart, and all can read the verdict.

Whether an index should be trained again was decided twice, by the service and by a view. Now the
service decides, writes its verdict to `index_drift`, and the one view of indexes shows it:
`sealdex_views.indexes`, which has taken in `index_overview`.

How many of the changes since a training were additions was not counted so far. They are taken to
be as few as the numbers of items allow, so that no drift is overlooked.

Revision ID: 0007
Revises: 0006
"""

from types import ModuleType

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_TIME = postgresql.TIMESTAMP(timezone=True)

_COUNT_OUTDATED = """
    UPDATE item_counts SET n_outdated = known.n_outdated
    FROM (
        SELECT indexes.id AS index_id, min(shard) AS shard, greatest(
            0,
            sum(n_changes) - min(n_changes_at_training)
                - greatest(0, sum(n_items) - min(n_items_at_training))
        )::bigint AS n_outdated
        FROM item_counts JOIN indexes ON indexes.id = index_id
        WHERE trained_at IS NOT NULL
        GROUP BY indexes.id
    ) AS known
    WHERE item_counts.index_id = known.index_id AND item_counts.shard = known.shard
"""

_VIEW = r"""
    CREATE VIEW sealdex_views.indexes AS
    SELECT indexes.name,
        indexes.id,
        'items_' || replace(indexes.id::text, '-', '') AS partition,
        indexes.metric,
        indexes.dimension,
        indexes.storage_precision,
        counts.n_items,
        counts.n_changes - coalesce(indexes.n_changes_at_training, 0) AS n_changes_since_training,
        counts.n_outdated - coalesce(indexes.n_outdated_at_training, 0)
            AS n_outdated_since_training,
        CASE WHEN indexes.n_items_at_training > 0 THEN round(
            (counts.n_outdated - indexes.n_outdated_at_training)::numeric
                / indexes.n_items_at_training, 3
        ) END AS changed_share,
        coalesce(cardinality(drift.reasons) > 0, false) AS is_drifted,
        coalesce(drift.reasons, '{}') AS drift_reasons,
        drift.list_imbalance,
        drift.looked_at AS drift_looked_at,
        indexes.n_lists,
        round(counts.n_items::numeric / indexes.n_lists, 1) AS n_items_per_list,
        indexes.encoder_version,
        (indexes.profile -> 'recall')::float AS recall,
        indexes.trained_at,
        coalesce(jobs.state, 'never trained') AS training_state,
        coalesce(
            jobs.state IN ('queued', 'running')
                AND jobs.heartbeat_at BETWEEN now() - interval '30 s' AND now() + interval '30 s',
            false
        ) AS is_training,
        jobs.phase AS training_phase,
        jobs.progress AS training_progress,
        jobs.failure AS training_failure,
        indexes.created_at,
        coalesce(pg_total_relation_size(partition.oid), 0) AS size_bytes,
        coalesce(ivf.size_bytes, 0)::bigint AS ivf_size_bytes
    FROM indexes
    CROSS JOIN LATERAL (
        SELECT coalesce(sum(n_items), 0)::bigint AS n_items,
            coalesce(sum(n_changes), 0)::bigint AS n_changes,
            coalesce(sum(n_outdated), 0)::bigint AS n_outdated
        FROM item_counts WHERE index_id = indexes.id
    ) AS counts
    LEFT JOIN training_jobs AS jobs ON jobs.index_id = indexes.id
    LEFT JOIN index_drift AS drift ON drift.index_id = indexes.id
    LEFT JOIN pg_class AS partition
        ON partition.relname = 'items_' || replace(indexes.id::text, '-', '')
        AND partition.relnamespace = (
            SELECT relnamespace FROM pg_class WHERE oid = 'items'::regclass
        )
    LEFT JOIN LATERAL (
        SELECT sum(pg_relation_size(indexrelid)) AS size_bytes
        FROM pg_index JOIN pg_class AS ivf_class ON ivf_class.oid = indexrelid
        WHERE indrelid = partition.oid AND starts_with(ivf_class.relname, 'ivf_')
    ) AS ivf ON true
"""

_VIEW_COMMENTS = {
    "name": "The name clients use",
    "id": "The id of the index",
    "partition": "The table that holds its items",
    "metric": "cosine, euclidean or squared_euclidean",
    "dimension": "Length of the vectors; null until the first upsert when none was given",
    "storage_precision": "Number format of the vectors before sealing",
    "n_items": "Number of items",
    "n_changes_since_training": "Items added, replaced or deleted since the last training",
    "n_outdated_since_training": "Items replaced or deleted since the last training",
    "changed_share": "Items replaced or deleted since the last training as a share of the items "
    "there were then; null before the first training",
    "is_drifted": "Whether to train again, as the service found when it last looked",
    "drift_reasons": "Why to train again; empty when there is no reason",
    "list_imbalance": "Size of the list of an average item over the size of an average list; "
    "null before the first training",
    "drift_looked_at": "When the service last looked; null before the first training",
    "n_lists": "IVF lists; 1 means that searches scan all sketches",
    "n_items_per_list": "Items in a list on average",
    "encoder_version": "0 until the encoder is fitted to the vectors by the first training",
    "recall": "Recall@10 measured by the last training for the default target; null when the "
    "training had no key",
    "trained_at": "When the last training ended; null before the first",
    "training_state": "How far the last training came: queued, running, succeeded, failed, "
    "interrupted",
    "is_training": "Whether a training is at work or waits for its turn",
    "training_phase": "What the last training does, or did last: waiting, fitting, encoding, "
    "building, calibrating, swapping or cleaning",
    "training_progress": "Per cent of the last training that is done",
    "training_failure": "Why the last training failed; null when it did not",
    "created_at": "When the index was created",
    "size_bytes": "Bytes on disk of the partition and everything on it",
    "ivf_size_bytes": "Bytes on disk of its ivfflat indexes",
}

# The view of before had the privilege by default, which holds only for the role that ran 0005.
_GRANT = """
    DO $$
    BEGIN
        IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'sealdex_auditor') THEN
            GRANT SELECT ON {views} TO sealdex_auditor;
        END IF;
    END
    $$
"""


def upgrade() -> None:
    _add_counts()
    _create_index_drift()
    op.execute("DROP VIEW sealdex_views.indexes")
    op.execute("DROP VIEW index_overview")
    op.execute(_VIEW)
    _comment("sealdex_views.indexes", "Every index: size, training, drift", _VIEW_COMMENTS)
    op.execute(_GRANT.format(views="sealdex_views.indexes"))


def downgrade() -> None:
    op.execute("DROP VIEW sealdex_views.indexes")
    _restore_views()
    op.drop_table("index_drift")
    op.drop_column("indexes", "n_outdated_at_training")
    op.drop_column("item_counts", "n_outdated")


def _add_counts() -> None:
    op.add_column(
        "item_counts",
        sa.Column(
            "n_outdated",
            sa.BigInteger(),
            server_default="0",
            nullable=False,
            comment="Items replaced or deleted; n_changes counts them too",
        ),
    )
    op.add_column(
        "indexes",
        sa.Column(
            "n_outdated_at_training",
            sa.BigInteger(),
            comment="Count of items replaced or deleted when the last training began to build; "
            "null before the first",
        ),
    )
    op.execute("UPDATE indexes SET n_outdated_at_training = 0 WHERE trained_at IS NOT NULL")
    op.execute(_COUNT_OUTDATED)


def _create_index_drift() -> None:
    op.create_table(
        "index_drift",
        sa.Column("index_id", sa.UUID(), nullable=False, comment="The index that was looked at"),
        sa.Column(
            "looked_at",
            _TIME,
            server_default=sa.text("now()"),
            nullable=False,
            comment="When the service looked",
        ),
        sa.Column(
            "n_changes",
            sa.BigInteger(),
            nullable=False,
            comment="Count of changes at that time; another count calls for another look",
        ),
        sa.Column(
            "drift_share",
            sa.Double(),
            nullable=False,
            comment="SEALDEX_DRIFT_SHARE of the service that looked",
        ),
        sa.Column(
            "list_imbalance",
            sa.Double(),
            comment="Size of the list of an average item over the size of an average list",
        ),
        sa.Column(
            "reasons",
            postgresql.ARRAY(sa.Text()),
            nullable=False,
            comment="Why the index should be trained again; empty when there is no reason",
        ),
        sa.ForeignKeyConstraint(
            ["index_id"],
            ["indexes.id"],
            name=op.f("fk_index_drift_index_id_indexes"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("index_id", name=op.f("pk_index_drift")),
        comment="Whether each trained index should be trained again, as the service saw it last",
    )


def _restore_views() -> None:
    first, second = _module("0002"), _module("0005")
    op.execute(first._VIEW)  # noqa: SLF001 - the view as that revision made it
    _comment(
        "index_overview",
        "One row an index: size, training, drift. Needs no key",
        first._VIEW_COMMENTS,  # noqa: SLF001 - the same
    )
    op.execute(second._INDEXES_VIEW)  # noqa: SLF001 - the same
    _comment("sealdex_views.indexes", *second._COMMENTS["indexes"])  # noqa: SLF001 - the same
    op.execute(_GRANT.format(views="index_overview, sealdex_views.indexes"))


def _module(revision_id: str) -> ModuleType:
    """Return the module of an earlier revision."""
    module: ModuleType = op.get_context().opts["script"].get_revision(revision_id).module
    return module


def _comment(view: str, comment: str, columns: dict[str, str]) -> None:
    op.execute(f"COMMENT ON VIEW {view} IS {_literal(comment)}")
    for column, text in columns.items():
        op.execute(f"COMMENT ON COLUMN {view}.{column} IS {_literal(text)}")


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
