"""Users of an index: for each permission a key, wrapped under the key in the user's token.

The primary key begins with the index, as everywhere, so that tables can be distributed by it; a
token names its user alone, which has an index of its own.

Revision ID: 0004
Revises: 0003
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "users",
        sa.Column("index_id", sa.UUID(), nullable=False, comment="The index the user belongs to"),
        sa.Column(
            "user_id",
            postgresql.BYTEA(),
            nullable=False,
            comment="Random name of the user, part of its token",
        ),
        sa.Column(
            "wrapped_read_key",
            postgresql.BYTEA(),
            comment="What opens the items, wrapped under the key in the token; null without the "
            "permission",
        ),
        sa.Column(
            "wrapped_write_key",
            postgresql.BYTEA(),
            comment="What writes items, wrapped under the key in the token; null without the "
            "permission",
        ),
        sa.Column(
            "created_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
            comment="When the user was made",
        ),
        sa.CheckConstraint(
            "wrapped_read_key IS NOT NULL OR wrapped_write_key IS NOT NULL",
            name=op.f("ck_users_permission"),
        ),
        sa.ForeignKeyConstraint(
            ["index_id"], ["indexes.id"], name=op.f("fk_users_index_id_indexes"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("index_id", "user_id", name=op.f("pk_users")),
        comment="Users of one index each. A permission is a wrapped key; a row opens nothing "
        "without the user's token",
    )
    op.create_index(op.f("ix_users_user_id"), "users", ["user_id"])


def downgrade() -> None:
    op.drop_table("users")
