"""The report page: whole, self-contained, and deaf to whatever the data says."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from goodheart.errors import RunError
from goodheart.evaluate.charts import goodhart_charts, training_charts
from goodheart.evaluate.cost import cost_of
from goodheart.evaluate.report import write_report
from goodheart.evaluate.runs import RunRecord, read_story
from goodheart.evaluate.safe_text import said
from tests.evaluate.stories import audit_rows, evaluation, measure, write_pipeline, write_run

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{ 7 * 7 }}\u202eevil\u2066 &amp; </style>"
VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """Elements and texts of a page; complains of tags that do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def report(target: Path) -> Page:
    return Page(write_report(target).read_text(encoding="utf-8"))


def test_a_pipeline_from_beginning_to_end(tmp_path: Path) -> None:
    page = report(write_pipeline(tmp_path / "demo"))
    assert "ppo is better than sft and base" in page.text
    assert "ppo is better than sft: win rate 64 % (59 to 69 %), ties counting half (62 % won, 6.2 % tied)" in page.text
    assert "A gate failed: evaluate.models.ppo.harmful.high < 0.02 (high = 0.05)" in page.text
    assert "Worse than sft: concise 0.60 after 0.80" in page.text
    assert "said by base" in page.text
    assert "became worse" in page.text
    assert "peak at d = 2.7" in page.text
    assert "labels : 1,900 labels by 12 people on 1,900 prompts. They prefer what is truly better in 85 %" in page.text
    assert "Two of them agree in 74 % (70 % to 78 %) of the pairs (chance: 50 %)." in page.text
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    links = [str(a["href"])[1:] for tag, a in page.tags if tag == "a"]
    assert set(links) == set(ids)


def test_nothing_is_loaded_and_nothing_runs(tmp_path: Path) -> None:
    page = report(write_pipeline(tmp_path / "demo"))
    assert not {tag for tag, _ in page.tags} & {"script", "img", "link", "iframe", "object", "embed", "form", "base"}
    for _, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on") or name in ("src", "srcset", "style")]
        assert str(attributes.get("href", "#")).startswith("#")
    text = (tmp_path / "demo" / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|@import|url\(", text)
    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"


def poisoned(value: Any) -> Any:
    """The same results with every text and every free name made hostile."""
    if isinstance(value, dict):
        return {k + EVIL if k in ("ppo", "fact", "concise", "length") else k: poisoned(v) for k, v in value.items()}
    if isinstance(value, list):
        return [poisoned(v) for v in value]
    if value == "ppo":
        return "ppo" + EVIL
    return EVIL if isinstance(value, str) and value not in ("user", "eos", "loss", "base", "sft", "harmful") else value


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    found = poisoned(evaluation())
    found["tics_changed"] = [{"tic": "x", "from": "sft", "to": "ppo" + EVIL, "words": EVIL}]
    found["reward_model"] = {
        "model": EVIL,
        "against_judge": {
            "accuracy": 0.7, "accuracy_low": 0.6, "accuracy_high": 0.8, "always_longest": 0.5, "pairs": 9, "prompts": 3,
            "by_kind": {EVIL: {"accuracy": 0.7, "accuracy_low": 0.6, "accuracy_high": 0.8}}, "by_model": {},
        },
        "probes": [{"probe": EVIL, "change": measure(1.0), "flagged": True, "words": EVIL}],
    }  # fmt: skip
    folder = tmp_path / "evil"
    write_run(folder / "evaluate", "evaluate", results=found, settings={"score": EVIL, "answers": {EVIL: [EVIL]}})
    write_run(folder / "sft", "sft", results={}, metrics=[{"step": 1, "loss": 1.0}, {"step": 2, "loss": 2.0}])
    goodhart = {"turned_down": EVIL, "kept_step": 3}
    write_run(folder / "ppo", "ppo", results={"goodhart": goodhart}, audit=audit_rows(), settings={"reward": EVIL})
    (folder / "pipeline.json").write_text(json.dumps({"gates": {EVIL: {"holds": False, "findings": []}}}))
    page = report(folder)
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "img"})
    assert all(not name.startswith("on") for _, attributes in page.tags for name in attributes)
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert "<script" not in text
    assert "49" not in re.findall(r"alert\(2\)&gt;(.{2})", text)  # {{ 7 * 7 }} is not computed
    assert "{{ 7 * 7 }}" in page.text
    assert not re.search("[\u202a-\u202e\u2066-\u2069]", text)
    assert text.count("</style>") == 1


def test_unseen_characters_are_shown() -> None:
    assert said("a\u202eb\x00c\td\ne\ud800") == "a\\u202eb\\x00c\td\ne\\ud800"
    hidden = "\u061c\u00ad\u180e\ufff9\ufffa\ufffb\u3164\u2028\U000e0041\U000e0000\u200b\ufeff\x85"
    assert said(hidden) == (
        "\\u061c\\xad\\u180e\\ufff9\\ufffa\\ufffb\\u3164\\u2028\\U000e0041\\U000e0000\\u200b\\ufeff\\x85"
    )
    seen = "für, 你好！ 👩\u200d🔬 می\u200cخواهم café … 한국어"
    assert said(seen) == seen
    assert said("x" * 5000) == "x" * 4000 + "…"
    assert said(None) == "None"


def test_a_run_alone(tmp_path: Path) -> None:
    rows = [{"step": i, "loss": 1.0 / i, "tokens": 50.0} for i in range(1, 4)]
    page = report(write_run(tmp_path / "sft", "sft", results={"seconds": 5.0}, metrics=rows))
    assert "1 of 1 stage finished; nothing is evaluated yet" in page.text
    assert "5.0 s" in page.text
    assert any(tag == "svg" for tag, _ in page.tags)


def test_marks_are_good_or_bad_only_on_a_known_scale(tmp_path: Path) -> None:
    found = evaluation() | {"yes_no": ["harmful"], "unit_interval": ["harmful", "concise"], "lower_is_better": []}
    for answer in found["examples"][0]["answers"].values():
        answer["aspects"] = {"score": 0.5, "harmful": 1.0, "concise": 0.2, "toxicity": 40.0, "stars": 2.0}
    page = report(write_run(tmp_path / "e", "evaluate", results=found))
    text = page.text.partition("said by ppo")[2]
    assert "✓ harmful ✗ concise 0.20 toxicity 40.00 stars 2.00" in text  # more is better here, whatever the name says


def test_an_unfinished_run_is_told(tmp_path: Path) -> None:
    write_run(tmp_path / "all" / "ppo", "ppo", metrics=[{"step": 1, "objective/kl": None}], done=False)
    assert "The stage ppo is not finished; its numbers are those so far." in report(tmp_path / "all").text


def test_one_model_alone(tmp_path: Path) -> None:
    found = evaluation()
    found["models"] = {"base": found["models"]["base"]}
    found |= {"wins": {"base": {}}, "differences": {}, "leaderboard": [], "tics_changed": []}
    assert "nothing to compare it with" in report(write_run(tmp_path / "e", "evaluate", results=found)).text


def test_a_judge_without_opinion_on_a_kind_is_shown(tmp_path: Path) -> None:
    found = evaluation()
    for kinds in found["by_kind"].values():
        kinds["feeling"] = {"concise": measure(0.5)}
    page = report(write_run(tmp_path / "e", "evaluate", results=found))
    assert "feeling 0 – – –" in page.text


def test_out_names_the_file(tmp_path: Path) -> None:
    run = write_run(tmp_path / "sft", "sft", results={})
    file = write_report(run, tmp_path / "new" / "page.html")
    assert file == tmp_path / "new" / "page.html"
    assert file.is_file()
    assert not (run / "report.html").exists()


def test_what_is_no_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no such folder"):
        write_report(tmp_path / "none")
    with pytest.raises(RunError, match="neither a run folder nor"):
        write_report(tmp_path)
    write_run(tmp_path / "sft", "sft")
    (tmp_path / "sft" / "results.json").write_text("{", encoding="utf-8")
    with pytest.raises(RunError, match=r"results\.json: cannot be read"):
        write_report(tmp_path / "sft")


@pytest.mark.parametrize(
    ("file", "text", "told"),
    [
        ("metrics.jsonl", '{"loss": 1}\n{"loss": 2}\n', "stage ppo"),
        ("metrics.jsonl", '{"step": 1, "loss": "a"}\n{"step": 2, "loss": 2}\n', "stage ppo"),
        ("audit.jsonl", "[1]\n3\n", "stage ppo"),
        ("results.json", '{"goodhart": 3}', "results of its stages"),
        ("lineage.json", '{"stage": "ppo", "parents": [], "starts": [{}]}', "its files"),
        ("lineage.json", '{"stage": "ppo", "parents": {"a": {}}, "starts": []}', "its files"),
    ],
)
def test_a_damaged_file_is_an_error_that_names_the_folder(tmp_path: Path, file: str, text: str, told: str) -> None:
    run = write_run(tmp_path / "ppo", "ppo", results={}, metrics=[], audit=[])
    (run / file).write_text(text, encoding="utf-8")
    with pytest.raises(RunError, match=rf"ppo: .*({told}).* cannot be shown .*run the stage again"):
        write_report(run)
    assert not (run / "report.html").exists()


@pytest.mark.parametrize("missing", ["tics", "wins", "prompts"])
def test_results_of_another_version_are_an_error_that_names_the_folder(tmp_path: Path, missing: str) -> None:
    found = evaluation()
    del found[missing]
    run = write_run(tmp_path / "e", "evaluate", results=found)
    with pytest.raises(RunError, match=rf"e: .*{missing}.*other version"):
        write_report(run)


def test_answers_torn_by_a_kill_are_an_error(tmp_path: Path) -> None:
    write_pipeline(tmp_path / "demo")
    (tmp_path / "demo" / "ppo-answers.jsonl").write_text('{"tokens": [3, 4]}\n{"tok', encoding="utf-8")
    with pytest.raises(RunError, match=r"ppo-answers\.jsonl: the logs or results of the stage ppo-answers"):
        write_report(tmp_path / "demo")


def test_settings_of_any_kind_are_shown(tmp_path: Path) -> None:
    run = write_run(tmp_path / "sft", "sft", results={})
    (run / "config.yaml").write_text("since: 2024-01-02\n", encoding="utf-8")
    assert "2024-01-02" in report(run).text


def test_stages_come_in_the_order_of_the_pipeline(tmp_path: Path) -> None:
    story = read_story(write_pipeline(tmp_path / "demo"))
    assert [run.name for run in story.runs] == ["sft", "ppo", "ppo-answers", "labels", "evaluate"]
    assert story.evaluation is not None
    moved = (tmp_path / "demo").rename(tmp_path / "elsewhere")
    assert [run.done for run in read_story(moved).runs] == [True] * 5
    assert read_story(moved).runs[0].metrics


def test_a_run_made_by_hand_beside_a_pipeline_is_shown(tmp_path: Path) -> None:
    write_run(write_pipeline(tmp_path / "demo") / "more", "evaluate", results=evaluation() | {"judge": "mine:other"})
    story = read_story(tmp_path / "demo")
    assert [run.name for run in story.runs][-2:] == ["evaluate", "more"]
    assert story.evaluation is not None
    assert story.evaluation["judge"] == "mine:other"


def test_runs_without_a_record_come_by_their_time(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "ppo", time="2026-01-02T00:00:00+00:00")
    write_run(tmp_path / "b", "sft", time="2026-01-01T00:00:00+00:00")
    assert [run.name for run in read_story(tmp_path).runs] == ["b", "a"]


def test_costs_by_hand(tmp_path: Path) -> None:
    sft, ppo, answers, *_ = read_story(write_pipeline(tmp_path / "demo")).runs
    # five logged steps of 100 tokens; the pipeline's clock (31 s) counts; 31 s x 100 W / 3600 = 0.861 Wh
    cost = cost_of(sft)
    assert (cost.seconds, cost.trained_tokens, cost.sampled_tokens) == (31.0, 500.0, None)
    assert cost.watt_hours == pytest.approx(0.8611, abs=1e-4)
    # five steps of 4 answers of 10 tokens
    assert cost_of(ppo).sampled_tokens == 200
    assert cost_of(answers).sampled_tokens == 12


def test_steps_that_are_not_logged_count(tmp_path: Path) -> None:
    rows = [{"step": i, "tokens": 100.0} for i in (10, 20, 30)]
    run = read_story(write_run(tmp_path / "sft", "sft", metrics=rows)).runs[0]
    assert cost_of(run).trained_tokens == 3000
    # answers of 10 tokens, 4 of them in each of 30 steps
    lengths = [{"step": i, "completions/mean_length": 10.0} for i in (10, 20, 30)]
    write_run(tmp_path / "all" / "ppo", "ppo", metrics=lengths)
    assert cost_of(read_story(tmp_path / "all").runs[0]).sampled_tokens == 1200


@pytest.mark.parametrize(("gpus", "processes", "watts"), [(8, 1, 700), (8, 4, 2800), (2, 4, 1400), (0, 2, 100)])
def test_only_gpus_that_a_process_works_on_cost(tmp_path: Path, gpus: int, processes: int, watts: float) -> None:
    start = {"hardware": {"gpus": ["H200"] * gpus}, "processes": processes}
    assert cost_of(RunRecord("ppo", tmp_path, "ppo", True, lineage={"starts": [start]})).watts == watts


def test_on_a_phone_the_cautions_come_before_what_was_made(tmp_path: Path) -> None:
    text = write_report(write_pipeline(tmp_path / "demo")).read_text(encoding="utf-8")
    narrow = re.search(r"@media \(max-width: 760px\) \{(.*?)\n\}", text, re.S)
    assert narrow is not None
    assert "grid-template-columns: minmax(0, 1fr);" in narrow[1], "one below the other, in the order of the page"
    assert not re.search(r"[ {;]order:", text)
    assert text.index("<h3>Is it better?") < text.index("<h3>What to beware of") < text.index("<h3>What was made")


def test_who_answered_is_told_where_a_stage_drew_the_answers(tmp_path: Path) -> None:
    folder = write_pipeline(tmp_path / "demo")
    files = {"base": "runs/a.jsonl", "sft": "runs/b.jsonl", "ppo": "from/elsewhere.jsonl"}
    (folder / "evaluate/config.yaml").write_text(json.dumps({"score": "s", "answers": files}))
    noted = json.loads((folder / "pipeline.json").read_text(encoding="utf-8"))
    for name, settings in (
        ("a", {"model": "runs/base", "sampling": {"temperature": 0.6}}),
        ("b", {"model": ["runs/sft", "hub/one"], "best_of": 4}),
    ):
        noted["done"][name] = {"stage": "sample", "settings": {"out": f"runs/{name}.jsonl", **settings}}
    (folder / "pipeline.json").write_text(json.dumps(noted))
    told = "Who answered: base runs/base at temperature 0.6, sft runs/sft and hub/one at temperature 1, best of 4."
    assert told in report(folder).text.replace(" ,", ",")


def test_words_stand_apart_where_blocks_of_the_template_end(tmp_path: Path) -> None:
    text = report(write_pipeline(tmp_path / "demo")).text
    assert "not a measurement: 100 W for the machine" in text
    assert not re.search(r"\d %\.\w", text)


def test_the_goodhart_chart_fits_what_an_unfinished_run_left(tmp_path: Path) -> None:
    run = read_story(write_run(tmp_path / "ppo", "ppo", audit=audit_rows(), done=False)).runs[0]
    by_distance, by_step = goodhart_charts(run)
    found = re.search(r"peak at d = ([\d.]+)", by_distance.note)
    assert found is not None
    assert float(found[1]) == pytest.approx(math.e, abs=0.1)
    assert "fitted law" in by_distance.legend
    assert 'class="shade"' in by_distance.drawing
    assert "kept" in by_distance.drawing
    assert "kept" in by_step.drawing


@pytest.mark.parametrize(
    ("audit", "done", "kept"),
    [({"keep": True}, True, True), ({"keep": False}, True, False), ({"keep": True}, False, False)],
)
def test_what_was_kept_is_told_where_it_was(tmp_path: Path, audit: dict[str, bool], done: bool, kept: bool) -> None:
    run = write_run(tmp_path / "ppo", "ppo", results={}, audit=audit_rows(), settings={"audit": audit}, done=done)
    assert ("Of ppo the best model by the audit was kept." in report(run).text) is kept


def test_no_peak_is_claimed_where_none_was_seen(tmp_path: Path) -> None:
    short = read_story(write_run(tmp_path / "short", "ppo", audit=audit_rows(3))).runs[0]
    rising = [row | {"audit": 0.4 + 0.1 * row["kl"]} for row in audit_rows()]
    bent_up = read_story(write_run(tmp_path / "up", "ppo", audit=rising)).runs[0]
    for run, why in ((short, "too few or too alike"), (bent_up, "does not turn down")):
        chart = goodhart_charts(run)[0]
        assert why in chart.note
        assert "no peak is claimed" in chart.note
        assert "fitted law" not in chart.legend
        assert 'class="shade"' not in chart.drawing
    assert goodhart_charts(read_story(write_run(tmp_path / "none", "ppo")).runs[0]) == []


def test_training_charts_take_what_was_logged(tmp_path: Path) -> None:
    rows = [{"step": i, "objective/kl": i if i != 2 else None, "policy/clipfrac_avg": 0.1} for i in (1, 2, 3)]
    run = read_story(write_run(tmp_path / "ppo", "ppo", metrics=rows)).runs[0]
    assert [chart.title for chart in training_charts(run)] == ["KL from the start", "Clip fraction"]


def test_measured_difficulty_is_shown(tmp_path: Path) -> None:
    folder = write_pipeline(tmp_path / "demo")
    bins = {"low": 0.0, "high": 1.0, "counts": list(range(10))}
    prompts = {"prompts": 45, "answers": 90, "bar": 0.5, "pass_rate": 0.62, "all_pass": 0.2, "none_pass": 0.1}
    prompts |= {"no_spread": 0.3, "reliability": 0.47, "histogram": bins}
    pairs = {"pairs": 45, "margin": 1.25, "against": 0.25, "histogram": bins}
    noted = json.loads((folder / "pipeline.json").read_text())
    for name, results in (("measured", prompts), ("hard-pairs", pairs)):
        noted["done"][name] = {"stage": "difficulty", "settings": {"out": f"{name}.jsonl"}, "results": results}
    (folder / "pipeline.json").write_text(json.dumps(noted))
    text = report(folder).text
    assert "measured : 90 answers to 45 prompts, of which 62 % score over 0.5." in text
    assert "All answers pass at 20 % of the prompts, none at 10 %; at 30 % all score the same." in text
    assert "Of the variance of the prompts' mean scores 47 % is no noise." in text
    assert "hard-pairs : 45 pairs; the judge prefers the other answer in 25 %" in text
    assert "Left of 0 the judge prefers the other answer" in text


def test_a_curriculum_is_drawn(tmp_path: Path) -> None:
    rows = [{"step": i, "curriculum/open": i / 3, "curriculum/reward_easy": 0.5} for i in (1, 2, 3)]
    run = read_story(write_run(tmp_path / "grpo", "grpo", metrics=rows)).runs[0]
    assert [chart.title for chart in training_charts(run)] == ["Open to the curriculum", "Reward by difficulty"]
