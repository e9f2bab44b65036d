"""One entry, alone in its process: `python -m perf.step <entry> <precision> <model> <threads> <steps>`, JSON out."""

from __future__ import annotations

import copy
import inspect
import json
import logging
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_unlearn import (
    SOUL,
    WAGLE,
    LanguageDataModule,
    LitCausalLM,
    PromptFormat,
    RandomMask,
    Sophia,
    UnlearnCallback,
    language,
    objectives,
)
from lightning_unlearn.core.reading import join

from .rows import rows

WARM_UP = 2
CURVATURE_EVERY = 10
ATTENTION = "eager"  # on a CPU the backward pass of torch's fused attention is slow in bf16, for rows as short as these
ADAPTERS = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear"}
OBJECTIVES: dict[str, Any] = {
    name: cls
    for room in (objectives, language)
    for name in room.__all__
    if isinstance(cls := getattr(room, name), type) and issubclass(cls, UnlearnCallback) and not inspect.isabstract(cls)
}
BESIDE: dict[str, Callable[[], Any]] = {
    "RandomMask": lambda: RandomMask(density=0.1),
    "WAGLE": lambda: WAGLE(density=0.1),
    "SOUL": lambda: SOUL(every_n_steps=CURVATURE_EVERY),
}
"""What stands beside SimNPO, as ``SimNPO + WAGLE``."""
ENTRIES = ["plain", *OBJECTIVES, *(f"SimNPO + {name}" for name in BESIDE), "common practice NPO"]


class Plain(LitCausalLM):
    """Supervised fine-tuning on the forget and retain rows together."""

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        joined = join([batch["forget"], batch["retain"]])
        assert joined is not None
        return super().training_step(joined, batch_idx)


class CommonPractice(LitCausalLM):
    """NPO as it is usually written: two forwards, a live reference model, fp32 logits of every position."""

    def on_fit_start(self) -> None:
        self.reference = [copy.deepcopy(self.model).requires_grad_(False)]

    def nll(self, model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.float()
        labels = batch["labels"][:, 1:]
        nll = F.cross_entropy(logits[:, :-1].transpose(1, 2), labels, ignore_index=-100, reduction="none")
        return nll.sum(1), (labels != -100).sum(1)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        with torch.no_grad():
            reference, _ = self.nll(self.reference[0], batch["forget"])
        forget, _ = self.nll(self.model, batch["forget"])
        retain, length = self.nll(self.model, batch["retain"])
        return -2 / 0.1 * F.logsigmoid(0.1 * (forget - reference)).mean() + retain.sum() / length.sum()


class WithSophia(LitCausalLM):
    """For SOUL."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return Sophia(self.parameters(), lr=self.lr)


class Clock(L.Callback):
    """Time of each step, from the batch's arrival to the end of the update, and the peak memory of the run."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.interpreter_bytes = self._status("VmRSS")

    def setup(self, *_: Any, **__: Any) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak of loading the model (Linux)

    @property
    def peak_bytes(self) -> int:
        return self._status("VmHWM")

    @staticmethod
    def _status(name: str) -> int:
        return int(Path("/proc/self/status").read_text().partition(f"{name}:")[2].split()[0]) * 1024

    def on_train_batch_start(self, *_: Any) -> None:
        self.start = time.perf_counter()

    def on_train_batch_end(self, *_: Any) -> None:
        self.seconds.append(time.perf_counter() - self.start)


def measure(entry: str, precision: Any, model: str, threads: int, steps: int) -> dict[str, Any]:
    torch.set_num_threads(threads)
    L.seed_everything(0, verbose=False)
    clock = Clock()  # before the model is in memory
    lora = entry.endswith(" LoRA")
    name, _, beside = entry.removesuffix(" LoRA").partition(" + ")
    kind = {"plain": Plain, "common practice NPO": CommonPractice}.get(name, LitCausalLM)
    kind = WithSophia if beside == "SOUL" else kind
    module = kind(model, lr=1e-6, lora=ADAPTERS if lora else None, attn_implementation=ATTENTION)
    weights = sum(p.numel() for p in module.parameters())
    bare = sum(p.numel() * p.element_size() * (3 if p.requires_grad else 1) for p in module.parameters())
    data = LanguageDataModule(rows(16, 0), rows(16, 5), prompt=PromptFormat(prompt_format="Q: {question}\nA: "))
    arguments = {"reinforced": model} if name == "WhosHarryPotter" else {}
    methods = [OBJECTIVES[name](**arguments)] if name in OBJECTIVES else []
    methods += [BESIDE[beside]()] if beside else []
    # The mean over as many steps as there are from one curvature estimate to the next.
    steps, middle = (CURVATURE_EVERY, statistics.mean) if beside == "SOUL" else (steps, statistics.median)
    trainer = L.Trainer(
        max_steps=WARM_UP + steps,
        accelerator="cpu",
        devices=1,
        precision=precision,
        callbacks=[*methods, clock],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(module, data)
    lengths = torch.cat([data.sets["forget"].lengths, data.sets["retain"].lengths]).float()
    return {
        "entry": entry,
        "precision": precision,
        "seconds": middle(clock.seconds[WARM_UP:]),
        "peak_bytes": clock.peak_bytes,
        "interpreter_bytes": clock.interpreter_bytes,
        "bare_bytes": bare,
        "weights": weights,
        "tokens": 8 * lengths.mean().item(),
        "tokens_a_row": lengths.mean().item(),
    }


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    entry, precision, model, threads, steps = sys.argv[1:]
    print(json.dumps(measure(entry, precision, model, int(threads), int(steps))))
