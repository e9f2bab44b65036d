"""Wanda mask: magnitude times input norm."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lightning_unlearn.core.checks import at_least
from lightning_unlearn.core.distributed import local_tensor, sum_over_ranks
from lightning_unlearn.core.lightning import LightningModule, MisconfigurationException, Trainer
from lightning_unlearn.core.modes import undisturbed
from lightning_unlearn.core.rows import RunRows
from lightning_unlearn.core.scores import Score
from lightning_unlearn.functional.saliency.wanda import top_of_each_row, wanda_score
from lightning_unlearn.weights.weight_mask import WeightMask

__all__ = ["Wanda"]


class Wanda(WeightMask):
    r"""Lets the weights move that contribute most on forget rows, in each output row of each linear layer.

    $$S_{ij} = |W_{ij}|\, \lVert X_j \rVert_2$$

    $X_j$ is input feature $j$ at all tokens of the forget rows, without padding. Scores compete within an output row,
    so exactly $\lfloor density \cdot in \rfloor$ weights of each may move. Only weights of ``nn.Linear`` have such a
    score; embeddings, norms and biases are frozen, whereas the code released with WAGLE lets them move.

    Args:
        density: Share of the weights of each row that may move, in [0, 1].
        rows: Forget rows that inputs are read on, drawn without replacement; 128 in the paper.
        seed: Seed of that draw.
        parameters: Regular expression; only parameters whose name it is found in are scored and may move.
        mask_file: A mask that an earlier run saved with the same settings.
        score: Reads likelihoods off the module, and so runs it; by default that of the run's objective.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> Wanda(density=0.5, parameters=r"mlp\.").rows
        128

    References:
        Sun et al., *A Simple and Effective Pruning Approach for Large Language Models*, arXiv:2306.11695.
    """

    own_settings: ClassVar[tuple[str, ...]] = ("rows", "seed")

    def __init__(
        self,
        density: float,
        rows: int = 128,
        seed: int = 0,
        parameters: str | None = None,
        mask_file: str | None = None,
        score: Score | None = None,
    ) -> None:
        super().__init__(density, "per_tensor", parameters, mask_file, score)
        self.rows, self.seed = at_least("rows", rows, 1), seed

    def eligible(self, module: LightningModule, parameters: dict[str, nn.Parameter]) -> dict[str, nn.Parameter]:
        """The weights of linear layers."""
        layers = {id(weight) for weight, _ in _linear_layers(module)}
        return {name: p for name, p in parameters.items() if id(p) in layers}

    def scores(
        self, trainer: Trainer, module: LightningModule, parameters: dict[str, nn.Parameter]
    ) -> dict[str, Tensor]:
        """The formula, with inputs read in one forward pass over the forget rows."""
        names = {id(p): name for name, p in parameters.items()}
        squares = {name: torch.zeros(p.shape[1], device=p.device) for name, p in parameters.items()}
        share, read = RunRows.of_role(trainer, "forget", "Wanda", self.rows, self.seed), self.likelihood(trainer)
        state: dict[str, Any] = {}

        def watch(layer_name: str) -> Any:
            def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                if state["counted"]:
                    squares[layer_name] += _tokens(inputs[0], state["mask"]).float().square().sum(0)

            return hook

        layers = [(names[id(p)], layer) for p, layer in _linear_layers(module) if id(p) in names]
        with undisturbed(module):
            handles = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers]
            try:
                for batch, counted in share:
                    state = {
                        "counted": counted,
                        "mask": batch.get("attention_mask") if isinstance(batch, dict) else None,
                    }
                    with trainer.precision_plugin.forward_context():
                        read(module, batch)
            finally:
                for handle in handles:
                    handle.remove()
        scores = {}
        for name, parameter in parameters.items():
            if share.replica.total > 1:
                sum_over_ranks(squares[name])
            scores[name] = wanda_score(local_tensor(parameter.detach()).float(), squares[name].sqrt())
        return scores

    def build(
        self, trainer: Trainer, module: LightningModule, parameters: dict[str, nn.Parameter]
    ) -> dict[str, Tensor]:
        """Keep the same number of weights in each output row."""
        for name, p in parameters.items():
            if isinstance(p, DTensor) and any(placement.is_shard(1) for placement in p.placements):
                raise MisconfigurationException(
                    f"Wanda compares the weights of an output row, but rows of {name} are split over processes. Shard "
                    "weights by rows, FSDP2's default."
                )
        scores = self.scores(trainer, module, parameters)
        return {name: top_of_each_row(scores.pop(name), self.density) for name in parameters}


def _linear_layers(module: nn.Module) -> list[tuple[Tensor, nn.Linear]]:
    return [(layer.weight, layer) for layer in module.modules() if isinstance(layer, nn.Linear)]


def _tokens(inputs: Tensor, mask: Tensor | None) -> Tensor:
    """Inputs of a layer, one row a token that is not padding."""
    if mask is not None and inputs.shape[:-1] == mask.shape:
        return inputs[mask.bool()]
    return inputs.reshape(-1, inputs.shape[-1])
