"""Amnesiac unlearning: recording training steps and subtracting those with forget rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_unlearn.core.callback import Needs
from lightning_unlearn.core.checks import strategy, trainer_optimizes
from lightning_unlearn.core.distributed import gather_objects, rank
from lightning_unlearn.core.edit import Edit
from lightning_unlearn.core.files import replacing
from lightning_unlearn.core.lightning import LightningModule, MisconfigurationException, Trainer, rank_zero_info
from lightning_unlearn.core.resume import ResumableCallback
from lightning_unlearn.core.scores import Batch, Score, classifier_nll

__all__ = ["Amnesiac", "AmnesiacLedger"]

RowIds = Callable[[Any], Iterable[int]]
"""The ids of the rows of a training batch."""


def batch_index(batch: Any) -> list[int]:
    """The row ids of a batch that is a dict with ``index``.

    Raises:
        MisconfigurationException: If the batch is not such a dict.
    """
    if not isinstance(batch, dict) or "index" not in batch:
        got = f"a dict with {sorted(map(str, batch))}" if isinstance(batch, dict) else f"a {type(batch).__name__}"
        raise MisconfigurationException(
            f"AmnesiacLedger records the rows of each step, but the batch is {got}, without 'index'. Let the dataset "
            "return dicts with a stable integer 'index', or pass row_ids, a function from a batch to its rows' ids."
        )
    return [int(i) for i in batch["index"]]


class AmnesiacLedger(ResumableCallback):
    r"""Recorder of the weight update and the row ids of every step of an ordinary training run.

    $$\Delta_s = \theta_{s+1} - \theta_s, \quad R_s = \text{ids of the rows of the step}$$

    [`Amnesiac`][lightning_unlearn.Amnesiac] later subtracts the steps that contain forget rows. Each step is one file
    in ``folder``, as large as the trainable weights, and is written completely or not at all. A resumed run deletes the
    steps that were written after its checkpoint and continues from there. With ``accumulate_grad_batches``, and with
    several processes, the rows of a step are those of all its batches. The ledger keeps one extra copy of the trainable
    weights in memory.

    Args:
        folder: Folder for the steps. A new run needs a new or empty one.
        rows: Ids of the rows that may have to be forgotten, if they are known in advance: only steps that contain one
            of them are written. By default all steps are written, so that any row can be forgotten later.
        row_ids: Function from a batch to the ids of its rows; by default it returns the batch's ``index``.

    Raises:
        ValueError: If ``rows`` is empty.
        MisconfigurationException: With manual optimization or a strategy that shards weights, if the folder contains
            the steps of another run, or if the first part of a resumed run was not recorded.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[AmnesiacLedger("ledger")], logger=False, accelerator="cpu")

    References:
        Graves et al., *Amnesiac Machine Learning*, arXiv:2010.10981.
    """

    def __init__(self, folder: str | Path, rows: Sequence[int] | None = None, row_ids: RowIds = batch_index) -> None:
        _safetensors()
        if rows is not None and not len(rows):
            raise ValueError("rows is empty, so no step would be written. Leave it out to write all steps.")
        self.folder, self.rows, self.row_ids = folder, rows, row_ids
        self._ids: set[int] = set()
        self._step: tuple[int, set[int], dict[str, Tensor]] | None = None
        self._handle: RemovableHandle | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the run."""
        if stage == "fit":
            strategy("AmnesiacLedger", trainer, sharded=False, reason="compares whole weights before and after a step")
            trainer_optimizes("AmnesiacLedger", pl_module)

    def begin(self, trainer: Trainer, module: LightningModule) -> None:
        """Open a new ledger."""
        self._open(trainer.global_step, written=None)

    def restore(self, state: dict[str, Any], trainer: Trainer, module: LightningModule) -> None:
        """Continue the ledger of the checkpoint."""
        self._open(trainer.global_step, state["written"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the ledger and start watching the optimizer."""
        super().on_train_start(trainer, pl_module)
        self._ids = set()
        (optimizer,) = trainer.optimizers

        def record(*_: Any) -> None:
            self._record(pl_module)

        self._handle = optimizer.register_step_post_hook(record)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Collect the ids of the rows."""
        self._ids.update(int(i) for i in self.row_ids(batch))

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Copy the weights before a step that will be recorded."""
        self._step = None  # of a step that the gradient scaler has skipped
        ids, self._ids = set().union(*gather_objects(self._ids)), set()
        if rank() == 0 and (self.rows is None or not ids.isdisjoint(self.rows)):
            before = {n: p.detach().clone() for n, p in _trained(pl_module).items()}
            self._step = (trainer.global_step, ids, before)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stop watching the optimizer."""
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop watching the optimizer."""
        self._close()

    def state_dict(self) -> dict[str, Any]:
        """The number of steps written so far."""
        return {"written": len(list(_files(self.folder)))}

    def _record(self, module: LightningModule) -> None:
        if self._step is None:
            return
        (step, ids, before), self._step = self._step, None
        moved = {n: (p.detach() - before[n]).contiguous().cpu() for n, p in _trained(module).items()}
        with replacing(Path(self.folder) / f"{step:09d}.safetensors") as part:
            _safetensors().save_file(moved, part, metadata={_IDS: json.dumps(sorted(ids))})

    def _open(self, step: int, written: int | None) -> None:
        if rank() != 0:
            return
        Path(self.folder).mkdir(parents=True, exist_ok=True)
        files = sorted(_files(self.folder))
        earlier = [f for f in files if int(f.stem) < step]
        if step == 0 and files:
            raise MisconfigurationException(
                f"{self.folder} has {len(files)} steps of another run, which this one would be mixed with. Give "
                "AmnesiacLedger a new folder, or resume that run with ckpt_path."
            )
        if step > 0 and len(earlier) != written:
            raise MisconfigurationException(
                f"The run resumes at step {step}. By its checkpoint, {written or 'none'} of the steps before were "
                f"written, but {self.folder} has {len(earlier)}. Resume with the folder that the run was started with, "
                "and with AmnesiacLedger from its start."
            )
        for late in files[len(earlier) :]:
            late.unlink()

    def _close(self) -> None:
        if self._handle is not None:
            self._handle.remove()
        self._handle = self._step = None


class Amnesiac(Edit):
    r"""Amnesiac unlearning: subtracts the training steps whose batches contained a forget row.

    $$\theta_u = \theta_o - \sum_{s\,:\,R_s \cap F \ne \emptyset} \Delta_s$$

    The steps are those that [`AmnesiacLedger`][lightning_unlearn.AmnesiacLedger] recorded. The method suits small
    forget sets: if many steps contain a forget row, subtracting them loses much else as well, which a short run of
    [`FineTune`][lightning_unlearn.FineTune] repairs. Buffers, such as batch normalization statistics, do not change.
    This is an edit: the run makes no optimizer update and reads no rows.

    Many code releases use "amnesiac" for relearning with random labels; that is
    [`RandomLabels`][lightning_unlearn.RandomLabels].

    Args:
        folder: Folder of the ledger.
        forget_ids: Ids of the rows to forget $F$, as in the training run.
        score: Not read.

    Raises:
        ValueError: If no ids are given, the ledger is empty or belongs to another model, or an id occurs in none of its
            steps. The weights are then left unchanged.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[Amnesiac("ledger", forget_ids=[3, 7])], logger=False, accelerator="cpu")

    References:
        Graves et al., *Amnesiac Machine Learning*, arXiv:2010.10981.
    """

    needs = Needs(roles=("forget",))

    def __init__(self, folder: str | Path, forget_ids: Sequence[int], score: Score = classifier_nll) -> None:
        _safetensors()
        super().__init__(score)
        if not len(forget_ids):
            raise ValueError("forget_ids is empty, so nothing would be forgotten. Give the ids of the rows to forget.")
        self.folder, self.forget_ids = folder, forget_ids

    def edit(
        self, module: LightningModule, forget: Iterable[Batch] | None = None, retain: Iterable[Batch] | None = None
    ) -> None:
        """Subtract the steps.

        Args:
            module: The trained module; its parameters change.
            forget: Not read.
            retain: Not read.

        Raises:
            ValueError: See the class.
        """
        records = [_read(path) for path in sorted(_files(self.folder))]
        wanted = set(self.forget_ids)
        unknown = wanted.difference(*(r.ids for r in records))
        if unknown:
            raise ValueError(
                f"None of the {len(records)} steps in {self.folder} was made with the rows {sorted(unknown)[:8]}. Give "
                "ids as AmnesiacLedger read them in the training run, and its folder; rows that were never trained on "
                "have no step to subtract."
            )
        chosen = [r for r in records if not r.ids.isdisjoint(wanted)]
        total = self._sum(chosen, dict(module.named_parameters()))
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                if name in total:
                    parameter.copy_(parameter.double() - total[name].to(parameter.device))
        rank_zero_info(f"Amnesiac subtracted {len(chosen)} of {len(records)} recorded steps.")

    def _sum(self, records: list[_Record], parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
        total: dict[str, Tensor] = {}
        for record in records:
            for name, moved in _safetensors().load_file(record.path).items():
                if name not in parameters or parameters[name].shape != moved.shape:
                    present = tuple(parameters[name].shape) if name in parameters else "missing"
                    raise ValueError(
                        f"{record.path} moves {name!r} of shape {tuple(moved.shape)}, which is {present} in the "
                        "module. Give the module that the ledger was written for."
                    )
                total[name] = total.get(name, 0.0) + moved.double()
        return total


class _Record(NamedTuple):
    path: Path
    ids: set[int]


_IDS = "row_ids"


def _files(folder: str | Path) -> Iterable[Path]:
    return Path(folder).glob("*.safetensors")


def _read(path: Path) -> _Record:
    with _safetensors().safe_open(path, framework="pt") as file:
        return _Record(path, set(json.loads((file.metadata() or {}).get(_IDS, "[]"))))


def _trained(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError:
        raise ImportError('The ledger needs safetensors: pip install "lightning-unlearn[llm]"') from None
    return safetensors.torch
