from __future__ import annotations

import pytest
import torch

from lightning_unlearn.dialogue.baselines import NeighbourRating, TfidfRidge, cross_rated
from lightning_unlearn.dialogue.dialogue import Dialogue, Turn
from lightning_unlearn.dialogue.metrics.rating_metrics import RatingMetrics
from lightning_unlearn.dialogue.rating import RatesDialogues
from lightning_unlearn.dialogue.selectors.random import RandomSelector

WORDS = ("sorry", "wrong", "fine", "great", "lovely")


def worded(count: int) -> list[Dialogue]:
    """Dialogues whose rating is in one word among noise."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for number in range(count):
        rating = int(torch.randint(5, (), generator=generator))
        noise = " ".join(f"w{int(i)}" for i in torch.randint(30, (4,), generator=generator))
        rows.append(Dialogue(str(number), (Turn("user", f"{noise} {WORDS[rating]}"),), (rating + 1.0,)))
    return rows


def spearman(rows: list[Dialogue], make: object) -> float:
    metric = RatingMetrics(names=("spearman",))
    metric.update(cross_rated(make, rows, k=5), rows)  # type: ignore[arg-type]
    return metric.compute()["spearman"].item()


def test_words_tell_ratings_and_chance_does_not() -> None:
    rows = worded(150)
    assert spearman(rows, TfidfRidge) > 0.8
    assert spearman(rows, NeighbourRating) > 0.4
    assert abs(spearman(rows, lambda: NeighbourRating(RandomSelector()))) < 0.2


def test_a_neighbour_rating_is_the_mean_of_the_examples() -> None:
    rows = worded(20)
    judge = NeighbourRating(k=3).fit(rows)
    chosen = judge.selector.select(rows[0], 3)
    assert 0 not in chosen
    assert judge.rate(rows[:1])[0].score == pytest.approx(sum(rows[i].mean for i in chosen) / 3)
    assert isinstance(judge, RatesDialogues)
    with pytest.raises(ValueError, match="has only dialogues of the same conversation"):
        NeighbourRating().fit(rows[:1]).rate(rows[:1])


def test_a_ridge_has_to_learn_first() -> None:
    with pytest.raises(RuntimeError, match="Call fit"):
        TfidfRidge().rate(worded(1))
    assert TfidfRidge().fit(worded(9)).rate([]) == []
