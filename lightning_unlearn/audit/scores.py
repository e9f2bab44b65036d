"""Scores of models in result files: our reports, logs of open-unlearning and of TOFU's authors, lm-eval results."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_unlearn.language.eval_logs import read_eval_log
from lightning_unlearn.report.model import SCHEMA, UnlearningReport
from lightning_unlearn.report.sections import Measurement

__all__ = ["KNOWN", "Scores", "read_scores"]

KNOWN: dict[str, tuple[str, str]] = {
    "forget_quality": ("forget quality", "higher"),
    "forget_truth_ratio": ("forget truth ratio (geometric)", "closer to control"),
    "forget_Truth_Ratio": ("forget truth ratio (geometric)", "closer to control"),
    "forget_Q_A_Prob": ("forget probability", "lower"),
    "forget_Q_A_PARA_Prob": ("forget probability, paraphrased answers", "lower"),
    "forget_Q_A_ROUGE": ("forget ROUGE-L (recall)", "lower"),
    "extraction_strength": ("extraction strength (floored)", "lower"),
    "exact_memorization": ("exact memorization", "lower"),
    "privleak": ("PrivLeak", "closer to control"),
    "mia_loss": ("MIA AUC (LOSS)", "closer to control"),
    "mia_zlib": ("MIA AUC (zlib)", "closer to control"),
    "mia_min_k": ("MIA AUC (Min-K)", "closer to control"),
    "mia_min_k_plus_plus": ("MIA AUC (Min-K++)", "closer to control"),
    "mia_reference": ("MIA AUC (reference)", "closer to control"),
    "mia_gradnorm": ("MIA AUC (GradNorm)", "closer to control"),
    "forget_verbmem_ROUGE": ("VerbMem, forget", "lower"),
    "forget_knowmem_ROUGE": ("KnowMem, forget", "lower"),
    "retain_knowmem_ROUGE": ("KnowMem, retain", "higher"),
    "model_utility": ("model utility", "higher"),
    "retain_Q_A_Prob": ("retain probability", "higher"),
    "retain_Q_A_ROUGE": ("retain ROUGE-L (recall)", "higher"),
    "retain_Truth_Ratio": ("retain truth ratio (geometric)", "higher"),
    "ra_Q_A_Prob_normalised": ("real authors probability (normalised)", "higher"),
    "ra_Q_A_ROUGE": ("real authors ROUGE-L (recall)", "higher"),
    "ra_Truth_Ratio": ("real authors truth ratio (geometric)", "higher"),
    "wf_Q_A_Prob_normalised": ("world facts probability (normalised)", "higher"),
    "wf_Q_A_ROUGE": ("world facts ROUGE-L (recall)", "higher"),
    "wf_Truth_Ratio": ("world facts truth ratio (geometric)", "higher"),
    "forget_Q_A_gibberish": ("forget gibberish score", "higher"),
    "wmdp/acc": ("WMDP accuracy", "lower"),
    "wmdp_bio/acc": ("WMDP-Bio accuracy", "lower"),
    "wmdp_chem/acc": ("WMDP-Chem accuracy", "lower"),
    "wmdp_cyber/acc": ("WMDP-Cyber accuracy", "lower"),
    "mmlu/acc": ("MMLU accuracy", "higher"),
}
"""Metrics of open-unlearning: our name with the variant that it computes, and which direction is better."""

_UNREFERENCED = "PrivLeak (against an AUC of 0.5)"
"""What open-unlearning logs as PrivLeak where it was given no log of a retrained model."""

OURS = {("effectiveness", "probability of the answer (geometric mean per token)"): "forget probability"}
"""Measurements of our audits that are metrics of the field under another name."""

_GENERIC = re.compile(
    r"report\.json|(tofu|muse|lmeval)_(summary|eval)\.json|eval_log_aggregated\.json|results(_.*)?\.json", re.IGNORECASE
)
"""Names that files of all models have."""
_LAYOUT = re.compile(r"evals?|eval_results|ds_size\d+", re.IGNORECASE)
"""Folders that runs of all models have."""
_WITHIN = re.compile(r"evals?[-_].+|checkpoint-\d+", re.IGNORECASE)
"""Folders of several evaluations of one model."""
_PLACES = ("", "evals", "evals[-_]*", "eval_results/*")
"""Where the file of a model is in its folder."""
_PATTERNS = ("report.json", "*_SUMMARY.json", "*_EVAL.json", "eval_log_aggregated.json", "results_*.json")


@dataclass(frozen=True)
class Scores:
    """The scores of one model, by the name and variant of the metric.

    Args:
        name: Name of the model or run.
        source: Kind of the file: ``"report"``, ``"open-unlearning"``, ``"tofu"`` or ``"lm-eval"``.
        values: The numbers.
        missing: Why a metric has no number, for those that the file names.
        better: Which direction is better, as far as the file or the field says.
        verdict: The verdict of an audit; ``""`` where there is none.
    """

    name: str
    source: str
    values: dict[str, float]
    missing: dict[str, str] = field(default_factory=dict)
    better: dict[str, str] = field(default_factory=dict)
    verdict: str = ""


def read_scores(path: str | os.PathLike[str], name: str = "") -> Scores:
    """Read the scores of a result file.

    Args:
        path: A ``report.json``; a ``*_SUMMARY.json`` or ``*_EVAL.json`` of open-unlearning; an
            ``eval_log_aggregated.json`` of TOFU's authors; a ``results_*.json`` of lm-evaluation-harness; or the folder
            of a model with one of them, also in its ``evals`` or ``eval_results/*``.
        name: Name of the model. Default: that of the file, or of the model's folder where files have the same name
            everywhere.

    Raises:
        FileNotFoundError: If there is no such file, or the folder has none.
        ValueError: If the file is of another kind.
    """
    path = _file(Path(path))
    name = name or _name(path)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not a JSON file, or a part of one: {error}") from None
    if isinstance(record, dict) and str(record.get("schema", "")).startswith(SCHEMA.rpartition("/")[0]):
        return scores_of(UnlearningReport.read(path), name)
    if isinstance(record, dict) and isinstance(record.get("results"), dict):
        return _renamed(_harness(record), name, "lm-eval")
    try:
        log = read_eval_log(path)
    except ValueError as error:
        raise ValueError(
            f"{path} has no scores that compare reads: it takes reports of this library ({SCHEMA}), logs and summaries "
            f"of open-unlearning, logs of TOFU's authors, and results of lm-evaluation-harness. {error}"
        ) from None
    return _renamed(log.values(), name, log.source)


def scores_of(report: UnlearningReport, name: str) -> Scores:
    """The scores in a report. Metrics of one name in two sections are told apart by the section."""
    found = [(section, _key(section, part), part) for section, part in report.measurements()]
    keys = [key for _, key, _ in found]
    named = [(f"{section}: {key}" if keys.count(key) > 1 else key, part) for section, key, part in found]
    values: dict[str, float] = {}
    for key, part in named:
        if part.value is not None:
            values[key] = part.value / part.n if part.unit == "rows" and part.n else part.value
    return Scores(
        name,
        "report",
        values,
        {key: part.reason for key, part in named if part.value is None},
        {key: part.better for key, part in named if part.better},
        report.headline.word if report.headline else "",
    )


def _key(section: str, part: Measurement) -> str:
    """Name and variant as the field has them; the variant of a p-value is a note on its test, and no definition."""
    if part.name in ("forget quality", "model utility"):
        return part.name
    return OURS.get((section, part.key), part.key)


def _file(path: Path) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"There is no file or folder {path} (looked in {Path.cwd()}).")
    if path.is_file():
        return path
    for place in _PLACES:
        for pattern in _PATTERNS:
            files = sorted(path.glob(f"{place}/{pattern}" if place else pattern))
            if len(files) > 1:
                found = [file.relative_to(path).as_posix() for file in files]
                raise ValueError(f"{path} has several files {pattern}: {found}. Name one.")
            if files:
                return files[0]
    raise FileNotFoundError(f"{path} has none of {', '.join(_PATTERNS)}, nor has evals or eval_results/* in it.")


def _name(path: Path) -> str:
    """Name of the file, or of the folders above it that say which model it is of.

    Example:
        >>> _name(Path("saves/unlearn/NPO/checkpoint-60/evals/TOFU_SUMMARY.json"))
        'NPO/checkpoint-60'
    """
    if not _GENERIC.fullmatch(path.name):
        return path.stem
    kept: list[str] = []
    for folder in path.absolute().parts[-2::-1]:
        if _LAYOUT.fullmatch(folder):
            continue
        kept.insert(0, folder)
        if not _WITHIN.fullmatch(folder):
            break
    return "/".join(kept)


def _harness(record: Mapping[str, Any]) -> dict[str, float | None]:
    """Scores of lm-evaluation-harness under open-unlearning's names: task, slash, metric; a filter is a part of it."""
    found: dict[str, float | None] = {}
    for task, scores in {**record["results"], **(record.get("groups") or {})}.items():
        filtered = any("," in metric for metric in scores)  # since version 0.4, metrics are those with a filter
        for metric, value in scores.items():
            if ("," in metric) == filtered and metric != "alias":
                found[f"{task}/{metric.removesuffix(',none')}"] = value if isinstance(value, (int, float)) else None
    return found


def _renamed(logged: Mapping[str, float | None], name: str, source: str) -> Scores:
    """Numbers under the names of the field."""
    values: dict[str, float] = {}
    missing: dict[str, str] = {}
    better: dict[str, str] = {}
    for metric, value in logged.items():
        key, direction = KNOWN.get(metric, (metric, ""))
        if metric == "privleak" and _unreferenced(value, logged.get("mia_min_k")):
            missing[key] = "compares with an AUC of 0.5 here, and not with a retrained model"
            key = _UNREFERENCED
        better |= {key: direction} if direction else {}
        if value is not None and math.isfinite(value):
            values[key] = value
        else:
            missing[key] = "no number in the file"
    return Scores(name, source, values, missing, better)


def _unreferenced(leak: float | None, area: float | None) -> bool:
    """Whether PrivLeak compares with an AUC of 0.5, and not with that of a retrained model."""
    return leak is not None and area is not None and math.isclose(leak, 100 * (1 - 2 * area), abs_tol=1e-4)
