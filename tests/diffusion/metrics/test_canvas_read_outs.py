from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from scipy.stats import binomtest

from lightning_unlearn.core.intervals import wilson
from lightning_unlearn.diffusion.canvas.counts import IncompleteAnswers
from lightning_unlearn.diffusion.canvas.names import ANSWER_SEEDS, MINI_CANVAS, UNLEARN_CANVAS, CanvasNames
from lightning_unlearn.diffusion.canvas.scores import AnswerScores
from lightning_unlearn.diffusion.metrics.canvas import AccuracyMatrix
from lightning_unlearn.diffusion.metrics.canvas_read_outs import canvas_read_out, confusion, pair_read_out, redirects
from lightning_unlearn.diffusion.metrics.canvas_sequence import SequentialErasure
from lightning_unlearn.functional.diffusion.canvas_accuracy import (
    concept_accuracies,
    erasure_accuracies,
    pair_accuracies,
    rebound,
    redirect_entropy,
    retained_accuracy,
)
from tests.diffusion.canvas.grids import by_hand, noise, perfect


def lacking(scores: AnswerScores, style: int, object: int, seed: int) -> AnswerScores:
    """Without one image."""
    scores.style[style, object, seed] = scores.object[style, object, seed] = -1
    return scores


# ---- one target ------------------------------------------------------------------------------------------------------


def test_rates_of_a_grid_by_hand() -> None:
    found = canvas_read_out(by_hand(), "A")
    assert {name: rate.value for name, rate in found.items()} == {"UA": 0.5, "IRA": 1.0, "CRA": 0.75}
    assert found["UA"] == wilson(1, 2)
    assert found["CRA"] == wilson(3, 4)
    assert canvas_read_out(by_hand(), "A", include_target=False)["CRA"] == wilson(2, 2)
    assert canvas_read_out(by_hand(), "y")["CRA"] == wilson(3, 4)


@pytest.mark.parametrize("photo", [False, True])
def test_rates_are_those_of_the_matrix(photo: bool) -> None:
    base = perfect(seeds=(188, 288, 588))
    matrix = AccuracyMatrix.from_scores(base, {name: noise(i) for i, name in enumerate("ABxy")}, photo=photo)
    for i, target in enumerate("ABxy"):
        expected = matrix.read_out(target)
        found = canvas_read_out(noise(i), target, photo=photo)
        assert {name: expected[name] for name in found} == pytest.approx({n: rate.value for n, rate in found.items()})
        without = canvas_read_out(noise(i), target, include_target=False, photo=photo)["CRA"].value
        assert without == pytest.approx(expected["CRA_without_target"])


def test_an_incomplete_answer_set_has_no_rates() -> None:
    scores = lacking(perfect(seeds=(188, 288)), 1, 0, 1)
    with pytest.raises(IncompleteAnswers, match="B_x_seed288"):
        canvas_read_out(scores, "A")
    assert canvas_read_out(scores, "A", seeds=[188])["UA"].value == 0


def test_a_target_without_another_of_its_kind() -> None:
    names = CanvasNames(("A",), ("x", "y"), photo=None)
    with pytest.raises(ValueError, match="need another concept of the target's kind"):
        canvas_read_out(perfect(names), "A")
    with pytest.raises(ValueError, match="but there is none"):
        erasure_accuracies(torch.ones(1), torch.ones(2), 0)


@pytest.mark.parametrize(("hits", "n"), [(0, 7), (3, 10), (7, 7), (4321, 5000)])
def test_wilson_intervals_are_scipys(hits: int, n: int) -> None:
    expected = binomtest(hits, n).proportion_ci(0.9, "wilson")
    assert wilson(hits, n, 0.9) == pytest.approx((hits / n, expected.low, expected.high), abs=1e-12)


def test_wilson_bounds_of_all_right() -> None:
    assert [round(wilson(n, n).low, 3) for n in (5, 20)] == [0.566, 0.839]
    assert wilson(20, 20).low == pytest.approx(20 / (20 + 3.8415), abs=1e-5)
    with pytest.raises(ValueError, match="can't be 3 hits in 2 trials"):
        wilson(3, 2)


# ---- pairs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("test", "expected"), [("both", (1, 0, 1, 1)), ("style", (1, 1, 1, 1)), ("object", (0, 0, 1, 1))]
)
def test_a_pair_by_hand(test: str, expected: tuple[float, ...]) -> None:
    found = pair_read_out(by_hand(), "A", "x", test)  # type: ignore[arg-type]
    assert tuple(rate.value for rate in found.values()) == expected
    assert tuple(found) == ("UA", "SC", "OC", "UP")


@pytest.mark.parametrize(
    ("names", "photo", "pair", "images"),
    [(UNLEARN_CANVAS, False, ("Van_Gogh", "Cats"), 5015), (MINI_CANVAS, True, ("mosaic", "ring"), 165)],
)
def test_the_pair_has_more_images_than_the_others(
    names: CanvasNames, photo: bool, pair: tuple[str, str], images: int
) -> None:
    seeds = (*ANSWER_SEEDS, *range(15))
    scores, whole = AnswerScores.empty(names, seeds), perfect(names, seeds)
    scores.style[..., :5], scores.object[..., :5] = whole.style[..., :5], whole.object[..., :5]
    at = names.styles.index(pair[0]), names.objects.index(pair[1])
    scores.style[at], scores.object[at] = whole.style[at], whole.object[at]
    scores.style[at][:15] = (at[0] + 1) % len(names.styles)
    assert int(scores.seen[: None if photo else -1].sum()) == images
    found = pair_read_out(scores, *pair, seeds=ANSWER_SEEDS, photo=photo)
    others = 5 * (len(names.objects) - 1)
    assert (found["UA"], found["SC"]) == (wilson(15, 20), wilson(others, others))
    with pytest.raises(IncompleteAnswers) as refused:
        pair_read_out(scores, *pair, photo=photo)
    cells = len(list(names.pairs(photo)))
    assert len(refused.value.missing[" x ".join(pair)]) == 15 * (cells - 1)
    with pytest.raises(IncompleteAnswers, match="1 "):
        pair_read_out(lacking(scores, *at, 19), *pair, seeds=ANSWER_SEEDS, photo=photo)


def test_pairs_that_can_not_be() -> None:
    with pytest.raises(ValueError, match="style must be 'A' or 'B', but got 'x'"):
        pair_read_out(by_hand(), "x", "A")
    with pytest.raises(ValueError, match="test must be 'both', 'style' or 'object'"):
        pair_read_out(by_hand(), "A", "x", "either")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="there are 1 styles and 2 objects"):
        pair_accuracies(torch.ones(1, 2), torch.ones(1, 2), 0, 0)
    with pytest.raises(ValueError, match=r"no image of the styles and objects \[\[0, 1\]\]"):
        pair_accuracies(torch.ones(2, 2), torch.tensor([[1, 0], [1, 1]]), 0, 0)


# ---- redirection -----------------------------------------------------------------------------------------------------


def test_where_a_target_is_redirected() -> None:
    scores = perfect(MINI_CANVAS, (1, 2))
    target, anchor = MINI_CANVAS.styles.index("negative"), len(MINI_CANVAS.styles)
    scores.style[target] = torch.tensor([anchor] * 6 + [0] * 2 + [3] * 2).view(5, 2)
    found = redirects(scores, "negative")
    assert list(found.items())[:3] == [("photo", 6), (MINI_CANVAS.styles[0], 2), (MINI_CANVAS.styles[3], 2)]
    assert sum(found.values()) == 10
    assert set(found) == set(MINI_CANVAS.all_styles)
    counts = confusion(scores, "style")[target]
    assert float(redirect_entropy(counts, target)) == pytest.approx(0.950 / math.log(5), abs=5e-4)


def test_how_evenly_labels_are_spread() -> None:
    assert float(redirect_entropy(torch.tensor([9, 0, 4, 0]), 0)) == 0
    assert float(redirect_entropy(torch.tensor([9, 3, 3, 3]), 0)) == pytest.approx(1)
    assert math.isnan(float(redirect_entropy(torch.tensor([9, 0, 0]), 0)))
    with pytest.raises(ValueError, match="needs two labels beside the target's"):
        redirect_entropy(torch.tensor([1, 2]), 0)


def test_confusion_counts_every_image_once() -> None:
    scores = noise(4)
    styles, objects = confusion(scores, "style", photo=True), confusion(scores, "object", photo=True)
    assert (styles.shape, objects.shape) == ((3, 3), (2, 2))
    assert styles.sum() == objects.sum() == 18
    assert int(styles.diag().sum()) == int(scores.style_right.sum())
    assert int(objects.diag().sum()) == int(scores.object_right.sum())
    assert confusion(scores, "style").shape == (2, 3)
    assert confusion(lacking(scores, 0, 0, 0), "object").sum() == 11


def test_a_redirect_needs_the_images_of_its_target_alone() -> None:
    scores = lacking(perfect(), 1, 1, 0)
    assert redirects(scores, "A") == {"A": 2, "B": 0, "Photo": 0}
    with pytest.raises(IncompleteAnswers, match="B_y_seed188"):
        redirects(scores, "y")


# ---- sequences -------------------------------------------------------------------------------------------------------

ABC = CanvasNames(("A", "B", "C"), ("x", "y"), photo="Photo")


def steps() -> list[AnswerScores]:
    """Style A is erased, then B, which brings A back in half of its images and costs an object."""
    first, second = perfect(ABC), perfect(ABC)
    first.style[0] = 2
    second.style[0, 1] = second.style[1, 0] = 2
    second.object[2, 1] = 0
    return [first, second]


def test_a_sequence_by_hand() -> None:
    found = SequentialErasure.from_scores(("A", "B"), steps())
    torch.testing.assert_close(found.ua, torch.tensor([[1, 0.5], [math.nan, 0.5]]).double(), equal_nan=True)
    assert found.ra.tolist() == pytest.approx([1, 11 / 12])
    assert found.rebound.tolist() == [0.5, 0]
    without = SequentialErasure.from_scores(("A", "B"), steps(), include_target=False)
    assert without.ra.tolist() == pytest.approx([1, 0.75])


def test_a_sequence_of_a_style_and_an_object() -> None:
    found = SequentialErasure.from_scores(("A", "y"), steps())
    assert found.ua[:, 1].tolist() == pytest.approx([0.5, 1 / 3])
    # Left are styles B (1/2) and C (1), and the object x (1).
    assert found.ra[1] == pytest.approx((0.75 + 1) / 2)


def test_retained_is_the_mean_of_ira_and_cra_and_without_a_request_that_of_the_base() -> None:
    scores = noise(5)
    found = canvas_read_out(scores, "A")
    sequence = SequentialErasure.from_scores(["A"], [scores])
    assert float(sequence.ra) == pytest.approx((found["IRA"].value + found["CRA"].value) / 2)
    assert float(sequence.ua) == pytest.approx(found["UA"].value)
    ones = torch.ones(2, 2)
    assert float(retained_accuracy(ones, 0 * ones, ones)) == 0.5


def test_rebound() -> None:
    ua = torch.tensor([[0.9, 0.8, 0.5], [math.nan, 0.9, 0.9], [math.nan, math.nan, 0.9]])
    assert rebound(ua).tolist() == pytest.approx([0.4, 0, 0])
    below = torch.where(ua.isnan(), 7.0, ua)
    assert SequentialErasure(("a", "b", "c"), below, torch.ones(3)).rebound.tolist() == pytest.approx([0.4, 0, 0])
    with pytest.raises(ValueError, match=r"each target and step, but got \(2, 3\)"):
        rebound(torch.ones(2, 3))


def test_the_file_of_a_sequence(tmp_path: Path) -> None:
    SequentialErasure.from_scores(("A", "B"), steps()).to_csv(tmp_path / "sequence.csv")
    lines = (tmp_path / "sequence.csv").read_text(encoding="utf-8").splitlines()
    assert lines[:3] == ["target,after A,after B,rebound", "A,1.0,0.5,0.5", "B,,0.5,0.0"]
    assert lines[3].startswith("RA,1.0,0.91666")


def test_sequences_that_can_not_be() -> None:
    with pytest.raises(ValueError, match="1 for 2 targets"):
        SequentialErasure.from_scores(("A", "B"), steps()[:1])
    with pytest.raises(ValueError, match="each once"):
        SequentialErasure.from_scores(("A", "A"), steps())
    with pytest.raises(ValueError, match="All styles or all objects"):
        SequentialErasure.from_scores(("A", "B"), [perfect(), perfect()])
    with pytest.raises(IncompleteAnswers, match=r"step 2, B: 1 \(C_y_seed188.jpg\)"):
        SequentialErasure.from_scores(("A", "B"), [steps()[0], lacking(perfect(ABC), 2, 1, 0)])


def test_concepts_without_an_image() -> None:
    with pytest.raises(ValueError, match=r"accuracy on styles \[1\] is undefined"):
        concept_accuracies(torch.ones(2, 2), torch.tensor([[1, 1], [0, 0]]), "style")
