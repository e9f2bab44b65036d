"""Published results of UnlearnCanvas, by method."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["ATTACKED", "PAIRS", "RESULTS", "SOURCE", "Attacked", "Erased", "Pair", "published_name"]

SOURCE = (
    "Zhang et al., UnlearnCanvas: Stylized Image Dataset for Enhanced Machine Unlearning Evaluation in Diffusion "
    "Models, NeurIPS 2024 Datasets and Benchmarks, arXiv:2402.11846; as printed on the authors' poster: table 2 "
    "(erasure, cost), table 3 (pairs), figure 6 (attacks)"
)


class Erased(NamedTuple):
    """Means over 50 styles and over 20 objects, in percent, and the cost of a request."""

    style_ua: float
    style_ira: float
    style_cra: float
    object_ua: float
    object_ira: float
    object_cra: float
    fid: float
    """Of retained images; its features are torchvision's Inception-v3, so that other FIDs do not compare."""
    seconds: float
    memory_gb: float
    storage_gb: float

    def shares(self, kind: str) -> dict[str, float]:
        """UA, IRA and CRA of styles or objects, in [0, 1]."""
        return {name: getattr(self, f"{kind}_{name.lower()}") / 100 for name in ("UA", "IRA", "CRA")}


class Attacked(NamedTuple):
    """UA in percent without and with adversarial prompts, by the judge of the base model."""

    style_clean: float
    style_attacked: float
    object_clean: float
    object_attacked: float


class Pair(NamedTuple):
    """Means over pairs of a style and an object, in percent."""

    ua: float
    sc: float
    oc: float
    up: float


RESULTS = {
    "ESD": Erased(98.58, 80.97, 93.96, 92.15, 55.78, 44.23, 65.55, 6163, 17.8, 4.3),
    "FMN": Erased(88.48, 56.77, 46.60, 45.64, 90.63, 73.46, 131.37, 350, 17.9, 4.2),
    "UCE": Erased(98.40, 60.22, 47.71, 94.31, 39.35, 34.67, 182.01, 434, 5.1, 1.7),
    "CA": Erased(60.82, 96.01, 92.70, 46.67, 90.11, 81.97, 54.21, 734, 10.1, 4.2),
    "SalUn": Erased(86.26, 90.39, 95.08, 86.91, 96.35, 99.59, 61.05, 667, 30.8, 4.0),
    "SEOT": Erased(56.90, 94.68, 84.31, 23.25, 95.57, 82.71, 62.38, 95, 7.34, 0.0),
    "SPM": Erased(60.94, 92.39, 84.33, 71.25, 90.79, 81.65, 59.79, 29700, 6.9, 0.0),
    "EDiff": Erased(92.42, 73.91, 98.93, 86.67, 94.03, 48.48, 81.42, 1567, 27.8, 4.0),
    "SHS": Erased(95.84, 80.42, 43.27, 80.73, 81.15, 67.99, 119.34, 1223, 31.2, 4.0),
}
"""Erasure of a style or an object."""

ATTACKED = {
    "ESD": Attacked(98.6, 57.2, 92.2, 64.3),
    "FMN": Attacked(88.5, 50.0, 45.6, 31.3),
    "UCE": Attacked(98.4, 32.6, 94.3, 46.9),
    "CA": Attacked(60.8, 28.9, 46.7, 22.4),
    "SalUn": Attacked(86.3, 45.1, 86.9, 49.8),
    "SPM": Attacked(60.9, 29.8, 71.2, 43.2),
    "EDiff": Attacked(92.4, 47.5, 86.7, 51.5),
    "SHS": Attacked(95.8, 35.2, 80.7, 38.4),
}
"""Erasure under UnlearnDiffAtk. The labels of SEOT's bars can't be read on the poster."""

PAIRS = {
    "ESD": Pair(91.42, 4.88, 14.72, 84.38),
    "FMN": Pair(45.37, 68.73, 62.74, 83.25),
    "UCE": Pair(75.97, 4.53, 5.72, 35.42),
    "CA": Pair(47.92, 10.08, 56.35, 81.54),
    "SalUn": Pair(42.21, 62.45, 70.93, 87.28),
    "SEOT": Pair(29.32, 45.31, 53.64, 85.45),
    "SPM": Pair(45.72, 41.34, 36.32, 67.82),
    "EDiff": Pair(71.33, 35.23, 26.32, 51.52),
    "SHS": Pair(55.32, 14.34, 24.32, 83.95),
}
"""Erasure of a pair of a style and an object. Prompts, seeds and the test of a right image are not published."""

_NAMES = {
    "conceptablation": "CA",
    "erasediff": "EDiff",
    "forgetmenot": "FMN",
    "scissorhands": "SHS",
    "esd-x": "ESD",
}


def published_name(method: str) -> str | None:
    """The name under which a method is published; ``None`` if it is not among them.

    Example:
        >>> published_name("Forget-Me-Not"), published_name("SalUn"), published_name("MACE")
        ('FMN', 'SalUn', None)
    """
    known = {name.lower(): name for name in RESULTS}
    plain = method.lower()
    return known.get(plain) or _NAMES.get(plain) or _NAMES.get(plain.replace(" ", "").replace("-", ""))
