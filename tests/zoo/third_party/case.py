"""A module of another package as its user has it: trained, with loaders of rows to forget and to retain."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


@dataclass
class Case:
    """What a user of a package has, and what they add to unlearn.

    Args:
        module: A trained module of the package.
        loaders: Loaders of the package that yield the rows to forget and to retain.
        trainer: The Trainer that the package trains with.
        score: The user's own score; gives one negative log-likelihood a row.
        load: Opens the unlearned module as the package's own users do.
        save: Saves it as they do; by default by the Trainer.
        fit: Further arguments of ``Trainer.fit``, such as validation loaders that the module wants.
        options: Further arguments of the Trainer.
    """

    module: Any
    loaders: dict[str, Any]
    trainer: Callable[..., Any]
    score: Callable[[Any, Any], Any]
    load: Callable[[Path], Any]
    save: Callable[[Any, Path], None] = lambda trainer, path: trainer.save_checkpoint(path)
    fit: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def score_lines(self) -> int:
        """Lines of the user's score without its ``def``."""
        return len(inspect.getsource(self.score).splitlines()) - 1
