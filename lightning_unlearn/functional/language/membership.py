"""Scores of membership inference attacks on language models; lower means more likely a training row."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

__all__ = [
    "gradient_norm",
    "loss_score",
    "lower_case_score",
    "min_k",
    "min_k_plus_plus",
    "reference_score",
    "zlib_score",
]

MinKVariant = Literal["ou", "muse"]
GradientNormVariant = Literal["mean", "global"]
LowerCaseVariant = Literal["muse", "soul"]

_VARIANCE_FLOOR = 1e-6


def loss_score(log_prob: Tensor) -> Tensor:
    r"""LOSS, the mean negative log-likelihood :math:`-\frac{1}{n} \sum_t \ell_t`.

    Args:
        log_prob: Log-probabilities :math:`\ell` of the tokens, shape ``(n,)``.

    Returns:
        A scalar in nats, fp64.

    Raises:
        ValueError: If there is no token.

    Example:
        >>> loss_score(Tensor([0.5, 0.25]).log())
        tensor(1.0397, dtype=torch.float64)

    References:
        Yeom et al., Privacy risk in machine learning, arXiv:1709.01604.
    """
    _check(log_prob)
    return -log_prob.double().mean()


def reference_score(log_prob: Tensor, reference_log_prob: Tensor) -> Tensor:
    r"""LOSS of a model less that of a reference model, usually the retrained one.

    Args:
        log_prob: Log-probabilities of the tokens under the model, shape ``(n,)``.
        reference_log_prob: Those of the same tokens under the reference, shape ``(n,)``.

    Returns:
        A scalar in nats, fp64.

    Raises:
        ValueError: If there is no token, or the two have different lengths.

    Example:
        >>> reference_score(Tensor([-1.0, -2.0]), Tensor([-2.0, -2.0]))
        tensor(-0.5000, dtype=torch.float64)

    References:
        Carlini et al., Extracting training data from large language models, arXiv:2012.07805.
    """
    if log_prob.shape != reference_log_prob.shape:
        raise ValueError(
            f"The model has {len(log_prob)} tokens and the reference {len(reference_log_prob)}. Read both from the "
            "same rows, written by one tokenizer."
        )
    return loss_score(log_prob) - loss_score(reference_log_prob)


def zlib_score(log_prob: Tensor, length: int) -> Tensor:
    r"""LOSS relative to the compressed length of the text in bytes.

    Args:
        log_prob: Log-probabilities of the tokens, shape ``(n,)``.
        length: ``len(zlib.compress(text.encode()))``, at the default level.

    Returns:
        A scalar in nats a byte, fp64.

    Raises:
        ValueError: If there is no token, or the length is not positive.

    Example:
        >>> zlib_score(Tensor([-24.0, -72.0]), 48)
        tensor(1., dtype=torch.float64)

    References:
        Carlini et al., Extracting training data from large language models, arXiv:2012.07805.
    """
    if length < 1:
        raise ValueError(f"length must be that of compressed text in bytes, at least 1, but got {length}.")
    return loss_score(log_prob) / length


def min_k(log_prob: Tensor, k: float = 0.4, variant: MinKVariant = "ou", drop_last: bool = False) -> Tensor:
    r"""Min-K%, the mean negative log-likelihood of the least likely tokens.

    Args:
        log_prob: Log-probabilities of the tokens, shape ``(n,)``.
        k: Share of the tokens, in (0, 1].
        variant: ``"ou"``, open-unlearning: of :math:`\max(1, \lfloor kn \rfloor)` tokens. ``"muse"``: of
            :math:`\lfloor kn \rfloor`, which is NaN for a text so short that this is 0.
        drop_last: Leave out the last token, the end of the answer, as open-unlearning does.

    Returns:
        A scalar in nats, fp64.

    Raises:
        ValueError: If no token is left, or ``k`` is not in (0, 1].

    Example:
        >>> min_k(Tensor([-0.1, -2.0, -0.5, -3.0, -0.2]), k=0.4)
        tensor(2.5000, dtype=torch.float64)

    References:
        Shi et al., Detecting pretraining data from large language models, arXiv:2310.16789.
    """
    return _least(_kept(log_prob, drop_last), k, variant)


def min_k_plus_plus(
    log_prob: Tensor,
    mean: Tensor,
    variance: Tensor,
    k: float = 0.4,
    variant: MinKVariant = "ou",
    drop_last: bool = False,
) -> Tensor:
    r"""Min-K%++, Min-K% of normalised log-probabilities.

    .. math:: z_t = (\ell_t - \mu_t) / \sqrt{\max(\sigma_t^2, 10^{-6})}

    Args:
        log_prob: Log-probabilities :math:`\ell` of the tokens, shape ``(n,)``.
        mean: Their means :math:`\mu` under the model's distribution, shape ``(n,)``.
        variance: Their variances :math:`\sigma^2`, shape ``(n,)``.
        k: Share of the tokens, in (0, 1].
        variant: How many tokens that is; see [`min_k`][lightning_unlearn.functional.language.membership.min_k].
        drop_last: Leave out the last token, the end of the answer, as open-unlearning does.

    Returns:
        A scalar, fp64.

    Raises:
        ValueError: If no token is left, or ``k`` is not in (0, 1].

    Example:
        >>> p = Tensor([0.5, 0.25, 0.25]).double()
        >>> mean = (p * p.log()).sum(0, keepdim=True)
        >>> variance = (p * (p.log() - mean) ** 2).sum(0, keepdim=True)
        >>> min_k_plus_plus(p.log()[1:2], mean, variance)
        tensor(1.0000, dtype=torch.float64)

    References:
        Zhang et al., Min-K%++, arXiv:2404.02936.
    """
    log_prob, mean, variance = (_kept(values, drop_last) for values in (log_prob, mean, variance))
    return _least((log_prob - mean) / variance.clamp(min=_VARIANCE_FLOOR).sqrt(), k, variant)


def lower_case_score(log_prob: Tensor, lower_log_prob: Tensor, variant: LowerCaseVariant = "muse") -> Tensor:
    r"""LOSS of a text relative to that of the same text in lower case, each in its own tokens.

    Args:
        log_prob: Log-probabilities of the tokens of the text, shape ``(n,)``.
        lower_log_prob: Those of the text in lower case, shape ``(m,)``.
        variant: ``"muse"``: :math:`L(x) / L(\ell(x))`. ``"soul"``: :math:`-L(\ell(x)) / L(x)`. Both rise with
            :math:`L(x)`, and rank rows alike where all losses are positive.

    Returns:
        A scalar, fp64.

    Raises:
        ValueError: If there is no token, the loss that is divided by is 0, or the variant is unknown.

    Example:
        >>> lower_case_score(Tensor([-1.0]), Tensor([-4.0, -4.0])).item()
        0.25

    References:
        Carlini et al., Extracting training data from large language models, arXiv:2012.07805.
    """
    loss, lower = loss_score(log_prob), loss_score(lower_log_prob)
    if variant not in ("muse", "soul"):
        raise ValueError(f"variant must be 'muse' or 'soul', but got {variant!r}.")
    if float(lower if variant == "muse" else loss) == 0:
        raise ValueError("The loss that is divided by is 0: the model is certain of every token. Take LOSS instead.")
    return loss / lower if variant == "muse" else -lower / loss


def gradient_norm(gradients: Iterable[Tensor], p: float = 2.0, variant: GradientNormVariant = "mean") -> Tensor:
    r"""GradNorm, the norm of the gradient of LOSS in the weights.

    Args:
        gradients: The gradient of each weight tensor, of any shapes.
        p: Order of the norm: 1, 2 or infinity, or another number of at least 1.
        variant: ``"mean"``, open-unlearning: the mean of the norms of the tensors, so that a bias counts as much as a
            matrix. ``"global"``: the norm of all of them as one vector.

    Returns:
        A scalar, fp64.

    Raises:
        ValueError: If there is no tensor, ``p`` is below 1, or the variant is unknown.

    Example:
        >>> gradients = [Tensor([3.0, 4.0]), Tensor([0.0, 0.0, 12.0])]
        >>> gradient_norm(gradients).item(), gradient_norm(gradients, variant="global").item()
        (8.5, 13.0)

    References:
        Wang et al., Pandora's white-box: precise training data detection and extraction in large language models,
        arXiv:2402.17012.
    """
    if variant not in ("mean", "global"):
        raise ValueError(f"variant must be 'mean' or 'global', but got {variant!r}.")
    if p < 1:
        raise ValueError(f"p must be at least 1, but got {p}.")
    norms = [torch.linalg.vector_norm(gradient.detach(), p, dtype=torch.float64).cpu() for gradient in gradients]
    if not norms:
        raise ValueError("There is no gradient to measure. Give that of one weight at least.")
    found = torch.stack(norms)
    return found.mean() if variant == "mean" else torch.linalg.vector_norm(found, p)


def _least(values: Tensor, k: float, variant: MinKVariant) -> Tensor:
    """Mean of the lowest values, negated."""
    if not 0 < k <= 1:
        raise ValueError(f"k must be a share of the tokens in (0, 1], but got {k}.")
    if variant not in ("ou", "muse"):
        raise ValueError(f"variant must be 'ou' or 'muse', but got {variant!r}.")
    count = int(k * len(values))
    if variant == "ou":
        count = max(1, count)
    return -values.sort().values[:count].mean()


def _kept(values: Tensor, drop_last: bool) -> Tensor:
    values = values[:-1] if drop_last else values
    _check(values)
    return values.double()


def _check(values: Tensor) -> None:
    if values.dim() != 1 or not len(values):
        raise ValueError(
            f"A score needs the values of the tokens of one row, at least one, but got shape {tuple(values.shape)}. "
            "Leave rows without a token out."
        )
