"""Where a campaign is kept, as a user names it: `goodheart.db/helpful`, `postgresql://user@host/labels/helpful`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from goodheart.errors import ConfigError


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
            host, _, inside = rest.partition("/")
            database, _, name = inside.partition("/")
            if not (host and database):
                raise ConfigError(f"{text}: write {scheme}://user@host/DATABASE/CAMPAIGN")
            return cls(f"{scheme}://{host}/{database}", name or None)
        path = Path(rest.removeprefix("/") if mark else text).expanduser()
        for store in (path, *path.parents):
            if store.is_file():
                name = str(path.relative_to(store)) if store != path else ""
                return cls(str(store), name or None)
        raise ConfigError(
            f"{text}: no store of labels there; write STORE/CAMPAIGN, such as goodheart.db/helpful "
            "(`goodheart label` makes a store)"
        )
