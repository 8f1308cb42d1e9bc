"""The first page of a campaign: how far it is, when it will be done, what it costs, and what needs a look."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from pydantic import ValidationError
from starlette.responses import Response

from goodheart.errors import ConflictError, FeedbackError, MissingError
from goodheart.feedback import campaigns, disputes, membership, quality
from goodheart.feedback.campaigns import Campaign
from goodheart.feedback.progress import Forecast, by_day, forecast, progress
from goodheart.feedback.store import Store, utcnow
from goodheart.studio.manage.frame import LOW_ALPHA, Line, back_to, decimal, manage_page
from goodheart.studio.manage.meanwhile import Opened, Other, filled_in, kept, others
from goodheart.studio.manage.rules import CHANGEABLE_GROUPS, Typed, changes, problems, typed
from goodheart.studio.visitors import ByForm, Manager, Number, StoreOf, person_of
from goodheart.studio.words import Words

router = APIRouter()
Alert = tuple[str, str]  # words, address below the campaign's
_STATES = {"open": campaigns.resume, "paused": campaigns.pause, "closed": campaigns.close}


@router.get("/c/{campaign}")
def overview(request: Request, visitor: Manager, store: StoreOf, campaign: Number) -> Response:
    return _page(request, visitor.words, store, campaign)


def _page(
    request: Request,
    words: Words,
    store: Store,
    campaign: int,
    problems: Mapping[str, str] | None = None,
    status: int = 200,
    given: Typed | None = None,
    meanwhile: Sequence[Other] = (),
    compared: Campaign | None = None,
) -> Response:
    """compared: the campaign as it was when `given` was held against it, which another save may have changed since."""
    found = compared or campaigns.get(store, campaign)
    expected, agreed = forecast(store, campaign), quality.agreement_of(store, campaign)
    context = {
        "progress": progress(store, campaign),
        "forecast": expected,
        "days": by_day(store, campaign, utcnow().date()),
        "alpha": None if agreed is None else agreed.whole.alpha,
        "alerts": alerts(store, found, expected, words),
        "groups": CHANGEABLE_GROUPS,
        "given": given or typed(found.settings),
        "opened": filled_in(found.settings),
        "meanwhile": meanwhile,
        "problems": problems or {},
    }
    return manage_page(request, store, campaign, "overview.html", status, **context)


def alerts(store: Store, campaign: Campaign, expected: Forecast, words: Words) -> list[Alert]:
    """What a manager should look at, the most pressing first."""
    found: list[Alert] = []
    waiting = disputes.count_disputed(store, campaign.id)
    if waiting:
        found.append((words("manage.alert_disputes", n=waiting), "/disputes"))
    states = Counter(member.state for member in membership.list_members(store, campaign.id))
    if states["paused"]:
        found.append((words("manage.alert_paused", n=states["paused"]), "/people"))
    careless = [row.name for row in quality.person_rows(store, campaign.id) if row.quality and row.quality.careless]
    if careless:
        found.append((words("manage.alert_careless", names=", ".join(careless)), "/people"))
    agreed = quality.agreement_of(store, campaign.id)
    alpha = None if agreed is None else agreed.whole.alpha
    if alpha is not None and alpha.value is not None and alpha.items >= 10 and alpha.value < LOW_ALPHA:
        found.append((words("manage.alert_agreement", alpha=decimal(alpha.value)), "/agreement"))
    if expected.late:
        found.append((words("manage.alert_late"), ""))
    if expected.over_budget:
        found.append((words("manage.alert_budget"), ""))
    return found


@router.post("/c/{campaign}/state", dependencies=[ByForm])
def set_state(request: Request, visitor: Manager, store: StoreOf, campaign: Number, state: Line = "") -> Response:
    """Pauses, resumes or closes a campaign."""
    change = _STATES.get(state)
    if change is None:
        return _page(request, visitor.words, store, campaign, {"": visitor.words("error.422")}, 422)
    change(store, campaign, by=person_of(visitor).id)
    return back_to(campaign)


@router.post("/c/{campaign}/rules", dependencies=[ByForm])
def change_rules(
    request: Request,
    visitor: Manager,
    store: StoreOf,
    campaign: Number,
    given: Annotated[Typed, Depends()],
    opened: Opened = "",
) -> Response:
    """Changes what may change while a campaign runs; an empty field takes the rule away.

    opened: what the fields were filled in with; where others have changed that since, nothing is saved.
    """
    compared = campaigns.get(store, campaign)
    old = compared.settings
    if found := others(opened, given, old):
        return _page(request, visitor.words, store, campaign, {}, 409, kept(given, found), found, compared)
    try:
        campaigns.change(store, campaign, changes(given, old), by=person_of(visitor).id, after=old)
    except MissingError:
        raise
    except ConflictError:  # in this instant: what holds now is compared
        return change_rules(request, visitor, store, campaign, given, opened)
    except FeedbackError as error:
        why = error.__cause__
        wrong = problems(why, visitor.words) if isinstance(why, ValidationError) else {"": str(error)}
        return _page(request, visitor.words, store, campaign, wrong, 422, given, compared=compared)
    return back_to(campaign)
