"""Runs on modules of other people: heads defined first, single rows, epochs that are no pass, rules that stop."""

from __future__ import annotations

import copy
import re
import warnings
from functools import partial
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_unlearn import (
    DUCK,
    SCRUB,
    UNSIR,
    BadTeacher,
    BoundaryExpand,
    CFk,
    ClassificationDataModule,
    EUk,
    FineTune,
    FisherForgetting,
    ForgetRetainDataModule,
    GradDiff,
    GradientAscent,
    LitClassifier,
    NegGradPlus,
    RandomLabels,
    RelearningAttack,
    Retrain,
    UGradSL,
    UGradSLPlus,
    binary_nll,
    classifier_nll,
    split_rows,
    training_step_loss,
)
from tests.helpers import Recorder, same, trainer, weights


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def labelled(rows: int, classes: int = 3, width: int = 5) -> TensorDataset:
    return TensorDataset(numbers(rows, width), torch.arange(rows) % classes)


class HeadFirst(L.LightningModule):
    """A module that defines its head before its body, and a projection that does not give the logits after it."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.classifier = nn.Linear(8, classes)
        self.body = nn.Sequential(nn.Linear(5, 8), nn.ReLU())
        self.projection = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        features = self.body(x)
        self.projection(features)
        return self.classifier(features)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05)


def pair(forget: int = 8, retain: int = 16, **options: Any) -> ForgetRetainDataModule:
    return ForgetRetainDataModule(labelled(forget), labelled(retain), **{"batch_size": 4, **options})


# ---- the head ----------------------------------------------------------------------------------------------------


def test_duck_takes_the_input_of_the_layer_that_gives_the_logits() -> None:
    module, method = HeadFirst(), DUCK(target_accuracy=None)
    x, y = labelled(16).tensors
    features = module.body(x).detach()
    trainer(method, max_steps=1).fit(module, pair(16, 16, epoch="retain"))
    expected = torch.stack([features[y == label].mean(0) for label in range(3)])
    assert method.centroids is not None
    torch.testing.assert_close(method.centroids, expected)


def test_a_layer_has_to_be_named_where_none_gives_the_logits() -> None:
    class Scaled(HeadFirst):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    module = Scaled()
    before = copy.deepcopy(module)
    with pytest.raises(MisconfigurationException, match=r"no such layer of Scaled does.*DUCK\(layer=\.\.\.\)"):
        trainer(DUCK()).fit(module, pair())
    assert same(module, before)
    trainer(DUCK(layer="body")).fit(module, pair())


def test_a_head_that_is_not_defined_last_is_named_in_the_error() -> None:
    module = HeadFirst()
    before = copy.deepcopy(module)
    with pytest.raises(MisconfigurationException, match=r"'projection'.*Pass head='classifier', which does"):
        trainer(BoundaryExpand()).fit(module, pair())
    assert same(module, before)
    trainer(BoundaryExpand(head="classifier")).fit(module, pair())


@pytest.mark.parametrize("method", [DUCK, BoundaryExpand, partial(UNSIR, 0)])
def test_methods_of_one_label_a_row_refuse_several(method: Any) -> None:
    module = HeadFirst()
    before = copy.deepcopy(module)
    rows = TensorDataset(numbers(8, 5), torch.ones(8, 3))
    data = ForgetRetainDataModule(rows, rows, batch_size=4)
    with pytest.raises(MisconfigurationException, match=r"these \d+ rows have \d+ labels\. Take UGradSL"):
        trainer(method(score=binary_nll), max_epochs=2).fit(module, data)
    assert same(module, before)


def test_the_head_may_be_parametrized() -> None:
    module = HeadFirst()
    nn.utils.parametrizations.weight_norm(module.classifier)
    before = copy.deepcopy(module)
    method = BoundaryExpand(head="classifier")
    trainer(method).fit(module, pair())
    pairs = zip(module.classifier.parameters(), before.classifier.parameters(), strict=True)
    assert not any(torch.equal(now, then) for now, then in pairs)


@pytest.mark.parametrize("method", [CFk, EUk])
def test_blocks_that_are_defined_last_but_not_called_last_are_refused(method: Any) -> None:
    class Swapped(HeadFirst):
        def forward(self, x: Tensor) -> Tensor:
            return self.classifier(self.body(x))

    module = Swapped()
    del module.projection
    before = copy.deepcopy(module)
    with pytest.raises(
        MisconfigurationException, match=r"\['body'\], which Swapped defines last.*\['classifier'\].*layers="
    ):
        trainer(method(k=1)).fit(module, pair(epoch="retain"))
    assert same(module, before)
    trainer(method(layers="classifier")).fit(module, pair(epoch="retain"))
    assert torch.equal(module.body[0].weight, before.body[0].weight)
    assert not torch.equal(module.classifier.weight, before.classifier.weight)


def test_fisher_forgetting_replaces_the_row_of_the_output_layer_alone() -> None:
    """The hidden layer has as many units as there are classes."""
    torch.manual_seed(0)
    module = LitClassifier(nn.Sequential(nn.Linear(5, 3), nn.ReLU(), nn.Linear(3, 3)))
    before = copy.deepcopy(module)
    run = partial(trainer, limit_val_batches=0)
    run(FisherForgetting(alpha=1e-12, forget_class=1)).fit(module, pair())
    moved = {n: (p - dict(before.named_parameters())[n]).abs() > 1e-3 for n, p in module.named_parameters()}
    assert moved["model.2.weight"][1].all()
    assert not moved["model.0.weight"].any()
    run(FisherForgetting(alpha=1e-12, forget_class=1, parity="released")).fit(before, pair())
    assert before.model[0].weight[1].abs().max() < 0.1  # by its shape, the first layer counts as an output layer too


# ---- a single row and batch normalization ------------------------------------------------------------------------


class Normed(HeadFirst):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU())


TAILS: dict[str, Any] = {
    "GradientAscent": lambda: GradientAscent(score=classifier_nll),
    "own loss": lambda: GradDiff(score=training_step_loss),
    "SCRUB": SCRUB,
    "FineTune": FineTune,
    "Retrain": Retrain,
    "NegGradPlus": lambda: NegGradPlus(bn_mode="train"),
    "RandomLabels": lambda: RandomLabels(schedule="forget_then_retain"),
    "BadTeacher": BadTeacher,
}


@pytest.mark.filterwarnings("ignore:An epoch of", "ignore:SCRUB makes")
@pytest.mark.parametrize("method", TAILS)
@pytest.mark.parametrize("kind", ["data module", "dict"])
def test_a_last_batch_of_one_row_is_normalized_by_running_statistics(method: str, kind: str) -> None:
    module = Normed()
    data: Any = pair(9, 17)
    if kind == "dict":
        data = {"forget": DataLoader(labelled(9), 4), "retain": DataLoader(labelled(17), 4)}
    modes: list[bool] = []
    watch = Recorder(on_train_batch_end=lambda trainer, module, *_: modes.append(module.body[1].training))
    trainer(TAILS[method](), watch, max_epochs=2).fit(module, data)
    assert all(modes)
    assert weights(module).isfinite().all()
    assert not module.body[1]._forward_pre_hooks
    assert not module.body[1]._forward_hooks


def test_a_single_row_is_said_and_does_not_move_the_statistics() -> None:
    module = Normed()
    with pytest.warns(UserWarning, match="single row"):
        trainer(GradientAscent(score=classifier_nll)).fit(module, {"forget": DataLoader(labelled(1), 4)})
    assert torch.equal(module.body[1].running_mean, torch.zeros(8))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*single row")
        trainer(GradientAscent(score=classifier_nll)).fit(module, {"forget": DataLoader(labelled(2), 4)})
    assert not torch.equal(module.body[1].running_mean, torch.zeros(8))


def test_relearning_reads_a_single_row_too() -> None:
    module = Normed()
    curve = RelearningAttack(partial(torch.optim.SGD, lr=0.01), max_steps=3)(module, DataLoader(labelled(5), 4))
    assert len(curve.values) == 4


# ---- epochs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [SCRUB, FineTune, UGradSLPlus, NegGradPlus, Retrain])
def test_methods_with_epochs_of_retain_rows_warn_of_others(method: Any) -> None:
    options = {"max_passes": 1} if method is SCRUB else {}
    run = partial(trainer, max_epochs=4)
    with pytest.warns(UserWarning, match=rf"An epoch of {method.__name__} is one pass over the retain rows"):
        run(method(**options)).fit(HeadFirst(), pair(8, 16))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(An epoch of|SCRUB makes)")
        run(method(**options)).fit(HeadFirst(), pair(8, 16, epoch="retain"))


@pytest.mark.parametrize(("limit", "ends"), [({"max_epochs": 5}, 20), ({"max_steps": 17, "max_epochs": -1}, 17)])
def test_a_run_too_short_for_the_max_passes_is_said(limit: dict[str, int], ends: int) -> None:
    # Two batches of forget rows and four of retain rows: three pairs of passes take 18.
    message = rf"3 max passes of 2 batches, .* min pass of 4, which takes 18 batches, but the run ends after {ends}"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(SCRUB(max_passes=3), **limit).fit(HeadFirst(), pair(8, 16, epoch="retain"))
    said = [str(w.message) for w in caught if "SCRUB makes" in str(w.message)]
    assert bool(said) == (ends < 18)
    assert all(re.search(message, text) for text in said)


@pytest.mark.parametrize("method", [SCRUB(), RandomLabels(schedule="forget_then_retain")])
@pytest.mark.parametrize("data", [ForgetRetainDataModule(labelled(8)), {"forget": DataLoader(labelled(8), 4)}])
def test_no_retain_rows_are_refused_by_name(method: Any, data: Any) -> None:
    with pytest.raises(MisconfigurationException, match="no retain rows"):
        trainer(method).fit(HeadFirst(), data)


# ---- rules that stop ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [partial(UGradSL, p=1.0), partial(NegGradPlus, p=1.0)])
def test_the_floor_of_accuracy_is_measured_in_evaluation_mode(method: Any) -> None:
    """With nine in ten units dropped, no row is classified right in training mode; in evaluation mode all are."""

    class Dropped(LitClassifier):
        def forward(self, x: Tensor) -> Tensor:
            logits = super().forward(x)
            return logits if not self.training else -logits

    x = torch.eye(3).repeat(4, 1)
    rows = TensorDataset(x, torch.arange(12) % 3)
    net = nn.Linear(3, 3)
    net.load_state_dict({"weight": 5 * torch.eye(3), "bias": torch.zeros(3)})
    data = ForgetRetainDataModule(rows, rows, batch_size=4, epoch="retain")
    run = trainer(method(forget_accuracy_floor=0.5), max_epochs=3, limit_val_batches=0)
    run.fit(Dropped(net, lr=1e-9), data)
    assert run.current_epoch == 3
    run = trainer(method(forget_accuracy_floor=1.0), max_epochs=3, limit_val_batches=0)
    run.fit(Dropped(net, lr=1e-9), data)
    assert run.current_epoch == 1


# ---- arguments ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given", [1, np.int64(1), np.uint8(1), torch.tensor(1), np.array(1), [1], np.array([1]), torch.tensor([1])]
)
def test_a_class_may_be_a_number_of_numpy_or_torch(given: Any) -> None:
    rows = labelled(12)
    data = ClassificationDataModule(rows, rows, forget_class=given, batch_size=2)
    assert data.split.forget.tolist() == [1, 4, 7, 10]
    assert len(data.eval_sets["test"]) == 8


@pytest.mark.parametrize("wanted", [1.0, np.float32(1), True, [True, False], "1", torch.tensor([[1]])])
def test_what_is_no_class_is_refused(wanted: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        split_rows(torch.arange(12) % 3, forget_class=wanted)


def test_a_mask_of_rows_is_read_as_a_mask() -> None:
    labels = torch.arange(12) % 3
    for mask in (labels == 1, (labels == 1).numpy(), (labels == 1).tolist()):
        assert split_rows(labels, forget_indices=mask).forget.tolist() == [1, 4, 7, 10]
    for rows in (np.array([1, 4], dtype=np.int32), torch.tensor([1, 4]), (1, 4), range(1, 5, 3)):
        assert split_rows(labels, forget_indices=rows).forget.tolist() == [1, 4]
    with pytest.raises(ValueError, match=r"mask of shape \(5,\), but there are 12 rows"):
        split_rows(labels, forget_indices=[True] * 5)
    with pytest.raises(ValueError, match="list of row numbers, but is float64"):
        split_rows(labels, forget_indices=[1.5])


# ---- what a run says of itself -----------------------------------------------------------------------------------


def separable(rows: int, seed: int) -> TensorDataset:
    labels = torch.arange(rows) % 3
    return TensorDataset(3 * torch.eye(3)[labels] + 0.1 * numbers(rows, 3, seed=seed), labels)


def known(lr: float) -> LitClassifier:
    """A classifier that makes no error."""
    net = nn.Linear(3, 3)
    net.load_state_dict({"weight": 2 * torch.eye(3), "bias": torch.zeros(3)})
    return LitClassifier(net, lr=lr)


def said(callbacks: Any, module: Any, data: Any, **options: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(*callbacks, **options).fit(module, data)
    return [str(w.message) for w in caught if "lightning_unlearn" in w.filename]


def test_a_run_that_destroys_the_model_says_so_and_one_that_does_not_is_silent() -> None:
    data = ForgetRetainDataModule(separable(24, 1), separable(48, 2), batch_size=4)
    loud = said([UGradSL(p=0.1)], known(2.0), data, max_epochs=4, limit_val_batches=0)
    (message,) = [text for text in loud if "destroys the model" in text]
    assert re.search(
        r"from 100 % in the first one to \d+ %\. The learning rate is 2: .* set gradient_clip_val", message
    )
    quiet = said([UGradSL(p=0.9)], known(1e-4), data, max_epochs=4, limit_val_batches=0, gradient_clip_val=10.0)
    assert quiet == []


def test_an_ascent_that_nothing_bounds_is_said() -> None:
    data = ForgetRetainDataModule(separable(24, 1), separable(48, 2), batch_size=4)
    assert any("no lower bound" in text for text in said([UGradSL()], known(1e-4), data, limit_val_batches=0))
    assert not any("no lower bound" in text for text in said([UGradSL(p=1.0)], known(1e-4), data, limit_val_batches=0))
