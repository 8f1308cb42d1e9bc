"""Assistant's turns of a conversation as token rows whose boundary with the prompt is exact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from goodheart.data.batches import Example
from goodheart.data.chat_text import ChatText
from goodheart.data.records import Prompt
from goodheart.data.token_text import Encoded, TokenText
from goodheart.errors import TemplateError

NO_EOS = "the tokenizer has no eos_token, so a finished answer cannot be told from a cut one"

Turn = Mapping[str, Any]


@dataclass
class Row:
    """A conversation up to the end of an assistant's turn; `spans` are the trained [start, stop) in `ids`."""

    ids: list[int]
    spans: list[tuple[int, int]]
    encoded: Encoded | None  # None where the ids were put together from pieces
    messages: Sequence[Turn]


class Turns:
    """Renders turns, finds where they begin and end in the tokens, and puts turns that share their tokens together."""

    def __init__(self, tokens: TokenText, chat: ChatText, eos_id: int | None, eos_ids: Sequence[int]) -> None:
        self._tokens, self._chat, self._eos_id, self._eos_ids = tokens, chat, eos_id, eos_ids

    def examples(self, messages: Sequence[Turn], trained: Sequence[int], prompt: Prompt, end: bool) -> list[Example]:
        """One example for all `trained` turns where the tokens allow it, else several; in order of the turns."""
        rows: list[Row] = []
        for k in reversed(trained):
            texts = self.texts(messages[: k + 1], prompt)
            if not (rows and self._merge(rows[-1], *texts)):
                rows.append(self.row(messages[: k + 1], *texts, end=end or k != trained[-1]))
        return [self._marked_example(row, prompt) for row in reversed(rows)]

    def texts(self, messages: Sequence[Turn], prompt: Prompt) -> tuple[str, str]:
        """The conversation before its last turn with that turn opened, and with the turn itself.

        Raises:
            TemplateError: the second does not begin with the first.
        """
        asked, answered = self._chat.asked(messages[:-1], prompt), self._chat.answered(messages, prompt)
        if not answered.startswith(asked):
            raise TemplateError("the template shows an answered turn otherwise than it opens one to be answered")
        return asked, answered

    def row(self, messages: Sequence[Turn], asked: str, answered: str, *, end: bool, mark: str = "") -> Row:
        """The tokens of a conversation up to the end token of its last turn, which is the one span."""
        if not end:
            return self._split(messages, asked, self._without_suffix(asked, answered), mark)
        row = self._split(messages, asked, answered, mark)
        start = row.spans[0][0]
        stop = next((i for i in range(start, len(row.ids)) if row.ids[i] in self._eos_ids), None)
        if stop is None:
            # the template writes no end token here, but the model must learn to stop
            if self._eos_id is None:
                raise TemplateError(NO_EOS)
            body = self._without_suffix(asked, answered) + self._chat.suffix.rstrip()
            row = self._split(messages, asked, body, mark)
            stop = len(row.ids)
            row.ids.append(self._eos_id)
        if stop == start and messages[-1]["content"].strip():
            raise TemplateError("the template leaves out the answer")
        row.ids, row.spans = row.ids[: stop + 1], [(start, stop + 1)]
        return row

    def _without_suffix(self, asked: str, answered: str) -> str:
        body = answered.removesuffix(self._chat.suffix)
        if not answered.endswith(self._chat.suffix) or not body.startswith(asked):
            raise TemplateError("the template does not show where the text of the answer stops")
        return body

    def _split(self, messages: Sequence[Turn], asked: str, whole: str, mark: str) -> Row:
        """Ids of `whole` that begin with the ids of `asked`; the rest is one span."""
        if not mark:
            encoded = self._tokens.read(whole)
            start = encoded.boundary(asked)
            if start is not None:
                return Row(encoded.ids, [(start, len(encoded.ids))], encoded, messages)
            ids = self._tokens.encode(asked)
            start = len(ids)
            ids += self._tokens.continuation(whole[len(asked) :])
            return Row(ids, [(start, len(ids))], None, messages)
        before, ids = self._tokens.encode_marked(asked, mark), self._tokens.encode_marked(whole, mark)
        if ids[: len(before)] != before:
            rest = self._tokens.encode_marked(whole[len(asked) :], mark)
            if self._tokens.decode_after(rest, keep_special=True) != whole[len(asked) :].replace(mark, ""):
                raise TemplateError("tokens run over the boundary between prompt and answer")
            ids = before + rest
        return Row(ids, [(len(before), len(ids))], None, messages)

    def _merge(self, row: Row, asked: str, answered: str) -> bool:
        """Adds an earlier turn to the row of a later one, if that shows the same tokens up to its end."""
        closing = self._chat.closing_text
        place = answered.find(closing, len(asked)) if closing else -1
        if row.encoded is None or place < 0 or not row.encoded.text.startswith(answered[: place + len(closing)]):
            return False
        start = row.encoded.boundary(asked)
        if start is None:
            return False
        last = next((i for i in range(start, len(row.ids)) if row.ids[i] in self._eos_ids), -1)
        if last <= start or row.encoded.offsets[last][0] != place:
            return False
        row.spans.append((start, last + 1))
        return True

    def _marked_example(self, row: Row, prompt: Prompt) -> Example:
        example = example_of(row.ids, row.spans)
        if not self._chat.has_generation_marks:
            return example
        marks = self._chat.generation_marks(row.messages, prompt, row.ids)
        for start, stop in row.spans:
            if marks[start - 1] or not any(marks[start:stop]):
                raise TemplateError("the template's generation marks do not agree with where its answers begin and end")
            # a part may be left out of the loss on purpose, the end of the turn never
            example.mask[start:stop] = [*marks[start : stop - 1], row.ids[stop - 1] in self._eos_ids or marks[stop - 1]]
        return example


def example_of(ids: list[int], spans: Sequence[tuple[int, int]]) -> Example:
    """An example with the loss on `spans`.

    Raises:
        TemplateError: there is no token in them, or the very first one is.
    """
    mask = [False] * len(ids)
    for start, stop in spans:
        mask[start:stop] = [True] * (stop - start)
    if ids and mask[0]:
        raise TemplateError("the prompt is empty: the first token of the answer has nothing to be predicted from")
    if not any(mask):
        raise TemplateError("no token to train on")
    return Example(ids, mask)
