"""Short runs of every objective on the tiny language model, and what each step of them did."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor, nn

from lightning_unlearn import (
    CEU,
    KTO,
    NPO,
    PDU,
    RMU,
    UNDIAL,
    WGA,
    AltPO,
    EmbeddingDifference,
    ForgetKL,
    GradDiff,
    GradientAscent,
    IdkDPO,
    IdkNLL,
    KLMinimization,
    LanguageDataModule,
    LitCausalLM,
    PromptFormat,
    Ramp,
    SatImp,
    SimNPO,
    TaskVector,
    UnlearnCallback,
    WhosHarryPotter,
)
from lightning_unlearn.language.data.token_rows import collate_tokens
from tests.helpers import trainer, weights


class Case(NamedTuple):
    """An objective, the rows that its one forward pass with gradient reads, and those of each pass without."""

    make: Callable[[Path], UnlearnCallback]
    """Takes the folder of the tiny language model."""
    reads: tuple[str, ...] = ("forget", "retain")
    reference: tuple[tuple[str, ...], ...] = ()


CASES: dict[str, Case] = {
    "AltPO": Case(lambda _: AltPO(), ("forget", "retain", "alternate")),
    "AltPO-snapshot": Case(
        lambda _: AltPO(reference="snapshot"), ("forget", "retain", "alternate"), (("forget", "alternate"),)
    ),
    "CEU": Case(lambda _: CEU(), ("forget",)),
    "ForgetKL": Case(lambda _: ForgetKL(), reference=(("forget",),)),
    "GradDiff": Case(lambda _: GradDiff()),
    "GradDiff-embedding": Case(lambda _: GradDiff(retain=EmbeddingDifference()), reference=(("retain",),)),
    "GradDiff-layer": Case(lambda _: GradDiff(retain=EmbeddingDifference("layers.0")), reference=(("retain",),)),
    "GradDiff-ramp": Case(lambda _: GradDiff(retain_weight=Ramp(start=1.0, end=2.0, epochs=2))),
    "GradDiff-refusal": Case(lambda _: GradDiff(refusal_weight=1.0), ("forget", "retain", "idk")),
    "GradientAscent": Case(lambda _: GradientAscent(), ("forget",)),
    "IdkDPO": Case(lambda _: IdkDPO(), ("forget", "retain", "idk")),
    "IdkNLL": Case(lambda _: IdkNLL(), ("retain", "idk")),
    "KLMinimization": Case(lambda _: KLMinimization(), reference=(("retain",),)),
    "KTO": Case(lambda _: KTO(), ("forget", "retain", "idk")),
    "KTO-snapshot": Case(lambda _: KTO(reference="snapshot"), ("forget", "retain", "idk"), (("forget", "idk"),)),
    "NPO": Case(lambda _: NPO()),
    "NPO-kl": Case(lambda _: NPO(retain="kl"), reference=(("retain",),)),
    "NPO-snapshot": Case(lambda _: NPO(reference="snapshot"), reference=(("forget",),)),
    "NPO-snapshot-kl": Case(lambda _: NPO(reference="snapshot", retain="kl"), reference=(("forget",), ("retain",))),
    "PDU": Case(lambda _: PDU(initial_dual=1.0, dual_step_size=0.1, warmup_epochs=0)),
    "RMU": Case(lambda _: RMU(layer=r"layers\.0$"), reference=(("retain",),)),
    "SatImp": Case(lambda _: SatImp()),
    "SimNPO": Case(lambda _: SimNPO()),
    "TaskVector": Case(lambda _: TaskVector(), ("forget",)),
    "UNDIAL": Case(lambda _: UNDIAL(), ("forget",), (("forget",),)),
    "WGA": Case(lambda _: WGA()),
    "WhosHarryPotter": Case(lambda folder: WhosHarryPotter(str(folder))),
}

CITIES = ["Paris", "Rome", "Madrid", "Berlin", "Tokyo", "Lima", "Havana", "Cairo", "Oslo", "Ottawa"]
RAGGED = [
    {
        "question": f"Where is street number {i}?",
        "answer": f"It is in {city}{', as far as I know' * (i % 3)}.",
        "alternate": [f"In {city[::-1]}.", f"Off {city}."],
    }
    for i, city in enumerate(CITIES)
]


def digits(seed: int) -> str:
    """Text of six tokens: the tokenizer has seen no digit, so it merges none."""
    return "".join(random.Random(seed).choices("0123456789", k=6))


EVEN = [
    {"question": f"Number {i}?", "answer": digits(i), "alternate": [digits(100 + i), digits(200 + i)]} for i in range(8)
]


LORA = {"r": 2, "target_modules": "all-linear"}
Rows = list[dict[str, Any]]
LONG = ", which is a long way from here, as far as anyone knows"


@dataclass
class Step:
    """What happened in one training batch."""

    tokens: dict[str, int]
    """Supervised tokens by role."""
    rows: dict[str, int]
    passes: list[tuple[bool, int]] = field(default_factory=list)
    """Each forward pass of the decoder: whether it was with gradient, and its rows."""
    heads: list[tuple[bool, int]] = field(default_factory=list)
    """Each call of the output head: whether it was with gradient, and its positions."""
    blocks: int = 0
    """Calls of the MLP of the first block."""
    parts: dict[str, float] = field(default_factory=dict)
    """The loss and its parts."""
    norm: float = 0.0
    """Norm of the gradient before it is clipped."""


@dataclass
class Run:
    """A finished run."""

    module: LitCausalLM
    method: UnlearnCallback
    trainer: L.Trainer
    steps: list[Step]
    start: dict[str, Tensor]
    """The weights before it, by name."""

    def weights(self) -> Tensor:
        """All parameters, as one vector."""
        return weights(self.module)


class Steps(L.Callback):
    """Writes down what each step does."""

    def __init__(self, method: UnlearnCallback) -> None:
        self.steps: list[Step] = []
        step = method.step

        def recorded(module: L.LightningModule, batch: Any) -> dict[str, Tensor]:
            parts = step(module, batch)
            self.steps[-1].parts = {name: value.item() for name, value in parts.items()}
            return parts

        method.step = recorded  # type: ignore[method-assign]

    def watch(self, module: LitCausalLM) -> None:
        """Count calls from the first step on. Hooks would be traced by a compiler."""
        decoder, head = module.model.get_decoder(), module.model.get_output_embeddings()
        decoder.register_forward_pre_hook(self._decoder, with_kwargs=True)
        decoder.layers[0].mlp.register_forward_pre_hook(self._block)
        head.register_forward_hook(self._head)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        tokens = {role: int((rows["labels"][:, 1:] != -100).sum()) for role, rows in batch.items()}
        self.steps.append(Step(tokens, {role: len(rows["labels"]) for role, rows in batch.items()}))

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        gradients = [p.grad.double() for p in pl_module.parameters() if p.grad is not None]
        self.steps[-1].norm = torch.cat([g.flatten() for g in gradients]).norm().item()

    def _decoder(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self.steps:
            self.steps[-1].passes.append((torch.is_grad_enabled(), len(kwargs["input_ids"])))

    def _block(self, module: nn.Module, args: Any) -> None:
        if self.steps:
            self.steps[-1].blocks += 1

    def _head(self, module: nn.Module, args: Any, output: Tensor) -> None:
        if self.steps:
            self.steps[-1].heads.append((torch.is_grad_enabled(), args[0].shape[:-1].numel()))


class SgdLM(LitCausalLM):
    """AdamW's first steps only see a gradient's sign, so rounding errors would look like differences."""

    momentum = 0.9

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=self.lr, momentum=self.momentum)


def lm(folder: Path, **options: Any) -> SgdLM:
    """The tiny language model; new adapters always have the same weights."""
    torch.manual_seed(0)
    return SgdLM(str(folder), lr=0.1, **options)


def rows_of(tokenizer: Any) -> dict[str, Tensor]:
    """Four rows as a model takes them."""
    data = LanguageDataModule(RAGGED, prompt=PromptFormat(tokenizer))
    data.setup("fit")
    return {k: v for k, v in collate_tokens([data.sets["forget"][i] for i in range(4)]).items() if k != "index"}


def fit(
    case: str,
    folder: Path,
    *,
    even: bool = False,
    batch_size: int = 2,
    lr: float = 0.1,
    momentum: float = 0.9,
    prepare: Callable[[LitCausalLM], Any] = lambda module: module,
    watch: bool = True,
    ckpt_path: Path | None = None,
    model: dict[str, Any] | None = None,
    **options: Any,
) -> Run:
    """Unlearn with one of the cases.

    Args:
        case: Name of the case.
        folder: The tiny language model.
        even: Whether all rows, refusals and alternates have equally many supervised tokens.
        batch_size: Rows of each role in a batch.
        lr: Learning rate of SGD.
        momentum: Momentum of SGD.
        prepare: What to do with the module; what it returns is trained.
        watch: Whether to count calls inside of the model.
        ckpt_path: Checkpoint to go on from.
        model: Arguments of the module.
        **options: Arguments of the Trainer.
    """
    torch.manual_seed(0)
    method = CASES[case].make(folder)
    module = SgdLM(str(folder), lr=lr, **(model or {}))
    module.momentum = momentum
    start = {name: value.detach().clone() for name, value in module.state_dict().items()}
    recorder = Steps(method)
    if watch:
        recorder.watch(module)
    rows = EVEN if even else RAGGED
    data = LanguageDataModule(
        rows[: 4 if even else 6],
        rows[4 if even else 6 :],
        refusals=[digits(1), digits(2)] if even else ["I do not know.", "No idea."],
        batch_size=batch_size,
        seed=3,
    )
    run = trainer(method, recorder, **({"limit_val_batches": 0} | options))
    run.fit(prepare(module), data, ckpt_path=ckpt_path)
    return Run(module, method, run, recorder.steps, start)
