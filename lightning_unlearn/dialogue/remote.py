"""A judge behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from threading import Lock
from typing import Any
from urllib.parse import urlsplit

from lightning_unlearn.core.checks import above, at_least
from lightning_unlearn.core.lightning import rank_zero_warn
from lightning_unlearn.dialogue.dialogue import Dialogue
from lightning_unlearn.dialogue.extractors import TextExtractor
from lightning_unlearn.dialogue.prompt import JudgePrompt
from lightning_unlearn.dialogue.rating import Rating, checked
from lightning_unlearn.dialogue.reply_cache import ReplyCache, reply_key
from lightning_unlearn.dialogue.reply_logprobs import rating_from_logprobs
from lightning_unlearn.dialogue.selectors.selector import Selector
from lightning_unlearn.dialogue.task import RatingTask

__all__ = ["RemoteJudge"]

_REFUSALS = {"logprobs": "logprob", "max_tokens": "max_(completion_)?tokens", "temperature": "temperature"}
"""Parameters that some models refuse, and patterns of what the server's message then says."""

_TOO_LONG = re.compile(r"context.{0,10}(length|window|size)", re.IGNORECASE)
"""What a server says of a prompt that its model does not hold, often with the names of parameters."""

_MORE_TOKENS = 4096  # for reasoning, or for an answer that was cut off

_MANY, _FEW = 20, 5  # alternatives to each token; vLLM allows 5 unless its administrator allows more


class RemoteJudge:
    """A judge behind an OpenAI-compatible endpoint: OpenAI, vLLM, llama.cpp, Ollama and the like.

    Where the server gives the log-probabilities of the tokens at the place of the label, the score is the expected one
    of a local judge; otherwise the rating is parsed from the text. `Rating.probs` tells which.

    A server that refuses 20 log-probabilities per token is asked for 5, and then for none. Some models that reason
    refuse ``temperature`` and ``max_tokens``: they are asked with ``max_completion_tokens``, which leaves room for the
    reasoning, and a warning says that their ratings are sampled. If a reply is cut off during the reasoning, or before
    the rating where nothing else was asked for, the model is asked again with 4096 tokens more, and a warning says so.
    Text up to ``</think>`` is reasoning, which is not searched for a rating.

    Requests that fail for the moment (429, 5xx, no connection) are repeated with growing pauses, or after the time that
    the server asks for. Replies are kept in ``cache`` as they come: the same call, after a kill, asks for what is
    missing. The key is read from the environment when a request is made; it is in no attribute, file or message.

    Args:
        model: Name of the model at the endpoint.
        base_url: Address of the endpoint, such as ``http://localhost:8000/v1``; by default that of OpenAI.
        task: What is rated; by default the task of ``prompt``.
        prompt: How the judge is asked; by default ``JudgePrompt(task)``. The cue is left to the judge to write.
        selector: Chooses the examples; by default the first ``shots`` of the pool.
        shots: Examples in a prompt, where there is a pool.
        pool: Rated dialogues that examples are taken from.
        extractor: How text is parsed; ``invalid="logits"`` needs a local judge.
        logprobs: Ask for log-probabilities.
        cache: File to keep replies in.
        concurrency: Requests at a time.
        requests_per_minute: At most so many requests in a minute.
        retries: How often a request is repeated.
        timeout: Seconds to wait for a reply.
        key_variable: Environment variable of the key. A server at ``base_url`` that wants none gets none.

    Raises:
        ValueError: If ``base_url`` holds a password, an argument is out of range, or ``prompt`` limits lengths in
            tokens, which only a local judge can count.
        ImportError: If ``openai`` is missing, at the first request.
    """

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        task: RatingTask | str | None = None,
        prompt: JudgePrompt | None = None,
        selector: Selector | None = None,
        shots: int = 4,
        pool: Sequence[Dialogue] = (),
        extractor: TextExtractor | None = None,
        logprobs: bool = True,
        cache: str | os.PathLike[str] | None = None,
        concurrency: int = 4,
        requests_per_minute: float | None = None,
        retries: int = 6,
        timeout: float = 120.0,
        key_variable: str = "OPENAI_API_KEY",
    ) -> None:
        self.model, self.base_url = model, _without_secrets(base_url)
        self.prompt = prompt or (JudgePrompt() if task is None else JudgePrompt(task))
        limits = [name for name in ("max_length", "example_length") if getattr(self.prompt, name) is not None]
        if limits:
            raise ValueError(
                f"The prompt sets {' and '.join(limits)}, but the tokens of an endpoint's model cannot be counted. "
                "Leave it out, and lower shots if the endpoint refuses long prompts."
            )
        self.selector, self.shots, self.pool = selector, at_least("shots", shots, 0), list(pool)
        if selector is not None and self.pool:
            selector.fit(self.pool)
        self.extractor = extractor or TextExtractor()
        if self.extractor.invalid == "logits":
            raise ValueError("invalid='logits' needs the weights of the judge. Use 'nan' or 'mid' at an endpoint.")
        self.logprobs, self.cache = logprobs, ReplyCache(cache)
        self._refused: set[str] = set()
        self._asks_more = False
        self.concurrency = at_least("concurrency", concurrency, 1)
        self.retries, self.timeout = at_least("retries", retries, 0), above("timeout", timeout, 0)
        self.key_variable = key_variable
        rate = above("requests_per_minute", requests_per_minute, 0) if requests_per_minute is not None else None
        self._pace = _Pace(60.0 / rate if rate else 0.0)

    @property
    def task(self) -> RatingTask:
        """What is rated."""
        return self.prompt.task

    def rate(self, dialogues: Sequence[Dialogue]) -> list[Rating]:
        """One rating a dialogue, in their order.

        Args:
            dialogues: What is to be rated.

        Raises:
            RuntimeError: If the endpoint refuses a request, or fails too often. Replies before it are kept.
            TypeError: If they are something other than dialogues.
        """
        dialogues = checked(dialogues)
        with ThreadPoolExecutor(self.concurrency) as threads:
            waiting = [threads.submit(self._rate, dialogue) for dialogue in dialogues]
            try:
                return [reply.result() for reply in waiting]
            except BaseException:
                threads.shutdown(cancel_futures=True)
                raise

    def _rate(self, dialogue: Dialogue) -> Rating:
        request = self._request(dialogue)
        key = reply_key({"endpoint": self.base_url, "logprobs": self.logprobs, **request})
        reply = self.cache.get(key)
        if reply is None:
            reply, cut_off = self._ask(request, dialogue.id)
            if cut_off and self._lacks_answer(reply):
                if not self._asks_more:
                    self._asks_more = True
                    rank_zero_warn(
                        f"{self.model} was cut off before its rating, as models that reason are, so it is asked again "
                        f"with {_MORE_TOKENS} tokens more."
                    )
                reply, _ = self._ask(request, dialogue.id)
            self.cache.put(key, reply)
        return self._read(reply)

    def _read(self, reply: dict[str, Any]) -> Rating:
        read = rating_from_logprobs(self.task, self.prompt.mode, reply["text"], reply["tokens"])
        return read or self.extractor.read(self.prompt, reply["text"])

    def _lacks_answer(self, reply: dict[str, Any]) -> bool:
        """Whether a reply that was cut off has no answer yet; an analysis keeps to the user's ``max_new_tokens``."""
        return not reply["text"].strip() or (self.prompt.mode == "score_only" and not self._read(reply).parsed)

    def _request(self, dialogue: Dialogue) -> dict[str, Any]:
        # An endpoint can't go on from the beginning of an answer.
        messages = self.prompt.messages(dialogue, self._examples(dialogue))[:-1]
        longest = 16 if self.prompt.mode == "score_only" else self.extractor.max_new_tokens
        return {"model": self.model, "messages": messages, "temperature": 0.0, "max_tokens": longest}

    def _examples(self, dialogue: Dialogue) -> list[Dialogue]:
        others = [part for part in self.pool if part.id != dialogue.id]
        if self.selector is None or not self.pool:
            return others[: self.shots]
        return [self.pool[number] for number in self.selector.select(dialogue, self.shots)]

    def _ask(self, request: dict[str, Any], name: str) -> tuple[dict[str, Any], bool]:
        """Text and tokens of a reply, and whether it was cut off and may be longer."""
        import openai

        asked, may_be_longer = self._accepted(request), not self._asks_more
        client = self._client
        self._pace.wait()
        try:
            reply = client.chat.completions.create(**asked)
        except (openai.BadRequestError, openai.PermissionDeniedError, openai.UnprocessableEntityError) as error:
            refused = _refused_parameter(error, asked)
            if refused is None:
                raise self._failed(error, name) from None
            if refused == "logprobs" and asked["top_logprobs"] > _FEW:
                refused = "top_logprobs"
            if refused == "temperature" and refused not in self._refused:
                rank_zero_warn(f"{self.model} refuses temperature=0, so its ratings are sampled and will vary.")
            self._refused.add(refused)
            return self._ask(request, name)
        except (openai.OpenAIError, ValueError) as error:  # the latter where a reply is no JSON
            raise self._failed(error, name) from None
        choices = getattr(reply, "choices", None)
        choice = choices[0] if isinstance(choices, list) and choices else None
        message = getattr(choice, "message", None)
        if message is None:
            # Some servers send errors with the status of a success, or a page of their own.
            raise self._failed(ValueError(f"the reply has no message: {_short(reply)}"), name)
        logprobs = getattr(choice, "logprobs", None)
        tokens = [
            [part.token, {other.token: other.logprob for other in part.top_logprobs or ()}]
            for part in (getattr(logprobs, "content", None) or ())
        ]
        cut_off = may_be_longer and getattr(choice, "finish_reason", None) == "length"
        text = _answer(message.content or "") or getattr(message, "refusal", None) or ""
        return {"text": text, "tokens": tokens}, cut_off

    def _accepted(self, request: dict[str, Any]) -> dict[str, Any]:
        """A request without the parameters that the server has refused."""
        asked = dict(request)
        if self.logprobs and "logprobs" not in self._refused:
            asked |= {"logprobs": True, "top_logprobs": _FEW if "top_logprobs" in self._refused else _MANY}
        if "max_tokens" in self._refused:
            asked["max_completion_tokens"] = asked.pop("max_tokens") + _MORE_TOKENS
        elif self._asks_more:
            asked["max_tokens"] += _MORE_TOKENS
        if "temperature" in self._refused:
            del asked["temperature"]
        return asked

    def _failed(self, error: Exception, name: str) -> RuntimeError:
        text = str(error)
        if key := os.environ.get(self.key_variable):
            text = text.replace(key, "<key>")  # some servers repeat it
        kept = f" in {self.cache.path}" if self.cache.path is not None else ""
        return RuntimeError(
            f"{self.base_url or 'OpenAI'} gave no rating of dialogue {name!r} ({type(error).__name__}: {text}). "
            f"Replies before it are kept{kept}: the same call asks for the others."
        )

    @cached_property
    def _client(self) -> Any:
        try:
            import openai
        except ImportError:
            raise ImportError('RemoteJudge needs openai: pip install "lightning-unlearn[openai]"') from None
        key = os.environ.get(self.key_variable)
        if not key and self.base_url is None:
            raise ValueError(
                f"There is no key in the environment variable {self.key_variable}. Set it, or give the base_url of a "
                "server that needs none."
            )
        return openai.OpenAI(
            api_key=key or "none", base_url=self.base_url, max_retries=self.retries, timeout=self.timeout
        )

    def __getstate__(self) -> dict[str, Any]:
        # The client holds the key, and locks can't be copied.
        return {name: value for name, value in vars(self).items() if name not in ("_client", "_pace", "cache")} | {
            "_cache_path": self.cache.path,
            "_interval": self._pace.interval,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.cache, self._pace = ReplyCache(state.pop("_cache_path")), _Pace(state.pop("_interval"))
        vars(self).update(state)


def _refused_parameter(error: Any, asked: Mapping[str, Any]) -> str | None:
    """The parameter that a server refuses; ``None`` if its message is about something else."""
    text = str(error)
    if _TOO_LONG.search(text):
        return None
    named = {"top_logprobs": "logprobs"}.get(error.param, error.param)
    if named in _REFUSALS:
        return named if named in asked else None
    # Some messages list what else may be given: the parameter that is refused comes first.
    found = {name: re.search(sign, text) for name, sign in _REFUSALS.items() if name in asked}
    places = {name: match.start() for name, match in found.items() if match}
    return min(places, key=places.__getitem__) if places else None


def _answer(content: str) -> str:
    """What a model says after its reasoning, which some servers leave in the content."""
    _, end, after = content.rpartition("</think>")
    if end:
        return after.strip()
    return "" if content.lstrip().startswith("<think>") else content


def _short(reply: Any) -> str:
    """The beginning of a reply for a message."""
    return str(reply.model_dump(exclude_unset=True) if hasattr(reply, "model_dump") else reply)[:300]


class _Pace:
    """Lets one request through each so many seconds."""

    def __init__(self, interval: float) -> None:
        self.interval, self._next, self._lock = interval, 0.0, Lock()

    def wait(self) -> None:
        with self._lock:
            now = time.monotonic()
            start = max(now, self._next)
            self._next = start + self.interval
        time.sleep(start - now)


def _without_secrets(url: str | None) -> str | None:
    """An address that may be shown."""
    parts = urlsplit(url or "")
    if parts.password or parts.username or parts.query:
        raise ValueError(
            f"base_url must be an address without a user, password or query, since it is written to messages, but got "
            f"one for {parts.hostname}. Put the key into an environment variable, see key_variable."
        )
    return url
