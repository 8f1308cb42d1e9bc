"""What the managers' pages have in common."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp
from typing import Annotated, Any

from fastapi import Form, Request
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, RedirectResponse

from goodheart.errors import MissingError
from goodheart.feedback import campaigns, membership
from goodheart.feedback.store import Store
from goodheart.studio.pages import page
from goodheart.studio.visitors import visitor_of

Line = Annotated[str, Form(max_length=500)]  # a field of one line
Lines = Annotated[str, Form(max_length=200_000)]  # a field of many

LOW_ALPHA = 0.4  # under which agreement is little more than chance: docs/studio.md


def manage_page(
    request: Request, store: Store, campaign: int | None, template: str, status: int = 200, /, **context: Any
) -> HTMLResponse:
    """A page about a campaign (or, with None, about none): with the navigation for managers alone."""
    found = None if campaign is None else campaigns.get(store, campaign)
    person = visitor_of(request).person
    layout = "manage.html" if found is not None and person is not None and person.may("manager") else "base.html"
    tools = {"percent": percent, "percents": percents, "decimal": decimal, "chance_of": chance_of, "times": times}
    tools["when"] = when
    return page(request, f"manage/{template}", status, campaign=found, layout=layout, **tools, **context)


def back_to(campaign: int, where: str = "") -> RedirectResponse:
    """Back to a page of the campaign after something was changed."""
    return RedirectResponse(f"/c/{campaign}{where}", 303)


def may_judge(request: Request, store: Store, campaign: int) -> None:
    """Raises 404 for adjudicators who are not in the campaign, and where there is none."""
    try:
        campaigns.get(store, campaign)
    except MissingError as error:
        raise HTTPException(404) from error
    person = visitor_of(request).person
    if person is None or not person.may("manager"):
        member = None if person is None else membership.member(store, campaign, person.id)
        if member is None or member.state == "removed":
            raise HTTPException(404)


def percent(share: float | None) -> str:
    """0.256 as 26 %, on one line."""
    return "–" if share is None else f"{100 * share:.0f}\N{NO-BREAK SPACE}%"


def percents(shares: Sequence[float]) -> str:
    """0.5, 0.75 as 50, 75 %"""
    return ", ".join(f"{100 * share:.0f}" for share in shares) + "\N{NO-BREAK SPACE}%"


def decimal(value: float | None, places: int = 2) -> str:
    return "–" if value is None else f"{value:.{places}f}".replace("-", "−")


def chance_of(log_odds: float) -> float:
    """Log odds as a share."""
    return 1 / (1 + exp(-max(min(log_odds, 500.0), -500.0)))


def times(log_odds: float) -> str:
    """Log odds as a factor on the odds: 0.7 -> ×2.0"""
    factor = exp(max(min(log_odds, 12.0), -12.0))
    return f"×{factor:.2g}" if 0.1 <= factor < 1000 else "×>1000" if factor > 1 else "×<0.1"


def when(moment: Any) -> str:
    """A moment to the minute, UTC."""
    return "–" if moment is None else f"{moment:%Y-%m-%d %H:%M}"
