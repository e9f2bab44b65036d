"""Methods of a request: the callbacks of a configuration file, made and checked."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

from lightning_unlearn.core.callback import UnlearnCallback
from lightning_unlearn.core.lightning import Callback

__all__ = ["instantiated", "make_method", "read_method"]


def read_method(path: str) -> list[dict[str, Any]]:
    """The callbacks of a method as YAML has them.

    Args:
        path: A file as those in ``callbacks/``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it has no callback.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"There is no method {path}: no file of that name (looked in {Path.cwd()}).")
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    trainer = content.get("trainer") if isinstance(content, Mapping) else None
    listed = (trainer.get("callbacks+") or trainer.get("callbacks")) if isinstance(trainer, Mapping) else None
    listed = [listed] if isinstance(listed, Mapping) else listed
    if not isinstance(listed, list) or not all(isinstance(part, Mapping) and "class_path" in part for part in listed):
        raise ValueError(
            f"{file} has no callback. A method is a file with trainer: {{callbacks+: [{{class_path: ...}}]}}, as the "
            "files are that `lightning-unlearn fit --config` takes."
        )
    return [dict(part) for part in listed]


def make_method(callbacks: list[dict[str, Any]], name: str) -> UnlearnCallback:
    """The objective among the callbacks of a method; making them checks their settings.

    Args:
        callbacks: The callbacks as YAML has them.
        name: What the user called them.

    Raises:
        ValueError: If one can't be made, or not exactly one of them unlearns.
    """
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--callbacks", type=list[Callback])
    try:
        made = instantiated(parser, parser.parse_object({"callbacks": deepcopy(callbacks)}))["callbacks"]
    except Exception as error:  # jsonargparse wraps whatever a constructor raises
        reason = str(error.__cause__ or error).strip().splitlines()[-1].strip()
        raise ValueError(f"The method {name} can't be made: {reason}") from error
    objectives = [callback for callback in made if isinstance(callback, UnlearnCallback)]
    if len(objectives) != 1:
        classes = ", ".join(type(callback).__name__ for callback in made)
        raise ValueError(
            f"The method {name} has {len(objectives)} callbacks that unlearn, among {classes}, and a run has exactly "
            "one. Such are SimNPO, NPO, GradDiff, RMU; masks and monitors stand beside it."
        )
    return objectives[0]


def instantiated(parser: Any, parsed: Any) -> dict[str, Any]:
    """The values of parsed arguments, with classes made.

    Args:
        parser: A parser of jsonargparse.
        parsed: What it has parsed.
    """
    make = getattr(parser, "instantiate", None) or parser.instantiate_classes  # the old name, deprecated in 4.49
    values: dict[str, Any] = vars(make(parsed))
    return values
