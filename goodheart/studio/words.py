"""The words of the pages in three languages: English, 繁體中文 (Taiwan) and 简体中文.

    words = Words.of("zh-Hant")
    words("label.done_today", n=12)        # 今天完成：12

Every sentence a person reads stands in `locales/*.json`, under the same key in each; `{n}` is filled in. Keys that
begin with `js.` are also sent to the page's scripts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "locales"
LANGUAGES = {"en": "English", "zh-Hant": "繁體中文", "zh-Hans": "简体中文"}
DEFAULT = "en"


@dataclass(frozen=True)
class Words:
    """The words of one language."""

    language: str
    table: Mapping[str, str]

    @staticmethod
    @lru_cache(maxsize=len(LANGUAGES))
    def of(language: str) -> Words:
        """Raises KeyError for a language the pages do not speak."""
        if language not in LANGUAGES:
            raise KeyError(language)
        return Words(language, json.loads((FOLDER / f"{language}.json").read_text(encoding="utf-8")))

    def __call__(self, key: str, **values: Any) -> str:
        return fill(self.table[key], values)

    def maybe(self, key: str, otherwise: str) -> str:
        """The words of a key that a campaign may have made up (flags, scores): without an entry, its own name."""
        return self.table.get(key, otherwise)

    def scripts(self) -> dict[str, str]:
        """What the scripts of a page say, keys without their `js.`."""
        return {key.removeprefix("js."): text for key, text in self.table.items() if key.startswith("js.")}


def fill(text: str, values: Mapping[str, Any]) -> str:
    """`{name}` replaced by the value of that name; braces without a value stay, whatever the values hold."""
    return re.sub(r"\{(\w+)\}", lambda found: str(values.get(found[1], found[0])), text)


def wanted(chosen: str | None, header: str | None) -> str:
    """The language of a page.

    Args:
        chosen: by the person or the cookie, if any.
        header: Accept-Language of the browser.
    """
    if chosen in LANGUAGES:
        return chosen
    for tag in _preferred(header or ""):
        if tag == "zh" or tag.startswith("zh-"):
            return "zh-Hant" if re.search(r"hant|tw|hk|mo", tag) else "zh-Hans"
        if tag == "en" or tag.startswith("en-"):
            return "en"
    return DEFAULT


# Characters that only one of the two Chinese scripts has; a dozen common ones decide nearly every text.
_TRADITIONAL = frozenset("們這個為來說時國對麼發會學過還沒樣後電問現話買開關書車長門見點間體實應該")
_SIMPLIFIED = frozenset("们这个为来说时国对么发会学过还没样后电问现话买开关书车长门见点间体实应该") - _TRADITIONAL


def script_of(text: str, beside: str = "") -> str | None:
    """Language tag by which a browser chooses fonts and line breaks for a text; None where it is not East Asian.

    beside: what stands beside it, which decides where a short text could be of either Chinese script.
    """
    start = text[:2000]
    if re.search("[\u3040-\u30ff]", start):
        return "ja"
    if re.search("[\uac00-\ud7af]", start):
        return "ko"
    if not re.search("[\u3400-\u9fff]", start):
        return None
    traditional, simplified = (sum(map(script.__contains__, start)) for script in (_TRADITIONAL, _SIMPLIFIED))
    if simplified == traditional and beside:
        return script_of(beside) if re.search("[\u3400-\u9fff]", beside[:2000]) else "zh-Hant"
    return "zh-Hans" if simplified > traditional else "zh-Hant"


def _preferred(header: str) -> list[str]:
    """Tags of an Accept-Language header, most wanted first; what cannot be read is left out."""
    found = []
    for part in header[:500].lower().split(","):
        match = re.fullmatch(r"\s*([a-z0-9-]+)\s*(?:;\s*q\s*=\s*([0-9.]+))?\s*", part)
        if match:
            try:
                weight = float(match[2] or 1)
            except ValueError:
                continue
            if weight > 0:
                found.append((-weight, match[1]))
    return [tag for _, tag in sorted(found, key=lambda pair: pair[0])]
