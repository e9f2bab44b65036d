"""A judge at an endpoint, against a server that the test starts."""

from __future__ import annotations

import json
import logging
import math
import pickle
import threading
import warnings
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from lightning_unlearn.dialogue.dialogue import Dialogue, Turn
from lightning_unlearn.dialogue.extractors import TextExtractor
from lightning_unlearn.dialogue.prompt import JudgePrompt
from lightning_unlearn.dialogue.rating import RatesDialogues
from lightning_unlearn.dialogue.remote import RemoteJudge
from lightning_unlearn.dialogue.reply_logprobs import rating_from_logprobs
from lightning_unlearn.dialogue.task import SATISFACTION

pytest.importorskip("openai")
KEY = "sk-very-secret-0123456789"
ROWS = [Dialogue(str(i), (Turn("user", f"Is it {i}?"), Turn("assistant", "No.")), (3.0,)) for i in range(4)]

Reply = tuple[int, dict[str, Any]]


class Server:
    """An endpoint with a function for its replies; keeps the requests."""

    def __init__(self, reply: Callable[[dict[str, Any], int], Reply]) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        lock, outer = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    outer.requests.append(body)
                    outer.headers.append({name.lower(): value for name, value in self.headers.items()})
                    status, content = reply(body, len(outer.requests))
                text = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                if status in (429, 503):
                    self.send_header("Retry-After-Ms", "1")
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


Start = Callable[[Callable[[dict[str, Any], int], Reply]], Server]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    started: list[Server] = []

    def begin(reply: Callable[[dict[str, Any], int], Reply]) -> Server:
        started.append(Server(reply))
        return started[-1]

    yield begin
    for server in started:
        server.server.shutdown()
        server.server.server_close()


def completion(text: str, logprobs: dict[str, Any] | None = None) -> Reply:
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    return 200, {
        **{"id": "a", "object": "chat.completion", "created": 0, "model": "m"},
        "choices": [choice | ({"logprobs": logprobs} if logprobs else {})],
    }


def token(text: str, **likeliest: float) -> dict[str, Any]:
    others = [{"token": f" {name[1:]}", "logprob": math.log(p), "bytes": None} for name, p in likeliest.items()]
    return {"token": text, "logprob": -0.1, "bytes": None, "top_logprobs": others}


def test_expected_score_from_the_logprobs_at_the_label(start: Start) -> None:
    content = [token("Rating"), token(":"), token(" 4", _4=0.6, _3=0.2, _maybe=0.1)]
    server = start(lambda body, _: completion("Rating: 4", {"content": content, "refusal": None}))
    judge = RemoteJudge("m", server.url, shots=0)
    assert isinstance(judge, RatesDialogues)
    (rating,) = judge.rate(ROWS[:1])
    assert rating.score == pytest.approx(3.75)
    assert rating.probs == pytest.approx((0, 0, 0.25, 0.75, 0))
    assert (rating.label, rating.vocab_mass) == ("4", pytest.approx(0.8))
    body = server.requests[0]
    assert body["logprobs"] is True
    assert body["temperature"] == 0
    assert [message["role"] for message in body["messages"]] == ["user"]
    assert "Is it 0?" in body["messages"][0]["content"]
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"


def test_text_where_the_server_has_no_logprobs_or_refuses_them(start: Start) -> None:
    plain = start(lambda body, _: completion("Rating: 2"))
    assert [rating.score for rating in RemoteJudge("m", plain.url).rate(ROWS)] == [2.0] * 4

    def refuses(body: dict[str, Any], _: int) -> Reply:
        if "logprobs" in body:
            return 400, {"error": {"message": "logprobs are not supported", "type": "invalid_request_error"}}
        return completion("Rating: 7")

    server = start(refuses)
    ratings = RemoteJudge("m", server.url, concurrency=1).rate(ROWS[:3])
    assert [rating.parsed for rating in ratings] == [False] * 3
    assert all(math.isnan(rating.score) for rating in ratings)
    assert [body.get("top_logprobs") for body in server.requests] == [20, 5, None, None, None]


def test_a_server_that_allows_few_logprobs_is_asked_for_few(start: Start) -> None:
    def few(body: dict[str, Any], _: int) -> Reply:
        if body["top_logprobs"] > 5:
            message = "Requested sample logprobs of 20, which is greater than max allowed: 5"
            return 400, {"error": {"message": message}}
        return completion("4", {"content": [token("4", _4=0.5, _5=0.5)], "refusal": None})

    server = start(few)
    ratings = RemoteJudge("m", server.url, concurrency=1).rate(ROWS[:2])
    assert [rating.score for rating in ratings] == pytest.approx([4.5, 4.5])
    assert [body["top_logprobs"] for body in server.requests] == [20, 5, 5]


def test_a_model_that_reasons_refuses_three_parameters(start: Start) -> None:
    def refuses(body: dict[str, Any], _: int) -> Reply:
        if "logprobs" in body:
            return 403, {"error": {"message": "You are not allowed to request logprobs from this model"}}
        if "max_tokens" in body:
            message = "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
            return 400, {"error": {"message": f"{message}'max_completion_tokens' instead."}}
        if "temperature" in body:
            message = "Unsupported value: 'temperature' does not support 0.0 with this model."
            return 400, {"error": {"message": message}}
        return completion("Rating: 2")

    server = start(refuses)
    judge = RemoteJudge("m", server.url)
    with pytest.warns(UserWarning, match="m refuses temperature=0, so its ratings are sampled"):
        assert [rating.score for rating in judge.rate(ROWS)] == [2.0] * 4
    asked = server.requests[-1]
    assert asked["max_completion_tokens"] > 1000
    assert not {"max_tokens", "temperature", "logprobs", "top_logprobs"} & set(asked)


def cut(body: dict[str, Any], text: str) -> Reply:
    """A reply that ends where the request says."""
    status, content = completion(text[: 4 * max(body.get(name, 0) for name in ("max_tokens", "max_completion_tokens"))])
    written = content["choices"][0]["message"]["content"]
    content["choices"][0]["finish_reason"] = "stop" if written == text else "length"
    return status, content


@pytest.mark.parametrize(
    ("text", "score"),
    [
        (f"<think>Rating: 2? {'Let me see. ' * 20}</think>\n\nRating: 4", 4.0),
        (f"{'Let me see. ' * 20}</think>Rating: 4", 4.0),  # the prompt has the opening tag
        (f"{'The user asks for a room, and so on. ' * 4}Rating: 5", 5.0),
        ("<think></think>Rating: 3", 3.0),
    ],
)
def test_a_model_that_reasons_first_has_room_for_its_rating(start: Start, text: str, score: float) -> None:
    server = start(lambda body, _: cut(body, text))
    judge = RemoteJudge("m", server.url, concurrency=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert [rating.score for rating in judge.rate(ROWS)] == [score] * 4
    longer = len(text) > 64
    assert sum("cut off before its rating" in str(warning.message) for warning in caught) == longer
    assert [body["max_tokens"] for body in server.requests] == [16, *[4112] * 4][: 5 if longer else 0] or [16] * 4


def test_reasoning_that_the_server_takes_apart(start: Start) -> None:
    def reply(body: dict[str, Any], _: int) -> Reply:
        status, content = completion("")
        thinks = body["max_tokens"] < 100
        content["choices"][0]["finish_reason"] = "length" if thinks else "stop"
        content["choices"][0]["message"] |= {"reasoning_content": "Rating: 2?", "content": None if thinks else "4"}
        return status, content

    with pytest.warns(UserWarning, match="asked again with 4096 tokens more"):
        (rating,) = RemoteJudge("m", start(reply).url).rate(ROWS[:1])
    assert rating.score == 4.0


def test_an_analysis_keeps_to_the_length_that_the_user_gives(start: Start) -> None:
    server = start(lambda body, _: cut(body, "Analysis: " + "It is long. " * 99))
    judge = RemoteJudge("m", server.url, prompt=JudgePrompt(mode="analysis_first"), extractor=TextExtractor())
    assert not judge.rate(ROWS[:1])[0].parsed
    assert [body["max_tokens"] for body in server.requests] == [128]


@pytest.mark.parametrize(
    ("error", "refused"),
    [
        # As OpenAI says it, with the parameter's name, and as a server that lists what it takes.
        ({"message": "Unsupported: use max_completion_tokens, logprobs", "param": "max_tokens"}, "max_tokens"),
        ({"message": "unknown field 'max_tokens'; allowed: model, messages, logprobs, temperature"}, "max_tokens"),
        ({"message": "body.max_completion_tokens: field required; input: {'logprobs': True}"}, "max_tokens"),
        ({"message": "bad value", "param": "temperature"}, "temperature"),
    ],
)
def test_the_parameter_that_is_refused_is_left_out_and_no_other(
    start: Start, error: dict[str, Any], refused: str
) -> None:
    server = start(lambda body, _: (400, {"error": error}) if refused in body else completion("Rating: 2"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        RemoteJudge("m", server.url, concurrency=1).rate(ROWS[:1])
    first, last = server.requests
    assert set(first) - set(last) == {refused}


def test_a_prompt_that_is_too_long_names_its_dialogue_and_changes_no_parameter(start: Start) -> None:
    message = (
        "'max_tokens' or 'max_completion_tokens' is too large: 16. This model's maximum context length is 4096 tokens "
        "and your request has 4090 input tokens."
    )
    server = start(
        lambda body, _: (400, {"error": {"message": message}}) if "Is it 1?" in str(body) else completion("Rating: 2")
    )
    judge = RemoteJudge("m", server.url, concurrency=1)
    with pytest.raises(RuntimeError, match=r"gave no rating of dialogue '1' .*maximum context length is 4096"):
        judge.rate(ROWS[:2])
    assert judge.rate(ROWS[2:])[0].score == 2.0
    assert {body["max_tokens"] for body in server.requests} == {16}


def test_examples_of_the_pool_are_shown_and_never_the_dialogue_itself(start: Start) -> None:
    server = start(lambda body, _: completion("Rating: 3"))
    RemoteJudge("m", server.url, shots=2, pool=ROWS, concurrency=1).rate(ROWS[:1])
    content = server.requests[0]["messages"][0]["content"]
    assert [content.count(f"Is it {i}?") for i in range(4)] == [1, 1, 1, 0]


def test_failures_for_the_moment_are_repeated_and_others_are_not(start: Start) -> None:
    busy = start(lambda body, n: completion("Rating: 5") if n > 3 else ((429, 503, 500)[n - 1], {"error": {}}))
    assert RemoteJudge("m", busy.url).rate(ROWS[:1])[0].score == 5.0
    assert len(busy.requests) == 4
    refuses = start(lambda body, _: (404, {"error": {"message": "no such model"}}))
    with pytest.raises(RuntimeError, match=r"NotFoundError.*no such model.*asks for the others"):
        RemoteJudge("m", refuses.url).rate(ROWS[:1])
    assert len(refuses.requests) == 1


def test_a_killed_run_asks_for_what_is_missing(start: Start, tmp_path: Path) -> None:
    cache = tmp_path / "deep" / "replies.jsonl"
    broken = {"after": 2}

    def reply(body: dict[str, Any], n: int) -> Reply:
        return completion(f"Rating: {n}") if n <= broken["after"] else (401, {"error": {"message": "over"}})

    server = start(reply)
    with pytest.raises(RuntimeError, match="are kept in"):
        RemoteJudge("m", server.url, cache=cache, concurrency=1).rate(ROWS)
    with cache.open("a") as file:
        file.write('{"key": "half a li')
    broken["after"] = 99
    before = len(server.requests)
    ratings = RemoteJudge("m", server.url, cache=cache, concurrency=1).rate(ROWS)
    assert [rating.score for rating in ratings[:2]] == [1.0, 2.0]
    assert len(server.requests) == before + 2
    again = RemoteJudge("m", server.url, cache=cache).rate(ROWS)
    assert len(server.requests) == before + 2
    assert [(r.score, r.parsed) for r in again] == [(r.score, r.parsed) for r in ratings] or any(
        math.isnan(r.score) for r in ratings
    )
    RemoteJudge("another", server.url, cache=cache).rate(ROWS[:1])
    assert len(server.requests) == before + 3


def test_the_key_is_in_no_file_message_log_or_pickle(
    start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server = start(lambda body, n: completion("Rating: 3") if n == 1 else (401, {"error": {"message": f"bad {KEY}"}}))
    judge = RemoteJudge("m", server.url, cache=tmp_path / "cache.jsonl", concurrency=1)
    with pytest.raises(RuntimeError, match="bad <key>") as failed:
        judge.rate(ROWS)
    assert failed.value.__cause__ is None
    assert KEY not in (tmp_path / "cache.jsonl").read_text()
    ours = [record for record in caplog.records if record.name.startswith("lightning_unlearn")]
    assert not any(KEY in record.getMessage() for record in ours)
    assert not any(f"Bearer {KEY}" in record.getMessage() for record in caplog.records)
    assert KEY not in repr(vars(judge))
    assert KEY.encode() not in pickle.dumps(judge)
    assert len(pickle.loads(pickle.dumps(judge)).cache) == 1


def test_no_key_no_request_and_no_secret_in_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ValueError, match="There is no key in the environment variable OPENAI_API_KEY"):
        RemoteJudge("m").rate(ROWS[:1])
    for url in ("https://me:pw@host/v1", "https://host/v1?key=pw"):
        with pytest.raises(ValueError, match="without a user, password or query") as refused:
            RemoteJudge("m", url)
        assert "pw" not in str(refused.value)
    with pytest.raises(ValueError, match="needs the weights"):
        RemoteJudge("m", extractor=TextExtractor(invalid="logits"))


@pytest.mark.parametrize("limit", ["max_length", "example_length"])
def test_lengths_in_tokens_are_of_local_judges(limit: str) -> None:
    with pytest.raises(ValueError, match=f"sets {limit}, .* cannot be counted"):
        RemoteJudge("m", prompt=JudgePrompt(**{limit: 500}))  # type: ignore[arg-type]


def test_requests_keep_their_pace(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, waited = [100.0], []
    monkeypatch.setattr("lightning_unlearn.dialogue.remote.time.monotonic", lambda: clock[0])
    monkeypatch.setattr("lightning_unlearn.dialogue.remote.time.sleep", waited.append)
    judge = RemoteJudge("m", start(lambda body, _: completion("Rating: 3")).url, requests_per_minute=600)
    for _ in range(3):
        judge._pace.wait()
    clock[0] += 10
    judge._pace.wait()
    assert waited == pytest.approx([0, 0.1, 0.2, 0])


def test_labels_that_are_no_single_token_are_read_from_the_text() -> None:
    split = [("Rating", {}), (": ", {}), ("4", {"4": -0.1}), (".", {}), ("5", {})]
    assert rating_from_logprobs(SATISFACTION, "score_only", "Rating: 4.5", split) is None
    merged = [("Rating:", {}), (" 4!", {" 4!": -0.1})]
    assert rating_from_logprobs(SATISFACTION, "score_only", "Rating: 4!", merged) is None
    assert rating_from_logprobs(SATISFACTION, "score_only", "Rating: 4", []) is None
    twice = [("Rating:", {}), (" 2", {" 2": 0.0}), ("\nRating:", {}), (" 5", {" 5": 0.0})]
    text = "".join(part for part, _ in twice)
    found = [rating_from_logprobs(SATISFACTION, mode, text, twice) for mode in ("rating_first", "analysis_first")]
    assert [rating.score for rating in found if rating] == [2.0, 5.0]


def test_a_prompt_of_its_own_task(start: Start) -> None:
    server = start(lambda body, _: completion("Analysis: Fine. Rating: 4"))
    judge = RemoteJudge("m", server.url, prompt=JudgePrompt("fed_overall", mode="analysis_first"))
    assert judge.task.name == "fed_overall"
    assert judge.rate(ROWS[:1])[0].score == 4.0
    assert server.requests[0]["max_tokens"] == 128
