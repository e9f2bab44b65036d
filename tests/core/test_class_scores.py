"""Scores of classifiers: their values against torch's own losses, what they refuse, and every method on each kind."""

from __future__ import annotations

import copy
from collections import UserDict
from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import lightning_unlearn as lu
from lightning_unlearn import (
    ForgetRetainDataModule,
    LitClassifier,
    binary_nll,
    classifier_nll,
    segmentation_nll,
    soft_label_nll,
    training_step_loss,
)
from lightning_unlearn.functional import likelihood
from lightning_unlearn.functional.classification.label_smoothing import generalized_label_smoothing, smoothed_targets
from lightning_unlearn.functional.likelihood import token_nll
from tests.helpers import trainer, weights


class Given(L.LightningModule):
    """Returns what it is given."""

    def forward(self, x: Any) -> Any:
        return x


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool])
@pytest.mark.parametrize("column", [False, True])
def test_class_numbers_may_have_any_integer_type(kind: torch.dtype, column: bool) -> None:
    logits, labels = numbers(4, 3), torch.tensor([1, 0, 0, 1])
    given = labels.to(kind)[:, None] if column else labels.to(kind)
    expected = F.cross_entropy(logits, labels, reduction="none")
    assert torch.equal(classifier_nll(Given(), (logits, given)), expected)


@pytest.mark.parametrize("shape", [(4,), (4, 1), (4, 5), (4, 1, 2, 3), (4, 2, 3)])
@pytest.mark.parametrize("kind", [torch.float32, torch.int64, torch.bool])
def test_one_logit_is_binary_cross_entropy_summed_over_a_row(shape: tuple[int, ...], kind: torch.dtype) -> None:
    logits, labels = 3 * numbers(*shape), (numbers(*shape, seed=1) > 0)
    each = F.binary_cross_entropy_with_logits(logits, labels.float(), reduction="none")
    given = labels.to(kind).squeeze(1) if len(shape) == 4 else labels.to(kind)
    torch.testing.assert_close(binary_nll(Given(), (logits, given)), each.flatten(1).sum(1) if len(shape) > 1 else each)
    if shape == (4, 1):
        torch.testing.assert_close(binary_nll(Given(), (logits, given[:, 0])), each[:, 0])


def test_a_soft_yes_is_binary_cross_entropy_too() -> None:
    logits, labels = numbers(4, 1), torch.tensor([0.0, 0.3, 0.5, 1.0])
    expected = F.binary_cross_entropy_with_logits(logits[:, 0], labels, reduction="none")
    torch.testing.assert_close(binary_nll(Given(), (logits, labels)), expected)


def test_segmentation_sums_over_pixels_with_a_label() -> None:
    logits, labels = numbers(2, 3, 4, 5), torch.arange(40).view(2, 4, 5) % 3
    expected = F.cross_entropy(logits, labels, reduction="none").flatten(1).sum(1)
    torch.testing.assert_close(segmentation_nll(Given(), (logits, labels)), expected)
    torch.testing.assert_close(segmentation_nll(Given(), (logits, labels[:, None].byte())), expected)
    labels[0, :2] = -100
    expected = F.cross_entropy(logits, labels, reduction="none").flatten(1).sum(1)
    torch.testing.assert_close(segmentation_nll(Given(), (logits, labels)), expected)
    mask = labels.masked_fill(labels < 0, 255).byte()
    torch.testing.assert_close(segmentation_nll(Given(), (logits, mask)), expected)
    assert segmentation_nll.predictions(Given(), (logits, labels)).length().tolist() == [10, 20]


def test_soft_labels_are_cross_entropy_with_a_distribution() -> None:
    logits, labels = numbers(4, 3), numbers(4, 3, seed=1).softmax(1)
    expected = F.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(soft_label_nll(Given(), (logits, labels)), expected)
    hard = torch.tensor([0, 2, 1, 1])
    one_hot = soft_label_nll(Given(), (logits, F.one_hot(hard, 3)))
    torch.testing.assert_close(one_hot, F.cross_entropy(logits, hard, reduction="none"))
    assert soft_label_nll.predictions(Given(), (logits, F.one_hot(hard, 3))).classes().tolist() == hard.tolist()


def test_soft_labels_in_chunks_have_the_same_value_and_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = numbers(5, 3).requires_grad_(), numbers(5, 3, seed=1).softmax(1)
    whole = token_nll(logits, labels)
    (expected,) = torch.autograd.grad(whole.square().sum(), logits)
    monkeypatch.setattr(likelihood, "_CHUNK", 6)
    parts = token_nll(logits, labels)
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(torch.autograd.grad(parts.square().sum(), logits)[0], expected)


def test_smoothing_of_soft_labels_agrees_with_that_of_classes() -> None:
    logits, labels = numbers(4, 3), torch.tensor([0, 2, 1, 1])
    smoothed = generalized_label_smoothing(logits, F.one_hot(labels, 3).float(), -0.7)
    torch.testing.assert_close(smoothed, generalized_label_smoothing(logits, labels, -0.7))
    by_target = -(smoothed_targets(labels, 3, -0.7) * logits.log_softmax(1)).sum(1)
    torch.testing.assert_close(smoothed, by_target)


class Named(L.LightningModule):
    def forward(self, pixels: Tensor, scale: Tensor | None = None) -> Tensor:
        return pixels if scale is None else pixels * scale


@pytest.mark.parametrize("label", ["label", "labels"])
@pytest.mark.parametrize("kind", [dict, UserDict])
def test_a_dict_of_an_input_and_a_label_is_read_whatever_the_input_is_called(label: str, kind: Any) -> None:
    logits, labels = numbers(4, 3), torch.tensor([0, 2, 1, 1])
    expected = F.cross_entropy(logits, labels, reduction="none")
    for name in ("image", "pixels", "x"):
        batch = kind({name: logits, label: labels, "index": torch.arange(4)})
        assert torch.equal(classifier_nll(Named(), batch), expected)
        assert torch.equal(classifier_nll(LitClassifier(nn.Identity()), batch), expected)
    scaled = kind({"scale": torch.tensor(2.0), "pixels": logits, label: labels})
    torch.testing.assert_close(classifier_nll(Named(), scaled), F.cross_entropy(2 * logits, labels, reduction="none"))


@pytest.mark.parametrize(
    ("score", "logits", "labels", "message"),
    [
        (classifier_nll, (4, 1), numbers(4, 1), r"class numbers \(B,\).*float32 of shape \(4, 1\).*regression"),
        (classifier_nll, (4,), numbers(4), r"logits of shape \(4,\)"),
        (classifier_nll, (4, 1), torch.zeros(4, dtype=torch.long), r"Take score=binary_nll \(one logit"),
        (classifier_nll, (4, 3), numbers(4, 3), "Take score=binary_nll .* or soft_label_nll"),
        (classifier_nll, (4, 3), torch.eye(4, 3, dtype=torch.long), "soft_label_nll"),
        (classifier_nll, (4, 3, 5), torch.zeros(4, 5, dtype=torch.long), "Take score=segmentation_nll"),
        (classifier_nll, (4, 3), torch.tensor([0, 1, 2, 3]), "labels from 0 to 2, .* from 0 to 3"),
        (classifier_nll, (4, 3), torch.tensor([-1, 1, 2, 0]), "labels from 0 to 2, .* from -1 to 2"),
        (binary_nll, (4, 3), torch.zeros(4, dtype=torch.long), r"Take score=classifier_nll"),
        (binary_nll, (4, 1), torch.tensor([0, 1, 2, 0]), "labels from 0 to 1"),
        (binary_nll, (4, 1), torch.tensor([0.0, 1.7, 0.2, 0.0]), r"in \[0, 1\], but they go from 0 to 1.7"),
        (soft_label_nll, (4, 3), torch.tensor([[1.0, 1, 0]] * 4), "several labels, take score=binary_nll"),
        (soft_label_nll, (4, 3), torch.tensor([0, 1, 2, 0]), "Take score=classifier_nll"),
        (segmentation_nll, (4, 3), torch.tensor([0, 1, 2, 0]), "Take score=classifier_nll"),
        (segmentation_nll, (4, 1, 2), torch.zeros(4, 2, dtype=torch.long), "Take score=binary_nll"),
        (segmentation_nll, (4, 2, 2), torch.full((4, 2), 7), "labels from 0 to 1"),
    ],
)
def test_other_labels_are_refused_with_the_score_that_reads_them(
    score: Any, logits: tuple[int, ...], labels: Tensor, message: str
) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        score(Given(), (numbers(*logits), labels))


def test_an_output_without_logits_is_refused() -> None:
    labels = torch.zeros(4, dtype=torch.long)
    for output in ((numbers(4, 3), numbers(4, 3)), {"scores": numbers(4, 3)}, labels):
        with pytest.raises(MisconfigurationException, match=r"Given.forward returned a (tuple|dict|Tensor)"):
            classifier_nll(Given(), (output, labels))
    expected = F.cross_entropy(numbers(4, 3), labels, reduction="none")
    assert torch.equal(classifier_nll(Given(), ({"logits": numbers(4, 3)}, labels)), expected)


# ---- every method on each kind of label --------------------------------------------------------------------------

METHODS: dict[str, Callable[[Any], Any]] = {
    "GradientAscent": lambda score: lu.GradientAscent(score=score),
    "GradDiff": lambda score: lu.GradDiff(score=score),
    "NPO": lambda score: lu.NPO(score=score),
    "FineTune": lambda score: lu.FineTune(score=score),
    "L1Sparse": lambda score: lu.L1Sparse(score=score),
    "CFk": lambda score: lu.CFk(1, score=score),
    "EUk": lambda score: lu.EUk(1, score=score),
    "NegGradPlus": lambda score: lu.NegGradPlus(score=score),
    "UGradSL": lambda score: lu.UGradSL(score=score, forget_accuracy_floor=0.0),
    "UGradSLPlus": lambda score: lu.UGradSLPlus(alpha=None, score=score),
    "RandomLabels": lambda score: lu.RandomLabels(score=score),
    "SCRUB": lambda score: lu.SCRUB(score=score),
    "BadTeacher": lambda score: lu.BadTeacher(score=score),
    "BoundaryShrink": lambda score: lu.BoundaryShrink(clip=None, score=score),
    "InfluenceUnlearning": lambda score: lu.InfluenceUnlearning(score=score, damping=1.0),
    "SSD": lambda score: lu.SSD(alpha=1.01, score=score),
}
OF_OWN_LOSS = ("GradientAscent", "GradDiff", "FineTune", "L1Sparse", "CFk", "EUk", "SSD")


def net(outputs: int, labels: Any) -> LitClassifier:
    torch.manual_seed(0)
    return LitClassifier(nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, outputs)), lr=0.05, labels=labels)


def rows(labels: Callable[[Tensor], Tensor], count: int = 24) -> ForgetRetainDataModule:
    x = numbers(count, 5)
    y = labels(x)
    forget, retain = TensorDataset(x[:8], y[:8]), TensorDataset(x[8:], y[8:])
    return ForgetRetainDataModule(forget, retain, batch_size=4, epoch="retain")


KINDS: dict[str, tuple[Any, Any, int, Callable[[Tensor], Tensor]]] = {
    "one logit": (binary_nll, "binary", 1, lambda x: (x[:, 0] > 0).float()),
    "several labels": (binary_nll, "binary", 3, lambda x: (x[:, :3] > 0).float()),
    "soft": (soft_label_nll, "soft", 3, lambda x: (3 * x[:, :3]).softmax(1)),
    "bytes": (classifier_nll, "classes", 3, lambda x: x[:, :3].argmax(1).byte()),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_methods_unlearn_under_each_kind_of_label(kind: str, method: str) -> None:
    score, name, outputs, labels = KINDS[kind]
    module = net(outputs, name)
    before = weights(module)
    trainer(METHODS[method](score), max_epochs=2).fit(module, rows(labels))
    assert weights(module).isfinite().all()
    assert not torch.equal(weights(module), before)


def test_ascent_on_one_logit_is_ascent_on_binary_cross_entropy() -> None:
    module, plain = net(1, "binary"), net(1, "binary")
    data = rows(lambda x: (x[:, 0] > 0).float())
    trainer(lu.GradientAscent(score=binary_nll), max_steps=1).fit(module, {"forget": data.val_dataloader()["forget"]})
    (x, y), *_ = data.val_dataloader()["forget"]
    optimizer = torch.optim.SGD(plain.parameters(), 0.05, 0.9, weight_decay=5e-4)
    (-F.binary_cross_entropy_with_logits(plain(x)[:, 0], y)).backward()
    optimizer.step()
    torch.testing.assert_close(weights(module), weights(plain))


@pytest.mark.filterwarnings("ignore")
def test_a_segmentation_forgets_the_masks_of_its_forget_rows() -> None:
    images, masks = numbers(16, 3, 5, 5), torch.randint(0, 4, (16, 5, 5), generator=torch.Generator().manual_seed(1))
    data = ForgetRetainDataModule(
        TensorDataset(images[:8], masks[:8]), TensorDataset(images[8:], masks[8:]), batch_size=4
    )
    torch.manual_seed(0)
    module = LitClassifier(nn.Conv2d(3, 4, 3, padding=1), lr=0.05, labels="pixels")
    batch = (images[:8], masks[:8])
    before = segmentation_nll(module, batch).mean()
    trainer(lu.NegGradPlus(p=0.2, score=segmentation_nll), max_epochs=3).fit(module, data)
    assert segmentation_nll(module, batch).mean() > before + 1


class Regression(L.LightningModule):
    """A module with a loss of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.mse_loss(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", METHODS)
def test_a_regression_is_refused_before_a_weight_moves_or_unlearned_by_its_own_loss(method: str) -> None:
    module, data = Regression(), rows(lambda x: x[:, :1])
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(MisconfigurationException, match=r"class numbers.*regression.*training_step_loss"):
        trainer(METHODS[method](classifier_nll)).fit(module, data)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    if method in OF_OWN_LOSS:
        trainer(METHODS[method](training_step_loss)).fit(module, data)
        assert any(not torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_fine_tuning_on_the_modules_own_loss_is_training_on_retain_rows() -> None:
    module, plain, data = Regression(), Regression(), rows(lambda x: x[:, :1])
    loader = data.val_dataloader()["retain"]
    trainer(lu.FineTune(score=training_step_loss)).fit(module, {"retain": loader})
    trainer().fit(plain, loader)
    torch.testing.assert_close(weights(module), weights(plain))
