"""Data module of questions with answers, and of plain text."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from lightning_unlearn.core.checks import at_least
from lightning_unlearn.core.lightning import rank_zero_warn
from lightning_unlearn.core.pairing import ForgetRetainDataModule, Role
from lightning_unlearn.core.sources import Source, find_tokenizer, load_rows, source_name
from lightning_unlearn.functional.likelihood import IGNORE_INDEX
from lightning_unlearn.functional.random import keyed_generator
from lightning_unlearn.language.data.cells import row_name, text_rows
from lightning_unlearn.language.prompt_format import PromptFormat, TokenRow

__all__ = ["AlternateRows", "Columns", "LanguageDataModule", "RefusalRows", "TokenRows", "collate_tokens"]

_REFUSALS = Path(__file__).parents[2] / "assets" / "refusals.txt"


@dataclass(frozen=True)
class Columns:
    """Names of the columns of a table of questions or texts.

    Args:
        question: The question.
        answer: Its answer.
        text: A plain text, in rows without a question.
        target: Optional; the part of the answer that is supervised, such as ``"Paris"`` in
            ``"The capital of France is Paris."``: the fact is forgotten, and not how to say such a thing. What comes
            before it is context, which refusals continue, and what comes after it is left out.
        accept: Optional; accepted short answers, by which generated answers are marked.
        alternate: Optional, in forget rows; other answers to the question, as a list. A batch then also has
            ``"alternate"``, the forget questions with one of them, for `AltPO`.
            [`generate_alternates`][lightning_unlearn.generate_alternates] writes such rows.
    """

    question: str = "question"
    answer: str = "answer"
    text: str = "text"
    target: str = "target"
    accept: str = "accept"
    alternate: str = "alternate"


class TokenRows(Dataset):
    """Token sequences, supervised after their prompt.

    Args:
        rows: Tokens of each row.
    """

    def __init__(self, rows: Sequence[TokenRow]) -> None:
        self.rows = rows
        self.lengths = torch.tensor([len(row.prompt) + len(row.answer) for row in rows])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"prompt": self.rows[i].prompt, "answer": self.rows[i].answer, "index": i}


class AlternateRows:
    """Each forget question with one of its own other answers: a pass over all of them, then another, shuffled anew.

    Read at ``[row, epoch]`` while training. Read at ``[i]``, it runs through every answer of every row in order, and
    ``i`` is the row's stable ``index``.

    Args:
        prompts: Tokens of each forget question.
        answers: Tokens of the other answers of each question, at least one.
        seed: Seed of the draw.
        max_length: Longest row in tokens; an answer is cut there.
    """

    def __init__(
        self, prompts: Sequence[list[int]], answers: Sequence[Sequence[list[int]]], seed: int, max_length: int
    ) -> None:
        self.prompts, self.answers, self.seed, self.max_length = prompts, answers, seed, max_length
        self.starts = [0, *accumulate(map(len, answers))]

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        if isinstance(key, int):
            if not 0 <= key < len(self):
                raise IndexError(key)
            row = bisect_right(self.starts, key) - 1
            choice = key - self.starts[row]
        else:
            row, epoch = key
            choice = self.choice(row, epoch)
        prompt, answer = self.prompts[row], self.answers[row][choice]
        return {
            "prompt": prompt,
            "answer": answer[: self.max_length - len(prompt)],
            "index": self.starts[row] + choice,
        }

    def choice(self, row: int, epoch: int) -> int:
        """Which of its answers a row has in an epoch."""
        number, place = divmod(epoch, len(self.answers[row]))
        return int(torch.randperm(len(self.answers[row]), generator=_draw(self.seed, number, row))[place])


class RefusalRows(AlternateRows):
    """Each forget question with a refusal in place of its answer, drawn anew each epoch by (seed, epoch, row).

    The ``index`` of a row is ``row * K + choice`` with ``K`` refusals.

    Args:
        rows: The forget questions.
        refusals: Tokens of each refusal, where it begins an answer and where it continues one.
        seed: Seed of the draw.
        max_length: Longest row in tokens; a refusal is cut there.
    """

    def __init__(
        self, rows: TokenRows, refusals: Sequence[tuple[list[int], list[int]]], seed: int, max_length: int
    ) -> None:
        beginning, continuing = zip(*refusals, strict=True)
        answers = [continuing if row.continues_answer else beginning for row in rows.rows]
        super().__init__([row.prompt for row in rows.rows], answers, seed, max_length)

    def choice(self, row: int, epoch: int) -> int:
        """Which refusal a row has in an epoch."""
        return int(torch.randint(len(self.answers[row]), (), generator=_draw(self.seed, epoch, row)))


def _draw(seed: int, number: int, row: int) -> torch.Generator:
    return keyed_generator(seed - 1, number - 1, row - 1)  # to which the hash of a key adds 1


def collate_tokens(rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """Pad token rows on the right. Masks are made from lengths: a pad token may also be a real one.

    Args:
        rows: Dicts with ``prompt`` and ``answer`` (lists of token ids) and ``index``.

    Returns:
        ``input_ids``, ``attention_mask``, ``labels`` of shape ``(B, T)`` and ``index`` of shape ``(B,)``, int64.
    """
    ids = [torch.tensor(row["prompt"] + row["answer"]) for row in rows]
    labels = [torch.tensor([IGNORE_INDEX] * len(row["prompt"]) + row["answer"]) for row in rows]
    return {
        "input_ids": pad_sequence(ids, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(i) for i in ids], batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORE_INDEX),
        "index": torch.tensor([row["index"] for row in rows]),
    }


class LanguageDataModule(ForgetRetainDataModule):
    """Questions with answers, or plain text, for unlearning a language model.

    A row with a question and an answer becomes the question in its prompt format, unsupervised, then the answer and
    the end-of-sequence token, supervised. A row of plain text is supervised throughout; text longer than ``max_length``
    is cut into pieces and none of it is dropped. Where forget rows are questions, a batch also has ``"idk"``: the same
    questions with a refusal for an answer.

    Args:
        forget: Rows to forget, as [`load_rows`][lightning_unlearn.core.sources.load_rows] takes them: a path (``.csv``,
            ``.tsv``, ``.json``, ``.jsonl``, ``.txt``, ``.parquet``, each also ``.gz``), a folder or hub id with
            optional ``:config:split``, a ``datasets.Dataset``, a data frame, a dict of columns, or a list of dicts.
        retain: Rows to keep, given in the same ways.
        heldout: Further named sets that are never trained on, only evaluated.
        prompt: How questions are asked, and the tokenizer; by default the model's own tokenizer and its chat template.
        columns: Names of the columns, where they are not ``question``, ``answer``, ``text`` and so on.
        max_length: Longest row in tokens. An answer is cut there; a prompt that fills it is an error.
        refusals: A text file with a refusal a line, or a list of them; by default the ones that come with the library.
        batch_size: Forget rows in a batch, per process.
        retain_batch_size: Retain rows in a batch, per process; by default as many as forget rows.
        epoch: The role that one epoch passes over once.
        seed: Seed of shuffling, pairing and refusals.
        num_workers: Processes that load data.

    Raises:
        ValueError: If forget or retain is empty, a row has no supervised token or none of the expected columns, or a
            cell is missing or no text.
    """

    def __init__(
        self,
        forget: Source,
        retain: Source | None = None,
        heldout: dict[str, Source] | None = None,
        prompt: PromptFormat | None = None,
        columns: Columns | None = None,
        max_length: int = 512,
        refusals: str | list[str] | None = None,
        batch_size: int = 4,
        retain_batch_size: int | None = None,
        epoch: Role = "forget",
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            retain_batch_size=retain_batch_size,
            epoch=epoch,
            seed=seed,
            num_workers=num_workers,
            collate_fn=collate_tokens,
        )
        self.sources = {"forget": forget, "retain": retain, **(heldout or {})}
        self.prompt, self.columns = prompt or PromptFormat(), columns or Columns()
        self.max_length = at_least("max_length", max_length, 2)
        self.refusals = refusals
        self.questions: dict[str, list[dict[str, Any]]] = {}
        """Rows with a question, by set: ``question``, ``answer`` and ``accept``."""

    def setup(self, stage: str) -> None:
        """Read and tokenize every set, once."""
        if self.sets:
            return
        self.prompt = replace(self.prompt, tokenizer=find_tokenizer(self.prompt.tokenizer, self.trainer))
        if self.prompt.tokenizer.eos_token_id is None:
            raise ValueError(
                "The tokenizer has no eos_token, so an answer would have no end. Set tokenizer.eos_token to the token "
                "that ends a text of this model."
            )
        sets = self.read_rows()
        for name, rows in sets.items():
            if not rows:
                raise ValueError(
                    f"The {name} set ({source_name(self.sources.get(name))}) is empty. Give it at least one row."
                )
            sets[name] = text_rows(name, rows, self.columns, self.sources.get(name))
        self._warn_of_shared_rows(sets)
        self.sets = {name: TokenRows(self._tokenize(name, rows)) for name, rows in sets.items()}
        self.questions = {name: questions for name, rows in sets.items() if (questions := self._questions(rows))}
        if len(self.questions.get("forget", [])) == len(sets["forget"]):  # a text has no question to refuse
            refusals = [
                (self.prompt.answer(text), self.prompt.answer(f" {text}", begins=False))
                for text in self._refusal_texts()
            ]
            self.followers = {"idk": RefusalRows(self.sets["forget"], refusals, self.seed, self.max_length)}
            if any(row.get(self.columns.alternate) for row in sets["forget"]):
                self.followers["alternate"] = self._alternates(sets["forget"])

    def read_rows(self) -> dict[str, list[dict[str, Any]]]:
        """The rows of every set, as they are in its source."""
        return {name: load_rows(source) for name, source in self.sources.items() if source is not None}

    def predict_dataloader(self) -> DataLoader:
        """The questions of every set, for generation."""
        questions = [{"set": name, **row} for name, rows in self.questions.items() for row in rows]
        return DataLoader(questions, batch_size=self.batch_size, collate_fn=list)  # type: ignore[arg-type]

    def _tokenize(self, name: str, rows: list[dict[str, Any]]) -> list[TokenRow]:
        from tqdm import tqdm

        tokenized: list[TokenRow] = []
        for number, row in enumerate(tqdm(rows, desc=f"Tokenizing {name}", leave=False, disable=len(rows) < 5_000)):
            if self._has_question(row):
                tokenized.append(self._question_and_answer(name, number, row))
            elif self.columns.text in row:
                tokenized += self._pieces(name, number, row[self.columns.text])
            else:
                where = row_name(name, number, self.sources.get(name))
                raise ValueError(
                    f"{where} has columns {sorted(map(str, row))}, but a row needs "
                    f"{self.columns.question!r} and {self.columns.answer!r}, or {self.columns.text!r}. Name your "
                    "columns: columns=Columns(question=..., answer=...) or Columns(text=...)."
                )
        return tokenized

    def _has_question(self, row: Mapping[str, Any]) -> bool:
        return self.columns.question in row and self.columns.answer in row

    def _question_and_answer(self, name: str, number: int, row: dict[str, Any]) -> TokenRow:
        question, answer = row[self.columns.question], row[self.columns.answer]
        target = row.get(self.columns.target)
        if target and target not in answer:
            raise ValueError(
                f"Row {number} of the {name} set has the target {target!r}, which is not in its answer {answer!r}. "
                "Give a part of the answer, or remove the target."
            )
        tokens = self.prompt.row(question, answer, target)
        length = len(tokens.prompt)
        tokens = tokens._replace(answer=tokens.answer[: max(0, self.max_length - length)])
        if not tokens.answer:
            raise ValueError(
                f"Row {number} of the {name} set has no supervised token: its prompt has {length} tokens of "
                f"max_length={self.max_length} and its answer is {answer!r}. Raise max_length or remove the row."
            )
        return tokens

    def _pieces(self, name: str, number: int, text: str) -> list[TokenRow]:
        tokens = self.prompt.tokenizer(text)["input_ids"]
        if len(tokens) < 2:
            raise ValueError(
                f"Row {number} of the {name} set has no supervised token: its text is {text!r}. Remove the row."
            )
        # A piece begins with the last token of the one before, since a first token is not predicted.
        starts = range(0, len(tokens) - 1, self.max_length - 1)
        return [TokenRow([], tokens[start : start + self.max_length]) for start in starts]

    def _alternates(self, rows: list[dict[str, Any]]) -> AlternateRows:
        prompts, answers = [], []
        for number, row in enumerate(rows):
            texts = row.get(self.columns.alternate)
            texts = [texts] if isinstance(texts, str) else list(texts or [])
            if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
                raise ValueError(
                    f"Row {number} of the forget set has {texts!r} in {self.columns.alternate!r}, but where one row "
                    "has alternates every row needs at least one text there. Run generate_alternates on all rows, or "
                    "remove the row."
                )
            # From the question on, also where the row has a target: an alternate is a whole answer.
            prompts.append(self.prompt.prompt(str(row[self.columns.question])))
            answers.append([self.prompt.answer(text) for text in texts])
        return AlternateRows(prompts, answers, self.seed, self.max_length)

    def _questions(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        questions = []
        for row in filter(self._has_question, rows):
            accept = row.get(self.columns.accept) or []
            accept = [accept] if isinstance(accept, str) else list(accept)
            questions.append(
                {"question": row[self.columns.question], "answer": row[self.columns.answer], "accept": accept}
            )
        return questions

    def _refusal_texts(self) -> list[str]:
        if isinstance(self.refusals, list):
            texts = self.refusals
        else:
            path = Path(self.refusals or _REFUSALS)
            if not path.is_file():
                raise FileNotFoundError(f"There is no file {path} for refusals (looked in {Path.cwd()}).")
            texts = path.read_text(encoding="utf-8").splitlines()
        texts = [text.strip() for text in texts if text.strip()]
        if not texts:
            raise ValueError(f"refusals ({self.refusals!r}) holds no text. Give at least one refusal, one a line.")
        return texts

    def _warn_of_shared_rows(self, sets: Mapping[str, list[dict[str, Any]]]) -> None:
        names = (self.columns.question, self.columns.answer, self.columns.text)

        def content(row: dict[str, Any]) -> tuple[str, ...]:
            return tuple(str(row.get(name, "")).strip() for name in names)

        shared = {content(row) for row in sets["forget"]} & {content(row) for row in sets.get("retain", [])}
        shared.discard(("", "", ""))  # rows without any of the columns, which are refused below
        if shared:
            example = shorten(next(text for text in sorted(shared)[0] if text), 120, placeholder=" ...")
            rank_zero_warn(
                f"{len(shared)} rows are in both forget and retain, such as {example!r}. The two terms pull against "
                "each other on them; remove them from retain."
            )
