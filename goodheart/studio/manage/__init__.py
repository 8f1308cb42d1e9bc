"""The managers' pages. Each file of this package has its own endpoints.

Their templates extend `manage.html`, which has the navigation, and are given the `campaign` they are about.
"""

from __future__ import annotations

from fastapi import APIRouter

from goodheart.studio.manage import creating, deciding, editing, findings, leaving, log, overview, team

router = APIRouter(include_in_schema=True)
for _part in (overview, team, findings, deciding, editing, leaving, creating, log):
    router.include_router(_part.router)

# Bytes of a request body that a manager's upload may have, by the beginning of its path.
BODY_MOST: dict[str, int] = {"/new": creating.UPLOAD_MOST, "/add/": creating.UPLOAD_MOST}
# Entries of the managers' navigation: key of the words, and address below the campaign's ("" is its first page).
NAVIGATION: list[tuple[str, str]] = [
    ("manage.overview", ""),
    ("manage.people", "/people"),
    ("manage.agreement", "/agreement"),
    ("manage.disputes", "/disputes"),
    ("manage.guidelines", "/guidelines/edit"),
    ("manage.models", "/models"),
    ("manage.coverage", "/coverage"),
    ("manage.export", "/export"),
    ("manage.audit", "/audit"),
]
