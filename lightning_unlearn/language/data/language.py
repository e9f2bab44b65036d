"""Data module of questions with answers, and of plain text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from itertools import takewhile
from pathlib import Path
from textwrap import shorten
from typing import Any

from torch.utils.data import DataLoader

from lightning_unlearn.core.checks import at_least
from lightning_unlearn.core.lightning import rank_zero_warn
from lightning_unlearn.core.pairing import ForgetRetainDataModule, Role
from lightning_unlearn.core.sources import Source, find_tokenizer, load_rows, source_name
from lightning_unlearn.language.chat import Conversation, content_text
from lightning_unlearn.language.data.cells import row_name, text_rows
from lightning_unlearn.language.data.columns import Columns
from lightning_unlearn.language.data.own_answers import Answers, OwnAnswers, on_device
from lightning_unlearn.language.data.token_rows import AlternateRows, RefusalRows, TokenRows, collate_tokens
from lightning_unlearn.language.matching import plain_text
from lightning_unlearn.language.prompt_format import PromptFormat
from lightning_unlearn.language.tokens import TokenRow

__all__ = ["LanguageDataModule"]

_REFUSALS = Path(__file__).parents[2] / "assets" / "refusals.txt"
_BOUNDARY = 3  # tokens before an answer that decide how its first ones are written


class LanguageDataModule(ForgetRetainDataModule):
    """Questions with answers, or plain text, for unlearning a language model.

    A row with a question and an answer, or with the messages of a conversation, becomes the question in its prompt
    format, unsupervised, then the answer and the token that ends it, supervised. A row of plain text is supervised
    throughout; text longer than ``max_length`` is cut into pieces and none of it is dropped. Where forget rows are
    questions, a batch also has ``"idk"``: the same questions with a refusal for an answer.

    Args:
        forget: Rows to forget, as [`load_rows`][lightning_unlearn.core.sources.load_rows] takes them: a path (``.csv``,
            ``.tsv``, ``.json``, ``.jsonl``, ``.txt``, ``.parquet``, each also ``.gz``), a folder or hub id with
            optional ``:config:split``, a ``datasets.Dataset``, a data frame, a dict of columns, or a list of dicts.
        retain: Rows to keep, given in the same ways; or ``"auto"``, or an [`OwnAnswers`][lightning_unlearn.OwnAnswers]:
            what the original model itself answers to neutral questions.
        heldout: Further named sets that are never trained on, only evaluated.
        prompt: How questions are asked, and the tokenizer; by default the model's own tokenizer and its chat template.
        columns: Names of the columns, where they are not ``question``, ``answer``, ``text`` and so on.
        max_length: Longest row in tokens. An answer is cut there, with a warning; a prompt that fills it is an error.
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
        retain = OwnAnswers() if isinstance(retain, str) and retain == "auto" else retain
        self.sources = {"forget": forget, "retain": retain, **(heldout or {})}
        self.own_answers: Answers | None = None
        """What the original model has answered, where that makes the rows to retain."""
        self.prompt, self.columns = prompt or PromptFormat(), columns or Columns()
        self.max_length = at_least("max_length", max_length, 2)
        self.refusals = refusals
        self.questions: dict[str, list[dict[str, Any]]] = {}
        """Rows with a question, by set: ``question``, ``answer``, ``accept`` and, where the question is more than one
        message, the ``messages`` before the answer."""
        self.cut: dict[str, dict[int, int]] = {}
        """Rows whose answers are cut at ``max_length``, by set, with their lengths in tokens."""
        self._rows: dict[str, list[dict[str, Any]]] | None = None  # where the prompts may be written anew
        self._today = False

    def setup(self, stage: str) -> None:
        """Read and tokenize every set, once."""
        if self.sets:
            return
        self.prompt = self._resolved_prompt()
        self._ask_model(stage)
        sets = {}
        for name, rows in self.read_rows().items():
            if not rows:
                raise ValueError(
                    f"The {name} set ({source_name(self.sources.get(name))}) is empty. Give it at least one row."
                )
            sets[name] = text_rows(name, self.columns.filled(rows, name), self.columns, self.sources.get(name))
        self._make_sets(sets)
        self._warn_of_shared_rows(sets)
        if self.prompt.writes_date:
            self._rows = sets
        if self.questions and self.prompt.is_chat and self.prompt.template.asks_otherwise:
            rank_zero_warn(
                f"The chat template asks for an answer in another way than it writes one: it has "
                f"{self.prompt.template.lead!r} before an answer without reasoning. Rows are trained on after it, and "
                "the model is asked without. Pass prompt=PromptFormat(chat_template_kwargs={'enable_thinking': False}) "
                "if the template takes it, or give the reasoning in messages."
            )

    def state_dict(self) -> dict[str, Any]:
        """The prompt format of the run, and a hash of the answers of the original model."""
        own = {"own_answers": self.own_answers.sha256} if self.own_answers else {}
        return {**super().state_dict(), "prompt": self.prompt.state_dict(), **own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the date that the run was started on; other changes of the prompt format are warned of."""
        super().load_state_dict(state_dict)
        if self.own_answers and state_dict.get("own_answers") != self.own_answers.sha256:
            rank_zero_warn(
                "The run goes on with other rows to retain than it was started with: the model, the questions or the "
                "rows to forget are others, or the cached answers are gone and another machine wrote them anew."
            )
        kept = PromptFormat(**state_dict["prompt"])
        if self._today:
            self.prompt = replace(self.prompt, date=kept.date)
            if self._rows:
                self._make_sets(self._rows)
        mine = self.prompt.state_dict()
        if changed := [name for name, value in kept.state_dict().items() if value != mine[name]]:
            given = ", ".join(f"{name}={mine[name]!r} and not {getattr(kept, name)!r}" for name in changed)
            rank_zero_warn(
                f"The run goes on with another prompt format than it was started with: {given}. Rows that it has seen "
                "are written in another way from here on. Give the format of the start, if that is not meant."
            )

    def read_rows(self) -> dict[str, list[dict[str, Any]]]:
        """The rows of every set, as they are in its source; own answers once they are written."""
        given = {name: source for name, source in self.sources.items() if source is not None}
        own = [self.own_answers.rows] if self.own_answers else []
        return {
            name: [dict(row) for row in rows]
            for name, source in given.items()
            for rows in (own if isinstance(source, OwnAnswers) else [load_rows(source)])
        }

    def predict_dataloader(self) -> DataLoader:
        """The questions of every set, for generation."""
        questions = [{"set": name, **row} for name, rows in self.questions.items() for row in rows]
        return DataLoader(questions, batch_size=self.batch_size, collate_fn=list)  # type: ignore[arg-type]

    def _ask_model(self, stage: str) -> None:
        """Have the original model write the rows to retain, where it is to: in fit, before a weight moves."""
        source = self.sources.get("retain")
        if not isinstance(source, OwnAnswers) or self.own_answers is not None:
            return
        if stage != "fit":
            name = getattr(stage, "value", stage)
            rank_zero_warn(f"The rows to retain are the original model's own answers, so {name} leaves them out.")
            return
        if self.trainer is None:
            raise ValueError(
                "The rows to retain are the original model's own answers, but the data module has no Trainer and so no "
                "model to ask. Give retain=OwnAnswers().answers(module, forget).rows."
            )
        module = self.trainer.lightning_module
        with on_device(module, self.trainer.strategy):
            self.own_answers = source.answers(module, self.read_rows()["forget"], self.columns, self.prompt)

    def _resolved_prompt(self) -> PromptFormat:
        """The format with its tokenizer and date; where none was given, that of the run before, if one is kept."""
        module = self.trainer.lightning_module if self.trainer is not None else None
        kept = getattr(module, "prompt", None)
        prompt = kept if self.prompt == PromptFormat() and isinstance(kept, PromptFormat) else self.prompt
        prompt = replace(prompt, tokenizer=find_tokenizer(prompt.tokenizer, self.trainer))
        self._today = prompt.date is None
        if self._today:
            today = date.today().isoformat()
            today = self.trainer.strategy.broadcast(today) if self.trainer is not None else today
            prompt = replace(prompt, date=today)
        return prompt

    def _make_sets(self, sets: Mapping[str, list[dict[str, Any]]]) -> None:
        written_date = self.prompt.date if self.prompt.writes_date else None
        self.sets = {name: TokenRows(self._tokenize(name, rows), written_date) for name, rows in sets.items()}
        self._warn_of_cut_answers()
        self.questions = {name: questions for name, rows in sets.items() if (questions := self._questions(name, rows))}
        if len(self.questions.get("forget", [])) < len(sets["forget"]):
            return  # a text has no question to refuse
        asked = [self._conversation("forget", number, row) for number, row in enumerate(sets["forget"])]
        prompts = [row.prompt for row in self.sets["forget"].rows]
        if self.prompt.turns == "all":
            prompts = [row.prompt for row in self._last_turns(asked)]
        if (longest := max(map(len, prompts))) >= self.max_length:
            rank_zero_warn(
                f"A conversation of the forget set has {longest} tokens before its last answer, of "
                f"max_length={self.max_length}, so there are no refusals (idk) in a batch. Raise max_length for "
                "objectives that need them."
            )
            return
        self.followers = {"idk": RefusalRows(*self._refusals(asked, prompts), self.seed, self.max_length)}
        if any(row.get(self.columns.alternate) for row in sets["forget"]):
            alternates = self._alternates(asked, sets["forget"])
            self.followers["alternate"] = AlternateRows(*alternates, self.seed, self.max_length)

    def _tokenize(self, name: str, rows: list[dict[str, Any]]) -> list[TokenRow]:
        conversations: dict[int, Conversation] = {}
        texts: dict[int, str] = {}
        self.cut[name] = {}
        for number, row in enumerate(rows):
            if self._has_question(row):
                conversations[number] = self._conversation(name, number, row)
            elif self.columns.text in row:
                texts[number] = row[self.columns.text]
            else:
                where = row_name(name, number, self.sources.get(name))
                raise ValueError(
                    f"{where} has columns {sorted(map(str, row))}, but a row needs {self.columns.question!r} and "
                    f"{self.columns.answer!r}, {self.columns.messages!r} or {self.columns.text!r}. Name your columns: "
                    "columns=Columns(question=..., answer=...) or Columns(text=...)."
                )
        tokens = {
            number: [self._shortened(name, number, row, conversations[number])]
            for number, row in zip(conversations, self.prompt.rows(list(conversations.values())), strict=True)
        }
        if texts:
            ids = self.prompt.tokenizer(list(texts.values()), verbose=False)["input_ids"]
            tokens |= {n: self._pieces(name, n, texts[n], row) for n, row in zip(texts, ids, strict=True)}
        return [row for number in range(len(rows)) for row in tokens[number]]

    def _has_question(self, row: Mapping[str, Any]) -> bool:
        return (self.columns.question in row and self.columns.answer in row) or bool(self._messages_of(row))

    def _messages_of(self, row: Mapping[str, Any]) -> Any:
        messages = row.get(self.columns.messages)
        return None if messages is None or self.columns.question in row else len(messages) and messages

    def _conversation(self, name: str, number: int, row: dict[str, Any]) -> Conversation:
        """The messages of a row, with the part of the answer that is its target."""
        where, system = row_name(name, number, self.sources.get(name)), row.get(self.columns.system)
        if self._messages_of(row):
            *before, answer = self.columns.conversation(row, where)
            before = self.prompt.messages(before, system)
        else:
            before = self.prompt.messages(row[self.columns.question], system)
            answer = {"role": "assistant", "content": row[self.columns.answer]}
        text, target = content_text(answer), row.get(self.columns.target)
        if target and target not in text:
            raise ValueError(
                f"{where} has the target {target!r}, which is not in its answer {text!r}. Give a part of the answer, "
                "or remove the target."
            )
        return self.prompt.conversation(before, answer, target)

    def _shortened(self, name: str, number: int, row: TokenRow, conversation: Conversation) -> TokenRow:
        """A row within ``max_length``."""
        length = len(row.prompt)
        size = max(0, self.max_length - length)
        if not size or not row.answer:
            raise ValueError(
                f"Row {number} of the {name} set has no supervised token: its prompt has {length} tokens of "
                f"max_length={self.max_length} and its answer is {content_text(conversation.messages[-1])!r}. Raise "
                "max_length or remove the row."
            )
        if len(row.answer) <= size:
            return row
        self.cut[name][number] = length + len(row.answer)
        gaps = tuple((start, min(end, size)) for start, end in row.unlabelled if start < size)
        return row._replace(answer=row.answer[:size], unlabelled=gaps)

    def _pieces(self, name: str, number: int, text: str, tokens: list[int]) -> list[TokenRow]:
        if len(tokens) < 2:
            raise ValueError(
                f"Row {number} of the {name} set has no supervised token: its text is {text!r}. Remove the row."
            )
        # A piece begins with the last token of the one before, since a first token is not predicted.
        starts = range(0, len(tokens) - 1, self.max_length - 1)
        return [TokenRow([], tokens[start : start + self.max_length]) for start in starts]

    def _last_turns(self, conversations: Sequence[Conversation]) -> list[TokenRow]:
        """Tokens of conversations of which the last answer has labels: the others are those of the row itself."""
        return replace(self.prompt, turns="last").rows(conversations)

    def _refusals(
        self, asked: Sequence[Conversation], prompts: list[list[int]]
    ) -> tuple[list[list[int]], list[list[TokenRow]]]:
        """Tokens of each question, and of each refusal to it.

        A refusal has the same tokens after all questions with the same ending, so it is tokenized once for them.
        """
        texts = self._refusal_texts()
        written: dict[tuple[int, ...], tuple[int, list[int], list[TokenRow]]] = {}
        found = []
        for part, prompt in zip(asked, prompts, strict=True):
            end = (*prompt[-_BOUNDARY:], bool(part.context))
            if end not in written:
                base, rows = _continued(self._last_turns([_with_answer(part, text) for text in texts]))
                # A token that holds the end of the prompt and the beginning of the answer is another one here.
                same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(prompt, base, strict=False)))
                written[end] = len(prompt) - same, base[same:], rows
            cut, more, rows = written[end]
            found.append((prompt[: len(prompt) - cut] + more, rows))
        return [prompt for prompt, _ in found], [rows for _, rows in found]

    def _alternates(
        self, asked: Sequence[Conversation], rows: list[dict[str, Any]]
    ) -> tuple[list[list[int]], list[list[TokenRow]]]:
        """Tokens of each question, and of each other answer to it."""
        conversations: list[Conversation] = []
        counts = []
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
            whole = Conversation(asked[number].messages)
            conversations += [_with_answer(whole, text) for text in texts]
            counts.append(len(texts))
        tokens = iter(self._last_turns(conversations))
        pairs = [_continued([next(tokens) for _ in range(count)]) for count in counts]
        return [base for base, _ in pairs], [answers for _, answers in pairs]

    def _questions(self, name: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        questions = []
        if name == "retain" and self.own_answers:
            return []  # long answers of the model, which no short one marks as right or wrong
        for number, row in enumerate(rows):
            if not self._has_question(row):
                continue
            accept = row.get(self.columns.accept) or []
            accept = [accept] if isinstance(accept, str) else list(accept)
            if self._messages_of(row):
                *before, answer = self.columns.conversation(row, f"Row {number} of the {name} set")
                question = {"question": content_text(before[-1]), "answer": content_text(answer), "accept": accept}
            else:
                before = [{"role": "user", "content": row[self.columns.question]}]
                question = {
                    "question": row[self.columns.question],
                    "answer": row[self.columns.answer],
                    "accept": accept,
                }
            system = row.get(self.columns.system)
            if system or len(before) > 1:
                question["messages"] = self.prompt.messages(before, system)
            questions.append(question)
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
        """Warn of rows to forget that are to be kept too, whatever their case, spaces and encoding of accents."""

        def contents(name: str) -> dict[tuple[str, ...], str]:
            rows = self.questions.get(name, [])
            asked = [
                ([*map(content_text, row.get("messages", [])), row["question"], row["answer"]], row) for row in rows
            ]
            texts = [row[self.columns.text] for row in sets.get(name, []) if not self._has_question(row)]
            found = {tuple(map(plain_text, said)): row["question"] for said, row in asked}
            return found | {(plain_text(text),): text for text in texts}

        forget, retain = contents("forget"), contents("retain")
        if shared := sorted(forget.keys() & retain.keys()):
            example = shorten(forget[shared[0]], 120, placeholder=" ...")
            rank_zero_warn(
                f"{len(shared)} rows are in both forget and retain, such as {example!r}. The two terms pull against "
                "each other on them; remove them from retain."
            )

    def _warn_of_cut_answers(self) -> None:
        for name, rows in self.cut.items():
            if rows:
                number, length = max(rows.items(), key=lambda row: row[1])
                rank_zero_warn(
                    f"{len(rows)} answers of the {name} set are cut at max_length={self.max_length}, such as row "
                    f"{number}, which has {length} tokens with its question. What comes after is not trained on. Raise "
                    "max_length, or split these rows."
                )


def _with_answer(conversation: Conversation, text: str) -> Conversation:
    """The conversation with another answer, or with another end of it where its beginning is given."""
    context = conversation.context
    answer = {"role": "assistant", "content": f"{context} {text}" if context else text}
    return Conversation([*conversation.messages[:-1], answer], context)


def _continued(rows: Sequence[TokenRow]) -> tuple[list[int], list[TokenRow]]:
    """The prompt that rows share, and each row from there on."""
    base = rows[0].prompt
    while not all(row.prompt[: len(base)] == base for row in rows):
        base = base[:-1]
    return base, [row._replace(prompt=row.prompt[len(base) :]) for row in rows]
