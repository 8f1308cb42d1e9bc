"""Exact text <-> token ids for one tokenizer: prefixes, continuations, and control tokens spelled out in text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from goodheart.errors import TemplateError

# Texts to stand before a continuation while it is tokenised or decoded. A newline first: few tokenizers merge over
# it. Then a letter: byte-fallback decoders spoil a newline next to an incomplete character.
_ANCHORS = ("\n", "a", ".", " a")


class TokenText:
    """Encodes so that a prompt's tokens never depend on what follows, and decodes what tokens add to a text."""

    def __init__(self, tokenizer: Any) -> None:
        self._backend = tokenizer.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        added = self._backend.get_added_tokens_decoder()
        self.added: dict[int, str] = {i: token.content for i, token in added.items()}
        self.special_ids = frozenset(i for i, token in added.items() if token.special)
        # A token that is neither stripped around nor normalised splits the text whatever stands beside it.
        self._cuts = frozenset(i for i, token in added.items() if not token.normalized and not token.single_word)
        self._normalized_specials = any(t.special and t.normalized for t in added.values())
        self.leading_ids = self._leading()
        self.controls: dict[str, int] = {self.added[i]: i for i in sorted(self.special_ids)}

    def _leading(self) -> list[int]:
        """What the tokenizer itself puts before a text (BOS, [CLS]); [] for many."""
        bare = self._backend.encode("a", add_special_tokens=False).ids
        full = self._backend.encode("a", add_special_tokens=True).ids
        start = next((i for i in range(len(full)) if full[i : i + len(bare)] == bare), 0)
        return list(full[:start])

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        literals = sorted((c for c in self.controls if c.strip()), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, literals)) or "(?!)")

    def add_controls(self, ids: Sequence[int]) -> None:
        """Makes more of the added tokens count as control tokens (a template writes them)."""
        self.controls |= {self.added[i]: i for i in ids if i in self.added}
        self.__dict__.pop("_pattern", None)

    def control_in(self, text: str) -> str | None:
        """The first control token that `text` spells out, or None."""
        found = self._pattern.search(text)
        if found:
            return found.group()
        if self._normalized_specials:
            control = set(self.controls.values())
            hit = next((i for i in self._backend.encode(text, add_special_tokens=False).ids if i in control), None)
            return None if hit is None else self.added[hit]
        return None

    @cached_property
    def _plain(self) -> Any:
        """A second tokenizer that reads special tokens in a text as the characters they are spelled with."""
        from tokenizers import Tokenizer

        plain = Tokenizer.from_str(self._backend.to_str())
        plain.encode_special_tokens = True
        return plain

    def encode(self, text: str) -> list[int]:
        """Ids of `text` in which control tokens are control tokens; nothing is put around it."""
        return list(self._backend.encode(text, add_special_tokens=False).ids)

    def encode_plain(self, text: str) -> list[int]:
        """Ids of `text` as mere characters, control tokens included.

        Raises:
            TemplateError: the tokenizer makes a control token of it all the same.
        """
        found = self.control_in(text)
        if found is None:
            return self.encode(text)
        ids = list(self._plain.encode(text, add_special_tokens=False).ids)
        if not set(ids).isdisjoint(self.controls.values()):
            raise TemplateError(f"the text holds {found!r}, which this tokenizer can only read as a control token")
        return ids

    def encode_marked(self, text: str, mark: str) -> list[int]:
        """Ids of a rendered chat in which `mark` breaks up the control tokens that its content spells out.

        Raises:
            TemplateError: the tokenizer cannot encode the pieces between control tokens on their own.
        """
        whole = self._backend.encode(text, add_special_tokens=False)
        pieces: list[list[int] | str] = []
        at = 0
        for i, (start, stop) in zip(whole.ids, whole.offsets, strict=True):
            if i in self.special_ids:
                pieces += [text[at:start], [i]]
                at = stop
        pieces.append(text[at:])
        again = _flatten(self._plain_ids(p) if isinstance(p, str) else p for p in pieces)
        ids = _flatten(self._plain_ids(p.replace(mark, "")) if isinstance(p, str) else p for p in pieces)
        control = set(self.controls.values())
        if again != list(whole.ids) or [i for i in ids if i in control] != [i for i in again if i in control]:
            raise TemplateError("the conversation spells out control tokens and this tokenizer cannot keep them apart")
        return ids

    def _plain_ids(self, text: str) -> list[int]:
        return list(self._plain.encode(text, add_special_tokens=False).ids) if text else []

    def read(self, text: str) -> Encoded:
        """Like `encode`, with the places of the tokens in the text."""
        encoding = self._backend.encode(text, add_special_tokens=False)
        return Encoded(self, text, list(encoding.ids), encoding.offsets)

    def continuation(self, text: str) -> list[int]:
        """Ids that, after any tokens, add exactly `text`.

        Raises:
            TemplateError: the tokenizer cannot write `text` in the middle of another.
        """
        candidates = [self.encode(text)]
        for anchor in _ANCHORS:
            before, both = self.encode(anchor), self.encode(anchor + text)
            if both[: len(before)] == before:
                candidates.append(both[len(before) :])
        for ids in candidates:
            if self.decode_after(ids, keep_special=True) == text:
                return ids
        raise TemplateError(f"the tokenizer cannot continue a text with exactly {text[:40]!r}")

    @cached_property
    def _decode_anchor(self) -> tuple[list[int], str]:
        for anchor in ("a", ".", "\n"):
            ids = self.encode(anchor)
            if ids and self.decode_whole(ids) == anchor and not self.special_ids.intersection(ids):
                return ids, anchor
        return [], ""

    def decode_whole(self, ids: Sequence[int], keep_special: bool = False) -> str:
        """The text of `ids` from its beginning."""
        return str(self._backend.decode(list(ids), skip_special_tokens=not keep_special))

    def decode_after(self, ids: Sequence[int], keep_special: bool = False) -> str:
        """What `ids` add to a text before them: unlike `decode_whole` it keeps a leading space."""
        before, text = self._decode_anchor
        decoded = self.decode_whole([*before, *ids], keep_special)
        return decoded.removeprefix(text) if decoded.startswith(text) else self.decode_whole(ids, keep_special)


class Encoded:
    """A text with its tokens and their places."""

    def __init__(self, tokens: TokenText, text: str, ids: list[int], offsets: Sequence[tuple[int, int]]) -> None:
        self._tokens, self.text, self.ids, self.offsets = tokens, text, ids, offsets

    def boundary(self, prefix: str) -> int | None:
        """How many of the tokens are exactly those `prefix` has on its own; None where none are.

        Only the part of `prefix` behind its last control token is encoded again: control tokens split a text before
        anything else happens to it, so what is before one cannot depend on what comes after.
        """
        cut = 0
        for j in range(len(self.ids) - 1, -1, -1):
            if self.offsets[j][1] <= len(prefix) and self.ids[j] in self._tokens._cuts:
                cut = j
                break
        start = self.offsets[cut][0] if cut else 0
        tail = self._tokens.encode(prefix[start:])
        return cut + len(tail) if self.ids[cut : cut + len(tail)] == tail else None


def _flatten(pieces: Any) -> list[int]:
    return [i for piece in pieces for i in piece]
