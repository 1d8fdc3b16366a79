"""Which weights the embedding model of an index had, so that others in its place are noticed.

Revision ID: 0006
Revises: 0005
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "indexes",
        sa.Column(
            "embedding_weights",
            sa.Text(),
            comment="SHA-256 of the weights of that model when the index was created",
        ),
    )


def downgrade() -> None:
    op.drop_column("indexes", "embedding_weights")
