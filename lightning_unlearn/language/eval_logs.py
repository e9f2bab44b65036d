"""Evaluation logs in the formats of open-unlearning and of TOFU's authors."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_unlearn.core.files import write_text
from lightning_unlearn.functional.language.truth_ratio import truth_ratio_score
from lightning_unlearn.language.metrics.model_utility import harmonic_mean
from lightning_unlearn.language.metrics.probability import normalised_probability

__all__ = ["UTILITY_METRICS", "EvalLog", "LoggedMetric", "logged_rows", "read_eval_log", "write_eval_log"]

Source = Literal["open-unlearning", "tofu"]

UTILITY_METRICS = (
    *("retain_Q_A_Prob", "retain_Q_A_ROUGE", "retain_Truth_Ratio"),
    *("ra_Q_A_Prob_normalised", "ra_Q_A_ROUGE", "ra_Truth_Ratio"),
    *("wf_Q_A_Prob_normalised", "wf_Q_A_ROUGE", "wf_Truth_Ratio"),
)
"""Names in open-unlearning's logs of the nine columns of model utility."""

_TOFU = {  # file in the authors' log: name of the set in open-unlearning's, whether it has options
    "eval_log.json": ("retain", False),
    "eval_real_author_wo_options.json": ("ra", True),
    "eval_real_world_wo_options.json": ("wf", True),
    "eval_log_forget.json": ("forget", False),
}


_NOT_MEASURED = "N/A"
"""What lm-evaluation-harness writes for a standard error that it has not computed."""


@dataclass(frozen=True)
class LoggedMetric:
    """A metric of a log.

    Args:
        value: The number of the set; ``None`` where it could not be computed, as forget quality without a retrained
            model.
        rows: By index what is kept of each row, such as ``{"prob": 0.9, "avg_loss": 0.1}``.
        parts: Metrics within it: ``"forget"`` and ``"holdout"`` of a membership attack.
    """

    value: float | None = None
    rows: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    parts: Mapping[str, LoggedMetric] = field(default_factory=dict)

    def index(self, name: str) -> list[int]:
        """The rows that have a number."""
        return sorted(index for index, row in self.rows.items() if row.get(name) is not None)

    def column(self, name: str, index: Sequence[int] | None = None) -> Tensor:
        """One number, or a list of them, of every row that has it, in the order of the index.

        Args:
            name: Name of the number.
            index: Some of these rows; by default all.

        Returns:
            Shape ``(N,)``, or ``(N, W)`` with NaN where a row has fewer; fp64.

        Raises:
            KeyError: If no row has it.
        """
        found = [self.rows[number][name] for number in (self.index(name) if index is None else index)]
        if not found:
            raise KeyError(f"No row has {name!r}; the first has {sorted(next(iter(self.rows.values()), {}))}.")
        if not isinstance(found[0], (list, tuple)):
            return torch.tensor(found, dtype=torch.float64)
        table = torch.full((len(found), max(map(len, found))), torch.nan, dtype=torch.float64)
        for line, values in zip(table, found, strict=True):
            line[: len(values)] = torch.tensor(values, dtype=torch.float64)
        return table

    def texts(self, name: str) -> list[str]:
        """A text of every row, in the order of the index."""
        return [str(row[name]) for _, row in sorted(self.rows.items())]


@dataclass(frozen=True)
class EvalLog:
    """An evaluation log under open-unlearning's names of metrics, such as ``forget_Q_A_Prob`` or ``mia_min_k``.

    Args:
        metrics: The metrics by name.
        source: Format of the file that it is from; it decides on what is added to denominators.
    """

    metrics: Mapping[str, LoggedMetric]
    source: Source = "open-unlearning"

    @property
    def epsilon(self) -> float:
        """What the writer of the log adds to denominators."""
        return 1e-10 if self.source == "open-unlearning" else 0.0

    def values(self) -> dict[str, float | None]:
        """The number of each metric."""
        return {name: metric.value for name, metric in self.metrics.items()}


def logged_rows(
    columns: Mapping[str, Tensor | Sequence[Any]],
    index: Iterable[int] | Tensor | None = None,
    value: float | None = None,
    of: str | None = None,
) -> LoggedMetric:
    """A metric to log, of its columns.

    Args:
        columns: By name a number, a list or a text of each row; ``"score"`` for metrics of one number, ``"prob"`` and
            ``"avg_loss"`` for probabilities.
        index: Numbers of the rows; by default 0, 1, 2, ...
        value: The number of the set.
        of: The column whose mean is the number of the set, where ``value`` is not given.

    Raises:
        ValueError: If columns differ in length, or an index comes twice.

    Example:
        >>> logged_rows({"prob": torch.tensor([0.5, 1.0])}, of="prob").value
        0.75
    """
    lists = {name: c.tolist() if isinstance(c, Tensor) else list(c) for name, c in columns.items()}
    count = len(next(iter(lists.values()), []))
    numbers = list(range(count)) if index is None else [int(number) for number in index]
    lengths = {name: len(values) for name, values in lists.items()}
    if set(lengths.values()) - {len(numbers)} or len(set(numbers)) < len(numbers):
        raise ValueError(f"Each row needs one index and one value of each column, but got {lengths} for {numbers}.")
    if value is None and of is not None:
        value = float(torch.tensor(lists[of], dtype=torch.float64).mean())
    rows = {number: {name: lists[name][i] for name in lists} for i, number in enumerate(numbers)}
    return LoggedMetric(value, rows)


def read_eval_log(path: str | os.PathLike[str]) -> EvalLog:
    """Read a log of open-unlearning (``*_EVAL.json`` or ``*_SUMMARY.json``) or of TOFU's authors.

    TOFU's authors log losses and texts of each row, but no metric of a set; metrics are means of the stored values, as
    in the authors' script. Rows keep the sum of losses and the number of tokens, as ``"loss"`` and ``"tokens"``.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no JSON, or of neither format.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path} (looked in {Path.cwd()}).")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file: {error}.") from None
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path} has no metrics: a log is a JSON object of metrics.")
    if set(content) <= set(_TOFU):
        return _from_tofu(content, path)
    return EvalLog({name: _metric(value, name, path) for name, value in content.items()})


def write_eval_log(path: str | os.PathLike[str], log: EvalLog, summary: bool = False) -> None:
    """Write a log as open-unlearning does, so that its scripts read it as the log of a retrained model.

    Args:
        path: The file, ``TOFU_EVAL.json`` or ``MUSE_EVAL.json`` there; replaced in one step.
        log: The log. NaN is written as null.
        summary: Write the numbers of the sets alone (``*_SUMMARY.json``), without those that are missing.
    """
    if summary:
        content: dict[str, Any] = {name: value for name, value in log.values().items() if value is not None}
    else:
        content = {name: _plain(metric) for name, metric in log.metrics.items()}
    write_text(path, json.dumps(_without_nan(dict(sorted(content.items()))), indent=4, allow_nan=False) + "\n")


def _metric(content: Any, name: str, path: Path) -> LoggedMetric:
    if content is None or isinstance(content, (int, float)) or content == _NOT_MEASURED:
        return LoggedMetric(None if content == _NOT_MEASURED else _number(content))
    if not isinstance(content, dict) or "agg_value" not in content:
        raise ValueError(
            f"{path} is no evaluation log: {name!r} has no 'agg_value'. Wanted are logs of open-unlearning "
            "(TOFU_EVAL.json, MUSE_EVAL.json, their summaries, LMEval_SUMMARY.json) or of TOFU "
            "(eval_log_aggregated.json)."
        )
    rows = {int(index): row or {} for index, row in (content.get("value_by_index") or {}).items()}
    parts = {
        part: _metric(inner, f"{name}.{part}", path)
        for part, inner in content.items()
        if isinstance(inner, dict) and "agg_value" in inner
    }
    return LoggedMetric(_number(content["agg_value"]), rows, parts)


def _plain(metric: LoggedMetric) -> dict[str, Any]:
    content: dict[str, Any] = {name: _plain(part) for name, part in metric.parts.items()}
    if metric.parts:
        content["auc"] = metric.value
    content["agg_value"] = metric.value
    if metric.rows:
        content["value_by_index"] = {str(index): dict(row) for index, row in sorted(metric.rows.items())}
    return content


def _without_nan(content: Any) -> Any:
    if isinstance(content, dict):
        return {name: _without_nan(value) for name, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_without_nan(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def _number(value: Any) -> float | None:
    return None if value is None or math.isnan(value) else float(value)


def _from_tofu(content: Mapping[str, Any], path: Path) -> EvalLog:
    """The authors' log under open-unlearning's names."""
    metrics: dict[str, LoggedMetric] = {}
    for file, columns in content.items():
        try:
            metrics |= _tofu_set(*_TOFU[file], columns)
        except KeyError as error:
            raise ValueError(f"{path} lacks the column {error} of {file!r}.") from None
    values = [metrics[name].value for name in UTILITY_METRICS if name in metrics]
    if len(values) == len(UTILITY_METRICS):
        metrics["model_utility"] = LoggedMetric(harmonic_mean(value for value in values if value is not None))
    return EvalLog(metrics, "tofu")


def _tofu_set(name: str, options: bool, columns: Mapping[str, Mapping[str, Any]]) -> dict[str, LoggedMetric]:
    index = sorted(map(int, columns["avg_gt_loss"]))

    def listed(column: str) -> list[Any]:
        return [columns[column][str(number)] for number in index]

    def losses(average: str, total: str, tokens: str) -> LoggedMetric:
        means = torch.tensor(listed(average), dtype=torch.float64)
        kept = {"prob": (-means).exp().tolist(), "avg_loss": means.tolist()}
        kept |= {"loss": listed(total), "tokens": listed(tokens)}
        return logged_rows(kept, index, float((-means).exp().mean()))

    texts = [dict(zip(("input", "generation", "ground_truth"), row, strict=True)) for row in listed("generated_text")]
    rouge = {kind: listed(kind) for kind in ("rouge1_recall", "rougeL_recall")}
    rouge |= {key: [row[key] for row in texts] for key in ("input", "ground_truth", "generation")}
    found = {
        f"{name}_Q_A_Prob": losses("avg_gt_loss", "gt_loss", "num_token_gt"),
        f"{name}_Q_A_PERT_Prob": losses("average_perturb_loss", "perturb_loss", "num_token_perturb"),
        f"{name}_Q_A_ROUGE": logged_rows(rouge, index, of="rougeL_recall"),
    }
    # Of sets without paraphrases it is the answer itself, in a pass of its own: in bf16 that gives another loss.
    paraphrased = losses("avg_paraphrased_loss", "paraphrased_loss", "num_token_paraphrased")
    found[f"{name}_Q_A_PARA_Prob"] = paraphrased
    right, wrong = -paraphrased.column("avg_loss"), -found[f"{name}_Q_A_PERT_Prob"].column("avg_loss")
    kind: Literal["forget", "retain"] = "forget" if name == "forget" else "retain"
    ratio = float(truth_ratio_score(right, wrong, kind, epsilon=0).mean())
    found[f"{name}_truth_ratio" if kind == "forget" else f"{name}_Truth_Ratio"] = logged_rows(
        {"score": listed("truth_ratio")}, index, ratio
    )
    if options:
        losses_given = torch.tensor(listed("normalized_gt_loss"), dtype=torch.float64)
        answers = found[f"{name}_Q_A_Prob"].column("prob")
        share = normalised_probability(answers, wrong.exp(), epsilon=0)
        found[f"{name}_Q_A_Prob_normalised"] = logged_rows({"prob": (-losses_given).exp()}, index, float(share.mean()))
    return found
