"""Runs of the benchmark of dialogue judges: each rates the same held-out dialogues."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils.data import DataLoader, Sampler

from lightning_unlearn.benchmarks.grid import Cell, Outcome
from lightning_unlearn.benchmarks.runs import quiet_libraries, trainer
from lightning_unlearn.core.layers import decoder_layers
from lightning_unlearn.core.lightning import seed_everything
from lightning_unlearn.dialogue.baselines import NeighbourRating, TfidfRidge
from lightning_unlearn.dialogue.data.uss import USSDialogues, USSSubset
from lightning_unlearn.dialogue.dialogue import Dialogue
from lightning_unlearn.dialogue.extractors import AnalysisExtractor, Extractor, LogitExtractor, TextExtractor
from lightning_unlearn.dialogue.fingerprint import fingerprint_dialogues
from lightning_unlearn.dialogue.judge import DialogueJudge
from lightning_unlearn.dialogue.probe import ProbeExtractor
from lightning_unlearn.dialogue.prompt import BuiltPrompt, JudgePrompt, Mode
from lightning_unlearn.dialogue.rating import Rating
from lightning_unlearn.dialogue.selectors.bm25 import BM25Selector
from lightning_unlearn.dialogue.selectors.dense import DenseSelector
from lightning_unlearn.dialogue.selectors.random import RandomSelector
from lightning_unlearn.dialogue.selectors.selector import Selector
from lightning_unlearn.dialogue.selectors.state_encoder import StateEncoder
from lightning_unlearn.dialogue.tuning import JudgeTuning, Target
from lightning_unlearn.language.causal_lm import DType, LitCausalLM

__all__ = [
    "BaselineCell",
    "DataCell",
    "Examples",
    "JudgeCell",
    "LoRASetting",
    "UpdateBatches",
    "baseline",
    "judged",
    "split",
]

Examples = Literal["random", "bm25", "dense"]
Route = Literal["logits", "text"]

_FROZEN_MEMORY = 2.0  # GiB of a run


@dataclass(frozen=True, kw_only=True)
class DataCell(Cell):
    """The dialogues of a run.

    Args:
        path: Folder with the files of USS.
        data_sha256: Hash of the subset's file.
        subset: Name of the file.
        test: Number of dialogues that are rated.
        train: Number of other dialogues, for fine-tuning and as examples.
    """

    path: str
    data_sha256: str
    subset: USSSubset
    test: int
    train: int


@dataclass(frozen=True, kw_only=True)
class BaselineCell(DataCell):
    """Ratings without a language model: ``"ridge"`` on TF-IDF, or the mean of the ``k`` nearest by BM25."""

    kind: Literal["ridge", "neighbours"]
    k: int = 0


@dataclass(frozen=True)
class LoRASetting:
    """How a judge is fine-tuned.

    Args:
        target: The loss, see `JudgeTuning`.
        lr: Learning rate of AdamW.
        epochs: Passes over the training dialogues.
        batch_size: Dialogues of an update.
        r: Rank of the adapters; ``lora_alpha`` is twice as much.
        dropout: Dropout of the adapters; 0.05 makes a step a quarter longer on a CPU.
        modules: Linear layers that get adapters.
        last_layers: Number of decoder layers with adapters, counted from the last one; ``None`` for all. Earlier layers
            need no backward pass, and after the first epoch no forward pass.
    """

    target: Target = "soft"
    lr: float = 2e-4
    epochs: int = 3
    batch_size: int = 16
    r: int = 8
    dropout: float = 0.0
    modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    last_layers: int | None = None


@dataclass(frozen=True, kw_only=True)
class JudgeCell(DataCell):
    """A judge and its settings.

    Args:
        model: Hub id, folder or GGUF file.
        mode: What the judge writes.
        route: How its rating is extracted.
        examples: How examples are chosen; ``None`` for none.
        shots: Number of examples.
        lora: How it is fine-tuned; ``None`` without fine-tuning.
        probe: Whether its ratings are those of a linear probe on its hidden states.
        known_bad: Whether the probe also learns known-bad dialogues.
        max_length: Longest prompt in tokens.
        example_length: Longest example in tokens.
        max_new_tokens: Longest answer in tokens.
        precision: Precision of the Trainer; with bf16, weights that do not train are bf16.
    """

    model: str
    mode: Mode = "score_only"
    route: Route = "logits"
    examples: Examples | None = None
    shots: int = 4
    lora: LoRASetting | None = None
    probe: bool = False
    known_bad: bool = False
    max_length: int = 1024
    example_length: int | None = None
    max_new_tokens: int = 64
    precision: str = "bf16-mixed"


class CountingJudge(DialogueJudge):
    """A judge that counts the examples in its prompts: those that do not fit are left out."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.shown: list[int] = []

    def prompts(self, dialogues: Sequence[Dialogue], shots: int | None = None, room: int = 0) -> list[BuiltPrompt]:
        """The prompt of each dialogue, with its examples."""
        built = super().prompts(dialogues, shots, room)
        self.shown += [prompt.examples for prompt in built]
        return built


def split(cell: DataCell) -> tuple[list[Dialogue], list[Dialogue]]:
    """The dialogues to learn from, and those that are rated.

    Raises:
        ValueError: If there are not so many.
    """
    rated = USSDialogues(cell.path, cell.subset).rated
    if cell.test + cell.train > len(rated):
        raise ValueError(
            f"test={cell.test} and train={cell.train} are more than the {len(rated)} dialogues of {cell.subset}."
        )
    order = torch.randperm(len(rated), generator=torch.Generator().manual_seed(cell.seed)).tolist()
    chosen = [rated[place] for place in order]
    return chosen[cell.test : cell.test + cell.train], chosen[: cell.test]


def baseline(cell: BaselineCell, folder: Path) -> Outcome:
    """Ratings of a predictor without a language model."""
    pool, test = split(cell)
    predictor = TfidfRidge() if cell.kind == "ridge" else NeighbourRating(BM25Selector(), cell.k)
    start = time.perf_counter()
    ratings = predictor.fit(pool).rate(test)
    return _outcome(ratings, test, {"rating": time.perf_counter() - start})


def judged(cell: JudgeCell, folder: Path) -> Outcome:
    """Ratings of a judge, which first learns from ratings and is saved where the cell says so."""
    quiet_libraries("transformers")
    seed_everything(cell.seed, verbose=False)
    pool, test = split(cell)
    judge, seconds = _judge(cell, pool), {}
    if cell.lora is not None:
        start = time.perf_counter()
        _fine_tune(cell, cell.lora, judge, pool)
        seconds["tuning"] = time.perf_counter() - start
    if cell.probe:
        start = time.perf_counter()
        judge.fit_probe(pool)
        seconds["fitting"] = time.perf_counter() - start
    judge.shown.clear()
    start = time.perf_counter()
    loader: Any = DataLoader(test, batch_size=32, collate_fn=list)  # type: ignore[arg-type]
    batches: Any = trainer(precision=cell.precision).predict(judge, loader)
    seconds["rating"] = time.perf_counter() - start
    outcome = _outcome([rating for batch in batches for rating in batch], test, seconds)
    outcome["examples"] = sum(judge.shown) / len(judge.shown)
    if isinstance(judge.extractor, ProbeExtractor) and (probe := judge.extractor.probe) is not None:
        outcome |= {"layer": probe.layer, "alpha": probe.alpha}
        if judge.extractor.knows_bad:
            outcome["floor"] = judge.task.values[0]
    if cell.lora is not None or cell.probe:
        outcome["files"] = [place := f"judges/{cell.key}"]
        (judge.save_probe if cell.probe else judge.save_pretrained)(folder / place)
        outcome["fingerprint"] = [rating.score for rating in judge.rate(fingerprint_dialogues())]
    return outcome


def _judge(cell: JudgeCell, pool: list[Dialogue]) -> CountingJudge:
    tuned = cell.lora
    lm = LitCausalLM(cell.model, dtype=_dtype(cell)) if tuned is None else _with_adapters(cell.model, tuned)
    chooses: dict[Examples | None, Selector | None] = {
        None: None,
        "random": RandomSelector(cell.seed),
        "bm25": BM25Selector(),
        "dense": DenseSelector(StateEncoder(lm)),
    }
    return CountingJudge(
        lm,
        prompt=JudgePrompt(mode=cell.mode, max_length=cell.max_length, example_length=cell.example_length),
        selector=chooses[cell.examples],
        shots=cell.shots if cell.examples is not None else 0,
        extractor=_extractor(cell),
        pool=pool if cell.examples is not None else None,
        tuning=_tuning(tuned, cell.seed) if tuned is not None else None,
    )


def _dtype(cell: JudgeCell) -> DType:
    """The type of weights that do not train; with fp32 ones, bf16-mixed computes much of a forward pass in fp32."""
    return "bfloat16" if cell.precision in ("bf16-mixed", "bf16-true") else "float32"


def _with_adapters(source: str, tuned: LoRASetting) -> LitCausalLM:
    lm = LitCausalLM(source)
    lora: dict[str, Any] = {"r": tuned.r, "lora_alpha": 2 * tuned.r, "lora_dropout": tuned.dropout}
    lora["target_modules"] = list(tuned.modules)
    if tuned.last_layers is not None:
        layers = len(decoder_layers(lm.model)[1])
        lora["layers_to_transform"] = list(range(max(0, layers - tuned.last_layers), layers))
    options: Any = {"lr": tuned.lr, "warmup": 0.03, "schedule": "cosine"}
    return LitCausalLM(lm.model, tokenizer=lm.tokenizer, lora=lora, **options)


def _tuning(tuned: LoRASetting, seed: int) -> JudgeTuning:
    return JudgeTuning(tuned.target, seed=seed, frozen_memory=_FROZEN_MEMORY)


def _extractor(cell: JudgeCell) -> Extractor:
    if cell.probe:
        return ProbeExtractor(known_bad=cell.known_bad)
    if cell.route == "text":
        return TextExtractor(max_new_tokens=cell.max_new_tokens)
    return AnalysisExtractor(max_new_tokens=cell.max_new_tokens) if cell.mode == "analysis_first" else LogitExtractor()


class UpdateBatches(Sampler[list[int]]):
    """Draws the rows of each update at random, and splits them into batches of like lengths, with little padding.

    The mean gradient of an update is that of any other split.

    Args:
        lengths: Length of each row.
        update: Rows of an update.
        together: Rows of a batch, a divisor of ``update``.
        seed: Seed of the order.
    """

    def __init__(self, lengths: Sequence[int], update: int, together: int, seed: int) -> None:
        self.lengths, self.update, self.together = lengths, update, together
        self._generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.together)

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.randperm(len(self.lengths), generator=self._generator).tolist()
        for start in range(0, len(order), self.update):
            rows = sorted(order[start : start + self.update], key=lambda row: self.lengths[row])
            yield from (rows[place : place + self.together] for place in range(0, len(rows), self.together))


def _fine_tune(cell: JudgeCell, lora: LoRASetting, judge: DialogueJudge, pool: list[Dialogue]) -> None:
    together = next(size for size in (4, 3, 2, 1) if lora.batch_size % size == 0)  # at a time, for memory
    batches = UpdateBatches([len(dialogue.text) for dialogue in pool], lora.batch_size, together, cell.seed)
    loader: Any = DataLoader(pool, batch_sampler=batches, collate_fn=list)  # type: ignore[arg-type]
    options: Any = {"accumulate_grad_batches": lora.batch_size // together, "gradient_clip_val": 1.0}
    trainer(max_epochs=lora.epochs, precision=cell.precision, **options).fit(judge, loader)


def _outcome(ratings: list[Rating], test: list[Dialogue], seconds: dict[str, float]) -> Outcome:
    masses = [rating.vocab_mass for rating in ratings if rating.vocab_mass is not None]
    return {
        "scores": [rating.score if rating.score == rating.score else None for rating in ratings],
        "labels": [rating.label for rating in ratings],
        "parse_rate": sum(rating.parsed for rating in ratings) / len(ratings),
        "vocab_mass": sum(masses) / len(masses) if masses else None,
        "human": [list(dialogue.ratings) for dialogue in test],
        "ids": [dialogue.id for dialogue in test],
        "seconds": seconds,
    }
