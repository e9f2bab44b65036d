"""Requests to forget rows, a class or files of the training set of any LightningModule."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from lightning_unlearn.audit.entries import model_entry
from lightning_unlearn.audit.hashes import rows_root
from lightning_unlearn.core.checks import above
from lightning_unlearn.core.files import sha256
from lightning_unlearn.forget.module_findings import module_findings
from lightning_unlearn.forget.module_measures import membership
from lightning_unlearn.forget.module_method import AUTO, ModuleMethod, choose_method
from lightning_unlearn.forget.module_opening import Asked, Opened, Opener, absolute
from lightning_unlearn.forget.request import Findings, Plan, RequestOptions
from lightning_unlearn.forget.user_module import read_checkpoint

__all__ = ["ModuleRequest"]

FILE = "unlearned.ckpt"
_OF_A_RUN = ("callbacks", "optimizer_states", "lr_schedulers", "loops", "MixedPrecision", "datamodule_hyper_parameters")
"""Keys of a checkpoint that are of the run that wrote it."""


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
        self.opener = Opener(module, data, dict(module_args or {}), dict(data_args or {}), trust_checkpoint)
        self.checkpoint, self.retrained = checkpoint, retrained
        self.asked = Asked(rows, classes, files)
        self.method_name, self.score, self.batch_size = method, score, batch_size
        self.factor = above("learning_rate_factor", learning_rate_factor, 0)
        self.options = options or RequestOptions()

    @staticmethod
    def words(args: Sequence[str]) -> list[str]:
        """The command line with the options that are no names of Python, or belong to the user's classes.

        Example:
            >>> ModuleRequest.words(["--class", "3", "--data.size=8"])
            ['--classes', '3', '--data_args.size=8']
        """
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

    @cached_property
    def _device(self) -> torch.device:
        accelerated = self.options.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
        return torch.device("cuda" if accelerated else "cpu")

    # ---- before ------------------------------------------------------------------------------------------------------

    @cached_property
    def opened(self) -> Opened:
        """Module and data, opened and measured."""
        given = (self.opener, self.checkpoint, self.asked, self.options.seed, self._device, self.score, self.batch_size)
        return Opened(*given)

    @cached_property
    def method(self) -> ModuleMethod:
        """The method, with the settings of the run."""
        opened = self.opened
        return choose_method(
            self.method_name,
            opened.choice,
            self.asked.whole_class,
            opened.goal(),
            opened.passes,
            self.options.max_steps,
        )

    def check(self) -> None:
        """Open the module, split the data, choose score and method, and measure the model before.

        Raises:
            ValueError: If something does not fit.
            FileNotFoundError: If a file is not there.
        """
        if self.retrained is not None:
            read_checkpoint(self.retrained, self.opener.trusted)
            self.opener.open(self.retrained)
        assert self.method  # its callbacks are made once, for their own errors

    def plan(self) -> Plan:
        """What the request will do."""
        opened, method = self.opened, self.method
        sizes = {name: len(rows.rows) for name, rows in opened.sets.items()}
        rate = "that of the training" if opened.rates is None else ", ".join(f"{rate:.3g}" for rate in opened.rates)
        unseen = f"{sizes['test']} rows of its {opened.held_out_name} loader" if "test" in sizes else "none"
        steps = method.trainer.get("max_steps")
        lines = {
            "model": f"{self.opener.module} of {self.checkpoint}",
            "to forget": f"{self.asked}: {sizes['forget']} of the {sizes['forget'] + sizes['retain']} training rows of "
            f"{self.opener.data}",
            "known so far": self._known(),
            "to keep": f"the other {sizes['retain']} training rows; never seen: {unseen}",
            "read as": f"{opened.choice.path.rpartition('.')[2]}: {opened.choice.reason}",
            "method": f"{method.name}, learning rate {self.factor:g} of {rate}, gradients clipped",
            "stops when": method.stops,
            "cost": f"at most {steps} steps of 2 x {opened.split.batch_size} rows"
            if steps
            else "one pass over the rows",
            "evidence": "accuracy, likelihood and membership inference before and after, the module's own metrics"
            + (", relearning against the retrained model" if self.retrained else ""),
        }
        return Plan(lines, [*opened.notes, *self._notes()])

    def _known(self) -> str:
        before = self.opened.before
        forget, unseen = before["forget"], before.get("test_forget", before.get("test"))
        values = []
        for rows, words in ((forget, "rows to forget"), (unseen, "rows never seen")):
            if rows is not None:
                shown = f"loss {rows.mean_nll:.3g}" if rows.accuracy is None else f"{rows.accuracy:.1%} right"
                values.append(f"{words} {shown}")
        auc = "" if unseen is None else f"; membership AUC {membership(forget.nll, unseen.nll).auc:.3f}"
        return ", ".join(values) + auc

    def _notes(self) -> list[str]:
        notes = []
        if self.opener.trusted:
            notes.append("The checkpoint is trusted: objects of any class are loaded from it.")
        if self.opened.knew is False:
            notes.append(
                "The model does not know what is to be forgotten better than what it never saw: there may be nothing "
                "to forget, and no verdict will be drawn."
            )
        if self.retrained is None:
            notes.append(
                "Without --retrained, a checkpoint of a model that was trained without the rows, nothing tells "
                "forgotten from hidden."
            )
        return notes

    def entries(self, secret: bytes) -> dict[str, Any]:
        """What the record says of the request; row numbers and file names are hashed."""
        opened, method = self.opened, self.method
        return {
            "kind": self.kind,
            "models": {"before": model_entry(self.checkpoint)},
            "module": self.opener.module,
            "data": {"class": self.opener.data, "training_set": opened.fingerprint},
            "forget": {
                "rows": len(opened.numbers),
                "rows_root": rows_root(({"text": str(number)} for number in opened.numbers), secret),
                "classes": str(self.asked) if self.asked.whole_class else None,
            },
            "method": {
                "name": method.name,
                "callbacks": method.asked,
                "trainer": method.trainer,
                "learning_rate_factor": self.factor,
                "seed": self.options.seed,
                "score": opened.choice.path,
            },
            "retrained": None if self.retrained is None else sha256(self.retrained),
        }

    # ---- the run and after -------------------------------------------------------------------------------------------

    def config(self, folder: Path) -> dict[str, Any]:
        """The run as LightningCLI reads it."""
        model = {
            "checkpoint": absolute(self.checkpoint),
            "module": absolute(self.opener.module),
            "arguments": self.opener.module_args,
            "trusted": self.opener.trusted,
            "sha256": sha256(self.checkpoint),
            "rate": self.factor,
        }
        split = {**self.opened.split_arguments(), "epoch": self.method.epoch}
        trainer = {"limit_val_batches": 0, "num_sanity_val_steps": 0, "log_every_n_steps": 10}
        return {
            "seed_everything": self.options.seed,
            "model": {"class_path": "lightning_unlearn.forget.user_module.open_module", "init_args": model},
            "data": {"class_path": "lightning_unlearn.forget.user_data.DataModuleSplit", "init_args": split},
            "trainer": {**self.method.trainer, **trainer, "callbacks": self.method.callbacks},
        }

    def export(self, ckpt: Path, folder: Path) -> None:
        """Write ``unlearned.ckpt``, which the user's class opens: weights, hyperparameters, what its own hook adds."""
        before, after = (read_checkpoint(str(path), self.opener.trusted) for path in (self.checkpoint, ckpt))
        folder.mkdir(parents=True)
        kept = {name: after[name] for name in before if name in after and name not in _OF_A_RUN}
        torch.save(kept, folder / FILE)
        written = self.opener.open(str(folder / FILE)).state_dict()
        if any(not torch.equal(written[name].cpu(), value.cpu()) for name, value in after["state_dict"].items()):
            raise ValueError(
                f"{self.opener.module} changes its weights when it is opened, so what is written is not what was "
                "measured. Leave the weights alone in its constructor and on_load_checkpoint."
            )

    def evidence(self, model: Path, work: Path) -> Findings:
        """Measure the model before and after, and the retrained one."""
        paths = {"before": self.checkpoint, "after": str(model / FILE), "control": self.retrained}
        lines = self.plan().lines
        return module_findings(
            self.opened,
            {name: self.opener.open(path).to(self._device) for name, path in paths.items() if path is not None},
            self.method.name,
            self.factor,
            self.options.accelerator,
            {name: lines[name] for name in ("model", "to forget", "to keep", "method", "stops when")},
            {} if self.retrained is None else {"retrained": sha256(self.retrained)},
        )
