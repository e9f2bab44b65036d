"""Early stopping of unlearning by the likelihood of the forget rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_unlearn.core.accumulation import is_last_batch
from lightning_unlearn.core.callback import UnlearnCallback, objective_score
from lightning_unlearn.core.checks import above, at_least, strategy
from lightning_unlearn.core.lightning import (
    AVERAGING,
    FINETUNING,
    LightningModule,
    MisconfigurationException,
    Trainer,
    rank_zero_info,
    rank_zero_warn,
)
from lightning_unlearn.core.modes import undisturbed
from lightning_unlearn.core.reading import likelihood
from lightning_unlearn.core.resume import ResumableCallback, callbacks_of
from lightning_unlearn.core.rows import RunRows, row_loader
from lightning_unlearn.core.scores import Score
from lightning_unlearn.stopping.best import BestWeights
from lightning_unlearn.stopping.outcome import StopOutcome
from lightning_unlearn.stopping.target import Target, chance_nll, named_rows, no_target, swapped_rows

__all__ = ["StopWhenForgotten"]

_NAME = "StopWhenForgotten"


class StopWhenForgotten(ResumableCallback):
    """Ends a run when the model finds the forget rows as unlikely as rows that it never saw."""

    private: tuple[str, ...] = ("best_weights",)

    def __init__(
        self,
        target: float | None = None,
        never_seen: str | DataLoader = "never_seen",
        keep: Sequence[str] = ("retain",),
        margin: float | None = 0.1,
        every_n_steps: int = 1,
        limit: int = 64,
        patience: int | None = None,
        score: Score | None = None,
        device: str | None = None,
        keep_reference: bool = False,
    ) -> None:
        self.target = None if target is None else above("target", target, 0)
        self.never_seen, self.keep = never_seen, (keep,) if isinstance(keep, str) else tuple(keep)
        self.margin = None if margin is None else at_least("margin", margin, 0)
        self.every_n_steps = at_least("every_n_steps", every_n_steps, 1)
        self.limit = at_least("limit", limit, 1)
        self.patience = None if patience is None else at_least("patience", patience, 1)
        self.score, self.device, self.keep_reference = score, device, keep_reference
        self.curve: list[dict[str, Any]] = []
        """Every evaluation: ``step``, and by set the mean NLL per supervised position; the first is of the start."""
        self.outcome: StopOutcome | None = None
        """What the run has come to, once it has ended."""
        self._goal = Target(0.0, "")
        self._best, self._best_step, self._reached = BestWeights(device), 0, False
        self._rows: dict[str, RunRows] = {}

    # ---- Lightning hooks ---------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the run."""
        if stage == "fit":
            self._check(trainer)
            self.outcome = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the rows to watch; measure the starting model, or go on with what a checkpoint has of it."""
        self._read_score = self.score or objective_score(_NAME, trainer)
        names = dict.fromkeys(["forget", *(self.keep if self.margin is not None else ())])
        self._rows = {name: self._watched(trainer, name) for name in names}
        super().on_train_start(trainer, pl_module)

    def begin(self, trainer: Trainer, module: LightningModule) -> None:
        """Measure the target, and the rows before the first update."""
        self._best, self._best_step, self._reached, self.curve = BestWeights(self.device), 0, False, []
        self._goal = self._measured_target(trainer, module)
        self._measure(trainer, module)
        rank_zero_info(f"{_NAME}: the target is {self._goal.nll:.2f} nats, {self._goal.source}.")

    def restore(self, state: dict[str, Any], trainer: Trainer, module: LightningModule) -> None:
        """Go on with the target, the curve and the best weights of the checkpoint."""
        self._goal = Target(*state["goal"])
        self.curve, self._best_step, self._reached = list(state["curve"]), state["best_step"], state["reached"]
        self._best = BestWeights(self.device)
        if state["best_weights"]:
            self._best.load_state_dict(state["best_weights"], module)
        elif self._best_step:
            self._best.take(module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Take in layers that a schedule has thawed."""
        if callbacks_of(trainer, FINETUNING):
            self._best.follow(pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure where that is due, and end the run where it has come to its end."""
        if not self._reached and trainer.global_step % self.every_n_steps == 0:
            self._evaluate(trainer, pl_module)
        stops = trainer.should_stop and trainer.fit_loop._can_stop_early
        if stops or is_last_batch(trainer, batch_idx):
            self._finish(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the module its best weights where something else has stopped the run."""
        if self.outcome is None:
            self._finish(trainer, pl_module)

    # ---- state -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The target, the curve and the best weights."""
        return {
            "goal": tuple(self._goal),
            "curve": [dict(point) for point in self.curve],
            "best_step": self._best_step,
            "reached": self._reached,
            "best_weights": self._best.state_dict() if self._best else None,
        }

    # ---- internals ---------------------------------------------------------------------------------------------

    def _check(self, trainer: Trainer) -> None:
        strategy(_NAME, trainer)
        objectives = callbacks_of(trainer, UnlearnCallback)
        for objective in objectives:
            if reason := objective.not_averaged:
                raise MisconfigurationException(
                    f"{type(objective).__name__} {reason}, so the weights in the midst of its run are not a model that "
                    f"it makes. Leave {_NAME} out."
                )
        if others := [type(callback).__name__ for callback in callbacks_of(trainer, AVERAGING)]:
            raise MisconfigurationException(
                f"{_NAME} ends with the weights of one step, {others[0]} with a mean of several. Keep one of them."
            )

    def _watched(self, trainer: Trainer, name: str) -> RunRows:
        loader = named_rows(trainer, name)
        if loader is None:
            raise MisconfigurationException(
                f"{_NAME} watches the {name} rows, but the run has none. Give the data module a set of that name, "
                f"name others with keep=[...], or pass margin=None to watch the forget rows alone."
            )
        return self._rows_of(trainer, loader, name)

    def _rows_of(self, trainer: Trainer, loader: Any, name: str) -> RunRows:
        return RunRows(trainer, loader, f"{_NAME}: {name} rows", self.limit, shows=False)

    def _measured_target(self, trainer: Trainer, module: LightningModule) -> Target:
        if self.target is not None:
            return Target(self.target, "as given")
        loader = (
            named_rows(trainer, self.never_seen)
            if isinstance(self.never_seen, str)
            else row_loader({"never_seen": self.never_seen}, "never_seen")
        )
        if loader is not None:
            return Target(self._mean(trainer, module, self._rows_of(trainer, loader, "never-seen")), "of never-seen rows")
        forget = self._rows["forget"]
        if (swapped := swapped_rows(forget.loader, self.limit)) is not None:
            rows = self._rows_of(trainer, swapped, "swapped")
            return Target(self._mean(trainer, module, rows), "of forget questions with each other's answers")
        with undisturbed(module, drops_gradients=False), trainer.precision_plugin.forward_context():
            chance = chance_nll(trainer, module, self._read_score, forget)
        if chance is None:
            raise no_target("forget")
        return Target(chance, "of a guess among the classes")

    def _mean(self, trainer: Trainer, module: LightningModule, rows: RunRows) -> float:
        """Mean over rows of the NLL per supervised position."""
        with undisturbed(module, drops_gradients=False), trainer.precision_plugin.forward_context():
            read = [self._per_position(module, batch) for batch, _ in rows]
        return torch.cat(rows.gather(read)).mean().item()

    def _per_position(self, module: LightningModule, batch: Any) -> Tensor:
        nll, length = likelihood(self._read_score, module, batch)
        return (nll / length.clamp(min=1)).float().cpu()

    def _measure(self, trainer: Trainer, module: LightningModule) -> None:
        """Add a point to the curve, and log it."""
        means = {name: self._mean(trainer, module, rows) for name, rows in self._rows.items()}
        self.curve.append({"step": trainer.global_step, **means})
        named = {f"stop/{name}_nll": value for name, value in means.items()} | {"stop/target_nll": self._goal.nll}
        for logger in trainer.loggers:
            logger.log_metrics(named, step=trainer.global_step)
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in named.items()})

    def _lost(self, point: dict[str, Any]) -> dict[str, float]:
        return {name: point[name] - self.curve[0][name] for name in self._rows if name != "forget"}

    def _order(self, point: dict[str, Any]) -> tuple[float, float]:
        """Smaller is better: what is lost beyond the margin, then what the forget rows lack to the target."""
        excess = [lost - self.margin for lost in self._lost(point).values()] if self.margin is not None else []
        return max([0.0, *excess]), max(0.0, self._goal.nll - point["forget"])

    def _evaluate(self, trainer: Trainer, module: LightningModule) -> None:
        if self.curve[-1]["step"] >= trainer.global_step:
            return  # within an accumulation window, or measured before the checkpoint
        self._measure(trainer, module)
        order = self._order(self.curve[-1])
        best = self._point(self._best_step) if self._best_step else None
        if best is None or order < self._order(best):
            self._best.take(module)
            self._best_step = trainer.global_step
        self._reached = order == (0.0, 0.0)
        since = sum(point["step"] > self._best_step for point in self.curve)
        if self._reached or (self.patience is not None and since >= self.patience):
            trainer.should_stop = True

    def _point(self, step: int) -> dict[str, Any]:
        return next(point for point in self.curve if point["step"] == step)

    def _finish(self, trainer: Trainer, module: LightningModule) -> None:
        if not self._reached:
            self._evaluate(trainer, module)  # the last update may not have been measured
        if not self._best_step:
            return  # no update was made, which the objective reports
        if self._best_step != trainer.global_step:
            self._best.give_back(module)
        self._best = BestWeights(self.device)
        point = self._point(self._best_step)
        self.outcome = StopOutcome(
            self._reached, self._best_step, trainer.global_step, point["forget"], *self._goal, self._lost(point), self.margin
        )
        if self._reached:
            rank_zero_info(f"{_NAME}: {self.outcome}")
        else:
            rank_zero_warn(f"{_NAME}: {self.outcome}")
