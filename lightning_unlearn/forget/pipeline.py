"""Steps of a request to forget: check, plan, run, export, evidence, record."""

from __future__ import annotations

import csv
import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning_utilities.core.rank_zero import rank_zero_only

from lightning_unlearn.audit.canonical import writable
from lightning_unlearn.audit.record import AuditRecord, Head
from lightning_unlearn.core.files import replacing, write_text
from lightning_unlearn.forget.certificate import UNSIGNED, own_key, signer, verify_command, write_card, write_record
from lightning_unlearn.forget.folder import RequestFolder
from lightning_unlearn.forget.logger_calls import IgnoreLoggerCalls
from lightning_unlearn.forget.request import Findings, Plan, Request, RequestOptions
from lightning_unlearn.forget.saving import FinalWeights, KeepPlace
from lightning_unlearn.report.model import UnlearningReport
from lightning_unlearn.report.write import write_report

__all__ = ["Fit", "RequestResult", "run_request"]

Fit = Callable[[Sequence[str]], object]
"""Runs the command ``fit`` with these words."""

PAUSE = 30.0
"""Seconds between two checkpoints of a run, at least."""

_NEEDED = {"jinja2": "report", "huggingface_hub": "record", "cryptography": "record"}
_SHARDED = ("fsdp", "deepspeed", "model_parallel", "modelparallel")


@dataclass(frozen=True)
class RequestResult:
    """Outcome of a request.

    Args:
        report: The evidence; its headline is the verdict.
        folder: The output folder.
        head: Last entry of the record. Kept elsewhere, it shows that nothing was cut off.
    """

    report: UnlearningReport
    folder: Path
    head: Head


def run_request(request: Request, fit: Fit) -> RequestResult | None:
    """Carry out a request: unlearn, and write the model, the report, the record and the configuration of the run.

    Everything is checked before the first step. A request that was killed goes on where it was when it is made again.

    Args:
        request: The request.
        fit: Runs the command ``fit``, as ``lightning-unlearn`` does.

    Returns:
        The outcome; ``None`` of a dry run, and in the further processes of a distributed one.

    Raises:
        ValueError: If something in the request does not fit.
        FileNotFoundError: If a model, file or key is not there.
        FileExistsError: If the output folder has something else.
        ImportError: If a package is missing.
    """
    options, folder = request.options, RequestFolder(request.options.output_dir)
    if rank_zero_only.rank > 0:  # type: ignore[attr-defined]  # started by the Trainer of the first process, for the run alone
        _fit(folder, fit)
        return None
    _check(options)
    folder.check_free()  # before what takes long
    request.check()
    entry = request.entries(folder.secret)
    folder.check(entry)
    print(f"Request to forget, {request.kind}\n{_complete(request.plan(), folder, options)}\n", flush=True)
    if options.dry_run:
        print("This was a dry run: nothing was written.")
        return None
    folder.claim(entry)
    try:
        if not folder.done("record"):
            _train(request, folder, fit)
            _export(request, folder)
            _certify(folder, entry, _evidence(request, folder), options)
        folder.clear()
    finally:
        folder.release()
    return _told(folder)


# ---- before ----------------------------------------------------------------------------------------------------------


def _check(options: RequestOptions) -> None:
    """Refuse what would fail after hours: missing packages, a key that does not open, weights in shards."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    missing = [name for name in missing if name != "cryptography" or options.key != UNSIGNED]
    if missing:
        extras = ",".join(sorted({_NEEDED[name] for name in missing}))
        hint = " Or leave the record unsigned: --key none." if missing == ["cryptography"] else ""
        raise ImportError(f'forget needs {", ".join(missing)}: pip install "lightning-unlearn[{extras}]".{hint}')
    if any(word in options.strategy.lower() for word in _SHARDED):
        raise ValueError(
            f"forget writes and audits whole weights, and strategy={options.strategy!r} shards them. Give ddp or auto; "
            "for a model that does not fit on one device, run its run.yaml with `lightning-unlearn fit` and audit the "
            "exported folder."
        )
    if options.key not in (None, UNSIGNED) or own_key().is_file():
        signer(options.key)


def _complete(plan: Plan, folder: RequestFolder, options: RequestOptions) -> Plan:
    """The plan with what all requests write."""
    lines = {**plan.lines, "writes": f"{folder.path}: model/, report.html, record.jsonl, run.yaml; private/"}
    if options.key == UNSIGNED:
        lines["record"] = "not signed: nobody vouches for it"
    else:
        made = "" if options.key is not None or own_key().is_file() else ", which is made now and kept for further ones"
        lines["record"] = f"signed with {options.key or own_key()}{made}"
    if folder.claimed:
        lines["goes on"] = f"with what {folder.path} has of this request already"
    return Plan(lines, plan.notes)


# ---- the run ---------------------------------------------------------------------------------------------------------


def _train(request: Request, folder: RequestFolder, fit: Fit) -> None:
    if folder.done("run"):
        return
    if not folder.done("configuration"):
        config = request.config(folder.private)
        trainer = {**request.options.trainer(), **config.get("trainer", {})}
        trainer["callbacks"] = [*trainer.get("callbacks", []), _callback(FinalWeights, path=folder.final.name)]
        folder.write_run({**config, "trainer": trainer})
        folder.finish("configuration")
    folder.work.mkdir(exist_ok=True)
    folder.final.unlink(missing_ok=True)
    keeping = {
        "default_root_dir": str(folder.work),
        "callbacks+": [
            _callback(KeepPlace, path=str(folder.checkpoint), seconds=PAUSE),
            _callback(IgnoreLoggerCalls),
        ],
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "logger": {"class_path": "CSVLogger", "init_args": {"save_dir": str(folder.work), "name": "log"}},
    }
    write_text(folder.work / "keep.yaml", yaml.safe_dump({"trainer": keeping}))
    _fit(folder, fit)
    if torch.distributed.is_initialized():  # the other processes end here, and what follows is for one
        torch.distributed.destroy_process_group()
    if not folder.final.is_file():
        raise RuntimeError("The run was stopped before its end. The same command goes on with it.")
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    _write_metrics(folder)
    folder.finish("run")


def _fit(folder: RequestFolder, fit: Fit) -> None:
    words = ["fit", "--config", str(folder.run), "--config", str(folder.work / "keep.yaml")]
    if folder.checkpoint.exists():
        words += ["--ckpt_path", str(folder.checkpoint)]
    if not folder.run.is_file():
        raise RuntimeError(
            "forget starts the processes of a distributed run itself: call it once, with --devices and --strategy ddp, "
            "and not by torchrun or srun."
        )
    fit(words)


def _callback(kind: type, **arguments: Any) -> dict[str, Any]:
    return {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": arguments}


def _write_metrics(folder: RequestFolder) -> None:
    """Write ``private/metrics.csv``; of a run that was killed and resumed, each step once."""
    attempts = []
    for file in sorted(folder.work.glob("log/version_*/metrics.csv"), key=lambda path: int(path.parent.name[8:])):
        with file.open(newline="", encoding="utf-8") as opened:
            attempts.append(list(csv.DictReader(opened)))
    rows: list[dict[str, str]] = []
    for attempt in attempts:
        first = min((int(row["step"]) for row in attempt), default=None)
        rows = [row for row in rows if first is None or int(row["step"]) < first] + attempt
    if not rows:
        return
    names = list(dict.fromkeys(name for row in rows for name in row))
    with replacing(folder.private / "metrics.csv") as part, part.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.DictWriter(opened, names)
        writer.writeheader()
        writer.writerows(rows)


# ---- after -----------------------------------------------------------------------------------------------------------


def _export(request: Request, folder: RequestFolder) -> None:
    if folder.done("model"):
        return
    with replacing(folder.model) as part:
        request.export(folder.final, part)
        for file in part.rglob("*"):
            file.chmod(0o755 if file.is_dir() else 0o644)
    folder.finish("model")


def _evidence(request: Request, folder: RequestFolder) -> Findings:
    if (entry := folder.done("evidence")) is not None:
        return Findings(UnlearningReport.read(folder.path), entry)
    findings = request.evidence(folder.model, folder.work)
    write_report(findings.report, folder.path, request.options.show_text)
    folder.finish("evidence", writable(findings.entry))
    return Findings(findings.report, writable(findings.entry))


def _certify(folder: RequestFolder, entry: dict[str, Any], findings: Findings, options: RequestOptions) -> None:
    head = write_record(folder, entry, findings, options.key)
    write_card(folder, findings, head, options.key, entry.get("base_model"))
    folder.finish("record", str(head))


def _told(folder: RequestFolder) -> RequestResult:
    """Say the verdict, where everything is, and how to check it."""
    report, head = UnlearningReport.read(folder.path), AuditRecord(folder.record).head
    if report.headline is not None:
        print(f"\n{report.headline.word.upper()}. {report.headline.summary}")
        for line in (*report.headline.reasons, *report.headline.advice):
            print(f"- {line}")
    print(f"\nModel:  {folder.model}\nReport: {folder.path / 'report.html'}\nRecord: {folder.record}")
    print(f"Hand out the model alone. {folder.private} tells of the original model, and stays with you.")
    print(f"Check the record, the model and the report:\n  {verify_command(folder, head)}")
    print(
        f"The rows are hashed in the record under {folder.secret_file}: keep it with the case file, hand it to nobody."
    )
    return RequestResult(report, folder.path, head)
