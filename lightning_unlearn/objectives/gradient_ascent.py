"""Gradient ascent."""

from __future__ import annotations

from lightning_unlearn.core.scores import Score, causal_lm_nll
from lightning_unlearn.objectives.grad_diff import GradDiff

__all__ = ["GradientAscent"]


class GradientAscent(GradDiff):
    r"""Gradient ascent: maximize the mean NLL per token of the forget rows, and nothing else.

    $$\mathcal{L} = -\frac{\sum_b S_b}{\sum_b n_b}$$

    It has no floor: left to run, it destroys the model. It is the baseline that the other objectives improve on.

    Args:
        max_forget_nll: Stop training once the mean forget NLL of a batch is above this many nats per token.
        score: Reads likelihoods off the module.
        keep_reference: Whether checkpoints keep state of the original model after the run, so that it can be resumed.

    Raises:
        ValueError: If ``max_forget_nll`` is not positive.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[GradientAscent(max_forget_nll=5.0)], logger=False, accelerator="cpu")

    References:
        Jang et al., *Knowledge Unlearning for Mitigating Privacy Risks in Language Models*, arXiv:2210.01504.
    """

    def __init__(
        self, max_forget_nll: float | None = None, score: Score = causal_lm_nll, keep_reference: bool = False
    ) -> None:
        super().__init__(retain_weight=0.0, max_forget_nll=max_forget_nll, score=score)
        self.keep_reference = keep_reference
