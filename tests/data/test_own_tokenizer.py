"""A tokenizer that is read without transformers is the one that transformers reads, or is left to it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from goodheart.data.own_tokenizer import NAMED, OwnTokenizer
from goodheart.data.records import Message, Prompt
from goodheart.data.template import PLAIN_TEMPLATE, Template, load_tokenizer
from goodheart.data.tokenizer import train_bpe

TEXTS = [
    "Once upon a time there was a girl.",
    "Human: hello\n\nAssistant: 你好, 12 times 3 is 36.",
    "aaa bbb <|eos|>",
] * 3
CHATS = [
    Prompt(messages=(Message("user", " Hello <|eos|> there "),)),
    Prompt(messages=(*(Message(r, "Be kind.") for r in ("system", "user", "assistant", "user")),)),
    Prompt(text="Once upon"),
]  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, stories260k: Path) -> dict[str, Path]:
    """Trained with a chat template and without one, another's, and one that transformers has saved."""
    made = tmp_path_factory.mktemp("tokenizers")
    found = {"stories": stories260k, "trained": made / "trained", "bare": made / "bare", "saved": made / "saved"}
    train_bpe(TEXTS, 262, made / "trained", chat_template=PLAIN_TEMPLATE)
    train_bpe(TEXTS, 264, made / "bare", special_tokens=("<|pad|>", "<|bos|>", "<|eos|>", "<|more|>"))
    (made / "bare/tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|eos|>", "bos_token": "<|bos|>"})
    )
    PreTrainedTokenizerFast.from_pretrained(made / "trained").save_pretrained(made / "saved")
    return found


NAMES = ["stories", "trained", "bare", "saved"]


@pytest.mark.parametrize("name", NAMES)
def test_it_is_what_transformers_reads(folders: dict[str, Path], name: str) -> None:
    own = load_tokenizer(folders[name])
    assert isinstance(own, OwnTokenizer)
    theirs = AutoTokenizer.from_pretrained(folders[name])
    if theirs.pad_token is None:
        theirs.pad_token = theirs.unk_token or theirs.eos_token
    for token in NAMED:
        assert getattr(own, token) == getattr(theirs, token), token
        assert getattr(own, f"{token}_id") == getattr(theirs, f"{token}_id"), token
    assert own.get_vocab() == theirs.get_vocab()
    assert {i: str(t) for i, t in own.added_tokens_decoder.items()} == {
        i: str(t) for i, t in theirs.added_tokens_decoder.items()
    }
    ours, others = Template(own), Template(theirs)
    assert own.chat_template == theirs.chat_template  # one without has the plain transcript now
    assert ours.fingerprint == others.fingerprint
    assert (ours.eos_ids, ours.pad_id, ours.stop_strings) == (others.eos_ids, others.pad_id, others.stop_strings)
    for prompt in CHATS[1:] if name == "stories" else CHATS:
        assert ours.prompt_ids(prompt) == others.prompt_ids(prompt)
        assert ours.answer(prompt, "So it is.") == others.answer(prompt, "So it is.")


@pytest.mark.parametrize("name", NAMES)
def test_what_is_saved_is_read_by_both(folders: dict[str, Path], name: str, tmp_path: Path) -> None:
    template = Template.load(folders[name])
    template.save(tmp_path / "own")
    again = Template.load(tmp_path / "own")
    assert isinstance(again.tokenizer, OwnTokenizer)
    theirs = AutoTokenizer.from_pretrained(tmp_path / "own")
    assert template.fingerprint == again.fingerprint == Template(theirs).fingerprint
    for token in NAMED:
        assert getattr(template.tokenizer, token) == getattr(theirs, token), token
    assert theirs.model_max_length == AutoTokenizer.from_pretrained(folders[name]).model_max_length


def test_a_conversation_that_the_transcript_refuses_is_refused_alike(folders: dict[str, Path]) -> None:
    own, theirs = load_tokenizer(folders["trained"]), AutoTokenizer.from_pretrained(folders["trained"])
    for tokenizer in (own, theirs):
        with pytest.raises(Exception, match="unknown role judge"):
            tokenizer.apply_chat_template([{"role": "judge", "content": "x"}], tokenize=False)


def test_everything_else_is_asked_of_transformers(folders: dict[str, Path]) -> None:
    own, theirs = load_tokenizer(folders["trained"]), AutoTokenizer.from_pretrained(folders["trained"])
    chat = [{"role": "user", "content": "Hello"}]
    assert (
        own("Once upon", add_special_tokens=False)["input_ids"]
        == theirs("Once upon", add_special_tokens=False)["input_ids"]
    )
    assert own.apply_chat_template(chat, return_dict=False) == theirs.apply_chat_template(chat, return_dict=False)
    own.chat_template = "{{ messages[0].content }}!"
    assert own.apply_chat_template(chat, tokenize=False) == "Hello!"
    own.pad_token = "<|eos|>"
    assert own.pad_token_id == own.convert_tokens_to_ids("<|eos|>")
    assert own("a", padding="max_length", max_length=9)["input_ids"][-1] == own.pad_token_id


def test_transformers_gets_what_was_read_and_what_was_set_since(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folders["trained"], "model")
    own, theirs = load_tokenizer("model"), AutoTokenizer.from_pretrained("model")
    shutil.rmtree("model")
    assert own("Once <|eos|>", "upon").data == theirs("Once <|eos|>", "upon").data
    for name in ("model_max_length", "padding_side", "special_tokens_map", "all_special_ids", "name_or_path"):
        assert getattr(own, name) == getattr(theirs, name), name
    own.eos_token = "<|bos|>"
    own.bos_token = None
    assert own.special_tokens_map == {"eos_token": "<|bos|>", "pad_token": "<|pad|>"}
    assert own.backend_tokenizer.padding is None  # calls of theirs leave ours as it was read


@pytest.mark.parametrize(
    "messages",
    [[{"role": "user", "content": None}], [], [[{"role": "user", "content": each}] for each in "xy"]],
    ids=str,
)
def test_unusual_conversations_are_answered_as_transformers_does(folders: dict[str, Path], messages: Any) -> None:
    found = []
    for tokenizer in (load_tokenizer(folders["trained"]), AutoTokenizer.from_pretrained(folders["trained"])):
        try:
            found.append(tokenizer.apply_chat_template(messages, tokenize=False))
        except Exception as error:
            found.append(repr(error))
    assert found[0] == found[1]


def test_its_length_is_that_of_the_vocabulary(folders: dict[str, Path]) -> None:
    own = load_tokenizer(folders["bare"])
    assert isinstance(own, OwnTokenizer)
    assert len(own) == len(AutoTokenizer.from_pretrained(folders["bare"])) == 264


@pytest.mark.parametrize(
    "change",
    [
        {"add_bos_token": False},
        {"eos_token": "<|other|>"},
        {"additional_special_tokens": ["a"]},
        {"chat_template": "{{ messages[0].content }}"},
        {"chat_template": PLAIN_TEMPLATE + "!"},
        {"bos_token": {"__type": "AddedToken", "content": "<|bos|>", "lstrip": True}},
    ],
)
def test_what_says_more_than_we_read_is_left_to_transformers(
    folders: dict[str, Path], tmp_path: Path, change: dict[str, Any]
) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folders["trained"] / name).read_bytes())
    assert isinstance(load_tokenizer(tmp_path), OwnTokenizer)
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    assert not isinstance(load_tokenizer(tmp_path), OwnTokenizer)


@pytest.mark.parametrize("name", ["added_tokens.json", "special_tokens_map.json"])
def test_so_is_what_other_files_say(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    for each in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / each).write_bytes((folders["trained"] / each).read_bytes())
    (tmp_path / name).write_text('{"bos_token": "<|eos|>"}' if "special" in name else '{"<|new|>": 262}')
    assert not isinstance(load_tokenizer(tmp_path), OwnTokenizer)


def test_a_named_token_that_the_file_does_not_call_special_is_made_so_by_transformers(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "tokenizer_config.json").write_bytes((folders["trained"] / "tokenizer_config.json").read_bytes())
    told = json.loads((folders["trained"] / "tokenizer.json").read_text())
    (eos,) = (token for token in told["added_tokens"] if token["content"] == "<|eos|>")
    (tmp_path / "tokenizer.json").write_text(json.dumps(told))
    assert isinstance(load_tokenizer(tmp_path), OwnTokenizer)
    eos["special"] = False
    (tmp_path / "tokenizer.json").write_text(json.dumps(told))
    found = load_tokenizer(tmp_path)
    assert not isinstance(found, OwnTokenizer)
    assert found.decode([found.eos_token_id], skip_special_tokens=True) == ""


def test_transformers_is_not_imported(folders: dict[str, Path], tmp_path: Path) -> None:
    code = (
        "import sys\nfrom goodheart.data.records import Message, Prompt\nfrom goodheart.data.template import Template\n"
        f"t = Template.load({str(folders['trained'])!r})\n"
        "t.example(Prompt(messages=(Message('user', 'Hi'),)), 'Hello.')\n"
        f"t.save({str(tmp_path / 'again')!r})\nprint('transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=100)
    assert done.stdout == "False\n"
