"""Monitor of classifiers: accuracies, membership inference and the gap to a retrained model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_unlearn.classification.metrics.accuracy import accuracy, unlearning_accuracy
from lightning_unlearn.classification.metrics.features import FEATURES
from lightning_unlearn.classification.metrics.gap import average_gap
from lightning_unlearn.classification.metrics.mia import Attack, MIAEfficacy, Role, Shadow, attack_accuracy
from lightning_unlearn.classification.metrics.outputs import Outputs, join_outputs, read_outputs
from lightning_unlearn.core.checks import at_least
from lightning_unlearn.core.distributed import gather_objects, load_full_tensor, rank
from lightning_unlearn.core.evaluation import Evaluation
from lightning_unlearn.core.lightning import (
    LightningModule,
    Logger,
    MisconfigurationException,
    Trainer,
    isolate_rng,
    rank_zero_info,
    rank_zero_warn,
)
from lightning_unlearn.core.modes import evaluating
from lightning_unlearn.core.monitor import Monitor, log_table
from lightning_unlearn.core.pairing import ForgetRetainDataModule
from lightning_unlearn.core.reference import exchanged
from lightning_unlearn.core.rows import RowLoader, RunRows, row_loader
from lightning_unlearn.core.scores import Score, classifier_nll, prediction_score

__all__ = ["ClassifierMonitor"]

_GAP = {"ua": "forget/ua", "ra": "retain/ra", "ta": "test/ta", "mia": "forget/mia"}
_UNMOVED = 0.5  # percentage points of UA
_ROLES: dict[str, Role] = {"retain": "member", "test": "nonmember", "forget": "forget"}


class ClassifierMonitor(Monitor):
    r"""Monitor of UA, RA, TA, membership inference and the gap to a retrained model, before, during and after a run.

    $$\mathrm{average\ gap} = \tfrac14 \big(|\Delta \mathrm{UA}| + |\Delta \mathrm{RA}| + |\Delta \mathrm{TA}| +
    |\Delta \mathrm{MIA}|\big)$$

    Logs ``eval/forget/ua``, ``eval/forget/mia``, ``eval/retain/ra``, ``eval/test/ta`` and, with a retrained model,
    ``eval/average_gap``, all in percent, and ``eval/<set>/accuracy`` of any other set. ``mia`` is the attack by
    confidence, ``mia_<feature>`` the attack by another feature. At the end, a table compares the numbers before and
    after the run with those of the retrained model. ``EarlyStopping`` and ``ModelCheckpoint`` can monitor the numbers
    if they come after it in the list of callbacks; ``trainer.validate`` and ``trainer.test`` return them.

    The rows come from the run's validation (or test) loaders, a dict with ``forget``, ``retain`` and ``test``; if
    ``forget`` or ``retain`` is missing, from the training loaders. Use test-time transforms, and leave a class that is
    forgotten as a whole out of ``test``. The rows are divided among the processes.

    Args:
        every_n_epochs: Number of epochs between measurements; 0 measures only before and after the run.
        retrained: A model trained without the forget rows, on the same seed and split: a checkpoint of the same
            module or its state dict, or the numbers ``ua``, ``ra``, ``ta`` and ``mia`` in percent.
        features: Features of the membership attack, see
            [`MIAEfficacy`][lightning_unlearn.classification.metrics.mia.MIAEfficacy]; empty for no attack.
        attack: ``"svc"`` as published, or ``"logistic"``.
        shadow: ``"random"``, ``"stratified"`` by class, or ``"first"`` as published.
        max_shadow: Maximum number of members, and of non-members, for the attack; ``None`` for all. The cost of the SVC
            grows with its square.
        max_retain_drop: Drop of RA, in percentage points, above which a warning is given once.
        seed: Seed of the attack's draw.
        score: Reads logits and labels from the module.

    Raises:
        ValueError: If an argument is out of range, the score gives no logits, or the retrained weights belong to
            another module.
        MisconfigurationException: If a set is missing, or its rows can't be read one by one.
        ImportError: If there is an attack and scikit-learn is missing.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> monitor = ClassifierMonitor(retrained={"ua": 3.6, "ra": 100.0, "ta": 96.2, "mia": 10.6})
        >>> trainer = Trainer(callbacks=[monitor], logger=False, accelerator="cpu")

    References:
        Jia et al., *Model Sparsity Can Simplify Machine Unlearning*, arXiv:2304.04934.
    """

    def __init__(
        self,
        every_n_epochs: int = 1,
        retrained: str | Path | dict[str, float] | None = None,
        features: Sequence[str] = ("confidence",),
        attack: Attack = "svc",
        shadow: Shadow = "random",
        max_shadow: int | None = 2000,
        max_retain_drop: float = 10.0,
        seed: int = 0,
        score: Score = classifier_nll,
    ) -> None:
        super().__init__(every_n_epochs)
        measured = [name for name in _GAP if name != "mia" or "confidence" in features]
        if isinstance(retrained, dict) and retrained.keys() != set(measured):
            raise ValueError(f"retrained must have the numbers {measured} in percent, but got {sorted(retrained)}.")
        if isinstance(retrained, (str, Path)) and not Path(retrained).is_file():
            raise ValueError(f"retrained={str(retrained)!r} is no file. Give a checkpoint, a state dict, or numbers.")
        if features:
            MIAEfficacy(features, attack, shadow, max_shadow)
        self.retrained, self.features, self.attack, self.shadow = retrained, features, attack, shadow
        self.max_shadow, self.max_retain_drop = max_shadow, at_least("max_retain_drop", max_retain_drop, 0)
        self.seed, self.score = seed, prediction_score("ClassifierMonitor", score, "reads logits")
        self.reference: dict[str, float] | None = None
        """The numbers of the retrained model on the same sets."""
        self._gap = {name: _GAP[name] for name in measured}
        self._warned = False
        self._attack: tuple[float, float] | None = None
        self._attacks: list[tuple[float, float] | None] = []

    def evaluate(self, trainer: Trainer, module: LightningModule) -> Evaluation:
        """Measure every set now, without logging."""
        loaders = self._loaders(trainer)
        metrics = self._measure(trainer, module, loaders)
        attack = self._attack
        if self.retrained is not None:
            if self.reference is None:
                self.reference = self._measure_retrained(trainer, module, loaders)
            pair = ({name: numbers[key] for name, key in self._gap.items()} for numbers in (metrics, self.reference))
            metrics["average_gap"] = average_gap(*pair)
        self._attack = attack
        return Evaluation(trainer.global_step, metrics)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the result and show it."""
        super().on_train_end(trainer, pl_module)
        if doubts := self._doubts():
            rank_zero_warn(" ".join(doubts))
        lines = [" ".join(f"{cell:>{w}}" for cell, w in zip(row, (24, 8, 8, 9), strict=False)) for row in self._table()]
        rank_zero_info("\n".join(lines))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure in ``trainer.validate``."""
        if trainer.state.fn == "validate":
            self._log_evaluation(trainer, pl_module)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure in ``trainer.test``."""
        self._log_evaluation(trainer, pl_module)

    def show(self, logger: Logger, step: int) -> None:
        """Log the table that compares the numbers before and after the run and those of the retrained model."""
        columns, *rows = self._table()
        log_table(logger, "eval/outcome", columns, rows, step)

    def state_dict(self) -> dict[str, Any]:
        """The evaluations so far, and the numbers of the retrained model."""
        return {**super().state_dict(), "reference": self.reference}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the evaluations of the resumed run."""
        super().load_state_dict(state_dict)
        self.reference = state_dict["reference"]

    def _evaluate(self, trainer: Trainer, module: LightningModule) -> None:
        super()._evaluate(trainer, module)
        self._attacks.append(self._attack)
        before, now = (self.history[i].metrics["retain/ra"] for i in (0, -1))
        if before - now > self.max_retain_drop and not self._warned:
            self._warned = True
            rank_zero_warn(
                f"Accuracy on the retain rows has fallen by {before - now:.1f} points, from {before:.1f} to {now:.1f}. "
                "The model forgets more than it should: lower the learning rate, give retain rows more weight, clip "
                "gradients or stop earlier."
            )

    def _doubts(self) -> list[str]:
        """Reasons not to trust the numbers after the run."""
        before, after = (self.history[i].metrics for i in (0, -1))
        moved, lost = after["forget/ua"] - before["forget/ua"], before["retain/ra"] - after["retain/ra"]
        doubts = []
        if abs(moved) < _UNMOVED:
            doubts.append(
                f"UA did not move: {before['forget/ua']:.1f} before the run and {after['forget/ua']:.1f} after it. If "
                "a retrained model errs on more of the forget rows, this run has not unlearned them: raise the "
                "learning rate or the number of epochs."
            )
        if lost > self.max_retain_drop:
            doubts.append(
                f"RA collapsed: {before['retain/ra']:.1f} before the run and {after['retain/ra']:.1f} after it, so a "
                "high UA says nothing. Lower the learning rate, clip gradients, or give retain rows more weight."
            )
        attack = self._attacks[-1] if self._attacks else None
        if attack is not None and attack[0] - attack[1] <= 50:
            doubts.append(
                f"The membership attack is at chance: it tells {attack[0]:.1f} ± {attack[1]:.1f} % of the retain and "
                "test rows that it was not fitted on apart, where guessing gives 50. Its number forget/mia, and its "
                "part of average_gap, say nothing about forgetting."
            )
        return doubts

    def _log_evaluation(self, trainer: Trainer, module: LightningModule) -> None:
        # Measure the retrained model again: these sets may differ from those of the training run.
        self.reference, of_training = None, self.reference
        metrics = self.evaluate(trainer, module).metrics
        self.reference = of_training
        self.log_metrics(trainer, module, metrics)

    def _loaders(self, trainer: Trainer) -> dict[str, RowLoader]:
        datamodule = getattr(trainer, "datamodule", None)
        given: Any = trainer.test_dataloaders if trainer.testing else trainer.val_dataloaders
        loaders: dict[str, Any] = {}
        if isinstance(datamodule, ForgetRetainDataModule):
            loaders |= datamodule.set_loaders()
        elif given is None and datamodule is not None:
            given = datamodule.val_dataloader()  # limit_val_batches=0
        if isinstance(given, Mapping):
            loaders |= given
        for name in ("forget", "retain"):
            loaders.setdefault(name, row_loader(trainer.train_dataloader, name))
        readable = {name: row_loader({name: loader}, name) for name, loader in loaders.items()}
        missing = [name for name in _ROLES if readable.get(name) is None]
        if missing:
            raise MisconfigurationException(
                f"ClassifierMonitor needs rows of map-style datasets for {list(_ROLES)}, but {missing} are missing. "
                "Pass ForgetRetainDataModule(forget, retain, {'test': ...}), or let val_dataloader (in trainer.test, "
                "test_dataloader) return a dict of loaders with these names."
            )
        return {name: loader for name, loader in readable.items() if loader is not None}

    def _measure(self, trainer: Trainer, module: LightningModule, loaders: Mapping[str, RowLoader]) -> dict[str, float]:
        outputs = {}
        with isolate_rng(), evaluating(module), trainer.precision_plugin.forward_context():
            for name, loader in loaders.items():
                rows = RunRows(trainer, loader, f"ClassifierMonitor: {name} rows")
                outputs[name] = join_outputs(
                    name, rows.gather([read_outputs(module, batch, self.score) for batch, _ in rows])
                )
        # The attack is slow, so only one process runs it.
        metrics: dict[str, float] = gather_objects(self._metrics(outputs) if rank() == 0 else None)[0]
        return metrics

    def _metrics(self, outputs: Mapping[str, Outputs]) -> dict[str, float]:
        metrics = {
            "forget/ua": unlearning_accuracy(*outputs["forget"]).item(),
            "retain/ra": accuracy(*outputs["retain"]).item(),
            "test/ta": accuracy(*outputs["test"]).item(),
        }
        if self.features:
            attack = MIAEfficacy(
                self.features, self.attack, self.shadow, self.max_shadow, self.seed, sync_on_compute=False
            )
            for name, role in _ROLES.items():
                attack.update(*outputs[name], role)
            names = {name: "forget/mia" if name == "confidence" else f"forget/mia_{name}" for name in FEATURES}
            metrics |= {names[name]: value for name, value in attack.compute().items()}
            self._attack = self._judged(outputs)
        others = {name: rows for name, rows in outputs.items() if name not in _ROLES}
        return metrics | {f"{name}/accuracy": accuracy(*rows).item() for name, rows in others.items()}

    def _judged(self, outputs: Mapping[str, Outputs]) -> tuple[float, float] | None:
        """Accuracy of the attack by confidence, or by the first feature, on rows that it was not fitted on."""
        name = "confidence" if "confidence" in self.features else self.features[0]
        members, nonmembers = (FEATURES[name](*outputs[part]) for part in ("retain", "test"))
        if min(len(members), len(nonmembers), self.max_shadow or 2) < 2:
            return None
        labels = {"member_labels": outputs["retain"].labels, "nonmember_labels": outputs["test"].labels}
        options: Any = {"attack": self.attack, "shadow": self.shadow, "max_shadow": self.max_shadow, "seed": self.seed}
        return attack_accuracy(members, nonmembers, **labels, **options)

    def _measure_retrained(
        self, trainer: Trainer, module: LightningModule, loaders: Mapping[str, RowLoader]
    ) -> dict[str, float]:
        if isinstance(self.retrained, dict):
            return {_GAP[name]: value for name, value in self.retrained.items()}
        assert self.retrained is not None
        # In trainer.validate and trainer.test, the module would otherwise keep inference tensors.
        with torch.inference_mode(False), exchanged(module, _stored_values(self.retrained, module)):
            return self._measure(trainer, module, loaders)

    def _table(self) -> list[list[str]]:
        before, after = self.history[0].metrics, self.history[-1].metrics
        columns = [("before", before), ("after", after)]
        columns += [("retrained", self.reference)] if self.reference is not None else []
        rows = [[name, *(f"{v[name]:.2f}" if name in v else "" for _, v in columns)] for name in after]
        if attacks := [self._attacks[0], self._attacks[-1]] if self._attacks else []:
            cells = [f"{a[0]:.1f}±{a[1]:.1f}" if a else "" for a in attacks]
            rows.append(["attack on other rows", *cells, *[""] * (len(columns) - len(cells))])
        return [["percent", *(title for title, _ in columns)], *rows]


def _stored_values(path: str | Path, module: LightningModule) -> dict[str, Tensor]:
    """The weights and buffers of a file, for `exchanged`."""
    stored = torch.load(path, map_location="cpu", weights_only=True)
    stored = stored.get("state_dict", stored)
    shapes, wanted = ({k: tuple(t.shape) for k, t in state.items()} for state in (stored, module.state_dict()))
    if shapes != wanted:
        odd = sorted({name for name, _ in shapes.items() ^ wanted.items()})
        raise ValueError(
            f"retrained={str(path)!r} is not of this module: {len(odd)} of its weights differ in name or shape, such "
            f"as {odd[0]!r}. Give a checkpoint of {type(module).__name__}, or torch.save(module.state_dict(), ...)."
        )
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    values = {name: torch.empty_like(tensor.detach()) for name, tensor in tensors.items() if name in stored}
    for name, value in values.items():
        load_full_tensor(value, stored[name])
    return values
