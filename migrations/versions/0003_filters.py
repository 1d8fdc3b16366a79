"""Blind-index tokens of metadata, with a GIN index, and the sealed metadata schema.

`fastupdate` is off: with it on, new entries wait in a list that every search reads from end to end.
Tokens are hashes, so they are never compressed. They get no statistics either: the most common
tokens of a column tell how often each value occurs, and no plan needs them. Partitions do not
inherit that setting; the service repeats it for each.

Revision ID: 0003
Revises: 0002
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "indexes",
        sa.Column(
            "sealed_schema",
            postgresql.BYTEA(),
            comment="The metadata schema, sealed; null when the index was created without",
        ),
    )
    op.add_column(
        "items",
        sa.Column(
            "tokens",
            postgresql.ARRAY(sa.BigInteger()),
            comment="Keyed hashes of the metadata's strings and numbers, in no telling order; "
            "null for none",
        ),
    )
    op.execute("ALTER TABLE items ALTER COLUMN tokens SET STORAGE EXTERNAL")
    op.execute("ALTER TABLE items ALTER COLUMN tokens SET STATISTICS 0")
    op.create_index(
        "ix_items_tokens",
        "items",
        ["tokens"],
        postgresql_using="gin",
        postgresql_with={"fastupdate": "off"},
    )


def downgrade() -> None:
    op.drop_index("ix_items_tokens", table_name="items")
    op.drop_column("items", "tokens")
    op.drop_column("indexes", "sealed_schema")
