"""MUSE: corpora of news and of novels."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from lightning_unlearn.core.checks import one_of
from lightning_unlearn.core.pairing import Role
from lightning_unlearn.core.sources import load_rows, read_source
from lightning_unlearn.language.data.language import LanguageDataModule
from lightning_unlearn.language.prompt_format import PromptFormat
from lightning_unlearn.language.tokens import TokenRow

__all__ = ["MUSEDataModule"]

WrapLast = Literal["pad", "drop", "wrap"]

_CORPORA = {"forget": "forget", "retain": "retain1", "retain2": "retain2", "holdout": "holdout"}


class MUSEDataModule(LanguageDataModule):
    """MUSE: plain text of news (MUSE-News) or of novels (MUSE-Books).

    Trains on the raw corpora ``forget`` and ``retain1``. The held-out sets are ``retain2``, more text of the kind to
    retain, and ``holdout``, text of the kind to forget that the model never read.

    The texts of a corpus are joined by blank lines, tokenized at once and cut into rows of ``max_length`` tokens, all
    supervised. The token ids themselves are cut: they are not decoded and tokenized again, which can move the borders
    of tokens.

    The texts are copyrighted by others and do not come with this library.

    Args:
        path: A hub id, or a folder with ``raw/forget``, ``raw/retain1`` and, if they are there, ``raw/retain2`` and
            ``raw/holdout``. Each is a ``.json`` file (an array of texts, or of objects with ``text``), a ``.jsonl``
            file or a ``.txt`` file.
        tokenizer: A Hugging Face tokenizer, or the hub id or folder of one; by default the model's own.
        bos: Whether each row starts with the tokenizer's beginning-of-sequence token. Without it, the first token of
            each row is not predicted.
        wrap_last: What to do with the last row if it is short: ``"pad"`` keeps it as it is, ``"drop"`` leaves it out,
            and ``"wrap"`` fills it with the beginning of the corpus, as the paper's code does.
        max_length: Length of a row in tokens, the beginning-of-sequence token included.
        batch_size: Forget rows in a batch, per process.
        retain_batch_size: Retain rows in a batch, per process; by default as many as forget rows.
        epoch: The role that one epoch passes over once.
        seed: Seed of shuffling and pairing.
        num_workers: Processes that load data.

    Raises:
        ValueError: If ``wrap_last`` is unknown; in ``setup``, if the tokenizer has no beginning-of-sequence token or a
            corpus is too short for one row.
        FileNotFoundError: In ``setup``, if a folder lacks ``forget`` or ``retain1``.

    References:
        Shi et al., "MUSE: Machine Unlearning Six-Way Evaluation for Language Models", arXiv:2407.06460.
    """

    def __init__(
        self,
        path: str = "muse-bench/MUSE-News",
        tokenizer: Any = None,
        bos: bool = True,
        wrap_last: WrapLast = "pad",
        max_length: int = 2048,
        batch_size: int = 4,
        retain_batch_size: int | None = None,
        epoch: Role = "forget",
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__(
            forget=None,  # read_rows finds the sets
            prompt=PromptFormat(tokenizer),
            max_length=max_length,
            batch_size=batch_size,
            retain_batch_size=retain_batch_size,
            epoch=epoch,
            seed=seed,
            num_workers=num_workers,
        )
        self.path, self.bos, self.wrap_last = path, bos, one_of("wrap_last", wrap_last, WrapLast)

    def read_rows(self) -> dict[str, list[dict[str, Any]]]:
        """The texts of every corpus."""
        self.sources = self._in_folder() if Path(self.path).is_dir() else self._on_hub()
        return super().read_rows()

    def _in_folder(self) -> dict[str, Any]:
        folder = Path(self.path) / "raw"
        sources: dict[str, Any] = {}
        for name, corpus in _CORPORA.items():
            files = [folder / f"{corpus}{ending}" for ending in (".json", ".jsonl", ".txt")]
            file = next((file for file in files if file.is_file()), None)
            if file is not None:
                sources[name] = _texts(file)
            elif name in ("forget", "retain"):
                known = sorted(file.name for file in folder.glob("*"))
                raise FileNotFoundError(
                    f"There is no file {folder / corpus} with the ending .json, .jsonl or .txt. {folder} has "
                    f"{', '.join(known) or 'no file at all'}."
                )
        return sources

    def _on_hub(self) -> dict[str, Any]:
        return {name: f"{self.path}:raw:{corpus}" for name, corpus in _CORPORA.items()}

    def _tokenize(self, name: str, rows: list[dict[str, Any]]) -> list[TokenRow]:
        for number, row in enumerate(rows):
            if not isinstance(row.get("text"), str):
                raise ValueError(
                    f"Row {number} of the {name} corpus has columns {sorted(row)}, but needs a text in 'text'."
                )
        tokenizer = self.prompt.tokenizer
        if self.bos and tokenizer.bos_token_id is None:
            raise ValueError("The tokenizer has no bos_token to start each row with. Pass bos=False.")
        start = [tokenizer.bos_token_id] if self.bos else []
        size = self.max_length - len(start)
        text = "\n\n".join(row["text"] for row in rows)
        tokens = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        chunks = [tokens[i : i + size] for i in range(0, len(tokens), size)]
        if chunks and len(chunks[-1]) < size:
            if self.wrap_last == "drop":
                chunks.pop()
            elif self.wrap_last == "wrap" and len(chunks) > 1:
                chunks[-1] = chunks[-1] + tokens[: size - len(chunks[-1])]
        # A single token with nothing before it is not predicted: such a row would have no supervised token.
        chunks = [start + chunk for chunk in chunks if len(start + chunk) > 1]
        if not chunks:
            raise ValueError(
                f"The {name} corpus has {len(tokens)} tokens, too few for a row with max_length={self.max_length} and "
                f"wrap_last={self.wrap_last!r}. Lower max_length, use wrap_last='pad', or give it more text."
            )
        return [TokenRow([], chunk) for chunk in chunks]


def _texts(file: Path) -> list[dict[str, Any]]:
    texts = [file.read_text(encoding="utf-8-sig")] if file.suffix == ".txt" else read_source(file)
    return load_rows([{"text": text} if isinstance(text, str) else text for text in texts])
