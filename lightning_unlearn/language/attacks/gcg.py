"""Greedy coordinate gradient: search for a suffix that makes the answer likely."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_unlearn.core.checks import at_least
from lightning_unlearn.core.modes import differentiable
from lightning_unlearn.core.scores import causal_lm_nll
from lightning_unlearn.functional.likelihood import token_nll
from lightning_unlearn.functional.random import keyed_generator
from lightning_unlearn.language.attacks.attack import Cost, LanguageAttack
from lightning_unlearn.language.attacks.attempts import refuse_texts
from lightning_unlearn.language.attacks.latent import head_on_last, span_batches
from lightning_unlearn.language.attacks.replicas import whole_weights
from lightning_unlearn.language.causal_lm import LitCausalLM
from lightning_unlearn.language.chat import Messages, content_text
from lightning_unlearn.language.knowledge import Knowledge, Scorer
from lightning_unlearn.language.matching import contains_words
from lightning_unlearn.language.prefixes import prefix_model
from lightning_unlearn.language.probes import Probe
from lightning_unlearn.language.prompt_format import PromptFormat
from lightning_unlearn.language.tokens import TokenRow

__all__ = ["GCG", "Suffix", "SuffixKnowledge"]

_STREAM = 17  # what the random numbers are for
_START = ("!", "x")  # two suffixes that tell the tokens of a suffix from those around it


class Suffix(NamedTuple):
    """A suffix that was found.

    Args:
        text: What is put after a question.
        losses: Mean negative log-likelihood a token of the answers under the best suffix before and after each step.
        rows: Rows that it was searched on.
    """

    text: str
    losses: list[float]
    rows: tuple[int, ...]


@dataclass(frozen=True)
class SuffixKnowledge(Knowledge):
    """Knowledge of rows whose questions end with a suffix.

    Args:
        suffixes: The suffixes, one for all rows or one a row.
        searched: Whether a row was part of the search, shape ``(N,)``. Of a universal suffix, the others show whether
            it works on rows it has not seen.
    """

    suffixes: tuple[Suffix, ...] = ()
    searched: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))


class GCG(LanguageAttack):
    r"""Search for a suffix of the question under which the answer becomes likely, by greedy coordinate gradient.

    Each step takes the gradient of the answer's negative log-likelihood with respect to the one-hot vectors of the
    suffix, keeps the ``topk`` best replacements of each token, draws ``candidates`` of single replacements among them,
    and continues with the candidate of lowest loss. A candidate must be a text: it is dropped if the tokenizer makes
    other tokens of the whole prompt. Suffixes that contain an accepted answer are dropped too.

    With enough freedom a suffix can spell out any answer, even for a model that never knew it. The control model is
    therefore attacked with the same budget, and only the difference counts. A universal suffix, searched on some rows
    and tried on all, has less room for this than one suffix per row. The result is an upper bound of what a prompt can
    do, and no gate.

    The defaults are cheap: the paper has 500 steps, 512 candidates of the best 256, and 20 tokens.

    Args:
        steps: Replacements.
        candidates: Suffixes tried in a step.
        topk: Replacements of each token to draw from.
        length: Tokens of the suffix.
        universal: One suffix for all rows, or one for each.
        rows: Number of first rows on which a universal suffix is searched; with one suffix per row, only that many rows
            are attacked, and the others are asked unchanged.
        seed: Seed of the draws.
        batch_size: Candidates in a forward pass.

    Raises:
        ValueError: If a number is out of range, the rows are plain texts, or no suffix keeps its tokens in the model's
            prompts.

    References:
        Zou et al., *Universal and Transferable Adversarial Attacks on Aligned Language Models*, arXiv:2307.15043.
    """

    name = "gcg"

    def __init__(
        self,
        steps: int = 20,
        candidates: int = 32,
        topk: int = 64,
        length: int = 10,
        universal: bool = True,
        rows: int = 4,
        seed: int = 0,
        batch_size: int = 32,
    ) -> None:
        self.steps, self.candidates = at_least("steps", steps, 0), at_least("candidates", candidates, 1)
        self.topk, self.length = at_least("topk", topk, 1), at_least("length", length, 1)
        self.universal, self.rows, self.seed = universal, at_least("rows", rows, 1), seed
        self.batch_size = at_least("batch_size", batch_size, 1)

    def knowledge(self, module: LitCausalLM, probes: Sequence[Probe], scorer: Scorer) -> SuffixKnowledge:
        """What the model knows of the rows when their questions end with the suffix that was found on it.

        Raises:
            ValueError: If the rows are plain texts, or no suffix keeps its tokens in the model's prompts.
        """
        refuse_texts(self.name, probes)
        whole_weights(self.name, module)
        searched = list(probes[: self.rows])
        groups = [searched] if self.universal else [[probe] for probe in searched]
        suffixes = [self.search(module, group) for group in groups]
        if self.universal:
            asked = [_with_suffix(probe, suffixes[0].text) for probe in probes]
        else:
            asked = [_with_suffix(p, s.text) for p, s in zip(searched, suffixes, strict=True)]
            asked += list(probes[len(searched) :])
        found = scorer(module, asked)
        among = torch.arange(len(probes)) < len(searched)
        return SuffixKnowledge(found.strength, found.matched, found.answers, tuple(suffixes), among)

    def search(self, module: LitCausalLM, probes: Sequence[Probe]) -> Suffix:
        """The suffix of lowest mean loss over some rows."""
        prompt_format = module._prompt_format()
        allowed = _allowed(module, prompt_format.tokenizer)
        slots = [_slot(prompt_format, probe, self.length) for probe in probes]
        # Tokens of the first row; a suffix that other prompts would split otherwise does not survive.
        current = torch.tensor(slots[0].suffix)
        if not _surviving(prompt_format, probes, slots, current[None]):
            raise ValueError(
                "The attack 'gcg' puts a suffix after a question, but its tokens are not the same in all prompts of "
                "the model. Attack one row at a time (universal=False), or leave the attack out."
            )
        with differentiable(module):
            prompts = [_Prompt(module, slot, self.batch_size) for slot in slots]
            best, best_loss = current, self._loss(prompts, current[None])[0].item()
            losses = [best_loss]
            for step in range(self.steps):
                gradient = sum((_gradient(module, slot, current) for slot in slots), torch.zeros(()))
                tried = self._candidates(current, gradient, allowed, keyed_generator(_STREAM, self.seed, step))
                kept = _surviving(prompt_format, probes, slots, tried.unique(dim=0))
                if kept:
                    values = self._loss(prompts, torch.stack(kept))
                    current = kept[int(values.argmin())]
                    if values.min().item() < best_loss:
                        best, best_loss = current, values.min().item()
                losses.append(best_loss)
        text = prompt_format.tokenizer.decode(best.tolist())
        return Suffix(text, losses, tuple(probe.row for probe in probes))

    def cost(self, rows: int) -> Cost:
        """Passes over the rows that are searched on, as a share of all, and one with the suffix."""
        share = min(self.rows, rows) / max(rows, 1)
        return Cost(passes=share * self.steps * (self.candidates + 3) + 1, generations=1)

    def settings(self) -> dict[str, Any]:
        """All but the size of a batch."""
        names = ("steps", "candidates", "topk", "length", "universal", "rows", "seed")
        return {name: getattr(self, name) for name in names}

    def _loss(self, prompts: Sequence[_Prompt], suffixes: Tensor) -> Tensor:
        """Mean over rows of the loss a token of each suffix, shape ``(K,)``."""
        with torch.no_grad():
            return torch.stack([prompt.loss(suffixes) for prompt in prompts]).mean(0)

    def _candidates(self, current: Tensor, gradient: Tensor, allowed: Tensor, generator: torch.Generator) -> Tensor:
        """Suffixes with one token replaced by one of the most promising, shape ``(K, length)``."""
        gradient = gradient.masked_fill(~allowed, torch.inf)
        best = (-gradient).topk(min(self.topk, int(allowed.sum())), dim=1).indices
        place = torch.arange(self.candidates) * len(current) // self.candidates
        choice = torch.randint(best.shape[1], (self.candidates,), generator=generator)
        tried = current.repeat(self.candidates, 1)
        tried[torch.arange(self.candidates), place] = best[place, choice]
        return tried


class _Slot(NamedTuple):
    """Tokens around the suffix of one prompt.

    Args:
        before: Up to the suffix.
        suffix: A suffix to begin with.
        after: From the suffix to the answer.
        answer: The answer.
        asked: What follows the suffix where the model is asked: a template may go on otherwise before an answer.
    """

    before: list[int]
    suffix: list[int]
    after: list[int]
    answer: list[int]
    asked: list[int]

    def row(self, suffix: Sequence[int]) -> TokenRow:
        return TokenRow([*self.before, *suffix, *self.after], self.answer)


class _Prompt:
    """The loss of many suffixes of one prompt, whose tokens before the suffix are computed once.

    Args:
        module: The model.
        slot: The prompt.
        batch_size: Suffixes in a pass.
        shared: Whether to compute the tokens before the suffix once, if the model supports prefix caching.
    """

    def __init__(self, module: LitCausalLM, slot: _Slot, batch_size: int, shared: bool = True) -> None:
        self.module, self.slot, self.batch_size = module, slot, batch_size
        self.model = (
            prefix_model(module.model, len(slot.row(slot.suffix).prompt) + len(slot.answer))
            if shared and slot.before
            else None
        )
        if self.model is not None:
            with torch.no_grad():
                self.prefix = self.model.begin(torch.tensor([slot.before], device=module.device))

    def loss(self, suffixes: Tensor) -> Tensor:
        return torch.cat([self._loss(part) for part in suffixes.split(self.batch_size)])

    def _loss(self, suffixes: Tensor) -> Tensor:
        device, size = self.module.device, len(suffixes)
        rest = torch.tensor([self.slot.after + self.slot.answer]).expand(size, -1)
        ids = torch.cat([suffixes.cpu(), rest], 1).to(device)
        labels = torch.tensor(self.slot.answer, device=device)
        with head_on_last(self.module, len(labels) + 1):
            logits = self._output(ids).logits[:, -len(labels) - 1 : -1]
        return token_nll(logits.flatten(0, 1), labels.repeat(size)).view(size, -1).mean(1).cpu()

    def _output(self, ids: Tensor) -> Any:
        if self.model is not None:
            return self.model.extend(ids, torch.ones_like(ids), self.prefix, [0] * len(ids))
        before = torch.tensor([self.slot.before], dtype=torch.long, device=ids.device).expand(len(ids), -1)
        ids = torch.cat([before, ids], 1)
        return self.module.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)


def _gradient(module: LitCausalLM, slot: _Slot, suffix: Tensor) -> Tensor:
    """Gradient of the loss a token with respect to the one-hot vectors of the suffix, ``(length, V)``, on the CPU."""
    embedding: nn.Module = module.model.get_input_embeddings()
    (batch,) = span_batches([slot.row(suffix.tolist())], 1, module.device)
    with _leaf_after(embedding) as leaves:
        loss = causal_lm_nll(module, batch.inputs).sum() / len(slot.answer)
        (gradient,) = torch.autograd.grad(loss, leaves)
    start = len(slot.before)
    table: Tensor = next(embedding.parameters()).detach()
    # By the chain rule this is the gradient of a one-hot product, without a (length, V) input.
    return (gradient[0, start : start + len(suffix)].to(table.dtype) @ table.T).float().cpu()


@contextmanager
def _leaf_after(embedding: nn.Module) -> Iterator[list[Tensor]]:
    """Make the output of an embedding a leaf of the graph, and keep it."""
    leaves: list[Tensor] = []

    def hook(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor:
        leaves.append(output.detach().requires_grad_(True))
        return leaves[-1]

    handle = embedding.register_forward_hook(hook)
    try:
        yield leaves
    finally:
        handle.remove()


def _slot(prompt_format: PromptFormat, probe: Probe, length: int) -> _Slot:
    """The tokens around a suffix in the prompt of a row, with a suffix of some length."""
    a, b = (prompt_format.prompt(_with_suffix(probe, " ".join([mark] * length)).question) for mark in _START)
    shared = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    behind = next((i for i, (x, y) in enumerate(zip(a[::-1], b[::-1], strict=False)) if x != y), 0)
    asked = _with_suffix(probe, " ".join([_START[0]] * length))
    messages = prompt_format.messages(asked.question)
    row = prompt_format.rows([prompt_format.conversation(messages, probe.answer, probe.target or None)])[0]
    end = len(a) - behind
    if row.prompt[:end] != a[:end] or end <= shared:
        raise ValueError(
            f"The attack 'gcg' can't tell the tokens of a suffix from those of the question in the prompt of row "
            f"{probe.row}. Leave the attack out for this tokenizer."
        )
    return _Slot(a[:shared], a[shared:end], row.prompt[end:], row.answer, a[end:])


def _surviving(
    prompt_format: PromptFormat, probes: Sequence[Probe], slots: Sequence[_Slot], suffixes: Tensor
) -> list[Tensor]:
    """Suffixes whose texts give the same tokens in the whole prompt of every row, and no accepted answer."""
    texts = prompt_format.tokenizer.batch_decode(suffixes.tolist())
    answers = [given for probe in probes for given in (*probe.accepted, probe.target) if given]
    survive = [not any(contains_words(text, given) for given in answers) for text in texts]
    for probe, slot in zip(probes, slots, strict=True):
        prompts = prompt_format.prompts([_with_suffix(probe, text).question for text in texts])
        for number, (prompt, suffix) in enumerate(zip(prompts, suffixes.tolist(), strict=True)):
            survive[number] &= prompt == [*slot.before, *suffix, *slot.asked]
    return [suffix for suffix, survives in zip(suffixes, survive, strict=True) if survives]


def _with_suffix(probe: Probe, text: str) -> Probe:
    """The probe with a text after its question."""
    text = text if text[:1].isspace() else f" {text}"
    if isinstance(probe.question, str):
        return probe.asked(probe.question + text)
    *before, last = probe.question
    asked: Messages = [*before, {**last, "content": content_text(last) + text}]
    return probe.asked(asked)


def _allowed(module: LitCausalLM, tokenizer: Any) -> Tensor:
    """Tokens that may stand in a suffix: printable ASCII and no special ones, shape ``(V,)``."""
    size = next(module.model.get_input_embeddings().parameters()).shape[0]
    allowed = torch.zeros(size, dtype=torch.bool)
    special = {*tokenizer.all_special_ids, *getattr(tokenizer, "added_tokens_decoder", {})}
    count = min(size, len(tokenizer))
    texts = tokenizer.batch_decode([[i] for i in range(count)])
    for i, text in enumerate(texts):
        allowed[i] = i not in special and text.isascii() and text.isprintable() and bool(text.strip())
    return allowed
