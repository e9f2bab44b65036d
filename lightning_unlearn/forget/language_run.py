"""Run of a request about a language model: its configuration, and the rows that the model writes for it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_unlearn.core.files import write_text
from lightning_unlearn.core.retention import OWN_ANSWER
from lightning_unlearn.language.causal_lm import LitCausalLM
from lightning_unlearn.language.data.columns import Columns
from lightning_unlearn.language.data.own_answers import OwnAnswers
from lightning_unlearn.language.prompt_format import PromptFormat

if TYPE_CHECKING:
    from lightning_unlearn.forget.language import LanguageRequest

__all__ = ["BATCH", "OWN_ROWS", "RETAIN_BATCH", "data_arguments", "language_config", "write_own_answers"]

BATCH, RETAIN_BATCH = 4, 6
OWN_ROWS = "retain.jsonl"
"""File of the rows that the model has written."""

_WATCHED = 64  # rows of each set that say when to stop, at most


def language_config(request: LanguageRequest, folder: Path) -> dict[str, Any]:
    """The run as a configuration of LightningCLI.

    Args:
        request: The request, which has been checked.
        folder: Folder of the rows that the model has written.
    """
    model = {"model": request.model, "lr": request.lr} | ({"lora": request.lora} if request.lora else {})
    sources = {**request.sources, **({"retain": str(folder / OWN_ROWS)} if request.auto else {})}
    arguments = {**data_arguments(sources, request.max_length), "seed": request.options.seed}
    default = asdict(Columns())
    if named := {name: value for name, value in asdict(request.columns).items() if value != default[name]}:
        arguments["columns"] = named
    if request.facts["prompt"] is not None:  # the day is a part of what the model reads
        arguments["prompt"] = request.facts["prompt"]
    return {
        "seed_everything": request.options.seed,
        "model": {"class_path": "lightning_unlearn.LitCausalLM", "init_args": model},
        "data": {"class_path": "lightning_unlearn.LanguageDataModule", "init_args": arguments},
        "trainer": {
            "max_steps": request.steps,
            "max_epochs": -1,
            "gradient_clip_val": 1.0,
            "log_every_n_steps": 1,
            "limit_val_batches": 0,
            "num_sanity_val_steps": 0,
            "callbacks": [*request.callbacks, *_stop(request)],
        },
    }


def data_arguments(sources: Mapping[str, str], max_length: int) -> dict[str, Any]:
    """Arguments of the data module that reads some sources.

    Args:
        sources: Files of the sets by name.
        max_length: Longest row in tokens.
    """
    heldout = {name: source for name, source in sources.items() if name not in ("forget", "retain")}
    roles = {name: source for name, source in sources.items() if name in ("forget", "retain")}
    batches = {"batch_size": BATCH, "retain_batch_size": RETAIN_BATCH, "max_length": max_length}
    return {**roles, **({"heldout": heldout} if heldout else {}), **batches}


def write_own_answers(request: LanguageRequest, folder: Path) -> None:
    """Let the model write the rows to keep. They stay with the request, so that its run can be repeated.

    Args:
        request: The request.
        folder: Folder of the file.
    """
    module = LitCausalLM(request.model)
    module.to("cuda" if request.on_gpu else "cpu")
    prompt = replace(module.prompt or PromptFormat(), tokenizer=module.tokenizer, **(request.facts["prompt"] or {}))
    found = OwnAnswers(request.questions).answers(module, request.sources["forget"], request.columns, prompt)
    rows = [json.dumps({**row, **OWN_ANSWER}, ensure_ascii=False) for row in found.rows]
    write_text(folder / OWN_ROWS, "\n".join(rows) + "\n")


def _stop(request: LanguageRequest) -> list[dict[str, Any]]:
    if not request.stops:
        return []
    heldout = [name for name in request.sources if name not in ("forget", "retain", "never_seen")]
    watched = sum(
        min(_WATCHED, len(request.tables.get(name, range(_WATCHED)))) for name in ("forget", "retain", *heldout)
    )
    # A step reads each row of its batch three times; measuring takes at most as long as the steps between.
    every = max(1, round(watched / (3 * request.rows_of_a_step)))
    arguments = {"keep": ["retain", *heldout], "every_n_steps": every, "limit": _WATCHED}
    return [{"class_path": "lightning_unlearn.StopWhenForgotten", "init_args": arguments}]
