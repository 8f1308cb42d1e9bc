"""Items on which people disagree, side by side with what each said, and the last word on them."""

from __future__ import annotations

from secrets import token_hex
from typing import Annotated

from fastapi import APIRouter, Form, Query, Request
from markupsafe import Markup
from starlette.exceptions import HTTPException
from starlette.responses import Response

from goodheart.data.records import Message
from goodheart.errors import ConflictError, FeedbackError, MissingError
from goodheart.feedback import campaigns, disputes, guidelines, label_rows, labels
from goodheart.feedback.answered import MOST_COMMENT, Answered
from goodheart.feedback.store import Store
from goodheart.studio.differences import marked
from goodheart.studio.manage.frame import Line, back_to, manage_page, may_judge
from goodheart.studio.markdown import SHOWN_MOST
from goodheart.studio.marks import sound
from goodheart.studio.visitors import Adjudicator, ByForm, Number, StoreOf, person_of
from goodheart.studio.words import script_of

router = APIRouter()
_ON_A_PAGE = 50


@router.get("/c/{campaign}/disputes")
def disputes_page(
    request: Request, visitor: Adjudicator, store: StoreOf, campaign: Number, show: Annotated[str, Query()] = "waiting"
) -> Response:
    """Items that wait for a decision, or all on which people disagree, the least agreed upon first."""
    may_judge(request, store, campaign)
    if show == "all":
        listed = [disputes.look_at(store, item) for item, _ in disputes.disagreeing(store, campaign, limit=_ON_A_PAGE)]
    else:
        listed = disputes.disputed(store, campaign, limit=_ON_A_PAGE)
    waiting = disputes.count_disputed(store, campaign)
    return manage_page(request, store, campaign, "disputes.html", listed=listed, waiting=waiting, show=show)


@router.get("/c/{campaign}/disputes/{item}")
def dispute_page(request: Request, visitor: Adjudicator, store: StoreOf, campaign: Number, item: Number) -> Response:
    return _page(request, store, campaign, item)


def _page(
    request: Request, store: Store, campaign: int, item: int, problem: str | None = None, status: int = 200
) -> Response:
    may_judge(request, store, campaign)
    found = _look_at(store, campaign, item)
    asked = found.prompt
    turns = asked.messages if asked.is_chat else (Message("prompt", asked.text or ""),)
    languages = [script_of(each.words, "\n".join(turn.content for turn in turns)) for each in found.answers]
    settings = campaigns.get(store, campaign).settings
    two = len(found.answers) == 2
    context = {
        "found": found,
        "turns": turns,
        "languages": languages,
        "history": label_rows.history(store, item),
        "strengths": range(1, 5) if two and settings.strength else (),
        "differing": _differing(found) if two else (),
        "guideline": guidelines.current(store, campaign),
        "token": token_hex(16),
        "problem": problem,
    }
    return manage_page(request, store, campaign, "dispute.html", status, **context)


def _differing(found: disputes.Dispute) -> list[Markup]:
    """Both answers with what differs marked; made safe there."""
    first, second = (sound(each.words)[:SHOWN_MOST] for each in found.answers)
    return [Markup(side) for side in marked(first, second)]


def _look_at(store: Store, campaign: int, item: int) -> disputes.Dispute:
    """Raises 404 for an item of another campaign or one whose answer is known: nobody must learn which those are."""
    try:
        found = disputes.look_at(store, item)
    except MissingError as error:
        raise HTTPException(404) from error
    if found.campaign != campaign or found.phase != "work":
        raise HTTPException(404)
    return found


@router.post("/c/{campaign}/disputes/{item}", dependencies=[ByForm])
def decide(
    request: Request,
    visitor: Adjudicator,
    store: StoreOf,
    campaign: Number,
    item: Number,
    rank: Annotated[list[str] | None, Form(max_length=50)] = None,
    strength: Line = "",
    comment: Annotated[str, Form(max_length=MOST_COMMENT)] = "",
    token: Line = "",
) -> Response:
    """The adjudicator's ranks; the same form sent twice is one decision."""
    may_judge(request, store, campaign)
    found = _look_at(store, campaign, item)
    given = [text.strip() for text in rank or []]
    if len(given) != len(found.answers) or not all(text in map(str, range(1, 51)) for text in given):
        return _page(request, store, campaign, item, visitor.words("manage.rank_all"), 422)
    degree = int(strength) if strength in ("1", "2", "3", "4") else None
    said = Answered([int(text) - 1 for text in given], degree, comment=sound(comment).strip() or None)
    if token.isalnum() and token.isascii() and 8 <= len(token) <= 64:
        said = Answered(said.ranks, said.strength, comment=said.comment, request=token)
    try:
        labels.adjudicate(store, item, person_of(visitor).id, said)
    except ConflictError as error:
        return _page(request, store, campaign, item, str(error), 409)
    except FeedbackError as error:
        return _page(request, store, campaign, item, str(error), 422)
    left = disputes.disputed(store, campaign, limit=1)
    return back_to(campaign, f"/disputes/{left[0].item}" if left else "/disputes")
