"""Replies of endpoints as they are not documented, and labels that tokenizers split."""

from __future__ import annotations

import json
import math
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

from lightning_unlearn.cli import judge as command
from lightning_unlearn.dialogue.extractors import TextExtractor
from lightning_unlearn.dialogue.prompt import JudgePrompt
from lightning_unlearn.dialogue.remote import RemoteJudge
from lightning_unlearn.dialogue.reply_logprobs import rating_from_logprobs
from lightning_unlearn.dialogue.task import SATISFACTION, RatingTask
from tests.dialogue.test_remote import ROWS, Server, Start, completion, start
from tests.dialogue.uss_files import write_jsonl

__all__ = ["start"]  # the fixture

pytest.importorskip("openai")
TEN = RatingTask("ten", tuple(map(str, range(1, 11))), tuple(range(1, 11)), ("x",) * 10, "it", "Judge it.")
NO = math.log(1e-9)


@pytest.mark.parametrize(
    "reply",
    [
        {"error": {"message": "no capacity", "code": 502}},
        {"id": "a", "object": "chat.completion", "created": 0, "model": "m", "choices": []},
        {"id": "a", "choices": None},
        {"id": "a", "choices": [{"index": 0}]},
        ["a list"],
        "a page",
    ],
)
def test_a_reply_without_a_message_says_what_came(start: Start, reply: Any) -> None:
    server = start(lambda body, _: (200, reply))
    with pytest.raises(RuntimeError, match="gave no rating"):
        RemoteJudge("m", server.url).rate(ROWS[:1])


def test_a_reply_that_is_no_json(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    server = start(lambda body, _: completion("Rating: 3"))
    handler: type[BaseHTTPRequestHandler] = server.server.RequestHandlerClass  # type: ignore[assignment]

    def broken(self: BaseHTTPRequestHandler) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", "9")
        self.end_headers()
        self.wfile.write(b'{"choices')

    monkeypatch.setattr(handler, "do_POST", broken)
    with pytest.raises(RuntimeError, match="gave no rating"):
        RemoteJudge("m", server.url, retries=0).rate(ROWS[:1])


def test_a_refusal_is_no_rating(start: Start) -> None:
    status, content = completion("")
    content["choices"][0]["message"] |= {"content": None, "refusal": "I can't rate this."}
    (rating,) = RemoteJudge("m", start(lambda body, _: (status, content)).url).rate(ROWS[:1])
    assert math.isnan(rating.score)
    assert (rating.parsed, rating.text) == (False, "I can't rate this.")


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("4", 4), (" 4\n", 4), ("**2**", 2), ("Rating: <4>", 4), ('{"rating": 3}', 3), ("Rating: 4/5", 4),
        ("Rating: 4/10", None), ("Rating: 4-5", None), ("Rating: 4\n- 2 issues", 4),
        ("Rating (1-5): 4", None), ("2 issues were found", None),
        ("Rating: 45", None), ("I can't.", None),
    ],
)  # fmt: skip
def test_the_label_alone_and_forms_of_a_rating(text: str, score: float | None) -> None:
    found = TextExtractor().read(JudgePrompt(), text)
    assert found.score == score if score else math.isnan(found.score)
    assert found.parsed == (score is not None)


def test_negative_labels_are_read() -> None:
    task = RatingTask("signed", ("-1", "0", "1"), (-1, 0, 1), ("bad", "fair", "good"), "it", "Judge it.")
    assert TextExtractor().read(JudgePrompt(task), "Rating: -1").score == -1


def test_a_label_of_two_tokens_is_not_read_as_its_first_one() -> None:
    """Qwen, Llama 2 and Gemma write 10 as 1 and 0."""
    cue: list[Any] = [("Rating", {}), (":", {}), (" ", {})]
    likeliest = {"1": math.log(0.9), "8": math.log(0.1)}
    split = [*cue, ("1", likeliest), ("0", {"0": -0.1})]
    assert rating_from_logprobs(TEN, "score_only", "Rating: 10", split) is None
    # What 1 has may be for 10, so the share of 8 says nothing.
    assert rating_from_logprobs(TEN, "score_only", "Rating: 8", [*cue, ("8", likeliest)]) is None
    whole = rating_from_logprobs(TEN, "score_only", "Rating: 8", [*cue, ("8", {**likeliest, "10": NO})])
    assert whole is not None
    assert whole.score == pytest.approx(0.9 * 1 + 0.1 * 8, abs=1e-6)


@pytest.mark.parametrize("rest", ["/10", " out of 10", ",5", "%", " or 5"])
def test_a_number_of_another_scale_is_not_read_from_its_log_probabilities(rest: str) -> None:
    tokens: list[Any] = [("Rating: ", {}), ("4", {"4": math.log(0.6), "3": math.log(0.4)}), (rest, {})]
    assert rating_from_logprobs(SATISFACTION, "score_only", f"Rating: 4{rest}", tokens) is None
    assert rating_from_logprobs(SATISFACTION, "score_only", "Rating: 4/5", [*tokens[:2], ("/5", {})]) is not None


def test_words_in_capitals_count_and_beginnings_of_words_do_not() -> None:
    task = RatingTask("w", ("bad", "very good"), (0, 1), ("x", "y"), "it", "Judge it.")
    likeliest = {" Bad": math.log(0.5), " bad": math.log(0.2), " very": math.log(0.3)}
    tokens: list[Any] = [("Rating:", {}), (" Bad", likeliest)]
    assert rating_from_logprobs(task, "score_only", "Rating: Bad", tokens) is None
    found = rating_from_logprobs(
        RatingTask("w", ("bad", "good"), (0, 1), ("x", "y"), "it", "Judge it."),
        "score_only",
        "Rating: Bad",
        [("Rating:", {}), (" Bad", {" Bad": math.log(0.5), " bad": math.log(0.2), " good": math.log(0.3)})],
    )
    assert found is not None
    assert (found.label, found.vocab_mass) == ("bad", pytest.approx(1.0))
    assert found.score == pytest.approx(0.3)


def test_tokens_that_are_not_those_of_the_text_are_not_read() -> None:
    likely = {" 2": math.log(0.9), " 5": math.log(0.1)}
    reasoning = [("Rating: 5?", {}), ("</think>", {}), ("Rating", {}), (":", {}), (" 2", likely)]
    found = rating_from_logprobs(SATISFACTION, "score_only", "Rating: 2", reasoning)  # the text is without reasoning
    assert found is not None
    assert found.score == pytest.approx(2.3)
    spaced = [(" Rating", {}), (":", {}), (" 2", likely)]
    assert rating_from_logprobs(SATISFACTION, "score_only", "Rating: 2", spaced) is not None
    split = [("Analysis: ", {}), ("\\xf0\\x9f", {}), ("\\x98\\x80", {}), (" Rating:", {}), (" 2", likely)]
    assert rating_from_logprobs(SATISFACTION, "analysis_first", "Analysis: \U0001f600 Rating: 2", split) is None


def test_the_command_keeps_replies_before_a_failure(start: Start, tmp_path: Any) -> None:
    broken = {"after": 2}

    def reply(body: dict[str, Any], n: int) -> Any:
        return completion("Rating: 4") if n <= broken["after"] else (401, {"error": {"message": "over"}})

    server: Server = start(reply)
    run: dict[str, Any] = {"endpoint": server.url, "output_dir": str(tmp_path / "out")}
    run |= {"model": "m", "data": str(write_jsonl(tmp_path / "d.jsonl", range(6), rated=False))}
    with pytest.raises(RuntimeError, match=r"kept in .*replies\.jsonl"):
        command.judge(**run)
    kept = len((tmp_path / "out" / "replies.jsonl").read_text().splitlines())
    assert kept == 2
    before, broken["after"] = len(server.requests), 99
    command.judge(**run)
    assert len(server.requests) == before + 4
    rows = [json.loads(line) for line in (tmp_path / "out" / "ratings.jsonl").read_text().splitlines()]
    assert [row["score"] for row in rows] == [4.0] * 6
