"""Labels as files, in every layout that goodheart writes."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.background import BackgroundTask
from starlette.responses import FileResponse, Response

from goodheart.data.layouts import LAYOUTS
from goodheart.errors import ConfigError, DataError
from goodheart.feedback import campaigns, exporting, targets
from goodheart.feedback.store import Store
from goodheart.studio.manage.frame import manage_page
from goodheart.studio.visitors import Manager, Number, StoreOf

router = APIRouter()
TOGETHER = {  # what several labels of the same answers become, and the words for it
    "each": "manage.together_each",
    "majority": "manage.together_majority",
    "soft": "manage.together_soft",
    targets.TRUSTED: "manage.together_trusted",
    targets.SCORES: "manage.together_scores",
}
SUFFIXES = (".jsonl", ".csv", ".parquet", ".json")


@router.get("/c/{campaign}/export")
def export_page(request: Request, visitor: Manager, store: StoreOf, campaign: Number) -> Response:
    return _page(request, store, campaign)


def _page(
    request: Request, store: Store, campaign: int, problem: str | None = None, status: int = 200, **chosen: Any
) -> Response:
    first = {"layout": "ranked", "labels": "each", "suffix": ".jsonl", "trust": False, **chosen}
    ways = {"layouts": list(LAYOUTS), "together": TOGETHER, "suffixes": SUFFIXES}
    return manage_page(request, store, campaign, "export.html", status, problem=problem, chosen=first, **ways)


@router.get("/c/{campaign}/export/file")
def export_file(
    request: Request,
    visitor: Manager,
    store: StoreOf,
    campaign: Number,
    layout: Annotated[str, Query(max_length=40)] = "ranked",
    labels: Annotated[str, Query(max_length=20)] = "each",
    suffix: Annotated[str, Query(max_length=10)] = ".jsonl",
    trust: Annotated[bool, Query()] = False,
) -> Response:
    """One file with the labels that count; rows that the layout cannot hold are left out."""
    found = campaigns.get(store, campaign)
    chosen = {"layout": layout, "labels": labels, "suffix": suffix, "trust": trust}
    if layout not in LAYOUTS or labels not in TOGETHER or suffix not in SUFFIXES:
        return _page(request, store, campaign, visitor.words("error.422"), 422)
    folder = tempfile.TemporaryDirectory(prefix="goodheart-")
    path = Path(folder.name) / f"labels{suffix}"
    try:
        done = exporting.export(store, campaign, path, layout, labels=labels, trust=trust)
    except (ConfigError, DataError) as error:
        folder.cleanup()
        return _page(request, store, campaign, str(error), 422, **chosen)
    if not done.rows:
        folder.cleanup()
        return _page(request, store, campaign, visitor.words("manage.export_nothing"), 422, **chosen)
    name = re.sub(r"[^\w-]+", "-", found.name) or "labels"
    clean = BackgroundTask(folder.cleanup)
    kind = "application/octet-stream"
    return FileResponse(path, media_type=kind, filename=f"{name}-{layout}-{labels}{suffix}", background=clean)
