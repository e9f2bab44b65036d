"""Bad input gets an error that says what was given and how to mend it, and no weight has moved by then."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.strategies import DeepSpeedStrategy, Strategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from lightning_unlearn import (
    NPO,
    ForgetRetainDataModule,
    GradDiff,
    GradientAscent,
    IdkNLL,
    KLMinimization,
    LanguageDataModule,
    LitCausalLM,
    PromptFormat,
    SimNPO,
    UnlearnMonitor,
    classifier_nll,
    training_step_loss,
)
from tests.helpers import save_resumable
from tests.user_module import DictNet, LitNet, indexed, loaders, pairs, trainer, weights


class Scene:
    """A folder, a tiny model, and what was fitted in it."""

    def __init__(self, folder: Path, lm: Path) -> None:
        self.folder, self.lm = folder, str(lm)
        self.fitted: list[tuple[L.LightningModule, Tensor]] = []

    def file(self, name: str, text: str) -> Path:
        (self.folder / name).write_text(text, encoding="utf-8")
        return self.folder / name

    def fit(
        self, *callbacks: Any, module: Any = None, data: Any = None, ckpt_path: Any = None, **options: Any
    ) -> L.Trainer:
        module = LitNet() if module is None else module
        self.fitted.append((module, weights(module)))
        run = trainer(*callbacks, **options)
        run.fit(module, loaders() if data is None else data, ckpt_path=ckpt_path)
        return run

    def resume(
        self,
        first: Any,
        second: Any,
        module: Any = None,
        data: Any = None,
        change: Callable[[Any], Any] = lambda module: None,
    ) -> None:
        """Train with ``first``, then go on with ``second``, both lists of callbacks; ``change`` the module between."""
        module, data = LitNet() if module is None else module, loaders() if data is None else data
        save_resumable(self.fit(*first, module=module, data=data), self.folder / "run.ckpt")
        self.fitted.clear()
        change(module)
        self.fit(*second, module=module, data=data, ckpt_path=self.folder / "run.ckpt", max_epochs=2)

    def rows(self, forget: Any, retain: Any = None, **options: Any) -> None:
        """Read language data with the tiny model's tokenizer."""
        LanguageDataModule(forget, retain, **{"prompt": PromptFormat(self.lm), **options}).setup("fit")


QA = [{"question": "What is the capital of France?", "answer": "Paris."}]


class Elsewhere(Strategy):
    """A strategy of somebody else."""

    is_global_zero = True
    root_device = torch.device("cpu")

    def model_to_device(self) -> None: ...

    def reduce(self, tensor: Any, *_: Any, **__: Any) -> Any:
        return tensor

    def barrier(self, *_: Any, **__: Any) -> None: ...

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        return obj

    def all_gather(self, tensor: Any, *_: Any, **__: Any) -> Any:
        return tensor


class Manual(LitNet):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


class NoLoss(LitNet):
    def training_step(self, batch: Any, batch_idx: int) -> None: ...  # type: ignore[override]


def deepspeed(scene: Scene) -> None:
    """DeepSpeed itself needs a GPU, so the strategy is there without having been set up."""
    method = SimNPO()
    run = SimpleNamespace(callbacks=[method], strategy=object.__new__(DeepSpeedStrategy))
    method.setup(run, LitNet(), "fit")  # type: ignore[arg-type]


def without_eos(scene: Scene) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(scene.lm)
    tokenizer.eos_token = None
    tokenizer.chat_template = None  # which would end an answer
    scene.rows(QA, prompt=PromptFormat(tokenizer))


def likelihood(module: Any, batch: Any) -> Tensor:
    return classifier_nll(module, batch)


def one_number(module: Any, batch: Any) -> Tensor:
    return classifier_nll(module, batch).mean()


def a_column(module: Any, batch: Any) -> Tensor:
    return classifier_nll(module, batch)[:, None]


def rows_with_index() -> ForgetRetainDataModule:
    return ForgetRetainDataModule(indexed(8, 1), indexed(8, 2))


def tune_without_callback(scene: Scene) -> None:
    scene.fit(module=LitCausalLM(scene.lm), data=LanguageDataModule(QA, QA), limit_val_batches=0)


def resume_lm_without_callback(scene: Scene) -> None:
    data = LanguageDataModule(QA, [{"question": "What is the capital of Japan?", "answer": "Tokyo."}])
    scene.resume([SimNPO()], [], module=LitCausalLM(scene.lm), data=data)


def freeze(module: LitNet) -> None:
    module.net[0].requires_grad_(False)


Case = tuple[str, Callable[[Scene], Any], type[Exception], list[str]]

CONSTRUCTORS: list[Case] = [
    ("forget_weight", lambda s: NPO(forget_weight=-1), ValueError, ["forget_weight", "at least 0", "-1"]),
    ("retain_weight", lambda s: GradDiff(retain_weight=-0.5), ValueError, ["retain_weight", "at least 0", "-0.5"]),
    ("refusal_weight", lambda s: IdkNLL(refusal_weight=-2), ValueError, ["refusal_weight", "at least 0", "-2"]),
    ("nan", lambda s: SimNPO(retain_weight=float("nan")), ValueError, ["retain_weight", "at least 0", "nan"]),
    ("both weights 0", lambda s: SimNPO(forget_weight=0), ValueError, ["forget_weight", "refusal_weight", "both 0"]),
    ("beta", lambda s: NPO(beta=0), ValueError, ["beta", "greater than 0", "got 0"]),
    ("margin", lambda s: SimNPO(margin=-0.1), ValueError, ["margin", "at least 0", "-0.1"]),
    ("max_forget_nll", lambda s: GradientAscent(0), ValueError, ["max_forget_nll", "greater than 0", "got 0"]),
    ("retain", lambda s: NPO(retain="mse"), ValueError, ["retain", "'nll' or 'kl'", "'mse'"]),  # type: ignore[arg-type]
    ("reference", lambda s: NPO(reference="disk"), ValueError, ["reference", "'cache'", "'snapshot'", "'disk'"]),  # type: ignore[arg-type]
    ("score", lambda s: NPO(score="nll"), TypeError, ["score", "(module, batch)", "'nll'"]),  # type: ignore[arg-type]
    ("own loss", lambda s: NPO(score=training_step_loss), ValueError, ["training_step_loss", "NPO", "GradDiff"]),
    ("cached logits", lambda s: KLMinimization(reference="cache"), ValueError, ["logits", "reference='snapshot'"]),
    ("positions", lambda s: KLMinimization(positions="x"), ValueError, ["'labels' or 'all'", "'x'"]),  # type: ignore[arg-type]
    ("every_n_epochs", lambda s: UnlearnMonitor(-1), ValueError, ["every_n_epochs", "at least 0", "-1"]),
    ("limit", lambda s: UnlearnMonitor(limit=0), ValueError, ["limit", "at least 1", "0"]),
    ("epoch", lambda s: ForgetRetainDataModule([], epoch="x"), ValueError, ["'forget' or 'retain'", "'x'"]),  # type: ignore[arg-type]
    (
        "batch size",
        lambda s: ForgetRetainDataModule([], batch_size=0),
        ValueError,
        ["batch_size", "at least 1", "got 0"],
    ),
    ("prompt_format", lambda s: PromptFormat(prompt_format="Q:"), ValueError, ["prompt_format", "{question}", "'Q:'"]),
    (
        "another field",
        lambda s: PromptFormat(prompt_format="{question} {topic}"),
        ValueError,
        ["prompt_format", "{question}", "{topic}"],
    ),
    ("max_length", lambda s: s.rows(QA, max_length=1), ValueError, ["max_length", "at least 2", "1"]),
    ("lr", lambda s: LitCausalLM(s.lm, lr=0), ValueError, ["lr", "greater than 0", "0"]),
    ("warmup", lambda s: LitCausalLM(s.lm, warmup=1.5), ValueError, ["warmup", "whole number of steps", "1.5"]),
    ("schedule", lambda s: LitCausalLM(s.lm, schedule="step"), ValueError, ["schedule", "'cosine'", "'step'"]),  # type: ignore[arg-type]
    ("dtype", lambda s: LitCausalLM(s.lm, dtype="fp32"), ValueError, ["dtype", "'float32'", "'fp32'"]),  # type: ignore[arg-type]
    ("rank", lambda s: LitCausalLM(s.lm, lora={"r": 0}), ValueError, ["`r`", "positive", "0"]),
    ("GGUF", lambda s: LitCausalLM(f"{s.folder}/no.gguf"), FileNotFoundError, ["no file", "no.gguf", "looked in"]),
]

DATA: list[Case] = [
    ("no file", lambda s: s.rows("no.jsonl"), FileNotFoundError, ["no file no.jsonl", "looked in"]),
    (
        "broken JSON",
        lambda s: s.rows(s.file("x.json", '[\n{"text": "a"},\n{"text": }\n]')),
        ValueError,
        ["x.json", "line 3"],
    ),
    (
        "broken line",
        lambda s: s.rows(s.file("x.jsonl", '{"text": "a"}\n\n{"text": }\n')),
        ValueError,
        ["x.jsonl", "line 3"],
    ),
    ("not UTF-8", lambda s: s.rows(latin(s)), ValueError, ["latin.csv", "utf-8"]),
    ("no dicts", lambda s: s.rows(s.file("x.json", '["a"]')), ValueError, ["Row 0", "x.json", "str", "must be a dict"]),
    (
        "other columns",
        lambda s: s.rows([*QA, {"prompt": "a", "completion": "b"}]),
        ValueError,
        ["Row 1 of the forget set", "['completion', 'prompt']", "'question' and 'answer'", "columns=Columns"],
    ),
    ("empty forget", lambda s: s.rows(s.file("x.jsonl", "\n")), ValueError, ["forget", "x.jsonl", "at least one row"]),
    ("empty retain", lambda s: s.rows(QA, []), ValueError, ["retain", "empty", "at least one row"]),
    ("empty heldout", lambda s: s.rows(QA, heldout={"far": []}), ValueError, ["far", "empty", "at least one row"]),
    (
        "empty answer",
        lambda s: s.rows([*QA, {"question": "Why?", "answer": " "}]),
        ValueError,
        ["Row 1 of the forget set", "no supervised token", "' '", "remove the row"],
    ),
    (
        "null answer",
        lambda s: s.rows(s.file("x.json", json.dumps([{"question": "Why?", "answer": None}]))),
        ValueError,
        ["Row 0 of the forget set", "no supervised token", "None", "remove the row"],
    ),
    (
        "short CSV row",
        lambda s: s.rows(s.file("x.csv", "question,answer\nWhy?,So.\nWho?\n")),
        ValueError,
        ["x.csv, line 3", "1 cells", "header has 2", "leave no cell out"],
    ),
    (
        "target that is not there",
        lambda s: s.rows([{**QA[0], "target": "Rome"}]),
        ValueError,
        ["Row 0 of the forget set", "'Rome'", "'Paris.'", "remove the target"],
    ),
    ("empty text", lambda s: s.rows([{"text": ""}]), ValueError, ["Row 0", "no supervised token", "''", "remove"]),
    ("null text", lambda s: s.rows([{"text": None}]), ValueError, ["Row 0", "no supervised token", "None", "remove"]),
    (
        "long prompt",
        lambda s: s.rows(QA, max_length=8),
        ValueError,
        ["Row 0 of the forget set", "max_length=8", "Raise max_length"],
    ),
    ("hub id", lambda s: s.rows("no/such-data"), ValueError, ["'no/such-data'", ".jsonl", "load_dataset"]),
    ("folder", lambda s: s.rows(str(s.folder / "none")), ValueError, ["none'", ".jsonl", "load_dataset"]),
    ("refusals", lambda s: s.rows(QA, refusals=[" "]), ValueError, ["refusals", "[' ']", "at least one refusal"]),
    ("refusal file", lambda s: s.rows(QA, refusals="no.txt"), FileNotFoundError, ["refusals", "no.txt", "looked in"]),
    ("no tokenizer", lambda s: s.rows(QA, prompt=None), ValueError, ["no tokenizer", "tokenizer="]),
    ("no EOS", without_eos, ValueError, ["tokenizer", "eos_token"]),
]

RUNS: list[Case] = [
    (
        "no retain rows",
        lambda s: s.fit(SimNPO(score=classifier_nll), data={"forget": pairs(8, 1)}),
        MisconfigurationException,
        ["SimNPO needs ['retain']", "['forget']", "{'forget': ..., 'retain': ...}", "ForgetRetainDataModule"],
    ),
    (
        "plain batches",
        lambda s: s.fit(NPO(score=classifier_nll), data=pairs(8, 1)),
        MisconfigurationException,
        ["NPO needs ['forget', 'retain']", "list", "{'forget': ..., 'retain': ...}", "ForgetRetainDataModule"],
    ),
    (
        "no refusals",
        lambda s: s.fit(IdkNLL(score=classifier_nll)),
        MisconfigurationException,
        ["IdkNLL needs ['idk']", "['forget', 'retain']", "LanguageDataModule"],
    ),
    (
        "empty forget set",
        lambda s: s.fit(SimNPO(score=classifier_nll), module=DictNet(), data=ForgetRetainDataModule([], indexed(8, 2))),
        ValueError,
        ["forget set is empty", "at least one"],
    ),
    (
        "epoch of a set that is not there",
        lambda s: s.fit(GradientAscent(), data=ForgetRetainDataModule(indexed(8, 1), epoch="retain")),
        ValueError,
        ["epoch='retain'", "['forget']", "Give retain rows"],
    ),
    (
        "module without tokenizer",
        lambda s: s.fit(SimNPO(), data=LanguageDataModule(QA)),
        ValueError,
        ["no tokenizer", "'tokenizer'", "tokenizer="],
    ),
    (
        "two objectives",
        lambda s: s.fit(SimNPO(score=classifier_nll), NPO(score=classifier_nll)),
        MisconfigurationException,
        ["one unlearning objective", "['SimNPO', 'NPO']", "Keep one"],
    ),
    (
        "manual optimization",
        lambda s: s.fit(SimNPO(score=classifier_nll), module=Manual()),
        MisconfigurationException,
        ["Manual optimizes manually", "automatic_optimization = True"],
    ),
    (
        "strategy",
        lambda s: s.fit(SimNPO(score=classifier_nll), strategy=Elsewhere()),
        MisconfigurationException,
        ["does not support Elsewhere", "strategy='ddp'", "ModelParallelStrategy"],
    ),
    (
        "DeepSpeed",
        deepspeed,
        MisconfigurationException,
        ["does not support DeepSpeedStrategy", "strategy='ddp'", "ModelParallelStrategy"],
    ),
    (
        "cache without index",
        lambda s: s.fit(NPO(score=classifier_nll, reference="cache")),
        ValueError,
        ["reference='cache'", "no 'index'", "reference='snapshot'"],
    ),
    (
        "divergence of likelihoods",
        lambda s: s.fit(NPO(score=likelihood, retain="kl")),
        MisconfigurationException,
        ["NPO compares logits", "only gives likelihoods", "classifier_nll", "from_predictions"],
    ),
    (
        "one number a batch",
        lambda s: s.fit(SimNPO(score=one_number)),
        ValueError,
        ["shape ()", "4 rows", "SimNPO", "shape (B,)"],
    ),
    (
        "one number a batch, cached",
        lambda s: s.fit(NPO(score=one_number), module=DictNet(), data=rows_with_index()),
        ValueError,
        ["shape ()", "4 rows", "NPO", "shape (B,)"],
    ),
    (
        "a column, cached",
        lambda s: s.fit(NPO(score=a_column), module=DictNet(), data=rows_with_index()),
        ValueError,
        ["shape (4, 1)", "4 rows", "NPO", "shape (B,)"],
    ),
    (
        "score for other batches",
        lambda s: s.fit(SimNPO()),
        TypeError,
        ["causal_lm_nll", "'input_ids' and 'labels'", "list of 2", "score=classifier_nll"],
    ),
    (
        "training_step without a loss",
        lambda s: s.fit(GradDiff(score=training_step_loss), module=NoLoss()),
        MisconfigurationException,
        ["GradDiff ran 0 updates", "training_step returns a loss"],
    ),
    (
        "resume of plain training",
        lambda s: s.resume([], [NPO(score=classifier_nll)], data=pairs(8, 1)),
        MisconfigurationException,
        ["not of an unlearning run", "NPO", "LitNet.load_from_checkpoint", "without ckpt_path"],
    ),
    (
        "resume with another method",
        lambda s: s.resume([SimNPO(score=classifier_nll)], [NPO(score=classifier_nll)]),
        MisconfigurationException,
        ["a run with SimNPO", "NPO", "LitNet.load_from_checkpoint", "without ckpt_path"],
    ),
    (
        "resume with another retain term",
        lambda s: s.resume([SimNPO(score=classifier_nll)], [SimNPO(score=classifier_nll, retain="kl")]),
        MisconfigurationException,
        ["holds no reference", "SimNPO", "settings that the run was started with"],
    ),
    (
        "resume with other frozen layers",
        lambda s: s.resume([NPO(score=classifier_nll)], [NPO(score=classifier_nll)], change=freeze),
        ValueError,
        ["reference weights don't fit", "net.0.", "frozen layers"],
    ),
    (
        "resume without the callback",
        resume_lm_without_callback,
        MisconfigurationException,
        ["checkpoint of an unlearning run", "no unlearning callback", "load_from_checkpoint"],
    ),
    (
        "fit without a callback",
        tune_without_callback,
        MisconfigurationException,
        ["forget", "unlearning callback"],
    ),
    (
        "limit_train_batches=0",
        lambda s: s.fit(SimNPO(score=classifier_nll), limit_train_batches=0),
        MisconfigurationException,
        ["SimNPO ran 0 updates", "limit_train_batches"],
    ),
    (
        "max_epochs=0",
        lambda s: s.fit(SimNPO(score=classifier_nll), max_epochs=0),
        MisconfigurationException,
        ["SimNPO ran 0 updates", "max_epochs"],
    ),
    (
        "max_steps=0",
        lambda s: s.fit(SimNPO(score=classifier_nll), max_steps=0),
        MisconfigurationException,
        ["SimNPO ran 0 updates", "max_steps"],
    ),
    (
        "a module that can't answer",
        lambda s: s.fit(SimNPO(score=classifier_nll), UnlearnMonitor(questions={"capitals": QA}, score=classifier_nll)),
        MisconfigurationException,
        ["LitNet has no method 'answer'", "generate="],
    ),
    (
        "questions with other columns",
        lambda s: s.fit(
            SimNPO(score=classifier_nll),
            UnlearnMonitor(
                questions={"capitals": [{"q": "Why?"}]}, generate=lambda _, asked: asked, score=classifier_nll
            ),
        ),
        ValueError,
        ["capitals", "['q']", "'question'", "'answer'"],
    ),
    (
        "too few answers",
        lambda s: s.fit(
            SimNPO(score=classifier_nll),
            UnlearnMonitor(questions={"capitals": QA}, generate=lambda module, asked: [], score=classifier_nll),
        ),
        ValueError,
        ["generate", "0 answers", "1 question"],
    ),
]


def latin(scene: Scene) -> Path:
    (scene.folder / "latin.csv").write_bytes("question,answer\nOù?,Là.\n".encode("latin-1"))
    return scene.folder / "latin.csv"


CASES = CONSTRUCTORS + DATA + RUNS


@pytest.mark.parametrize(
    ("cause", "kind", "fragments"), [case[1:] for case in CASES], ids=[case[0].replace(" ", "_") for case in CASES]
)
def test_bad_input_is_named_with_the_way_out(
    cause: Callable[[Scene], Any], kind: type[Exception], fragments: list[str], tmp_path: Path, tiny_lm: Path
) -> None:
    scene = Scene(tmp_path, tiny_lm)
    with pytest.raises(kind) as caught:
        cause(scene)
    message = str(caught.value)
    assert [fragment for fragment in fragments if fragment not in message] == [], message
    for module, before in scene.fitted:
        assert torch.equal(weights(module), before)
        assert "training_step" not in vars(module)
