"""The managers' pages. Each file of this package adds its endpoints to `router`.

Their templates extend `manage.html`, which has the navigation, and are given the `campaign` they are about.
"""

from __future__ import annotations

from fastapi import APIRouter

router = APIRouter(include_in_schema=True)

# Bytes of a request body that a manager's upload may have, by the beginning of its path.
BODY_MOST: dict[str, int] = {}
# Entries of the managers' navigation: key of the words, and address below the campaign's ("" is its first page).
NAVIGATION: list[tuple[str, str]] = []
