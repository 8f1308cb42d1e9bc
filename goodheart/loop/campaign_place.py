"""Where a campaign is kept, as a user names it: `goodheart.db/helpful`, `postgresql://user@host/labels/helpful`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl

from goodheart.errors import ConfigError

_PASSWORD = re.compile(r"[^:/@]*:(?!\d*/)[^@]*@")  # name:password@, which host:5432/... is not
_SECRETS = ("password", "sslpassword")  # what libpq takes behind the question mark


@dataclass(frozen=True, slots=True)
class Place:
    """Where a campaign is kept."""

    store: str  # a file of SQLite, or an address
    campaign: str | None  # None: the only one

    @classmethod
    def of(cls, text: str) -> Place:
        """The place that `STORE/CAMPAIGN` names.

        Raises:
            ConfigError: it names no store.
        """
        scheme, mark, rest = text.partition("://")
        if mark and scheme != "sqlite":
            address, query = _parted(rest)
            host, _, inside = address.partition("/")
            database, _, name = inside.partition("/")
            if not database:
                raise ConfigError(f"{shown(text)}: write {scheme}://user@host/DATABASE/CAMPAIGN")
            return cls(f"{scheme}://{host}/{database}{query}", name or None)
        path = Path(rest.removeprefix("/") if mark else text).expanduser()
        for store in (path, *path.parents):
            if store.is_file():
                name = str(path.relative_to(store)) if store != path else ""
                return cls(str(store), name or None)
        raise ConfigError(
            f"{text}: no store of labels there; write STORE/CAMPAIGN, such as goodheart.db/helpful "
            "(`goodheart label` makes a store)"
        )

    def named(self, campaign: str) -> str:
        """A campaign of this store as a user names it."""
        address, query = _parted(self.store) if "://" in self.store else (self.store, "")
        return f"{address}/{campaign}{query}"


def _parted(address: str) -> tuple[str, str]:
    """An address without its settings, and these (`?host=/run/postgresql`); a question mark alone may end a name."""
    before, mark, query = address.rpartition("?")
    return (before, mark + query) if mark and "=" in query else (address, "")


def holds_password(text: str) -> bool:
    """Whether an address tells a password."""
    _, mark, rest = text.partition("://")
    address, query = _parted(rest)
    told = {name for name, _ in parse_qsl(query.removeprefix("?"))}
    return bool(mark) and (_PASSWORD.match(address) is not None or not told.isdisjoint(_SECRETS))


def shown(text: str) -> str:
    """The same without its password, for people to read."""
    if "://" not in text:
        return text
    from goodheart.feedback.store import without_password  # a database: only where one is named

    return without_password(text)
