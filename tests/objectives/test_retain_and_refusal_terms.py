"""Retain terms on hidden states and on a ramp, generic labels, task vectors, adaptive RMU."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from lightning_unlearn import (
    NPO,
    RMU,
    EmbeddingDifference,
    ForgetKL,
    GradDiff,
    LanguageDataModule,
    LitCausalLM,
    PromptFormat,
    Ramp,
    SimNPO,
    TaskVector,
    UnlearnMonitor,
    WhosHarryPotter,
    classifier_nll,
)
from lightning_unlearn.functional.language.whos_harry_potter import whp_labels
from lightning_unlearn.functional.objectives.task_vector import negate_task_vector
from tests.user_module import LitNet, loaders, pairs, trainer, weights

Rows = list[dict[str, Any]]
LORA = {"r": 2, "target_modules": "all-linear"}
LONG = ", which is a long way from here, as far as anyone knows"


class Sgd(LitCausalLM):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.1, momentum=0.9)


class Watch(L.Callback):
    """What was logged at each step."""

    def __init__(self, name: str) -> None:
        self.name, self.values = name, []  # type: ignore[var-annotated]

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.values.append(trainer.callback_metrics[f"unlearn/{self.name}"].item())


def lm(folder: Path, **options: Any) -> Sgd:
    torch.manual_seed(0)
    return Sgd(str(folder), **options)


def data(module: LitCausalLM, forget: Rows, retain: Rows | None, **options: Any) -> LanguageDataModule:
    return LanguageDataModule(forget, retain, prompt=PromptFormat(module.tokenizer), **({"batch_size": 2} | options))


def seeded(cls: type[LitNet] = LitNet, **options: Any) -> LitNet:
    torch.manual_seed(0)
    return cls(**options)


# ---- hidden states ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [None, LORA])
@pytest.mark.parametrize("layer", [None, r"layers\.0$"])
def test_the_distance_of_hidden_states_is_that_of_the_formula(
    layer: str | None, lora: Any, tiny_lm: Path, forget_rows: Rows, retain_rows: Rows
) -> None:
    forget_rows[0]["answer"] += LONG  # so that the retain rows are padded to it
    retain_rows[0]["answer"] += ", no doubt"
    retain_rows.append({**retain_rows[1], "answer": "Well, Lima."})

    def hidden(module: Any, batch: Any) -> Tensor:
        inputs = {k: batch[k] for k in ("input_ids", "attention_mask")}
        with torch.no_grad():
            states = module.model(**inputs, output_hidden_states=True).hidden_states
        return states[-1] if layer is None else states[1]

    start = lm(tiny_lm)
    expected: list[float] = []
    padded: list[bool] = []

    class ByHand(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, *_: Any) -> None:
            rows = batch["retain"]
            square = (hidden(module, rows) - hidden(start, rows)).square().mean(-1)
            mask = rows["attention_mask"].bool()
            padded.append(not mask.all())
            expected.append(square[mask].mean().item())

    module = lm(tiny_lm, lora=lora)
    watch = Watch("retain")
    method = GradDiff(retain=EmbeddingDifference(layer), retain_weight=3.0)
    run = trainer(method, ByHand(), watch, max_epochs=3, limit_val_batches=0)
    run.fit(module, data(module, forget_rows, retain_rows, retain_batch_size=2))
    assert any(padded)
    assert watch.values[0] == 0
    assert watch.values[-1] > 1e-8
    assert watch.values == pytest.approx(expected, rel=1e-3, abs=1e-9)
    logged = {name: value.item() for name, value in run.callback_metrics.items()}
    assert logged["unlearn/loss"] == pytest.approx(logged["unlearn/forget"] + 3 * logged["unlearn/retain"], rel=1e-5)


def test_hidden_states_come_off_the_joint_forward_pass() -> None:
    calls: list[int] = []

    class Counting(LitNet):
        def forward(self, x: Tensor) -> Tensor:
            calls.append(len(x))
            return super().forward(x)

    method = SimNPO(retain=EmbeddingDifference("net.1"), score=classifier_nll)
    trainer(method, max_steps=1).fit(Counting(), loaders())
    assert calls == [4, 8]  # the starting model on the retain rows, then all rows


def test_a_strong_term_holds_the_hidden_states() -> None:
    moved = []
    for weight in (0.0, 100.0):
        module = seeded(lr=0.01)
        x, _ = next(iter(pairs(4, seed=2)))
        before = module.net[:2](x)
        method = GradDiff(retain_weight=weight, retain=EmbeddingDifference("net.1"), score=classifier_nll)
        trainer(method, max_epochs=5).fit(module, loaders(16, 4))
        moved.append((module.net[:2](x) - before).square().mean().item())
    assert moved[1] < moved[0] / 4


@pytest.mark.parametrize(
    ("layer", "message"),
    [(None, "no output head can be found in LitNet"), ("net.9", "layer='net.9' has to name one module")],
)
def test_a_layer_that_is_not_there(layer: str | None, message: str) -> None:
    method = GradDiff(retain=EmbeddingDifference(layer), score=classifier_nll)
    module = seeded()
    before = weights(module)
    with pytest.raises(MisconfigurationException, match=message):
        trainer(method).fit(module, loaders())
    assert torch.equal(weights(module), before)


# ---- the ramp --------------------------------------------------------------------------------------------------


def test_a_ramp_is_a_straight_line() -> None:
    assert [Ramp(end=2.0).at(epoch, 4) for epoch in range(6)] == [0.0, 0.5, 1.0, 1.5, 2.0, 2.0]
    assert [Ramp(3.0, 1.0).at(epoch, 2) for epoch in range(3)] == [3.0, 2.0, 1.0]


def test_the_retain_weight_of_each_epoch() -> None:
    watch, loss, forget, retain = (Watch(name) for name in ("retain_weight", "loss", "forget", "retain"))
    method = NPO(retain_weight=Ramp(end=2.0), score=classifier_nll)
    trainer(method, watch, loss, forget, retain, max_epochs=4).fit(seeded(), loaders(8, 8))
    assert watch.values == [0.0, 0.0, 0.5, 0.5, 1.0, 1.0, 1.5, 1.5]
    sums = [f + w * r for f, w, r in zip(forget.values, watch.values, retain.values, strict=True)]
    assert loss.values == pytest.approx(sums, rel=1e-5)


def test_a_ramp_reads_retain_rows_from_the_start() -> None:
    with pytest.raises(MisconfigurationException, match=r"needs \['retain'\]"):
        trainer(NPO(retain_weight=Ramp(), score=classifier_nll)).fit(seeded(), {"forget": pairs(8, seed=1)})


def test_a_ramp_needs_an_end() -> None:
    module = seeded()
    with pytest.raises(MisconfigurationException, match="max_epochs is -1"):
        trainer(NPO(retain_weight=Ramp(), score=classifier_nll), max_epochs=-1, max_steps=2).fit(module, loaders())
    trainer(NPO(retain_weight=Ramp(epochs=3), score=classifier_nll), max_epochs=-1, max_steps=2).fit(module, loaders())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Ramp(start=-1.0), "at least 0, but got start=-1.0"),
        (lambda: Ramp(end=float("nan")), "end=nan"),
        (lambda: Ramp(epochs=0), "epochs must be at least 1, but got 0"),
        (lambda: ForgetKL(kl_weight=-1.0), "kl_weight must be at least 0, but got -1.0"),
        (lambda: ForgetKL(score=len), "reads the logits of each token"),  # type: ignore[arg-type]
        (lambda: TaskVector(alpha=0.0), "alpha must be greater than 0, but got 0.0"),
        (lambda: WhosHarryPotter("here", alpha=-5.0), "alpha must be greater than 0, but got -5.0"),
        (lambda: WhosHarryPotter("here", forget_weight=0.0), "forget_weight must be greater than 0"),
        (lambda: NPO(retain="l2"), "'nll' or 'kl', or an EmbeddingDifference, but got 'l2'"),  # type: ignore[arg-type]
    ],
)
def test_the_constructor_names_what_is_wrong(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "args",
    [
        ["retain_weight={end: 2.0, epochs: 4}", "retain={layer: net.1}"],
        ["retain_weight.end=2.0", "retain_weight.epochs=4", "retain.layer=net.1"],
    ],
)
def test_both_are_set_from_the_command_line(args: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["lightning-unlearn"])
    fragment = tmp_path / "npo.yaml"
    fragment.write_text("trainer: {callbacks+: [{class_path: lightning_unlearn.NPO, init_args: {beta: 0.5}}]}")
    words = ["--config", str(fragment), *(f"--trainer.callbacks.{arg}" for arg in args)]
    words += ["--trainer.logger=false", "--trainer.accelerator=cpu", "--trainer.enable_checkpointing=false"]
    cli = LightningCLI(LitNet, L.LightningDataModule, run=False, save_config_callback=None, args=words)
    (method,) = [c for c in cli.trainer.callbacks if isinstance(c, NPO)]  # type: ignore[attr-defined]
    assert method.retain_weight == Ramp(0.0, 2.0, 4)
    assert method.retain == EmbeddingDifference("net.1")


# ---- ForgetKL --------------------------------------------------------------------------------------------------


def test_forget_kl_is_its_formula() -> None:
    x, y = next(iter(pairs(4, seed=1)))
    module, plain, start = seeded(), seeded(), seeded()
    method = ForgetKL(kl_weight=0.5, forget_weight=2.0, retain_weight=0.0, score=classifier_nll)
    trainer(method, max_epochs=3).fit(module, {"forget": pairs(4, seed=1)})
    optimizer = plain.configure_optimizers()
    reference = start(x).detach().log_softmax(-1)
    for _ in range(3):
        log_p = plain(x).log_softmax(-1)
        divergence = (reference.exp() * (reference - log_p)).sum(-1).mean()
        optimizer.zero_grad()
        (2 * (-nn.functional.nll_loss(log_p, y) + 0.5 * divergence)).backward()
        optimizer.step()
    torch.testing.assert_close(weights(module), weights(plain), atol=1e-6, rtol=0)


def test_forget_kl_stops_at_max_forget_nll() -> None:
    run = trainer(ForgetKL(max_forget_nll=3.0, score=classifier_nll), max_epochs=1000)
    run.fit(seeded(lr=0.5), loaders())
    assert run.current_epoch < 100


# ---- Who's Harry Potter ----------------------------------------------------------------------------------------


@pytest.fixture
def reinforced(tiny_lm: Path, tmp_path: Path) -> Path:
    """A model of the same shape with other weights, as a folder and as a checkpoint."""
    module = lm(tiny_lm)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    module.save_pretrained(tmp_path / "reinforced")
    torch.save({"state_dict": module.state_dict()}, tmp_path / "reinforced.ckpt")
    return tmp_path / "reinforced"


def generic_labels(tiny_lm: Path, reinforced: Path, batch: Any, alpha: float) -> Tensor:
    logits = []
    for folder in (tiny_lm, reinforced):
        with torch.no_grad():
            model = lm(folder).eval()
            logits.append(model(batch["input_ids"], batch["attention_mask"]).logits[:, :-1])
    generic = whp_labels(logits[0].flatten(0, 1), logits[1].flatten(0, 1), alpha=alpha).view(len(logits[0]), -1)
    return torch.where(batch["labels"][:, 1:] == -100, -100, generic)


@pytest.mark.parametrize("lora", [None, LORA])
@pytest.mark.parametrize("suffix", ["", ".ckpt"])
def test_forget_rows_get_generic_labels(
    suffix: str, lora: Any, tiny_lm: Path, reinforced: Path, forget_rows: Rows, retain_rows: Rows
) -> None:
    forget_rows[0]["answer"] += LONG
    module = lm(tiny_lm, lora=lora)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    method = WhosHarryPotter(f"{reinforced}{suffix}", alpha=3.0)
    seen: list[Tensor] = []

    class Compare(L.Callback):
        def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
            for name, value in module.state_dict().items():  # the reinforced weights are out again
                assert torch.equal(value, before[name]), name

        def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, *_: Any) -> None:
            rows = batch["forget"]
            new = method.relabelled(rows)["labels"]
            assert torch.equal(new[:, 1:], generic_labels(tiny_lm, reinforced, rows, alpha=3.0))
            assert torch.equal(new[:, 1:] == -100, rows["labels"][:, 1:] == -100)
            seen.append((new[:, 1:] != rows["labels"][:, 1:]).sum())

    watch = Watch("forget")
    run = trainer(method, Compare(), watch, max_epochs=6, limit_val_batches=0)
    run.fit(module, data(module, forget_rows, retain_rows))
    assert sum(seen) > 0
    if lora is None:  # fresh adapters take longer
        assert sum(watch.values[-2:]) < sum(watch.values[:2])  # the new labels are learned
    assert "unlearn/forget_nll" not in run.callback_metrics


def test_the_labels_are_in_the_checkpoint(
    tiny_lm: Path, reinforced: Path, forget_rows: Rows, retain_rows: Rows, tmp_path: Path
) -> None:
    def fit(epochs: int, path: str = str(reinforced), **options: Any) -> tuple[Sgd, L.Trainer]:
        module = lm(tiny_lm)
        run = trainer(WhosHarryPotter(path), max_epochs=epochs, limit_val_batches=0)
        run.fit(module, data(module, forget_rows, retain_rows), **options)
        return module, run

    whole, _ = fit(4)
    _, half = fit(2)
    half.save_checkpoint(tmp_path / "half.ckpt")
    resumed, _ = fit(4, path="no longer here", ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert torch.equal(weights(resumed), weights(whole))


def test_reinforced_models_that_do_not_fit(
    tiny_lm: Path, reinforced: Path, forget_rows: Rows, retain_rows: Rows, tmp_path: Path
) -> None:
    state = torch.load(f"{reinforced}.ckpt")["state_dict"]
    norm = "model.model.norm.weight"
    torch.save({"state_dict": {k: v for k, v in state.items() if k != norm}}, tmp_path / "short.ckpt")
    torch.save({"state_dict": state | {norm: torch.ones(5)}}, tmp_path / "small.ckpt")
    torch.save({"state_dict": lm(tiny_lm, lora=LORA).state_dict()}, tmp_path / "lora.ckpt")
    for name, error, message in [
        ("short.ckpt", ValueError, "for 'model.model.norm.weight' of shape .* it has 0 tensors"),
        ("small.ckpt", ValueError, r"it has shape \(5,\)"),
        ("lora.ckpt", ValueError, "holds adapters"),
        ("nowhere", FileNotFoundError, "neither a Lightning checkpoint nor a folder"),
    ]:
        module = lm(tiny_lm)
        before = weights(module)
        run = trainer(WhosHarryPotter(str(tmp_path / name)), limit_val_batches=0)
        with pytest.raises(error, match=message):
            run.fit(module, data(module, forget_rows, retain_rows))
        assert torch.equal(weights(module), before)


def test_labels_are_kept_by_index(reinforced: Path) -> None:
    with pytest.raises(MisconfigurationException, match=r"stable integer 'index'.* but got list"):
        trainer(WhosHarryPotter(str(reinforced))).fit(seeded(), loaders())


# ---- task vectors ----------------------------------------------------------------------------------------------


def finetuned(module: L.LightningModule, rows: LanguageDataModule, epochs: int = 3) -> L.LightningModule:
    """The module after the same steps without an edit."""

    class NoEdit(TaskVector):
        def edit(self, module: L.LightningModule) -> None:
            self._finetuned = {}

    trainer(NoEdit(), max_epochs=epochs, limit_val_batches=0).fit(module, rows)
    return module


def test_the_edit_is_the_formula(tiny_lm: Path, forget_rows: Rows, retain_rows: Rows) -> None:
    module, start = lm(tiny_lm), lm(tiny_lm)
    run = trainer(TaskVector(alpha=0.7), UnlearnMonitor(), max_epochs=3, limit_val_batches=0)
    run.fit(module, data(module, forget_rows, retain_rows))
    tuned = finetuned(lm(tiny_lm), data(module, forget_rows, retain_rows))
    expected = negate_task_vector(dict(start.named_parameters()), dict(tuned.named_parameters()), alpha=0.7)
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter, expected[name]), name
    history = run.callbacks[1].history  # type: ignore[attr-defined]
    assert history[1].metrics["forget_nll"] < history[0].metrics["forget_nll"]  # fine-tuned in the first epoch


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("limit", [{"max_epochs": 2}, {"max_epochs": -1, "max_steps": 3}])
def test_the_monitor_and_the_last_files_have_the_edited_weights(
    limit: dict[str, int], first: bool, tiny_lm: Path, forget_rows: Rows, tmp_path: Path
) -> None:
    module, monitor = lm(tiny_lm), UnlearnMonitor()
    saving = ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=1)
    callbacks = [saving, TaskVector(), monitor] if first else [monitor, TaskVector(), saving]
    rows = data(module, forget_rows, None)
    run = trainer(*callbacks, enable_checkpointing=True, limit_val_batches=0, **limit)
    run.fit(module, rows)
    after = monitor.evaluate(run, module).metrics
    assert monitor.history[-1].metrics == after
    for path in (tmp_path / "last.ckpt", saving.best_model_path):
        state = torch.load(path, weights_only=True)["state_dict"]
        for name, value in module.state_dict().items():
            assert torch.equal(state[name], value), name
    module.save_pretrained(tmp_path / "export")
    assert torch.equal(weights(lm(tmp_path / "export")), weights(module))


def test_with_adapters_the_merged_weights_obey_the_formula(tiny_lm: Path, forget_rows: Rows, tmp_path: Path) -> None:
    module = lm(tiny_lm, lora=LORA)
    rows = data(module, forget_rows, None)
    tuned = finetuned(lm(tiny_lm, lora=LORA), rows)
    trainer(TaskVector(alpha=0.3), max_epochs=3, limit_val_batches=0).fit(module, rows)
    tuned.save_pretrained(tmp_path / "tuned")  # type: ignore[operator]
    module.save_pretrained(tmp_path / "edited")
    start, merged, edited = (dict(lm(f).named_parameters()) for f in (tiny_lm, tmp_path / "tuned", tmp_path / "edited"))
    moved = 0.0
    for name, value in negate_task_vector(start, merged, alpha=0.3).items():
        torch.testing.assert_close(edited[name], value, atol=1e-6, rtol=0)
        moved = max(moved, (edited[name] - start[name]).abs().max().item())
    assert moved > 1e-4


def test_a_resumed_run_with_adapters_goes_on_from_the_finetuned_weights(
    tiny_lm: Path, forget_rows: Rows, tmp_path: Path
) -> None:
    def fit(epochs: int, **options: Any) -> tuple[Sgd, L.Trainer]:
        module = lm(tiny_lm, lora=LORA)
        run = trainer(TaskVector(alpha=0.3), max_epochs=epochs, limit_val_batches=0)
        run.fit(module, data(module, forget_rows, None), **options)
        return module, run

    whole, _ = fit(4)
    _, half = fit(2)
    half.save_checkpoint(tmp_path / "half.ckpt")
    resumed, _ = fit(4, ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert torch.equal(weights(resumed), weights(whole))


def test_adapters_that_can_not_be_scaled(tiny_lm: Path, forget_rows: Rows) -> None:
    trained = lm(tiny_lm, lora=LORA)
    for name, parameter in trained.named_parameters():
        if ".lora_B." in name:
            nn.init.ones_(parameter)
    mixed = lm(tiny_lm, lora=LORA)
    mixed.model.base_model.model.model.norm.weight.requires_grad_(True)
    for module, message in ((trained, "adapters have been trained already"), (mixed, "norm.weight' trains beside")):
        with pytest.raises(MisconfigurationException, match=message):
            trainer(TaskVector(), limit_val_batches=0).fit(module, data(module, forget_rows, None))


def test_frozen_weights_stay_and_statistics_go_back() -> None:
    module = seeded()
    module.net.insert(1, nn.BatchNorm1d(16))
    module.net[0].requires_grad_(False)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    trainer(TaskVector(alpha=3.0, score=classifier_nll), max_epochs=3).fit(module, {"forget": pairs(16, seed=1)})
    moved = {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"net.1.weight", "net.1.bias", "net.4.weight", "net.4.bias"}


def test_a_run_that_is_stopped_is_edited_and_says_so(tmp_path: Path) -> None:
    class Stop(L.Callback):
        def on_train_epoch_end(self, trainer: L.Trainer, *_: Any) -> None:
            trainer.should_stop = trainer.current_epoch == 1

    module, whole = seeded(), seeded()
    with pytest.warns(UserWarning, match="stopped before max_epochs"):
        trainer(TaskVector(score=classifier_nll), Stop(), max_epochs=9).fit(module, loaders())
    trainer(TaskVector(score=classifier_nll), max_epochs=2).fit(whole, loaders())
    assert torch.equal(weights(module), weights(whole))

    stopper = EarlyStopping("unlearn/loss", min_delta=1e9, patience=1)
    with pytest.warns(UserWarning, match="stopped before max_epochs"):
        trainer(stopper, TaskVector(score=classifier_nll), max_epochs=9).fit(seeded(), loaders())


# ---- adaptive RMU ----------------------------------------------------------------------------------------------


def test_the_target_of_adaptive_rmu_is_a_multiple_of_the_starting_norm(
    tiny_lm: Path, forget_rows: Rows, retain_rows: Rows, tmp_path: Path
) -> None:
    forget_rows[0]["answer"] += LONG
    norms: list[float] = []

    class ByHand(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Any, *_: Any) -> None:
            rows = batch["forget"]
            with torch.no_grad():
                states = module.model(rows["input_ids"], rows["attention_mask"], output_hidden_states=True)
            lengths = states.hidden_states[1].norm(dim=-1)
            per_row = [length[mask].mean() for length, mask in zip(lengths, rows["attention_mask"].bool(), strict=True)]
            norms.append(torch.stack(per_row).mean().item())

    def fit(epochs: int, **options: Any) -> tuple[RMU, L.Trainer, Sgd]:
        module = lm(tiny_lm)
        method = RMU(layer="model.layers.0", steering=5.0, retain_weight=1.0, adaptive=True)
        run = trainer(method, ByHand(), max_epochs=epochs, limit_val_batches=0)
        run.fit(module, data(module, forget_rows, retain_rows), **options)
        return method, run, module

    method, _, whole = fit(2)
    assert method.control is not None
    assert method.control.norm().item() == pytest.approx(5 * norms[0], rel=1e-5)
    _, run, _ = fit(1)
    run.save_checkpoint(tmp_path / "half.ckpt")
    again, _, resumed = fit(2, ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert again.control is not None
    assert torch.equal(again.control, method.control)
    assert torch.equal(weights(resumed), weights(whole))
