"""Methods for requests on users' modules, with the settings of the run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Literal

import yaml

from lightning_unlearn.core.callback import UnlearnCallback
from lightning_unlearn.core.edit import Edit
from lightning_unlearn.forget.score_choice import ScoreChoice
from lightning_unlearn.forget.user_module import built

__all__ = ["AUTO", "ModuleMethod", "choose_method"]

AUTO = "auto"
_PACKAGE = Path(__file__).parents[1]
_ROOMS = ("classification", "objectives", "second_order", "weights", "smoothing")
_PASSES, _FEWEST, _MOST = 5, 200, 2000  # passes over the retain rows, and the steps that these may be


@dataclass(frozen=True)
class ModuleMethod:
    """A method as a run has it.

    Args:
        name: Name of the method.
        callbacks: The callbacks of the run, as LightningCLI reads them.
        epoch: The role that one epoch passes over once.
        trainer: Settings of the Trainer.
        stops: When training ends, in words.
    """

    name: str
    callbacks: list[dict[str, Any]]
    epoch: Literal["forget", "retain"]
    trainer: dict[str, Any]
    stops: str
    notes: list[str] = field(default_factory=list)

    def check(self) -> None:
        """Make the callbacks once, for their own errors.

        Raises:
            ValueError: If there is no objective among them, or several.
        """
        made = [_callback(config) for config in self.callbacks]
        objectives = [type(callback).__name__ for callback in made if isinstance(callback, UnlearnCallback)]
        if len(objectives) != 1:
            raise ValueError(
                f"--method {self.name} has {len(objectives)} objectives, {objectives}, but a run has exactly one. Take "
                f"one of those in {', '.join(_ROOMS[:3])}: `lightning-unlearn callbacks` lists them."
            )


def choose_method(
    name: str,
    choice: ScoreChoice,
    whole_class: bool,
    retain_batches: int,
    target: float | None,
    max_steps: int | None,
) -> ModuleMethod:
    """The method of a request.

    Args:
        name: ``auto``, the name of a shipped file of callbacks, such as ``scrub``, or the path of such a file.
        choice: How the module is read.
        whole_class: Whether classes are to be forgotten, and not single rows.
        retain_batches: Batches of a pass over the retain rows.
        target: Where the rows to forget count as forgotten: their accuracy with logits, else their loss.
        max_steps: Steps at most.

    Raises:
        ValueError: If there is no such method, or several.
    """
    steps = max_steps or min(max(_PASSES * retain_batches, _FEWEST), _MOST)
    trainer = {"max_steps": steps, "max_epochs": -1, "gradient_clip_val": 1.0}
    if name != AUTO:
        callbacks = _scored(_shipped(name), choice)
        kind = resolve_name(callbacks[0]["class_path"])
        edit = issubclass(kind, Edit)
        trainer = {"max_epochs": 1, "limit_train_batches": 1} if edit else trainer
        driver = getattr(kind, "driver", None) or "forget"
        stops = "the edit is made, without a step of training" if edit else f"after {steps} steps"
        return ModuleMethod(kind.__name__, callbacks, driver, trainer, stops)
    if choice.reads_logits:
        floor = None if target is None else min(max(target, 0.0), 1.0)
        settings = {"forget_accuracy_floor": floor, "score": choice.path}
        callbacks = [{"class_path": "lightning_unlearn.UGradSLPlus", "init_args": settings}]
        stops = f"after {steps} steps" + (
            f", or a pass over the retain rows that leaves the accuracy on the rows to forget at {floor:.1%} or less"
            + ("" if whole_class else ", that of rows never seen")
            if floor is not None
            else ""
        )
        return ModuleMethod("UGradSLPlus", callbacks, "retain", trainer, stops)
    settings = {"score": choice.path, "max_forget_nll": target, "retain_weight": 1.0}
    callbacks = [{"class_path": "lightning_unlearn.GradDiff", "init_args": settings}]
    stops = f"after {steps} steps" + (
        f", or once the loss of a batch of rows to forget is above {target:.4g}, that of rows never seen"
        if target is not None
        else ""
    )
    return ModuleMethod("GradDiff", callbacks, "forget", trainer, stops)


def _shipped(name: str) -> list[dict[str, Any]]:
    """The callbacks of a shipped file, or of one of the user's."""
    root = _PACKAGE / "configs" if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent
    files = {path for room in _ROOMS for path in (root / "callbacks" / room).glob("*.yaml")}
    wanted = Path(name.removesuffix(".yaml")).parts
    found = [path for path in sorted(files) if path.with_suffix("").parts[-len(wanted) :] == wanted]
    if Path(name).is_file():
        found = [Path(name)]
    if len(found) != 1:
        names = sorted("/".join(path.with_suffix("").parts[-2:]) for path in found or files)
        raise ValueError(f"--method {name} is {len(found)} files of callbacks. Give auto, or one of {', '.join(names)}.")
    trainer = (yaml.safe_load(found[0].read_text(encoding="utf-8")) or {}).get("trainer") or {}
    callbacks = trainer.get("callbacks+") or trainer.get("callbacks") or []
    callbacks = [callbacks] if isinstance(callbacks, dict) else callbacks
    if not callbacks:
        raise ValueError(f"{found[0]} has no callbacks, below `trainer: callbacks+:`.")
    return callbacks


def _scored(callbacks: list[dict[str, Any]], choice: ScoreChoice) -> list[dict[str, Any]]:
    """The callbacks with the score of the module, where they take one and the file does not name another."""
    scored = []
    for config in callbacks:
        settings = dict(config.get("init_args") or {})
        if "score" in resolve_name(config["class_path"]).__init__.__code__.co_varnames:
            settings.setdefault("score", choice.path)
        scored.append({**config, "init_args": settings})
    return scored


def _callback(config: dict[str, Any]) -> Any:
    """A callback, made as LightningCLI makes it: functions stand in configurations as import paths."""
    settings = built(config.get("init_args") or {})
    if isinstance(settings.get("score"), str):
        settings["score"] = resolve_name(settings["score"])
    return resolve_name(config["class_path"])(**settings)
