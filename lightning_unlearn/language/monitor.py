"""What the model knows while it unlearns."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.seed import isolate_rng
from tqdm import tqdm

from lightning_unlearn.core.distributed import rank
from lightning_unlearn.core.evaluation import Answer, Evaluation
from lightning_unlearn.core.modes import evaluating
from lightning_unlearn.core.monitor import Monitor, log_folder, log_table
from lightning_unlearn.core.pairing import ForgetRetainDataModule
from lightning_unlearn.core.plots import curve_figure
from lightning_unlearn.core.reading import likelihood
from lightning_unlearn.core.rows import row_loader
from lightning_unlearn.core.scores import Score, causal_lm_nll
from lightning_unlearn.core.sources import Source, load_rows

__all__ = ["UnlearnMonitor"]

AnswerFunction = Callable[[LightningModule, list[str]], list[str]]


class UnlearnMonitor(Monitor):
    """Measures what is forgotten and what is kept, before, during and after a run, and logs it to every logger.

    For each named set (the training batch's ``forget`` and ``retain`` rows, and the held-out sets of the data module)
    it logs ``eval/<set>_nll``, the mean NLL per supervised token, and, where the set has questions with accepted
    answers, ``eval/<set>_accuracy``, the share of generated answers that contain one. At the end the generations
    before and after stand side by side in a table, and the curves in a figure.

    Args:
        every_n_epochs: Measure after every so many epochs; 0 leaves only before and after.
        questions: Question sets to generate answers for, each given as rows or a file with ``question``, ``answer``
            and optionally ``accept`` (a list of accepted short answers; by default the answer itself). By default those
            of the data module.
        generate: ``(module, questions) -> answers``; by default the module's method ``answer``.
        score: Reads likelihoods off the module.
        limit: At most so many rows of each set are measured.

    Raises:
        ValueError: If a number is out of range.
        MisconfigurationException: If there are questions but the module can't answer.
    """

    def __init__(
        self,
        every_n_epochs: int = 1,
        questions: dict[str, Source] | None = None,
        generate: AnswerFunction | None = None,
        score: Score = causal_lm_nll,
        limit: int = 64,
    ) -> None:
        super().__init__(every_n_epochs)
        if limit < 1:
            raise ValueError(f"limit must be at least 1 row, but got {limit}.")
        self.generate, self.score, self.limit = generate, score, limit
        self.questions = {name: load_rows(source) for name, source in (questions or {}).items()}
        for name, rows in self.questions.items():
            for number, row in enumerate(rows):
                if "question" not in row or "answer" not in row:
                    raise ValueError(
                        f"Row {number} of the questions {name!r} has columns {sorted(row)}, but needs 'question' and "
                        "'answer'."
                    )

    def evaluate(self, trainer: Trainer, module: LightningModule) -> Evaluation:
        """Measure every set now, without logging."""
        metrics: dict[str, float] = {}
        asked = self._asked(trainer)
        progress = tqdm(desc="Evaluating", leave=False, disable=rank() != 0, unit="batch")
        # Even a loader that does not shuffle draws a seed.
        with isolate_rng(), evaluating(module), trainer.precision_plugin.forward_context():
            for name, loader in self._loaders(trainer).items():
                metrics[f"{name}_nll"] = self._nll(trainer, module, loader, progress)
            answers = self._answers(module, asked, progress)
        progress.close()
        for name in asked:
            marks = [answer.correct for answer in answers if answer.set == name and answer.correct is not None]
            if marks:
                metrics[f"{name}_accuracy"] = sum(marks) / len(marks)
        return Evaluation(trainer.global_step, metrics, answers)

    def show(self, logger: Logger, step: int) -> None:
        """Log the generations before and after, and the curves."""
        answers = zip(self.history[0].answers, self.history[-1].answers, strict=True)
        rows = [[b.set, b.question, b.expected, b.text, a.text] for b, a in answers]
        log_table(logger, "eval/generations", _COLUMNS, rows, step)
        _log_figures(logger, self.history, step)

    def _loaders(self, trainer: Trainer) -> dict[str, Any]:
        loaders = {name: row_loader(trainer.train_dataloader, name) for name in ("forget", "retain")}
        datamodule = getattr(trainer, "datamodule", None)
        if isinstance(datamodule, ForgetRetainDataModule):
            loaders |= {k: v for k, v in datamodule.val_dataloader().items() if k not in loaders}
        return {name: loader for name, loader in loaders.items() if loader is not None}

    def _nll(self, trainer: Trainer, module: LightningModule, loader: Any, progress: tqdm) -> float:
        total = count = 0.0
        rows = 0
        for batch in loader:
            if rows >= self.limit:
                break
            batch = trainer.precision_plugin.convert_input(trainer.strategy.batch_to_device(batch))
            nll, length = (part[: self.limit - rows] for part in likelihood(self.score, module, batch))
            total, count, rows = total + nll.sum().item(), count + length.sum().item(), rows + len(nll)
            progress.update()
        return total / max(count, 1.0)

    def _asked(self, trainer: Trainer) -> Mapping[str, list[dict[str, Any]]]:
        asked = self.questions or getattr(getattr(trainer, "datamodule", None), "questions", {})
        return {name: rows[: self.limit] for name, rows in asked.items()}

    def _answers(
        self, module: LightningModule, asked: Mapping[str, list[dict[str, Any]]], progress: tqdm
    ) -> list[Answer]:
        """All sets in one call, as a batch of more rows costs little more."""
        rows = [(name, row) for name, rows in asked.items() for row in rows]
        if not rows:
            return []
        generate = self.generate or getattr(type(module), "answer", None)
        if generate is None:
            raise MisconfigurationException(
                f"UnlearnMonitor has questions but {type(module).__name__} has no method 'answer'. Pass generate=, a "
                "function (module, questions) -> answers."
            )
        texts = generate(module, [row["question"] for _, row in rows])
        progress.update()
        if len(texts) != len(rows):
            raise ValueError(
                f"generate gave {len(texts)} answers to {len(rows)} questions of the sets {sorted(asked)}. It must "
                "return one text for each question."
            )
        found = []
        for (name, row), text in zip(rows, texts, strict=True):
            accept = row.get("accept") or [row["answer"]]
            correct = any(short.lower() in text.lower() for short in accept)
            found.append(Answer(name, row["question"], row["answer"], text, correct))
        return found


_COLUMNS = ["set", "question", "expected", "before", "after"]


def _log_figures(logger: Logger, history: list[Evaluation], step: int) -> None:
    """The curves as figures, all sets side by side."""
    if not isinstance(logger, (WandbLogger, TensorBoardLogger, CSVLogger)):
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
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_figure(f"eval/{measure}_curves", figure, step)
        elif isinstance(logger, CSVLogger):
            figure.savefig(log_folder(logger) / f"{measure}_curves.svg")
        else:
            from PIL import Image  # comes with the wandb extra

            with io.BytesIO() as buffer:
                figure.savefig(buffer, format="png", dpi=150)
                logger.log_image(f"eval/{measure}_curves", [Image.open(buffer).convert("RGB")])
