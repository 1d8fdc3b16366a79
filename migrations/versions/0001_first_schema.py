"""The first schema: indexes, their items, and how many there are.

Ciphertext does not compress, so no column of it is EXTENDED, the default. Sealed id, contents and
metadata are EXTERNAL: out of the row, uncompressed, once the row is too long. The sealed vector is
MAIN: it leaves the row last, because a search reads it for every candidate. MAIN would also try to
compress it, but only when the row is still too long after the others have left, and gives up early
on what does not compress.

Partitions made with LIKE … INCLUDING ALL inherit storage and comments.

Revision ID: 0001
Revises:
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_STORAGE = {
    "sealed_id": "EXTERNAL",
    "sealed_contents": "EXTERNAL",
    "sealed_metadata": "EXTERNAL",
    "sealed_vector": "MAIN",
}


def upgrade() -> None:
    op.execute("CREATE EXTENSION IF NOT EXISTS vector")
    _create_indexes()
    _create_items()
    _create_item_counts()
    _create_dropped_indexes()
    op.execute(
        "COMMENT ON TABLE sealdex_alembic_version IS"
        " 'Revision of this schema, written by sealdex migrate'"
    )
    op.execute(
        "COMMENT ON COLUMN sealdex_alembic_version.version_num IS"
        " 'Number of the last migration that was applied'"
    )


def downgrade() -> None:
    op.drop_table("dropped_indexes")
    op.drop_table("item_counts")
    # Takes the partitions along. The extension stays: it may have been there before.
    op.drop_table("items")
    op.drop_table("indexes")


def _create_indexes() -> None:
    op.create_table(
        "indexes",
        sa.Column(
            "id",
            sa.UUID(),
            nullable=False,
            comment="Names the partition of items and is bound into every sealed value",
        ),
        sa.Column("name", sa.Text(), nullable=False, comment="The name clients use; not encrypted"),
        sa.Column(
            "revision",
            sa.BigInteger(),
            server_default="1",
            nullable=False,
            comment="Grows with every change of this row that a worker must notice",
        ),
        sa.Column(
            "metric", sa.Text(), nullable=False, comment="cosine, euclidean or squared_euclidean"
        ),
        sa.Column(
            "storage_precision",
            sa.Text(),
            nullable=False,
            comment="Number format of the vectors before sealing",
        ),
        sa.Column(
            "dimension",
            sa.Integer(),
            comment="Length of the vectors; null until the first upsert when none was given",
        ),
        sa.Column(
            "sketch_bits",
            sa.Integer(),
            comment="Length of a sketch; null until the dimension is known",
        ),
        sa.Column(
            "sketch_noise",
            sa.Double(),
            nullable=False,
            comment="Share of the bits of a stored sketch that are flipped",
        ),
        sa.Column(
            "wrapped_dek",
            postgresql.BYTEA(),
            nullable=False,
            comment="The data-encryption key, wrapped under the index key of the client",
        ),
        sa.Column(
            "encoder_version",
            sa.SmallInteger(),
            server_default="0",
            nullable=False,
            comment="Version of the encoder that queries use; version v lives in column "
            "sketch_(v mod 2)",
        ),
        sa.Column(
            "sealed_encoder",
            postgresql.BYTEA(),
            comment="Mean and scale of the encoder, sealed; null until the first upsert",
        ),
        sa.Column(
            "sealed_next_encoder",
            postgresql.BYTEA(),
            comment="Mean and scale of the next version while a training moves to it, sealed",
        ),
        sa.Column(
            "generation",
            sa.Integer(),
            server_default="1",
            nullable=False,
            comment="Generation of the ivfflat index that queries use: ivf_(id)_(generation)",
        ),
        sa.Column(
            "n_lists",
            sa.Integer(),
            server_default="1",
            nullable=False,
            comment="IVF lists of that index; 1 until the first training",
        ),
        sa.Column(
            "requested_n_lists", sa.Integer(), comment="IVF lists the client asked for at creation"
        ),
        sa.Column(
            "trained_at",
            postgresql.TIMESTAMP(timezone=True),
            comment="When the last training ended; null before the first",
        ),
        sa.Column(
            "profile",
            postgresql.JSONB(),
            comment="Search profile: recall by probes and pool, measured by the last training",
        ),
        sa.Column("embedding_model", sa.Text(), comment="Model that embeds contents, if any"),
        sa.Column(
            "index_config",
            postgresql.JSONB(),
            comment="The index_config an older client sent at creation",
        ),
        sa.Column(
            "created_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="When the index was created",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_indexes")),
        sa.UniqueConstraint("name", name=op.f("uq_indexes_name")),
        comment="One row an index. Holds no key that opens anything without the client's index key",
    )


def _create_items() -> None:
    op.create_table(
        "items",
        sa.Column(
            "index_id",
            sa.UUID(),
            nullable=False,
            comment="The index this item belongs to; partition key",
        ),
        sa.Column(
            "item_key",
            postgresql.BYTEA(),
            nullable=False,
            comment="Keyed hash of the id: first 16 bytes of HMAC-SHA256",
        ),
        sa.Column("sealed_id", postgresql.BYTEA(), nullable=False, comment="The id, sealed"),
        sa.Column(
            "sketch_0",
            postgresql.BIT(varying=True),
            comment="Keyed sketch of the vector by the encoder's even versions. "
            "Not encryption: near vectors have near sketches",
        ),
        sa.Column(
            "sketch_1",
            postgresql.BIT(varying=True),
            comment="Keyed sketch of the vector by the encoder's odd versions",
        ),
        sa.Column(
            "sealed_vector", postgresql.BYTEA(), nullable=False, comment="The exact vector, sealed"
        ),
        sa.Column(
            "sealed_contents",
            postgresql.BYTEA(),
            comment="The contents, sealed; null when there are none",
        ),
        sa.Column(
            "sealed_metadata",
            postgresql.BYTEA(),
            comment="The metadata as JSON, sealed; null when there is none",
        ),
        sa.Column(
            "created_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="When the id was first stored",
        ),
        sa.Column(
            "updated_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="When the item was last replaced",
        ),
        sa.PrimaryKeyConstraint("index_id", "item_key", name=op.f("pk_items")),
        comment="The items of all indexes, one partition an index; every value is sealed or keyed",
        postgresql_partition_by="LIST (index_id)",
    )
    for column, storage in _STORAGE.items():
        op.execute(f"ALTER TABLE items ALTER COLUMN {column} SET STORAGE {storage}")


def _create_item_counts() -> None:
    op.create_table(
        "item_counts",
        sa.Column("index_id", sa.UUID(), nullable=False, comment="The index that is counted"),
        sa.Column(
            "shard",
            sa.Integer(),
            nullable=False,
            comment="Writers at work at the same time use different shards, so that none waits",
        ),
        sa.Column(
            "n_items",
            sa.BigInteger(),
            nullable=False,
            comment="Items added less items deleted; the sum over the shards is the number of "
            "items",
        ),
        sa.Column(
            "n_changes", sa.BigInteger(), nullable=False, comment="Items added, replaced or deleted"
        ),
        sa.ForeignKeyConstraint(
            ["index_id"],
            ["indexes.id"],
            name=op.f("fk_item_counts_index_id_indexes"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("index_id", "shard", name=op.f("pk_item_counts")),
        comment="How many items each index has, kept in the transaction that changes them",
    )


def _create_dropped_indexes() -> None:
    op.create_table(
        "dropped_indexes",
        sa.Column(
            "id",
            sa.UUID(),
            nullable=False,
            comment="A deleted index whose partition is still to be dropped",
        ),
        sa.Column(
            "dropped_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="When it was deleted",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_dropped_indexes")),
        comment="Deleted indexes whose partition is not yet gone; normally empty",
    )
