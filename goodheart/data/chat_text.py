"""Conversations to the text of a chat template, and what that template does at the edges of a turn.

How a template ends the assistant's turn, whether it knows system turns, and which tokens it writes itself are found
by rendering two short probes; nothing is known by model name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from goodheart.data.records import Message, Prompt
from goodheart.data.token_text import TokenText
from goodheart.errors import ModelError, TemplateError

# The transcript form of HH-RLHF, for tokenizers without a chat template: any base model has seen such text, and no
# role needs a token of its own. The answer begins with a space, so that its first word is an ordinary one.
_PLAIN_NAME = "{#- goodheart: plain transcript -#}\n"
PLAIN_TEMPLATE = (
    _PLAIN_NAME
    + """\
{{- bos_token -}}
{%- set names = {'system': 'System', 'user': 'Human', 'assistant': 'Assistant', 'tool': 'Tool'} -%}
{%- for message in messages -%}
    {%- set text = message['content'] | trim -%}
    {%- if message['role'] not in names -%}
        {{- raise_exception('unknown role ' ~ message['role'] ~ ': system, user, assistant and tool are known') -}}
    {%- elif message.get('tool_calls') -%}
        {{- raise_exception('plain transcripts have no tool calls; use a tokenizer whose chat template has them') -}}
    {%- endif -%}
    {{- ('' if loop.first else '\\n\\n') ~ names[message['role']] ~ ':' -}}
    {%- if message['role'] == 'assistant' -%}
        {%- generation -%}{{- (' ' ~ text if text else '') ~ eos_token -}}{%- endgeneration -%}
    {%- else -%}
        {{- ' ' ~ text -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '\\n\\nAssistant:' -}}{%- endif -%}
"""
)
_PLAIN_TURN = re.compile(r"\n\n(?:System|Human|Assistant|Tool):")
_PLAIN_STOP = "\n\nHuman:"

_GENERATION_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")
_PROBE = "Goodheart"  # short, and no template trims or rewrites it
_MARKS = [chr(c) for c in range(0xE700, 0xE710)]  # private use: one that the conversation lacks breaks up literals


def plain_template(begin: str | None = "bos_token", end: str = "eos_token") -> str:
    """The plain transcript with other special tokens at the begin (None = none) and at the end of answers."""
    template = PLAIN_TEMPLATE.replace("eos_token", end)
    return template.replace("{{- bos_token -}}\n", "") if begin is None else template.replace("bos_token", begin)


def install_plain(tokenizer: Any, tokens: TokenText) -> None:
    """Gives a tokenizer without a chat template ours, in terms of the special tokens it has.

    Raises:
        ModelError: the tokenizer has neither an end token nor a separator to end a turn with.
    """
    if tokenizer.eos_token is None and tokenizer.sep_token is None:
        raise ModelError("the tokenizer has no eos_token, so no turn could ever end; set one in its config")
    begin: str | None = "bos_token" if tokens.leading_ids == [tokenizer.bos_token_id] else "cls_token"
    end = "sep_token" if tokenizer.eos_token is None else "eos_token"
    tokenizer.chat_template = plain_template(begin if tokens.leading_ids else None, end)


class ChatText:
    """The chat template of one tokenizer."""

    def __init__(self, tokenizer: Any, tokens: TokenText) -> None:
        self._tokenizer, self._tokens = tokenizer, tokens
        if tokenizer.chat_template is None:
            install_plain(tokenizer, tokens)
        source = tokenizer.chat_template
        if isinstance(source, dict):
            if "default" not in source:
                raise ModelError(f"the tokenizer has chat templates named {sorted(source)} but none named 'default'")
            source = source["default"]
        self.is_plain = source.startswith(_PLAIN_NAME)
        self.has_generation_marks = bool(_GENERATION_MARK.search(source)) and not self.is_plain  # ours are known good
        self.suffix = ""  # text after an answer
        self.closing: int | None = None  # the token in it that ends the turn
        self._folds_system = False
        self._probe()

    # What the template does ------------------------------------------------------------------------------------

    def _probe(self) -> None:
        ask, say = {"role": "user", "content": _PROBE}, {"role": "assistant", "content": _PROBE}
        try:
            whole = self._render([ask, say], gen=False)
            asked = self._tokens.encode(self._render([ask], gen=False))
        except TemplateError:
            return  # a template of another kind of conversation: each row will say what is wrong
        end = whole.rfind(_PROBE) + len(_PROBE)
        self.suffix = whole[end:]
        read = self._tokens.read(whole)
        for i, (start, _) in zip(read.ids, read.offsets, strict=True):
            if start >= end and self._tokens.added.get(i, "").strip():
                self.closing = i
                break
        written = [i for i in asked if self._tokens.added.get(i, "").strip()]
        self._tokens.add_controls(written if self.closing is None else [*written, self.closing])
        try:
            system = self._render([{"role": "system", "content": "Rules" + _PROBE}, ask], gen=True)
        except TemplateError:
            system = ""
        self._folds_system = "Rules" + _PROBE not in system

    @property
    def closing_text(self) -> str:
        """How the token that ends the assistant's turn is written; "" where the template has none."""
        return "" if self.closing is None else self._tokens.added[self.closing]

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """Text at which an answer is over though no token says so."""
        spelled_end = "" if self.closing is not None else self.suffix.strip()
        return ((_PLAIN_STOP,) if self.is_plain else ()) + ((spelled_end,) if spelled_end else ())

    # Rendering -------------------------------------------------------------------------------------------------

    def asked(self, messages: Sequence[Mapping[str, Any]], prompt: Prompt) -> str:
        """The text the model answers: the conversation and the opening of the assistant's turn."""
        return self._render(messages, gen=True, prompt=prompt)

    def answered(self, messages: Sequence[Mapping[str, Any]], prompt: Prompt) -> str:
        """The text of a conversation that ends with the assistant's turn."""
        return self._render(messages, gen=False, prompt=prompt)

    def _render(self, messages: Sequence[Mapping[str, Any]], *, gen: bool, prompt: Prompt | None = None) -> str:
        return str(self._apply(messages, prompt, tokenize=False, add_generation_prompt=gen))

    def _apply(self, messages: Sequence[Mapping[str, Any]], prompt: Prompt | None, **how: Any) -> Any:
        import jinja2

        meta = prompt.meta if prompt is not None else {}
        extra = meta.get("chat_template_kwargs")
        tools = meta.get("tools")
        try:
            return self._tokenizer.apply_chat_template(
                list(messages),
                tools=list(tools) if isinstance(tools, list | tuple) and tools else None,
                **{**(extra if isinstance(extra, Mapping) else {}), **how},
            )
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
            raise TemplateError(f"the chat template refuses the conversation: {error}") from error

    def generation_marks(self, messages: Sequence[Mapping[str, Any]], prompt: Prompt, ids: list[int]) -> list[bool]:
        """Which tokens the template's own `{% generation %}` marks call the assistant's.

        Raises:
            TemplateError: they are marks on other tokens than `ids`.
        """
        made = self._apply(messages, prompt, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
        if list(made["input_ids"])[: len(ids)] != ids:
            raise TemplateError("the template's generation marks belong to other tokens than the conversation's")
        return [bool(m) for m in made["assistant_masks"][: len(ids)]]

    def as_dicts(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """Messages as templates take them; a leading system turn goes into the user's where templates know none."""
        dicts = [m.as_dict() for m in messages]
        if self._folds_system and len(dicts) > 1 and (dicts[0]["role"], dicts[1]["role"]) == ("system", "user"):
            system, user = dicts[:2]
            dicts[:2] = [{**user, "content": f"{system['content']}\n\n{user['content']}"}]
        return dicts

    # Text that poses as the template's --------------------------------------------------------------------------

    def control_in(self, message: Mapping[str, Any]) -> str | None:
        """The first control token that a message spells out, or None."""
        found = (self._tokens.control_in(text) for text in _strings(message))
        return next((control for control in found if control is not None), None)

    def turn_in(self, message: Mapping[str, Any]) -> str | None:
        """What in a message would read as the start of another turn of a plain transcript, or None."""
        found = (_PLAIN_TURN.search(text) for text in _strings(message) if self.is_plain)
        return next((turn.group() for turn in found if turn), None)

    def marked(self, messages: Sequence[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], str]:
        """The messages with control tokens broken up by a mark, and the mark; "" where there was none to break."""
        texts = [t for m in messages for t in _strings(m)]
        if all(self._tokens.control_in(t) is None for t in texts):
            return list(messages), ""
        mark = next((m for m in _MARKS if not any(m in t for t in texts)), None)
        if mark is None:
            raise TemplateError("the conversation spells out control tokens among private-use characters")
        return [_map_strings(m, lambda t: self._break(t, mark)) for m in messages], mark

    def _break(self, text: str, mark: str) -> str:
        while (control := self._tokens.control_in(text)) is not None:
            broken = text.replace(control, control[0] + mark + control[1:])
            if len(control) < 2 or broken == text:
                raise TemplateError(f"the text holds {control!r}, which can only be read as a control token")
            text = broken
        return text


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [s for v in value.values() for s in _strings(v)]
    return [s for v in value for s in _strings(v)] if isinstance(value, list | tuple) else []


def _map_strings(value: Any, change: Any) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {k: _map_strings(v, change) for k, v in value.items()}
    return [_map_strings(v, change) for v in value] if isinstance(value, list | tuple) else value
