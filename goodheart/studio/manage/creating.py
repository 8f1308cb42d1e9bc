"""A new campaign out of an uploaded file, and more items for one that runs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, File, Form, Request, UploadFile
from pydantic import ValidationError
from starlette.responses import Response

from goodheart.errors import ConflictError, DataError, FeedbackError
from goodheart.feedback import campaigns
from goodheart.feedback.campaigns import FLAGS, CampaignSettings
from goodheart.feedback.items import NewItem, read_items
from goodheart.studio.manage.frame import Line, Lines, back_to, manage_page
from goodheart.studio.manage.overview import with_zone
from goodheart.studio.marks import sound
from goodheart.studio.visitors import ByForm, Manager, Number, StoreOf, person_of

router = APIRouter()
UPLOAD_MOST = 64 << 20  # bytes of an upload, 64 MiB
MOST_ITEMS = 100_000  # of one upload
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")  # not packed ones, which may grow without end
_PROBLEMS_SHOWN = 20
Upload = Annotated[UploadFile | None, File()]
_EMPTY = {"name": "", "guideline": "", "overlap": "2", "until_agreement": "", "gold_share": "0.1", "slices": "",
          "flags": ", ".join(FLAGS), "rubric": "", "pay_per_hour": "", "budget": "", "deadline": "",
          "strength": True, "blind": True}  # fmt: skip


@router.get("/new")
def form(request: Request, visitor: Manager, store: StoreOf) -> Response:
    return manage_page(request, store, None, "new.html", given=_EMPTY, problems=[], suffixes=SUFFIXES)


@router.post("/new", dependencies=[ByForm])
def create(
    request: Request,
    visitor: Manager,
    store: StoreOf,
    name: Line = "",
    guideline: Lines = "",
    overlap: Line = "1",
    until_agreement: Line = "",
    gold_share: Line = "0.1",
    slices: Line = "",
    flags: Line = "",
    rubric: Annotated[str, Form(max_length=10_000)] = "",
    pay_per_hour: Line = "",
    budget: Line = "",
    deadline: Line = "",
    strength: Line = "",
    blind: Line = "",
    items: Upload = None,
    gold: Upload = None,
) -> Response:
    """All of the campaign or nothing; what is wrong is said with the line of the file."""
    given = {"name": name, "guideline": guideline, "overlap": overlap, "until_agreement": until_agreement,
             "gold_share": gold_share, "slices": slices, "flags": flags, "rubric": rubric, "budget": budget,
             "pay_per_hour": pay_per_hour, "deadline": deadline, "strength": bool(strength),
             "blind": bool(blind)}  # fmt: skip
    try:
        settings = CampaignSettings.model_validate(_settings(given))
        new = [*_uploaded(items, slices), *_uploaded(gold, slices, "gold")]
        if not any(item.phase == "work" for item in new):
            raise DataError(visitor.words("manage.no_file"))
        made = campaigns.create(store, settings, new, sound(guideline).replace("\r\n", "\n"), by=person_of(visitor).id)
    except ValidationError as error:
        return _again(request, store, given, campaigns.reasons(error).split("; "), 422)
    except ConflictError as error:
        return _again(request, store, given, [str(error)], 409)
    except (FeedbackError, DataError) as error:
        return _again(request, store, given, str(error).splitlines(), 422)
    return back_to(made.id)


def _again(request: Request, store: Any, given: dict[str, Any], problems: list[str], status: int) -> Response:
    return manage_page(request, store, None, "new.html", status, given=given, problems=problems, suffixes=SUFFIXES)


def _settings(given: dict[str, Any]) -> dict[str, Any]:
    """Settings from the fields of the form; an empty field leaves the setting as it is by itself."""
    kept = {
        name: given[name].strip() for name in ("overlap", "until_agreement", "gold_share", "pay_per_hour", "budget")
    }
    rules: dict[str, Any] = {name: text for name, text in kept.items() if text}
    if given["deadline"].strip():
        rules["deadline"] = with_zone(given["deadline"].strip())
    rubric = [line.partition(":") for line in given["rubric"].splitlines() if line.strip()]
    return rules | {
        "name": given["name"],
        "flags": _listed(given["flags"]),
        "rubric": {name.strip(): about.strip() for name, _, about in rubric},
        "strength": given["strength"],
        "blind": given["blind"],
    }


def _listed(text: str) -> list[str]:
    return [each.strip() for each in text.split(",") if each.strip()]


def _uploaded(upload: UploadFile | None, slices: str, phase: str = "work") -> list[NewItem]:
    """The items of an uploaded file.

    Raises:
        DataError: not a kind of file that is read here, or what is wrong with its rows, a line each.
    """
    if upload is None or not upload.filename:
        return []
    suffix = Path(upload.filename.replace("\\", "/")).suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(f"{sound(upload.filename)[:100]}: unknown kind of file; readable are {', '.join(SUFFIXES)}")
    with tempfile.TemporaryDirectory(prefix="goodheart-") as folder:
        path = Path(folder) / f"upload{suffix}"
        with path.open("wb") as file:
            while part := upload.file.read(1 << 20):
                file.write(part)
        bad: list[str] = []
        try:
            found = list(_most(read_items(path, slices=_listed(slices), phase=phase, bad=bad)))
        except DataError as error:
            raise DataError(_named(str(error), path, upload.filename)) from error
    if bad:
        more = [f"… + {len(bad) - _PROBLEMS_SHOWN}"] if len(bad) > _PROBLEMS_SHOWN else []
        said = [_named(line, path, upload.filename) for line in bad[:_PROBLEMS_SHOWN]]
        raise DataError("\n".join(said + more))
    return found


def _most(new: Iterator[NewItem]) -> Iterator[NewItem]:
    yield from islice(new, MOST_ITEMS)
    if next(new, None) is not None:
        raise DataError(f"more than {MOST_ITEMS} items in one file; split it")


def _named(text: str, path: Path, name: str) -> str:
    """The file by the name that its owner knows."""
    return text.replace(str(path), sound(name)[:100])


@router.post("/add/{campaign}", dependencies=[ByForm])
def add_items(
    request: Request, visitor: Manager, store: StoreOf, campaign: Number, slices: Line = "", phase: Line = "work",
    items: Upload = None,
) -> Response:  # fmt: skip
    """More items for a campaign; those that are there already are left out."""
    campaigns.get(store, campaign)
    try:
        if phase not in ("work", "gold", "training", "qualification"):
            raise DataError(visitor.words("error.422"))
        new = _uploaded(items, slices, phase)
        if not new:
            raise DataError(visitor.words("manage.no_file"))
        campaigns.add_items(store, campaign, new, by=person_of(visitor).id)
    except (FeedbackError, DataError) as error:
        problems = str(error).splitlines()
        return manage_page(request, store, campaign, "items.html", 422, problems=problems, suffixes=SUFFIXES)
    return back_to(campaign)


@router.get("/add/{campaign}")
def items_form(request: Request, visitor: Manager, store: StoreOf, campaign: Number) -> Response:
    return manage_page(request, store, campaign, "items.html", problems=[], suffixes=SUFFIXES)
