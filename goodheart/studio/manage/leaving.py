"""Labels as files, in every layout that goodheart writes."""

from __future__ import annotations

import json
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from starlette.background import BackgroundTask
from starlette.responses import FileResponse, Response

from goodheart.data.layouts import LAYOUTS, NOTHING
from goodheart.errors import ConfigError, DataError
from goodheart.feedback import campaigns, exporting, targets
from goodheart.feedback.progress import kept_back, progress
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
_COUNTED_UNASKED = 10_000  # labels that are counted in less than a second


@dataclass(slots=True)
class Chosen:
    """What the form of an export says."""

    layout: Annotated[str, Query(max_length=40)] = "ranked"
    labels: Annotated[str, Query(max_length=20)] = "each"
    suffix: Annotated[str, Query(max_length=10)] = ".jsonl"
    trust: Annotated[bool, Query()] = False

    @property
    def is_known(self) -> bool:
        return self.layout in LAYOUTS and self.labels in TOGETHER and self.suffix in SUFFIXES


@router.get("/c/{campaign}/export")
def export_page(
    request: Request,
    visitor: Manager,
    store: StoreOf,
    campaign: Number,
    chosen: Annotated[Chosen, Depends()],
    count: Annotated[bool, Query()] = False,
) -> Response:
    """The form, and what the file would have and leave out: counted where that is quick or asked for."""
    if not chosen.is_known:
        return _page(request, store, campaign, Chosen(), problem=visitor.words("error.422"), status=422)
    if not count and progress(store, campaign).labels > _COUNTED_UNASKED:
        return _page(request, store, campaign, chosen)
    try:
        done = exporting.count(store, campaign, chosen.layout, labels=chosen.labels, trust=chosen.trust)
    except (ConfigError, DataError) as error:
        return _page(request, store, campaign, chosen, problem=str(error), status=422)
    return _page(request, store, campaign, chosen, done)


def _page(
    request: Request,
    store: Store,
    campaign: int,
    chosen: Chosen,
    done: exporting.Exported | None = None,
    *,
    problem: str | None = None,
    status: int = 200,
) -> Response:
    ways = {"layouts": list(LAYOUTS), "together": TOGETHER, "suffixes": SUFFIXES, "nothing": NOTHING}
    about = {"chosen": chosen, "done": done, "problem": problem, "kept": kept_back(store, campaign)}
    return manage_page(request, store, campaign, "export.html", status, **ways, **about)


@router.get("/c/{campaign}/export/file")
def export_file(
    request: Request, visitor: Manager, store: StoreOf, campaign: Number, chosen: Annotated[Chosen, Depends()]
) -> Response:
    """One file with the labels that count; its headers tell how many rows it has, and what is left out."""
    found = campaigns.get(store, campaign)
    if not chosen.is_known:
        return _page(request, store, campaign, Chosen(), problem=visitor.words("error.422"), status=422)
    folder = tempfile.TemporaryDirectory(prefix="goodheart-")
    path = Path(folder.name) / f"labels{chosen.suffix}"
    try:
        done = exporting.export(store, campaign, path, chosen.layout, labels=chosen.labels, trust=chosen.trust)
    except (ConfigError, DataError) as error:
        folder.cleanup()
        return _page(request, store, campaign, chosen, problem=str(error), status=422)
    if not done.rows:
        folder.cleanup()
        said = visitor.words("manage.export_nothing")
        return _page(request, store, campaign, chosen, done, problem=said, status=422)
    name = re.sub(r"[^\w-]+", "-", found.name) or "labels"
    return FileResponse(
        path,
        media_type="application/octet-stream",
        filename=f"{name}-{chosen.layout}-{chosen.labels}{chosen.suffix}",
        headers={"Goodheart-Rows": str(done.rows), "Goodheart-Left-Out": json.dumps(done.left_out)},
        background=BackgroundTask(folder.cleanup),
    )
