"""NegGrad+: gradient descent on retain rows and ascent on forget rows."""

from __future__ import annotations

from lightning_unlearn.classification.objective import BatchNormMode
from lightning_unlearn.classification.ugradsl import UGradSL
from lightning_unlearn.core.scores import Score, classifier_nll

__all__ = ["NegGradPlus"]


class NegGradPlus(UGradSL):
    r"""NegGrad+: descent on the retain rows and weak ascent on the forget rows, over epochs of retain rows.

    $$\mathcal{L} = p\, \frac{1}{|B_r|} \sum_r \ell_r - (1 - p) \frac{1}{|B_f|} \sum_f \ell_f$$

    It is UGradSL+ without smoothing. The released notebook trains in evaluation mode, which corresponds to
    ``bn_mode="frozen"`` and no dropout.

    Args:
        p: Weight of the retain rows, in [0, 1].
        bn_mode: ``"joint"``, ``"frozen"`` or ``"train"``, see
            [`ClassifierObjective`][lightning_unlearn.ClassifierObjective].
        forget_accuracy_floor: Stop after the first epoch with an accuracy on all forget rows at or below this.
        score: Reads predictions from the module.
        keep_reference: Whether checkpoints keep state of the original model after the run, so that it can be resumed.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[NegGradPlus(p=0.95)], logger=False, accelerator="cpu")

    References:
        Kurmanji et al., *Towards Unbounded Machine Unlearning*, arXiv:2302.09880.
    """

    driver = "retain"

    def __init__(
        self,
        p: float = 0.95,
        bn_mode: BatchNormMode = "joint",
        forget_accuracy_floor: float | None = None,
        score: Score = classifier_nll,
        keep_reference: bool = False,
    ) -> None:
        super().__init__(0.0, p, bn_mode=bn_mode, forget_accuracy_floor=forget_accuracy_floor, score=score)
        self.keep_reference = keep_reference
