"""Lineage: when aliases were moved and by whom, and what models were made from."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Makes the tables; what aliases point to now is the first that is known of them."""
    op.create_table(
        "alias_moves",
        sa.Column("number", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("catalog", sa.String(length=63), nullable=False),
        sa.Column("alias", sa.String(length=63), nullable=False),
        sa.Column("action", sa.String(length=16), nullable=False),
        sa.Column("model", sa.String(length=80), nullable=False),
        sa.Column("before", sa.String(length=80), nullable=True),
        sa.Column("actor", sa.String(length=255), nullable=False),
        sa.Column("move_time", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("number"),
        sqlite_autoincrement=True,
    )
    op.create_index("alias_moves_catalog", "alias_moves", ["catalog", "number"])
    op.create_table(
        "model_origins",
        sa.Column("catalog", sa.String(length=63), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("origin", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("catalog", "name", "version"),
    )
    op.execute(
        "INSERT INTO alias_moves (catalog, alias, action, model, before, actor, move_time) "
        "SELECT catalog, alias, 'PROMOTED', name || ':' || CAST(version AS VARCHAR(16)), NULL, '', update_time "
        "FROM aliases ORDER BY update_time"
    )
