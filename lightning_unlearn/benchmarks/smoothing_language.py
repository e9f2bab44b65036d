"""A chat model in the comparison of smoothing: it forgets the facts of the demo, and relearns them from a few."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lightning_unlearn.audit.measures import half_precision
from lightning_unlearn.benchmarks.facts import facts
from lightning_unlearn.benchmarks.grid import Outcome
from lightning_unlearn.benchmarks.runs import quiet_libraries
from lightning_unlearn.benchmarks.smoothing_runs import Curve, Forgetting, SmoothingCell, Subject, perform
from lightning_unlearn.core.lightning import LightningModule, Trainer
from lightning_unlearn.core.scores import causal_lm_nll
from lightning_unlearn.core.sources import load_rows
from lightning_unlearn.core.transfer import transferred
from lightning_unlearn.language.attacks.quantization import QuantizationAttack
from lightning_unlearn.language.attacks.relearning import LanguageRelearning
from lightning_unlearn.language.attacks.relearning_recipes import RelearningRecipe
from lightning_unlearn.language.attacks.taught_rows import RelearningRows
from lightning_unlearn.language.causal_lm import LitCausalLM
from lightning_unlearn.language.data.token_rows import collate_tokens
from lightning_unlearn.language.knowledge import Knowledge
from lightning_unlearn.language.monitor import UnlearnMonitor
from lightning_unlearn.language.packaged import FACTS_FOLDER
from lightning_unlearn.language.probes import Probe, probes_of
from lightning_unlearn.language.token_stats import token_stats

__all__ = ["LanguageCell", "LanguageSubject", "unlearn"]


@dataclass(frozen=True, kw_only=True)
class LanguageCell(SmoothingCell):
    """A chat model, its folder, which is named by the hash of its weights, and the attack.

    Args:
        model: The folder.
        data_sha256: Hash of the facts.
        precision: Precision of the Trainer, and of what is measured.
        taught_share: Share of the facts that is taught again; the forgotten share is measured on the others.
        attack_lr: Learning rate of AdamW; each update uses four of the taught facts.
        attack_steps: Updates before each measurement.
    """

    model: str
    data_sha256: str
    precision: str
    taught_share: float = 1 / 3
    attack_lr: float = 1e-5
    attack_steps: tuple[int, ...] = (0, 1, 2, 5, 10, 20)


class LanguageSubject(Subject):
    """A chat model with its facts."""

    module: LitCausalLM

    def __init__(self, cell: LanguageCell, folder: Path) -> None:
        module = LitCausalLM(str(folder / cell.model), lr=cell.setting.lr)
        super().__init__(module, facts(cell.seed), precision=cell.precision, gradient_clip_val=1.0)
        self.cell, self.probes = cell, probes_of(load_rows(FACTS_FOLDER / "forget.jsonl"))
        self.rows = RelearningRows.split(self.probes, cell.taught_share, seed=cell.seed)

    def forgetting(self, module: LightningModule) -> Forgetting:
        """Of the tokens that hold the facts: mean negative log-likelihood a token, and one minus the probability."""
        with self._precision():
            logs = _mean_logs(module, self.probes)  # type: ignore[arg-type]
        return Forgetting(-float(logs.mean()), 1 - float(logs.exp().mean()))

    def forget_nll(self, module: LightningModule) -> Tensor:
        """Mean over the facts of the mean over their tokens, with its graph."""
        rows = self.data.sets["forget"]
        batch = transferred(module, collate_tokens([rows[i] for i in range(len(rows))]))
        predictions = causal_lm_nll.predictions(module, batch)
        return (predictions.nll() / predictions.length()).mean()

    def utility(self, run: Trainer) -> dict[str, float]:
        """Share of right answers on the facts to keep, and on two sets that no run trains on, which count."""
        metrics = UnlearnMonitor().evaluate(run, self.module).metrics
        found = {name: metrics[f"{name}_accuracy"] for name in ("retain", "heldout", "general")}
        return {**found, "utility": float(np.mean([found["heldout"], found["general"]]))}

    def relearned(self) -> Curve:
        """Forgotten share of the facts that are not taught, at each measurement."""
        recipe = RelearningRecipe(lr=self.cell.attack_lr, steps=self.cell.attack_steps)
        attack = LanguageRelearning(self.rows.taught, recipe=recipe, seed=self.cell.seed)
        with self._precision():
            trace = attack.trace(self.module, self.rows.held_out, _probability)
        return Curve(trace.steps, [1 - value for value in trace.values()])

    def rounded(self) -> float:
        """Forgotten share of all facts with the weights of the linear layers rounded in groups of 64."""
        with self._precision():
            known = QuantizationAttack("int4").knowledge(self.module, self.probes, _probability)
        assert known.strength is not None
        return 1 - float(known.strength.mean())

    def _precision(self) -> AbstractContextManager[None]:
        return half_precision(self.module, "bf16" if self.cell.precision.startswith("bf16") else "32")


def unlearn(cell: LanguageCell, folder: Path) -> Outcome:
    """Unlearn up to the level, measure and attack."""
    quiet_libraries("transformers")
    return perform(cell, LanguageSubject(cell, folder))


def _probability(module: LitCausalLM, probes: Sequence[Probe]) -> Knowledge:
    """Probability a token of each fact, the geometric mean over its tokens."""
    return Knowledge(_mean_logs(module, probes).exp(), None)


def _mean_logs(module: LitCausalLM, probes: Sequence[Probe]) -> Tensor:
    return torch.stack([part.log_prob.mean() for part in token_stats(module, probes)])
