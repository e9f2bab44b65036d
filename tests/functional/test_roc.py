"""Area under the ROC curve, its error, and points of the curve."""

from __future__ import annotations

import pytest
import torch

from lightning_unlearn.functional.roc import auc, delong, tpr_at_fpr

FORGET, HOLDOUT = torch.tensor([0.2, 0.5, 0.9]), torch.tensor([1.0, 0.8, 1.5])


def test_the_area_is_that_of_the_pairs() -> None:
    assert auc(HOLDOUT, FORGET).item() == pytest.approx(8 / 9, abs=1e-15)
    assert auc(FORGET, HOLDOUT).item() == pytest.approx(1 / 9, abs=1e-15)
    assert auc(torch.tensor([1.0, 1.0]), torch.tensor([1.0])) == 0.5  # ties


def test_it_is_scikit_learns_also_for_close_scores_that_a_sigmoid_in_fp32_would_merge() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    generator = torch.Generator().manual_seed(0)
    positive = 30 + torch.randn(300, generator=generator, dtype=torch.float64).mul(1e-3).round(decimals=4)
    negative = 30 + torch.randn(200, generator=generator, dtype=torch.float64).mul(1e-3).round(decimals=4)
    labels = torch.cat([torch.ones(300), torch.zeros(200)]).numpy()
    expected = metrics.roc_auc_score(labels, torch.cat([positive, negative]).numpy())
    assert auc(positive, negative).item() == pytest.approx(expected, abs=1e-12)


def test_the_error_is_the_spread_of_areas_of_fresh_samples() -> None:
    generator = torch.Generator().manual_seed(1)
    areas, errors = [], []
    for _ in range(300):
        positive, negative = torch.randn(60, generator=generator) + 0.8, torch.randn(90, generator=generator)
        area, error = delong(positive, negative)
        areas.append(area)
        errors.append(error)
    assert torch.stack(errors).mean() == pytest.approx(torch.stack(areas).std().item(), rel=0.1)


def test_at_most_the_allowed_share_of_negatives_exceeds_the_threshold() -> None:
    negative = torch.arange(100).float()
    assert tpr_at_fpr(torch.tensor([97.5, 98.5, 99.5]), negative, 0.01) == pytest.approx(2 / 3)
    assert tpr_at_fpr(torch.tensor([98.5, 99.5]), negative, 0.001) == 0.5  # none of 100 may
    assert tpr_at_fpr(torch.tensor([70.5, 71.5]), negative, 0.29) == 1  # 0.29 * 100 is a little less than 29
