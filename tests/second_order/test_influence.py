"""Influence unlearning is an edit: a Newton step, and no update."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_unlearn import InfluenceUnlearning, LanguageDataModule, LitCausalLM, causal_lm_nll, classifier_nll
from lightning_unlearn.cli.fit import UnlearnCLI
from lightning_unlearn.core.rows import row_loader
from tests.helpers import Recorder, same, trainer, weights
from tests.user_module import LitNet, loaders, pairs, seeded

ROOT = Path(__file__).parents[2]


class LeastSquares(LitNet):
    def __init__(self, x: Tensor, y: Tensor) -> None:
        super().__init__()
        self.net = nn.Linear(6, 1, bias=False, dtype=torch.float64)  # type: ignore[assignment]
        with torch.no_grad():
            self.net.weight.copy_(torch.linalg.lstsq(x, y).solution[None])


def squared_error(module: Any, batch: Any) -> Tensor:
    x, y = batch
    return (module(x).squeeze(1) - y).square() / 2


def regression() -> tuple[Tensor, Tensor, Tensor]:
    """100 rows, of which the first 5 are to be forgotten, and the solution on the other 95."""
    torch.manual_seed(0)
    x, y = torch.randn(100, 6, dtype=torch.float64), torch.randn(100, dtype=torch.float64)
    return x, y, torch.linalg.lstsq(x[5:], y[5:]).solution


def rows(x: Tensor, y: Tensor, batch_size: int = 8) -> DataLoader:
    return DataLoader(TensorDataset(x, y), batch_size=batch_size)


def test_least_squares_with_the_retain_hessian_is_the_retrained_model() -> None:
    x, y, retrained = regression()
    module = LeastSquares(x, y)
    apart = (module.net.weight[0] - retrained).norm()
    edit = InfluenceUnlearning("cg", damping=1e-12, samples=None, tolerance=1e-12, score=squared_error)
    edit.edit(module, rows(x[:5], y[:5]), rows(x[5:], y[5:]))
    assert apart > 1e-3
    assert (module.net.weight[0] - retrained).norm() < 1e-9


def test_the_full_hessian_misses_it_by_the_share_of_forgotten_rows() -> None:
    x, y, retrained = regression()
    module = LeastSquares(x, y)
    apart = (module.net.weight[0] - retrained).norm()
    edit = InfluenceUnlearning("cg", damping=1e-12, samples=None, tolerance=1e-12, score=squared_error)
    edit.edit(module, rows(x[:5], y[:5]), rows(x, y))
    missed = (module.net.weight[0] - retrained).norm() / apart
    assert 0.01 < missed < 0.2


def doubled() -> LitNet:
    return seeded().double()


def numbers(count: int, seed: int) -> DataLoader:
    x, y = pairs(count, seed).dataset.tensors  # type: ignore[attr-defined]
    return DataLoader(TensorDataset(x.double(), y), batch_size=4)


@pytest.mark.parametrize("block_size", [1, 100, 1 << 24])
def test_woodfisher_is_the_step_with_the_dense_fisher_matrix(block_size: int) -> None:
    module, forget, retain = doubled(), numbers(8, 1), numbers(12, 2)
    parameters = list(module.parameters())

    def gradient(x: Tensor, y: Tensor) -> Tensor:
        loss = nn.functional.cross_entropy(module(x), y, reduction="sum")
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])

    samples = torch.stack([gradient(x[None], y[None]) for x, y in retain.dataset])
    fisher = 0.1 * torch.eye(samples.shape[1]) + samples.T @ samples / 12
    x, y = forget.dataset.tensors  # type: ignore[attr-defined]
    expected = weights(module) + 0.5 * torch.linalg.solve(fisher, gradient(x, y) / 12)
    InfluenceUnlearning(damping=0.1, samples=None, step_size=0.5, block_size=block_size, score=classifier_nll).edit(
        module, forget, retain
    )
    torch.testing.assert_close(weights(module), expected)


@pytest.mark.parametrize("solver", ["woodfisher", "cg"])
def test_fit_makes_the_edit_and_no_update(solver: Any, tmp_path: Path) -> None:
    options: dict[str, Any] = {"solver": solver, "damping": 2.0, "samples": 8, "score": classifier_nll}
    module, alone = doubled(), doubled()
    data = {"forget": numbers(8, 1), "retain": numbers(12, 2)}
    run = trainer(InfluenceUnlearning(**options), enable_checkpointing=True, default_root_dir=tmp_path, max_epochs=3)
    run.fit(module, data)
    assert run.global_step == 0
    before = weights(alone)
    InfluenceUnlearning(**options).edit(alone, data["forget"], data["retain"])
    assert same(module, alone)
    assert not torch.equal(weights(alone), before)
    assert module.training
    assert all(p.grad is None for p in alone.parameters())

    (path,) = tmp_path.rglob("edited.ckpt")
    assert torch.equal(weights(LitNet.load_from_checkpoint(path)), weights(module).float())
    with pytest.raises(MisconfigurationException, match="edited by InfluenceUnlearning already"):
        trainer(InfluenceUnlearning(**options)).fit(doubled(), data, ckpt_path=path)


def forget_nll(run: L.Trainer, module: L.LightningModule) -> float:
    loader = row_loader(run.train_dataloader, "forget")
    assert loader is not None
    with torch.no_grad():
        return sum(causal_lm_nll(module, batch).sum().item() for batch in loader)


@pytest.mark.parametrize("solver", ["woodfisher", "cg"])
def test_a_language_model_forgets(
    solver: Any, tiny_lm: Path, forget_rows: list[dict[str, Any]], retain_rows: list[dict[str, Any]]
) -> None:
    module = LitCausalLM(str(tiny_lm))
    data = LanguageDataModule(forget_rows, retain_rows, batch_size=2)
    edit = InfluenceUnlearning(solver, damping=200.0, block_size=5000, iterations=30, tolerance=1e-3)
    nll = Recorder(on_train_start=forget_nll, on_train_end=forget_nll)
    trainer(edit, nll, limit_val_batches=0).fit(module, data)
    before, after = nll.values
    assert after > before + 0.01


def test_the_command_line_edits_and_saves(tiny_lm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    words = (ROOT / "callbacks/second_order/influence_unlearning.yaml").read_text().splitlines()[0].split()[3:]
    options = [f"--model.init_args.model={tiny_lm}", f"--trainer.default_root_dir={tmp_path}"]
    quiet = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.logger=false"]
    cli = UnlearnCLI(["fit", *words, *options, *quiet])
    assert cli.trainer.global_step == 0
    (path,) = tmp_path.rglob("edited.ckpt")
    assert not same(LitCausalLM.load_from_checkpoint(path), LitCausalLM(str(tiny_lm)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": "lu"}, "solver must be"),
        ({"damping": 0.0}, "damping must be greater than 0, but got 0.0"),
        ({"samples": 0}, "samples must be at least 1"),
        ({"step_size": -1.0}, "step_size must be greater than 0"),
        ({"block_size": 0}, "block_size must be at least 1"),
        ({"iterations": 0}, "iterations must be at least 1"),
    ],
)
def test_a_wrong_argument_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InfluenceUnlearning(**options)


class Stream(IterableDataset):
    """Ends for good."""

    def __init__(self) -> None:
        self.rows = iter(pairs(8, 1).dataset)  # type: ignore[call-overload]

    def __iter__(self) -> Any:
        return self.rows


@pytest.mark.parametrize(
    ("options", "data", "message"),
    [
        ({"max_epochs": 0}, loaders, "max_epochs=0 ends the run before that"),
        ({"max_steps": 0}, loaders, "max_steps=0"),
        ({"min_epochs": 1}, loaders, "because of min_epochs or min_steps"),
        ({}, lambda: {"forget": pairs(8, 1)}, r"reads the \['retain'\] rows"),
        ({}, lambda: {"forget": DataLoader(Stream()), "retain": pairs(8, 2)}, "gave other rows than the first time"),
        ({"strategy": ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=1)}, loaders, "one device or"),
    ],
)
def test_a_run_that_can_not_work_is_refused(options: dict[str, Any], data: Any, message: str) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        trainer(InfluenceUnlearning(damping=1.0, score=classifier_nll), **options).fit(LitNet(), data())


def test_a_step_that_is_not_finite_leaves_the_weights() -> None:
    module = LitNet()
    before = weights(module)
    broken = pairs(8, 1)
    broken.dataset.tensors[0].fill_(float("nan"))  # type: ignore[attr-defined]
    with pytest.raises(FloatingPointError, match="Raise damping"):
        InfluenceUnlearning(score=classifier_nll).edit(module, broken, pairs(8, 2))
    assert torch.equal(weights(module), before)
