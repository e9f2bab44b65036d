"""Pruning attack: answers of a model with part of its weights set to zero."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_unlearn.core.checks import inside, one_of
from lightning_unlearn.core.lightning import isolate_rng
from lightning_unlearn.core.modes import evaluating
from lightning_unlearn.core.transfer import transferred
from lightning_unlearn.functional.saliency.magnitude import magnitude_score
from lightning_unlearn.functional.saliency.threshold import Place, top_mask, top_threshold
from lightning_unlearn.functional.saliency.wanda import top_of_each_row, wanda_score
from lightning_unlearn.language.attacks.attack import Cost, LanguageAttack
from lightning_unlearn.language.attacks.swapping import LinearWeight, exchanged, linear_weights, merged
from lightning_unlearn.language.attacks.token_batches import token_batches
from lightning_unlearn.language.causal_lm import LitCausalLM
from lightning_unlearn.language.knowledge import Knowledge, Scorer
from lightning_unlearn.language.probes import Probe

__all__ = ["PruningAttack", "PruningKind"]

PruningKind = Literal["global", "layer", "wanda"]


class PruningAttack(LanguageAttack):
    r"""Sets the smallest weights of the linear layers to zero, as a deployment that saves memory does.

    Embeddings, norms and the output head stay; adapters are merged first. The original and the control model are pruned
    by their own scores.

    Args:
        share: Share of the weights that become zero, in (0, 1).
        kind: ``"global"``: the smallest $|W_{ij}|$ of all layers; ``"layer"``: the smallest of each layer;
            ``"wanda"``: the smallest $|W_{ij}|\,\lVert X_j \rVert_2$ of each output row, with inputs $X$ of the
            calibration rows. They are read once, in the whole model; the released code of Wanda reads them block after
            block, behind blocks that are pruned already.
        calibration: Rows of ``"wanda"``, such as retain rows.
        batch_size: Calibration rows that run together.

    Raises:
        ValueError: If ``share`` is outside, or calibration rows are missing or given in vain.

    Example:
        >>> PruningAttack(0.3, "layer").name
        'pruning_layer_0.3'

    References:
        Han et al., *Learning both Weights and Connections for Efficient Neural Networks*, arXiv:1506.02626.
        Sun et al., *A Simple and Effective Pruning Approach for Large Language Models*, arXiv:2306.11695.
    """

    def __init__(
        self,
        share: float = 0.3,
        kind: PruningKind = "global",
        calibration: Sequence[Probe] = (),
        batch_size: int = 8,
    ) -> None:
        self.share, self.kind = inside("share", share, 0, 1), one_of("kind", kind, PruningKind)
        if bool(calibration) != (kind == "wanda"):
            raise ValueError(
                f"kind='wanda' needs calibration rows, and the other kinds take none, but kind={kind!r} got "
                f"{len(calibration)}."
            )
        self.calibration, self.batch_size = list(calibration), batch_size
        self.name = f"pruning_{kind}_{share:g}"

    def knowledge(self, module: LitCausalLM, probes: Sequence[Probe], scorer: Scorer) -> Knowledge:
        """What the pruned model knows."""
        with self.pruned(module):
            return scorer(module, probes)

    def cost(self, rows: int) -> Cost:
        """One measurement, and for Wanda one pass over the calibration rows."""
        return Cost(passes=1 + len(self.calibration) / max(1, rows), generations=1)

    def settings(self) -> dict[str, Any]:
        """The arguments, with the numbers of the calibration rows."""
        return {"share": self.share, "kind": self.kind, "calibration": [probe.row for probe in self.calibration]}

    @contextmanager
    def pruned(self, module: LitCausalLM) -> Iterator[None]:
        """Run with pruned weights, then with the model's own ones again.

        Raises:
            TypeError: If the weights are quantised.
            ValueError: If they are sharded.
        """
        with merged(module):
            weights = linear_weights(module.model)
            norms = self._input_norms(module, weights) if self.kind == "wanda" else {}
            with exchanged(self._pruned(weights, norms)):
                yield

    def _pruned(
        self, weights: Sequence[LinearWeight], norms: dict[str, Tensor]
    ) -> Iterator[tuple[nn.Module, str, Tensor]]:
        with torch.no_grad():
            cutoff = self._cutoff(weights) if self.kind == "global" else None
            offset = 0
            for weight in weights:
                value = weight.value.float()
                place = Place.of_whole(value, offset)
                offset += value.numel()
                if self.kind == "wanda":
                    kept = top_of_each_row(wanda_score(value, norms[weight.name]), 1 - self.share)
                else:
                    scores = magnitude_score(value)
                    own = cutoff or top_threshold([scores], _kept(scores.numel(), self.share), [place])
                    kept = top_mask(scores, own, place)
                yield weight.layer, "weight", weight.as_stored((value * kept).to(weight.stored.dtype))

    def _cutoff(self, weights: Sequence[LinearWeight]) -> Any:
        scores = [magnitude_score(weight.value.float()) for weight in weights]
        return top_threshold(scores, _kept(sum(score.numel() for score in scores), self.share))

    def _input_norms(self, module: LitCausalLM, weights: Sequence[LinearWeight]) -> dict[str, Tensor]:
        """Norm of each input feature over all tokens of the calibration rows."""
        squares = {w.name: torch.zeros(w.value.shape[1], device=w.stored.device) for w in weights}
        state: dict[str, Tensor] = {}

        def watch(name: str) -> Any:
            def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                real = inputs[0]
                if real.shape[:-1] == state["mask"].shape:
                    real = real[state["mask"].bool()]
                squares[name] += real.reshape(-1, real.shape[-1]).float().square().sum(0)

            return hook

        handles = [w.layer.register_forward_pre_hook(watch(w.name)) for w in weights]
        try:
            with isolate_rng(), evaluating(module):
                for batch in token_batches(module, self.calibration, self.batch_size):
                    batch = transferred(module, batch)
                    state["mask"] = batch["attention_mask"]
                    module(batch["input_ids"], batch["attention_mask"])
        finally:
            for handle in handles:
                handle.remove()
        return {name: square.sqrt() for name, square in squares.items()}


def _kept(count: int, share: float) -> int:
    return count - int(share * count)
