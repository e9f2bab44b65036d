"""Measurements along a run, and their record in each logger."""

from __future__ import annotations

import csv
import json
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_unlearn import LanguageDataModule, LitCausalLM, SimNPO, UnlearnMonitor, classifier_nll
from lightning_unlearn.language.data.token_rows import collate_tokens
from tests.user_module import LitNet, loaders, pairs, trainer, weights

Rows = list[dict[str, Any]]

COLUMNS = ["set", "question", "expected", "before", "after"]


@pytest.fixture
def data(forget_rows: Rows, retain_rows: Rows) -> LanguageDataModule:
    """Two batches an epoch; one held-out set has questions, the other none."""
    heldout = {
        "other": [{"question": "Who?", "answer": "Nobody.", "accept": []}],
        "text": [{"text": "A sentence to read."}],
    }
    return LanguageDataModule(forget_rows, retain_rows, heldout, batch_size=2)


def unlearn(
    tiny_lm: Path, data: Any, monitor: UnlearnMonitor, *callbacks: Any, **options: Any
) -> tuple[LitCausalLM, L.Trainer]:
    module = LitCausalLM(str(tiny_lm), lr=1e-3)
    run = trainer(SimNPO(), monitor, *callbacks, **{"limit_val_batches": 0, **options})
    run.fit(module, data)
    return module, run


def token_mean(module: LitCausalLM, rows: Any) -> float:
    """The loss that Hugging Face computes on all rows together."""
    batch = collate_tokens([rows[i] for i in range(len(rows))])
    module.eval()
    with torch.no_grad():
        return module.model(**{k: batch[k] for k in ("input_ids", "attention_mask", "labels")}).loss.item()


def echo(module: Any, questions: list[str]) -> list[str]:
    """Answers that show the step, and are right about France alone."""
    step = module.trainer.global_step
    return [f"step {step}: it is PARIS, or so" if "France" in question else f"step {step}" for question in questions]


# ---- what is measured ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("every", "epochs", "steps"), [(1, 2, [0, 2, 4]), (2, 5, [0, 4, 8, 10]), (0, 3, [0, 6]), (9, 2, [0, 4])]
)
def test_the_model_is_measured_before_every_so_many_epochs_and_after(
    every: int, epochs: int, steps: list[int], tiny_lm: Path, data: LanguageDataModule
) -> None:
    monitor = UnlearnMonitor(every, generate=echo)
    unlearn(tiny_lm, data, monitor, max_epochs=epochs)
    assert [e.step for e in monitor.history] == steps


def test_a_run_that_stops_within_an_epoch_is_measured_at_its_last_step(tiny_lm: Path, data: LanguageDataModule) -> None:
    monitor = UnlearnMonitor(0, generate=echo)
    unlearn(tiny_lm, data, monitor, max_steps=3, max_epochs=-1)
    assert [e.step for e in monitor.history] == [0, 3]


def test_each_set_has_a_likelihood_and_each_set_of_questions_an_accuracy(
    tiny_lm: Path, data: LanguageDataModule
) -> None:
    monitor = UnlearnMonitor(generate=echo)
    unlearn(tiny_lm, data, monitor)
    for evaluation in monitor.history:
        assert set(evaluation.metrics) == {
            "forget_nll",
            "retain_nll",
            "other_nll",
            "text_nll",
            "forget_accuracy",
            "retain_accuracy",
            "other_accuracy",
        }


def test_likelihoods_are_means_over_all_tokens_of_a_set(tiny_lm: Path, data: LanguageDataModule) -> None:
    monitor = UnlearnMonitor(generate=echo)
    module, _ = unlearn(tiny_lm, data, monitor, max_epochs=3)
    for evaluation, measured in ((monitor.history[0], LitCausalLM(str(tiny_lm))), (monitor.history[-1], module)):
        for name, rows in data.sets.items():
            assert evaluation.metrics[f"{name}_nll"] == pytest.approx(token_mean(measured, rows), abs=1e-5)
    before, after = monitor.history[0].metrics, monitor.history[-1].metrics
    assert abs(after["forget_nll"] - before["forget_nll"]) > 0.1


def test_an_answer_is_right_if_it_contains_an_accepted_one(tiny_lm: Path, data: LanguageDataModule) -> None:
    monitor = UnlearnMonitor(generate=echo)
    unlearn(tiny_lm, data, monitor)
    metrics = monitor.history[0].metrics
    assert [metrics[f"{name}_accuracy"] for name in ("forget", "retain", "other")] == [0.25, 0.0, 0.0]
    assert [example.hit for example in monitor.history[0].examples] == [True] + [False] * 6


@pytest.mark.parametrize(
    ("match", "right"),
    [
        ("words", [False, True, True, True]),
        ("exact", [False, False, True, False]),
        (lambda text, accepted: accepted in text, [False, True, True, False]),
    ],
)
def test_a_part_of_a_word_is_no_right_answer(match: Any, right: list[bool], tiny_lm: Path) -> None:
    texts = {"Romania": "Oman", "Jerome of Rome": "Rome", "Lima.": "Lima", "In Lima": ["Cusco", "lima"]}
    rows = [{"question": text, "answer": "x", "accept": accept} for text, accept in texts.items()]
    monitor = UnlearnMonitor(questions={"q": rows}, generate=lambda module, asked: asked, match=match)
    unlearn(tiny_lm, LanguageDataModule(rows, rows[:1], batch_size=4), monitor)
    assert [example.hit for example in monitor.history[0].examples] == right


def test_without_an_accepted_answer_the_whole_one_counts(tiny_lm: Path, data: LanguageDataModule) -> None:
    questions: dict[str, Any] = {
        "mine": [{"question": "Who?", "answer": "nobody"}, {"question": "Why?", "answer": "x"}]
    }
    monitor = UnlearnMonitor(questions=questions, generate=lambda module, asked: ["Nobody knows."] * len(asked))
    unlearn(tiny_lm, data, monitor)
    assert monitor.history[0].metrics["mine_accuracy"] == 0.5


def test_a_limit_is_the_most_rows_that_are_measured(tiny_lm: Path, data: LanguageDataModule) -> None:
    monitor = UnlearnMonitor(limit=3, generate=echo)
    unlearn(tiny_lm, data, monitor)
    first = monitor.history[0]
    rows = [data.sets["forget"][i] for i in range(3)]  # batches have two rows
    assert first.metrics["forget_nll"] == pytest.approx(token_mean(LitCausalLM(str(tiny_lm)), rows), abs=1e-5)
    assert [example.set for example in first.examples] == ["forget"] * 3 + ["retain"] * 2 + ["other"]


def test_the_models_own_answers_are_taken_where_there_is_no_other_function(
    tiny_lm: Path, data: LanguageDataModule
) -> None:
    monitor = UnlearnMonitor(limit=1)
    module, _ = unlearn(tiny_lm, data, monitor)
    asked = [example.input for example in monitor.history[-1].examples]
    assert [example.output for example in monitor.history[-1].examples] == module.answer(asked)


def test_a_function_that_generates_gets_the_module_and_the_questions(
    tiny_lm: Path, data: LanguageDataModule, retain_rows: Rows, tmp_path: Path
) -> None:
    calls: list[Any] = []

    def generate(module: Any, questions: list[str]) -> list[str]:
        calls.append((module, questions, module.training, torch.is_grad_enabled()))
        return ["yes"] * len(questions)

    path = tmp_path / "asked.jsonl"
    path.write_text("\n".join(map(json.dumps, retain_rows)), encoding="utf-8")
    monitor = UnlearnMonitor(questions={"file": path}, generate=generate)
    module, _ = unlearn(tiny_lm, data, monitor)
    assert calls == [(module, [row["question"] for row in retain_rows], False, False)] * 2
    first = monitor.history[0].examples[0]
    assert (first.set, first.input, first.expected, first.output) == (
        "file",
        retain_rows[0]["question"],
        retain_rows[0]["answer"],
        "yes",
    )


def test_a_users_module_and_loaders_are_measured_too() -> None:
    torch.manual_seed(0)
    module, monitor = LitNet(), UnlearnMonitor(score=classifier_nll)
    expected = [
        nn.functional.cross_entropy(module(x), y).item()
        for x, y in (next(iter(pairs(16, seed, batch_size=16))) for seed in (1, 2))
    ]
    trainer(SimNPO(score=classifier_nll), monitor).fit(module, loaders())
    assert [e.step for e in monitor.history] == [0, 4]
    assert list(monitor.history[0].metrics) == ["forget_nll", "retain_nll"]
    assert list(monitor.history[0].metrics.values()) == pytest.approx(expected, abs=1e-6)


def test_a_score_that_gives_likelihoods_alone_is_a_mean_over_rows() -> None:
    def score(module: Any, batch: Any) -> Tensor:
        return classifier_nll(module, batch)

    found = []
    for measure in (score, classifier_nll):
        torch.manual_seed(0)
        monitor = UnlearnMonitor(score=measure)
        trainer(SimNPO(score=classifier_nll), monitor).fit(LitNet(), loaders())
        found.append([e.metrics["forget_nll"] for e in monitor.history])
    assert found[0] == pytest.approx(found[1], abs=1e-6)


# ---- what an evaluation leaves alone ---------------------------------------------------------------------------------


class Probe(L.Callback):
    """Evaluates within training, and compares what was before with what is after."""

    def __init__(self, monitor: UnlearnMonitor) -> None:
        self.monitor, self.states = monitor, []

    def on_train_batch_end(self, run: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        module.model.model.layers[0].eval()  # type: ignore[union-attr, index]
        before = self.state(module)
        self.monitor.evaluate(run, module)
        self.states.append((before, self.state(module)))

    @staticmethod
    def state(module: L.LightningModule) -> Any:
        modes = [child.training for child in module.modules()]
        assert any(modes)
        assert not all(modes)
        return torch.get_rng_state().tolist(), random.getstate(), modes, weights(module).tolist()


def test_an_evaluation_leaves_random_states_modes_and_weights_alone(tiny_lm: Path, data: LanguageDataModule) -> None:
    probe = Probe(UnlearnMonitor())
    unlearn(tiny_lm, data, UnlearnMonitor(), probe)
    assert len(probe.states) == 2
    for before, after in probe.states:
        assert before == after


def test_a_monitored_run_ends_with_the_weights_of_one_that_is_not() -> None:
    def run(*callbacks: Any) -> Tensor:
        torch.manual_seed(0)
        module = LitNet(dropout=0.5)
        shuffled = {name: DataLoader(x.dataset, batch_size=4, shuffle=True) for name, x in loaders().items()}
        trainer(SimNPO(score=classifier_nll), *callbacks, max_epochs=3).fit(module, shuffled)
        return weights(module)

    assert torch.equal(run(), run(UnlearnMonitor(score=classifier_nll)))


# ---- resume ----------------------------------------------------------------------------------------------------------


def plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(type(k) is str and plain(v) for k, v in value.items())
    if isinstance(value, list):
        return all(map(plain, value))
    return value is None or type(value) in (str, int, float, bool)


def test_the_history_goes_on_in_a_resumed_run(tiny_lm: Path, data: LanguageDataModule, tmp_path: Path) -> None:
    path = tmp_path / "half.ckpt"
    first = UnlearnMonitor(generate=echo, show_answers=True)
    _, run = unlearn(tiny_lm, data, first, max_epochs=2)
    run.save_checkpoint(path)
    state = torch.load(path, weights_only=True)["callbacks"]["UnlearnMonitor"]
    assert plain(state)
    assert json.loads(json.dumps(state)) == state

    second = UnlearnMonitor(generate=echo, show_answers=True)
    trainer(SimNPO(), second, max_epochs=4, limit_val_batches=0).fit(
        LitCausalLM(str(tiny_lm), lr=1e-3), data, ckpt_path=path, weights_only=True
    )
    assert [e.step for e in second.history] == [0, 2, 4, 6, 8]
    assert second.history[:3] == first.history


# ---- loggers ---------------------------------------------------------------------------------------------------------


def check_table(rows: list[list[str]], steps: int) -> None:
    """Both answers to all seven questions stand side by side."""
    assert len(rows) == 7
    assert rows[0] == [
        "forget",
        "What is the capital of France?",
        "The capital of France is Paris.",
        "step 0: it is PARIS, or so",
        f"step {steps}: it is PARIS, or so",
    ]
    assert [row[0] for row in rows] == ["forget"] * 4 + ["retain"] * 2 + ["other"]
    assert all(row[3].startswith("step 0") and row[4].startswith(f"step {steps}") for row in rows)


def test_a_csv_logger_gets_numbers_generations_and_curves(
    tiny_lm: Path, data: LanguageDataModule, tmp_path: Path
) -> None:
    monitor = UnlearnMonitor(generate=echo, show_answers=True)
    logger = CSVLogger(tmp_path)
    unlearn(tiny_lm, data, monitor, max_epochs=2, logger=logger)
    folder = Path(logger.log_dir)
    with (folder / "generations.csv").open(encoding="utf-8", newline="") as file:
        columns, *rows = csv.reader(file)
    assert columns == COLUMNS
    check_table(rows, steps=4)
    with (folder / "metrics.csv").open(encoding="utf-8") as file:
        logged = [(int(row["step"]), float(v)) for row in csv.DictReader(file) if (v := row["eval/forget_nll"])]
    assert logged == [(e.step, pytest.approx(e.metrics["forget_nll"])) for e in monitor.history]
    for name in ("nll_curves.svg", "accuracy_curves.svg"):
        assert "</svg>" in (folder / name).read_text(encoding="utf-8")


def test_the_module_does_not_measure_a_second_time_beside_a_monitor(
    tiny_lm: Path, data: LanguageDataModule, tmp_path: Path
) -> None:
    monitor = UnlearnMonitor(generate=echo, limit=1)
    logger = CSVLogger(tmp_path)
    module, run = unlearn(tiny_lm, data, monitor, max_epochs=2, logger=logger, limit_val_batches=1.0)
    with (Path(logger.log_dir) / "metrics.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    logged = [(int(row["step"]), float(v)) for row in rows if (v := row["eval/forget_nll"])]
    assert logged == [(e.step, pytest.approx(e.metrics["forget_nll"])) for e in monitor.history]
    assert not any(name.startswith("val/") for name in rows[0])
    (measured, *_) = run.validate(module, data, verbose=False)  # which a monitor does not watch
    assert "val/forget_nll" in measured


def test_other_callbacks_can_watch_the_numbers(tiny_lm: Path, data: LanguageDataModule) -> None:
    stop = EarlyStopping("eval/forget_nll", mode="max", stopping_threshold=0.0, check_on_train_epoch_end=True)
    monitor = UnlearnMonitor(generate=echo)
    _, run = unlearn(tiny_lm, data, monitor, stop, max_epochs=3)
    assert run.callback_metrics["eval/forget_nll"].item() == pytest.approx(monitor.history[-1].metrics["forget_nll"])
    assert [e.step for e in monitor.history] == [0, 2]  # the first epoch is above the threshold


def test_a_tensorboard_logger_gets_numbers_text_and_curves(
    tiny_lm: Path, data: LanguageDataModule, tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monitor = UnlearnMonitor(generate=lambda module, asked: ["a|b\nc"] * len(asked), show_answers=True)
    logger = TensorBoardLogger(tmp_path)
    unlearn(tiny_lm, data, monitor, max_epochs=2, logger=logger)
    logger.finalize("success")
    events = EventAccumulator(logger.log_dir).Reload()
    logged = [(event.step, event.value) for event in events.Scalars("eval/forget_nll")]
    assert logged == [(e.step, pytest.approx(e.metrics["forget_nll"])) for e in monitor.history]
    (text,) = events.Tensors("eval/generations/text_summary")
    header, _, first, *rest = text.tensor_proto.string_val[0].decode().splitlines()
    assert header == f"|{'|'.join(COLUMNS)}|"
    expected = "|forget|What is the capital of France?|The capital of France is Paris.|"
    assert first == expected + r"a\|b c|a\|b c|"
    assert len(rest) == 6
    assert set(events.Tags()["images"]) == {"eval/nll_curves", "eval/accuracy_curves"}


def records(logger: WandbLogger) -> Iterator[Any]:
    """The records of an offline run: a LevelDB log (blocks of 32 KiB) after a header of seven bytes."""
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    logger.experiment.finish()  # or the next logger of this process would go on with the run
    wandb.teardown()  # finish() returns before the file is written
    (path,) = Path(logger.save_dir).glob("wandb/offline-run-*/run-*.wandb")  # type: ignore[arg-type]
    content, at, whole = path.read_bytes(), 7, b""
    assert content[:4] == b":W&B"
    while at < len(content):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield Record.FromString(whole)
            whole = b""


def test_a_wandb_run_read_back_has_all_steps_the_answers_and_the_curves(
    tiny_lm: Path, data: LanguageDataModule, tmp_path: Path
) -> None:
    pytest.importorskip("wandb")
    from PIL import Image

    monitor = UnlearnMonitor(generate=echo, show_answers=True)
    logger = WandbLogger(offline=True, save_dir=tmp_path, project="test")
    unlearn(tiny_lm, data, monitor, max_epochs=3, logger=logger, log_every_n_steps=1)
    (files,) = tmp_path.glob("wandb/offline-run-*/files")
    history: list[dict[str, Any]] = [
        {".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in records(logger)
        if record.WhichOneof("record_type") == "history"
    ]

    logged = [(row["trainer/global_step"], row["eval/forget_nll"]) for row in history if "eval/forget_nll" in row]
    assert logged == [(e.step, pytest.approx(e.metrics["forget_nll"])) for e in monitor.history]
    assert [step for step, _ in logged] == [0, 2, 4, 6]
    assert sum("unlearn/loss" in row for row in history) == 6

    (table,) = [row["eval/generations.path"] for row in history if "eval/generations.path" in row]
    content = json.loads((files / table).read_text(encoding="utf-8"))
    assert content["columns"] == COLUMNS
    check_table(content["data"], steps=6)

    for name in ("eval/nll_curves.filenames", "eval/accuracy_curves.filenames"):
        ((path,),) = [row[name] for row in history if name in row]
        with Image.open(files / path) as picture:
            assert min(picture.size) > 300


def test_a_logger_of_another_kind_gets_the_numbers(tiny_lm: Path, data: LanguageDataModule) -> None:
    from lightning.pytorch.loggers.logger import Logger

    class Own(Logger):
        name, version = "own", 0

        def __init__(self) -> None:
            super().__init__()
            self.steps: list[int | None] = []

        def log_metrics(self, metrics: Any, step: int | None = None) -> None:
            if "eval/forget_nll" in metrics:
                self.steps.append(step)

        def log_hyperparams(self, *_: Any, **__: Any) -> None: ...

    logger = Own()
    unlearn(tiny_lm, data, UnlearnMonitor(generate=echo), logger=logger)
    assert logger.steps == [0, 2]


def test_a_fast_development_run_is_monitored(tiny_lm: Path, data: LanguageDataModule) -> None:
    monitor = UnlearnMonitor(generate=echo)
    unlearn(tiny_lm, data, monitor, fast_dev_run=True)
    assert [e.step for e in monitor.history] == [0, 1]
