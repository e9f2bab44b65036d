"""Monitor of a language model: likelihoods and answers of each set, before, during and after unlearning."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

from torch.distributed.tensor import DTensor

from lightning_unlearn.core.checks import at_least, one_of
from lightning_unlearn.core.distributed import Replica, gather_objects, replica
from lightning_unlearn.core.evaluation import Evaluation, Example
from lightning_unlearn.core.lightning import (
    CSV_LOGGERS,
    TENSORBOARD_LOGGERS,
    WANDB_LOGGERS,
    LightningModule,
    Logger,
    MisconfigurationException,
    Trainer,
    isolate_rng,
    rank_zero_warn,
)
from lightning_unlearn.core.modes import evaluating
from lightning_unlearn.core.monitor import Monitor, log_folder, log_table
from lightning_unlearn.core.pairing import ForgetRetainDataModule
from lightning_unlearn.core.plots import curve_figure
from lightning_unlearn.core.reading import likelihood
from lightning_unlearn.core.rows import RowLoader, RunRows, row_loader
from lightning_unlearn.core.scores import Score, causal_lm_nll
from lightning_unlearn.core.sources import Source, load_rows
from lightning_unlearn.language.matching import Match, matcher

__all__ = ["UnlearnMonitor"]

AnswerFunction = Callable[[LightningModule, list[Any]], list[str]]


class UnlearnMonitor(Monitor):
    """Measures what is forgotten and what is kept, before, during and after a run, and logs it to every logger.

    For each named set (the training batch's ``forget`` and ``retain`` rows, and the held-out sets of the data module)
    it logs ``eval/<set>_nll``, the mean NLL per supervised token, and, where the set has questions,
    ``eval/<set>_accuracy``, the share of generated answers that match an accepted one. At the end it logs a table of
    the generations before and after, and the curves as figures. Processes share the rows and the questions; where
    weights are sharded, each one generates all answers, since the forward passes are collective.

    ``EarlyStopping`` and ``ModelCheckpoint`` can monitor the metrics if they come after it in the list of callbacks.
    The module's own validation in ``fit`` would measure the same sets again, so `LitCausalLM` skips it beside a
    monitor.

    Args:
        every_n_epochs: Number of epochs between evaluations; 0 evaluates before and after the run only.
        questions: Question sets to generate answers for, each given as rows or a file with ``question``, ``answer``
            and optionally ``accept`` (a list of accepted short answers; by default the answer itself). By default those
            of the data module.
        generate: ``(module, questions) -> answers``; by default the module's method ``answer``. A question of several
            messages, or with a system prompt of its own, is given as the list of them.
        score: Reads likelihoods off the module.
        limit: Number of first rows of each set that are measured.
        match: When an answer is right. ``"words"``: it contains an accepted answer as whole words, in any case;
            ``"exact"``: it is an accepted answer; or a function ``(text, accepted) -> bool``.
        show_answers: Whether the table of generations, and checkpoints after the run, show the questions and answers of
            rows to forget, which are copies of the data to be removed. ``history`` always has them.

    Raises:
        ValueError: If a number is out of range, or ``match`` has no such value.
        MisconfigurationException: If there are questions but the module can't answer.
    """

    def __init__(
        self,
        every_n_epochs: int = 1,
        questions: dict[str, Source] | None = None,
        generate: AnswerFunction | None = None,
        score: Score = causal_lm_nll,
        limit: int = 64,
        match: Match | Callable[[str, str], bool] = "words",
        show_answers: bool = False,
    ) -> None:
        super().__init__(every_n_epochs, show_answers)
        self.generate, self.score, self.limit = generate, score, at_least("limit", limit, 1)
        self.match = match if callable(match) else one_of("match", match, Match)
        self.questions = {name: load_rows(source) for name, source in (questions or {}).items()}
        for name, rows in self.questions.items():
            for number, row in enumerate(rows):
                if "question" not in row or "answer" not in row:
                    raise ValueError(
                        f"Row {number} of the questions {name!r} has columns {sorted(row)}, but needs 'question' and "
                        "'answer'."
                    )

    def settings(self) -> dict[str, Any]:
        """Settings that distinguish two monitors of a run."""
        own = {
            "every_n_epochs": None if self.every_n_epochs == 1 else self.every_n_epochs,
            "questions": sorted(self.questions),
            "score": None if self.score is causal_lm_nll else getattr(self.score, "__name__", repr(self.score)),
            "limit": None if self.limit == 64 else self.limit,
            "match": None if self.match == "words" else getattr(self.match, "__name__", self.match),
        }
        return {name: value for name, value in own.items() if value}

    def evaluate(self, trainer: Trainer, module: LightningModule) -> Evaluation:
        """Measure every set now, without logging."""
        metrics: dict[str, float] = {}
        questions = self._questions(trainer)
        # Even a loader that does not shuffle draws a seed.
        with isolate_rng(), evaluating(module), trainer.precision_plugin.forward_context():
            for name, loader in self._loaders(trainer).items():
                metrics[f"{name}_nll"] = self._nll(trainer, module, name, loader)
            examples = self._examples(trainer, module, questions)
        for name in questions:
            hits = [example.hit for example in examples if example.set == name and example.hit is not None]
            if hits:
                metrics[f"{name}_accuracy"] = sum(hits) / len(hits)
        return Evaluation(trainer.global_step, metrics, examples, hit_means="answered correctly")

    def show(self, logger: Logger, step: int) -> None:
        """Log the generations before and after, and the curves."""
        history = self.shown()
        pairs = zip(history[0].examples, history[-1].examples, strict=True)
        rows = [[before.set, before.input, before.expected, before.output, after.output] for before, after in pairs]
        log_table(logger, f"{self.prefix}generations", _COLUMNS, rows, step)
        _log_figures(logger, self.history, step, self.prefix)

    def _loaders(self, trainer: Trainer) -> dict[str, RowLoader]:
        loaders: dict[str, Any] = {name: row_loader(trainer.train_dataloader, name) for name in ("forget", "retain")}
        datamodule = getattr(trainer, "datamodule", None)
        if isinstance(datamodule, ForgetRetainDataModule):
            heldout = {k: v for k, v in datamodule.set_loaders().items() if k not in loaders}
            loaders |= {name: row_loader(heldout, name) for name in heldout}
        return {name: loader for name, loader in loaders.items() if loader is not None}

    def _nll(self, trainer: Trainer, module: LightningModule, name: str, loader: RowLoader) -> float:
        """Mean over the supervised tokens of the first rows."""
        rows = RunRows(trainer, loader.first(self.limit), f"Evaluating {name}")
        read = [[part.cpu() for part in likelihood(self.score, module, batch)] for batch, _ in rows]
        total = count = 0.0
        left = self.limit
        for nll, length in rows.gather(read):
            total, count = total + nll[:left].sum().item(), count + length[:left].sum().item()
            left -= len(nll)
        return total / max(count, 1.0)

    def _questions(self, trainer: Trainer) -> Mapping[str, list[dict[str, Any]]]:
        questions = self.questions or getattr(getattr(trainer, "datamodule", None), "questions", {})
        return {name: rows[: self.limit] for name, rows in questions.items()}

    def _examples(
        self, trainer: Trainer, module: LightningModule, questions: Mapping[str, list[dict[str, Any]]]
    ) -> list[Example]:
        """Generate and mark the answers of all sets together, as a batch of more rows costs little more."""
        rows = [(name, row) for name, rows in questions.items() for row in rows]
        if not rows:
            return []
        generate = self.generate or getattr(type(module), "answer", None)
        if generate is None:
            raise MisconfigurationException(
                f"UnlearnMonitor has questions but {type(module).__name__} has no method 'answer'. Pass generate=, a "
                "function (module, questions) -> answers."
            )
        sharded = any(isinstance(parameter, DTensor) for parameter in module.parameters())
        share = Replica(0, 1) if sharded else replica(trainer)
        asked = [row.get("messages") or row["question"] for _, row in rows][share.rank :: share.total]
        texts = generate(module, asked) if asked else []
        if len(texts) != len(asked):
            raise ValueError(
                f"generate gave {len(texts)} answers to {len(asked)} questions of the sets {sorted(questions)}. It "
                "must return one text for each question."
            )
        by_replica = dict(gather_objects((share.rank, texts)))
        matches = matcher(self.match)
        examples = []
        for number, (name, row) in enumerate(rows):
            text = by_replica[number % share.total][number // share.total]
            accept = row.get("accept") or [row["answer"]]
            hit = any(matches(text, str(short)) for short in ([accept] if isinstance(accept, str) else accept))
            examples.append(Example(name, row["question"], row["answer"], text, hit))
        return examples


_COLUMNS = ["set", "question", "expected", "before", "after"]


def _log_figures(logger: Logger, history: list[Evaluation], step: int, prefix: str) -> None:
    """The curves as figures, all sets side by side."""
    if not isinstance(logger, (*WANDB_LOGGERS, *TENSORBOARD_LOGGERS, *CSV_LOGGERS)):
        return
    names = dict.fromkeys(metric.rpartition("_")[0] for evaluation in history for metric in evaluation.metrics)
    for measure in ("nll", "accuracy"):
        try:
            figure = curve_figure(history, list(names), measure)
        except ImportError as error:
            rank_zero_warn(f"The curves are not drawn. {error}")
            return
        if figure is None:
            continue
        if isinstance(logger, TENSORBOARD_LOGGERS):
            logger.experiment.add_figure(f"{prefix}{measure}_curves", figure, step)
        elif isinstance(logger, CSV_LOGGERS):
            figure.savefig(log_folder(logger) / f"{prefix.removeprefix('eval/').replace('/', '-')}{measure}_curves.svg")
        elif isinstance(logger, WANDB_LOGGERS):
            from PIL import Image  # comes with the wandb extra

            with io.BytesIO() as buffer:
                figure.savefig(buffer, format="png", dpi=150)
                logger.log_image(f"{prefix}{measure}_curves", [Image.open(buffer).convert("RGB")])
