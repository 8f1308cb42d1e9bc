"""Locks that ran out are found by their campaign, and what somebody left open by when they had it.

By their time alone the locks of a paused campaign, which nobody ends, were gone through for each task of every other
one. And all that somebody had ever left open was read and sorted for each of their tasks.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    held = sa.text("state = 'given'")
    op.drop_index("ix_assignments_locks", "assignments")
    columns = ["campaign_id", "expires_at"]
    op.create_index("ix_assignments_locks", "assignments", columns, sqlite_where=held, postgresql_where=held)
    op.drop_index("ix_assignments_person", "assignments")
    op.create_index("ix_assignments_person", "assignments", ["campaign_id", "person_id", "state", "given_at", "id"])
