"""Messages <-> token ids and loss mask: the only place that knows chat text.

    template = Template.load("a/model/folder")
    template.prompt_ids(prompt)             what the model is given
    template.example(prompt, answer)        the same ids, then the answer's, marked as trained on
    template.decode(ids)                    what sampled ids say

The boundary between prompt and answer is found in token space: the ids before it are those of `prompt_ids`, else the
row is refused with a TemplateError. docs/templates.md tells which rows are refused and why.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from goodheart.data.batches import Example
from goodheart.data.chat_text import PLAIN_TEMPLATE, ChatText
from goodheart.data.own_tokenizer import OwnTokenizer
from goodheart.data.records import Message, Prompt
from goodheart.data.streams import visible
from goodheart.data.token_text import TokenText
from goodheart.data.tokenizer_files import load_tokenizer, stop_ids
from goodheart.data.turns import NO_EOS, Turns, example_of
from goodheart.errors import TemplateError

if TYPE_CHECKING:
    from rich.text import Text as RichText
    from transformers import PreTrainedTokenizerBase

__all__ = ["PLAIN_TEMPLATE", "Template", "load_tokenizer"]

Completion = tuple[Message, ...] | str
# What a model folder says that Hugging Face's files have no place for (reward models write theirs there too).
_OURS = "goodheart.json"


class Template:
    """One tokenizer's way of writing conversations and plain text as tokens.

    Args:
        tokenizer: from `load_tokenizer`; gets PLAIN_TEMPLATE if it has no chat template.
        plain_prompts: what a prompt given as text (not messages) is: "raw" text to continue, or what a "user" says.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase | OwnTokenizer, *, plain_prompts: Literal["raw", "user"] = "raw"
    ) -> None:
        self.tokenizer: Any = tokenizer
        self.plain_prompts = plain_prompts
        self._tokens = TokenText(self.tokenizer)
        self._chat = ChatText(self.tokenizer, self._tokens)
        t = self.tokenizer
        self.eos_id: int | None = t.eos_token_id if t.eos_token_id is not None else t.sep_token_id
        found = [*stop_ids(str(t.name_or_path or ""), self._tokens.special_ids), self.eos_id, self._chat.closing]
        self.eos_ids: tuple[int, ...] = tuple(dict.fromkeys(i for i in found if i is not None))
        self._turns = Turns(self._tokens, self._chat, self.eos_id, self.eos_ids)
        candidates = (t.pad_token_id, t.unk_token_id, self.eos_id, 0)
        self.pad_id: int = next(i for i in candidates if i is not None)
        self.stop_strings = self._chat.stop_strings

    @classmethod
    def load(cls, folder: str | Path, *, plain_prompts: Literal["raw", "user"] | None = None) -> Template:
        """The template of a model folder or Hub id.

        Args:
            folder: where the tokenizer is.
            plain_prompts: None = as the model in that folder was trained, where it says so, else "raw".

        Raises:
            ModelError: no tokenizer there.
        """
        remembered = _read_json(Path(folder) / _OURS).get("plain_prompts", "raw")
        return cls(load_tokenizer(folder), plain_prompts=plain_prompts or remembered)

    # Prompts and answers ---------------------------------------------------------------------------------------

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """Ids as the model is given them: one BOS where the model has one, the assistant's turn opened.

        Control tokens that a chat's content spells out are read as characters.

        Raises:
            TemplateError: the template refuses the conversation, it ends with the assistant's own turn, or its text
                would open another turn.
        """
        messages = self._messages(prompt)
        if messages is None:
            return self._raw_prompt(prompt)
        dicts = self._chat.as_dicts(messages)
        self._check_history(dicts)
        marked, mark = self._chat.marked(dicts)
        asked = self._chat.asked(marked, prompt)
        return self._tokens.encode_marked(asked, mark) if mark else self._tokens.encode(asked)

    def example(self, prompt: Prompt, completion: Completion, *, end: bool = True) -> list[Example]:
        """A demonstration, with the loss on every assistant's turn of `completion` and its end token.

        Args:
            completion: text, or the turns that follow the prompt; the last is the assistant's.
            end: the last turn is complete. An incomplete one carries no end token.

        Returns:
            One example; several where the template rewrites earlier turns (Qwen3 drops their thinking), so that
            each turn is trained behind the very tokens it will be asked with.

        Raises:
            TemplateError: the trained tokens cannot be told exactly, an answer is empty, or the content spells out
                control tokens.
        """
        messages = self._messages(prompt)
        if messages is None:
            return [self._raw(prompt, _only_text(completion), end, strict=True)]
        dicts, answers = self._join(messages, completion)
        first = max(len(dicts) - answers, 0)
        self._check_history(dicts[:first])
        for i, message in enumerate(dicts):
            self._check_message(message, i, trained=i >= first)
        trained = [i for i in range(first, len(dicts)) if dicts[i]["role"] == "assistant"]
        return self._turns.examples(dicts, trained, prompt, end)

    def answer(self, prompt: Prompt, completion: Completion, *, end: bool = True) -> Example:
        """One answer as it is scored: `prompt_ids` and the ids of the answer, which are marked.

        Text that a model wrote is taken as it is: it may be empty (its end token alone is marked), and control
        tokens spelled out in it are read as characters.

        Raises:
            TemplateError: as `prompt_ids`, or the boundary cannot be told exactly.
        """
        messages = self._messages(prompt)
        if messages is None:
            return self._raw(prompt, _only_text(completion), end, strict=False)
        dicts, _ = self._join(messages, completion)
        self._check_history(dicts[:-1])
        marked, mark = self._chat.marked(dicts)
        row = self._turns.row(marked, *self._turns.texts(marked, prompt), end=end, mark=mark)
        return example_of(row.ids, row.spans)

    def text_ids(self, text: str) -> list[int]:
        """BOS (where the model has one), a document, EOS; control tokens in the text are read as characters."""
        end = [] if self.eos_id is None else [self.eos_id]
        return [*self._tokens.leading_ids, *self._tokens.encode_plain(text), *end]

    def decode(self, ids: Sequence[int]) -> str:
        """The text that ids add to what is before them, without special tokens.

        Ids that begin with the tokenizer's own BOS are read as a whole text. The difference is the leading space that
        SentencePiece tokenizers drop from a whole text.
        """
        leading = self._tokens.leading_ids
        if leading and list(ids[: len(leading)]) == leading:
            return self._tokens.decode_whole(ids)
        return self._tokens.decode_after(ids)

    # About the tokenizer ---------------------------------------------------------------------------------------

    @cached_property
    def vocab_size(self) -> int:
        """Rows that an embedding needs: the largest id and one."""
        return max(self.tokenizer.get_vocab().values()) + 1

    @cached_property
    def fingerprint(self) -> str:
        """Equal for two templates whose ids mean the same, prompts and turns included."""
        source = [self.tokenizer.backend_tokenizer.to_str(), self.tokenizer.chat_template]
        return hashlib.sha256(json.dumps(source, sort_keys=True).encode()).hexdigest()[:16]

    def save(self, folder: str | Path) -> None:
        """Writes the tokenizer with its chat template, all end ids into `generation_config.json`, and how plain prompts
        are read into `goodheart.json`.
        """
        folder = Path(folder)
        self.tokenizer.save_pretrained(str(folder))
        # transformers 5 writes a class name that 4.x and others do not know; this older one means the same to all
        _update_json(folder / "tokenizer_config.json", {"TokenizersBackend": "PreTrainedTokenizerFast"})
        _update_json(folder / "generation_config.json", {}, eos_token_id=list(self.eos_ids), pad_token_id=self.pad_id)
        _update_json(folder / _OURS, {}, plain_prompts=self.plain_prompts)

    def colour(self, example: Example) -> RichText:
        """An example for the eye: trained tokens green, the others grey, `|` after each token.

        Tokens that make up one character together stand together.
        """
        from rich.text import Text

        shown = Text()
        held: list[int] = []
        for t, (i, trained) in enumerate(zip(example.ids, example.mask, strict=True)):
            held.append(i)
            text = self._tokens.added.get(i) if len(held) == 1 else None
            text = text or self._tokens.decode_after(held, keep_special=True)
            whole = "\N{REPLACEMENT CHARACTER}" not in text or len(held) == 4  # no character has more bytes
            if whole or t + 1 == len(example.ids) or example.mask[t + 1] != trained:
                shown.append(visible(text.replace("\n", "\\n")), style="bold green" if trained else "dim")
                shown.append("|", style="dim")
                held = []
        return shown

    # Raw text --------------------------------------------------------------------------------------------------

    def _raw_prompt(self, prompt: Prompt) -> list[int]:
        text = prompt.text or ""
        control = self._tokens.control_in(text)
        if control is not None:
            raise TemplateError(f"the prompt is plain text but spells out {control!r}: give it as messages instead")
        return [*self._tokens.leading_ids, *self._tokens.encode(text)]

    def _raw(self, prompt: Prompt, answer: str, end: bool, *, strict: bool) -> Example:
        before = self._raw_prompt(prompt)
        if strict:
            self._check_message({"role": "assistant", "content": answer}, 1, trained=True)
        whole = [*self._tokens.leading_ids, *self._tokens.encode_plain((prompt.text or "") + answer)]
        if whole[: len(before)] != before:
            whole = before + self._tokens.continuation(answer)
        if end and self.eos_id is None:
            raise TemplateError(NO_EOS)
        whole += [self.eos_id] if end and self.eos_id is not None else []
        return example_of(whole, [(len(before), len(whole))])

    # Chats -----------------------------------------------------------------------------------------------------

    def _messages(self, prompt: Prompt) -> tuple[Message, ...] | None:
        if prompt.text is None:
            return prompt.messages
        return (Message("user", prompt.text),) if self.plain_prompts == "user" else None

    def _join(self, messages: tuple[Message, ...], completion: Completion) -> tuple[list[dict[str, Any]], int]:
        turns = (Message("assistant", completion),) if isinstance(completion, str) else completion
        if not turns or turns[-1].role != "assistant":
            raise TemplateError("the answer does not end with an assistant's turn")
        return self._chat.as_dicts((*messages, *turns)), len(turns)

    def _check_history(self, dicts: Sequence[Mapping[str, Any]]) -> None:
        if dicts and dicts[-1]["role"] == "assistant":
            raise TemplateError("the prompt ends with an assistant's turn: nothing is left to answer")
        for i, message in enumerate(dicts):
            turn = self._chat.turn_in(message)
            if turn is not None:
                raise TemplateError(f"message {i + 1} ({message['role']}) would open another turn by its {turn!r}")

    def _check_message(self, message: Mapping[str, Any], index: int, *, trained: bool) -> None:
        found = self._chat.control_in(message) or self._chat.turn_in(message)
        where = f"message {index + 1} ({message['role']})"
        if found is not None:
            raise TemplateError(f"{where} spells out {found!r}, which the template writes itself: take it out")
        if trained and message["role"] == "assistant" and not message["content"] and not message.get("tool_calls"):
            raise TemplateError(f"{where} is empty: there is nothing to learn")


def _only_text(completion: Completion) -> str:
    if isinstance(completion, str):
        return completion
    if len(completion) != 1 or completion[0].role != "assistant":
        raise TemplateError("a plain text prompt takes one plain text answer, not several turns")
    return completion[0].content


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _update_json(path: Path, classes: Mapping[str, str], **values: Any) -> None:
    content = _read_json(path) | values
    if content.get("tokenizer_class") in classes:
        content["tokenizer_class"] = classes[content["tokenizer_class"]]
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
