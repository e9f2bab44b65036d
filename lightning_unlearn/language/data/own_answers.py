"""Retain rows that the original model writes itself: its answers to neutral questions."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_unlearn.core.checks import at_least
from lightning_unlearn.core.distributed import gather_objects, rank, world_size
from lightning_unlearn.core.files import write_text
from lightning_unlearn.core.lightning import LightningModule, rank_zero_info
from lightning_unlearn.core.modes import evaluating
from lightning_unlearn.core.progress import progress
from lightning_unlearn.core.sources import Source, is_missing, load_rows, source_name
from lightning_unlearn.functional.random import keyed_generator
from lightning_unlearn.language.continuation import Choose, likeliest
from lightning_unlearn.language.data.columns import Columns
from lightning_unlearn.language.data.names import Names
from lightning_unlearn.language.generation import answer_ends, generate_all
from lightning_unlearn.language.prompt_format import PromptFormat

__all__ = ["Answers", "OwnAnswers"]

_QUESTIONS = Path(__file__).parents[2] / "assets" / "neutral_questions.jsonl"
_FORM = 1  # of the cached files


class Answers(NamedTuple):
    """What a model has answered.

    Args:
        rows: Rows with question and answer; an answer that was cut is its own target, so that no end is learned.
        asked: Questions that were asked.
        named: Rows left out because question or answer has a name that the rows to forget have.
        empty: Rows left out because the model wrote nothing.
        cut: Rows kept whose answer reached ``max_new_tokens``.
        sha256: Hash of the rows.
    """

    rows: list[dict[str, Any]]
    asked: int
    named: int
    empty: int
    cut: int
    sha256: str


class OwnAnswers:
    """Rows to retain for whoever has none: the original model's own answers to questions.

    Given as ``retain`` to [`LanguageDataModule`][lightning_unlearn.LanguageDataModule], for which ``"auto"`` is short,
    it has the model of the run answer, before training, the neutral questions that come with the library, those of the
    user, or both. Trained on, these rows hold the model to what it says already: rehearsal on a network's own outputs,
    known as pseudo-rehearsal, and as self-synthesized rehearsal for language models. A row whose question or answer has
    a name that also occurs in the rows to forget is left out.

    The answers protect what the questions touch: not what is close to the rows to forget, such as other facts of the
    same form, and the model's mistakes as well as the rest.

    Answers are kept in a cache under a hash of the weights, the prompts and the settings, so that the same run has the
    same rows again. A run that was killed while they were written goes on where it was.

    Args:
        questions: Questions of the user: a source of rows with a column ``question`` or ``text``, such as a ``.txt``
            file with a question a line. Answers in it are not read.
        shipped: Whether to ask the questions of the library too.
        count: So many questions of the library at most, of all subjects alike; all by default.
        temperature: Temperature of sampling; at 0 each token is the most likely one.
        max_new_tokens: Longest answer in tokens. A longer one is cut and kept without an end.
        exclude: Further names; rows that have one of them are left out.
        seed: Seed of sampling.
        batch_size: Questions answered together.
        cache: Folder for the answers; by default ``lightning-unlearn/own_answers`` in the user's cache folder. They are
            text of the time before unlearning: delete it when the request demands that.

    Raises:
        ValueError: If there are no questions to ask, or a number is out of range.

    Example:
        >>> len(OwnAnswers(count=40).asked()), OwnAnswers([{"question": "Why?"}], shipped=False).asked()
        (40, ['Why?'])

    References:
        Robins, "Catastrophic forgetting, rehearsal and pseudorehearsal", Connection Science 7(2), 1995. Huang et al.,
        "Mitigating Catastrophic Forgetting in Large Language Models with Self-Synthesized Rehearsal", arXiv:2403.01244.
    """

    def __init__(
        self,
        questions: Source | None = None,
        shipped: bool = True,
        count: int | None = None,
        temperature: float = 0.0,
        max_new_tokens: int = 48,
        exclude: Sequence[str] = (),
        seed: int = 0,
        batch_size: int = 32,
        cache: str | None = None,
    ) -> None:
        if questions is None and not shipped:
            raise ValueError("OwnAnswers has no questions to ask. Give questions, or leave shipped=True.")
        self.questions, self.shipped = questions, shipped
        self.count = None if count is None else at_least("count", count, 1)
        self.temperature = at_least("temperature", temperature, 0)
        self.max_new_tokens = at_least("max_new_tokens", max_new_tokens, 1)
        self.exclude = [exclude] if isinstance(exclude, str) else list(exclude)
        self.seed, self.batch_size, self.cache = seed, at_least("batch_size", batch_size, 1), cache

    def asked(self) -> list[str]:
        """The questions, those of the user first, each once.

        Raises:
            ValueError: If a row has no question, or there are none.
        """
        texts = [] if self.questions is None else _questions(self.questions)
        if self.shipped:
            texts += _shipped()[: self.count]
        if not texts:
            raise ValueError(f"There is no question in {source_name(self.questions)}. Give at least one.")
        return list(dict.fromkeys(texts))

    def answers(
        self,
        module: LightningModule,
        forget: Source | None = None,
        columns: Columns | None = None,
        prompt: PromptFormat | None = None,
    ) -> Answers:
        """Ask a model, or read what it has answered before; on several processes, each asks a share.

        Args:
            module: A [`LitCausalLM`][lightning_unlearn.LitCausalLM], or a module whose ``model`` is a causal language
                model of transformers.
            forget: The rows to forget, whose names are looked for.
            columns: Names of the columns of ``forget``, and of the rows that are returned.
            prompt: How questions are asked; by default as the module asks them.

        Raises:
            ValueError: If the module has no such model, or no row is left.
        """
        model = getattr(module, "model", None)
        if not isinstance(model, nn.Module) or not hasattr(model, "generate"):
            raise ValueError(
                f"OwnAnswers asks the model of a module, but {type(module).__name__}.model is no language model of "
                "transformers. Give rows to retain, or take LitCausalLM."
            )
        columns, questions = columns or Columns(), self.asked()
        prompt = prompt or replace(getattr(module, "prompt", None) or PromptFormat(), tokenizer=module.tokenizer)
        with evaluating(module):
            written = self._written(model, prompt, questions)
        vocabulary = (*_shipped(), *questions, *(answer["answer"] for answer in written))
        rows = columns.filled(load_rows(forget), "forget") if forget is not None else []
        names = Names(rows, columns, vocabulary, self.exclude)
        found = _kept(written, names, columns)
        rank_zero_info(
            f"Rows to retain are the model's own answers: {len(found.rows)} of {found.asked} questions. {found.named} "
            f"are left out because they have a name of the rows to forget, {found.empty} because the model wrote "
            f"nothing. {found.cut} answers are cut at {self.max_new_tokens} tokens."
        )
        if not found.rows:
            raise ValueError(
                f"Of {found.asked} questions none is left to retain: {found.named} have a name of the rows to forget, "
                f"and to {found.empty} the model wrote nothing. Give other questions, or rows to retain."
            )
        return found

    def _written(self, model: nn.Module, prompt: PromptFormat, questions: list[str]) -> list[dict[str, Any]]:
        """The answers, from the cache as far as they are there; each process writes every so many-th batch."""
        prompts = prompt.prompts(questions)
        folder = self._folder() / self._key(model, prompt, prompts)
        starts = range(0, len(questions), self.batch_size)
        written: list[dict[str, Any]] = []
        for turn in progress(range(0, len(starts), world_size()), "Own answers"):
            mine = starts[turn + rank() : turn + rank() + 1]
            batch = [part for start in mine for part in self._batch(model, prompt, questions, prompts, start, folder)]
            written += [answer for part in gather_objects(batch) for answer in part]
        return written

    def _batch(
        self,
        model: nn.Module,
        prompt: PromptFormat,
        questions: list[str],
        prompts: list[list[int]],
        start: int,
        folder: Path,
    ) -> list[dict[str, Any]]:
        """The answers to one batch, which are in one file: it is whole or absent, whoever writes it."""
        path = folder / f"{start:06}.json"
        if path.is_file():
            return json.loads(path.read_text(encoding="utf-8"))
        asked = slice(start, start + self.batch_size)
        recorded = _Recorded(_sampled(self.temperature, self.seed, start) if self.temperature else likeliest)
        texts = generate_all(model, prompt, prompts[asked], self.max_new_tokens, self.batch_size, recorded)
        ends, end_text = set(answer_ends(model, prompt)), prompt.end_text
        answers = []
        for row, (question, text) in enumerate(zip(questions[asked], texts, strict=True)):
            tokens = recorded.tokens[row]
            ended = bool(ends & set(tokens)) or bool(end_text and end_text in prompt.tokenizer.decode(tokens))
            answers.append({"question": question, "answer": text, "ended": ended})
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_text(path, json.dumps(answers, indent=1, ensure_ascii=False) + "\n")
        return answers

    def _folder(self) -> Path:
        if self.cache is not None:
            return Path(self.cache).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lightning-unlearn" / "own_answers"

    def _key(self, model: nn.Module, prompt: PromptFormat, prompts: list[list[int]]) -> str:
        """A hash of all that the answers depend on but the machine."""
        sampling = [self.temperature, self.seed] if self.temperature else []
        settings = [_FORM, self.max_new_tokens, self.batch_size, sampling, answer_ends(model, prompt), prompt.end_text]
        digest = hashlib.sha256(json.dumps([settings, prompts]).encode())
        digest.update(_weights_sha256(model))
        return digest.hexdigest()[:32]


class _Recorded:
    """Chooses as another function does, and keeps what was chosen for each row."""

    def __init__(self, choose: Choose) -> None:
        self.choose = choose
        self.tokens: dict[int, list[int]] = {}

    def __call__(self, logits: Tensor, rows: Sequence[int], step: int) -> Tensor:
        tokens = self.choose(logits, rows, step)
        for row, token in zip(rows, tokens.tolist(), strict=True):
            self.tokens.setdefault(row, []).append(token)
        return tokens


def _sampled(temperature: float, seed: int, first: int) -> Choose:
    """Sampling by noise that depends on the seed, the number of the question and the step alone."""

    def choose(logits: Tensor, rows: Sequence[int], step: int) -> Tensor:
        size = logits.shape[-1]
        # The largest of logits plus Gumbel noise is a draw from the softmax.
        noise = [
            torch.empty(size).exponential_(generator=keyed_generator(seed, first + row, step)).log_() for row in rows
        ]
        return (logits.float() / temperature - torch.stack(noise).to(logits.device)).argmax(-1)

    return choose


def _shipped() -> list[str]:
    """The questions of the library, in an order in which the first ones are of all subjects."""
    return [row["question"] for row in load_rows(_QUESTIONS)]


def _questions(source: Source) -> list[str]:
    """The questions of a source."""
    texts = []
    for number, row in enumerate(load_rows(source)):
        text = next((row[name] for name in ("question", "text") if not is_missing(row.get(name))), None)
        if not isinstance(text, str):
            raise ValueError(
                f"Row {number} of the questions ({source_name(source)}) has columns {sorted(map(str, row))}, but needs "
                "a text in 'question' or 'text'. Rename the column, or remove the row."
            )
        texts.append(text.strip())
    return texts


def _kept(written: Sequence[dict[str, Any]], names: Names, columns: Columns) -> Answers:
    """The rows of answers that are not empty and have none of some names."""
    rows: list[dict[str, Any]] = []
    named = empty = cut = 0
    for answer in written:
        question, text = answer["question"], answer["answer"]
        if is_missing(text):
            empty += 1
        elif names.occur_in(question) or names.occur_in(text):
            named += 1
        else:
            cut += not answer["ended"]
            rows.append({columns.question: question, columns.answer: text})
            if not answer["ended"]:
                rows[-1][columns.target] = text
    digest = hashlib.sha256(json.dumps(rows, ensure_ascii=False).encode()).hexdigest()
    return Answers(rows, len(written), named, empty, cut, digest)


@torch.no_grad()
def _weights_sha256(model: nn.Module) -> bytes:
    """Hash of the names, types, shapes and bytes of all weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.digest()


@contextmanager
def on_device(module: nn.Module, strategy: Any) -> Iterator[None]:
    """Run with a module on the device of a run that will put the whole of it there, then move it back."""
    device = next(module.parameters()).device
    whole = type(strategy).__name__ in ("SingleDeviceStrategy", "DDPStrategy")
    if not whole or device.type != "cpu" or strategy.root_device.type == "cpu":
        yield
        return
    module.to(strategy.root_device)
    try:
        yield
    finally:
        module.to(device)
