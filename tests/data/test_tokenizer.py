"""A trained tokenizer loses nothing, is the same every time, and is the same in `transformers`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from goodheart.data.formats import read_records
from goodheart.data.tokenizer import SPECIAL_TOKENS, train_bpe
from goodheart.errors import ConfigError, DataError

TEXTS = [
    "the cat sat on the mat, the dog sat on the log\n" * 20,
    "苹果和香蕉，苹果和梨。" * 20,
    "1234 12 123 1234\n" * 9,
]
HARD = [
    "",
    " ",
    "the cat",
    "  leading,  double and trailing  ",
    "emoji 🙂👩‍👩‍👧‍👦 flag 🇩🇪",
    "苹果，香蕉。日本語 한국어 עברית",
    "control \x00\x01\x1b[31m\x7f\x85\u202e",
    "lines\r\n\n\ttab\u2028\u00a0",
    "e\u0301 é ﬁ ½ Å",  # nothing is normalised
    "don't n't , . ! ?",  # no space before punctuation is eaten
    "12345678901234567890",
    "\ufffd \U0010ffff \ue000",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_bpe(TEXTS, 290, tmp_path_factory.mktemp("tok"), chat_template="{{ messages[0]['content'] }}").folder


@pytest.fixture(scope="module")
def raw(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def test_size_and_first_ids(folder: Path, raw: Tokenizer) -> None:
    assert raw.get_vocab_size() == 290
    assert [raw.token_to_id(token) for token in SPECIAL_TOKENS] == [0, 1, 2]
    assert sorted(entry.name for entry in folder.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]


def test_begin_is_added_once_and_end_never(raw: Tokenizer) -> None:
    assert raw.encode("the cat").ids[0] == 1
    assert raw.encode("the cat").ids[1:] == raw.encode("the cat", add_special_tokens=False).ids
    assert 2 not in raw.encode("the cat").ids
    assert raw.encode("").ids == [1]


def test_it_learned_words_and_left_digits_alone(raw: Tokenizer) -> None:
    assert len(raw.encode(" the", add_special_tokens=False).ids) == 1
    assert len(raw.encode("1234", add_special_tokens=False).ids) == 4


@pytest.mark.parametrize("text", HARD)
def test_hard_texts_come_back(raw: Tokenizer, text: str) -> None:
    assert raw.decode(raw.encode(text, add_special_tokens=False).ids, skip_special_tokens=False) == text


@settings(max_examples=300, deadline=None)
@given(text=st.text())
def test_any_text_comes_back(raw: Tokenizer, text: str) -> None:
    assert raw.decode(raw.encode(text).ids[1:], skip_special_tokens=False) == text


def test_same_ids_and_texts_in_transformers(folder: Path, raw: Tokenizer) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for text in [*HARD, *TEXTS]:
        ids = tokenizer(text)["input_ids"]
        assert ids == raw.encode(text).ids
        assert tokenizer.decode(ids[1:]) == text
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert len(tokenizer) == 290
    assert tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False) == "Hi"


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen3", "gemma"])
def test_a_model_config_beside_it_changes_nothing(
    folder: Path, raw: Tokenizer, tmp_path: Path, model_type: str
) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    for text in HARD:
        assert tokenizer(text)["input_ids"] == raw.encode(text).ids
    assert len(tokenizer) == 290


def test_more_special_tokens(tmp_path: Path) -> None:
    special = (*SPECIAL_TOKENS, "<|user|>", "<|assistant|>")
    train_bpe(TEXTS, 290, tmp_path, special_tokens=special)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer("<|user|>the", add_special_tokens=False)["input_ids"][0] == 3
    assert tokenizer.decode([3, 4], skip_special_tokens=True) == ""
    assert tokenizer.chat_template is None


def test_the_same_text_gives_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    train_bpe(TEXTS, 290, tmp_path / "a")
    code = f"import sys; from goodheart.data.tokenizer import train_bpe; train_bpe({TEXTS!r}, 290, sys.argv[1])"
    environment = {"PYTHONHASHSEED": "7", "RAYON_NUM_THREADS": "1", "PATH": ""}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "b")], check=True, env=environment)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_one_long_text_is_as_good_as_its_lines(tmp_path: Path) -> None:
    lines = [f"line {index} of the long document\n" for index in range(8000)]  # 246,890 characters: cut at line ends
    train_bpe(["".join(lines)], 275, tmp_path / "whole")
    train_bpe(lines, 275, tmp_path / "lines")
    names = [json.loads((tmp_path / name / "tokenizer.json").read_text())["model"] for name in ("whole", "lines")]
    assert names[0] == names[1]


def test_half_a_surrogate_pair_does_not_stop_training(tmp_path: Path) -> None:
    assert train_bpe([*TEXTS, "broken \ud83d"], 290, tmp_path).texts == 4


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"vocab_size must be at least 259 \(256 bytes, 3 special tokens\)"):
        train_bpe(TEXTS, 258, tmp_path)
    with pytest.raises(ConfigError, match="all different"):
        train_bpe(TEXTS, 300, tmp_path, special_tokens=("<a>", "<a>", "<b>"))
    with pytest.raises(ConfigError, match="padding, begin, end"):
        train_bpe(TEXTS, 300, tmp_path, special_tokens=("<a>",))
    with pytest.raises(DataError, match="no text to train a tokenizer on"):
        train_bpe([], 300, tmp_path)
    with pytest.raises(DataError, match="no text to train a tokenizer on"):
        train_bpe(["", ""], 259, tmp_path)
    with pytest.raises(
        DataError, match=r"7 characters of text are too few for 4096 tokens: only 261 come of .* or less"
    ):
        train_bpe(["abc abc"], 4096, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="the tokenizer cannot be written"):
        train_bpe(TEXTS, 290, tmp_path / "file")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_smallest_size_is_bytes_alone(tmp_path: Path) -> None:
    train_bpe(["abc"], 259, tmp_path)
    raw = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert len(raw.encode("héllo", add_special_tokens=False).ids) == 6  # one for each byte


def test_on_real_stories(shared: Path, tmp_path: Path) -> None:
    stories = [record.text for record in read_records(shared / "data" / "tinystories_slice", "text").records]
    done = train_bpe(stories, 2048, tmp_path)
    assert (done.vocab_size, done.texts, done.characters) == (2048, 1165, sum(map(len, stories)))
    raw = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    ids = [encoding.ids for encoding in raw.encode_batch(stories, add_special_tokens=False)]
    assert raw.decode_batch(ids) == stories
    assert done.characters / sum(map(len, ids)) > 3.5  # characters for each token; measured 3.65
