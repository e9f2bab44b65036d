"""The forget term at quantised weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lightning_unlearn.core.checks import above, between, one_of, regex
from lightning_unlearn.core.distributed import local_tensor
from lightning_unlearn.core.lightning import LightningModule, MisconfigurationException, Trainer
from lightning_unlearn.core.scores import output_head
from lightning_unlearn.functional.quantization import QUANTIZATION_SCHEMES, round_weight
from lightning_unlearn.smoothing.forget_term import ForgetTerm
from lightning_unlearn.smoothing.sharded import own_part
from lightning_unlearn.smoothing.strategy import Smoothed, SmoothingStrategy

__all__ = ["QuantizationAware"]


class QuantizationAware(SmoothingStrategy):
    r"""Minimizes the forget term of the model and of its quantised form, so that quantisation restores no rows.

    $$\min_\theta w_f \big((1 - q)\, \mathcal{L}_{forget}(\theta) + q\, \mathcal{L}_{forget}(Q(\theta))\big)
    + w_r \mathcal{L}_{retain}(\theta)$$

    $Q$ rounds the weights of linear layers to the nearest of a grid (see ``QUANTIZATION_SCHEMES``), and its derivative
    is taken to be 1 (straight-through estimation). Embeddings, norms and the output head of a language model stay, as
    in the quantisation attack. A classifier does not tell which layer is its head: leave it out with ``parameters``,
    such as ``r"^(?!net\.head)"``. The forget term is read twice a step. The retain term uses the model without
    rounding: the loss of retained knowledge by quantisation is not trained away.

    The weights between the points of the grid are free to differ: with $q = 1$, a model may forget once it is rounded
    and still know the rows as it is.

    Weights of adapters (LoRA) are quantised only when they are merged, so the run has to train the linear layers
    themselves. In memory it costs a copy of their weights and of the gradients. Where weights are sharded, one at a
    time is gathered.

    Logs ``smooth/perturbed_loss``, the forget term of the quantised model.

    Args:
        scheme: Name of the grid: ``"int4"``, ``"int8"``, ``"nf4"``, ...
        parameters: Regular expression; only linear weights whose name it is found in are rounded. By default all.
        weight: Weight $q$ of the quantised model. With 1 the forget term is read once a step, at the rounded weights,
            and running statistics of batch normalization take in no forget rows.

    Raises:
        ValueError: If there is no such scheme, ``parameters`` is no regular expression, or the weight is not in (0, 1].
        MisconfigurationException: If no weight of a linear layer trains, or adapters do.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_unlearn import NPO
        >>> trainer = Trainer(callbacks=[NPO(), QuantizationAware("int4")], logger=False, accelerator="cpu")

    References:
        Zhang et al., *Catastrophic Failure of LLM Unlearning via Quantization*, arXiv:2410.16454.
        Bengio et al., *Estimating or Propagating Gradients Through Stochastic Neurons for Conditional Computation*,
        arXiv:1308.3432.
    """

    def __init__(self, scheme: str = "int4", parameters: str | None = None, weight: float = 0.5) -> None:
        self.scheme = one_of("scheme", scheme, tuple(QUANTIZATION_SCHEMES))
        regex("parameters", parameters or "")
        self.parameters, self.weight = parameters, between("weight", above("weight", weight, 0), 0, 1)
        self._linear: dict[int, bool] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the linear layers."""
        super().on_train_start(trainer, pl_module)
        head = output_head(pl_module)
        layers = [
            (path, layer)
            for path, layer in pl_module.named_modules()
            if isinstance(layer, nn.Linear) or type(layer).__name__ == "Conv1D"
        ]
        adapters = [path for path, _ in layers if ".lora_A." in f"{path}." or ".lora_B." in f"{path}."]
        if adapters:
            raise MisconfigurationException(
                f"QuantizationAware rounds the weights of linear layers, but the run trains adapters, such as "
                f"{adapters[0]!r}, which are quantised only when they are merged. Train the weights themselves "
                "(lora=None)."
            )
        self._linear = {
            id(layer.weight): isinstance(layer, nn.Linear)
            for _, layer in layers
            if layer is not head and isinstance(layer._parameters.get("weight"), nn.Parameter)
        }

    def smooth(self, term: ForgetTerm) -> Smoothed:
        """The weighted mean of the forget term at the live and at the rounded weights."""
        chosen = term.chosen(self.parameters)
        values = [
            self._rounded(parameter) if rounds and id(parameter) in self._linear else None
            for parameter, rounds in zip(term.parameters, chosen, strict=True)
        ]
        if all(value is None for value in values):
            raise MisconfigurationException(
                f"QuantizationAware(parameters={self.parameters!r}) finds no weight of a linear layer that trains. "
                f"Weights look like {term.names[0]!r}."
            )
        here = term.gradient() if self.weight < 1 else None
        with term.at(values):
            there = term.gradient()
        logged = {"perturbed_loss": there.value}
        if here is None:
            return Smoothed(there.value, there.gradients, there.parts, logged)
        pairs = zip(here.gradients, there.gradients, strict=True)
        gradients = [weighted_mean(mine, rounded, self.weight) for mine, rounded in pairs]
        return Smoothed(here.value.lerp(there.value, self.weight), gradients, here.parts, logged)

    @torch.no_grad()
    def _rounded(self, parameter: nn.Parameter) -> Tensor:
        whole = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter.detach()
        by_output = self._linear[id(parameter)]  # Conv1D of transformers keeps its weight as (in, out)
        rounded = round_weight(whole if by_output else whole.t().contiguous(), QUANTIZATION_SCHEMES[self.scheme])
        return own_part(parameter, rounded if by_output else rounded.t().contiguous())


def weighted_mean(first: Tensor | None, second: Tensor | None, weight: float) -> Tensor | None:
    """The mean of two gradients, of which the second has a weight; the first is overwritten.

    Args:
        first: A gradient; ``None`` is zero, as for an expert that no token was routed to.
        second: Another one, of the same shape.
        weight: Weight of the second, in [0, 1].
    """
    if first is None:
        return None if second is None else second * weight
    if second is None:
        return first * (1 - weight)
    local_tensor(first).lerp_(local_tensor(second), weight)
    return first
