"""Data of prompts, for methods that sample their own images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader, Dataset

from lightning_unlearn.core.checks import at_least
from lightning_unlearn.core.lightning import rank_zero_warn
from lightning_unlearn.core.pairing import ForgetRetainDataModule, Role
from lightning_unlearn.core.sources import Source, find_tokenizer, is_missing, load_rows, text_cell
from lightning_unlearn.core.tables import TABLE_ENDINGS, is_table
from lightning_unlearn.diffusion.engine.text import cut_off, tokenize

__all__ = [
    "GUIDANCES",
    "SEEDS",
    "PromptDataModule",
    "PromptRows",
    "drawn_with",
    "load_prompts",
    "shortened",
    "warn_of_shared_prompts",
]


SEEDS = ("evaluation_seed", "seed", "sd_seed")
GUIDANCES = ("evaluation_guidance", "guidance", "sd_guidance_scale")
"""Columns of a prompt's seed and guidance, the first that has a number: of UnlearnDiffAtk's files, and of I2P."""


class PromptRows(Dataset):
    """Tokens of prompts and of their anchors.

    A warning names prompts that the tokenizer truncates, and prompts that equal their anchor.

    Args:
        prompts: The prompts.
        anchors: What each prompt is to become; none for prompts to keep.
        tokenizer: A ``CLIPTokenizer``.
        repeat: How often the rows follow one another.
        name: Name of the set, for messages.
    """

    def __init__(
        self,
        prompts: list[str],
        anchors: list[str] | None,
        tokenizer: Any,
        repeat: int = 1,
        name: str = "prompts",
    ) -> None:
        self.prompts, self.anchors, self.repeat = prompts, anchors, repeat
        self.tokens = tokenize(tokenizer, prompts)
        _warn_of_cut_prompts(f"the {name} set", prompts, self.tokens, tokenizer)
        if anchors is not None:
            anchor_tokens = tokenize(tokenizer, anchors)
            _warn_of_cut_prompts(f"the anchors of the {name} set", anchors, anchor_tokens, tokenizer)
            equal = (self.tokens["input_ids"] == anchor_tokens["input_ids"]).all(1).nonzero().flatten().tolist()
            if equal:
                rank_zero_warn(
                    f"{len(equal)} of {len(prompts)} prompts of the {name} set are their own anchor, such as row "
                    f"{equal[0]}, {prompts[equal[0]]!r}: they teach to forget nothing. Give another anchor."
                )
            self.tokens |= {f"anchor_{column}": value for column, value in anchor_tokens.items()}

    def __len__(self) -> int:
        return len(self.prompts) * self.repeat

    def __getitem__(self, i: int) -> dict[str, Any]:
        if not 0 <= i < len(self):
            raise IndexError(i)
        row = i % len(self.prompts)
        return {**{name: value[row] for name, value in self.tokens.items()}, "index": row}


class PromptDataModule(ForgetRetainDataModule):
    """Prompts of the concepts to forget, and prompts to keep.

    A forget row has ``input_ids`` and ``attention_mask``, and ``anchor_input_ids`` and ``anchor_attention_mask`` of its
    anchor, which replaces the concept, each of shape ``(B, L)``. A retain row has the first two.

    A prompt may set the ``seed`` and the ``guidance`` of the image that ``trainer.predict`` draws for it. The columns
    ``sd_seed`` and ``sd_guidance_scale`` of I2P work as well. A blank cell counts as missing.

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
        ValueError: If a set is empty, or a row is not a prompt.

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
        self._rows: dict[str, list[dict[str, Any]]] = {}
        self.anchor, self.tokenizer, self.repeat = anchor, tokenizer, at_least("repeat", repeat, 1)

    def setup(self, stage: str) -> None:
        """Read and tokenize every set, once."""
        if self.sets:
            return
        tokenizer = find_tokenizer(self.tokenizer, self.trainer, "CLIPTokenizer")
        for name, source in self.sources.items():
            if source is None:
                continue
            rows = self._rows[name] = load_prompts(source, name)
            cells = [row.get("anchor") for row in rows]
            anchors = [
                self.anchor if is_missing(cell) else text_cell(cell, f"Row {number} of the {name} set", "anchor")
                for number, cell in enumerate(cells)
            ]
            forget = name == "forget"
            self.sets[name] = PromptRows(
                [row["prompt"] for row in rows],
                anchors if forget else None,
                tokenizer,
                self.repeat if forget else 1,
                name,
            )
        warn_of_shared_prompts(self.sets["forget"], self.sets.get("retain"))

    def predict_dataloader(self) -> DataLoader:
        """The prompts of every set once, with the seed of the image to draw, and the guidance where a row has one."""
        drawn: list[dict[str, Any]] = []
        for name, rows in self.sets.items():
            prompts = rows if isinstance(rows, PromptRows) else rows.prompts
            columns = self._rows.get(name, [{}] * len(prompts.prompts))
            for number, (prompt, row) in enumerate(zip(prompts.prompts, columns, strict=True)):
                where = f"Row {number} of the {name} set"
                seed, guidance = drawn_with(row, where, self.seed + len(drawn), None)
                own = {} if guidance is None else {"guidance": guidance}
                drawn.append({"set": name, "prompt": prompt, "seed": seed, **own})
        return DataLoader(drawn, batch_size=self.batch_size, collate_fn=list)  # type: ignore[arg-type]


def drawn_with(row: Mapping[str, Any], where: str, seed: int, guidance: float | None) -> tuple[int, float | None]:
    """Seed and guidance of the image of a row.

    Args:
        row: The row, with one of ``SEEDS`` and one of ``GUIDANCES`` or without.
        where: The row, for messages.
        seed: The seed of a row that has none.
        guidance: The guidance of a row that has none.

    Raises:
        ValueError: If a cell is no number, or the seed no whole one.
    """
    given = next((row[name] for name in SEEDS if not is_missing(row.get(name))), seed)
    weight = next((row[name] for name in GUIDANCES if not is_missing(row.get(name))), guidance)
    try:
        # Tables write whole numbers of a column with gaps as 7.0.
        whole = (
            int(given) if not isinstance(given, float) and str(given).strip().lstrip("-").isdigit() else float(given)
        )
        if whole != int(whole):
            raise ValueError
        return int(whole), weight if weight is None else float(weight)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(
            f"{where} has seed {given!r} and guidance {weight!r}, but they must be numbers, the seed a whole one."
        ) from None


def warn_of_shared_prompts(forget: PromptRows, retain: PromptRows | None) -> None:
    """Say which prompts are both to forget and to keep, as the tokenizer reads them."""
    if retain is None:
        return
    kept = {tuple(ids) for ids in retain.tokens["input_ids"].tolist()}
    both = [n for n, ids in enumerate(forget.tokens["input_ids"].tolist()) if tuple(ids) in kept]
    if both:
        rank_zero_warn(
            f"{len(both)} of {len(forget.prompts)} prompts are both to forget and to keep, such as "
            f"{forget.prompts[both[0]]!r}: the two terms work against each other. Remove them from one of the sets."
        )


def _warn_of_cut_prompts(what: str, prompts: list[str], tokens: dict[str, Any], tokenizer: Any) -> None:
    """Say which prompts are longer than what the text encoder reads."""
    ends = cut_off(tokenizer, prompts, tokens)
    if ends:
        number, end = next(iter(ends.items()))
        rank_zero_warn(
            f"{len(ends)} of {len(prompts)} prompts of {what} are longer than the {tokenizer.model_max_length - 2} "
            f"tokens that the model reads. Row {number} is cut before {shortened(end)!r}: what is only named there is "
            "not in the prompt. Shorten them."
        )


def shortened(text: str, length: int = 60) -> str:
    """The beginning of a text, for messages."""
    return text if len(text) <= length else f"{text[: length - 3]}..."


def load_prompts(source: Source, name: str) -> list[dict[str, Any]]:
    """Rows with a text under ``prompt``.

    Args:
        source: Strings, or rows, or what [`load_rows`][lightning_unlearn.core.sources.load_rows] reads them from.
        name: Name of the set, for messages.

    Raises:
        ValueError: If there is no row, a row has no prompt, a prompt to forget is blank, or the source is a single
            prompt.
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
        if name == "forget" and is_missing(row["prompt"]):
            raise ValueError(
                f"Row {number} of the forget set has a blank prompt. It would forget the empty prompt, which guidance "
                "compares every other with: remove the row."
            )
    return rows
