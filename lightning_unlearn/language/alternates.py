"""Generation of alternate answers to the questions to forget."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lightning_unlearn.core.checks import above, at_least
from lightning_unlearn.core.modes import evaluating
from lightning_unlearn.core.progress import progress
from lightning_unlearn.core.sources import Source, is_missing, load_rows
from lightning_unlearn.functional.random import keyed_seed
from lightning_unlearn.language.data.columns import Columns
from lightning_unlearn.language.generation import generate
from lightning_unlearn.language.prompt_format import PromptFormat

if TYPE_CHECKING:
    from lightning_unlearn.language.causal_lm import LitCausalLM

__all__ = ["generate_alternates"]

_INSTRUCTION = (
    "Below are a question and an answer to it. Write a different answer that reads just as convincingly but is made "
    "up: replace every name, place, date, number and other fact by another one of the same kind. Keep the length and "
    "the style. Write the new answer only.\n\n{question}\n{answer}"
)
_ROUNDS = 4  # a sample may be empty, or what was there already


def generate_alternates(
    module: LitCausalLM,
    rows: Source,
    path: str | Path,
    count: int = 5,
    temperature: float = 1.0,
    max_new_tokens: int = 200,
    seed: int = 0,
    columns: Columns | None = None,
    instruction: str = _INSTRUCTION,
) -> list[dict[str, Any]]:
    """Ask a model for other plausible answers to questions, by sampling, and write them to a file row by row.

    Give the file as ``forget`` to [`LanguageDataModule`][lightning_unlearn.LanguageDataModule] for
    [`AltPO`][lightning_unlearn.AltPO]. Rows in the file are not generated again: after an interruption, the same call
    continues where the last one stopped, and ends with the same file. Start a new file for other settings. Run it in a
    single process, before unlearning.

    Args:
        module: The model that writes the answers: the original model, or a larger one.
        rows: The rows to forget, given as to `LanguageDataModule`.
        path: The ``.jsonl`` file: each row as it was given, with its alternates.
        count: Different answers to a question, 5 in the paper. A row may get fewer, if the model repeats itself.
        temperature: Temperature of sampling, 1 in the paper.
        max_new_tokens: Longest answer in tokens, 200 in the paper.
        seed: Seed of sampling. What a row gets depends on it and on the row's number alone.
        columns: Names of the columns ``question`` and ``answer``, and of ``alternate``, which is added.
        instruction: What the model is asked, with ``{question}`` and ``{answer}``.

    Returns:
        The rows with their alternates, in the order given.

    Raises:
        ValueError: If an argument is out of range, or a row has no question or no answer.
        RuntimeError: If the model has no other answer to a question than empty ones and the given one.
    """
    at_least("count", count, 1)
    at_least("max_new_tokens", max_new_tokens, 1)
    above("temperature", temperature, 0)
    if Path(path).suffix.lower() != ".jsonl":
        raise ValueError(f"path must end with .jsonl, by which the data module reads it, but got {str(path)!r}.")
    if missing := [field for field in ("{question}", "{answer}") if field not in instruction]:
        raise ValueError(f"instruction must contain {' and '.join(missing)}, but got {instruction!r}.")
    columns = columns or Columns()
    path, given = Path(path), load_rows(rows)
    for number, row in enumerate(given):
        if is_missing(row.get(columns.question)) or is_missing(row.get(columns.answer)):
            raise ValueError(
                f"Row {number} has columns {sorted(row)}, but needs a text in {columns.question!r} and in "
                f"{columns.answer!r}. Name your columns with columns=Columns(...), or remove the row."
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    done = {(row[columns.question], row[columns.answer]): row for row in _finished(path)}
    prompt_format = PromptFormat(module.tokenizer)
    with path.open("a", encoding="utf-8") as file:
        for number, row in enumerate(progress(given, "Generating alternates")):
            question, answer = row[columns.question], row[columns.answer]
            if (question, answer) in done:
                continue
            request = instruction.replace("{question}", str(question)).replace("{answer}", str(answer))
            row_seed = keyed_seed(seed - 1, number - 1)  # to which the hash adds 1
            prompt = prompt_format.prompt(request)
            texts = _sample_others(
                module, prompt_format, prompt, str(answer), count, temperature, max_new_tokens, row_seed
            )
            if not texts:
                raise RuntimeError(
                    f"The model gave no other answer to row {number}, {question!r}, in {_ROUNDS * count} samples. "
                    "Raise the temperature, take a model that follows instructions, or remove the row; the rows "
                    f"before it are in {path}."
                )
            done[question, answer] = {**row, columns.alternate: texts}
            file.write(json.dumps(done[question, answer], ensure_ascii=False) + "\n")
            file.flush()
    return [done[row[columns.question], row[columns.answer]] for row in given]


def _finished(path: Path) -> list[dict[str, Any]]:
    """Finished rows of the file; an incomplete last line of a killed process is cut off."""
    content = path.read_bytes() if path.is_file() else b""
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        path.write_bytes(whole)
    return load_rows(path) if whole else []


def _sample_others(
    module: LitCausalLM,
    prompt_format: PromptFormat,
    prompt: Sequence[int],
    answer: str,
    count: int,
    temperature: float,
    max_new_tokens: int,
    seed: int,
) -> list[str]:
    """Up to ``count`` different texts that are neither empty nor the answer."""
    others: list[str] = []
    devices = [module.device] if module.device.type == "cuda" else []
    with torch.random.fork_rng(devices), evaluating(module):
        torch.manual_seed(seed)
        for _ in range(_ROUNDS):
            # top_k=0: the whole distribution, and not the 50 most likely tokens.
            sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "num_return_sequences": count}
            for text in generate(module.model, prompt_format, [prompt], max_new_tokens, **sampling):
                other = text.split("\nQuestion:")[0].strip()  # a model without a chat template asks on
                if other and other != answer.strip() and other not in others:
                    others.append(other)
            if len(others) >= count:
                break
    return others[:count]
