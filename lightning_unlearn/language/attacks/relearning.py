"""Relearning attack on language models: fine-tuning on a few rows, scored on others."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_unlearn.core.checks import one_of
from lightning_unlearn.core.lightning import isolate_rng
from lightning_unlearn.core.modes import evaluating
from lightning_unlearn.core.relearning import attacked_copy, fine_tune
from lightning_unlearn.core.scores import causal_lm_nll
from lightning_unlearn.functional.likelihood import IGNORE_INDEX
from lightning_unlearn.functional.random import keyed_generator
from lightning_unlearn.language.adapters import lora_config
from lightning_unlearn.language.attacks.attack import Cost, LanguageAttack
from lightning_unlearn.language.attacks.packed_rows import can_pack, packed, padded
from lightning_unlearn.language.attacks.relearning_recipes import RELEARNING_RECIPES, RelearningRecipe
from lightning_unlearn.language.attacks.relearning_trace import RelearningTrace
from lightning_unlearn.language.attacks.swapping import check_whole, merged
from lightning_unlearn.language.attacks.token_batches import token_rows
from lightning_unlearn.language.causal_lm import LitCausalLM
from lightning_unlearn.language.generation import casts_kept
from lightning_unlearn.language.knowledge import Knowledge, Scorer
from lightning_unlearn.language.probes import Probe
from lightning_unlearn.language.token_stats import token_stats
from lightning_unlearn.language.tokens import TokenRow

__all__ = ["LanguageRelearning"]

RelearningKind = Literal["in_domain", "form", "far"]

_GATES = {"in_domain": "relearning", "form": "relearning_out_of_domain", "far": "relearning_out_of_domain"}


class LanguageRelearning(LanguageAttack):
    """Fine-tunes a copy of a model on a few rows, and measures what it then knows of other rows.

    The unlearned, the control and the original model are taught the same rows in the same order. Rows that are taught
    are never scored: any model learns those. The copy has fp32 weights, all of which train, and no dropout; adapters
    are merged first. Copy, gradients and optimizer take 16 bytes a parameter.

    Args:
        taught: Rows to teach, such as `RelearningRows` chooses.
        kind: ``"in_domain"``: forget rows. ``"form"``: rows of the same form about a subject that no model was trained
            on. ``"far"``: unrelated text. The last two kinds need no forget row.
        recipe: Settings of the fine-tuning, or the name of one of ``RELEARNING_RECIPES``.
        lora: Train new adapters in place of the weights: fields of ``peft.LoraConfig`` such as
            ``{"r": 8, "target_modules": "all-linear"}``.
        seed: Seed of the order of the rows.

    Raises:
        ValueError: If there is no row to teach, or an argument is none of its choices.

    Example:
        >>> LanguageRelearning([Probe(0, "Who?", "Ada.")]).name
        'relearn_in_domain_1e-05'

    References:
        Lynch et al., *Eight Methods to Evaluate Robust Unlearning in LLMs*, arXiv:2402.16835.
        Deeb and Roger, *Do Unlearning Methods Remove Information from Language Model Weights?*, arXiv:2410.08827.
        Fan et al., *Towards LLM Unlearning Resilient to Relearning Attacks*, arXiv:2502.05374.
    """

    def __init__(
        self,
        taught: Sequence[Probe],
        kind: RelearningKind = "in_domain",
        recipe: RelearningRecipe | str = "default",
        lora: dict[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        if isinstance(recipe, str):
            recipe = RELEARNING_RECIPES[one_of("recipe", recipe, tuple(RELEARNING_RECIPES))]
        self.recipe, self.kind, self.seed = recipe, one_of("kind", kind, RelearningKind), seed
        self.taught = list(taught)[: recipe.rows]
        if not self.taught:
            raise ValueError("There is no row to teach. Give at least one.")
        self.lora = lora
        self.name = f"relearn_{kind}_{recipe.lr:g}" + ("_lora" if lora is not None else "")
        self.gate = None if recipe.scores_taught else _GATES[kind]

    @property
    def measured(self) -> tuple[int, ...]:
        """Updates before each measurement."""
        return self.recipe.measured(len(self.taught))

    def held_out(self, probes: Sequence[Probe]) -> list[Probe]:
        """The probes that are scored: those that are not taught.

        Raises:
            ValueError: If none is left.
        """
        if self.kind != "in_domain" or self.recipe.scores_taught:
            return list(probes)
        known = {_content(probe) for probe in self.taught}
        left = [probe for probe in probes if _content(probe) not in known]
        if not left:
            raise ValueError("All probes are taught, and a taught row says nothing. Teach some and score the others.")
        return left

    def knowledge(self, module: LitCausalLM, probes: Sequence[Probe], scorer: Scorer) -> Knowledge:
        """What the attacked copy knows of the probes that it was not taught, after the last update."""
        return self._attacked(module, probes, scorer, self.measured[-1:]).knowledge[-1]

    def trace(self, module: LitCausalLM, probes: Sequence[Probe], scorer: Scorer) -> RelearningTrace:
        """What it knows at every measurement of the recipe; the last one is what ``knowledge`` gives.

        Args:
            module: The model.
            probes: Questions to the forget rows; those that are taught are left out.
            scorer: Measures a model.

        Raises:
            TypeError: If weights are quantised.
            ValueError: If no probe is left, weights are sharded, or the model diverges.
        """
        return self._attacked(module, probes, scorer, self.measured)

    def cost(self, rows: int) -> Cost:
        """The updates, and one measurement."""
        return Cost(passes=1, generations=1, steps=self.measured[-1])

    def settings(self) -> dict[str, Any]:
        """The arguments, with the numbers of the taught rows."""
        taught = [probe.row for probe in self.taught]
        return {"kind": self.kind, "taught": taught, **asdict(self.recipe), "lora": self.lora, "seed": self.seed}

    def _attacked(
        self, module: LitCausalLM, probes: Sequence[Probe], scorer: Scorer, measured: Sequence[int]
    ) -> RelearningTrace:
        scored = self.held_out(probes)
        trace, last, recipe = RelearningTrace([], [], [], 0), self.measured[-1], self.recipe
        rows = token_rows(module, self.taught, recipe.max_length)
        order = _Order(rows, recipe.batch_size, self.seed)
        with merged(module), attacked_copy(module, self.seed) as model:
            assert isinstance(model, LitCausalLM)
            trained = self._trained(model)
            order.packs = can_pack(model, rows)

            def ends(step: int) -> bool:
                if step in measured:
                    trace.steps.append(step)
                    with isolate_rng(), evaluating(model), casts_kept(model.device.type):
                        trace.taught_loss.append(_mean_loss(model, rows))
                        trace.knowledge.append(scorer(model, scored))
                return step == last

            optimizer = torch.optim.AdamW(trained, lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True)
            rates = partial(recipe.factor, total=last)
            fine_tune(model, order, optimizer, _loss, ends, rates, recipe.clip, dropout=False)
        return RelearningTrace(trace.steps, trace.knowledge, trace.taught_loss, order.tokens)

    def _trained(self, model: LitCausalLM) -> list[torch.nn.Parameter]:
        """The weights of the copy that train."""
        check_whole(model.model)
        model.float()
        model.requires_grad_(True)
        if self.lora is not None:
            from peft import get_peft_model

            model.model = get_peft_model(model.model, lora_config(self.lora))
        return [p for p in model.parameters() if p.requires_grad]


class _Order:
    """Batches of the taught rows, reshuffled each epoch in an order that is the same for every model.

    Args:
        rows: Tokens of the rows.
        batch_size: Rows of a batch.
        seed: Seed of the order.

    Attributes:
        packs: Whether a batch may be one sequence.
        tokens: Supervised tokens of all batches so far.
    """

    def __init__(self, rows: Sequence[TokenRow], batch_size: int, seed: int) -> None:
        self.rows, self.batch_size, self.seed, self.epoch, self.tokens = rows, batch_size, seed, 0, 0
        self.packs = False

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        order = torch.randperm(len(self.rows), generator=keyed_generator(self.seed, self.epoch)).tolist()
        self.epoch += 1
        for first in range(0, len(order), self.batch_size):
            rows = [self.rows[i] for i in order[first : first + self.batch_size]]
            batch = (packed(rows) if self.packs else None) or padded(rows)
            self.tokens += int((batch["labels"][:, 1:] != IGNORE_INDEX).sum())
            yield batch


def _loss(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Mean negative log-likelihood of the supervised tokens of a batch."""
    predictions = causal_lm_nll.predictions(model, batch)
    return predictions.nll().sum() / predictions.length().sum()


def _mean_loss(model: LitCausalLM, rows: Sequence[TokenRow]) -> float:
    """Mean negative log-likelihood of the supervised tokens of some rows."""
    loss = -float(torch.cat([part.log_prob for part in token_stats(model, rows)]).double().mean())
    if not math.isfinite(loss):
        raise ValueError(
            "The loss of the taught rows is not finite: the attacked copy diverged. Lower the learning rate."
        )
    return loss


def _content(probe: Probe) -> tuple[str, str]:
    return str(probe.question), probe.answer
