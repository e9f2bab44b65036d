"""Composite scores of memorisation, privacy and utility."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from lightning_unlearn.core.checks import between
from lightning_unlearn.core.seeds import SeedMetric
from lightning_unlearn.language.metrics.model_utility import harmonic_mean

__all__ = ["Composite", "CompositeResult", "composite"]

_MEMORISATION = ("extraction_strength", "exact_memorization", "paraphrase_probability", "truth_ratio_prob_mean")
_PRIVACY = ("s_loss", "s_zlib", "s_min_k", "s_min_k_plus_plus")
_UTILITY = ("model_utility", "fluency")


class CompositeResult(NamedTuple):
    """Composite scores, each in [0, 1], higher is better. They hide which part failed: show the parts beside them.

    Args:
        memorisation: Harmonic mean of one minus each measure of memorisation.
        privacy: Harmonic mean of the closeness of membership attacks to those on the retrained model.
        utility: Harmonic mean of model utility and fluency.
        overall: Harmonic mean of the three.
    """

    memorisation: float
    privacy: float
    utility: float
    overall: float


def composite(parts: Mapping[str, float]) -> CompositeResult:
    r"""Composite scores in the style of open-unlearning's paper.

    $$\mathrm{Mem} = \mathrm{HM}(1 - \mathrm{ES}, 1 - \mathrm{EM}, 1 - p(\tilde a), 1 - \mathrm{TR}), \qquad
      \mathrm{Privacy} = \mathrm{HM}(s_{\mathrm{LOSS}}, s_{\mathrm{zlib}}, s_{\mathrm{MinK}}, s_{\mathrm{MinK++}})$$

    Args:
        parts: ``extraction_strength``, ``exact_memorization``, ``paraphrase_probability`` and
            ``truth_ratio_prob_mean`` of the forget rows; ``s_loss``, ``s_zlib``, ``s_min_k`` and ``s_min_k_plus_plus``
            (see [`s_mia`][lightning_unlearn.functional.language.privacy.s_mia]); ``model_utility`` and ``fluency``,
            each relative to the original or retrained model where values above it should not count. All in [0, 1].

    Raises:
        ValueError: If a part is missing or unknown, or not in [0, 1].

    Example:
        >>> names = ("extraction_strength", "exact_memorization", "paraphrase_probability", "truth_ratio_prob_mean")
        >>> others = ("s_loss", "s_zlib", "s_min_k", "s_min_k_plus_plus", "model_utility", "fluency")
        >>> composite({**dict.fromkeys(names, 0.5), **dict.fromkeys(others, 0.5)}).overall
        0.5

    References:
        Dorna et al., *OpenUnlearning*, arXiv:2506.12618.
    """
    wanted = {*_MEMORISATION, *_PRIVACY, *_UTILITY}
    if set(parts) != wanted:
        raise ValueError(
            f"The parts {sorted(wanted - set(parts))} are missing and {sorted(set(parts) - wanted)} are unknown."
        )
    for name, value in parts.items():
        between(name, value, 0, 1)
    memorisation = harmonic_mean(1 - parts[name] for name in _MEMORISATION)
    privacy = harmonic_mean(parts[name] for name in _PRIVACY)
    utility = harmonic_mean(parts[name] for name in _UTILITY)
    return CompositeResult(memorisation, privacy, utility, harmonic_mean([memorisation, privacy, utility]))


class Composite(SeedMetric):
    """The overall composite score over seeds, with a Student confidence interval; see `composite`.

    In [0, 1]; higher is better. With several processes, update each seed on one of them only.

    Args:
        level: Level of the confidence interval, in (0, 1).

    Raises:
        ValueError: If a part is missing, unknown or out of range.
        ImportError: If scipy is missing and there is more than one seed; raised by ``compute``.
    """

    higher_is_better: bool | None = True

    def __init__(self, level: float = 0.95, **kwargs: Any) -> None:
        super().__init__(level, **kwargs)

    def update(self, parts: Mapping[str, float]) -> None:
        """Count the parts of one seed."""
        self.add(composite(parts).overall)
