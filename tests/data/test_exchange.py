"""Rows as other labelling tools export them, read as what people said; and rows of ours as those tools take them."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest

from goodheart.data.files import Row
from goodheart.data.formats import RowError, parse, to_rows
from goodheart.data.records import Answer, Judgement, Message, Prompt, Rating, Thumb

U, A = (lambda text: Message("user", text)), (lambda text: Message("assistant", text))
RAW = Prompt(text="Name a fruit.")
APPLE, STONE, PEAR = Answer("Apple"), Answer("Stone"), Answer("Pear")


def read(data: dict[str, Any]) -> list[Any]:
    return list(parse(Row(1, "test", data))[1])


def reason(data: dict[str, Any]) -> str:
    with pytest.raises(RowError) as caught:
        read(data)
    return str(caught.value)


class TestArgilla:
    FIELDS = {"prompt": "Name a fruit.", "answer_1": "Apple", "answer_2": "Stone", "answer_3": "Pear"}  # noqa: RUF012

    def nested(self, **responses: Any) -> dict[str, Any]:
        return {"id": "r1", "status": "completed", "fields": self.FIELDS, "metadata": {"lang": "en", "none": None},
                "suggestions": {}, "responses": responses, "_server_id": "x"}  # fmt: skip

    def test_rankings_of_two_people_with_a_tie(self) -> None:
        tied = [{"value": "answer_1", "rank": 1}, {"value": "answer_3", "rank": 1}, {"value": "answer_2", "rank": 3}]
        ann, bob = read(
            self.nested(
                ranking=[
                    {"value": tied, "user_id": "ann"},
                    {"value": ["answer_3", "answer_1", "answer_2"], "user_id": 7},
                ],
                comment=[{"value": "clear", "user_id": "ann"}],
                strength=[{"value": 4, "user_id": 7}],
                flags=[{"value": ["wrong"], "user_id": "ann"}],
            )
        )
        prompt = Prompt(text="Name a fruit.", meta={"lang": "en"})
        assert ann == Judgement(
            prompt, (APPLE, STONE, PEAR), (0, 1, 0), rater="ann", item_id="r1", comment="clear", flags={"wrong": True}
        )
        assert bob == Judgement(prompt, (APPLE, STONE, PEAR), (1, 2, 0), rater="7", item_id="r1", strength=4)

    def test_drafts_and_discarded_responses_are_not_read(self) -> None:
        order = ["answer_1", "answer_2", "answer_3"]
        given = [{"value": order, "user_id": s, "status": s} for s in ("draft", "discarded", "submitted")]
        assert [each.rater for each in read(self.nested(ranking=given))] == ["submitted"]
        assert read(self.nested()) == []  # nobody has answered yet: nothing is wrong with the row

    def test_flat(self) -> None:
        data = {
            "id": "r1", "status": "completed", "_server_id": None, "instruction": "Name a fruit.",
            "response-1": "Apple",
            "response-2": "Stone", "better.responses": ["response-2", "tie", "neither", "response-1"],
            "better.responses.users": ["ann", "bob", "eve", "zoe"],
            "better.responses.status": ["submitted", "submitted", "submitted", "draft"],
            "better.suggestion": "response-1", "better.suggestion.score": 0.9, "better.suggestion.agent": "gpt",
        }  # fmt: skip
        assert [(each.rater, each.ranks, each.flags) for each in read(data)] == [
            ("ann", (1, 0), {}), ("bob", (0, 0), {}), ("eve", (0, 0), {"both_bad": True})
        ]  # fmt: skip
        assert read(data)[0].prompt == RAW
        short = {**data, "better.responses.users": ["ann"]}
        assert reason(short) == "better.responses: 4 values of 1 people with 4 states"

    def test_choices_that_name_fields_by_their_number(self) -> None:
        fields = {"prompt": "Name a fruit.", "generation_1": "Apple", "generation_2": "Stone"}
        data = {"id": "a", "fields": fields, "responses": {"best": [{"value": "response-2", "user_id": "ann"}]}}
        (judgement,) = read(data)
        assert judgement.ranks == (1, 0)

    def test_ratings_and_chats(self) -> None:
        chat = [{"role": "user", "content": "Hi"}]
        data: dict[str, Any] = {"id": "a", "fields": {"chat": chat, "response": "Hello!"}, "metadata": {},
                "responses": {"quality": [{"value": 4, "user_id": "ann"}]}}  # fmt: skip
        assert read(data) == [Rating(Prompt(messages=(U("Hi"),)), Answer("Hello!"), 4.0, "ann")]
        more = {**data["responses"], "truth": [{"value": 1, "user_id": "ann"}]}
        assert reason({**data, "responses": more}).startswith("several questions rate the answer (quality, truth)")

    def test_faults(self) -> None:
        no_prompt = {**self.nested(ranking=[{"value": ["answer_1", "answer_2"], "user_id": "a"}]),
                     "fields": {"answer_1": "a", "answer_2": "b"}}  # fmt: skip
        assert reason(no_prompt) == "which field is the prompt? call it prompt; found none"
        assert reason(self.nested(ranking=["x"])) == "response 1 to ranking is no object with value and user_id"
        empty = {**self.FIELDS, "answer_2": " "}
        ranking = [{"value": ["answer_1", "answer_2", "answer_3"], "user_id": "a"}]
        assert reason({**self.nested(ranking=ranking), "fields": empty}) == "answer_2 is empty"

    def test_written_as_the_client_takes_it(self) -> None:
        """Without ties the order is a list of names; with ties only the server's form with ranks can say it."""
        judgement = Judgement(RAW, (APPLE, STONE), (1, 0), rater="ann", item_id="i", strength=2)
        (row,) = to_rows(judgement, "argilla")
        assert row == {
            "id": "i", "status": "completed", "metadata": {}, "suggestions": {},
            "fields": {"prompt": "Name a fruit.", "answer_1": "Apple", "answer_2": "Stone"},
            "responses": {
                "ranking": [{"value": ["answer_2", "answer_1"], "user_id": "ann"}],
                "strength": [{"value": 2, "user_id": "ann"}],
            },
        }  # fmt: skip


class TestLabelStudio:
    def task(self, *results: dict[str, Any], **annotation: Any) -> dict[str, Any]:
        about = {"completed_by": 3, "lead_time": 9.5, "was_cancelled": False, "ground_truth": False, **annotation}
        data = {"prompt": "Name a fruit.", "answer1": "Apple", "answer2": "Stone", "lang": "en"}
        return {"id": 11, "data": data, "annotations": [{"result": list(results), **about}], "predictions": []}

    def test_pairwise(self) -> None:
        side = {"from_name": "p", "to_name": "a,b", "type": "pairwise", "value": {"selected": "right"}}
        choices = {"type": "choices", "value": {"choices": ["harmful"]}}
        text = {"type": "textarea", "value": {"text": ["so", "so"]}}
        assert read(self.task(choices, side, text, created_at="2026-01-02T03:04:05Z")) == [
            Judgement(
                Prompt(text="Name a fruit.", meta={"lang": "en"}), (APPLE, STONE), (1, 0), rater="3", seconds=9.5,
                flags={"harmful": True}, comment="so\nso", item_id="11", created_at="2026-01-02T03:04:05Z",
            )
        ]  # fmt: skip
        assert read(self.task(side, was_cancelled=True)) == []
        assert read(self.task(choices)) == []  # annotated, but nothing is compared
        person = self.task(side, completed_by={"id": 1, "email": "ann@example.org"})
        assert read(person)[0].rater == "ann@example.org"
        wrong = {**side, "value": {"selected": "up"}}
        assert reason(self.task(wrong)) == "pairwise: selected must be left or right, found 'up'"

    @pytest.mark.parametrize(
        ("ranker", "ranks"),
        [
            (["c", "a", "b"], (1, 2, 0)),
            ({"rank_1": ["c"], "rank_2": ["a", "b"]}, (1, 1, 0)),
            ({"10 worst": ["a"], "9 middle": ["b"], "1 best": ["c"]}, (2, 1, 0)),
            ({"_": ["a", "b", "c"]}, (0, 0, 0)),
        ],
    )
    def test_rankers_and_buckets(self, ranker: Any, ranks: tuple[int, ...]) -> None:
        items = [{"id": k, "title": "T", "body": v} for k, v in (("a", "Apple"), ("b", "Stone"), ("c", "Pear"))]
        result = {"type": "ranker", "value": {"ranker": ranker}}
        data = {"id": 1, "data": {"prompt": "Name a fruit.", "items": items}, "annotations": [{"result": [result]}]}
        (judgement,) = read(data)
        assert (judgement.ranks, judgement.answers) == (ranks, (APPLE, STONE, PEAR))

    def test_faults(self) -> None:
        def ranked(ranker: Any) -> dict[str, Any]:
            items = [{"id": k, "body": k} for k in "ab"]
            return {"data": {"prompt": "p", "items": items},
                    "annotations": [{"result": [{"type": "ranker", "value": {"ranker": ranker}}]}]}  # fmt: skip

        assert reason(ranked({"good": ["a"], "bad": ["b"]})) == "which bucket is best? number them; found good, bad"
        assert reason(ranked(["a"])) == "the ranking is of a, the items are a, b"
        assert reason(ranked(["a", "b", "a"])) == "the ranking is of a, b, the items are a, b"
        assert reason(ranked("a")) == "ranker must be a list of ids or buckets of ids"
        no_prompt = {"data": {"answer1": "a", "answer2": "b"},
                     "annotations": [{"result": [{"type": "pairwise", "value": {"selected": "left"}}]}]}  # fmt: skip
        assert reason(no_prompt) == "the task's data hold no prompt; found answer1, answer2"
        assert reason({"data": {"prompt": "p"}, "annotations": [3]}) == "an annotation is no object"

    def test_tasks_to_import_there(self) -> None:
        pair = Judgement(RAW, (APPLE, STONE), (1, 0), rater="ann", batch="b")
        assert to_rows(pair, "label-studio-tasks") == [
            {"data": {"batch": "b", "prompt": "Name a fruit.", "answer1": "Apple", "answer2": "Stone"}}
        ]
        three = Judgement(Prompt(messages=(U("Hi"), A("Yes?"), U("Fruit?"))), (APPLE, STONE, PEAR), (0, 2, 1))
        (row,) = to_rows(three, "label-studio-tasks")
        assert row["data"]["prompt"] == "user: Hi\n\nassistant: Yes?\n\nuser: Fruit?"
        assert row["data"]["items"][1] == {"id": "answer_2", "title": "Answer 2", "body": "Stone"}


class TestSummaries:
    INFO = {"id": "t3_1", "post": "Long story.", "title": "Help", "subreddit": "advice"}  # noqa: RUF012

    def test_comparison(self) -> None:
        data = {
            "info": self.INFO, "split": "train", "choice": 1, "worker": "w9", "batch": "b1", "extra": {"confidence": 8},
            "summaries": [{"text": " Short.", "policy": "sup1", "note": None}, {"text": " Shorter.", "policy": "ref"}],
        }  # fmt: skip
        (judgement,) = read(data)
        text = "SUBREDDIT: r/advice\n\nTITLE: Help\n\nPOST: Long story.\n\nTL;DR:"
        assert judgement == Judgement(
            Prompt(text=text, meta={"subreddit": "advice", "split": "train"}),
            (Answer(" Short.", model="sup1"), Answer(" Shorter.", model="ref")),
            (1, 0), rater="w9", batch="b1", item_id="t3_1", flags={"confidence": 8},
        )  # fmt: skip
        assert reason({**data, "choice": 2}) == "choice must be 0 or 1, found 2"
        assert reason({**data, "summaries": [{"text": "a"}]}) == "a comparison holds two summaries, found 1"
        assert reason({**data, "info": {"id": "x"}}) == "info holds no post and no article"
        article = read({**data, "info": {"id": "cnn", "article": "News."}})[0]
        assert article.prompt.text == "Article: News.\n\nTL;DR:"

    def test_axes(self) -> None:
        summary = {"text": "Short.", "policy": "sup1", "axes": {"overall": 6, "accuracy": 7, "coverage": None}}
        data = {"info": self.INFO, "summary": summary, "worker": "w9", "batch": "b1", "split": "valid"}
        (rating,) = read(data)
        assert (rating.score, rating.rater, rating.answer) == (6.0, "w9", Answer("Short.", model="sup1"))
        assert rating.prompt.meta["axes"] == {"accuracy": 7}
        assert read({**data, "summary": {**summary, "axes": {"overall": None}}}) == []


class TestArena:
    def state(self, model: str | None, *said: str) -> dict[str, Any]:
        roles = ["USER", "ASSISTANT"]
        turns = [["USER", "example"], ["ASSISTANT", "example"], *([roles[n % 2], t] for n, t in enumerate(said))]
        return {"template_name": "vicuna", "system_message": "Be kind.", "roles": roles, "messages": turns, "offset": 2,
                "conv_id": "c1", "model_name": model}  # fmt: skip

    @pytest.mark.parametrize(
        ("vote", "ranks", "flags"),
        [("leftvote", (0, 1), {}), ("rightvote", (1, 0), {}), ("tievote", (0, 0), {}),
         ("bothbad_vote", (0, 0), {"both_bad": True})],
    )  # fmt: skip
    def test_votes_of_the_log(self, vote: str, ranks: tuple[int, int], flags: dict[str, Any]) -> None:
        data = {"tstamp": 0.5, "type": vote, "models": ["", ""], "ip": "1.2.3.4",
                "states": [self.state("m1", "Hi", "Hello!"), self.state("m2", "Hi", "Go away.")]}  # fmt: skip
        assert read(data) == [
            Judgement(
                Prompt(messages=(Message("system", "Be kind."), U("Hi"))),
                (Answer("Hello!", model="m1"), Answer("Go away.", model="m2")), ranks, flags=flags, rater="1.2.3.4",
                item_id="c1", created_at="1970-01-01T00:00:00.500000+00:00",
            )
        ]  # fmt: skip

    def test_what_is_no_vote(self) -> None:
        both = [self.state("m1", "Hi", "Hello!"), self.state("m2", "Hi", "Go away.")]
        assert read({"type": "chat", "states": both, "models": ["a", "b"]}) == []
        assert read({"type": "leftvote", "states": both[:1], "models": ["a"]}) == []
        image = {**both[0], "messages": [["USER", ["What?", ["png"]]], ["ASSISTANT", "x"]], "offset": 0}
        assert reason({"type": "leftvote", "states": [image, both[1]]}) == "a turn of a state holds more than text"
        other = self.state("m2", "Ho", "Go away.")
        told = reason({"type": "leftvote", "states": [both[0], {**other, "system_message": ""}]})
        assert told == "the two conversations do not open with the same question"
        waiting = self.state("m2", "Hi")
        waiting["messages"].append(["ASSISTANT", None])
        assert reason({"type": "leftvote", "states": [both[0], waiting]}) == "answer 2 is empty"

    def test_the_published_table(self) -> None:
        hi = {"role": "user", "content": "Hi"}
        data = {
            "question_id": "q", "model_a": "m1", "model_b": "m2", "winner": "tie (bothbad)", "judge": "arena_user_9",
            "conversation_a": [hi, {"role": "assistant", "content": "a"}], "tstamp": 0,
            "turn": 1, "language": "English",
            "conversation_b": [hi, {"role": "assistant", "content": "b"}],
        }  # fmt: skip
        (judgement,) = read(data)
        assert (judgement.ranks, judgement.flags, judgement.rater) == ((0, 0), {"both_bad": True}, "arena_user_9")
        assert judgement.prompt.meta == {"turn": 1, "language": "English"}
        assert reason({**data, "winner": "m1"}).startswith("winner must be one of model_a, model_b, tie")


class TestOpenWebUI:
    def feedback(self, rating: Any, *answers: str) -> dict[str, Any]:
        children = [f"a{n}" for n in range(len(answers))]
        held: dict[str, Any] = {
            "u": {"id": "u", "parentId": None, "childrenIds": children, "role": "user", "content": "Hi"}
        }
        for n, text in enumerate(answers):
            held[f"a{n}"] = {"id": f"a{n}", "parentId": "u", "childrenIds": [], "role": "assistant", "content": text,
                             "model": f"m{n}"}  # fmt: skip
        return {
            "id": "f1", "user_id": "ann", "version": 0, "type": "rating", "created_at": 0, "updated_at": 1,
            "data": {"rating": rating, "model_id": "m1", "sibling_model_ids": ["m0"], "reason": "accurate"},
            "meta": {"arena": True, "chat_id": "c", "message_id": "a1"},
            "snapshot": {"chat": {"id": "c", "chat": {"history": {"messages": held, "currentId": "a1"}}}},
        }  # fmt: skip

    def test_siblings_yield_pairs(self) -> None:
        """The rated answer against each other one; nothing is said about the others among each other."""
        prompt = Prompt(messages=(U("Hi"),), meta={"reason": "accurate"})
        first, rated, last = Answer("a", model="m0"), Answer("b", model="m1"), Answer("c", model="m2")
        time = "1970-01-01T00:00:00+00:00"
        told: dict[str, Any] = {"rater": "ann", "item_id": "c", "created_at": time}
        assert read(self.feedback(1, "a", "b", "c")) == [
            Judgement(prompt, (first, rated), (1, 0), **told), Judgement(prompt, (rated, last), (0, 1), **told)
        ]  # fmt: skip
        assert [each.ranks for each in read(self.feedback("-1", "a", "b", "c"))] == [(0, 1), (1, 0)]

    def test_without_siblings_it_is_a_thumb(self) -> None:
        data = self.feedback(-1, "a", "b")
        del data["snapshot"]["chat"]["chat"]["history"]["messages"]["a0"]
        prompt = Prompt(messages=(U("Hi"),), meta={"reason": "accurate"})
        assert read(data) == [Thumb(prompt, Answer("b", model="m1"), False, rater="ann")]
        assert read(self.feedback(None, "a", "b")) == []

    def test_faults(self) -> None:
        assert reason(self.feedback(3, "a", "b")) == "rating must be 1 or -1, found 3"
        assert reason({**self.feedback(1, "a", "b"), "snapshot": None}).startswith("the feedback has no snapshot")
        assert reason(self.feedback(1, "a")) == "the rated message is not in the snapshot of the chat"
        circle = self.feedback(1, "a", "b")
        circle["snapshot"]["chat"]["chat"]["history"]["messages"]["u"]["parentId"] = "u"
        assert reason(circle) == "the messages of the chat run in a circle"


class TestTrees:
    def test_ranked_replies(self) -> None:
        def reply(text: str, rank: int | None, **more: Any) -> dict[str, Any]:
            return {"text": text, "role": "assistant", "rank": rank, "replies": [], "message_id": text, **more}

        best = reply("Apple", 0, replies=[{"text": "And?", "role": "prompter", "replies": [
            reply("Pear", 1), reply("Fig", 0, model_name="m")]}])  # fmt: skip
        replies = [best, reply("Stone", 1), reply("spam", 2, deleted=True), reply("bad", 3, review_result=False),
                   reply("late", None)]  # fmt: skip
        root = {"message_id": "r", "text": "Name a fruit.", "role": "prompter", "lang": "en", "replies": replies}
        top, deep = read({"message_tree_id": "r", "tree_state": "ready_for_export", "prompt": root})
        prompt = Prompt(messages=(U("Name a fruit."),), meta={"lang": "en"})
        assert top == Judgement(prompt, (APPLE, STONE), (0, 1), item_id="r")
        assert deep.prompt.messages == (U("Name a fruit."), A("Apple"), U("And?"))
        assert (deep.answers, deep.ranks) == ((PEAR, Answer("Fig", model="m")), (1, 0))

    def test_faults(self) -> None:
        assert read({"prompt": {"text": "Hi", "role": "prompter", "replies": []}}) == []
        assert "has no text and known role" in reason({"prompt": {"text": "Hi", "role": "judge", "replies": []}})
        deep: dict[str, Any] = {"text": "x", "role": "assistant", "replies": []}
        for _ in range(600):
            deep = {"text": "x", "role": "prompter", "replies": [deep]}
        assert reason({"prompt": deep}) == "the tree is deeper than 500 messages"


@pytest.mark.parametrize(
    "data",
    [
        {"fields": {}, "responses": {"q": 3}},
        {"fields": {"a": 1}, "responses": {"q": [{"value": [1, 2], "user_id": []}]}},
        {"q.responses": "x", "q.responses.users": 3},
        {"data": {}, "annotations": [{"result": 3}]},
        {"data": {"items": [{}]}, "annotations": [{}]},
        {"info": {}, "summaries": [1, 2], "choice": "x"},
        {"info": {"post": 3}, "summary": {"axes": {"overall": "good"}}},
        {"type": "leftvote", "states": [1, 2]},
        {"type": "leftvote", "states": [{"messages": "x"}, {"offset": "y"}]},
        {"conversation_a": [], "conversation_b": {}, "winner": []},
        {"type": "rating", "data": {"rating": {}}, "meta": {}},
        {"type": "rating", "data": {"rating": 1}, "meta": {"message_id": "a"}, "snapshot": {"chat": {"history": []}}},
        {"prompt": {"replies": [3]}},
    ],
)
def test_cells_of_unforeseen_types_are_bad_rows_or_hold_nothing(data: dict[str, Any]) -> None:
    with contextlib.suppress(RowError):
        assert read(data) == []
