"""Data of prompts, for methods that sample their own images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader, Dataset

from lightning_unlearn.core.checks import at_least
from lightning_unlearn.core.pairing import ForgetRetainDataModule, Role
from lightning_unlearn.core.sources import Source, find_tokenizer, load_rows
from lightning_unlearn.core.tables import TABLE_ENDINGS, is_table
from lightning_unlearn.diffusion.engine.text import tokenize

__all__ = ["PromptDataModule", "PromptRows", "load_prompts"]


class PromptRows(Dataset):
    """Tokens of prompts and of their anchors.

    Args:
        prompts: The prompts.
        anchors: What each prompt is to become; none for prompts to keep.
        tokenizer: A ``CLIPTokenizer``.
        repeat: How often the rows follow one another.
    """

    def __init__(self, prompts: list[str], anchors: list[str] | None, tokenizer: Any, repeat: int = 1) -> None:
        self.prompts, self.anchors, self.repeat = prompts, anchors, repeat
        self.tokens = tokenize(tokenizer, prompts)
        if anchors is not None:
            self.tokens |= {f"anchor_{name}": value for name, value in tokenize(tokenizer, anchors).items()}

    def __len__(self) -> int:
        return len(self.prompts) * self.repeat

    def __getitem__(self, i: int) -> dict[str, Any]:
        if not 0 <= i < len(self):
            raise IndexError(i)
        row = i % len(self.prompts)
        return {**{name: value[row] for name, value in self.tokens.items()}, "index": row}


class PromptDataModule(ForgetRetainDataModule):
    """Prompts of the concepts to forget, and prompts to keep.

    A forget row has ``input_ids``, ``attention_mask``, and the same of its anchor, what the concept is to become:
    ``anchor_input_ids``, ``anchor_attention_mask``, each of shape ``(B, L)``. A retain row has the first two.

    Args:
        forget: Prompts, as strings or as dicts with ``prompt`` and optionally ``anchor``; or a file of such rows
            (``.csv``, ``.tsv``, ``.json``, ``.jsonl``, ``.txt`` with a prompt a line, ``.parquet``).
        retain: Prompts to keep, given in the same ways.
        anchor: Anchor of the forget rows that have none; by default the empty prompt.
        heldout: Further named sets that are only evaluated.
        tokenizer: A ``CLIPTokenizer``, or the folder or hub id of one; by default the module's own.
        repeat: How often an epoch passes over the forget prompts; makes epochs longer when there are few prompts.
        batch_size: Forget prompts in a batch, per process.
        retain_batch_size: Retain prompts in a batch, per process.
        epoch: The role that one epoch passes over once.
        seed: Seed of shuffling and pairing.

    Raises:
        ValueError: If a set is empty, or a row is no prompt.

    Example:
        >>> data = PromptDataModule(forget=["Van Gogh"], retain=["a photo of a dog"], anchor="art", repeat=100)
    """

    def __init__(
        self,
        forget: Source,
        retain: Source | None = None,
        anchor: str = "",
        heldout: dict[str, Source] | None = None,
        tokenizer: Any = None,
        repeat: int = 1,
        batch_size: int = 1,
        retain_batch_size: int | None = None,
        epoch: Role = "forget",
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, retain_batch_size=retain_batch_size, epoch=epoch, seed=seed)
        self.sources = {"forget": forget, "retain": retain, **(heldout or {})}
        self.anchor, self.tokenizer, self.repeat = anchor, tokenizer, at_least("repeat", repeat, 1)

    def setup(self, stage: str) -> None:
        """Read and tokenize every set, once."""
        if self.sets:
            return
        tokenizer = find_tokenizer(self.tokenizer, self.trainer, "CLIPTokenizer")
        for name, source in self.sources.items():
            if source is None:
                continue
            rows = load_prompts(source, name)
            anchors = [row.get("anchor", self.anchor) for row in rows] if name == "forget" else None
            repeat = self.repeat if name == "forget" else 1
            self.sets[name] = PromptRows([row["prompt"] for row in rows], anchors, tokenizer, repeat)

    def predict_dataloader(self) -> DataLoader:
        """The prompts of every set once, each with the seed of the image to draw."""
        prompts = [(name, prompt) for name, rows in self.sets.items() for prompt in rows.prompts]
        rows = [{"set": name, "prompt": p, "seed": self.seed + number} for number, (name, p) in enumerate(prompts)]
        return DataLoader(rows, batch_size=self.batch_size, collate_fn=list)  # type: ignore[arg-type]


def load_prompts(source: Source, name: str) -> list[dict[str, Any]]:
    """Rows with a text under ``prompt``.

    Args:
        source: Strings, or rows, or what [`load_rows`][lightning_unlearn.core.sources.load_rows] reads them from.
        name: Name of the set, for messages.

    Raises:
        ValueError: If there is no row, a row has no prompt, or the source is a single prompt.
    """
    if isinstance(source, (str, Path)):
        path = Path(source)
        if not is_table(path) and not path.exists() and "/" not in str(source):
            raise ValueError(
                f"{name}={str(source)!r} is neither a list, a file ({', '.join(TABLE_ENDINGS)}) nor a data set on the "
                f"hub. One prompt is a list of one: [{str(source)!r}]."
            )
    elif isinstance(source, (list, tuple, Iterator)):
        source = [{"prompt": row} if isinstance(row, str) else row for row in source]
    rows = load_rows(source)
    if isinstance(source, (str, Path)) and ".txt" in Path(source).suffixes:
        rows = [{"prompt": row["text"]} for row in rows]
    if not rows:
        raise ValueError(f"The {name} set ({source}) is empty. Give it at least one prompt.")
    for number, row in enumerate(rows):
        if not isinstance(row.get("prompt"), str):
            raise ValueError(f"Row {number} of the {name} set has no text under 'prompt'; it has {sorted(row)}.")
    return rows
