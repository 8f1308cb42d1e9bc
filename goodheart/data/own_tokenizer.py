"""The tokenizer of a folder whose tokenizer.json says it all, read without transformers.

Importing transformers takes as long as all else that a small model's start needs beside torch. Here is what prompts and
answers take: the backend, the special tokens, and the plain transcript of chat_text.py. Whatever else is asked of it
(other chat templates, tools, calling it) is answered by transformers' own tokenizer, which is loaded then.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from goodheart.data.chat_text import plain_template

# To the letter: a template from elsewhere is for transformers to render.
_OURS = frozenset(
    plain_template(begin, end) for begin in ("bos_token", "cls_token", None) for end in ("eos_token", "sep_token")
)
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# Entries of tokenizer_config.json that have no part in which tokens a text has, nor in what they say.
_SETTINGS = ("model_max_length", "model_input_names", "padding_side", "truncation_side", "clean_up_tokenization_spaces")
_HARMLESS = (
    *("tokenizer_class", "backend", "is_local", "local_files_only", "name_or_path", "chat_template"),
    *_SETTINGS,
)
_TEMPLATE = "chat_template.jinja"
_BESIDE = ("added_tokens.json", "additional_chat_templates")  # say more than tokenizer.json
_MOST_TOKENS = 100_000  # transformers looks into larger ones for faults that it mends


class OwnTokenizer:
    """Like transformers' `PreTrainedTokenizerFast` of the same folder; see `read`."""

    def __init__(self, folder: str, backend: Any, config: Mapping[str, Any], chat_template: str | None) -> None:
        self.name_or_path = folder
        self.backend_tokenizer = backend
        self.chat_template = chat_template
        self._config = dict(config)
        for name in NAMED:
            setattr(self, name, config.get(name))

    @classmethod
    def read(cls, folder: str, config: Mapping[str, Any], more: Mapping[str, Any]) -> OwnTokenizer | None:
        """The tokenizer; None where transformers might make something else of the folder.

        Args:
            config: what is in tokenizer_config.json. more: in special_tokens_map.json.
        """
        named = {name: config[name] for name in NAMED if config.get(name) is not None}
        texts = [*named.values(), *([config["chat_template"]] if config.get("chat_template") is not None else [])]
        if (
            not set(config).issubset((*NAMED, *_HARMLESS))
            or not all(isinstance(text, str) for text in texts)
            or (more and dict(more) != named)
            or any(Path(folder, name).exists() for name in _BESIDE)
        ):
            return None
        from tokenizers import Tokenizer

        backend = Tokenizer.from_file(str(Path(folder, "tokenizer.json")))
        # A token that is named, transformers makes special, whatever tokenizer.json says of it.
        special = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
        whole = backend.post_processor is not None and backend.padding is None and backend.truncation is None
        if not whole or not special.issuperset(named.values()) or backend.get_vocab_size() > _MOST_TOKENS:
            return None
        file, template = Path(folder, _TEMPLATE), config.get("chat_template")
        if file.is_file():
            if template is not None:
                return None
            template = file.read_text(encoding="utf-8")
        return cls(folder, backend, config, template)

    @property
    def knows_its_chat(self) -> bool:
        """Whether conversations need no transformers either; without a chat template they are plain transcripts."""
        return self.chat_template is None or self.chat_template in _OURS

    @property
    def added_tokens_decoder(self) -> dict[int, Any]:
        """Id -> added token."""
        return dict(self.backend_tokenizer.get_added_tokens_decoder())

    def get_vocab(self) -> dict[str, int]:
        """Token -> id, added ones included."""
        return dict(self.backend_tokenizer.get_vocab(with_added_tokens=True))

    def apply_chat_template(self, messages: Sequence[Mapping[str, Any]], tools: Any = None, **how: Any) -> Any:
        """The text of a conversation in the plain transcript; transformers' answer to everything else."""
        text_alone = (
            tools is None and how.get("tokenize") is False and set(how) <= {"tokenize", "add_generation_prompt"}
        )
        plain = (
            isinstance(messages, list | tuple)
            and len(messages) > 0
            and all(isinstance(each, Mapping) and isinstance(each.get("content"), str) for each in messages)
        )
        if self.chat_template not in _OURS or not text_alone or not plain:
            return self._theirs().apply_chat_template(messages, tools=tools, **how)
        asked = bool(how.get("add_generation_prompt"))
        return _compiled(self.chat_template).render(messages=messages, add_generation_prompt=asked, **self._named())

    def save_pretrained(self, folder: str) -> None:
        """Writes the files that this was read from, and the chat template."""
        to = Path(folder)
        to.mkdir(parents=True, exist_ok=True)
        config = {name: value for name, value in self._config.items() if name not in (*NAMED, "chat_template")}
        config |= self._named()
        (to / "tokenizer.json").write_text(self.backend_tokenizer.to_str(pretty=True), encoding="utf-8")
        text = json.dumps(config, indent=2, ensure_ascii=False, sort_keys=True) + "\n"
        (to / "tokenizer_config.json").write_text(text, encoding="utf-8")
        if self.chat_template is not None:
            (to / _TEMPLATE).write_text(self.chat_template, encoding="utf-8")

    def __len__(self) -> int:
        return int(self.backend_tokenizer.get_vocab_size(with_added_tokens=True))

    def __call__(self, *texts: Any, **how: Any) -> Any:
        return self._theirs()(*texts, **how)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # asked by copy and pickle before there is anything
            raise AttributeError(name)
        if name.removesuffix("_id") in NAMED:
            token = getattr(self, name.removesuffix("_id"))
            return None if token is None else self.backend_tokenizer.token_to_id(token)
        return getattr(self._theirs(), name)

    def _theirs(self) -> Any:
        """The same of transformers, as this one is now; made of what was read, for the folder may have gone."""
        if "_loaded" not in self.__dict__:
            from transformers import PreTrainedTokenizerFast

            told = {name: self._config[name] for name in _SETTINGS if name in self._config}
            self._loaded = PreTrainedTokenizerFast(
                tokenizer_object=self.backend_tokenizer, name_or_path=self.name_or_path, **self._named(), **told
            )
        self._loaded.chat_template = self.chat_template
        for name in NAMED:
            if getattr(self._loaded, name) != getattr(self, name):
                setattr(self._loaded, name, getattr(self, name))
        return self._loaded

    def _named(self) -> dict[str, str]:
        return {name: getattr(self, name) for name in NAMED if getattr(self, name) is not None}


@cache
def _compiled(template: str) -> Any:
    """A plain transcript as jinja compiles it, with what of transformers' additions it uses."""
    import jinja2
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks what the assistant says; where only the text is wanted, it is a block like any."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("_said"), [], [], body).set_lineno(line)

        def _said(self, caller: Any) -> Any:
            return caller()

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation])
    made.globals["raise_exception"] = raise_exception
    return made.from_string(template)
