"""Requests to forget rows, a class or files of the training set of any LightningModule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch.utils.data import Subset

from lightning_unlearn.audit.entries import model_entry
from lightning_unlearn.audit.hashes import rows_root
from lightning_unlearn.core.checks import above, trainer_optimizes
from lightning_unlearn.core.files import sha256
from lightning_unlearn.core.lightning import PACKAGES, LightningModule
from lightning_unlearn.core.transfer import transferred
from lightning_unlearn.forget.chosen_rows import class_labels, numbers_of, write_ranges
from lightning_unlearn.forget.door import Findings, Plan, RequestOptions
from lightning_unlearn.forget.module_evidence import (
    outcome_section,
    own_metrics,
    own_section,
    relearn,
    relearning_section,
    threshold_section,
)
from lightning_unlearn.forget.module_measures import NamedRows, RowMeasures, measure, membership
from lightning_unlearn.forget.module_method import AUTO, Goal, ModuleMethod, choose_method
from lightning_unlearn.forget.module_verdict import Criterion, Thresholds, conclude, criteria, headline, knew
from lightning_unlearn.forget.score_choice import ScoreChoice, choose_score, given_score
from lightning_unlearn.forget.user_data import DataModuleSplit, UserData, batch_size_of, data_arguments
from lightning_unlearn.forget.user_module import base_rates, open_module, read_checkpoint, recorded_rates
from lightning_unlearn.relearning import RelearningCurve
from lightning_unlearn.report.model import UnlearningReport

__all__ = ["ModuleRequest"]

FILE = "unlearned.ckpt"
_MARGIN = 0.1  # nats, or share of the loss, that rows to keep may lose until the run ends
_RATE = 1e-3  # of Adam, where the module's own optimizer does not tell

_LIMITS = [
    "That these tests find no trace does not prove that there is none: a new attack can reopen the question.",
    "Forgetting in the weights deletes no data elsewhere: the raw rows, backups, caches, other checkpoints and models "
    "that were made from this one.",
]
_TERMS = {
    "NLL": "Negative log-likelihood of the label, in nats: 0 is certain, each step of 0.69 halves its probability.",
    "AUC": "Chance that a row to forget is likelier to the model than a row that it never saw. 0.5 tells nothing; above "
    "it the rows are remembered, below it they stand out as removed.",
}


class ModuleRequest:
    """A request to let a LightningModule forget rows, a class or files of its training set.

    Args:
        checkpoint: Checkpoint that ``Trainer.save_checkpoint`` or ``ModelCheckpoint`` wrote.
        module: Class of the module, ``my_package.my_module:LitNet`` or ``my_file.py:LitNet``. Arguments of its
            constructor that the checkpoint does not have: ``--module.<name> <value>``.
        data: Class of its data module, likewise, with ``--data.<name> <value>``.
        rows: Row numbers of the training set, counted from 0: ``0-99,205``, or a file with one a line (also ``.npy``,
            ``.json``).
        classes: Class to forget, by number, or by the name that the dataset's ``classes`` has. On the command line
            ``--class 3``; several: ``--class [3,5]``.
        files: Text file with names of files of the training set, one a line.
        method: ``auto``, or a file of callbacks as in ``callbacks/``; on the command line also the name of a shipped
            one, such as ``scrub`` or ``npo``.
        retrained: Checkpoint of the same class that was trained without the rows, to compare with.
        score: How the module is read: ``classifier_nll``, ``binary_nll``, ``segmentation_nll``, ``soft_label_nll``,
            ``training_step_loss`` or the import path of a function. By default the one that fits its outputs.
        learning_rate_factor: Learning rate, as a share of that of the training.
        batch_size: Rows to forget, and as many to retain, in a batch; by default the data module's.
        module_args: Arguments of the module's constructor.
        data_args: Arguments of the data module's constructor.
        trust_checkpoint: Load checkpoints that hold objects of classes, by which such a file can run code.
        options: Options that requests of all kinds share.

    Raises:
        ValueError: If a number is out of range.
    """

    kind = "module"

    def __init__(
        self,
        checkpoint: str,
        module: str,
        data: str,
        rows: str | list[int] | None = None,
        classes: int | str | list[int | str] | None = None,
        files: str | None = None,
        method: str = AUTO,
        retrained: str | None = None,
        score: str | None = None,
        learning_rate_factor: float = 0.1,
        batch_size: int | None = None,
        module_args: dict[str, Any] | None = None,
        data_args: dict[str, Any] | None = None,
        trust_checkpoint: bool = False,
        options: RequestOptions | None = None,
    ) -> None:
        self.checkpoint, self.module, self.data, self.retrained = checkpoint, module, data, retrained
        self.rows, self.classes, self.files = rows, classes, files
        self.method_name, self.score_path = method, score
        self.factor = above("learning_rate_factor", learning_rate_factor, 0)
        self.batch_size = batch_size
        self.module_args, self.data_args = dict(module_args or {}), dict(data_args or {})
        self.trusted, self.options = trust_checkpoint, options or RequestOptions()
        self.thresholds = Thresholds()
        self.notes: list[str] = []

    @staticmethod
    def words(args: Sequence[str]) -> list[str]:
        """The command line with the options that are no names of Python, or belong to the user's classes."""
        renamed = []
        for word in args:
            option, equals, value = word.partition("=")
            if option == "--class":
                option = "--classes"
            for part in ("module", "data"):
                if option.startswith(f"--{part}."):
                    option = f"--{part}_args.{option.partition('.')[2]}"
            renamed.append(f"{option}{equals}{value}")
        return renamed

    # ---- before ------------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Open the module, split the data, choose score and method, and measure the model before.

        Raises:
            ValueError: If something does not fit.
            FileNotFoundError: If a file is not there.
        """
        held = read_checkpoint(self.checkpoint, self.trusted)
        opened = self._open(self.checkpoint)
        self._take_data_arguments(held)
        trainer_optimizes("forget", opened)
        self.rates = base_rates(opened) or recorded_rates(held)
        self._check_packages(opened)
        self._check_split()
        self.choice = self._choose_score(opened)
        self.before = measure(opened.to(self._device), self.choice, self.sets, self.options.seed)
        self.knew = knew(self.before, self.whole_class, self.thresholds)
        self.method = self._choose_method()
        if self.retrained is not None:
            read_checkpoint(self.retrained, self.trusted)
            self._open(self.retrained)
        self._note()

    def _take_data_arguments(self, held: dict[str, Any]) -> None:
        """Take the data module's arguments from the checkpoint, where it saved its hyperparameters in the training."""
        saved = data_arguments(self.data, held)
        taken = {name: value for name, value in saved.items() if name not in self.data_args}
        if taken:
            self.notes.append(f"{self.data} has the arguments that the checkpoint has of it: {taken}.")
        self.data_args = taken | self.data_args

    def _open(self, path: str) -> LightningModule:
        return open_module(path, self.module, self.module_args, self.trusted)

    @cached_property
    def _device(self) -> torch.device:
        accelerated = self.options.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
        return torch.device("cuda" if accelerated else "cpu")

    @cached_property
    def user(self) -> UserData:
        """The user's data module."""
        user = UserData(self.data, self.data_args, self.options.seed)
        user.prepare()
        return user

    def _check_packages(self, opened: LightningModule) -> None:
        pairs = [(p, isinstance(opened, p.LightningModule)) for p in PACKAGES]
        if not any(isinstance(self.user.module, p.LightningDataModule) for p, of in pairs if of):
            raise ValueError(
                f"{self.module} and {self.data} are of the two packages lightning.pytorch and pytorch_lightning, and no "
                "Trainer takes both. Derive both from classes of one package."
            )

    def _check_split(self) -> None:
        """Which rows are to be forgotten, and whether another run would find the same rows under these numbers."""
        loader = self.user.train_loader()
        self.fingerprint = self.user.fingerprint()
        other = UserData(self.data, self.data_args, self.options.seed + 1)
        if other.fingerprint() != self.fingerprint:
            text = (
                f"{self.user.kind.__name__} splits or draws its training rows anew in each run: with another seed there "
                "are others. Give the split a generator with a seed, such as random_split(rows, sizes, "
                "generator=torch.Generator().manual_seed(0))"
            )
            if self.rows is not None:
                raise ValueError(f"{text}, and count the rows to forget in that split. Row numbers mean nothing here.")
            self.notes.append(f"{text}. Rows that the model was trained on may be among those counted as never seen.")
        labels = None
        if self.classes is not None:
            labels = self.user.labels(loader.dataset, loader.collate_fn)
        self.numbers = numbers_of(
            loader.dataset, self.rows, self.classes, self.files, None if labels is None else lambda: labels
        )

    @property
    def whole_class(self) -> bool:
        """Whether classes are to be forgotten."""
        return self.classes is not None

    @cached_property
    def split(self) -> DataModuleSplit:
        """The data of the run, set up."""
        split = DataModuleSplit(**self._split_arguments())
        split.prepare_data()
        split.setup("fit")
        return split

    def _split_arguments(self) -> dict[str, Any]:
        return {
            "data": _absolute(self.data),
            "forget": write_ranges(self.numbers),
            "arguments": self.data_args,
            "fingerprint": self.fingerprint,
            "batch_size": self.batch_size,
            "seed": self.options.seed,
        }

    @cached_property
    def sets(self) -> dict[str, NamedRows]:
        """The rows that are measured."""
        hooks = self.user.module
        found = {name: NamedRows(rows, self.split.collate_fn, hooks) for name, rows in self.split.sets.items()}
        held_out = self.user.held_out()
        if held_out is None:
            self.notes.append(
                f"{self.user.kind.__name__} gives no test or validation rows, so there is nothing to compare the rows to "
                "forget with, and no verdict is drawn. Give the data module a test_dataloader or val_dataloader."
            )
            return found
        name, loader = held_out
        self.held_out_name = name
        dataset: Any = loader.dataset
        collate: Any = loader.collate_fn
        if not self.whole_class:
            return found | {"test": NamedRows(dataset, collate, hooks)}
        labels = self.user.labels(dataset, collate)
        asked = torch.isin(labels, torch.tensor(class_labels(self.user.train_loader().dataset, self.classes)))
        parts = {"test": ~asked, "test_forget": asked}
        rows = {name: Subset(dataset, chosen.nonzero()[:, 0].tolist()) for name, chosen in parts.items() if chosen.any()}
        return found | {name: NamedRows(part, collate, hooks) for name, part in rows.items()}

    def _choose_score(self, opened: LightningModule) -> ScoreChoice:
        if self.score_path is not None:
            return given_score(self.score_path)
        rows = self.sets["forget"].drawn(self.options.seed, batch_size_of(self.user.train_loader()))
        batch = next(iter(rows.batches(len(rows.rows))))
        return choose_score(opened, transferred(opened, batch))

    def _choose_method(self) -> ModuleMethod:
        batches = math.ceil(len(self.split.sets["retain"]) / self.split.retain_batch_size)
        return choose_method(self.method_name, self.choice, self._goal(), batches, self.options.max_steps)

    def _goal(self) -> Goal | None:
        """When enough is forgotten: rows as rows never seen, a class as one that is never guessed."""
        unseen, kept = self.before.get("test"), self.before["retain"].mean_nll
        margin = _MARGIN if self.choice.reads_logits else max(_MARGIN * abs(kept), 1e-6)
        classes = self.before["forget"].classes
        if self.whole_class and classes is not None:
            return Goal(3 * math.log(classes), margin, "three times that of guessing")
        if unseen is None or self.whole_class or unseen.mean_nll <= 0:
            return None
        return Goal(unseen.mean_nll, margin, "that of rows never seen")

    def _note(self) -> None:
        if self.trusted:
            self.notes.append("The checkpoint is trusted: objects of any class were loaded from it.")
        if self.knew is False:
            self.notes.append(
                "The model does not know what is to be forgotten better than what it never saw: there may be nothing to "
                "forget, and no verdict will be drawn."
            )
        if self.retrained is None:
            self.notes.append(
                "Without --retrained, a checkpoint of a model that was trained without the rows, nothing tells forgotten "
                "from hidden."
            )

    def plan(self) -> Plan:
        """What the request will do."""
        sizes = {name: len(rows.rows) for name, rows in self.sets.items()}
        rate = "that of the training" if self.rates is None else ", ".join(f"{rate:.3g}" for rate in self.rates)
        steps = self.method.trainer.get("max_steps")
        unseen = f"{sizes['test']} rows of its {self.held_out_name} loader" if "test" in sizes else "none"
        lines = {
            "model": f"{self.module} of {self.checkpoint}",
            "to forget": f"{self._asked()}: {sizes['forget']} of the {sizes['forget'] + sizes['retain']} training rows "
            f"of {self.data}",
            "known so far": self._known(),
            "to keep": f"the other {sizes['retain']} training rows; never seen: {unseen}",
            "read as": f"{self.choice.path.rpartition('.')[2]}: {self.choice.reason}",
            "method": f"{self.method.name}, learning rate {self.factor:g} of {rate}, gradients clipped",
            "stops when": self.method.stops,
            "cost": f"at most {steps} steps of 2 x {self.split.batch_size} rows" if steps else "one pass over the rows",
            "evidence": "accuracy, likelihood and membership inference before and after, the module's own metrics"
            + (", relearning against the retrained model" if self.retrained else ""),
        }
        return Plan(lines, self.notes)

    def _asked(self) -> str:
        if self.classes is not None:
            several = isinstance(self.classes, list) and len(self.classes) > 1
            return f"class{'es' if several else ''} {self.classes}".replace("[", "").replace("]", "")
        return "the rows of given files" if self.files is not None else "rows of given numbers"

    def _known(self) -> str:
        forget, unseen = self.before["forget"], self.before.get("test_forget", self.before.get("test"))
        values = []
        for rows, words in ((forget, "rows to forget"), (unseen, "rows never seen")):
            if rows is not None:
                shown = f"loss {rows.mean_nll:.3g}" if rows.accuracy is None else f"{rows.accuracy:.1%} right"
                values.append(f"{words} {shown}")
        auc = "" if unseen is None else f"; membership AUC {membership(forget.nll, unseen.nll).auc:.3f}"
        return ", ".join(values) + auc

    def entries(self, secret: bytes) -> dict[str, Any]:
        """What the record says of the request; row numbers and file names are hashed."""
        return {
            "kind": self.kind,
            "models": {"before": model_entry(self.checkpoint)},
            "module": self.module,
            "data": {
                "class": self.data,
                "training_set": self.fingerprint,
                "forget_rows": len(self.numbers),
                "forget_root": rows_root([str(number) for number in self.numbers], secret),
                "classes": None if self.classes is None else str(self.classes),
            },
            "method": {
                "name": self.method.name,
                "callbacks": self.method.callbacks,
                "trainer": self.method.trainer,
                "learning_rate_factor": self.factor,
                "seed": self.options.seed,
                "score": self.choice.path,
            },
            "retrained": None if self.retrained is None else sha256(self.retrained),
        }

    # ---- the run and after -------------------------------------------------------------------------------------------

    def config(self, folder: Path) -> dict[str, Any]:
        """The run as LightningCLI reads it."""
        model = {
            "checkpoint": _absolute(self.checkpoint),
            "module": _absolute(self.module),
            "arguments": self.module_args,
            "trusted": self.trusted,
            "sha256": sha256(self.checkpoint),
            "rate": self.factor,
        }
        split = {**self._split_arguments(), "epoch": self.method.epoch}
        return {
            "seed_everything": self.options.seed,
            "model": {"class_path": "lightning_unlearn.forget.user_module.open_module", "init_args": model},
            "data": {"class_path": "lightning_unlearn.forget.user_data.DataModuleSplit", "init_args": split},
            "trainer": {
                **self.method.trainer,
                "limit_val_batches": 0,
                "num_sanity_val_steps": 0,
                "log_every_n_steps": 10,
                "callbacks": self.method.callbacks,
            },
        }

    def export(self, ckpt: Path, folder: Path) -> None:
        """Write ``unlearned.ckpt``, which the user's class opens: weights, hyperparameters, and what its own hook adds."""
        before, after = read_checkpoint(self.checkpoint, self.trusted), read_checkpoint(str(ckpt), self.trusted)
        kept = {name: after[name] for name in before if name in after and name not in _OF_A_RUN}
        folder.mkdir(parents=True)
        torch.save(kept, folder / FILE)
        written = self._open(str(folder / FILE))
        state = after["state_dict"]
        if any(not torch.equal(value.cpu(), state[name].cpu()) for name, value in written.state_dict().items()):
            raise ValueError(f"{self.module} changes its weights when it is opened, so the written model is another one.")

    def evidence(self, model: Path, work: Path) -> Findings:
        """Measure the model before and after, and the retrained one."""
        seed = self.options.seed
        paths = {"before": self.checkpoint, "after": str(model / FILE), "control": self.retrained}
        models = {name: self._open(path).to(self._device) for name, path in paths.items() if path is not None}
        measured = {n: measure(m, self.choice, self.sets, seed) for n, m in models.items() if n != "before"}
        measured["before"] = self.before
        curve = None
        if "control" in models:
            rate = self.factor * self.rates[0] if self.rates else _RATE * self.factor
            three = (models["after"], models["before"], models["control"])
            curve = relearn(*three, self.sets["forget"], self.choice.score, rate, seed)
        own = {name: own_metrics(m, self.split, self.options.accelerator) for name, m in models.items()}
        control = measured.get("control")
        found = criteria(
            self.before, measured["after"], control, curve, self.whole_class, self.thresholds
        )
        return self._findings(measured, found, curve, own)

    def _findings(
        self,
        measured: dict[str, dict[str, RowMeasures]],
        found: list[Criterion],
        curve: RelearningCurve | None,
        own: dict[str, dict[str, float]],
    ) -> Findings:
        word = conclude(found, self.knew, "control" in measured)
        sections = [
            threshold_section(found),
            outcome_section(self.before, measured["after"], measured.get("control"), self.options.seed),
            *([relearning_section(curve)] if curve is not None else []),
            own_section(own["before"], own["after"], own.get("control")),
        ]
        lines = self.plan().lines
        report = UnlearningReport(
            title=f"{self.module.rpartition(':')[2]}: {self._asked()} forgotten by {self.method.name}",
            headline=headline(word, found),
            sections=[section for section in sections if section.parts],
            subject={name: lines[name] for name in ("model", "to forget", "to keep", "method", "stops when")},
            provenance={
                "checkpoint": sha256(self.checkpoint),
                "training set": self.fingerprint,
                "seed": self.options.seed,
                "score": self.choice.path,
                "thresholds": cast(Any, self.thresholds.as_dict()),
                **({"retrained": sha256(self.retrained)} if self.retrained else {}),
            },
            limits=[*_LIMITS, *self.notes],
            terms=_TERMS,
        )
        criteria_met = [[c.kind, c.name, c.threshold, c.measured, c.outcome] for c in found]
        return Findings(
            report,
            {
                "verdict": word,
                "headline": report.headline.summary if report.headline else "",
                "criteria": criteria_met,
                "thresholds": self.thresholds.as_dict(),
            },
        )


_OF_A_RUN = ("callbacks", "optimizer_states", "lr_schedulers", "loops", "MixedPrecision", "datamodule_hyper_parameters")
"""Keys of a checkpoint that are of the run that wrote it."""


def _absolute(path: str) -> str:
    """A file with its whole path, also one with a class, ``net.py:LitNet``; import paths stay as they are."""
    file, colon, name = path.rpartition(":") if ".py:" in path else (path, "", "")
    return f"{Path(file).expanduser().resolve()}{colon}{name}" if Path(file).expanduser().is_file() else path
