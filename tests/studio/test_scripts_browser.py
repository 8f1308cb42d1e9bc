"""The pages' scripts, piece by piece: the same small modules that the pages load, called in a browser."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from goodheart.studio.pages import static_version
from tests.studio.conftest import Running


@pytest.fixture
def run(serving: Callable[..., Running], tab: Callable[..., Any]) -> Callable[..., Any]:
    """Runs the body of a function of the given modules; gives back what it returns."""
    page = tab()
    page.goto(f"{serving().url}/settings")

    def call(modules: str, body: str) -> Any:
        parts = [
            f"const {name} = await import('/static/{static_version()}/label/{name}.js');" for name in modules.split()
        ]
        return page.evaluate(f"async () => {{ {' '.join(parts)} {body} }}")

    return call


def test_ranking(run: Callable[..., Any]) -> None:
    tiers = run(
        "ranking",
        """
        const {empty, place, tie, put, move, remove, ranks, fromRanks} = ranking;
        const keys = (count, text) => [...text].reduce(
            (r, key) => key === "=" ? tie(r, r.last) : {...place(r, key - 1), last: key - 1}, empty(count));
        const of = (r) => JSON.stringify(r.tiers);
        const base = keys(4, "31");
        return {
          plain: of(keys(4, "312")), tied: of(keys(4, "3=12")), off: of(keys(4, "311")),
          joined: of(keys(4, "312=")), parted: of(keys(4, "312==")), first: of(keys(4, "=2")),
          pair: of(keys(2, "2")), turned: of(keys(2, "21")), even: of(keys(2, "=")),
          alone: of(put(base, 1, 1, true)), into: of(put(base, 1, 1, false)), same: put(base, 2, 0, false) === base,
          out: of(remove(base, 2)), up: of(move(keys(4, "312"), 1, -1)), top: of(move(base, 2, -1)),
          down: of(move(keys(4, "3=12"), 2, 1)), ranks: ranks(keys(4, "3=12")), missing: ranks(base),
          back: of(fromRanks([1, 5, 1])),
        };
        """,
    )
    assert tiers == {
        "plain": "[[2],[0],[1],[3]]",  # 3 > 1 > 2, and what is left over comes last
        "tied": "[[2,0],[1],[3]]",  # 3 = 1 > 2 > 4
        "off": "[[2]]",  # pressed again: without a place
        "joined": "[[2],[0,1],[3]]",  # all placed: `=` joins the one touched last with the tier before it
        "parted": "[[2],[0],[1],[3]]",
        "first": "[[1]]",
        "pair": "[[1],[0]]",
        "turned": "[[0],[1]]",
        "even": "[[0,1]]",
        "alone": "[[2],[1],[0]]",
        "into": "[[2],[0,1]]",
        "same": True,
        "out": "[[0]]",
        "up": "[[2],[0,1],[3]]",
        "top": "[[2],[0]]",
        "down": "[[0],[2],[1],[3]]",
        "ranks": [0, 1, 0, 2],
        "missing": None,
        "back": "[[0,2],[1]]",
    }


def test_answer(run: Callable[..., Any]) -> None:
    found = run(
        "answer",
        """
        const {blank, change, missing, body, revive, scaleOf} = answer;
        const all = (count, ...actions) => actions.reduce((a, action) => change(a, action), blank(count));
        const pairs = {strength: true, rubric: []}, scores = {strength: false, rubric: [{name: "x"}]};
        const scaled = all(2, {do: "scale", value: -3});
        const turned = change(scaled, {do: "place", position: 1});
        return {
          scaled: body(scaled, "r", 1.26, pairs), turned: [turned.strength, missing(turned, pairs)],
          tie: scaleOf(all(2, {do: "tie"})), none: missing(blank(2), pairs),
          tied: missing(all(2, {do: "tie"}), pairs), bad: missing(all(2, {do: "bothBad"}), pairs),
          badAndHalf: missing(all(3, {do: "bothBad"}, {do: "place", position: 0}), pairs),
          unrated: missing(all(2, {do: "tie"}, {do: "rate", name: "x", position: 0, value: 4}), scores),
          flags: all(2, {do: "flag", name: "f", position: 1}, {do: "flag", name: "f", position: 0}).flags,
          off: all(2, {do: "flag", name: "f", position: 1}, {do: "flag", name: "f", position: 1}).flags,
          revived: revive(JSON.parse(JSON.stringify(scaled)), 2).strength,
          broken: [null, {ranking: {count: 2, tiers: [[0, 0]]}}, {ranking: {count: 3, tiers: []}}]
            .map((draft) => revive(draft, 2)),
        };
        """,
    )
    assert found == {
        "scaled": {
            "request": "r",
            "ranks": [0, 1],
            "strength": 3,
            "both_bad": False,
            "flags": {},
            "ratings": None,
            "comment": "",
            "seconds": 1.3,
        },
        "turned": [None, "missing.strength"],
        "tie": 0,
        "none": "missing.choice",
        "tied": None,
        "bad": None,
        "badAndHalf": "missing.ranks",
        "unrated": "missing.ratings",
        "flags": {"f": [0, 1]},
        "off": {},
        "revived": 3,
        "broken": [None, None, None],
    }


def test_keys(run: Callable[..., Any]) -> None:
    found = run(
        "keys",
        """
        const usual = {count: 2, strength: true, chosen: false, focus: null, flags: 3};
        const press = (event, more) => keys.actionOf({key: "", code: "", ...event}, {...usual, ...more});
        return [
          press({code: "Digit2", key: "2"}), press({code: "Digit3", key: "3"}),
          press({code: "Numpad4"}, {chosen: true}),
          press({code: "Digit0"}, {count: 10}), press({code: "Digit1", shiftKey: true, key: "!"}, {focus: 1}),
          press({code: "Digit1", shiftKey: true}), press({key: "ArrowLeft"}), press({key: "ArrowLeft"}, {count: 3}),
          press({key: "U"}), press({key: "u", ctrlKey: true}), press({key: "Enter", isComposing: true}),
          press({key: "x"}),
        ];
        """,
    )
    assert found == [
        {"do": "place", "position": 1},
        None,
        {"do": "strength", "value": 4},
        {"do": "place", "position": 9},
        {"do": "flagNumber", "number": 0, "position": 1},
        None,
        {"do": "slide", "step": -1},
        {"do": "look", "step": -1},
        {"do": "undo"},
        None,
        None,
        None,
    ]


def test_the_timer_counts_no_idle_time(run: Callable[..., Any]) -> None:
    seconds = run(
        "timer",
        """
        let now = 0;
        const one = new timer.Timer(() => now);
        const at = (time, what) => { now = time; what?.(); return one.seconds(); };
        return [at(10_000), at(30_000, () => one.touch()), at(85_000), at(500_000), at(600_000, () => one.touch()),
                at(610_000, () => one.pause()), at(700_000), at(700_000, () => one.start(5))];
        """,
    )
    # 30 s, then a sign of life and a minute more; at 600 s another, ten seconds of work, then the page is hidden.
    assert seconds == [10, 30, 85, 90, 90, 100, 100, 5]


def test_the_outbox_keeps_what_was_not_taken(run: Callable[..., Any]) -> None:
    found = run(
        "outbox",
        """
        const kept = new Map(), told = [], tried = [];
        const storage = {
          getItem: (key) => kept.get(key) ?? null,
          setItem: (key, value) => kept.set(key, value),
          removeItem: (key) => kept.delete(key),
          key: (i) => [...kept.keys()][i],
          get length() { return kept.size; },
        };
        let fails = ["later", "later"];
        const send = async (entry) => {
          tried.push(entry.body.request);
          const kind = entry.body.request === "no" ? "refused" : fails.shift();
          if (kind) throw Object.assign(new Error(kind), {kind});
          return {label: entry.body.request};
        };
        const tell = (what) => told.push(what.problem ?? (what.refused ? "refused" : what.waiting));
        const make = () => new outbox.Outbox({storage, key: "k", send, tell});
        const one = make();
        const first = one.add("/a", {request: "a"});
        const inStorage = kept.size;
        const second = one.add("/no", {request: "no"}).catch(error => error.message);
        const answers = [await first, await second, await one.idle(5000)];
        kept.set("k c", JSON.stringify({url: "/c", body: {request: "c"}, at: 2}));
        kept.set("k b", JSON.stringify({url: "/b", body: {request: "b"}, at: 1}));
        kept.set("k d", "nonsense").set("other", JSON.stringify({url: "/e", body: {request: "e"}, at: 1}));
        const again = make();
        await again.idle(5000);
        const problems = told.filter(what => typeof what === "string");
        return {inStorage, answers, tried, left: [...kept.keys()], problems};
        """,
    )
    assert found == {
        "inStorage": 1,
        "answers": [{"label": "a"}, "refused", True],
        "tried": ["a", "a", "a", "no", "b", "c"],
        "left": ["k d", "other"],
        "problems": ["later", "later", "refused"],
    }


def test_two_tabs_lose_no_answer_of_each_other(run: Callable[..., Any]) -> None:
    found = run(
        "outbox",
        """
        const sent = [];
        const never = async () => { throw Object.assign(new Error("later"), {kind: "later"}); };
        const tab = (send) => new outbox.Outbox({storage: localStorage, key: "two tabs", send, tell: () => {}});
        const one = tab(never), two = tab(never); // both are open before either has an answer
        one.add("/a", {request: "a"});
        two.add("/b", {request: "b"});
        one.send = async (entry) => ({});
        await one.idle(5000); // what the first has sent it takes away, and nothing else
        const next = tab(async (entry) => { sent.push(entry.body.request); return {}; });
        await next.idle(5000);
        return sent;
        """,
    )
    assert found == ["b"]
