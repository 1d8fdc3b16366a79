"""The sealed header of an index, so that facts which are changed without the key are noticed.

Revision ID: 0008
Revises: 0007
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "indexes",
        sa.Column(
            "sealed_header",
            sa.LargeBinary(),
            comment="What this row says in the clear of name, metric, noise and the like, sealed; "
            "null until the first request with the key after an upgrade",
        ),
    )


def downgrade() -> None:
    op.drop_column("indexes", "sealed_header")
