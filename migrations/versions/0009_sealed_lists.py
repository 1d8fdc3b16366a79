"""Sealed indexes: the kind of an index, chunks of sealed lists, and layouts of the lists.

A sealed value does not compress, and filters read a column of their own, so both are EXTERNAL.

The GIN index of tokens becomes a matter of each partition, as sealed indexes have no tokens.
PostgreSQL frees the index of a partition from that of the whole table only with the partition: each
is detached and attached again, and keeps its index. Attaching reads the partition once.

Revision ID: 0009
Revises: 0008
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_PARTITIONS = """
    SELECT inhrelid::regclass::text, pg_get_expr(relpartbound, inhrelid), inhdetachpending
    FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
    WHERE inhparent = 'items'::regclass
"""


def upgrade() -> None:
    op.add_column(
        "indexes",
        sa.Column(
            "kind",
            sa.Text(),
            nullable=False,
            server_default="ivfflat",
            comment="ivfflat: PostgreSQL searches keyed sketches; "
            "sealed: the service searches sealed lists",
        ),
    )
    op.add_column(
        "items",
        sa.Column(
            "tag",
            sa.BigInteger(),
            comment="Random number of this version of the item, also in its entry; "
            "null outside sealed indexes",
        ),
    )
    _leave_token_indexes_to_partitions()
    _create_chunks()
    _create_layouts()


def downgrade() -> None:
    kinds = sa.text("SELECT count(*) FROM indexes WHERE kind <> 'ivfflat'")
    if op.get_bind().execute(kinds).scalar_one():
        raise SystemExit("Sealed indexes cannot be searched by an older schema: delete them first")
    op.drop_table("layouts")
    # Takes the partitions along.
    op.drop_table("chunks")
    # Takes over the indexes that the partitions have.
    op.create_index(
        "ix_items_tokens",
        "items",
        ["tokens"],
        postgresql_using="gin",
        postgresql_with={"fastupdate": "off"},
    )
    op.drop_column("items", "tag")
    op.drop_column("indexes", "kind")


def _leave_token_indexes_to_partitions() -> None:
    partitions = op.get_bind().execute(sa.text(_PARTITIONS)).all()
    for name, _, is_pending in partitions:
        # What is pending belongs to a deleted index, and is dropped by the service.
        how = " FINALIZE" if is_pending else ""
        op.execute(f"ALTER TABLE items DETACH PARTITION {name}{how}")
    op.drop_index("ix_items_tokens", table_name="items")
    for name, bounds, is_pending in partitions:
        if not is_pending:
            op.execute(f"ALTER TABLE items ATTACH PARTITION {name} {bounds}")


def _create_chunks() -> None:
    op.create_table(
        "chunks",
        sa.Column(
            "index_id",
            sa.UUID(),
            nullable=False,
            comment="The index this chunk belongs to; partition key",
        ),
        sa.Column(
            "name",
            postgresql.BYTEA(),
            nullable=False,
            comment="Random name of the chunk, never used again",
        ),
        sa.Column(
            "generation",
            sa.Integer(),
            nullable=False,
            comment="Generation of the lists that the entries were made for",
        ),
        sa.Column(
            "encoder_version",
            sa.SmallInteger(),
            nullable=False,
            comment="Version of the encoder that the entries were made with",
        ),
        sa.Column(
            "epoch",
            sa.BigInteger(),
            comment="Epoch in which a writer added the chunk; null for what belongs to a layout",
        ),
        sa.Column(
            "sealed_entries",
            postgresql.BYTEA(),
            nullable=False,
            comment="Entries of many items, or a page of a layout, sealed and padded",
        ),
        sa.Column(
            "sealed_terms",
            postgresql.BYTEA(),
            comment="What filters need of the same items, sealed and padded; null for none",
        ),
        sa.PrimaryKeyConstraint("index_id", "name", name=op.f("pk_chunks")),
        comment="The lists of all sealed indexes, one partition an index; every value is sealed",
        postgresql_partition_by="LIST (index_id)",
    )
    for column in ("sealed_entries", "sealed_terms"):
        op.execute(f"ALTER TABLE chunks ALTER COLUMN {column} SET STORAGE EXTERNAL")
    op.create_index(
        op.f("ix_chunks_epoch"),
        "chunks",
        ["index_id", "epoch"],
        postgresql_where=sa.text("epoch IS NOT NULL"),
    )


def _create_layouts() -> None:
    op.create_table(
        "layouts",
        sa.Column("index_id", sa.UUID(), nullable=False, comment="The index whose lists are told"),
        sa.Column(
            "version",
            sa.BigInteger(),
            autoincrement=False,
            nullable=False,
            comment="Number of the layout; the highest one holds",
        ),
        sa.Column(
            "generation",
            sa.Integer(),
            nullable=False,
            comment="Generation of the lists: of a training",
        ),
        sa.Column(
            "encoder_version",
            sa.SmallInteger(),
            nullable=False,
            comment="Version of the encoder that the lists were made with",
        ),
        sa.Column(
            "open_epoch",
            sa.BigInteger(),
            nullable=False,
            comment="Epoch that writers give the chunks they add",
        ),
        sa.Column(
            "first_epoch",
            sa.BigInteger(),
            nullable=False,
            comment="All chunks of earlier epochs have been merged into lists",
        ),
        sa.Column(
            "pages",
            postgresql.ARRAY(postgresql.BYTEA()),
            nullable=False,
            comment="Names of the chunks that hold pages of the layout: directory and centroids",
        ),
        sa.Column(
            "sealed_root",
            postgresql.BYTEA(),
            nullable=False,
            comment="What the pages are, sealed together with the numbers of this row",
        ),
        sa.Column(
            "retired",
            postgresql.ARRAY(postgresql.BYTEA()),
            nullable=False,
            comment="Names of the chunks that the layout before used and this one does not",
        ),
        sa.Column(
            "created_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
            comment="When the layout was made; retired chunks are deleted a minute later",
        ),
        sa.ForeignKeyConstraint(
            ["index_id"],
            ["indexes.id"],
            name=op.f("fk_layouts_index_id_indexes"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("index_id", "version", name=op.f("pk_layouts")),
        comment="Which chunks of a sealed index are in use: "
        "a row for each change, those of the last minute kept",
    )
