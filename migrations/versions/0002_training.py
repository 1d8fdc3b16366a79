"""Training: one job an index, the history of all trainings, and a view for the database's owner.

A job is a lease: its trainer renews `heartbeat_at`, and once that is 30 seconds old the job belongs
to nobody. So a killed service leaves no lock behind, and no session has to outlive a transaction.

Revision ID: 0002
Revises: 0001
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_TIME = postgresql.TIMESTAMP(timezone=True)

_VIEW = r"""
CREATE VIEW index_overview AS
SELECT indexes.id,
    indexes.name,
    'items_' || replace(indexes.id::text, '-', '') AS partition,
    counts.n_items,
    counts.n_changes - coalesce(indexes.n_changes_at_training, 0) AS n_changes_since_training,
    CASE WHEN indexes.n_items_at_training > 0 THEN
        round((counts.n_changes - indexes.n_changes_at_training) / indexes.n_items_at_training, 3)
    END AS changed_share,
    indexes.n_lists,
    round(counts.n_items / indexes.n_lists, 1) AS n_items_per_list,
    indexes.encoder_version,
    indexes.trained_at,
    (indexes.profile -> 'recall')::float AS recall,
    indexes.trained_at IS NOT NULL AND (
        counts.n_changes - indexes.n_changes_at_training > 0.3 * indexes.n_items_at_training
        OR coalesce(
            (indexes.profile -> 'recall')::float < (indexes.profile -> 'target')::float, false)
    ) AS is_drifted,
    coalesce(jobs.state, 'never trained') AS training_state,
    coalesce(jobs.state IN ('queued', 'running')
        AND jobs.heartbeat_at > now() - interval '30 seconds', false)
        AS is_training,
    jobs.phase AS training_phase,
    jobs.progress AS training_progress,
    jobs.failure AS training_failure,
    pg_total_relation_size(to_regclass('items_' || replace(indexes.id::text, '-', '')))
        AS size_bytes,
    pg_relation_size(to_regclass(
        'ivf_' || replace(indexes.id::text, '-', '') || '_' || indexes.generation))
        AS ivf_size_bytes
FROM indexes
CROSS JOIN LATERAL (
    SELECT coalesce(sum(n_items), 0) AS n_items, coalesce(sum(n_changes), 0) AS n_changes
    FROM item_counts WHERE index_id = indexes.id
) AS counts
LEFT JOIN training_jobs AS jobs ON jobs.index_id = indexes.id
"""

_VIEW_COMMENTS = {
    "id": "The index",
    "name": "The name clients use",
    "partition": "The table that holds its items",
    "n_items": "Number of items",
    "n_changes_since_training": (
        "Items added, replaced or deleted since the last training began to build"
    ),
    "changed_share": (
        "The same as a share of the items there were then; null before the first training"
    ),
    "n_lists": "IVF lists; 1 means that searches scan all sketches",
    "n_items_per_list": "Items in a list on average",
    "encoder_version": "0 until the encoder is fitted to the vectors by the first training",
    "trained_at": "When the last training ended; null before the first",
    "recall": (
        "Recall@10 measured by the last training for the default target; null when it had no key"
    ),
    "is_drifted": (
        "Train again: more than 0.3 of the items changed, or the last training missed its target"
    ),
    "training_state": (
        "How far the last training came: queued, running, succeeded, failed, interrupted"
    ),
    "is_training": "Whether some worker is at it now",
    "training_phase": (
        "What it does: waiting, fitting, encoding, building, calibrating, swapping or cleaning"
    ),
    "training_progress": "Per cent of it that is done",
    "training_failure": "Why it failed",
    "size_bytes": "Bytes on disk of the partition and everything on it",
    "ivf_size_bytes": "Bytes on disk of the ivfflat index that searches use",
}


def upgrade() -> None:
    _extend_indexes()
    _create_training_jobs()
    _create_trainings()
    op.execute(_VIEW)
    op.execute(
        "COMMENT ON VIEW index_overview IS 'One row an index: size, training, drift. Needs no key'"
    )
    for column, comment in _VIEW_COMMENTS.items():
        op.execute(f"COMMENT ON COLUMN index_overview.{column} IS '{comment}'")


def downgrade() -> None:
    op.execute("DROP VIEW index_overview")
    op.drop_table("trainings")
    op.drop_table("training_jobs")
    for column in ("is_training_due", "n_changes_at_training", "n_items_at_training"):
        op.drop_column("indexes", column)


def _extend_indexes() -> None:
    op.add_column(
        "indexes",
        sa.Column(
            "n_items_at_training",
            sa.BigInteger(),
            comment="Number of items when the last training began to build; null before the first",
        ),
    )
    op.add_column(
        "indexes",
        sa.Column(
            "n_changes_at_training",
            sa.BigInteger(),
            comment="Count of changes when the last training began to build; null before the first",
        ),
    )
    op.add_column(
        "indexes",
        sa.Column(
            "is_training_due",
            sa.Boolean(),
            server_default=sa.false(),
            nullable=False,
            comment="A training has begun and not succeeded: a request that holds the key starts "
            "it again",
        ),
    )


def _create_training_jobs() -> None:
    op.create_table(
        "training_jobs",
        sa.Column("index_id", sa.UUID(), nullable=False, comment="The index that is trained"),
        sa.Column(
            "claim",
            sa.UUID(),
            nullable=False,
            comment="Random name of the trainer that holds the job",
        ),
        sa.Column(
            "state",
            sa.Text(),
            nullable=False,
            comment="queued, running, succeeded, failed or interrupted",
        ),
        sa.Column(
            "queued_at",
            _TIME,
            server_default=sa.text("now()"),
            nullable=False,
            comment="When the training was asked for; the queue is in this order",
        ),
        sa.Column("started_at", _TIME, comment="When the training began; null while it is queued"),
        sa.Column(
            "heartbeat_at",
            _TIME,
            server_default=sa.text("now()"),
            nullable=False,
            comment="The trainer's last sign of life; a queued or running job without one for "
            "30 s belongs to nobody",
        ),
        sa.Column(
            "phase",
            sa.Text(),
            nullable=False,
            comment="waiting, fitting, encoding, building, calibrating, swapping or cleaning",
        ),
        sa.Column(
            "progress",
            sa.Integer(),
            nullable=False,
            comment="Per cent of the training that is done",
        ),
        sa.Column(
            "generation",
            sa.Integer(),
            nullable=False,
            comment="Generation of the ivfflat index that is being built",
        ),
        sa.Column(
            "requested_n_lists",
            sa.Integer(),
            comment="IVF lists the client asked for; null for as many as fit the items",
        ),
        sa.Column(
            "n_failures",
            sa.Integer(),
            nullable=False,
            comment="Trainings that failed since one succeeded",
        ),
        sa.Column(
            "failure", sa.Text(), comment="Why the last training failed; null when it did not"
        ),
        sa.Column(
            "next_attempt_at",
            _TIME,
            comment="No automatic training before; null when one may start at once",
        ),
        sa.ForeignKeyConstraint(
            ["index_id"],
            ["indexes.id"],
            name=op.f("fk_training_jobs_index_id_indexes"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("index_id", name=op.f("pk_training_jobs")),
        comment="The last training of each index that was ever asked for, and how far it is",
    )


def _create_trainings() -> None:
    op.create_table(
        "trainings",
        sa.Column(
            "id", sa.BigInteger(), sa.Identity(), nullable=False, comment="Number of the training"
        ),
        sa.Column("index_id", sa.UUID(), nullable=False, comment="The index that was trained"),
        sa.Column("started_at", _TIME, nullable=False, comment="When the training began"),
        sa.Column(
            "finished_at",
            _TIME,
            server_default=sa.text("now()"),
            nullable=False,
            comment="When the training ended",
        ),
        sa.Column("outcome", sa.Text(), nullable=False, comment="succeeded, failed or interrupted"),
        sa.Column("failure", sa.Text(), comment="Why it failed; null when it did not"),
        sa.Column("generation", sa.Integer(), comment="Generation of the ivfflat index it built"),
        sa.Column(
            "n_items",
            sa.BigInteger(),
            comment="Number of items when it began to build; null when it did not get there",
        ),
        sa.Column(
            "n_lists", sa.Integer(), comment="IVF lists it made; null when it did not get there"
        ),
        sa.Column(
            "encoder_version", sa.SmallInteger(), comment="Version of the encoder it built for"
        ),
        sa.Column(
            "recall",
            sa.Double(),
            comment="Measured recall@10 at the default target; null when it was not measured",
        ),
        sa.ForeignKeyConstraint(
            ["index_id"],
            ["indexes.id"],
            name=op.f("fk_trainings_index_id_indexes"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_trainings")),
        comment="Every training that has ended, the newest with the highest number",
    )
    op.create_index(op.f("ix_trainings_index_id"), "trainings", ["index_id"])
