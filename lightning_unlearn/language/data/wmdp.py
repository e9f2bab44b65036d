"""WMDP: corpora of hazardous knowledge in cybersecurity and biology."""

from __future__ import annotations

from typing import Any

from lightning_unlearn.core.checks import at_least
from lightning_unlearn.core.pairing import Role
from lightning_unlearn.core.sources import Source, is_missing, text_cell
from lightning_unlearn.language.data.cells import row_name
from lightning_unlearn.language.data.columns import Columns
from lightning_unlearn.language.data.language import LanguageDataModule
from lightning_unlearn.language.prompt_format import PromptFormat

__all__ = ["WMDPDataModule"]


class WMDPDataModule(LanguageDataModule):
    """WMDP: corpora of hazardous knowledge in cybersecurity or biology to forget, and other text to retain.

    A row is an object with ``text``, all of which is supervised. A text longer than ``max_length`` is cut into pieces,
    all of which are used; the released code truncates it. Remaining knowledge is measured with the multiple-choice
    questions of the benchmark, in an evaluation harness.

    The corpora do not come with this library; the one to forget in biology is given out on request.

    Args:
        forget: A file of objects with ``text`` (``.jsonl``, ``.json``, ``.csv``, ``.parquet``), a folder or hub id with
            optional ``:config:split``, or the rows themselves.
        retain: The same for the text to keep; ``None`` for objectives without a retain term.
        heldout: Further named sets that are never trained on, only evaluated.
        tokenizer: A Hugging Face tokenizer, or the hub id or folder of one; by default the model's own.
        text_key: Name of the text column.
        min_length: Texts with fewer characters than this are left out, such as the empty lines of WikiText.
        max_length: Longest row in tokens.
        batch_size: Forget rows in a batch, per process.
        retain_batch_size: Retain rows in a batch, per process; by default as many as forget rows.
        epoch: The role that one epoch passes over once.
        seed: Seed of shuffling and pairing.
        num_workers: Processes that load data.

    Raises:
        ValueError: If ``min_length`` is below 1; in ``setup``, if it leaves no text or a row has no text column.

    References:
        Li et al., "The WMDP Benchmark: Measuring and Reducing Malicious Use With Unlearning", arXiv:2403.03218.
    """

    def __init__(
        self,
        forget: Source = "cais/wmdp-corpora:cyber-forget-corpus",
        retain: Source | None = "cais/wmdp-corpora:cyber-retain-corpus",
        heldout: dict[str, Source] | None = None,
        tokenizer: Any = None,
        text_key: str = "text",
        min_length: int = 50,
        max_length: int = 512,
        batch_size: int = 4,
        retain_batch_size: int | None = None,
        epoch: Role = "forget",
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__(
            forget=forget,
            retain=retain,
            heldout=heldout,
            prompt=PromptFormat(tokenizer),
            columns=Columns(text=text_key),
            max_length=max_length,
            batch_size=batch_size,
            retain_batch_size=retain_batch_size,
            epoch=epoch,
            seed=seed,
            num_workers=num_workers,
        )
        self.min_length = at_least("min_length", min_length, 1)

    def read_rows(self) -> dict[str, list[dict[str, Any]]]:
        """The texts of every corpus that are long enough."""
        return {name: self._long_enough(name, rows) for name, rows in super().read_rows().items()}

    def _long_enough(self, name: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        text = self.columns.text
        for number, row in enumerate(rows):
            if text not in row:
                raise ValueError(
                    f"Row {number} of the {name} corpus has columns {sorted(row)}, but needs {text!r}. Name your "
                    "column with text_key."
                )
        cells = [
            "" if is_missing(row[text]) else text_cell(row[text], row_name(name, number, self.sources[name]), text)
            for number, row in enumerate(rows)
        ]
        kept = [{text: cell} for cell in cells if len(cell) >= self.min_length]
        if not kept:
            raise ValueError(
                f"None of the {len(rows)} texts of the {name} corpus has {self.min_length} characters. "
                "Lower min_length."
            )
        return kept
