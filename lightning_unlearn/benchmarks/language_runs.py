"""Runs of the benchmarks of language models: training of targets, and measurements and attacks of methods."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from lightning_unlearn.audit.measures import half_precision
from lightning_unlearn.benchmarks.entries import Setting
from lightning_unlearn.benchmarks.grid import Cell, Outcome
from lightning_unlearn.benchmarks.language_base import LanguageBenchmark, Protocol
from lightning_unlearn.benchmarks.language_requests import after_requests, in_requests
from lightning_unlearn.benchmarks.runs import Description, build, quiet_libraries, trainer
from lightning_unlearn.core.files import replacing, sha256
from lightning_unlearn.core.lightning import resolve, seed_everything
from lightning_unlearn.core.memory import peak_memory
from lightning_unlearn.functional.language.extraction import extraction_strength
from lightning_unlearn.language.attacks import LanguageRelearning
from lightning_unlearn.language.causal_lm import LitCausalLM
from lightning_unlearn.language.data.language import LanguageDataModule
from lightning_unlearn.language.data.token_rows import collate_tokens
from lightning_unlearn.language.eval_logs import write_eval_log
from lightning_unlearn.language.knowledge import Knowledge
from lightning_unlearn.language.probes import Probe
from lightning_unlearn.language.token_stats import token_stats

__all__ = ["RunCell", "TargetCell", "train", "unlearn"]


@dataclass(frozen=True, kw_only=True)
class TargetCell(Cell):
    """A model that is trained on some sets of a benchmark."""

    benchmark: Description
    protocol: Protocol
    source: str
    data_sha256: str
    sets: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class RunCell(Cell):
    """A setting of a method on a target, the number of sequential requests, and what is measured afterwards."""

    benchmark: Description
    protocol: Protocol
    model: str
    data_sha256: str
    setting: Setting
    requests: int = 1
    generate: bool = False
    attacked: bool = False


def train(cell: TargetCell, folder: Path) -> Outcome:
    """Fine-tune the source on some sets, if any, and save it as a folder that is named by the hash of its weights."""
    quiet_libraries("transformers")
    seed_everything(cell.seed, verbose=False)
    (benchmark,) = build([cell.benchmark])
    protocol, rows = cell.protocol, benchmark.rows()
    module = LitCausalLM(cell.source, lr=protocol.learn_lr, schedule="linear", warmup=0.1)
    start = time.perf_counter()
    if cell.sets:
        data = benchmark.data({"forget": [row for name in cell.sets for row in rows[name]]}, protocol, cell.seed)
        data.prompt = replace(data.prompt, tokenizer=module.tokenizer)
        data.setup("fit")
        generator = torch.Generator().manual_seed(cell.seed)
        loader = DataLoader(
            data.sets["forget"], protocol.batch_size, shuffle=True, collate_fn=collate_tokens, generator=generator
        )
        options: Any = {"gradient_clip_val": 1.0, "precision": protocol.precision}
        trainer(max_epochs=protocol.learn_epochs, **options).fit(module, loader)
    seconds = time.perf_counter() - start
    draft = folder / "models" / cell.key
    module.save_pretrained(draft)
    digest = sha256(*sorted(draft.glob("*.safetensors")))
    with replacing(folder / "models" / digest[:16]) as part:
        draft.rename(part)
    return {"sha256": digest, "seconds": seconds, "files": [f"models/{digest[:16]}"]}


def unlearn(cell: RunCell, folder: Path) -> Outcome:
    """One run: unlearn, measure, attack. Without callbacks the model is measured as it is."""
    quiet_libraries("transformers")
    seed_everything(cell.seed, verbose=False)
    (benchmark,) = build([cell.benchmark])
    module = LitCausalLM(str(folder / cell.model), lr=cell.setting.lr)
    cost: dict[str, Any] = {}
    if cell.setting.callbacks:
        cost = _fit(cell, benchmark, module)
        if "error" in cost:
            return cost
    path = folder / "logs" / f"{cell.key}.json"
    with half_precision(module, "bf16" if cell.protocol.precision.startswith("bf16") else "32"):
        write_eval_log(path, benchmark.evaluate(module, cell.generate))
        found = _attacked(benchmark, module) if cell.attacked else {"knowledge": {}, "curves": {}}
    return {**cost, **found, "files": [str(path.relative_to(folder))]}


def _attacked(benchmark: LanguageBenchmark, module: LitCausalLM) -> dict[str, Any]:
    """What the model knows of each probe as it is and under each attack, and the curves of relearning."""
    probes = benchmark.probes()
    if not probes:
        return {"knowledge": {}, "curves": {}}
    known = {"none": _scores(_strength(module, probes))}
    curves: dict[str, dict[str, list[Any]]] = {}
    for name, (attack, scored) in benchmark.attacks().items():
        if isinstance(attack, LanguageRelearning):
            trace = attack.trace(module, scored, _strength)
            known[name] = _scores(trace.knowledge[-1])
            curves[name] = {"steps": trace.steps, "values": trace.values(), "taught_loss": trace.taught_loss}
        else:
            known[name] = _scores(attack.knowledge(module, scored, _strength))
    return {"knowledge": known, "curves": curves}


def _strength(module: LitCausalLM, probes: Sequence[Probe]) -> Knowledge:
    """Extraction strength alone: generated answers would take most of the time of an attack."""
    stats = token_stats(module, probes)
    return Knowledge(torch.stack([extraction_strength(part.hit, drop_last=part.ended) for part in stats]), None)


def _fit(cell: RunCell, benchmark: LanguageBenchmark, module: LitCausalLM) -> dict[str, Any]:
    """Unlearn the rows, request by request; where there are several, measure after each."""
    setting, rows = cell.setting, benchmark.rows()
    if optimizer := setting.optimizer:
        described = {**optimizer, "init_args": {**optimizer["init_args"], "lr": setting.lr}}
        module.configure_optimizers = lambda: resolve("cli.instantiate_class")(module.parameters(), described)  # type: ignore[method-assign]
    kept = {"retain": rows["retain"]} if "retain" in rows else {}
    requests = in_requests(rows["forget"], cell.requests)
    cost: dict[str, Any] = {"seconds": 0.0, "steps": 0}
    course: list[dict[str, list[float]]] = []
    for number, asked in enumerate(requests):
        try:
            seconds, steps = _unlearned(
                cell, module, benchmark.data({"forget": list(asked), **kept}, cell.protocol, cell.seed)
            )
        except FloatingPointError as error:
            return {"error": str(error)}
        cost["seconds"], cost["steps"] = cost["seconds"] + seconds, cost["steps"] + steps
        if cell.requests > 1:
            course.append(after_requests(module, requests[: number + 1], rows.get("retain", [])))
    return {**cost, "peak_memory_bytes": peak_memory("cpu"), **({"requests": course} if course else {})}


def _unlearned(cell: RunCell, module: LitCausalLM, data: LanguageDataModule) -> tuple[float, int]:
    """Seconds and steps of one request."""
    # If a run diverges, its last finite checkpoint is of no use here.
    with tempfile.TemporaryDirectory() as scratch:
        options: Any = {"precision": cell.protocol.precision, "gradient_clip_val": 1.0, "default_root_dir": scratch}
        run = trainer(build(cell.setting.callbacks, seed=cell.seed), max_epochs=cell.protocol.epochs, **options)
        start = time.perf_counter()
        run.fit(module, data)
        return time.perf_counter() - start, run.global_step


def _scores(knowledge: Knowledge) -> dict[str, list[float]]:
    parts = {"strength": knowledge.strength, "matched": knowledge.matched}
    return {name: values.tolist() for name, values in parts.items() if values is not None}
