"""What `goodheart label` does: a campaign out of its file, or out of nothing, and the studio in which it is labelled.

# helpful.yaml; paths are relative to this file
name: helpful
items: [answers.jsonl]        # of `goodheart sample`, or any file of preferences
slices: [language, kind]      # columns of the items that cut them into slices
gold: gold.jsonl              # with a column `gold`: the ranks of the completions, known beforehand
guideline: guideline.md
prompts: prompts.jsonl        # answered by `models` before people see them (label_answers.py)
models: [runs/sft, runs/dpo]
overlap: 3                    # and every other setting of a campaign
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import typer
from pydantic import Field, ValidationError, field_validator, model_validator

from goodheart.errors import ConfigError, MissingError
from goodheart.feedback import audit, campaigns, guidelines, logins, people
from goodheart.feedback.campaigns import CHANGEABLE, Campaign, CampaignSettings
from goodheart.feedback.items import NewItem, read_items
from goodheart.feedback.store import Store, open_store
from goodheart.loop.answering import AnsweringModel, Asking, problem
from goodheart.loop.label_answers import answers
from goodheart.stages.settings.sampling import SamplingSettings
from goodheart.train.config import load_yaml, nearest, place

DATABASE = "goodheart.db"
_READ = "read campaign file"  # of the log: what the file said, so that the next start can tell what changed in it
_HERE = ("127.0.0.1", "localhost", "::1")


class CampaignFile(CampaignSettings):
    """A campaign with where its items are; paths are relative to the file."""

    items: list[str] | str = Field(default_factory=list)
    prompts: list[str] | str = Field(default_factory=list)  # with `models`: what is asked of them
    models: list[AnsweringModel] = Field(default_factory=list)  # whose answers become items
    sampling: SamplingSettings = SamplingSettings(max_new_tokens=512)  # of all models, where they do not say otherwise
    gold: str | None = None
    training_items: str | None = None  # with a column `gold`, as the two others
    qualification_items: str | None = None
    guideline: str | None = None
    slices: tuple[str, ...] = ()

    @field_validator("models", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        listed = value if isinstance(value, list) else [value]
        return [{"model": each} if isinstance(each, str) else each for each in listed]

    @model_validator(mode="after")
    def _answers_fit(self) -> Self:
        if bool(self.models) != bool(self.prompts):
            raise ValueError("prompts and models go together: the models answer the prompts")
        if self.models and (why := problem(self.models, self.sampling)):
            raise ValueError(f"models: {why}")
        return self

    def settings(self) -> CampaignSettings:
        """The rules alone."""
        own = set(CampaignFile.model_fields) - set(CampaignSettings.model_fields)
        return CampaignSettings.model_validate(self.model_dump(exclude=own))


@dataclass(frozen=True)
class Place:
    """Where a studio listens."""

    host: str
    port: int
    accounts: bool

    @property
    def address(self) -> str:
        name = f"[{self.host}]" if ":" in self.host else "127.0.0.1" if self.host == "0.0.0.0" else self.host
        return f"http://{name}:{self.port}"


def label(
    campaign: str | None,
    *,
    db: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    accounts: bool = False,
    proxy: str | None = None,
    workers: int = 1,
    example: Path | None = None,
    say: Callable[[str], None] = typer.echo,
) -> None:
    """Opens or makes the campaign and serves the studio until Ctrl-C.

    Args:
        campaign: a campaign file, the name of a campaign that is there already, or None for all of them.
        db: a file of SQLite or an address of PostgreSQL; None: `goodheart.db` beside the campaign file or here.
        accounts: people log in; always so where the host is not this machine alone.
        proxy: address of the proxy in front of the studio, which is believed about who asks; None: there is none.
        workers: processes that answer; more than one needs PostgreSQL.
        example: folder of the example, in place of a campaign.

    Raises:
        ConfigError: what is wrong with the file, with its line; or the port is taken.
        FeedbackError: no such campaign, or a rule that cannot change any more.
        DataError: an item cannot be used; names file and line.
        EndpointError: a server that `models` names cannot be used.
        Interrupted: Ctrl-C while models answer.
    """
    where = Place(host, port, accounts or host not in _HERE)
    if example is not None:
        if campaign is not None:
            raise ConfigError("give a campaign or --example, not both")
        example.mkdir(parents=True, exist_ok=True)
        campaign_file, place_of_store = None, db or str(example / "labels.db")
    else:
        campaign_file = _as_file(campaign)
        place_of_store = db or str((campaign_file.parent if campaign_file else Path(".")) / DATABASE)
        if campaign is not None and campaign_file is None and "://" not in place_of_store:
            _is_there(Path(place_of_store), campaign)
    read = None if campaign_file is None else read_campaign(campaign_file)
    if read is not None and campaign_file is not None and read.models:
        read = _answered(read, campaign_file, say)
    store = open_store(place_of_store)
    try:
        if example is not None:
            from goodheart.loop.label_example import make_example

            opened: Campaign | None = make_example(store)
        elif campaign_file is not None and read is not None:
            opened = open_campaign(store, read, campaign_file, say)
        else:
            opened = None if campaign is None else campaigns.get(store, campaign)
        from goodheart.studio.app import serve  # heavy: what is wrong with the file is told before

        serve(
            store,
            host,
            port,
            accounts=where.accounts,
            proxy=proxy,
            workers=workers,
            ready=lambda: _tell(store, where, opened, place_of_store, say),
        )
    finally:
        store.close()


def _as_file(campaign: str | None) -> Path | None:
    if campaign is None:
        return None
    path = Path(campaign)
    return path if path.suffix in (".yaml", ".yml") or path.is_file() else None


def _is_there(database: Path, campaign: str) -> None:
    if not database.is_file():
        raise MissingError(
            f"{campaign}: no campaign file of that name, and no {database} with a campaign of that name; "
            "give a file CAMPAIGN.yaml, or the database by --db"
        )


def read_campaign(path: Path) -> CampaignFile:
    """A campaign file, checked.

    Raises:
        ConfigError: with file and line.
    """
    values, lines = load_yaml(path)
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected `key: value` lines, found {type(values).__name__}")
    known = list(CampaignFile.model_fields)
    unknown = [key for key in values if key not in known]
    if unknown:
        said = [f"{place(path, lines, (key,))}unknown key `{key}`{nearest(str(key), known)}" for key in unknown]
        raise ConfigError("\n".join(said))
    try:
        found = CampaignFile.model_validate({"name": path.stem, **values})
    except ValidationError as error:
        raise ConfigError("\n".join(_problems(error, path, lines))) from error
    for key in ("items", "prompts", "gold", "training_items", "qualification_items", "guideline"):
        for name in _listed(getattr(found, key)):
            if not (path.parent / name).exists():
                raise ConfigError(f"{place(path, lines, (key,))}`{key}`: {path.parent / name}: no such file or folder")
    return found


def _problems(error: ValidationError, path: Path, lines: Any) -> Iterator[str]:
    for each in error.errors():
        where = tuple(each["loc"])
        name = f"`{'.'.join(map(str, where))}`: " if where else ""
        yield f"{place(path, lines, where)}{name}{each['msg'].removeprefix('Value error, ')}"


def _listed(value: list[str] | str | None) -> list[str]:
    return [] if value is None else [value] if isinstance(value, str) else value


def _answered(read: CampaignFile, path: Path, say: Callable[[str], None]) -> CampaignFile:
    """The campaign with its prompts answered: what the models said is one more file of items."""
    asking = Asking(_listed(read.prompts), read.models, read.sampling, read.seed, read.at_once)
    file = answers(asking, path, say)
    return read.model_copy(update={"items": [*_listed(read.items), file.name]})


def open_campaign(store: Store, read: CampaignFile, path: Path, say: Callable[[str], None] = typer.echo) -> Campaign:
    """Makes the campaign, or brings the one of that name up to date: new items, changed rules, new guidelines.

    Of the rules those are taken over that the file names and that changed in it since it was last read. What managers
    set in the studio since then stays.
    """
    folder, settings = path.parent, read.settings()
    guideline = "" if read.guideline is None else (folder / read.guideline).read_text(encoding="utf-8")
    found = next((each for each in campaigns.listing(store) if each.name == settings.name), None)
    if found is None:
        found = campaigns.create(store, settings, _items(read, folder), guideline)
        _remember(store, found.id, _rules(read))
        return found
    old, new = found.settings.model_dump(), settings.model_dump()
    other = {name: value for name, value in new.items() if value != old[name]}
    if fixed := sorted(other.keys() - CHANGEABLE):
        raise ConfigError(
            f"{path}: {', '.join(fixed)} cannot change once a campaign runs (campaign {settings.name!r} has "
            f"{', '.join(f'{name} {old[name]!r}' for name in fixed)}); give the campaign a new name"
        )
    said, before = _rules(read), _said_before(store, found.id)
    news = {name for name, value in said.items() if name not in before or before[name] != value}
    if changes := {name: value for name, value in other.items() if name in news}:
        found = campaigns.change(store, found.id, changes)
        say(f"{path} changed rules of the campaign: {', '.join(sorted(changes))}")
    if said != before:
        _remember(store, found.id, said)
    campaigns.add_items(store, found.id, _items(read, folder))
    # What managers wrote in the studio since is not overwritten by a file that has not changed.
    if guideline and guideline not in [version.text for version in guidelines.versions(store, found.id)]:
        guidelines.add_version(store, found.id, guideline, note=path.name)
    return found


def _rules(read: CampaignFile) -> dict[str, Any]:
    """What the file itself says of rules that may still change, as JSON has it."""
    return read.settings().model_dump(mode="json", include=set(CHANGEABLE & read.model_fields_set))


def _said_before(store: Store, campaign: int) -> Mapping[str, Any]:
    """`_rules` of the last start; nothing where the campaign was not made of a file, or before this was kept."""
    newest = audit.entries(store, action=_READ, campaign=campaign, limit=1)
    return {name: value for name, value in newest[0].what.items() if name != "campaign"} if newest else {}


def _remember(store: Store, campaign: int, said: Mapping[str, Any]) -> None:
    with store.begin() as connection:
        audit.note(connection, None, _READ, {"campaign": campaign, **said})


def _items(read: CampaignFile, folder: Path) -> Iterator[NewItem]:
    slices = read.cut_by(read.slices)
    for name in _listed(read.items):
        yield from read_items(folder / name, at_once=read.at_once, slices=slices)
    known = {"gold": read.gold, "training": read.training_items, "qualification": read.qualification_items}
    for phase, file in known.items():
        if file is not None:
            yield from read_items(folder / file, slices=slices, phase=phase)


def _tell(store: Store, where: Place, opened: Campaign | None, database: str, say: Callable[[str], None]) -> None:
    """Where to go: printed when the server answers."""
    say(f"the studio is at {where.address}/")
    if opened is not None:
        say(f"  to label:  {where.address}/c/{opened.id}/label")
        say(f"  to manage: {where.address}/c/{opened.id}")
    if "://" not in database:
        say(f"labels are kept in {database}")
    if where.accounts and not any(person.may("manager") for person in people.listing(store)):
        say(f"open this link once to become the manager: {where.address}/invite/{logins.invite(store, 'manager')}")
    say("Ctrl-C ends it")
