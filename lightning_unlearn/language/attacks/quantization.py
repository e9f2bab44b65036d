"""Quantisation attack: answers of a model with rounded weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_unlearn.functional.quantization import QUANTIZATION_SCHEMES, quantize
from lightning_unlearn.language.attacks.attack import Cost, LanguageAttack
from lightning_unlearn.language.attacks.quantizers import Backend, rounding
from lightning_unlearn.language.attacks.swapping import LinearWeight, exchanged, linear_weights, merged
from lightning_unlearn.language.causal_lm import LitCausalLM
from lightning_unlearn.language.knowledge import Knowledge, Scorer
from lightning_unlearn.language.probes import Probe

__all__ = ["QuantizationAttack"]

_GATES = {"int8": "int8", "q8_0": "int8", "int4": "int4", "int4_row": "int4", "nf4": "int4", "q4_0": "int4"}


class QuantizationAttack(LanguageAttack):
    r"""Rounds the weights of the linear layers as a deployment at 8 or 4 bits does.

    Updates of unlearning are small compared with the steps of such a grid. If weights round to the same values as those
    of the original, the forgotten rows come back. Rounding costs the original and the control model knowledge as well,
    so all three are compared after rounding.

    Weights are quantised, dequantised in fp32 and cast to the model's type. Embeddings, norms and the output head stay,
    as in the libraries; adapters are merged first. While the attack runs, the rounded weights are in memory beside the
    model's own ones.

    Args:
        scheme: ``"int8"`` (a scale a row); ``"int4"`` (groups of 64), ``"int4_g128"``, ``"int4_g32"``, ``"int4_row"``,
            ``"int4_asym"``, ``"int4_durableun"``; ``"nf4"`` and ``"fp4"`` of bitsandbytes; with ``backend="gguf"``
            ``"q8_0"``, ``"q5_0"``, ``"q5_1"``, ``"q4_0"`` or ``"q4_1"``.
        include_head: Whether the output head is rounded too. Embeddings that are tied to it stay.
        backend: Whose arithmetic rounds: ``"torch"``, which needs nothing else; ``"bitsandbytes"`` (int8, nf4, fp4);
            ``"torchao"`` (int8, int4, int4_g128, int4_g32); or ``"gguf"``, the round trip through a file of llama.cpp.

    Raises:
        ValueError: If the backend has no such scheme.
        ImportError: If the backend is not installed.

    Example:
        >>> QuantizationAttack("nf4").name, QuantizationAttack("q4_0", backend="gguf").name
        ('nf4', 'q4_0')

    References:
        Zhang et al., *Catastrophic Failure of LLM Unlearning via Quantization*, arXiv:2410.16454.
    """

    def __init__(self, scheme: str = "int4", include_head: bool = False, backend: Backend = "torch") -> None:
        self.scheme, self.include_head, self.backend = scheme, include_head, backend
        self._round = rounding(scheme, backend)
        own = backend in ("torch", "gguf")
        self.name = (scheme if own else f"{scheme}_{backend}") + ("_head" if include_head else "")
        self.gate = _GATES.get(scheme)

    def knowledge(self, module: LitCausalLM, probes: Sequence[Probe], scorer: Scorer) -> Knowledge:
        """What the rounded model knows."""
        with self.quantized(module):
            return scorer(module, probes)

    def cost(self, rows: int) -> Cost:
        """One measurement, and one pass over the weights."""
        return Cost(passes=1, generations=1)

    def settings(self) -> dict[str, Any]:
        """The arguments."""
        return {"scheme": self.scheme, "include_head": self.include_head, "backend": self.backend}

    @contextmanager
    def quantized(self, module: LitCausalLM) -> Iterator[None]:
        """Run with rounded weights, one layer after the other, then with the model's own ones again.

        Args:
            module: The model, in floating point.

        Raises:
            TypeError: If its weights are quantised already.
            ValueError: If its weights are sharded.
        """
        with merged(module), exchanged(self._rounded(linear_weights(module.model, self.include_head))):
            yield

    @torch.no_grad()
    def overlap(self, module: LitCausalLM, original: LitCausalLM) -> float:
        """Share of the codes that are those of the original model, which explains what comes back.

        Args:
            module: The unlearned model.
            original: The model before unlearning.

        Raises:
            ValueError: If the models are not alike.
        """
        same = total = 0
        with merged(module), merged(original):
            pairs = (linear_weights(part.model, self.include_head) for part in (module, original))
            for mine, other in _paired(*pairs):
                first, second = self._codes(mine.value), self._codes(other.value.to(mine.stored.device))
                same += int((first == second).sum())
                total += first.numel()
        return same / total

    def _rounded(self, weights: Sequence[LinearWeight]) -> Iterator[tuple[nn.Module, str, Tensor]]:
        with torch.no_grad():
            for weight in weights:
                yield weight.layer, "weight", weight.as_stored(self._round(weight.value))

    def _codes(self, weight: Tensor) -> Tensor:
        if self.backend == "torch":
            return quantize(weight, QUANTIZATION_SCHEMES[self.scheme]).codes
        return self._round(weight)


def _paired(
    first: Sequence[LinearWeight], second: Sequence[LinearWeight]
) -> Iterator[tuple[LinearWeight, LinearWeight]]:
    shapes = [[(weight.name, weight.stored.shape) for weight in weights] for weights in (first, second)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            "The linear layers of the two models differ in name or shape. Give models of one architecture."
        )
    yield from zip(first, second, strict=True)
