"""Opening of a user's module and data, and measurements before anything is changed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Subset

from lightning_unlearn.core.checks import trainer_optimizes
from lightning_unlearn.core.lightning import PACKAGES, LightningModule
from lightning_unlearn.core.transfer import transferred
from lightning_unlearn.forget.chosen_rows import class_labels, numbers_of, write_ranges
from lightning_unlearn.forget.module_measures import NamedRows, measure
from lightning_unlearn.forget.module_method import Goal
from lightning_unlearn.forget.module_verdict import Thresholds, knew
from lightning_unlearn.forget.score_choice import ScoreChoice, choose_score, given_score
from lightning_unlearn.forget.user_data import DataModuleSplit, UserData, batch_size_of, data_arguments
from lightning_unlearn.forget.user_module import base_rates, open_module, read_checkpoint, recorded_rates

__all__ = ["Asked", "Opened", "Opener", "absolute"]

_MARGIN, _SHARE = 0.05, 0.1  # that rows to keep may lose until the run ends, in nats, and as a share of a loss


@dataclass(frozen=True)
class Opener:
    """A user's classes, with their arguments.

    Args:
        module: Class of the module.
        data: Class of the data module.
        module_args: Arguments of the module's constructor.
        data_args: Arguments of the data module's constructor.
        trusted: Whether checkpoints may hold objects of any class.
    """

    module: str
    data: str
    module_args: dict[str, Any]
    data_args: dict[str, Any]
    trusted: bool

    def open(self, checkpoint: str) -> LightningModule:
        """The module with the weights of a checkpoint."""
        return open_module(checkpoint, self.module, self.module_args, self.trusted)


@dataclass(frozen=True)
class Asked:
    """What is to be forgotten, in one of three ways.

    Args:
        rows: Row numbers.
        classes: Classes.
        files: File of file names.
    """

    rows: Any = None
    classes: Any = None
    files: str | None = None

    @property
    def whole_class(self) -> bool:
        """Whether classes are to be forgotten."""
        return self.classes is not None

    def __str__(self) -> str:
        if self.classes is not None:
            listed = self.classes if isinstance(self.classes, Sequence) and not isinstance(self.classes, str) else None
            names = ", ".join(map(str, listed)) if listed is not None else str(self.classes)
            return f"class{'es' if listed is not None and len(listed) > 1 else ''} {names}"
        return "the rows of given files" if self.files is not None else "rows of given numbers"


@dataclass
class Opened:
    """A user's module and data, opened, checked and measured.

    Args:
        opener: The user's classes.
        checkpoint: File of the module before.
        asked: What is to be forgotten.
        seed: Seed of all draws.
        device: Where the module is measured.
        score: Import path of the score; by default one is chosen.
        batch_size: Rows of each role in a batch; by default the data module's.

    Raises:
        ValueError: If something does not fit.
        FileNotFoundError: If a file is not there.
    """

    opener: Opener
    checkpoint: str
    asked: Asked
    seed: int
    device: torch.device
    score: str | None = None
    batch_size: int | None = None
    thresholds: Thresholds = field(default_factory=Thresholds)
    notes: list[str] = field(default_factory=list)
    held_out_name: str = ""

    def __post_init__(self) -> None:
        held = read_checkpoint(self.checkpoint, self.opener.trusted)
        opened = self.opener.open(self.checkpoint)
        trainer_optimizes("forget", opened)
        self.rates = base_rates(opened) or recorded_rates(held)
        self._open_data(held)
        self._check_packages(opened)
        self._check_draws()
        self.numbers = self._numbers()
        self.split = DataModuleSplit(**self.split_arguments())
        self.split.prepare_data()
        self.split.setup("fit")
        self.sets = self._sets()
        self.choice = self._choose_score(opened)
        self.before = measure(opened.to(self.device), self.choice, self.sets, self.seed)
        self._note_shared()

    # ---- data --------------------------------------------------------------------------------------------------------

    def _open_data(self, held: dict[str, Any]) -> None:
        """Make the data module, with the arguments that the checkpoint has of it where none are given."""
        saved = data_arguments(self.opener.data, held)
        taken = {name: value for name, value in saved.items() if name not in self.opener.data_args}
        if taken:
            self.notes.append(f"{self.opener.data} has the arguments that the checkpoint has of it: {taken}.")
        self.data_args = taken | self.opener.data_args
        self.user = UserData(self.opener.data, self.data_args, self.seed)
        self.user.prepare()

    def _check_packages(self, opened: LightningModule) -> None:
        packages = [p for p in PACKAGES if isinstance(opened, p.LightningModule)]
        if not any(isinstance(self.user.module, p.LightningDataModule) for p in packages):
            raise ValueError(
                f"{self.opener.module} and {self.opener.data} are of the two packages lightning.pytorch and "
                "pytorch_lightning, and no Trainer takes both. Derive both from classes of one package."
            )

    def _check_draws(self) -> None:
        """See whether another run would find the same rows under these numbers."""
        self.fingerprint = self.user.fingerprint()
        if UserData(self.opener.data, self.data_args, self.seed + 1).fingerprint() == self.fingerprint:
            return
        text = (
            f"{self.user.kind.__name__} splits or draws its training rows anew in each run: with another seed there "
            "are others. Give the split a generator with a seed, such as random_split(rows, sizes, "
            "generator=torch.Generator().manual_seed(0))"
        )
        if self.asked.rows is not None:
            raise ValueError(f"{text}, and count the rows to forget in that split. Row numbers mean nothing here.")
        self.notes.append(f"{text}. Rows that the model was trained on may be among those counted as never seen.")

    def _numbers(self) -> list[int]:
        loader = self.user.train_loader()
        labels = self.user.labels(loader.dataset, loader.collate_fn) if self.asked.whole_class else None
        return numbers_of(loader.dataset, self.asked.rows, self.asked.classes, self.asked.files, labels)

    def split_arguments(self) -> dict[str, Any]:
        """Arguments of the data module of the run."""
        return {
            "data": absolute(self.opener.data),
            "forget": write_ranges(self.numbers),
            "arguments": self.data_args,
            "fingerprint": self.fingerprint,
            "batch_size": self.batch_size,
            "seed": self.seed,
        }

    def _sets(self) -> dict[str, NamedRows]:
        """The rows that are measured."""
        hooks = self.user.module
        found = {name: NamedRows(rows, self.split.collate_fn, hooks) for name, rows in self.split.sets.items()}
        held_out = self.user.held_out()
        if held_out is None:
            self.notes.append(
                f"{self.user.kind.__name__} gives no test or validation rows, so there is nothing to compare the rows "
                "to forget with, and no verdict is drawn. Give the data module a test_dataloader or val_dataloader."
            )
            return found
        self.held_out_name, loader = held_out
        dataset: Any = loader.dataset
        collate: Any = loader.collate_fn
        if not self.asked.whole_class:
            return found | {"test": NamedRows(dataset, collate, hooks)}
        wanted = class_labels(self.user.train_loader().dataset, self.asked.classes)
        asked = torch.isin(self.user.labels(dataset, collate), torch.tensor(wanted))
        parts = {"test": ~asked, "test_forget": asked}
        rows = {name: Subset(dataset, part.nonzero()[:, 0].tolist()) for name, part in parts.items() if part.any()}
        return found | {name: NamedRows(part, collate, hooks) for name, part in rows.items()}

    def _note_shared(self) -> None:
        shared = {"retain": "rows to keep", "test": "rows never seen", "test_forget": "rows never seen"}
        for name, words in shared.items():
            if name in self.before and (count := self.before["forget"].shared_with(self.before[name])):
                self.notes.append(
                    f"{count} of the rows to forget are, with the same content, also among the {words} that were "
                    "compared: that content is kept, or counted as never seen, as well."
                )

    # ---- score and goal ----------------------------------------------------------------------------------------------

    def _choose_score(self, opened: LightningModule) -> ScoreChoice:
        if self.score is not None:
            return given_score(self.score)
        rows = self.sets["forget"].drawn(self.seed, batch_size_of(self.user.train_loader()))
        batch = next(iter(rows.batches(len(rows.rows))))
        return choose_score(opened, transferred(opened, batch))

    @cached_property
    def knew(self) -> bool | None:
        """Whether the model knew what is to be forgotten."""
        return knew(self.before, self.asked.whole_class, self.thresholds)

    def goal(self) -> Goal | None:
        """When enough is forgotten: rows as rows never seen, a class as one that is never guessed."""
        unseen, kept = self.before.get("test"), self.before["retain"].mean_nll
        margin = _MARGIN if self.choice.reads_logits else max(_SHARE * abs(kept), 1e-6)
        classes = self.before["forget"].classes
        if self.asked.whole_class and classes is not None:
            return Goal(3 * math.log(classes), margin, "three times that of guessing")
        if unseen is None or self.asked.whole_class or unseen.mean_nll <= 0:
            return None
        return Goal(unseen.mean_nll, margin, "as that of rows never seen")

    @property
    def passes(self) -> int:
        """Batches of a pass over the rows to keep."""
        return math.ceil(len(self.split.sets["retain"]) / self.split.retain_batch_size)


def absolute(path: str) -> str:
    """A file with its whole path, also one with a class, ``net.py:LitNet``; import paths stay as they are."""
    file, colon, name = path.rpartition(":") if ".py:" in path else (path, "", "")
    full = Path(file).expanduser()
    return f"{full.resolve()}{colon}{name}" if full.is_file() else path
