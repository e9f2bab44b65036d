"""Monitor of a chat model: quality of its conversations, beside those of the model before the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch.distributed.tensor import DTensor

from lightning_unlearn.core.checks import at_least
from lightning_unlearn.core.distributed import Replica, replica
from lightning_unlearn.core.evaluation import Evaluation, Example
from lightning_unlearn.core.intervals import Interval
from lightning_unlearn.core.lightning import (
    LightningModule,
    Logger,
    MisconfigurationException,
    Trainer,
    isolate_rng,
    rank_zero_warn,
)
from lightning_unlearn.core.modes import evaluating
from lightning_unlearn.core.monitor import Monitor, log_table
from lightning_unlearn.core.resume import callbacks_of
from lightning_unlearn.core.sources import is_missing
from lightning_unlearn.dialogue.calibration import Calibration
from lightning_unlearn.dialogue.controls import Controls
from lightning_unlearn.dialogue.dialogue import Dialogue
from lightning_unlearn.dialogue.judge import DialogueJudge
from lightning_unlearn.dialogue.quality import (
    check_other_model,
    check_trusted,
    control_ratings,
    conversations,
    dialogue_quality,
    judging_on,
    rated,
)
from lightning_unlearn.dialogue.rating import RatesDialogues
from lightning_unlearn.dialogue.seeds import DialogueSeed, SeedSet, neutral_seeds, probe_seeds, read_seeds
from lightning_unlearn.language.causal_lm import LitCausalLM
from lightning_unlearn.language.chat import Messages
from lightning_unlearn.language.data.language import LanguageDataModule
from lightning_unlearn.language.probes import probes_of

__all__ = ["DialogueQualityCallback"]

AnswerFunction = Callable[[LightningModule, list[Messages]], list[str]]


class DialogueQualityCallback(Monitor):
    r"""Rates the conversations of a chat model during unlearning, beside those of the model before the run.

    The model answers the same seeds before the run, after every so many epochs and at the end, and another, frozen
    model rates the conversations. Quality is not knowledge: a graceful refusal to a question about a forgotten row is a
    good answer, and whether the row has leaked is measured by
    [`UnlearnMonitor`][lightning_unlearn.UnlearnMonitor] and audits.

    Of each set it logs ``dq/<set>``, the mean rating on the scale of people; ``dq/<set>_raw``, the judge's own mean
    score; and ``dq/<set>_difference``, the mean paired difference to the model before the run, with its 95 % bootstrap
    interval over seeds as ``..._low`` and ``..._high``. ``dq/drop`` is the rating lost on what is to be kept and on
    neutral seeds:

    $$\mathrm{drop} = \tfrac1n \sum_{i \in \text{retain} \cup \text{neutral}} (q_i^\text{before} - q_i^\text{after})$$

    ``dq/valid`` is 1 where the judge has rated known-bad controls of the first conversations below them, each kind with
    an AUC (``dq/auc_<kind>``) of 0.8 or more; otherwise the ratings say nothing, and there is a warning.

    Processes share the seeds and the ratings; where weights are sharded, each one generates all answers.

    Args:
        judge: The judge, or hub id, folder or GGUF file of one. It must not be the model itself.
        calibration: Calibration of the judge to ratings of people, or the file of one.
        prompts: Seeds, or a file of them (``.jsonl`` with ``set``, ``messages`` and ``id``). By default the neutral
            ones of the library, and questions of the data module's ``forget`` and ``retain`` rows.
        every_n_epochs: Rate after every so many epochs; 0 leaves only before and after.
        max_new_tokens: Longest answer in tokens.
        limit: Seeds of each set that are made of rows of the data module.
        generate: ``(module, conversations) -> answers``; by default the module's method ``answer``.
        show_answers: Whether tables, and checkpoints after the run, show conversations about rows to forget.
        seed: Seed of the controls.

    Raises:
        ValueError: If a number is out of range, the calibration is not trusted or belongs to another judge, or the
            judge is the model itself.
        MisconfigurationException: If the module can't answer.

    References:
        Jia et al., "Leveraging LLMs for Dialogue Quality Measurement", 2024, arXiv:2406.17304.
    """

    def __init__(
        self,
        judge: RatesDialogues | str,
        calibration: Calibration | str | None = None,
        prompts: Sequence[DialogueSeed] | str | None = None,
        every_n_epochs: int = 1,
        max_new_tokens: int = 48,
        limit: int = 16,
        generate: AnswerFunction | None = None,
        show_answers: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(every_n_epochs, show_answers)
        self.calibration = calibration if isinstance(calibration, str) else check_trusted(calibration)
        self.judge = judge
        self.prompts = prompts
        self._given = _given(prompts)
        self.max_new_tokens = at_least("max_new_tokens", max_new_tokens, 1)
        self.limit, self.seed = at_least("limit", limit, 1), seed
        self.generate = generate
        self._opened: tuple[RatesDialogues, Calibration] | None = None
        self._before: dict[str, float] = {}
        self._controls: Controls | None = None

    def settings(self) -> dict[str, Any]:
        """What tells two of them in a run apart."""
        epochs = None if self.every_n_epochs == 1 else self.every_n_epochs
        own = {"every_n_epochs": epochs, "judge": self.judge if isinstance(self.judge, str) else None}
        return {name: value for name, value in own.items() if value is not None}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Open the judge and its calibration."""
        super().setup(trainer, pl_module, stage)
        number = callbacks_of(trainer, type(self)).index(self) + 1
        self.prefix = "dq/" if number == 1 else f"dq/{number}/"
        if stage == "fit" and self._opened is None:
            scale = self.calibration
            scale = check_trusted(Calibration.load(scale)) if isinstance(scale, str) else scale
            self._opened = (DialogueJudge(self.judge) if isinstance(self.judge, str) else self.judge), scale

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse the model as its own judge and the calibration of another judge, then rate before unlearning."""
        judge, calibration = self._ready()
        check_other_model(judge, pl_module)
        with isolate_rng(), judging_on(judge, pl_module.device):
            calibration.require_judge(judge)
        super().on_train_start(trainer, pl_module)

    def evaluate(self, trainer: Trainer, module: LightningModule) -> Evaluation:
        """Rate the conversations of the model as it is now."""
        seeds, (judge, calibration) = self._seeds(trainer, module), self._ready()
        with isolate_rng(), evaluating(module), trainer.precision_plugin.forward_context():
            dialogues = self._conversations(trainer, module, seeds)
        with isolate_rng(), judging_on(judge, module.device):
            scores = rated(judge, dialogues)
            if not self.history:
                self._before = {dialogue.id: score for dialogue, score in zip(dialogues, scores, strict=True)}
                self._controls = control_ratings(judge, dialogues, scores, self.seed)[0]
        assert self._controls is not None
        before = [self._before.get(dialogue.id, float("nan")) for dialogue in dialogues]
        sets = [seed.set for seed in seeds]
        quality = dialogue_quality(sets, before, scores, calibration, self._controls)
        if not self.history and self._controls.reason:
            rank_zero_warn(f"The ratings of DialogueQualityCallback are invalid: {self._controls.reason}.")
        examples = [_example(*row) for row in zip(seeds, dialogues, scores, strict=True)]
        return Evaluation(trainer.global_step, quality.metrics(), examples)

    def show(self, logger: Logger, step: int) -> None:
        """Log the conversations before and after."""
        history = self.shown()
        pairs = zip(history[0].examples, history[-1].examples, strict=True)
        rows = [[first.set, first.input, first.output, last.output] for first, last in pairs]
        log_table(logger, f"{self.prefix}conversations", ["set", "user", "before", "after"], rows, step)

    def state_dict(self) -> dict[str, Any]:
        """The evaluations, the ratings before the run, and what the judge made of the controls."""
        controls = None if self._controls is None else _plain(self._controls)
        return {**super().state_dict(), "before": self._before, "controls": controls}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the evaluations of the resumed run."""
        super().load_state_dict(state_dict)
        self._before = dict(state_dict["before"])
        self._controls = None if state_dict["controls"] is None else _controls(state_dict["controls"])

    def _ready(self) -> tuple[RatesDialogues, Calibration]:
        """The judge and its calibration, as ``setup`` has opened them."""
        assert self._opened is not None
        return self._opened

    def _seeds(self, trainer: Trainer, module: LightningModule) -> list[DialogueSeed]:
        seeds = self._given
        if seeds is None:
            seeds = [*neutral_seeds(), *_row_seeds(getattr(trainer, "datamodule", None), self.limit)]
        chat = not isinstance(module, LitCausalLM) or module._prompt_format().is_chat
        return seeds if chat else [seed.opening() for seed in seeds]

    def _conversations(
        self, trainer: Trainer, module: LightningModule, seeds: Sequence[DialogueSeed]
    ) -> list[Dialogue]:
        sharded = any(isinstance(parameter, DTensor) for parameter in module.parameters())
        share = Replica(0, 1) if sharded else replica(trainer)
        return conversations(seeds, lambda asked: self._answers(module, asked), share)

    def _answers(self, module: LightningModule, asked: list[Messages]) -> list[str]:
        if self.generate is not None:
            return self.generate(module, asked)
        if not hasattr(module, "answer"):
            raise MisconfigurationException(
                f"DialogueQualityCallback lets the model talk, but {type(module).__name__} has no method 'answer'. "
                "Pass generate=, a function (module, conversations) -> answers."
            )
        answer: Any = module.answer
        return answer(asked, max_new_tokens=self.max_new_tokens)


def _row_seeds(data: Any, limit: int) -> Iterator[DialogueSeed]:
    """Seeds that ask for rows of a data module; texts without a question are nothing that a user asks for."""
    if not isinstance(data, LanguageDataModule):
        return
    tables, asks = data.read_rows(), (data.columns.question, data.columns.messages)
    sets: tuple[SeedSet, ...] = ("retain", "forget")
    for name in sets:
        rows = [row for row in tables.get(name, []) if not all(is_missing(row.get(column)) for column in asks)]
        if rows:
            yield from probe_seeds(probes_of(rows, data.columns, name), name, limit)


def _given(prompts: Sequence[DialogueSeed] | str | None) -> list[DialogueSeed] | None:
    if prompts is None:
        return None
    return read_seeds(prompts) if isinstance(prompts, str) else list(prompts)


def _example(seed: DialogueSeed, dialogue: Dialogue, score: float) -> Example:
    asked = "\n".join(turn.text for turn in seed.turns if turn.role == "user")
    return Example(seed.set, asked, "", f"({score:.2f})\n{dialogue.text}")


def _plain(controls: Controls) -> dict[str, Any]:
    """Controls as what a checkpoint holds."""
    return {
        "auc": {kind: list(area) for kind, area in controls.auc.items()},
        "counts": dict(controls.counts),
        "refusals": None if controls.refusals is None else list(controls.refusals),
        "least": controls.least,
    }


def _controls(record: dict[str, Any]) -> Controls:
    areas = {kind: Interval(*area) for kind, area in record["auc"].items()}
    refusals = None if record["refusals"] is None else Interval(*record["refusals"])
    return Controls(areas, record["counts"], refusals, record["least"])
