"""What the labels say: agreement, models, coverage of the prompts."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from goodheart.errors import DataError
from goodheart.feedback import campaigns, quality
from goodheart.studio.manage.frame import manage_page
from goodheart.studio.visitors import Manager, Number, StoreOf
from goodheart.studio.words import Words

router = APIRouter()
MOST_PAIRS = 100  # of labellers on a page
_TOPICS = 12
_MOST_CELLS = 400  # on a page


@router.get("/c/{campaign}/agreement")
def agreement_page(request: Request, visitor: Manager, store: StoreOf, campaign: Number) -> Response:
    found = quality.agreement_of(store, campaign)
    t = visitor.words
    measures = None if found is None else _measures(t, found)
    pairs = [] if found is None else found.pairs[:MOST_PAIRS]
    return manage_page(request, store, campaign, "agreement.html", found=found, measures=measures, pairs=pairs)


def _measures(t: Words, found: quality.Agreement) -> list[tuple[str, str, object]]:
    whole = found.whole
    return [
        (t("manage.alpha"), t("manage.alpha_about"), whole.alpha),
        (t("manage.fleiss"), t("manage.fleiss_about"), whole.fleiss),
        (t("manage.raw"), t("manage.raw_about"), whole.raw),
        (t("manage.with_others"), t("manage.with_others_about"), whole.with_others),
    ]


@router.get("/c/{campaign}/models")
def models_page(request: Request, visitor: Manager, store: StoreOf, campaign: Number) -> Response:
    found = quality.leaderboard(store, campaign)
    ends = (0.0, 1.0)
    elo = {}
    if found is not None:
        rows = found.bradley_terry.rows
        ends = (min(row.low for row in rows), max(row.high for row in rows))
        elo = {row.name: row for row in found.elo.rows}
    return manage_page(request, store, campaign, "models.html", found=found, elo=elo, ends=ends)


@router.get("/c/{campaign}/coverage")
def coverage_page(
    request: Request,
    visitor: Manager,
    store: StoreOf,
    campaign: Number,
    column: Annotated[list[str] | None, Query(max_length=10)] = None,
    wanted: Annotated[int, Query(ge=1, le=1_000_000)] = 10,
) -> Response:
    """Prompts by slice, the emptiest first, and by topics found in their texts."""
    settings = campaigns.get(store, campaign).settings
    known = sorted({name for cut in quality.slices(store, campaign) for name in cut})
    chosen = [name for name in column or known[:2] if name in known]
    values = {name: list(counts) for name, counts in settings.quotas.items()}
    if settings.languages:
        values.setdefault("language", list(settings.languages))
    found = problem = topics = None
    texts: list[str] = []
    try:
        if chosen:
            found = quality.covered(store, campaign, chosen, wanted, {n: values[n] for n in chosen if n in values})
        topics, texts = quality.topics(store, campaign, _TOPICS)
    except DataError as error:
        problem = str(error)
    context = {"columns": known, "chosen": chosen, "wanted": wanted, "found": found, "problem": problem}
    cells = [] if found is None else found.cells[:_MOST_CELLS]
    return manage_page(request, store, campaign, "coverage.html", cells=cells, topics=topics, texts=texts, **context)
