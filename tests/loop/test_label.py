"""`goodheart label`: the studio from the command line, a campaign from its file, the example out of nothing."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from goodheart.errors import ConfigError, DataError, FeedbackError
from goodheart.feedback import audit, campaigns, guidelines, label_rows, membership
from goodheart.feedback.campaigns import CampaignSettings
from goodheart.feedback.progress import progress
from goodheart.feedback.store import Store, open_store
from goodheart.loop.label import label, open_campaign, read_campaign
from goodheart.loop.label_example import make_example
from goodheart.studio.words import Words


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def test_the_example_out_of_nothing_and_ended_by_ctrl_c(tmp_path: Path) -> None:
    port = free_port()
    line = [sys.executable, "-m", "goodheart.cli", "label", "--example", "--port", str(port)]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    assert process.stdout is not None
    said = [process.stdout.readline().strip() for _ in range(5)]
    assert said[0] == f"the studio is at http://127.0.0.1:{port}/"
    assert said[3] == "labels are kept in runs/label-example/labels.db"
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/c/1/label", timeout=60) as response:
        assert "label/main.js" in response.read().decode()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/c/1/task", timeout=60) as response:
        assert len(json.load(response)["task"]["answers"]) >= 2
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=60)
    assert (out, errors, process.returncode) == ("", "", 0)


@pytest.fixture
def store(tmp_path: Path) -> Any:
    opened = open_store(tmp_path / "labels.db")
    yield opened
    opened.close()


def test_the_example_shows_something_and_is_made_once(store: Store) -> None:
    made = make_example(store)
    state = progress(store, made.id)
    assert state.items == 40
    assert 15 <= state.finished <= 35  # some work is left
    assert set(state.by_slice["language"]) == {"en", "zh"}
    assert state.labels_known >= 10  # gold among it
    assert len(membership.list_members(store, made.id)) == 6
    before = len(list(label_rows.live_labels(store, made.id, phases=None)))
    assert make_example(store) == made
    assert len(list(label_rows.live_labels(store, made.id, phases=None))) == before > 100
    assert {row.source for row in label_rows.live_labels(store, made.id)} == {"simulated"}


def write(folder: Path, **files: Any) -> Path:
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


ROWS = [
    {"prompt": f"Q{i}", "completions": ["good", "bad"], "models": ["a", "b"], "language": "en"} for i in range(3)
]  # fmt: skip
GOLD = [{"prompt": "G", "completions": ["yes", "no"], "gold": [0, 1]}]
FILE = "name: c\noverlap: 2\nitems: rows.jsonl\ngold: gold.jsonl\nguideline: guide.md\nslices: [language]\n"


def test_a_campaign_from_its_file_and_again(store: Store, tmp_path: Path) -> None:
    write(tmp_path, rows=ROWS, gold=GOLD)
    (tmp_path / "guide.md").write_text("Be kind.", encoding="utf-8")
    (tmp_path / "c.yaml").write_text(FILE, encoding="utf-8")
    made = open_campaign(store, read_campaign(tmp_path / "c.yaml"), tmp_path / "c.yaml")
    assert progress(store, made.id).by_slice == {"language": {"en": (0, 3)}}
    assert made.settings.overlap == 2
    # edited in the studio since: the unchanged file leaves it alone, a new text is a new version
    guidelines.add_version(store, made.id, "Be kinder.")
    write(tmp_path, rows=[*ROWS, ROWS[0] | {"prompt": "new"}])
    (tmp_path / "c.yaml").write_text(FILE + "pay_per_hour: 20\n", encoding="utf-8")
    again = open_campaign(store, read_campaign(tmp_path / "c.yaml"), tmp_path / "c.yaml")
    assert again.id == made.id
    assert again.settings.pay_per_hour == 20
    assert progress(store, made.id).items == 4
    assert guidelines.current(store, made.id).text == "Be kinder."
    (tmp_path / "guide.md").write_text("Be kindest.", encoding="utf-8")
    open_campaign(store, read_campaign(tmp_path / "c.yaml"), tmp_path / "c.yaml")
    assert guidelines.current(store, made.id).text == "Be kindest."
    (tmp_path / "c.yaml").write_text(FILE.replace("overlap: 2", "overlap: 3"), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"overlap cannot change once a campaign runs .*overlap 2"):
        open_campaign(store, read_campaign(tmp_path / "c.yaml"), tmp_path / "c.yaml")
    assert [each.name for each in campaigns.listing(store)] == ["c"]


def test_quotas_are_kept_whatever_slices_the_file_names(store: Store, tmp_path: Path) -> None:
    write(tmp_path, rows=[row | {"kind": "x"} for row in ROWS])
    file = tmp_path / "c.yaml"
    for name, slices in (("bare", ""), ("named", "slices: [kind]\n")):
        file.write_text(f"name: {name}\nitems: rows.jsonl\nquotas: {{language: {{en: 2}}}}\n{slices}", encoding="utf-8")
        made = open_campaign(store, read_campaign(file), file)
        assert progress(store, made.id).spare == 1  # three of which two are wanted


def test_what_managers_set_outlasts_a_file_that_has_not_changed(store: Store, tmp_path: Path) -> None:
    write(tmp_path, rows=ROWS)
    file, said = tmp_path / "c.yaml", list[str]()

    def start(rules: str) -> CampaignSettings:
        file.write_text(f"items: rows.jsonl\noverlap: 2\n{rules}", encoding="utf-8")
        return open_campaign(store, read_campaign(file), file, said.append).settings

    assert start("pay_per_hour: 20\nlanguages: [en]\n").pay_per_hour == 20
    made = campaigns.get(store, "c")
    managed = {"flags": ("rude",), "budget": 500.0, "until_agreement": 0.8, "pay_per_hour": 25.0}
    set_by_hand = campaigns.change(store, made.id, managed).settings
    count = len(audit.entries(store, action="read campaign file"))
    # Neither what the file does not name goes back to its default, nor what it names and has not changed.
    assert start("pay_per_hour: 20\nlanguages: [en]\n") == set_by_hand
    assert (said, len(audit.entries(store, action="read campaign file"))) == ([], count)
    # What changed in the file is taken over and told, the rest stays.
    now = start("pay_per_hour: 20\nlanguages: [en, zh]\nbudget: 700\n")
    assert now == set_by_hand.model_copy(update={"budget": 700.0, "languages": ("en", "zh")})
    assert said == [f"{file} changed rules of the campaign: budget, languages"]
    # A line taken out of it leaves its rule as it is; one that comes back is new.
    assert start("languages: [en, zh]\n") == now
    assert start("languages: [en, zh]\npay_per_hour: 20\n").pay_per_hour == 20
    assert len(said) == 2
    for language in ("en", "zh-Hant", "zh-Hans"):
        assert Words.of(language).maybe("done.read_campaign_file", "")


def test_a_campaign_made_without_the_file_takes_what_the_file_names(store: Store, tmp_path: Path) -> None:
    write(tmp_path, rows=ROWS)
    (tmp_path / "c.yaml").write_text("items: rows.jsonl\nbudget: 7\n", encoding="utf-8")
    campaigns.create(store, CampaignSettings(name="c", budget=5, flags=("rude",)))
    found = open_campaign(store, read_campaign(tmp_path / "c.yaml"), tmp_path / "c.yaml")
    assert (found.settings.budget, found.settings.flags) == (7, ("rude",))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("overlap: 2\noverlp: 3\n", r"c\.yaml:2: unknown key `overlp`.*overlap"),
        ("name: c\n\noverlap: many\n", r"c\.yaml:3: `overlap`: .*integer"),
        ("items: nothing.jsonl\n", r"c\.yaml:1: `items`: .*nothing\.jsonl: no such file"),
        ("- 1\n", r"c\.yaml: expected `key: value`"),
        ("until_agreement: 0.8\n", r"c\.yaml: .*overlap of 2"),
    ],
)
def test_what_is_wrong_with_a_file(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "c.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=said):
        label(str(tmp_path / "c.yaml"))
    assert not (tmp_path / "goodheart.db").exists()


def test_a_bad_row_is_named_and_nothing_is_made(store: Store, tmp_path: Path) -> None:
    write(tmp_path, rows=[*ROWS, {"prompt": "Q", "completions": ["one"]}])
    (tmp_path / "c.yaml").write_text("items: rows.jsonl\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"rows\.jsonl:4: .*fewer than two"):
        open_campaign(store, read_campaign(tmp_path / "c.yaml"), tmp_path / "c.yaml")
    assert campaigns.listing(store) == []


def test_a_name_without_its_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FeedbackError, match=r"no goodheart\.db with a campaign"):
        label("helpful")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match="not both"):
        label("helpful", example=tmp_path / "e")
