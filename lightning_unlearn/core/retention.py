"""Retention of the original model in checkpoints: kept for resuming during a run, removed after it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch

from lightning_unlearn.core.files import replacing
from lightning_unlearn.core.lightning import (
    Callback,
    LightningModule,
    MisconfigurationException,
    Trainer,
    rank_zero_info,
    rank_zero_warn,
)
from lightning_unlearn.core.uploads import warn_of_uploads

__all__ = [
    "OWN_ANSWER",
    "PRIVATE",
    "RUN_KEY",
    "PrivateState",
    "begin",
    "has_begun",
    "record_checkpoints",
    "release",
    "resume",
    "seal",
]

RUN_KEY = "lightning_unlearn_run"
"""Key of a checkpoint under which it says what it holds of the time before unlearning."""

OWN_ANSWER = {"written_by": "the original model"}
"""Column that marks a row as an answer of the original model, so that a file of such rows can be told from others."""

PRIVATE: dict[str, str] = {
    "snapshot": "the starting weights",
    "caches": "the likelihoods of the rows under the original model",
    "base": "the starting weights of the layers with adapters",
    "adapters": "the adapters, which with the merged weights give the starting ones",
    "start": "the starting weights",
    "finetuned": "weights that were fine-tuned on the forget rows",
    "centroids": "mean features of the rows under the original model",
    "noise": "inputs that were optimized against the original model",
    "row": "the extra class of the forget rows",
    "attack": "prompts that bring the concept back",
    "images": "images of the concept by the original model",
    "average_model_state": "an average of the weights that began with the starting ones",
    "best_weights": "the weights of an earlier step, which may know more of the rows to forget",
    "history": "questions and answers of the rows to forget",
}
"""Names in a callback's state that are of the time before unlearning, and what they are."""


class PrivateState(Callback):
    """A callback with state of the original model, which no file may hold once the run has ended.

    Checkpoints *during* a run hold it, since a run that is resumed needs it. When ``fit`` has ended without an error,
    it is taken out of every checkpoint of the run, and out of all that ``trainer.save_checkpoint`` writes from then on.
    """

    keep_reference: bool = False
    """Whether checkpoints keep that state after the end of the run, so that the run can be resumed with more epochs.
    Such a file gives away the model as it was before unlearning."""

    private: tuple[str, ...] = ()
    """Names in the state that go, see `PRIVATE`."""

    def public_state(self, state: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """What a file may hold after the run, and the names of what was left out."""
        gone = [name for name in self.private if _filled(state.get(name))]
        return {name: _EMPTY.get(name) if name in gone else value for name, value in state.items()}, gone


_AVERAGE = "average_model_state"
_EMPTY: dict[str, Any] = {"caches": {}, "base": {}, "adapters": {}, "attack": {}}


def _filled(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(_filled(part) for part in value.values())
    return value is not None and (not isinstance(value, (list, tuple)) or len(value) > 0)


@dataclass
class _Run:
    name: str
    begun: bool = False
    paths: set[str] = field(default_factory=set)
    earlier: set[str] = field(default_factory=set)
    """Paths that the checkpoint names from which the run was resumed."""
    ended: bool = False
    interrupted: bool = False
    told: bool = False


_RUNS: WeakKeyDictionary[Trainer, _Run] = WeakKeyDictionary()


def record_checkpoints(trainer: Trainer) -> None:
    """Note the path of every checkpoint that the trainer writes in this run; called in ``setup`` of ``fit``."""
    run = _RUNS.get(trainer)
    if run is None or run.ended or run.interrupted:
        _RUNS[trainer] = run = _Run(uuid.uuid4().hex)
    if "save_checkpoint" in trainer.__dict__:
        return
    save = trainer.save_checkpoint

    def save_checkpoint(filepath: Any, *arguments: Any, **options: Any) -> None:
        _RUNS[trainer].paths.add(str(filepath))
        save(filepath, *arguments, **options)

    trainer.save_checkpoint = save_checkpoint  # type: ignore[method-assign]


def begin(trainer: Trainer) -> None:
    """Note that training has started: checkpoints from now on are those of a run that can be resumed."""
    _RUNS.setdefault(trainer, _Run(uuid.uuid4().hex)).begun = True


def has_begun(checkpoint: Mapping[str, Any]) -> bool:
    """Whether a checkpoint is of a run that had started to train, and not of a tuner before it."""
    return (checkpoint.get(RUN_KEY) or {}).get("begun", True)


def seal(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    """Mark a checkpoint that is about to be written, and leave out private state; called in ``on_save_checkpoint``."""
    run = _RUNS.setdefault(trainer, _Run(uuid.uuid4().hex))
    if RUN_KEY in checkpoint:
        return
    held = _held(trainer, checkpoint)
    paths = sorted(map(_absolute, run.paths | run.earlier)) if held else []
    checkpoint[RUN_KEY] = {
        "run": run.name,
        "begun": run.begun,
        "ended": False,
        "holds": held,
        "left_out": {},
        "paths": paths,
    }
    if run.ended or _after_fit(trainer, run):
        _strip(trainer, checkpoint)
    elif checkpoint[RUN_KEY]["holds"] and not run.told:
        run.told = True
        what = " and ".join(dict.fromkeys(held.values()))
        rank_zero_info(
            f"Checkpoints of this run hold {what}, so that it can be resumed. When fit has ended they no longer do, "
            "unless keep_reference=True. Do not hand out a checkpoint of a run that was interrupted: "
            "`lightning-unlearn doctor --file x.ckpt` says what a file holds."
        )
        warn_of_uploads(trainer, what)


def resume(trainer: Trainer, callback: Callback, checkpoint: dict[str, Any]) -> None:
    """Continue a run from a checkpoint, in ``on_load_checkpoint``: it keeps its name.

    Raises:
        MisconfigurationException: If the checkpoint was written after the end of the run, and lacks what the callback
            needs to go on.
    """
    mark = checkpoint.get(RUN_KEY)
    if trainer.state.fn != "fit" or not mark:
        return
    lost = [name for names in mark["left_out"].values() for name in _needed(names)]
    if lost:
        name = type(callback).__name__
        raise MisconfigurationException(
            f"This checkpoint was written when a run with {name} had ended, and no longer holds "
            f"{' and '.join(dict.fromkeys(PRIVATE[key] for key in lost))}, without which the run can't be resumed. To "
            f"be able to resume after the end, run with {name}(keep_reference=True) and keep its files to yourself; to "
            f"go on from these weights with a new run, load them ({_loader(trainer)}) and call fit without ckpt_path."
        )
    run = _RUNS.get(trainer)
    if run is not None:
        run.name = mark["run"]
        run.earlier |= set(mark.get("paths", ()))
        if trainer.ckpt_path is not None:
            path = str(trainer.ckpt_path)
            run.paths |= {path, path if "://" in path else str(Path(path).resolve())}  # a link may soon lead elsewhere


def release(trainer: Trainer, interrupted: bool = False) -> None:
    """Remove the original model from the run's checkpoints; called in ``on_fit_end``, and idempotent.

    Args:
        trainer: Trainer of the run.
        interrupted: Whether the run ended by an error or Ctrl-C: then its checkpoints stay as they are, to resume it.
    """
    if not interrupted:  # or a checkpoint that is saved because of the error would not be noted
        trainer.__dict__.pop("save_checkpoint", None)
    run = _RUNS.get(trainer)
    if run is None or run.ended:
        return
    run.ended, run.interrupted = not interrupted, interrupted
    if interrupted:
        return
    if trainer.is_global_zero:
        for path in sorted(_written(run)):
            _strip_file(trainer, path, run)
    trainer.strategy.barrier("lightning_unlearn.release")


def _after_fit(trainer: Trainer, run: _Run) -> bool:
    """Whether the trainer saves outside fit: by hand after it, or in another of its functions."""
    fitting = trainer.state.fn == "fit" and trainer.state.status != "finished"
    return not fitting and not run.interrupted


def _needed(names: list[str]) -> list[str]:
    """Those of the names without which a run can't be resumed."""
    return [name for name in names if name != "history"]


def _owners(trainer: Trainer, checkpoint: Mapping[str, Any]) -> Iterator[tuple[PrivateState, dict[str, Any]]]:
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        state = checkpoint.get("callbacks", {}).get(callback.state_key)
        if isinstance(callback, PrivateState) and isinstance(state, dict):
            yield callback, state


def _held(trainer: Trainer, checkpoint: Mapping[str, Any]) -> dict[str, str]:
    return {
        f"callbacks/{callback.state_key}/{name}": PRIVATE[name]
        for callback, state in _owners(trainer, checkpoint)
        for name in callback.public_state(state)[1]
    }


def _strip(trainer: Trainer, checkpoint: dict[str, Any]) -> bool:
    """Leave out what is of the time before; returns whether anything was."""
    left_out: dict[str, list[str]] = {}
    for callback, state in _owners(trainer, checkpoint):
        public, gone = callback.public_state(state)
        if gone and not callback.keep_reference:
            checkpoint["callbacks"][callback.state_key] = public
            left_out[callback.state_key] = gone
    for key, state in checkpoint.get("callbacks", {}).items():
        # StochasticWeightAveraging's: a copy of the starting weights until its average begins.
        if isinstance(state, dict) and state.get(_AVERAGE) is not None:
            checkpoint["callbacks"][key] = {**state, _AVERAGE: None}
            left_out[key] = [_AVERAGE]
    if any(_needed(gone) for gone in left_out.values()):
        # The optimizer has averages of gradients of forget rows, and is of no use in a run that can't be resumed.
        for name in ("optimizer_states", "lr_schedulers"):
            checkpoint.pop(name, None)
    checkpoint[RUN_KEY] = {
        **checkpoint[RUN_KEY],
        "ended": True,
        "holds": _held(trainer, checkpoint),
        "left_out": left_out,
        "paths": [],
    }
    return bool(left_out)


def _absolute(path: str) -> str:
    return path if "://" in path else str(Path(path).absolute())


def _written(run: _Run) -> set[Path]:
    """Files of the run: those that were noted, and those beside them, of a part of it that was interrupted."""
    paths = run.paths | run.earlier
    noted = {Path(path) for path in paths if "://" not in path}
    remote = {path for path in paths if "://" in path}
    if remote:
        rank_zero_warn(
            f"{sorted(remote)} can't be rewritten where they are, and hold what resuming the run needs, of the model "
            "before unlearning. Delete them, or save the finished model with trainer.save_checkpoint."
        )
    beside = {file for path in noted for file in path.parent.glob("*.ckpt")}
    return {file for file in map(_file, noted | beside) if file.is_file()}


def _file(path: Path) -> Path:
    return (path / "meta.pt" if path.is_dir() else path).resolve()


def _strip_file(trainer: Trainer, path: Path, run: _Run) -> None:
    own, earlier = ({_file(Path(noted)) for noted in paths} for paths in (run.paths, run.earlier))
    try:
        checkpoint = _load(path, path in own, path in earlier)
        mark = checkpoint.get(RUN_KEY) if isinstance(checkpoint, dict) else None
        if mark and mark["run"] == run.name and not mark["ended"] and _strip(trainer, checkpoint):
            with replacing(path) as part:
                torch.save(checkpoint, part)
    except Exception as error:
        rank_zero_warn(
            f"{path} may still hold what resuming the run needs, of the model before unlearning: it could not be "
            f"rewritten ({type(error).__name__}: {error}). Delete it, or save the finished model with "
            "trainer.save_checkpoint."
        )


def _load(path: Path, own: bool, earlier: bool) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception:
        if earlier and not own:
            raise  # no code is run of a file that only a checkpoint names
        if not own:
            return None  # someone else's file
        return torch.load(path, map_location="cpu", weights_only=False)  # hyperparameters of a user's class


def _loader(trainer: Trainer) -> str:
    module: LightningModule | None = trainer.lightning_module
    return f"{type(module).__name__}.load_from_checkpoint"
