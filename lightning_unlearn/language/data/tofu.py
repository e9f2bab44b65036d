"""TOFU: questions about two hundred fictitious authors."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from lightning_unlearn.core.pairing import Role
from lightning_unlearn.language.data.language import LanguageDataModule
from lightning_unlearn.language.prompt_format import PromptFormat

__all__ = ["TOFUDataModule"]

_HELDOUT = ("real_authors", "world_facts")


class TOFUDataModule(LanguageDataModule):
    """TOFU: 20 questions about each of 200 fictitious authors.

    ``forget10`` are the last 10 % of the 4,000 rows, and what is retained is all the others, ``retain90``. Real authors
    and world facts are never trained on; they become the held-out sets ``real_authors`` and ``world_facts``. The model
    to start from is one that was trained on all 4,000 rows.

    The data's licence is MIT; it does not come with this library.

    Args:
        path: A hub id, or a folder with a file ``<split>.json`` for each split, an object a line. A folder may lack the
            held-out sets.
        split: What to forget: ``"forget01"``, ``"forget05"`` or ``"forget10"``, or any other ``"forgetNN"`` that
            ``path`` has together with its ``"retainMM"``, where the two numbers add up to 100.
        prompt: How questions are asked, and the tokenizer; by default the model's own tokenizer and its chat template.
        max_length: Longest row in tokens.
        refusals: A text file with a refusal a line, or a list of them; by default the ones that come with the library.
        batch_size: Forget rows in a batch, per process.
        retain_batch_size: Retain rows in a batch, per process; by default as many as forget rows.
        epoch: The role that one epoch passes over once.
        seed: Seed of shuffling, pairing and refusals.
        num_workers: Processes that load data.

    Raises:
        ValueError: If ``split`` is not the name of a part to forget.
        FileNotFoundError: In ``setup``, if a folder lacks the split or the rows to retain.

    Example:
        >>> TOFUDataModule(split="forget05").retain_split
        'retain95'

    References:
        Maini et al., "TOFU: A Task of Fictitious Unlearning for LLMs", arXiv:2401.06121.
    """

    def __init__(
        self,
        path: str = "locuslab/TOFU",
        split: str = "forget10",
        prompt: PromptFormat | None = None,
        max_length: int = 512,
        refusals: str | list[str] | None = None,
        batch_size: int = 4,
        retain_batch_size: int | None = None,
        epoch: Role = "forget",
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__(
            forget=None,  # read_rows finds the sets
            prompt=prompt,
            max_length=max_length,
            refusals=refusals,
            batch_size=batch_size,
            retain_batch_size=retain_batch_size,
            epoch=epoch,
            seed=seed,
            num_workers=num_workers,
        )
        number = re.fullmatch(r"forget(\d\d)", split)
        if number is None or number[1] == "00":
            raise ValueError(
                f"TOFU has no split {split!r} to forget. Use 'forget01', 'forget05' or 'forget10', or another "
                "'forgetNN' that your copy has together with its 'retainMM', where NN + MM = 100."
            )
        self.path, self.split = path, split
        self.retain_split = f"retain{100 - int(number[1]):02d}"

    def read_rows(self) -> dict[str, list[dict[str, Any]]]:
        """The rows of every set."""
        self.sources = self._in_folder() if Path(self.path).is_dir() else self._on_hub()
        return super().read_rows()

    def _in_folder(self) -> dict[str, Any]:
        folder = Path(self.path)
        splits = {"forget": self.split, "retain": self.retain_split}
        sources = {role: folder / f"{split}.json" for role, split in splits.items()}
        for file in sources.values():
            if not file.is_file():
                known = sorted(f.stem for f in folder.glob("*.json") if re.fullmatch(r"(forget|retain)\d\d", f.stem))
                raise FileNotFoundError(
                    f"There is no file {file}, which split={self.split!r} needs. The folder has "
                    f"{', '.join(known) or 'no split at all'}."
                )
        for name in _HELDOUT:
            files = [folder / f"{name}_perturbed.json", folder / f"{name}.json"]
            if existing := [file for file in files if file.is_file()]:
                sources[name] = existing[0]
        return sources

    def _on_hub(self) -> dict[str, Any]:
        configs = {"forget": self.split, "retain": self.retain_split} | {n: f"{n}_perturbed" for n in _HELDOUT}
        return {name: f"{self.path}:{config}:train" for name, config in configs.items()}
