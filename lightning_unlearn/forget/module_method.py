"""Methods for requests on users' modules, with the settings of the run."""

from __future__ import annotations

from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Literal

from lightning_unlearn.core.edit import Edit
from lightning_unlearn.forget.methods import make_method, read_method
from lightning_unlearn.forget.score_choice import ScoreChoice

__all__ = ["AUTO", "Goal", "ModuleMethod", "choose_method"]

AUTO = "auto"
_CLIP = 1.0
_CHECKS, _WATCHED = 100, 256  # evaluations in a run, and rows of each set in one
_PASSES, _FEWEST, _MOST = 5, 200, 2000  # passes over the retain rows, and the steps that these may be


@dataclass(frozen=True)
class Goal:
    """When enough is forgotten, and how much of the rest may be lost until then.

    Args:
        nll: Likelihood, or loss, that the rows to forget are to reach.
        margin: The most that the retain rows may rise.
        words: What the likelihood is that of.
    """

    nll: float
    margin: float
    words: str

    def __str__(self) -> str:
        return (
            f"the loss of the rows to forget is {self.nll:.3g}, {self.words}, while that of the rows to keep has risen "
            f"by at most {self.margin:.2g}; the best step is kept"
        )

    def callback(self, steps: int) -> dict[str, Any]:
        """The callback that ends the run."""
        settings = {
            "target": self.nll,
            "margin": self.margin,
            "every_n_steps": max(1, steps // _CHECKS),
            "limit": _WATCHED,
        }
        return {"class_path": "lightning_unlearn.StopWhenForgotten", "init_args": settings}


@dataclass(frozen=True)
class ModuleMethod:
    """A method as a run has it.

    Args:
        name: Name of the method.
        callbacks: The callbacks of the run, as LightningCLI reads them.
        epoch: The role that one epoch passes over once.
        trainer: Settings of the Trainer.
        stops: When training ends, in words.
        asked: The callbacks without what was measured for them.
    """

    name: str
    callbacks: list[dict[str, Any]]
    epoch: Literal["forget", "retain"]
    trainer: dict[str, Any]
    stops: str
    asked: list[dict[str, Any]]


def choose_method(
    name: str,
    choice: ScoreChoice,
    target: Goal | None,
    retain_batches: int,
    max_steps: int | None,
) -> ModuleMethod:
    """The method of a request.

    Args:
        name: ``auto``, or a file of callbacks, such as ``callbacks/classification/scrub.yaml``.
        choice: How the module is read.
        target: When enough is forgotten; ``None`` where nothing tells.
        retain_batches: Batches of a pass over the retain rows.
        max_steps: Steps at most.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If its callbacks can't be made, or not exactly one of them unlearns.
    """
    if name == AUTO:
        method = "UGradSLPlus" if choice.reads_logits else "GradDiff"
        callbacks = [{"class_path": f"lightning_unlearn.{method}", "init_args": {"score": choice.path}}]
    else:
        callbacks = _scored(read_method(name), choice)
    objective = make_method(callbacks, Path(name).stem)
    kind = type(objective)
    if isinstance(objective, Edit):
        once = {"max_epochs": 1, "limit_train_batches": 1}
        words = "the weights are edited, without a step of training"
        return ModuleMethod(kind.__name__, callbacks, "forget", once, words, callbacks)
    asked = callbacks
    steps = max_steps or min(max(_PASSES * retain_batches, _FEWEST), _MOST)
    stops = f"after {steps} steps"
    if target is not None and not objective.not_averaged:
        callbacks = [*callbacks, target.callback(steps)]
        stops += f", or once {target}"
    epoch = "retain" if getattr(kind, "driver", None) == "retain" else "forget"
    trainer = {"max_steps": steps, "max_epochs": -1, "gradient_clip_val": _CLIP}
    return ModuleMethod(kind.__name__, callbacks, epoch, trainer, stops, asked)  # type: ignore[arg-type]


def _scored(callbacks: list[dict[str, Any]], choice: ScoreChoice) -> list[dict[str, Any]]:
    """The callbacks with the score of the module, where they take one and the file does not name another."""
    scored = []
    for config in callbacks:
        settings = dict(config.get("init_args") or {})
        if "score" in signature(resolve_name(config["class_path"])).parameters:
            settings.setdefault("score", choice.path)
        scored.append({**config, "init_args": settings})
    return scored
