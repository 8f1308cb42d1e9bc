"""What was done in the studio, by whom, when."""

from __future__ import annotations

import json
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from goodheart.feedback import audit
from goodheart.studio.manage.frame import manage_page
from goodheart.studio.visitors import Manager, Number, StoreOf

router = APIRouter()
_ON_A_PAGE = 100


@router.get("/c/{campaign}/audit")
def log_page(
    request: Request,
    visitor: Manager,
    store: StoreOf,
    campaign: Number,
    before: Annotated[int | None, Query(ge=1, le=2**31 - 1)] = None,
) -> Response:
    found = audit.entries(store, before=before, limit=_ON_A_PAGE)
    shown = [(each, json.dumps(each.what, ensure_ascii=False, default=str)[1:-1]) for each in found]
    older = found[-1].id if len(found) == _ON_A_PAGE else None
    return manage_page(request, store, campaign, "audit.html", entries=shown, older=older)
