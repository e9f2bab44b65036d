"""Cross-entropy unlearning."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_unlearn.core.callback import Needs
from lightning_unlearn.core.checks import at_least
from lightning_unlearn.core.distributed import mean_over_ranks
from lightning_unlearn.core.lightning import LightningModule
from lightning_unlearn.core.reading import Reading
from lightning_unlearn.core.scores import Score, causal_lm_nll
from lightning_unlearn.functional.objectives.ceu import ceu
from lightning_unlearn.objectives.objective import ForgetRetainObjective, RetainTerm
from lightning_unlearn.objectives.ramp import Ramp

__all__ = ["CEU"]


class CEU(ForgetRetainObjective):
    r"""Cross-entropy unlearning: train on the model's own prediction without the forget token.

    $$\mathcal{L} = -w_f\, \mathbb{E}_t \sum_v q_{t,v} \log p_{t,v} + w_r \mathcal{L}_{retain}$$

    $q_t$ is the model's own prediction $p_t$ without the label, renormalized and held fixed. The gradient with respect
    to the logits is $p - q$. It is bounded, unlike that of ascent, and needs no second model. The method has no retain
    term of its own.

    Args:
        ignore_first: Supervised tokens at the start of each row that are left alone: how an answer begins is seldom
            what has to be forgotten. 0 for classifiers, whose rows have one label.
        forget_weight: Weight of the forget term $w_f$.
        retain_weight: Weight of the retain term $w_r$; 0 leaves it out, as the paper does.
        retain: ``"nll"``, ``"kl"`` or an ``EmbeddingDifference``, see
            [`ForgetRetainObjective`][lightning_unlearn.ForgetRetainObjective].
        refusal_weight: Weight of a refusal to the forget questions.
        score: Reads logits off the module.
        keep_reference: Whether checkpoints keep state of the original model after the run, so that it can be resumed.

    Raises:
        ValueError: If ``ignore_first`` or a weight is negative, if ``score`` gives no logits, or, in training, if
            ``ignore_first`` leaves no token in a batch.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[CEU()], logger=False, accelerator="cpu")

    References:
        Yang, *CE-U: Cross Entropy Unlearning*, arXiv:2503.01224.
    """

    needs = Needs(logits=True)

    def __init__(
        self,
        ignore_first: int = 1,
        forget_weight: float = 1.0,
        retain_weight: float | Ramp = 0.0,
        retain: RetainTerm = "nll",
        refusal_weight: float = 0.0,
        score: Score = causal_lm_nll,
        keep_reference: bool = False,
    ) -> None:
        super().__init__(forget_weight, retain_weight, retain, refusal_weight, score)
        self.keep_reference = keep_reference
        self.ignore_first = int(at_least("ignore_first", ignore_first, 0))

    def forget_loss(self, module: LightningModule, readings: Mapping[str, Reading]) -> Tensor:
        """Mean of the cross entropy over the tokens that are not ignored."""
        forget = readings["forget"]
        assert forget.predictions is not None
        logits, labels, rows, _ = forget.predictions
        place = torch.arange(len(rows), device=rows.device) - torch.searchsorted(rows, rows)
        kept = (place >= self.ignore_first).float()
        if mean_over_ranks(kept.sum()) == 0:
            raise ValueError(
                f"ignore_first={self.ignore_first} leaves no token to forget in a batch whose rows have at most "
                f"{int(forget.length.max())} supervised tokens. Classifiers need ignore_first=0."
            )
        return self.token_mean(ceu(logits, labels) * kept, kept)
