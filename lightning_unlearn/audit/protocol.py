"""Protocol of an audit: the same stresses on all models, tests, verdict, report and record."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import torch

from lightning_unlearn.audit.changes import weight_changes
from lightning_unlearn.audit.collect import Collector, Conditions
from lightning_unlearn.audit.conversations import Conversations, open_judge, rated_conversations
from lightning_unlearn.audit.data import AuditData, read_audit_data
from lightning_unlearn.audit.depth import Depth
from lightning_unlearn.audit.entries import model_entry, report_entry, verdict_entry
from lightning_unlearn.audit.evidence import CONTROLS, Control
from lightning_unlearn.audit.findings import Findings, findings_of
from lightning_unlearn.audit.hashes import rows_root
from lightning_unlearn.audit.keys import load_private_key, password_for
from lightning_unlearn.audit.models import AuditedModel, check_control
from lightning_unlearn.audit.parts import Parts
from lightning_unlearn.audit.precision import Precision, resolved
from lightning_unlearn.audit.record import AuditRecord
from lightning_unlearn.audit.sections import sections_of
from lightning_unlearn.audit.verdict import Verdict
from lightning_unlearn.core.checks import one_of
from lightning_unlearn.core.distributed import rank
from lightning_unlearn.dialogue.calibration import Calibration
from lightning_unlearn.dialogue.rating import RatesDialogues
from lightning_unlearn.language.causal_lm import DType, LitCausalLM
from lightning_unlearn.report.model import Headline, UnlearningReport
from lightning_unlearn.report.sections import Cell
from lightning_unlearn.report.write import write_report

__all__ = ["AuditResult", "run_audit"]

_TONES = {
    "forgotten": "good",
    "suppressed but recoverable": "warning",
    "partly forgotten": "warning",
    "not forgotten": "bad",
    "damaged": "bad",
}
_TERMS = {
    "kappa": "Where the unlearned model's score lies between the control's (0, as if never seen) and the original's "
    "(1, untouched), all three under the same attack.",
    "extraction strength": "Share of an answer, counted from its end, that a model completes greedily from the rest.",
    "right answers": "The model's own greedy answer contains an accepted answer as whole words.",
    "gate": "A test of the verdict. Forgotten requires that all pass; recoverable, that one fails, corrected for their "
    "number.",
}


@dataclass(frozen=True)
class AuditResult:
    """Outcome of an audit.

    Args:
        verdict: What it concludes.
        report: The evidence.
        folder: Where ``report.json``, ``report.md`` and ``report.html`` are, and ``record.jsonl`` with a key.
    """

    verdict: Verdict
    report: UnlearningReport
    folder: Path


def run_audit(
    original: Any,
    unlearned: Any,
    data: AuditData | str | os.PathLike[str] | dict[str, Any],
    output_dir: str | os.PathLike[str] = "runs/audit",
    retrained: Any = None,
    control: Control | None = None,
    depth: Depth = "default",
    seed: int = 0,
    precision: Precision = "auto",
    device: str | None = None,
    show_text: bool = False,
    key: str | os.PathLike[str] | None = None,
    anchors: str | os.PathLike[str] | None = None,
    judge: RatesDialogues | str | os.PathLike[str] | None = None,
    calibration: Calibration | str | os.PathLike[str] | None = None,
) -> AuditResult:
    """Audit an unlearned model: what is left of the forget rows, how it comes back, and what else was lost.

    The original, the control and the unlearned model are asked the same questions under the same stresses, one model in
    memory at a time. Every part is kept in ``<output_dir>/parts``: an audit that was killed goes on where it was.
    Under ``torch.distributed``, every process calls this; they share the rows, and the first one writes.

    Args:
        original: The model before unlearning, whatever [`LitCausalLM`][lightning_unlearn.LitCausalLM] opens: a folder,
            hub id, GGUF file, adapter or checkpoint; or a live module.
        unlearned: The model after it.
        data: The rows, see [`read_audit_data`][lightning_unlearn.read_audit_data].
        output_dir: Folder to write.
        retrained: The control model: one that was trained without the forget rows.
        control: ``"retrained"``, the default with such a model; ``"base"`` where it is the base model, which was never
            tuned on the rows; ``"matched rows"``, the default with never-seen rows and without a control model; or
            ``"none"``.
        depth: ``"quick"``, ``"default"`` or ``"full"``; the cost of each is printed before the first part.
        seed: Seed of all draws.
        precision: ``"32"``; ``"bf16"`` for forward passes in half precision; or ``"auto"``: what the folder's audit was
            begun in, else bf16 where the device is at least 1.5 times as fast in it.
        device: Such as ``"cuda:1"``; by default a GPU if there is one.
        show_text: Whether the report shows questions and answers of forget rows, in place of hashes and lengths.
        key: PEM file of a private Ed25519 key, which signs a record of the audit.
        anchors: Output folder of an audit of another unlearned model with the same original, control and rows. What it
            measured of these two is taken over where it was asked for under the same conditions.
        judge: Another language model, which rates conversations of all models: a judge, or a folder, hub id or GGUF
            file that [`DialogueJudge`][lightning_unlearn.DialogueJudge] opens, in the audit's precision. By default
            conversations are not rated.
        calibration: The judge's calibration, the file of one, or rated dialogues (``.jsonl``) that it is fitted to.

    Raises:
        FileNotFoundError: If a model, the data, the key, the anchors, or rows.secret of the folder's audit is not
            there.
        FileExistsError: If ``output_dir`` has another audit.
        ValueError: If rows are missing or malformed, the control does not fit what is given or is one of the other
            models, an option is unknown, the tokenizers of the models differ, or the judge is one of the models or not
            trusted.
    """
    one_of("depth", depth, Depth)
    one_of("precision", precision, Precision)
    rows = data if isinstance(data, AuditData) else read_audit_data(data, seed=seed)
    kind = control_of(control, retrained, rows)
    signer = load_private_key(key, password_for(key)) if key is not None else None
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    folder, parts = Path(output_dir), Parts(output_dir, anchors)
    used = resolved(precision, place, parts.only("facts", "precision"))
    dtype: DType = "bfloat16" if used == "bf16" else "float32"
    sources = {"original": original, "control": retrained, "unlearned": unlearned}
    models = [AuditedModel(role, source, dtype) for role, source in sources.items() if source is not None]  # type: ignore[arg-type]
    _check_places(models)
    check_control(models)
    conditions = Conditions(depth, kind == "matched rows", seed, used, place, show_text)
    collector = Collector(models, rows, conditions, parts, _say)
    parts.claim(_claim(models, collector.rows, kind))
    asked = open_judge(judge, calibration, seed, place, dtype)
    collected = collector.collect()
    talk = (
        None if asked is None else rated_conversations(asked, models, rows, conditions, parts, collector.prompt, _say)
    )
    findings = findings_of(collected, rows, kind)
    report = report_of(findings, models, rows, conditions, talk)
    if rank() == 0:
        write_report(report, folder, show_text)
        if signer is not None:
            _record(folder, models, rows, findings.verdict, signer, parts.secret)
    return AuditResult(findings.verdict, report, folder)


def control_of(control: Control | None, retrained: Any, data: AuditData) -> Control:
    """The kind of the control.

    Raises:
        ValueError: If it does not fit what is given.
    """
    if control is None:
        return "retrained" if retrained is not None else "matched rows" if data.never_seen else "none"
    one_of("control", control, get_args(Control))
    needs_model = control in ("retrained", "base")
    if needs_model != (retrained is not None):
        raise ValueError(
            f"The control {control!r} {'needs' if needs_model else 'takes'} {'a' if needs_model else 'no'} control "
            f"model, but retrained={retrained!r}."
        )
    if control == "matched rows" and not data.never_seen:
        raise ValueError(
            f"The control 'matched rows' needs rows that no model has seen, but {data.source} has no never_seen set."
        )
    return control


def report_of(
    findings: Findings,
    models: list[AuditedModel],
    data: AuditData,
    conditions: Conditions,
    conversations: Conversations | None = None,
) -> UnlearningReport:
    """The report of an audit.

    Args:
        findings: Its findings.
        models: The models.
        data: The rows.
        conditions: How they were measured.
        conversations: Rated conversations of the models, where there is a judge.
    """
    verdict, collected = findings.verdict, findings.collected
    control = verdict.evidence.control
    names = {f"{model.role} model": model.name for model in models}
    counts = {name: len(probes) for name, probes in data.sets().items()}
    request: dict[str, Cell] = {
        **names,
        "control": CONTROLS[control],
        "rows to forget": counts.pop("forget"),
        "questions about them": len(collected.plan.probes),
        **{f"rows: {name}": count for name, count in counts.items()},
        "small request": data.is_small,
    }
    provenance: dict[str, Cell] = {
        **{f"content hash, {model.role}": model.content for model in models},
        "depth": conditions.depth,
        "precision": "bf16 forward passes" if conditions.precision == "bf16" else "fp32",
        "seed": conditions.seed,
        "rule of the verdict": verdict.rule,
        "device": f"{conditions.device.type}, {platform.machine()}",
    }
    return UnlearningReport(
        title=f"Audit of {models[-1].name}",
        headline=Headline(
            verdict.name,
            _TONES.get(verdict.name, "neutral"),  # type: ignore[arg-type]
            verdict.headline,
            list(verdict.notes),
            [verdict.action],
        ),
        sections=sections_of(
            findings, request, provenance, weight_changes(models[0].source, models[-1].source), conversations
        ),
        subject={**names, "rows to forget": len(data.forget), "control": CONTROLS[control], "depth": conditions.depth},
        provenance=dict(provenance),
        limits=_limits(findings, conditions),
        terms=_TERMS,
    )


def _limits(findings: Findings, conditions: Conditions) -> list[str]:
    verdict, limits = findings.verdict, list(findings.verdict.limits)
    if conditions.precision == "bf16":
        limits.append("All models were measured in bf16, which does not resolve the smallest changes of weights.")
    if verdict.evidence.control == "matched rows":
        limits.append(
            "The control consists of rows that no model has seen. It is only as good as they resemble the forget rows."
        )
    if verdict.not_run:
        limits.append(f"Not run, or inconclusive: {', '.join(verdict.not_run)}.")
    return limits


def _check_places(models: list[AuditedModel]) -> None:
    """Refuse paths that do not exist before a model is opened."""
    for model in models:
        if isinstance(model.source, LitCausalLM):
            continue
        text = str(model.source)
        path = Path(text).expanduser()
        if not path.exists() and (path.is_absolute() or text.count("/") != 1 or text.startswith((".", "~"))):
            raise FileNotFoundError(f"There is no {model.role} model {text} (looked in {Path.cwd()}).")


def _claim(models: list[AuditedModel], rows: str, control: Control) -> dict[str, Any]:
    """What the folder is the audit of: not its depth, as parts of a quick audit serve a full one."""
    return {**{model.role: model.identity for model in models}, "rows": rows, "control": control}


def _record(
    folder: Path, models: list[AuditedModel], data: AuditData, verdict: Verdict, key: Any, secret: bytes
) -> None:
    """Append what was audited, and the verdict, to the record."""
    record = AuditRecord(folder / "record.jsonl")
    roles = {"original": "before", "unlearned": "after", "control": "control"}
    files = {roles[model.role]: Path(str(model.source)).expanduser() for model in models}
    questions = [{"question": probe.question, "answer": probe.answer} for probe in data.forget]
    record.append(
        {
            "event": "audit",
            "models": {role: model_entry(path) for role, path in files.items() if path.exists()},
            "forget": {"rows": len(questions), "rows_root": rows_root(questions, secret)},
            "columns": asdict(data.columns),
        },
        key,
    )
    record.append({"event": "verdict", **verdict_entry(verdict), "report": report_entry(folder / "report.json")}, key)


def _say(line: str) -> None:
    if rank() == 0:
        print(line, flush=True)
