"""Divergence of two models' predictions: Jensen-Shannon divergence and zero retrain forgetting (ZRF)."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_unlearn.core.checks import finite, one_of

__all__ = ["ZRF", "JSDivergence", "js_divergence", "zrf"]

Base = Literal["e", "2"]


def js_divergence(logits: Tensor, reference: Tensor, base: Base = "e", reference_impl: bool = False) -> Tensor:
    r"""Jensen-Shannon divergence of each row, $\tfrac12 KL(p\|m) + \tfrac12 KL(q\|m)$ with $m = (p + q)/2$.

    Args:
        logits: Logits of $p$, shape ``(N, K)``.
        reference: Logits of $q$ for the same rows, shape ``(N, K)``.
        base: ``"e"`` for nats, in [0, ln 2]; ``"2"`` for bits, in [0, 1].
        reference_impl: Compute what the released code reports as this divergence,
            $\frac{1}{2K}\,[KL(m\|p) + KL(m\|q)]$, for comparison with its numbers. It has no upper bound.

    Returns:
        Shape ``(N,)``.

    Raises:
        ValueError: If the shapes differ, there are no rows, a logit is not finite, or the base is unknown.

    Example:
        >>> p, q = torch.tensor([[0.7, 0.2, 0.1]]), torch.tensor([[0.1, 0.2, 0.7]])
        >>> js_divergence(p.log(), q.log()), js_divergence(p.log(), q.log(), base="2")
        (tensor([0.2531]), tensor([0.3651]))

    References:
        Chundawat et al., *Can Bad Teaching Induce Forgetting?*, arXiv:2205.08096.
    """
    if logits.dim() != 2 or logits.shape != reference.shape:
        raise ValueError(
            f"Both models must give logits (N, K) for the same rows, but gave {tuple(logits.shape)} and "
            f"{tuple(reference.shape)}. Use loaders that do not shuffle."
        )
    one_of("base", base, Base)
    finite("logits", logits)
    finite("reference logits", reference)
    log_p, log_q = logits.float().log_softmax(-1), reference.float().log_softmax(-1)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    if reference_impl:
        rows = (log_m.exp() * (log_m - (log_p + log_q) / 2)).mean(-1)
    else:
        # Rounding alone could make it negative for equal predictions.
        rows = ((log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)).sum(-1) / 2).clamp_min(0)
    return rows / math.log(2) if base == "2" else rows


def zrf(logits: Tensor, random_logits: Tensor) -> Tensor:
    r"""Zero retrain forgetting of each row, $1 - JS_2(p_{\theta_u}, p_{\mathrm{random}})$ with the divergence in bits.

    Args:
        logits: Of the unlearned model on the forget rows, shape ``(N, K)``.
        random_logits: Of a freshly initialised model on the same rows, shape ``(N, K)``.

    Returns:
        Shape ``(N,)``, in [0, 1].

    Raises:
        ValueError: If the shapes differ, there are no rows or a logit is not finite.

    Example:
        >>> zrf(torch.eye(3), torch.eye(3))
        tensor([1., 1., 1.])

    References:
        Chundawat et al., *Can Bad Teaching Induce Forgetting?*, arXiv:2205.08096.
    """
    return 1 - js_divergence(logits, random_logits, base="2")


class JSDivergence(Metric):
    r"""Mean Jensen-Shannon divergence to another model, usually the retrained one.

    $$\frac{1}{N}\sum_i \tfrac12 KL(p_i\|m_i) + \tfrac12 KL(q_i\|m_i), \qquad m_i = (p_i + q_i)/2$$

    In [0, ln 2] nats or [0, 1] bits; 0, equal to the retrained model, is best.

    Args:
        base: ``"e"`` for nats or ``"2"`` for bits.
        reference_impl: Compute what the released code reports; see
            [`js_divergence`][lightning_unlearn.classification.metrics.divergence.js_divergence].

    Raises:
        ValueError: If the shapes differ, there are no rows, a logit is not finite, or the base is unknown.

    Example:
        >>> js = JSDivergence(base="2")
        >>> js.update(torch.tensor([[0.7, 0.2, 0.1]]).log(), torch.tensor([[0.1, 0.2, 0.7]]).log())
        >>> js.compute()
        tensor(0.3651)

    References:
        Chundawat et al., *Can Bad Teaching Induce Forgetting?*, arXiv:2205.08096.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better: bool | None = False
    divergence: Tensor
    total: Tensor

    def __init__(self, base: Base = "e", reference_impl: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.base, self.reference_impl = one_of("base", base, Base), reference_impl
        self.add_state("divergence", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, logits: Tensor, reference: Tensor) -> None:
        """Count the logits of both models for the same rows, each ``(N, K)``."""
        self.divergence += js_divergence(logits, reference, self.base, self.reference_impl).sum()
        self.total += len(logits)

    def compute(self) -> Tensor:
        """The mean over all rows so far."""
        if self.total == 0:
            raise ValueError(
                f"{type(self).__name__} has seen no rows. Call update with the logits of both models first."
            )
        return self.divergence / self.total


class ZRF(JSDivergence):
    r"""Zero retrain forgetting, $1 - \frac1N\sum_i JS_2(p_i^{\theta_u}, p_i^{\mathrm{random}})$, on the forget rows.

    In [0, 1]; 1 means the predictions of a freshly initialised model. Ideal is the value of the retrained model, which
    is below 1 if forget rows resemble retain rows.

    Raises:
        ValueError: If the shapes differ, there are no rows or a logit is not finite.

    Example:
        >>> score = ZRF()
        >>> score.update(torch.tensor([[0.7, 0.2, 0.1]]).log(), torch.tensor([[0.1, 0.2, 0.7]]).log())
        >>> score.compute()
        tensor(0.6349)

    References:
        Chundawat et al., *Can Bad Teaching Induce Forgetting?*, arXiv:2205.08096.
    """

    higher_is_better: bool | None = None

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(base="2", **kwargs)

    def compute(self) -> Tensor:
        """The mean over all rows so far."""
        return 1 - super().compute()
