"""SalUn's saliency mask."""

from __future__ import annotations

from lightning_unlearn.core.scores import Score
from lightning_unlearn.weights.gradient_mask import GradientMask
from lightning_unlearn.weights.weight_mask import Scope

__all__ = ["SalUn"]


class SalUn(GradientMask):
    r"""Saliency unlearning's mask: the half of the weights with the largest forget gradient, $S_i = |g_{f,i}|$.

    The absolute value is taken after the sum over all forget rows, in evaluation mode, and all weights compete. The
    paper trains on random labels with it; here it works beside any objective. The released code takes each batch's mean
    loss, and so weighs the rows of a last, smaller batch more; here all rows count the same.

    Args:
        density: Share of weights that may move, in [0, 1].
        scope: ``"global"`` (the paper), ``"per_layer"`` or ``"per_tensor"``.
        parameters: Regular expression; only parameters whose name it is found in are scored and may move.
        mask_file: A mask that an earlier run saved with the same settings.
        score: Reads likelihoods off the module; by default that of the run's objective.

    Example:
        >>> SalUn().density
        0.5

    References:
        Fan et al., *SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency in Both Image
        Classification and Generation*, arXiv:2310.12508.
    """

    def __init__(
        self,
        density: float = 0.5,
        scope: Scope = "global",
        parameters: str | None = None,
        mask_file: str | None = None,
        score: Score | None = None,
    ) -> None:
        super().__init__(density, scope, parameters, mask_file, score)
