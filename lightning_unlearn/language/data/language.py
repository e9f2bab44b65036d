"""Questions with answers, and plain text, as rows of tokens."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from string import Formatter
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from lightning_unlearn.core.pairing import ForgetRetainDataModule, Role
from lightning_unlearn.core.sources import Source, load_rows
from lightning_unlearn.functional.likelihood import IGNORE_INDEX

__all__ = ["AlternateRows", "LanguageDataModule", "RefusalRows", "TokenRows", "collate_tokens"]

_REFUSALS = Path(__file__).parents[2] / "assets" / "refusals.txt"
_PROMPT_FORMAT = "Question: {question}\nAnswer: "


class TokenRows(Dataset):
    """Token sequences, supervised after their prompt.

    Args:
        prompts: Tokens of each prompt; empty for plain text.
        answers: Supervised tokens that follow each prompt.
        goes_on: Whether a prompt ends with the beginning of the answer.
    """

    def __init__(self, prompts: Sequence[list[int]], answers: Sequence[list[int]], goes_on: Sequence[bool]) -> None:
        self.prompts, self.answers, self.goes_on = prompts, answers, goes_on
        self.lengths = torch.tensor([len(p) + len(a) for p, a in zip(prompts, answers, strict=True)])

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"prompt": self.prompts[i], "answer": self.answers[i], "index": i}


class AlternateRows:
    """Each forget question with one of its own other answers: a pass over all of them, then another, shuffled anew.

    Read at ``[row, epoch]`` while training. Read at ``[i]``, it goes through every answer of every row in order, and
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
        refusals: Tokens of each refusal, where it begins an answer and where it goes on from its context.
        seed: Seed of the draw.
        max_length: Longest row in tokens; a refusal is cut there.
    """

    def __init__(
        self, rows: TokenRows, refusals: Sequence[tuple[list[int], list[int]]], seed: int, max_length: int
    ) -> None:
        begins, goes_on = zip(*refusals, strict=True)
        answers = [goes_on if goes else begins for goes in rows.goes_on]
        super().__init__(rows.prompts, answers, seed, max_length)

    def choice(self, row: int, epoch: int) -> int:
        """Which refusal a row has in an epoch."""
        return int(torch.randint(len(self.answers[row]), (), generator=_draw(self.seed, epoch, row)))


def _draw(seed: int, number: int, row: int) -> torch.Generator:
    return torch.Generator().manual_seed(((seed * 1_000_003 + number) * 1_000_003 + row) % (1 << 63))


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

    A row with a question and an answer becomes the tokenizer's chat template around the question, unsupervised, then
    the answer and the end-of-sequence token, supervised. A row of plain text is supervised throughout; text longer than
    ``max_length`` is cut into pieces and none of it is dropped. Where forget rows are questions, a batch also has
    ``"idk"``: the same questions with a refusal for an answer.

    Args:
        forget: Rows to forget: a path (``.json``, ``.jsonl``, ``.csv``, ``.parquet``), a folder or hub id with optional
            ``:config:split``, a ``datasets.Dataset``, or a list of dicts.
        retain: Rows to keep, given in the same ways.
        heldout: Further named sets that are never trained on, only evaluated.
        tokenizer: A Hugging Face tokenizer, or the hub id or folder of one; by default the model's own.
        question_key: Name of the question column.
        answer_key: Name of the answer column.
        text_key: Name of the plain text column.
        target_key: Name of an optional column with the part of the answer that is supervised, such as ``"Paris"`` in
            ``"The capital of France is Paris."``: the fact is forgotten, and not how to say such a thing. What comes
            before it is context, refusals go on from there, and what comes after it is left out.
        accept_key: Name of an optional column of accepted short answers, by which generated answers are marked.
        alternate_key: Name of an optional column of the forget rows: other answers to a question, as a list. A batch
            then also has ``"alternate"``, the forget questions with one of them, for `AltPO`.
            [`generate_alternates`][lightning_unlearn.generate_alternates] writes such rows.
        system_prompt: System message of the chat template; by default the template's own.
        prompt_format: A format string with ``{question}``, used in place of the chat template.
        max_length: Longest row in tokens. An answer is cut there; a prompt that fills it is an error.
        refusals: A text file with a refusal a line, or a list of them; by default the ones that come with the library.
        batch_size: Forget rows in a batch, per process.
        retain_batch_size: Retain rows in a batch, per process; by default as many as forget rows.
        epoch: The role that one epoch passes over once.
        seed: Seed of shuffling, pairing and refusals.
        num_workers: Processes that load data.

    Raises:
        ValueError: If forget or retain is empty, or a row has no supervised token or none of the expected columns.
    """

    def __init__(
        self,
        forget: Source,
        retain: Source | None = None,
        heldout: dict[str, Source] | None = None,
        tokenizer: Any = None,
        question_key: str = "question",
        answer_key: str = "answer",
        text_key: str = "text",
        target_key: str = "target",
        accept_key: str = "accept",
        alternate_key: str = "alternate",
        system_prompt: str | None = None,
        prompt_format: str | None = None,
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
        if max_length < 2:
            raise ValueError(f"max_length must be at least 2 tokens, but got {max_length}.")
        fields = {name for _, name, *_ in Formatter().parse(prompt_format or "") if name is not None}
        if prompt_format is not None and fields != {"question"}:
            raise ValueError(f"prompt_format must contain {{question}} and no other field, but got {prompt_format!r}.")
        self.sources = {"forget": forget, "retain": retain, **(heldout or {})}
        self.tokenizer = tokenizer
        self.question_key, self.answer_key, self.text_key = question_key, answer_key, text_key
        self.target_key, self.accept_key, self.alternate_key = target_key, accept_key, alternate_key
        self.system_prompt, self.prompt_format, self.max_length = system_prompt, prompt_format, max_length
        self.refusals = refusals
        self.questions: dict[str, list[dict[str, Any]]] = {}
        """Rows with a question, by set: ``question``, ``answer`` and ``accept``."""

    def setup(self, stage: str) -> None:
        """Read and tokenize every set, once."""
        if self.sets:
            return
        self._find_tokenizer()
        rows = {name: load_rows(source) for name, source in self.sources.items() if source is not None}
        for name, found in rows.items():
            if not found:
                raise ValueError(f"The {name} set ({self.sources[name]}) is empty. Give it at least one row.")
        self._warn_of_shared_rows(rows)
        self.sets = {name: self._tokenize(name, found) for name, found in rows.items()}
        self.questions = {name: asked for name, found in rows.items() if (asked := self._asked(found))}
        if len(self.questions.get("forget", [])) == len(rows["forget"]):  # a text has no question to refuse
            refusals = [
                (self._answer_tokens(text), self._answer_tokens(f" {text}", begins=False))
                for text in self._refusal_texts()
            ]
            self.followers = {"idk": RefusalRows(self.sets["forget"], refusals, self.seed, self.max_length)}
            if any(row.get(self.alternate_key) for row in rows["forget"]):
                self.followers["alternate"] = self._alternates(rows["forget"])

    def predict_dataloader(self) -> DataLoader:
        """The questions of every set, for generation."""
        asked = [{"set": name, **row} for name, rows in self.questions.items() for row in rows]
        return DataLoader(asked, batch_size=self.batch_size, collate_fn=list)  # type: ignore[arg-type]

    def prompt(self, question: str) -> list[int]:
        """Tokens up to where the answer begins."""
        text = self.prompt_format
        if text is None and getattr(self.tokenizer, "chat_template", None):
            messages = [{"role": "system", "content": self.system_prompt}] if self.system_prompt else []
            messages.append({"role": "user", "content": question})
            chat = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            return self.tokenizer(chat, add_special_tokens=False)["input_ids"]
        # White space before the answer belongs to the answer's first token.
        return self.tokenizer((text or _PROMPT_FORMAT).format(question=question).rstrip())["input_ids"]

    def _answer_tokens(self, answer: str, begins: bool = True) -> list[int]:
        chat = self.prompt_format is None and getattr(self.tokenizer, "chat_template", None)
        if begins and not chat and (space := self._space_before_answer()):
            answer = space + answer
        return [*self.tokenizer(answer, add_special_tokens=False)["input_ids"], self.tokenizer.eos_token_id]

    def _space_before_answer(self) -> str:
        text = (self.prompt_format or _PROMPT_FORMAT).format(question="")
        return text[len(text.rstrip()) :]

    def _find_tokenizer(self) -> None:
        if self.tokenizer is None:
            module = self.trainer.lightning_module if self.trainer is not None else None
            self.tokenizer = getattr(module, "tokenizer", None)
            if self.tokenizer is None:
                raise ValueError(
                    "LanguageDataModule found no tokenizer: the module has no attribute 'tokenizer'. Pass tokenizer=, "
                    "a hub id, a folder or a tokenizer object."
                )
        if isinstance(self.tokenizer, (str, Path)):
            try:
                from transformers import AutoTokenizer
            except ImportError:
                raise ImportError('Tokenizers need transformers: pip install "lightning-unlearn[llm]"') from None
            self.tokenizer = AutoTokenizer.from_pretrained(self.tokenizer)
        if self.tokenizer.eos_token_id is None:
            raise ValueError(
                "The tokenizer has no eos_token, so an answer would have no end. Set tokenizer.eos_token to the token "
                "that ends a text of this model."
            )

    def _tokenize(self, name: str, rows: list[dict[str, Any]]) -> TokenRows:
        from tqdm import tqdm

        prompts, answers, goes_on = [], [], []
        for number, row in enumerate(tqdm(rows, desc=f"Tokenizing {name}", leave=False, disable=len(rows) < 5_000)):
            if self.question_key in row and self.answer_key in row:
                prompt, answer, context = self._question_and_answer(name, number, row)
                prompts.append(prompt + context)
                answers.append(answer)
                goes_on.append(bool(context))
            elif self.text_key in row:
                tokens = self.tokenizer(str(row[self.text_key]))["input_ids"]
                if row[self.text_key] is None or len(tokens) < 2:
                    raise ValueError(
                        f"Row {number} of the {name} set has no supervised token: its text is {row[self.text_key]!r}. "
                        "Remove the row."
                    )
                # A piece begins with the last token of the one before, since a first token is not predicted.
                starts = range(0, len(tokens) - 1, self.max_length - 1)
                pieces = [tokens[start : start + self.max_length] for start in starts]
                prompts.extend([[] for _ in pieces])
                answers.extend(pieces)
                goes_on.extend(False for _ in pieces)
            else:
                raise ValueError(
                    f"Row {number} of the {name} set has columns {sorted(row)}, but a row needs {self.question_key!r} "
                    f"and {self.answer_key!r}, or {self.text_key!r}. Name your columns with question_key, answer_key "
                    "or text_key."
                )
        return TokenRows(prompts, answers, goes_on)

    def _question_and_answer(
        self, name: str, number: int, row: dict[str, Any]
    ) -> tuple[list[int], list[int], list[int]]:
        prompt, text = self.prompt(str(row[self.question_key])), str(row[self.answer_key])
        answer, context = self._answer_tokens(text), []
        if target := row.get(self.target_key):
            before, found, _ = text.partition(target)
            if not found:
                raise ValueError(
                    f"Row {number} of the {name} set has the target {target!r}, which is not in its answer "
                    f"{text!r}. Give a part of the answer, or remove the target."
                )
            start = before.rstrip()
            context = self._answer_tokens(start)[:-1] if start else []
            answer = self._answer_tokens(before[len(start) :] + target, begins=not start)[:-1]
        length = len(prompt) + len(context)
        answer = answer[: max(0, self.max_length - length)]
        if not answer or row[self.answer_key] is None or not text.strip():
            raise ValueError(
                f"Row {number} of the {name} set has no supervised token: its prompt has {length} tokens of "
                f"max_length={self.max_length} and its answer is {row[self.answer_key]!r}. Raise "
                "max_length or remove the row."
            )
        return prompt, answer, context

    def _alternates(self, rows: list[dict[str, Any]]) -> AlternateRows:
        prompts, answers = [], []
        for number, row in enumerate(rows):
            texts = row.get(self.alternate_key)
            texts = [texts] if isinstance(texts, str) else list(texts or [])
            if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
                raise ValueError(
                    f"Row {number} of the forget set has {texts!r} in {self.alternate_key!r}, but where one row has "
                    "alternates every row needs at least one text there. Run generate_alternates on all rows, or "
                    "remove the row."
                )
            # From the question on, also where the row has a target: an alternate is a whole answer.
            prompts.append(self.prompt(str(row[self.question_key])))
            answers.append([self._answer_tokens(text) for text in texts])
        return AlternateRows(prompts, answers, self.seed, self.max_length)

    def _asked(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        asked = []
        for row in rows:
            if self.question_key in row and self.answer_key in row:
                accept = row.get(self.accept_key) or []
                accept = [accept] if isinstance(accept, str) else list(accept)
                asked.append({"question": row[self.question_key], "answer": row[self.answer_key], "accept": accept})
        return asked

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

    def _warn_of_shared_rows(self, rows: Mapping[str, list[dict[str, Any]]]) -> None:
        def content(row: dict[str, Any]) -> tuple[str, ...]:
            return tuple(str(row.get(key)).strip() for key in (self.question_key, self.answer_key, self.text_key))

        shared = {content(row) for row in rows["forget"]} & {content(row) for row in rows.get("retain", [])}
        if shared:
            example = next(text for text in sorted(shared)[0] if text != "None")
            rank_zero_warn(
                f"{len(shared)} rows are in both forget and retain, such as {example!r}. The two terms pull against "
                "each other on them; remove them from retain."
            )
