"""Tiny models that a process reads from their files once, and copies for each module that is made of them."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from lightning_unlearn.diffusion.data.miniature import miniature_pipeline
from lightning_unlearn.diffusion.engine import pipeline
from lightning_unlearn.language import causal_lm, starts

_FOLDERS = {os.path.realpath(miniature_pipeline())}


def read_once(folder: Path) -> Path:
    """Note that no test writes into the folder of a model, so that its files need to be read but once."""
    _FOLDERS.add(os.path.realpath(folder))
    return folder


def _once(opens: Callable[..., Any], copied: Callable[[Any], Any] = copy.deepcopy) -> Callable[..., Any]:
    """A function that opens models, and copies what it has opened before."""
    opened: dict[Any, Any] = {}

    @wraps(opens)
    def open_once(source: Any, *arguments: Any, **options: Any) -> Any:
        place = os.path.realpath(source)
        if place not in _FOLDERS:
            return opens(source, *arguments, **options)
        key = (str(source), arguments, tuple(sorted(options.items())))
        try:
            hash(key)
        except TypeError:  # settings of quantisation
            return opens(source, *arguments, **options)
        if key not in opened:
            opened[key] = opens(source, *arguments, **options)
        return copied(opened[key])

    return open_once


def _copied_pipeline(opened: Any) -> Any:
    """A pipeline and its safety checker.

    Configurations are frozen, and can't be copied; a copied tokenizer of CLIP decodes otherwise, so it is read again.
    """
    parts, tokenizer = [opened[0], *vars(opened[0]).values()], opened[0].tokenizer
    kept: dict[int, Any] = {
        id(part._internal_dict): part._internal_dict for part in parts if hasattr(part, "_internal_dict")
    }
    kept[id(tokenizer)] = type(tokenizer).from_pretrained(tokenizer.name_or_path)
    return copy.deepcopy(opened, kept)


causal_lm.open_model = _once(causal_lm.open_model)
starts.open_tokenizer = _once(starts.open_tokenizer)
pipeline.open_folder = _once(pipeline.open_folder, _copied_pipeline)
