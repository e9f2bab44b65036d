from __future__ import annotations

from typing import Any

import pytest
import torch

from lightning_unlearn.diffusion.canvas.names import CanvasNames
from lightning_unlearn.diffusion.canvas.scores import AnswerScores
from lightning_unlearn.diffusion.metrics.canvas import AccuracyMatrix
from lightning_unlearn.diffusion.metrics.canvas_accuracy import CanvasAccuracy
from lightning_unlearn.diffusion.metrics.canvas_read_outs import pair_read_out
from tests.diffusion.canvas.grids import AB, by_hand, noise, perfect


def images(scores: AnswerScores, order: torch.Tensor | None = None) -> list[torch.Tensor]:
    """Labels and prompts of all images, as `update` takes them, in some order."""
    places = scores.seen.nonzero()
    places = places if order is None else places[order]
    at = places.unbind(1)
    return [scores.style[at], scores.object[at], at[0], at[1]]


def counted(scores: AnswerScores, *args: Any, batch: int = 100, **kwargs: Any) -> CanvasAccuracy:
    metric = CanvasAccuracy(scores.names, *args, **kwargs)
    for part in zip(*(values.split(batch) for values in images(scores)), strict=True):
        metric.update(*part)
    return metric


@pytest.mark.parametrize("photo", [False, True])
def test_it_reads_what_the_matrix_reads(photo: bool) -> None:
    scores = noise(7)
    metric = counted(scores, photo=photo, batch=5)
    without = counted(scores, include_target=False, photo=photo)
    matrix = AccuracyMatrix.from_scores(scores, {name: scores for name in "ABxy"}, photo=photo)
    for target in "ABxy":
        expected, found = matrix.read_out(target), metric.compute(target)
        assert {name: float(value) for name, value in found.items()} == pytest.approx(
            {name: expected[name] for name in ("UA", "IRA", "CRA")}
        )
        assert float(without.compute(target)["CRA"]) == pytest.approx(expected["CRA_without_target"])
        own = float(matrix.row(target)[matrix.concepts.index(target)])
        assert float(found["UA"]) + own == pytest.approx(1)


@pytest.mark.parametrize("test", ["both", "style", "object"])
def test_it_reads_pairs(test: Any) -> None:
    scores = noise(8)
    found = counted(scores, ("B", "x"), test=test).compute()
    expected = pair_read_out(scores, "B", "x", test)
    assert {name: float(value) for name, value in found.items()} == pytest.approx(
        {name: rate.value for name, rate in expected.items()}
    )


def test_a_pair_may_have_more_images() -> None:
    metric = counted(by_hand())
    metric.update(*(torch.tensor([label]) for label in (0, 0, 0, 0)))
    assert [float(value) for value in metric.compute(("A", "x")).values()] == [0.5, 0, 1, 1]
    with pytest.raises(ValueError, match="up to 2 here, but 3 have another number: A x y 1, B x x 1, B x y 1"):
        metric.compute("A")


def test_the_order_and_size_of_batches_change_nothing() -> None:
    scores = noise(9)
    whole = counted(scores, "A").compute()
    shuffled = CanvasAccuracy(AB, "A")
    shuffled.update(*images(scores, torch.randperm(18, generator=torch.Generator().manual_seed(0))))
    assert whole == shuffled.compute() == counted(scores, "A", batch=1).compute()


def test_two_halves_add_up_to_the_whole() -> None:
    scores = noise(10)
    halves = [CanvasAccuracy(AB, "y") for _ in range(2)]
    for rank, half in enumerate(halves):
        half.update(*(values[rank::2] for values in images(scores)))
    for state in ("style_hits", "object_hits", "both_hits", "n"):
        getattr(halves[0], state).add_(getattr(halves[1], state))
    assert halves[0].compute() == counted(scores, "y").compute()


def test_another_target_is_not_taken_from_the_cache() -> None:
    metric = counted(by_hand(), "A")
    assert metric.compute() == {"UA": 0.5, "IRA": 1, "CRA": 0.75}
    assert metric.compute("B") == {"UA": 0, "IRA": 0.5, "CRA": 0.75}
    metric.reset()
    with (
        pytest.warns(UserWarning, match="before the"),
        pytest.raises(ValueError, match="4 have another number: A x x 0, A x y 0, B x x 0, B x y 0"),
    ):
        metric.compute()


def test_missing_images_are_named_and_counts_are_kept() -> None:
    scores = perfect()
    scores.style[1, 0] = scores.object[1, 0] = -1
    metric = counted(scores, "A")
    with pytest.raises(ValueError, match="1 have another number: B x x 0"):
        metric.compute()
    metric.update(*(torch.tensor([label]) for label in (1, 0, 1, 0)))
    assert metric.compute() == {"UA": 0, "IRA": 1, "CRA": 1}


@pytest.mark.parametrize(
    ("target", "message"),
    [("Z", "target must be"), (("x", "A"), "the target's style must be 'A' or 'B'"), ("Photo", "got 'Photo'")],
)
def test_unknown_targets(target: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CanvasAccuracy(AB, target)


def test_labels_that_can_not_be() -> None:
    metric, zero = CanvasAccuracy(AB), torch.zeros(2, dtype=torch.long)
    with pytest.raises(ValueError, match=r"predicted_object must be in \[0, 1\], but is in \[0, 2\]"):
        metric.update(zero, torch.tensor([0, 2]), zero, zero)
    with pytest.raises(ValueError, match=r"predicted_style must be integers of shape \(B,\)"):
        metric.update(torch.rand(2), zero, zero, zero)
    with pytest.raises(ValueError, match=r"got \(1,\) torch.int64 for \(2,\)"):
        metric.update(zero, zero, zero, zero[:1])
    with pytest.raises(ValueError, match="What has the model unlearned"):
        metric.compute()


def shared(rank: int, processes: int) -> list[float]:
    """Some of the images each; processes have unlike numbers of them. See tests/distributed."""
    scores = noise(11, CanvasNames(("A", "B", "C"), ("x", "y"), photo=None))
    metric = CanvasAccuracy(scores.names, "C")
    metric.update(*(values[rank::processes] for values in images(scores)))
    return [float(value) for target in ("C", "y", ("A", "x")) for value in metric.compute(target).values()]
