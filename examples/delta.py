# python examples/delta.py
"""A language model forgets twelve capitals, and all that changed fits in a small file that goes on and off.

A mask lets a tenth of the weights move. Writes runs/delta: the model before (base), the delta, and the model that the
delta makes of the base (unlearned); takes the delta off again, and asks all three.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
from pathlib import Path

import lightning as L

from lightning_unlearn import (
    WAGLE,
    LanguageDataModule,
    LitCausalLM,
    SimNPO,
    UnlearnMonitor,
    apply_delta,
    revert_delta,
    save_delta,
)
from lightning_unlearn.core.files import sha256
from lightning_unlearn.language.packaged import FACTS_FOLDER, HUB_MODEL, packaged_model

QUIET = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False, "limit_val_batches": 0}


def facts() -> LanguageDataModule:
    heldout = {name: FACTS_FOLDER / f"{name}.jsonl" for name in ("heldout", "general")}
    forget, retain = FACTS_FOLDER / "forget.jsonl", FACTS_FOLDER / "retain.jsonl"
    return LanguageDataModule(forget, retain, heldout=heldout, batch_size=4, retain_batch_size=6)


def ask(folder: Path) -> dict[str, float]:
    """Share of questions answered right, as the model in a folder does."""
    module, data = LitCausalLM(str(folder)), facts()
    trainer = L.Trainer(accelerator="cpu", devices=1, max_steps=0, **QUIET)
    trainer.fit(module, data)  # no step: it only makes the data for this tokenizer
    metrics = UnlearnMonitor().evaluate(trainer, module).metrics
    return {name: metrics[f"{name}_accuracy"] for name in ("forget", "retain", "heldout", "general")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=packaged_model() or HUB_MODEL, help="hub id, folder or GGUF file")
    parser.add_argument("--output", type=Path, default=Path("runs/delta"))
    parser.add_argument("--epochs", type=int, default=12)
    args = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    L.seed_everything(0, verbose=False)
    base, unlearned, delta = args.output / "base", args.output / "unlearned", args.output / "delta.safetensors"
    shutil.rmtree(args.output, ignore_errors=True)

    module = LitCausalLM(args.model, lr=2e-5)
    module.save_pretrained(base)
    methods = [SimNPO(beta=2.5), WAGLE(density=0.1)]
    L.Trainer(
        accelerator="cpu", devices=1, max_epochs=args.epochs, gradient_clip_val=1.0, callbacks=methods, **QUIET
    ).fit(module, facts())
    module.save_pretrained(args.output / "trained")
    info = save_delta(base, args.output / "trained", delta)

    apply_delta(base, delta, unlearned)
    revert_delta(unlearned, delta, args.output / "reverted")
    weights = {
        name: sha256(args.output / name / "model.safetensors") for name in ("base", "trained", "unlearned", "reverted")
    }
    found = {
        "weights": info.weights,
        "changed": info.changed,
        "model_bytes": (base / "model.safetensors").stat().st_size,
        "delta_bytes": delta.stat().st_size,
        "applied_is_trained": weights["unlearned"] == weights["trained"],
        "reverted_is_base": weights["reverted"] == weights["base"],
        **{name: ask(args.output / name) for name in ("base", "unlearned", "reverted")},
    }
    shutil.rmtree(args.output / "trained")
    shutil.rmtree(args.output / "reverted")
    (args.output / "delta.json").write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
