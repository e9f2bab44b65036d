"""Metrics of classifiers, by hand and against references in numpy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_unlearn.classification.metrics.accuracy import RA, TA, UA
from lightning_unlearn.classification.metrics.divergence import ZRF, JSDivergence, js_divergence
from lightning_unlearn.classification.metrics.features import (
    confidence,
    correctness,
    entropy,
    log_odds,
    modified_entropy,
)
from lightning_unlearn.classification.metrics.gap import AverageGap, average_gap
from lightning_unlearn.classification.metrics.outputs import collect_outputs
from lightning_unlearn.classification.metrics.runtime import RTE, wall_clock
from lightning_unlearn.classification.metrics.tow import ToW, tow
from lightning_unlearn.classification.metrics.ulira import ULiRA, u_lira
from lightning_unlearn.core.seeds import over_seeds


class Net(LightningModule):
    """Batch normalisation and dropout: both behave otherwise in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(4, 8),
            torch.nn.BatchNorm1d(8),
            torch.nn.ReLU(),
            torch.nn.Dropout(0.5),
            torch.nn.Linear(8, 3),
        )
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.layers(x)


def random_logits(rows: int, classes: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(rows, classes, generator=generator)
    return logits, torch.randint(classes, (rows,), generator=generator)


def loader(rows: int = 12, seed: int = 0, **options: Any) -> DataLoader:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(rows, 4, generator=generator)
    return DataLoader(TensorDataset(inputs, inputs[:, :3].argmax(1)), batch_size=5, **options)


PAPER = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]]).log(), torch.tensor([0, 1])


def test_features_of_the_specification() -> None:
    assert entropy(*PAPER).tolist() == pytest.approx([0.8018, 0.6390], abs=5e-5)
    assert modified_entropy(*PAPER).tolist() == pytest.approx([0.1622, 0.0657], abs=5e-5)
    assert confidence(*PAPER).tolist() == pytest.approx([0.7, 0.8])
    assert log_odds(*PAPER).tolist() == pytest.approx([math.log(7 / 3), math.log(4)], abs=1e-6)


def test_features_do_not_depend_on_the_batch() -> None:
    logits, labels = random_logits(50)
    for feature in (confidence, correctness, entropy, modified_entropy, log_odds):
        alone = torch.cat([feature(logits[i : i + 1], labels[i : i + 1]) for i in range(50)])
        torch.testing.assert_close(feature(logits, labels), alone)


def test_features_equal_a_reference_in_numpy() -> None:
    logits, labels = random_logits(200)
    z, y, row = logits.double().numpy(), labels.numpy(), np.arange(200)
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    p_y = p[row, y]
    terms = -p * np.log(1 - p)
    terms[row, y] = 0
    expected = {
        correctness: z.argmax(1) == y,
        confidence: p_y,
        entropy: -(p * np.log(p)).sum(1),
        modified_entropy: -(1 - p_y) * np.log(p_y) + terms.sum(1),
        log_odds: np.log(p_y) - np.log(1 - p_y),
    }
    for feature, values in expected.items():
        np.testing.assert_allclose(feature(logits, labels).numpy(), values, rtol=2e-5, atol=2e-6)


def test_features_are_finite_and_exact_for_the_surest_model() -> None:
    logits, labels = torch.tensor([[40.0, 0.0], [40.0, 0.0]]), torch.tensor([0, 1])
    # 1 - e^-40 is 1 in any floating-point type.
    right, wrong = modified_entropy(logits, labels).tolist()
    assert 0 <= right < 1e-15
    assert wrong == pytest.approx(80, rel=1e-6)
    assert log_odds(logits, labels).tolist() == [40, -40]


def test_accuracies() -> None:
    logits, labels = torch.eye(8), torch.tensor([0, 1, 2, 3, 4, 5, 0, 0])
    for metric, expected in ((RA(), 75), (TA(), 75), (UA(), 25)):
        metric.update(logits[:3], labels[:3])
        metric.update(logits[3:], labels[3:])
        assert metric.compute() == expected
        assert metric.higher_is_better is None


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (torch.empty(0, 3), torch.empty(0, dtype=torch.long), "no rows"),
        (torch.zeros(4), torch.zeros(4, dtype=torch.long), r"shape \(N, K\)"),
        (torch.zeros(4, 1), torch.zeros(4, dtype=torch.long), "K >= 2"),
        (torch.zeros(4, 3), torch.zeros(3, dtype=torch.long), r"shape \(4,\)"),
        (torch.zeros(4, 3), torch.zeros(4, 3), "one-hot"),
        (torch.full((2, 3), torch.nan), torch.zeros(2, dtype=torch.long), "6 of 6 logits are NaN"),
        (torch.zeros(2, 3), torch.tensor([0, -1]), r"in \[0, 3\)"),
        (torch.zeros(2, 3), torch.tensor([0, 3]), r"in \[0, 3\)"),
    ],
)
def test_what_is_no_output_of_a_classifier_is_refused(logits: Tensor, labels: Tensor, message: str) -> None:
    for measure in (UA().update, confidence, modified_entropy, log_odds):
        with pytest.raises(ValueError, match=message):
            measure(logits, labels)


def test_a_metric_without_rows_is_refused() -> None:
    for metric in (UA(), JSDivergence()):
        with pytest.raises(ValueError, match="has seen no rows"), pytest.warns(UserWarning, match="before"):
            metric.compute()


def test_divergences_of_the_specification() -> None:
    p, q = torch.tensor([[0.7, 0.2, 0.1]]).log(), torch.tensor([[0.1, 0.2, 0.7]]).log()
    assert js_divergence(p, q).item() == pytest.approx(0.253102, abs=1e-6)
    assert js_divergence(p, q, base="2").item() == pytest.approx(0.365148, abs=1e-6)
    assert js_divergence(p, q, reference_impl=True).item() == pytest.approx(0.110224, abs=1e-6)
    assert js_divergence(p, p).item() == 0
    apart = torch.tensor([[100.0, 0.0]]), torch.tensor([[0.0, 100.0]])
    assert js_divergence(*apart).item() == pytest.approx(math.log(2))
    assert js_divergence(*apart, base="2").item() == pytest.approx(1)
    score = ZRF()
    score.update(torch.cat([p, p]), torch.cat([q, p]))
    assert score.compute().item() == pytest.approx(1 - 0.365148 / 2, abs=1e-6)
    with pytest.raises(ValueError, match="same rows"):
        js_divergence(p, torch.cat([q, q]))


def test_average_gap_of_the_specification() -> None:
    retrained = {"ua": 5.24, "ra": 100.0, "ta": 94.26, "mia": 12.88}
    fine_tuned = {"ua": 0.63, "ra": 99.88, "ta": 94.06, "mia": 2.70}
    assert average_gap(fine_tuned, retrained) == pytest.approx(3.7775)
    with pytest.raises(ValueError, match="same metrics"):
        average_gap(fine_tuned, {"ua": 1.0})
    with pytest.raises(ValueError, match="NaN"):
        average_gap({"ua": math.nan}, {"ua": 1.0})


def test_gaps_of_two_seeds_do_not_cancel() -> None:
    pytest.importorskip("scipy")
    gap = AverageGap()
    gap.update({"ua": 12.0}, {"ua": 10.0})
    gap.update({"ua": 6.0}, {"ua": 10.0})
    mean, std, ci, n = gap.compute()
    assert (mean, n) == (3, 2)
    assert std == pytest.approx(math.sqrt(2))
    assert ci == pytest.approx(12.706205, rel=1e-6)  # t of 1 degree of freedom at 97.5 %, times √2 / √2


def test_confidence_interval_of_five_seeds() -> None:
    pytest.importorskip("scipy")
    summary = over_seeds(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]))
    assert summary.ci == pytest.approx(2.776445 * math.sqrt(2.5 / 5), rel=1e-6)
    with pytest.raises(ValueError, match="level"):
        AverageGap(level=95)


def test_tow_of_the_specification() -> None:
    unlearned = {"forget": 90.0, "retain": 99.88, "test": 94.2}
    retrained = {"forget": 95.0, "retain": 100.0, "test": 94.0}
    assert tow(unlearned, retrained) == pytest.approx(0.94696228, abs=1e-8)
    score = ToW()
    score.update(unlearned, retrained)
    assert score.compute().mean == pytest.approx(0.94696228, abs=1e-8)
    with pytest.raises(ValueError, match="are needed"):
        tow({"ua": 1.0}, {"ua": 1.0})
    with pytest.raises(ValueError, match=r"an accuracy in percent must be in \[0, 100\], but got -3.0"):
        tow(unlearned | {"forget": -3.0}, retrained)


def test_u_lira_equals_a_reference_in_numpy() -> None:
    generator = torch.Generator().manual_seed(0)
    phi = torch.randn(6, 9, generator=generator)
    unlearned = torch.stack([torch.randperm(9, generator=generator) < 4 + i % 2 for i in range(6)])
    scores = u_lira(phi, unlearned).numpy()
    for row, mask, got in zip(phi.double().numpy(), unlearned.numpy(), scores, strict=True):
        kinds = {kind: np.flatnonzero(mask == kind) for kind in (True, False)}
        for kind, columns in kinds.items():
            for i, column in enumerate(columns):
                partner = kinds[not kind][i % len(kinds[not kind])]
                fits = [
                    np.delete(row, [c for c in range(9) if mask[c] != k or c in (column, partner)])
                    for k in (True, False)
                ]
                densities = [
                    math.exp(-((row[column] - f.mean()) ** 2) / (2 * f.var(ddof=1))) / f.std(ddof=1) for f in fits
                ]
                assert got[column] == pytest.approx(densities[0] / sum(densities), rel=1e-6)


def ulira_of(shift: float, rows: int = 200, models: int = 16) -> Any:
    generator = torch.Generator().manual_seed(1)
    order = torch.rand(models, rows, generator=generator).argsort(0)
    unlearned = order < models // 2
    phi = torch.randn(models, rows, generator=generator) + shift * unlearned
    logits, metric = torch.stack([phi, torch.zeros_like(phi)], -1), ULiRA(models, fpr=0.05)
    for part in torch.arange(rows).split(64):
        metric.update(logits[:, part], torch.zeros(len(part), dtype=torch.long), unlearned[:, part])
    return metric.compute()


def test_u_lira_is_at_chance_where_there_is_nothing_to_see() -> None:
    nothing, something = ulira_of(0.0), ulira_of(3.0)
    assert nothing.accuracy == pytest.approx(50, abs=2)
    assert nothing.tpr_at_fpr == pytest.approx(5, abs=2)
    assert something.accuracy == pytest.approx(100 * 0.9332, abs=3)  # Φ(1.5), less what the fits cost
    assert something.tpr_at_fpr > 60


def test_u_lira_asks_for_three_models_of_each_kind() -> None:
    with pytest.raises(ValueError, match="only 2 models of one kind"):
        u_lira(torch.randn(1, 5), torch.tensor([[True, True, True, False, False]]))
    with pytest.raises(ValueError, match="num_models"):
        ULiRA(5)


def test_cost_adds_up_and_leaves_evaluation_out() -> None:
    rte = RTE()
    rte.update(2.0, steps=3, samples=10)
    rte.update(0.5, steps=1, samples=2)
    assert rte.compute() == (2.5, 4, 12)
    with pytest.raises(ValueError, match="negative"):
        rte.update(-1.0)
    with wall_clock() as seconds:
        assert seconds == []
    assert 0 <= seconds[0] < 1


def test_one_pass_collects_everything_and_leaves_no_trace() -> None:
    torch.manual_seed(0)
    module = Net()
    module.layers[1].eval()
    modes = [child.training for child in module.modules()]
    buffers = {name: value.clone() for name, value in module.named_buffers()}
    state = torch.get_rng_state()
    outputs = collect_outputs(module, {"forget": loader(12), "test": loader(7, seed=1, shuffle=True)})
    assert torch.equal(state, torch.get_rng_state())
    assert modes == [child.training for child in module.modules()]
    assert all(torch.equal(value, buffers[name]) for name, value in module.named_buffers())
    assert module.calls == 3 + 2
    assert list(outputs) == ["forget", "test"]
    assert torch.equal(outputs["forget"].labels, loader(12).dataset.tensors[1])
    module.eval()
    torch.testing.assert_close(outputs["forget"].logits, module(loader(12).dataset.tensors[0]))
    assert not outputs["forget"].logits.requires_grad


def test_collecting_names_the_set_that_fails() -> None:
    module = Net()
    with pytest.raises(ValueError, match="loader 'test' gave no batch"):
        collect_outputs(module, {"test": []})
    torch.nn.init.constant_(module.layers[4].bias, torch.nan)
    with pytest.raises(ValueError, match=r"Set 'forget': .* NaN"):
        collect_outputs(module, {"forget": loader()})
    with pytest.raises(ValueError, match="from_predictions"):
        collect_outputs(module, {"forget": loader()}, score=lambda module, batch: torch.zeros(1))
