"""The resume contract: exactly one of `begin` and `restore` is called, when weights and reference are there."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.utils._pytree import keystr, tree_flatten_with_path
from torch.utils.data import DataLoader, TensorDataset

import lightning_unlearn
from lightning_unlearn import (
    DUCK,
    SAM,
    SNIP,
    SOUL,
    SSD,
    UNSIR,
    WAGLE,
    BoundaryExpand,
    BoundaryShrink,
    CFk,
    CurvatureRegularization,
    EUk,
    FisherForgetting,
    ForgetRetainDataModule,
    GradDiff,
    GradientMask,
    GradientPenalty,
    InfluenceUnlearning,
    LanguageDataModule,
    LayerMask,
    MagnitudeMask,
    QuantizationAware,
    RandomizedSmoothing,
    RandomMask,
    Retrain,
    Rewind,
    SalUn,
    Sophia,
    StopWhenForgotten,
    UnlearnCallback,
    Wanda,
    classifier_nll,
)
from lightning_unlearn.core.resume import ResumableCallback
from tests.core.test_callback import METHODS
from tests.helpers import same, trainer
from tests.tiny_runs import CASES, RAGGED, lm
from tests.user_module import DictNet, LitNet, indexed, loaders, pairs, seeded


class SophiaNet(LitNet):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return Sophia(self.parameters())


class Case(NamedTuple):
    """A callback, the epochs of the new run, and what it is tried on; takes the folder of the tiny language model."""

    make: Callable[[Path], ResumableCallback]
    epochs: int = 1
    module: Callable[[Path], Any] = lambda _: seeded()
    data: Callable[[], Any] = loaders
    beside: Callable[[], list[Any]] = list


def graddiff() -> list[Any]:
    return [GradDiff(score=classifier_nll)]


def rows() -> ForgetRetainDataModule:
    return ForgetRetainDataModule(indexed(8, 1), indexed(8, 2), {"heldout": indexed(8, 3)})


def without_a_class() -> dict[str, DataLoader]:
    x, y = pairs(16, seed=2).dataset.tensors  # type: ignore[attr-defined]
    return {"retain": DataLoader(TensorDataset(x[y != 1], y[y != 1]), batch_size=4)}


TABLE: dict[str, Case] = {
    **{name: Case(lambda _, make=make: make()) for name, make in METHODS.items()},
    **{
        f"{name}-LM": Case(case.make, 1, lm, lambda: LanguageDataModule(RAGGED[:4], RAGGED[4:], batch_size=2))
        for name, case in CASES.items()
    },
    "BoundaryShrink": Case(lambda _: BoundaryShrink(epsilon=1.0, clip=None)),
    "BoundaryExpand": Case(lambda _: BoundaryExpand()),
    "DUCK": Case(lambda _: DUCK(target_accuracy=None)),
    "UNSIR": Case(lambda _: UNSIR(1, noise_rows=6, noise_steps=5), 2, data=without_a_class),
    "CFk": Case(lambda _: CFk(1)),
    "EUk": Case(lambda _: EUk(1)),
    "Retrain": Case(lambda _: Retrain(score=classifier_nll)),
    "SOUL": Case(lambda _: SOUL(), module=lambda _: seeded(SophiaNet), beside=graddiff),
    "Rewind": Case(lambda _: Rewind(), 1, lambda _: seeded(DictNet), rows, graddiff),
    **{
        kind.__name__: Case(lambda _, kind=kind: kind(density=0.5), beside=graddiff)
        for kind in (GradientMask, MagnitudeMask, RandomMask, SalUn, SNIP, WAGLE, Wanda)
    },
    "StopWhenForgotten": Case(lambda _: StopWhenForgotten(target=50.0), beside=graddiff),
    "LayerMask": Case(lambda _: LayerMask(r"net\.3"), beside=graddiff),
    **{
        kind.__name__: Case(lambda _, kind=kind: kind(), beside=graddiff)
        for kind in (SAM, CurvatureRegularization, GradientPenalty, QuantizationAware, RandomizedSmoothing)
    },
}
EDITS = {
    "SSD": lambda: SSD(),
    "FisherForgetting": lambda: FisherForgetting(),
    "InfluenceUnlearning": lambda: InfluenceUnlearning(damping=1.0, score=classifier_nll),
}
ELSEWHERE = {"Amnesiac", "AmnesiacLedger"}  # one reads what the other wrote: tests/classification/test_amnesiac.py


def watched(callback: ResumableCallback) -> list[tuple[str, bool, dict[str, torch.Tensor]]]:
    """Each call of begin and restore: whether the reference was complete, and the weights."""
    calls: list[Any] = []
    inside: list[str] = []
    for name in ("begin", "restore"):
        real = getattr(callback, name)

        def call(*arguments: Any, name: str = name, real: Any = real) -> None:
            state = {key: value.clone() for key, value in arguments[-1].state_dict().items()}
            if not inside:  # one of them may be written with the other
                calls.append((name, has_reference(callback), state))
            inside.append(name)
            real(*arguments)
            inside.pop()

        setattr(callback, name, call)
    return calls


def has_reference(callback: ResumableCallback) -> bool:
    if not isinstance(callback, UnlearnCallback):
        return True
    needs, snapshot = callback.needs, callback.snapshot is not None
    cached = callback.caches.keys() >= set(needs.reference_nll)
    return (snapshot or not (needs.snapshot or needs.reference_logits)) and (snapshot or cached)


def of_before(checkpoint: dict[str, Any], start: dict[str, torch.Tensor]) -> list[str]:
    """Names of values in a checkpoint that only the model before unlearning can have given."""
    names = []
    for callback, state in checkpoint["callbacks"].items():
        for path, leaf in tree_flatten_with_path(state)[0]:
            if not isinstance(leaf, torch.Tensor):
                continue
            name = f"{callback}{keystr(path)}"
            weight = any(leaf.shape == w.shape and torch.equal(leaf, w) for w in start.values() if w.numel() > 1)
            if weight or any(part in name for part in ("snapshot", "caches", "centroids", "noise", "row", "finetuned")):
                names.append(name)
    return names


def fit(case: Case, callback: Any, folder: Path, epochs: int, path: Path, **options: Any) -> tuple[L.Trainer, Any]:
    module = case.module(folder)
    run = trainer(*case.beside(), callback, max_epochs=epochs, limit_val_batches=0, default_root_dir=path)
    run.fit(module, case.data(), **options)
    return run, module


@pytest.mark.parametrize("name", TABLE)
def test_a_new_run_begins_and_a_resumed_one_restores(name: str, tiny_lm: Path, tmp_path: Path) -> None:
    case = TABLE[name]
    new, resumed = case.make(tiny_lm), case.make(tiny_lm)
    start = case.module(tiny_lm).state_dict()
    calls = watched(new)
    run, half = fit(case, new, tiny_lm, case.epochs, tmp_path)
    run.save_checkpoint(tmp_path / "ended.ckpt")
    ended = torch.load(tmp_path / "ended.ckpt", weights_only=True)
    assert of_before(ended, start) == []
    new.keep_reference = True
    run.save_checkpoint(tmp_path / "half.ckpt")
    if ended["lightning_unlearn_run"]["left_out"]:
        assert of_before(torch.load(tmp_path / "half.ckpt", weights_only=True), start)
        with pytest.raises(MisconfigurationException, match="keep_reference=True"):
            fit(case, case.make(tiny_lm), tiny_lm, case.epochs + 1, tmp_path, ckpt_path=tmp_path / "ended.ckpt")
    ((called, referenced, weights),) = calls
    assert called == "begin"
    assert referenced
    assert same(weights, start)

    calls = watched(resumed)
    fit(case, resumed, tiny_lm, case.epochs + 1, tmp_path, ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    ((called, referenced, weights),) = calls
    assert called == "restore"
    assert referenced
    assert same(weights, half.state_dict())


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_begins_and_is_made_once(name: str, tmp_path: Path) -> None:
    case, edit = Case(lambda _: EDITS[name]()), EDITS[name]()
    calls = watched(edit)
    fit(case, edit, tmp_path, 1, tmp_path)
    assert [called for called, _, _ in calls] == ["begin"]


def test_every_public_callback_that_resumes_is_in_the_table() -> None:
    classes = [getattr(lightning_unlearn, name) for name in lightning_unlearn.__all__]
    public = {
        cls.__name__
        for cls in classes
        if inspect.isclass(cls)
        and issubclass(cls, ResumableCallback)
        and not inspect.isabstract(cls)
        and not cls.__module__.startswith("lightning_unlearn.diffusion.")  # a file each in tests/diffusion
    }
    assert {type(case.make(Path())).__name__ for case in TABLE.values()} | {*EDITS, *ELSEWHERE} == public


def test_no_callback_goes_around_the_contract() -> None:
    """State arrives in ``restore`` alone; these two refuse to edit twice, and take an empty state for none."""
    classes, own = [ResumableCallback], set()
    while classes:
        cls = classes.pop()
        classes += cls.__subclasses__()
        if "load_state_dict" in vars(cls) and cls.__module__.startswith("lightning_unlearn."):
            own.add(cls.__name__)
    assert own == {"ResumableCallback", "Edit", "WeightMask"}
