"""The managers' pages. Each file of this package adds its endpoints to `router`."""

from __future__ import annotations

from fastapi import APIRouter

router = APIRouter(include_in_schema=True)

# Bytes of a request body that a manager's upload may have, by the beginning of its path.
BODY_MOST: dict[str, int] = {}
# Entries of the navigation for managers: key of the words, address (with {campaign}).
NAVIGATION: list[tuple[str, str]] = []
