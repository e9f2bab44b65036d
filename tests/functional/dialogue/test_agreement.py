from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from sklearn.metrics import cohen_kappa_score, f1_score, recall_score
from torchmetrics.functional import spearman_corrcoef

from lightning_unlearn.functional.dialogue.agreement import class_counts, cohen_kappa, macro_f1, macro_recall
from lightning_unlearn.functional.dialogue.correlation import average_ranks, kendall, pearson, spearman


def tied(seed: int, shape: tuple[int, ...] = (40,)) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(5, shape, generator=generator).double()
    return x, (x + torch.randn(shape, generator=generator).double()).round(decimals=1)


def test_equal_numbers_share_their_rank() -> None:
    x, y = torch.tensor([1.0, 2, 2, 4, 5]), torch.tensor([1.0, 3, 2, 5, 4])
    assert average_ranks(x).tolist() == [1, 2.5, 2.5, 4, 5]
    assert spearman(x, y).item() == pytest.approx(0.872082, abs=1e-6)
    assert spearman(x, y).item() == pytest.approx(spearman_corrcoef(x, y).item(), abs=1e-5)
    # The formula for ranks without ties, with the lowest rank of equal numbers, which USS's authors use.
    assert 1 - 6 * ((torch.tensor([1, 2, 2, 4, 5]) - y) ** 2).sum().item() / (5 * 24) == pytest.approx(0.85)
    assert spearman(torch.tensor([3.0, 3, 3, 4]), torch.tensor([1.0, 2, 3, 4])).item() == pytest.approx(
        0.774597, abs=1e-6
    )


@pytest.mark.parametrize("seed", range(3))
def test_correlations_are_those_of_scipy(seed: int) -> None:
    x, y = tied(seed)
    for ours, theirs in ((pearson, stats.pearsonr), (spearman, stats.spearmanr), (kendall, stats.kendalltau)):
        assert ours(x, y).item() == pytest.approx(theirs(x.numpy(), y.numpy())[0], abs=1e-12)


def test_many_samples_at_a_time() -> None:
    x, y = tied(0, (3, 40))
    assert spearman(x, y).tolist() == pytest.approx([spearman(a, b).item() for a, b in zip(x, y, strict=True)])
    rows = torch.randint(40, (4, 40), generator=torch.Generator().manual_seed(1))
    times = torch.stack([row.bincount(minlength=40) for row in rows])
    expected = [kendall(x[0, row], y[0, row]).item() for row in rows]
    assert kendall(x[0], y[0], times).tolist() == pytest.approx(expected)


def test_constant_numbers_have_no_correlation() -> None:
    constant, y = torch.full((7,), 0.1), torch.arange(7.0)
    for function in (pearson, spearman, kendall):
        assert math.isnan(function(constant, y).item())
        assert math.isnan(function(y, constant).item())


def test_agreement_is_that_of_scikit_learn() -> None:
    true, predicted = torch.tensor([0, 0, 1, 2, 2, 2]), torch.tensor([0, 1, 1, 2, 2, 0])
    assert macro_f1(class_counts(predicted, true, 5)).item() == pytest.approx(0.655556, abs=1e-6)
    generator = torch.Generator().manual_seed(0)
    true, predicted = torch.randint(4, (2, 6, 30), generator=generator)
    counts = class_counts(predicted, true, 4)
    pairs = list(zip(true.numpy(), predicted.numpy(), strict=True))
    assert macro_f1(counts).tolist() == pytest.approx([f1_score(t, p, average="macro") for t, p in pairs])
    assert macro_recall(counts).tolist() == pytest.approx([recall_score(t, p, average="macro") for t, p in pairs])
    assert cohen_kappa(counts).tolist() == pytest.approx([cohen_kappa_score(t, p) for t, p in pairs])


def test_recall_of_a_class_without_rows_is_0_as_in_uss() -> None:
    counts = class_counts(torch.tensor([0, 1, 2]), torch.tensor([0, 1, 2]), 5)
    assert macro_recall(counts).item() == pytest.approx(3 / 5)
    assert math.isnan(cohen_kappa(class_counts(torch.zeros(3).long(), torch.zeros(3).long(), 5)).item())
