"""A new campaign out of an uploaded file, and more items for one that runs."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends, File, Request, UploadFile
from pydantic import ValidationError
from starlette.responses import Response

from goodheart.errors import ConflictError, DataError, FeedbackError
from goodheart.feedback import campaigns
from goodheart.feedback.campaigns import CampaignSettings
from goodheart.feedback.items import NewItem, read_items
from goodheart.feedback.store import Store
from goodheart.studio.manage.frame import Line, Lines, back_to, manage_page
from goodheart.studio.manage.rules import GROUPS, OVERLAP, Typed, listed, new_settings, problems, typed
from goodheart.studio.marks import sound
from goodheart.studio.visitors import ByForm, Manager, Number, StoreOf, person_of
from goodheart.studio.words import Words

router = APIRouter()
UPLOAD_MOST = 64 << 20  # bytes of an upload, 64 MiB
MOST_ITEMS = 100_000  # of one upload
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")  # not packed ones, which may grow without end
_PROBLEMS_SHOWN = 20
PHASES = ("work", "gold", "training", "qualification")
FILES = ("items", "gold", "training_items", "qualification_items")  # the field of each
Upload = Annotated[UploadFile | None, File()]


@dataclass(slots=True)
class Named:
    """The fields of a new campaign that are no rules."""

    name: Line = ""
    guideline: Lines = ""


@router.get("/new")
def form(request: Request, visitor: Manager, store: StoreOf) -> Response:
    return _form(request, store, Named(), typed(CampaignSettings(name="", overlap=2)), {}, 200)


@router.post("/new", dependencies=[ByForm])
def create(
    request: Request,
    visitor: Manager,
    store: StoreOf,
    named: Annotated[Named, Depends()],
    given: Annotated[Typed, Depends()],
    items: Upload = None,
    gold: Upload = None,
    training_items: Upload = None,
    qualification_items: Upload = None,
) -> Response:
    """All of the campaign or nothing; what is wrong is said beside its field, with the line of a file."""
    files = (items, gold, training_items, qualification_items)
    wrong: dict[str, str] = {}
    settings, status = None, 422
    try:
        settings = new_settings(named.name, given)
    except ValidationError as error:
        wrong |= problems(error, visitor.words)
    slices = () if settings is None else settings.cut_by(listed(given.slices))
    new: list[NewItem] = []
    for upload, phase, field in zip(files, PHASES, FILES, strict=True):
        try:
            new += _uploaded(upload, slices, phase, None if settings is None else settings.at_once)
        except DataError as error:
            wrong[field] = str(error)
    if settings is not None and not wrong:
        wrong |= _too_few(settings, new, visitor.words)
    if settings is not None and not wrong:
        try:
            text = sound(named.guideline).replace("\r\n", "\n")
            return back_to(campaigns.create(store, settings, new, text, by=person_of(visitor).id).id)
        except ConflictError as error:
            wrong, status = {"name": str(error)}, 409
        except FeedbackError as error:
            wrong = {"": str(error)}
    return _form(request, store, named, given, wrong, status)


def _too_few(settings: CampaignSettings, new: Sequence[NewItem], words: Words) -> dict[str, str]:
    """Items that the rules ask for and the files do not have."""
    there = Counter(item.phase for item in new)
    wrong = {} if there["work"] else {"items": words("manage.no_file")}
    for phase, asked in (("training", settings.training), ("qualification", settings.qualification)):
        if asked > there[phase]:
            wrong[phase] = words("wrong.too_few", n=there[phase])
    return wrong


def _form(request: Request, store: Store, named: Named, given: Typed, wrong: dict[str, str], status: int) -> Response:
    fields = {"named": named, "given": given, "groups": GROUPS, "overlap": OVERLAP}
    return manage_page(request, store, None, "new.html", status, problems=wrong, suffixes=SUFFIXES, **fields)


def _uploaded(upload: UploadFile | None, slices: Sequence[str], phase: str, at_once: int | None) -> list[NewItem]:
    """The items of an uploaded file.

    Args:
        slices: columns that cut the items.
        phase: what they are for.
        at_once: answers shown at a time; only work is cut to it, since known answers rank all of a row.

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
            shown = at_once if phase == "work" else None
            found = list(_most(read_items(path, at_once=shown, slices=slices, phase=phase, bad=bad)))
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


@router.get("/add/{campaign}")
def items_form(request: Request, visitor: Manager, store: StoreOf, campaign: Number) -> Response:
    return _items_form(request, store, campaign, "", "work", {}, 200)


@router.post("/add/{campaign}", dependencies=[ByForm])
def add_items(
    request: Request, visitor: Manager, store: StoreOf, campaign: Number, slices: Line = "", phase: Line = "work",
    items: Upload = None,
) -> Response:  # fmt: skip
    """More items for a campaign; those that are there already are left out."""
    found = campaigns.get(store, campaign)
    try:
        if phase not in PHASES:
            raise DataError(visitor.words("error.422"))
        new = _uploaded(items, found.settings.cut_by(listed(slices)), phase, found.settings.at_once)
        if not new:
            raise DataError(visitor.words("manage.no_file"))
        campaigns.add_items(store, campaign, new, by=person_of(visitor).id)
    except (FeedbackError, DataError) as error:
        return _items_form(request, store, campaign, slices, phase, {"items": str(error)}, 422)
    return back_to(campaign)


def _items_form(
    request: Request, store: Store, campaign: int, slices: str, phase: str, wrong: dict[str, str], status: int
) -> Response:
    fields = {"slices": slices, "phase": phase, "phases": PHASES}
    return manage_page(request, store, campaign, "items.html", status, problems=wrong, suffixes=SUFFIXES, **fields)
