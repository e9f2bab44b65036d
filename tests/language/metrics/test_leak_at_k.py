"""leak@k as a metric."""

from __future__ import annotations

import pytest
import torch

from lightning_unlearn.functional import leak_at_k
from lightning_unlearn.language.metrics import LeakAtK


def test_it_is_the_mean_over_the_questions_of_all_batches() -> None:
    hits = torch.arange(8) < torch.tensor([[0], [1], [2], [8], [0]])
    metric = LeakAtK(k=4)
    metric.update(hits[:2])
    metric.update(hits[2:])
    assert metric.compute().item() == pytest.approx(leak_at_k(hits.sum(1), 8, 4).mean().item(), abs=1e-6)
    assert leak_at_k(hits.sum(1), 8, 4)[2].item() == pytest.approx(0.7857142857, abs=1e-10)


def test_what_it_can_not_count_is_refused() -> None:
    with pytest.raises(ValueError, match="k must be at least 1"):
        LeakAtK(k=0)
    with pytest.raises(ValueError, match=r"\(questions, samples\)"):
        LeakAtK(k=1).update(torch.zeros(3))
    with pytest.raises(ValueError, match="number of samples, 2, but got 3"):
        LeakAtK(k=3).update(torch.zeros(1, 2))
    with pytest.raises(ValueError, match="no questions"), pytest.warns(UserWarning, match="before the ``update``"):
        LeakAtK().compute()
