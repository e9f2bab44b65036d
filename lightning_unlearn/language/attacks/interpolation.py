"""Interpolation attack: weights between those of the unlearned and the original model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_unlearn.core.checks import between
from lightning_unlearn.language.attacks.attack import Cost, LanguageAttack
from lightning_unlearn.language.attacks.swapping import check_whole, exchanged, merged
from lightning_unlearn.language.causal_lm import LitCausalLM
from lightning_unlearn.language.knowledge import Knowledge, Scorer
from lightning_unlearn.language.probes import Probe

__all__ = ["InterpolationAttack"]


class InterpolationAttack(LanguageAttack):
    r"""Moves the weights of a model towards those of the original.

    $$\theta_U + t\,(\theta_O - \theta_U)$$

    Merging an unlearned model with a descendant of the original does this unintentionally. An attacker who holds the
    original needs no attack, so the outcome is evidence of how close the models are, and no gate.

    Args:
        original: The model before unlearning.
        t: Share of the way, in [0, 1]: 0 is the attacked model, 1 the original.

    Raises:
        ValueError: If ``t`` is outside.

    Example:
        >>> InterpolationAttack(None, t=2.0)
        Traceback (most recent call last):
        ValueError: t must be in [0, 1], but got 2.0.
    """

    def __init__(self, original: LitCausalLM, t: float = 0.5) -> None:
        self.original, self.t = original, between("t", t, 0, 1)
        self.name = f"interpolation_{t:g}"

    def knowledge(self, module: LitCausalLM, probes: Sequence[Probe], scorer: Scorer) -> Knowledge:
        """What the model in between knows."""
        with self.interpolated(module):
            return scorer(module, probes)

    def cost(self, rows: int) -> Cost:
        """One measurement."""
        return Cost(passes=1, generations=1)

    def settings(self) -> dict[str, Any]:
        """The share of the way; the original is part of every audit."""
        return {"t": self.t}

    @contextmanager
    def interpolated(self, module: LitCausalLM) -> Iterator[None]:
        """Run with the weights in between.

        Raises:
            TypeError: If weights are quantised.
            ValueError: If the models are not alike, or weights are sharded.
        """
        with merged(module), merged(self.original), exchanged(self._weights(module.model, self.original.model)):
            yield

    @torch.no_grad()
    def _weights(self, model: nn.Module, original: nn.Module) -> list[tuple[nn.Module, str, Tensor]]:
        for part in (model, original):
            check_whole(part)
        theirs = {name: p for name, p in original.named_parameters(remove_duplicate=False)}
        mine = {name: p for name, p in model.named_parameters(remove_duplicate=False)}
        shapes = [{name: p.shape for name, p in part.items()} for part in (mine, theirs)]
        if shapes[0] != shapes[1]:
            raise ValueError("The two models differ in the names or shapes of their weights. Give models of one kind.")
        between_both: dict[int, Tensor] = {}  # a tied weight once, so that it stays tied
        weights = []
        for name, weight in mine.items():
            other = theirs[name].detach().to(weight.device)
            if id(weight) not in between_both:
                mixed = torch.lerp(weight.float(), other.float(), self.t).to(weight.dtype)
                between_both[id(weight)] = nn.Parameter(mixed, requires_grad=False)
            owner, _, attribute = name.rpartition(".")
            weights.append((model.get_submodule(owner), attribute, between_both[id(weight)]))
        return weights
