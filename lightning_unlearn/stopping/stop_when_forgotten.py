"""Early stopping of unlearning by the likelihood of the forget rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
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
from lightning_unlearn.core.resume import ResumableCallback, callbacks_of
from lightning_unlearn.core.rows import row_loader
from lightning_unlearn.core.scores import Score
from lightning_unlearn.stopping.best import BestWeights
from lightning_unlearn.stopping.outcome import StopOutcome
from lightning_unlearn.stopping.target import Target, level, measured_target
from lightning_unlearn.stopping.watched_rows import WatchedRows, named_rows

__all__ = ["StopWhenForgotten"]

_NAME, _GIVEN, _UNSEEN = "StopWhenForgotten", "as given", "never_seen"


class StopWhenForgotten(ResumableCallback):
    r"""Ends a run when the model finds the forget rows as unlikely as rows that it never saw.

    It stands beside any objective that makes steps, with any score. Every ``every_n_steps`` updates it reads the forget
    rows and the rows to keep, in evaluation mode and without a trace in the training. The level of the forget rows is
    the negative log-likelihood of their mean probability per supervised position,

    $$L = -\log \frac{1}{n} \sum_{i=1}^{n} \exp\!\left(-\frac{\ell_i}{|y_i|}\right),$$

    so that one row that is still known weighs more than another that is far out of reach. The target is the same number
    of rows that the model never saw, read once, off the model before the first update. Where there are no such rows, or
    they are further out of reach, as invented names are, it is that of the likeliest wrong answer to each forget row:
    the model then prefers the right one no more than it preferred the best wrong one, or a guess among all classes.

    The run ends once, over ``patience`` evaluations in a row, the forget rows have stayed at the target, what is to
    stay has lost no more than ``margin`` and gets better by no more than ``min_delta``: objectives overshoot, and their
    retain term mends later what they break. The module then has the weights of its best step, bit for bit: of the steps
    at the target and within the margin the one at which what is to stay is best; if there is none, of those within the
    margin the one nearest to the target. It says ``Reached`` or ``Not reached``, in ``outcome`` and in the log. Numbers
    are logged as ``stop/<set>_nll``, beside ``stop/target_nll``.

    Where ``min_steps`` or ``min_epochs`` make the run go on, it still ends with these weights. They take the memory of
    the weights that train, and are in the checkpoints *during* the run, to be resumed from; when ``fit`` has ended, no
    checkpoint has them.

    Args:
        target: Level that the forget rows are to reach, in nats; by default it is measured.
        never_seen: Rows that the model never saw, of the kind of the forget rows: a named set of the data module, or a
            loader. Answers of other kinds, such as invented names, have other likelihoods for any model.
        keep: The rows that are to stay: ``"retain"``, or named sets of the data module.
        margin: The most that the mean NLL per position of each of these may rise above its start, in nats; ``None``
            watches the forget rows alone, and ends with the first step at the target.
        every_n_steps: Updates between two evaluations. One reads the rows once, without gradients.
        limit: At most so many rows of each set are read, drawn once.
        patience: Evaluations in a row that end a run; 0 ends it with the first step at the target.
        min_delta: By how much what is to stay must get better, in nats, to go on.
        score: Reads likelihoods off the module; by default that of the objective.
        device: Where the best weights are kept, such as ``"cpu"``; by default beside the weights.
        keep_reference: Whether checkpoints keep the best weights after the end of the run, so that it can be resumed
            with more epochs.

    Raises:
        ValueError: If a number is out of range.
        MisconfigurationException: If the run has no objective, no rows of a set that is named, or nothing to measure a
            target on; beside a callback that averages weights; or with an objective whose weights in the midst of a run
            are not a model.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_unlearn import SimNPO
        >>> stop = StopWhenForgotten(margin=0.1, every_n_steps=2)
        >>> trainer = Trainer(callbacks=[SimNPO(), stop], max_epochs=10, logger=False, accelerator="cpu")
    """

    private: tuple[str, ...] = ("best_weights",)

    def __init__(
        self,
        target: float | None = None,
        never_seen: str | DataLoader = _UNSEEN,
        keep: Sequence[str] = ("retain",),
        margin: float | None = 0.1,
        every_n_steps: int = 1,
        limit: int = 64,
        patience: int = 3,
        min_delta: float = 0.01,
        score: Score | None = None,
        device: str | None = None,
        keep_reference: bool = False,
    ) -> None:
        self.target = None if target is None else above("target", target, 0)
        self.never_seen, self.keep = never_seen, (keep,) if isinstance(keep, str) else tuple(keep)
        if "forget" in self.keep:
            raise ValueError(f"keep={list(self.keep)} names the forget rows, which are not to stay. Leave them out.")
        self.margin = None if margin is None else at_least("margin", margin, 0)
        self.every_n_steps = at_least("every_n_steps", every_n_steps, 1)
        self.limit = at_least("limit", limit, 1)
        self.patience, self.min_delta = at_least("patience", patience, 0), at_least("min_delta", min_delta, 0)
        self.score, self.device, self.keep_reference = score, device, keep_reference
        self.curve: list[dict[str, Any]] = []
        """Every evaluation: ``step``, and by set the mean NLL per supervised position; the first is of the start."""
        self.outcome: StopOutcome | None = None
        """What the run has come to, once it has ended."""
        self._goal = Target(0.0, "")
        self._best, self._best_step, self._ended = BestWeights(device), 0, False
        self._rows: dict[str, WatchedRows] = {}

    # ---- Lightning hooks ---------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the run."""
        if stage == "fit":
            self._check(trainer)
            self.outcome = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the rows to watch; measure the original model, or go on with what a checkpoint has of it."""
        self._read_score = self.score or objective_score(_NAME, trainer)
        names = dict.fromkeys(["forget", *(self.keep if self.margin is not None else ())])
        self._rows = {name: self._watched(trainer, name) for name in names}
        super().on_train_start(trainer, pl_module)

    def begin(self, trainer: Trainer, module: LightningModule) -> None:
        """Measure the target, and the rows before the first update."""
        self._best, self._best_step, self._ended, self.curve = BestWeights(self.device), 0, False, []
        given = self.target
        self._goal = Target(given, _GIVEN) if given is not None else self._measured_target(trainer, module)
        self._measure(trainer, module)
        start, (nll, source) = self.curve[0]["forget"], self._goal
        rank_zero_info(f"{_NAME}: the target is {nll:.2f} nats, {source}; the forget rows are at {start:.2f}.")
        if start >= nll:
            rank_zero_warn(
                f"{_NAME}: before the first update the forget rows are at {start:.2f} nats, the target is {nll:.2f} "
                f"({source}): the model does not know them better than that. Check that they are what it was trained "
                "on, or give a larger target."
            )

    def restore(self, state: dict[str, Any], trainer: Trainer, module: LightningModule) -> None:
        """Go on with the target, the curve and the best weights of the checkpoint."""
        self._goal = Target(*state["goal"]) if self.target is None else Target(self.target, _GIVEN)
        self.curve, self._best_step = list(state["curve"]), state["best_step"]
        self._ended = self._is_settled()
        self._best = BestWeights(self.device)
        if state["best_weights"]:
            self._best.load_state_dict(state["best_weights"], module)
        elif self._best_step:
            self._best.take(module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Take in layers that a schedule has thawed."""
        if callbacks_of(trainer, FINETUNING):
            self._best.follow(pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure where that is due, and end the run where it has come to its end."""
        if not self._ended and trainer.global_step % self.every_n_steps == 0:
            self._evaluate(trainer, pl_module)
        if self._ended:  # also where a run that had ended is resumed
            trainer.should_stop = True
        stops = trainer.should_stop and trainer.fit_loop._can_stop_early
        if stops or is_last_batch(trainer, batch_idx):
            self._finish(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the module its best weights where something else has stopped the run."""
        if self.outcome is None:
            self._finish(trainer, pl_module)
            if self.outcome is not None and self.outcome.step != self.outcome.steps:
                rank_zero_warn(
                    f"Something else has stopped the run, so {_NAME} gave the module its best weights after the last "
                    "measurement. trainer.save_checkpoint(...) writes them."
                )

    # ---- state -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The target, the curve and the best weights."""
        return {
            "goal": tuple(self._goal),
            "curve": [dict(point) for point in self.curve],
            "best_step": self._best_step,
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

    def _watched(self, trainer: Trainer, name: str) -> WatchedRows:
        loader = named_rows(trainer, name)
        if loader is None:
            raise MisconfigurationException(
                f"{_NAME} watches the {name} rows, but the run has none. Give the data module a set of that name, "
                f"name others with keep=[...], or pass margin=None to watch the forget rows alone."
            )
        return WatchedRows(trainer, loader, name, self._read_score, self.limit)

    def _measured_target(self, trainer: Trainer, module: LightningModule) -> Target:
        given = self.never_seen
        loader = named_rows(trainer, given) if isinstance(given, str) else row_loader({"unseen": given}, "unseen")
        if loader is not None:
            unseen = WatchedRows(trainer, loader, "never-seen", self._read_score, self.limit)
            return measured_target(module, self._rows["forget"], unseen)
        if given != _UNSEEN:
            raise MisconfigurationException(
                f"{_NAME}(never_seen={given!r}) names rows that the run does not have. Give the data module a set of "
                "that name, or pass a DataLoader; without never_seen the likeliest wrong answers are the measure."
            )
        return measured_target(module, self._rows["forget"])

    def _measure(self, trainer: Trainer, module: LightningModule) -> None:
        """Add a point to the curve, and log it."""
        read = {name: rows.nll(module) for name, rows in self._rows.items()}
        values = {name: level(nll) if name == "forget" else nll.mean().item() for name, nll in read.items()}
        self.curve.append({"step": trainer.global_step, **values})
        named = {f"stop/{name}_nll": value for name, value in values.items()} | {"stop/target_nll": self._goal.nll}
        for logger in trainer.loggers:
            logger.log_metrics(named, step=trainer.global_step)
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in named.items()})

    def _lost(self, point: dict[str, Any]) -> dict[str, float]:
        return {name: point[name] - self.curve[0][name] for name in self._rows if name != "forget"}

    def _order(self, point: dict[str, Any]) -> tuple[float, float, float]:
        """Smaller is better: what is lost beyond the margin, what lacks to the target, the NLL of what is to stay."""
        lost = self._lost(point)
        excess = [0.0 if self.margin is None else value - self.margin for value in lost.values()]
        kept = sum(point[name] for name in lost) / max(1, len(lost))
        return max([0.0, *excess]), max(0.0, self._goal.nll - point["forget"]), kept

    def _evaluate(self, trainer: Trainer, module: LightningModule) -> None:
        if self.curve[-1]["step"] >= trainer.global_step:
            return  # within an accumulation window, or measured before the checkpoint
        self._measure(trainer, module)
        if not self._best_step or self._order(self.curve[-1]) < self._order(self._point(self._best_step)):
            self._best.take(module)
            self._best_step = trainer.global_step
        self._ended = self._is_settled()

    def _is_settled(self) -> bool:
        """Whether the rows stayed at the target for some evaluations that made little better of what is to stay."""
        count = self.patience + 1 if len(self._rows) > 1 else 1
        last = [self._order(point) for point in self.curve[1:][-count:]]
        there = len(last) == count and not any(beyond or lacks for beyond, lacks, _ in last)
        return there and last[0][2] - min(kept for *_, kept in last) <= self.min_delta

    def _point(self, step: int) -> dict[str, Any]:
        return next(point for point in self.curve if point["step"] == step)

    def _finish(self, trainer: Trainer, module: LightningModule) -> None:
        if not self._ended:
            self._evaluate(trainer, module)  # the last update may not have been measured
        if not self._best_step:
            return  # no update was made, which the objective reports
        if self._best_step != trainer.global_step:
            self._best.give_back(module)
        self._best = BestWeights(self.device)
        point = self._point(self._best_step)
        beyond, lacks, _ = self._order(point)
        self.outcome = StopOutcome(
            beyond == lacks == 0,
            self._best_step,
            trainer.global_step,
            point["forget"],
            *self._goal,
            self._lost(point),
            self.margin,
        )
        tell = rank_zero_info if self.outcome.reached else rank_zero_warn
        tell(f"{_NAME}: {self.outcome}")
