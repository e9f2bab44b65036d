"""Model card of an unlearned model, with the verdict and the record's head."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_unlearn.audit.gates import GATES, GateResult
from lightning_unlearn.audit.record import Head
from lightning_unlearn.audit.verdict import Verdict
from lightning_unlearn.report.model import UnlearningReport

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCard

__all__ = ["model_card", "report_card"]

_BEGIN, _END = "<!-- lightning-unlearn: begin -->", "<!-- lightning-unlearn: end -->"
_TAGS = ("unlearning", "machine-unlearning")
_KAPPA = "kappa"


def model_card(
    verdict: Verdict,
    model_name: str,
    head: Head | None = None,
    key_id: str | None = None,
    content_hash: str | None = None,
    *,
    base_model: str | None = None,
    license: str | None = None,
    language: str | None = None,
    existing: str | os.PathLike[str] | None = None,
) -> ModelCard:
    """Write the verdict of an audit into a model card of Hugging Face.

    The card has one evaluation result for each test, and the head of the record: with it, a cut record is found out. It
    has no row, no name and no text that was to be forgotten; the data set of the results is called ``private``. Nothing
    is sent anywhere.

    Args:
        verdict: The verdict.
        model_name: Name of the model in the evaluation results.
        head: Last entry of the record.
        key_id: Id of the key that the record is signed with.
        content_hash: Hash of the model's weights.
        base_model: Id of the model that it was made from.
        license: License of the model.
        language: Language of the model, such as ``"en"``.
        existing: ``README.md`` to add to: its metadata and text are kept, and only what an earlier call has written is
            replaced.

    Returns:
        The card; ``card.save("out/model/README.md")`` writes it.

    Raises:
        ValueError: If the metadata of the existing card can't be read, or one of the two marks around our part is gone.
        ImportError: If huggingface_hub is missing.
    """
    results = [_result(gate) for gate in verdict.evidence.gates if gate.kappa is not None]
    summary = _summary(verdict.name, verdict.rule, head, key_id, content_hash)
    given = {"base_model": base_model, "license": license, "language": language}
    return _card(existing, model_name, given, summary, results, _text(verdict, head, content_hash))


def report_card(
    report: UnlearningReport,
    model_name: str,
    head: Head | None = None,
    key_id: str | None = None,
    content_hash: str | None = None,
    *,
    base_model: str | None = None,
    license: str | None = None,
    language: str | None = None,
    existing: str | os.PathLike[str] | None = None,
) -> ModelCard:
    """Write the headline of a report into a model card, for models whose verdict is not that of an audit.

    Args:
        report: The report, with a headline.
        model_name: Name of the model.
        head: Last entry of the record.
        key_id: Id of the key that the record is signed with.
        content_hash: Hash of the model's weights.
        base_model: Id of the model that it was made from.
        license: License of the model.
        language: Language of the model.
        existing: ``README.md`` to add to, as for `model_card`.

    Raises:
        ValueError: If the report has no headline, or the existing card can't be read.
        ImportError: If huggingface_hub is missing.
    """
    headline = report.headline
    if headline is None:
        raise ValueError(f"The report {report.title!r} has no headline, so there is nothing to write into a card.")
    lines = ["## Unlearning", "", f"**{headline.summary}**", ""]
    lines += [f"- {line}" for line in (*headline.reasons, *headline.advice, *report.limits)]
    summary = _summary(headline.word, None, head, key_id, content_hash)
    given = {"base_model": base_model, "license": license, "language": language}
    return _card(existing, model_name, given, summary, [], _block(lines, head, content_hash))


def _card(
    existing: str | os.PathLike[str] | None,
    model_name: str,
    given: dict[str, str | None],
    summary: dict[str, Any],
    results: list[EvalResult],
    block: str,
) -> ModelCard:
    """A card with the block and the results, and all that the existing one has of others."""
    try:
        from huggingface_hub import ModelCard, ModelCardData
    except ImportError:
        raise ImportError('Model cards need huggingface_hub: pip install "lightning-unlearn[record]"') from None
    there = existing is not None and Path(existing).exists()
    text = Path(existing).read_text(encoding="utf-8") if existing is not None and there else "---\n{}\n---\n"
    try:
        old = ModelCard(text if text.lstrip().startswith("---") else f"---\n{{}}\n---\n\n{text}")
    except Exception as error:  # a YAML error, or one of huggingface_hub
        raise ValueError(f"The metadata of {existing} can't be read: {error}. Mend or remove the file.") from None
    before: Any = old.data
    data: dict[str, Any] = {key: value for key, value in before.to_dict().items() if key != "model-index"}
    others = [result for result in before.eval_results or [] if result.metric_type != _KAPPA]
    data |= {key: value for key, value in given.items() if value is not None}
    data["tags"] = list(dict.fromkeys([*(data.get("tags") or []), *_TAGS]))
    data["unlearning"] = summary
    named = before.model_name if others else None
    if others or results:
        data |= {"eval_results": [*others, *results], "model_name": named or model_name}
    body = _merged(old.text, block, existing)
    return ModelCard(f"---\n{ModelCardData(**data).to_yaml()}\n---\n{body}")


def _summary(
    word: str, rule: str | None, head: Head | None, key_id: str | None, content_hash: str | None
) -> dict[str, Any]:
    fields = {
        "verdict": word,
        "rule": rule,
        "record_head": None if head is None else str(head),
        "key_id": key_id,
        "content_hash": content_hash,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _result(gate: GateResult) -> EvalResult:
    from huggingface_hub import EvalResult

    arguments = {
        "lower": gate.kappa_lower,
        "upper": gate.kappa_upper,
        "alpha": round(1 - gate.level, 12),
        "sided": "one",
        "interval": gate.method,
        "n": gate.n,
        "original": gate.original,
        "control": gate.control,
        "unlearned": gate.unlearned,
        "d": gate.small.threshold,
        "established": gate.passed,
    }
    return EvalResult(
        task_type="text-generation",
        task_name=GATES.get(gate.gate, gate.gate),
        dataset_type="private",
        dataset_name="private rows to forget",
        dataset_config=gate.gate,
        metric_type=_KAPPA,
        metric_name=f"kappa, {gate.name}",
        metric_value=gate.kappa,
        metric_config=gate.variant or None,
        metric_args={name: value for name, value in arguments.items() if value is not None} | {"score": gate.score},
    )


def _text(verdict: Verdict, head: Head | None, content_hash: str | None) -> str:
    lines = ["## Unlearning", "", f"**{verdict.headline}**", "", verdict.action, ""]
    lines += ["| test | score | kappa | probes | at most d |", "|---|---|---|---|---|"]
    lines += [_row(gate, verdict) for gate in verdict.evidence.gates]
    lines += [
        "",
        "Kappa is (unlearned − control) / (original − control) of a score of knowledge: 0 is as if never seen, 1 is "
        f"untouched. The bounds are one-sided, at {verdict.thresholds.level:.0%}. The threshold d is "
        f"{verdict.thresholds.d:g}. No row is shown here.",
    ]
    if verdict.not_run:
        lines += ["", "Tests that were not run or are inconclusive:", ""]
        lines += [f"- {name}: {reason}" for name, reason in verdict.not_run.items()]
    lines += ["", *(f"- {note}" for note in (*verdict.notes, *verdict.limits))]
    return _block(lines, head, content_hash)


def _block(lines: list[str], head: Head | None, content_hash: str | None) -> str:
    """Our part of the text, between its two marks."""
    lines = list(lines)
    if head is not None:
        check = f"lightning-unlearn verify-record --record R --public_key K --model . --expect_head {head}"
        lines += ["", f"Record: entry {head.seq}, `{head.hash}`. Check it with", "", "```bash", check, "```"]
    if content_hash is not None:
        lines += ["", f"Weights: `{content_hash}`."]
    return "\n".join([_BEGIN, *lines, _END])


def _row(gate: GateResult, verdict: Verdict) -> str:
    if gate.kappa is None:
        kappa = "undefined"
    elif gate.kappa_lower is None or gate.kappa_upper is None:
        kappa = f"{gate.kappa:.3f}"
    else:
        kappa = f"{gate.kappa:.3f} [{gate.kappa_lower:.3f}, {gate.kappa_upper:.3f}]"
    name = f"{gate.gate} ({gate.variant})" if gate.variant else gate.gate
    outcome = "inconclusive" if gate.name in verdict.not_run else "yes" if gate.passed else "not established"
    return f"| {name} | {gate.score} | {kappa} | {gate.n} | {outcome} |"


def _merged(text: str, block: str, existing: Any) -> str:
    """The text of the old card with the block in place of the old one, or at its end."""
    marks = text.count(_BEGIN), text.count(_END)
    if marks == (0, 0):
        return f"{text.rstrip()}\n\n{block}\n" if text.strip() else f"\n{block}\n"
    if marks != (1, 1) or text.index(_BEGIN) > text.index(_END):
        raise ValueError(
            f"{existing} must have {_BEGIN} and {_END} once each, or neither. Remove what is left of them."
        )
    return re.sub(re.escape(_BEGIN) + ".*?" + re.escape(_END), lambda _: block, text, flags=re.DOTALL)
