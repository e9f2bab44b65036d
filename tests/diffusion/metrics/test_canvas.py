from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
import torch
from scipy.stats import spearmanr

from lightning_unlearn.core.intervals import bootstrap_mean
from lightning_unlearn.diffusion.canvas.counts import IncompleteAnswers, columns, target_cells
from lightning_unlearn.diffusion.canvas.names import UNLEARN_CANVAS, CanvasNames
from lightning_unlearn.diffusion.canvas.scores import AnswerScores
from lightning_unlearn.diffusion.metrics.canvas import AccuracyMatrix
from lightning_unlearn.diffusion.metrics.canvas_summary import canvas_summary
from tests.diffusion.canvas.grids import AB, by_hand, noise, perfect

# UA, IRA, CRA of styles, then of objects, in percent: Table 2 of arXiv:2402.11846.
PUBLISHED = {
    "ESD": (98.58, 80.97, 93.96, 92.15, 55.78, 44.23),
    "FMN": (88.48, 56.77, 46.60, 45.64, 90.63, 73.46),
    "UCE": (98.40, 60.22, 47.71, 94.31, 39.35, 34.67),
    "CA": (60.82, 96.01, 92.70, 46.67, 90.11, 81.97),
    "SalUn": (86.26, 90.39, 95.08, 86.91, 96.35, 99.59),
    "SEOT": (56.90, 94.68, 84.31, 23.25, 95.57, 82.71),
    "SPM": (60.94, 92.39, 84.33, 71.25, 90.79, 81.65),
    "EDiff": (92.42, 73.91, 98.93, 86.67, 94.03, 48.48),
    "SHS": (95.84, 80.42, 43.27, 80.73, 81.15, 67.99),
}
COLUMNS = [f"{kind}/{measure}" for kind in ("style", "object") for measure in ("UA", "IRA", "CRA")]


def published_matrix(path: Path, row: tuple[float, ...]) -> AccuracyMatrix:
    """A matrix of all 70 targets in percent, with the published means in each of its rows."""
    concepts = columns(UNLEARN_CANVAS)
    with path.open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file)
        lines.writerow(["target", *concepts])
        lines.writerow(["None", *[100.0] * len(concepts)])
        for target in concepts:
            kind = UNLEARN_CANVAS.kind(target)
            ua, ira, cra = row[:3] if kind == "style" else row[3:]
            accuracies = [ira if UNLEARN_CANVAS.kind(concept) == kind else cra for concept in concepts]
            accuracies[concepts.index(target)] = 100 - ua
            lines.writerow([target, *accuracies])
    return AccuracyMatrix.from_csv(path, UNLEARN_CANVAS, percent=True)


# ---- read-outs -------------------------------------------------------------------------------------------------------


def test_a_grid_by_hand() -> None:
    matrix = AccuracyMatrix.from_scores(perfect(), {"y": by_hand(), "A": by_hand()})
    assert (matrix.targets, matrix.concepts) == (("A", "y"), ("A", "B", "x", "y"))
    assert matrix.row("A").tolist() == [0.5, 1, 1, 0.5]
    assert matrix.row().tolist() == [1, 1, 1, 1]
    assert matrix.read_out("A") == {"UA": 0.5, "IRA": 1.0, "CRA": 0.75, "CRA_without_target": 1.0}
    assert matrix.read_out("y") == {"UA": 0.5, "IRA": 1.0, "CRA": 0.75, "CRA_without_target": 0.5}
    assert (matrix.targets_of("style"), matrix.block("style", "object").tolist()) == (("A",), [[1.0, 0.5]])


def test_photos_count_only_where_they_are_asked_for() -> None:
    scores = by_hand()
    scores.object[2] = 0  # each photo shows x
    assert AccuracyMatrix.from_scores(perfect(), {"A": scores}).read_out("A")["CRA"] == 0.75
    matrix = AccuracyMatrix.from_scores(perfect(), {"A": scores}, photo=True)
    assert matrix.concepts == ("A", "B", "Photo", "x", "y")
    assert matrix.read_out("A")["CRA"] == pytest.approx((1 + 1 / 3) / 2)  # y is right in B alone


def test_the_base_model_against_itself() -> None:
    base = noise(0)
    matrix = AccuracyMatrix.from_scores(base, {name: base for name in ("A", "B", "x", "y")})
    for target in matrix.targets:
        found = matrix.read_out(target)
        assert found["UA"] == 1 - float(matrix.row()[matrix.concepts.index(target)])
        assert {name: value for name, value in found.items() if name != "CRA_without_target"} == matrix.read_out(
            target, base=True
        )
    assert matrix.summary(base=True)["style/IRA"] == matrix.summary()["style/IRA"]


def test_one_image_for_all_prompts_fools_the_unlearning_accuracy() -> None:
    constant = AnswerScores.empty(UNLEARN_CANVAS, [188])
    constant.style[:], constant.object[:] = 7, 3
    matrix = AccuracyMatrix.from_scores(
        perfect(UNLEARN_CANVAS), {"Van_Gogh": constant, "Cats": constant, "Trees": perfect(UNLEARN_CANVAS)}
    )
    assert matrix.read_out("Van_Gogh")["UA"] == matrix.read_out("Cats")["UA"] == 1
    assert matrix.read_out("Van_Gogh")["IRA"] == pytest.approx(1 / 49)
    assert matrix.read_out("Van_Gogh")["CRA"] == pytest.approx(1 / 20)
    assert matrix.read_out("Cats")["CRA"] == pytest.approx(1 / 50)
    assert matrix.read_out("Trees")["UA"] == 0


def test_the_order_of_seeds_and_targets_changes_nothing() -> None:
    scores, base = noise(1), perfect(seeds=(188, 288, 588))
    order = [2, 0, 1]
    shuffled = AnswerScores(AB, (588, 188, 288), scores.style[..., order], scores.object[..., order])
    one = AccuracyMatrix.from_scores(base, {"A": scores, "x": noise(2)})
    other = AccuracyMatrix.from_scores(base, {"x": noise(2), "A": shuffled})
    assert one.targets == other.targets
    assert torch.equal(one.accuracy, other.accuracy)
    assert torch.equal(one.cra_without_target, other.cra_without_target)


def test_numbers_of_images_with_and_without_a_target() -> None:
    names, seeds = UNLEARN_CANVAS, 5
    assert seeds * len(list(names.pairs(photo=True))) == 5100
    assert seeds * len(list(names.pairs())) == 5000
    for photo, style, object in ((False, 4900, 4750), (True, 5000, 4845)):
        assert seeds * int((~target_cells(names, "Van_Gogh", photo)).sum()) == style
        assert seeds * int((~target_cells(names, "Cats", photo)).sum()) == object


# ---- published figures -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    path = tmp_path_factory.mktemp("published") / "matrix.csv"
    found = {}
    for method, row in PUBLISHED.items():
        summary = canvas_summary([published_matrix(path, row)], draws=2)
        found[method] = [100 * summary[column].value for column in COLUMNS]
    return found


def test_published_matrices_give_the_published_table(published: dict[str, list[float]]) -> None:
    for method, row in PUBLISHED.items():
        assert published[method] == pytest.approx(row, abs=1e-9)
    means = torch.tensor(list(published.values()), dtype=torch.float64).mean(0).tolist()
    assert [round(mean, 2) for mean in means] == [82.07, 80.64, 76.32, 69.73, 81.53, 68.31]


def test_the_published_trade_off(published: dict[str, list[float]]) -> None:
    rows = torch.tensor(list(published.values()))
    for first, spearman, lower in ((0, -0.70, 6), (3, -0.43, 8)):
        ua, ira, cra = rows[:, first : first + 3].T
        assert spearmanr(ua, ira).statistic == pytest.approx(spearman, abs=0.005)
        assert int((cra < ira).sum()) == lower


# ---- means and intervals ---------------------------------------------------------------------------------------------


def test_the_summary_of_one_target() -> None:
    summary = AccuracyMatrix.from_scores(perfect(), {"A": by_hand()}).summary()
    assert set(summary) == {f"style/{name}" for name in ("UA", "IRA", "CRA", "CRA_without_target", "H")}
    assert summary["style/CRA"].value == 0.75
    assert summary["style/H"].value == pytest.approx(3 / (2 + 1 + 4 / 3))
    assert math.isnan(summary["style/UA"].low)  # a single run has no spread


@pytest.mark.parametrize(("own", "expected"), [(0.0, 0.75), (1.0, 0.0)])
def test_the_harmonic_mean_of_three_rates(own: float, expected: float) -> None:
    accuracy = torch.tensor([[1, 1, 1, 1], [own, 0.75, 0.5, 0.7]])  # UA 1 or 0, IRA .75, CRA .6
    summary = AccuracyMatrix(AB, ("A",), accuracy, torch.tensor([math.nan])).summary()
    assert summary["style/H"].value == pytest.approx(expected)


def test_the_summary_of_several_seeds_is_over_targets_and_seeds() -> None:
    base = perfect(seeds=(188, 288, 588))
    matrices = [AccuracyMatrix.from_scores(base, {"A": noise(3 * i), "B": noise(3 * i + 1)}) for i in range(2)]
    matrices.append(AccuracyMatrix.from_scores(base, {"A": noise(9)}))
    ua = torch.tensor([m.read_out(target)["UA"] for m in matrices for target in m.targets], dtype=torch.float64)
    summary = canvas_summary(matrices)
    assert len(ua) == 5
    assert summary["style/UA"] == pytest.approx(bootstrap_mean(ua))
    assert summary["style/UA"].low < summary["style/UA"].value < summary["style/UA"].high
    assert not any(key.startswith("object/") for key in summary)


def test_the_mean_matrix_of_two_runs() -> None:
    one, two = (AccuracyMatrix.from_scores(perfect(), {"A": scores}) for scores in (by_hand(), perfect()))
    assert AccuracyMatrix.mean([one, two]).row("A").tolist() == [0.75, 1, 1, 0.75]
    assert AccuracyMatrix.mean([one, two]).read_out("A")["CRA_without_target"] == 1
    other = AccuracyMatrix.from_scores(perfect(), {"B": by_hand()})
    with pytest.raises(ValueError, match=r"same targets, but got \[\('A',\), \('B',\)\]"):
        AccuracyMatrix.mean([one, other])


def test_summaries_of_other_styles_are_refused() -> None:
    names = CanvasNames(("A", "C"), ("x", "y"))
    other = AccuracyMatrix.from_scores(perfect(names), {"A": perfect(names)})
    with pytest.raises(ValueError, match="different styles and objects"):
        canvas_summary([AccuracyMatrix.from_scores(perfect(), {"A": perfect()}), other])
    with pytest.raises(ValueError, match="no accuracy matrix"):
        canvas_summary([])


# ---- incomplete answer sets ------------------------------------------------------------------------------------------


def test_incomplete_answer_sets_are_refused_with_what_is_missing() -> None:
    lacking = perfect(seeds=(188, 288))
    lacking.style[0, 1, 1] = lacking.object[0, 1, 1] = -1
    lacking.style[2, 0, 0] = lacking.object[2, 0, 0] = -1
    short = perfect(seeds=(188,))
    with pytest.raises(IncompleteAnswers) as refused:
        AccuracyMatrix.from_scores(perfect(seeds=(188, 288)), {"A": lacking, "y": short})
    without_288 = ["A_x_seed288.jpg", "A_y_seed288.jpg", "B_x_seed288.jpg", "B_y_seed288.jpg"]
    assert refused.value.missing == {"A": ["A_y_seed288.jpg"], "y": without_288}
    assert "A: 1 (A_y_seed288.jpg)" in str(refused.value)
    with pytest.raises(IncompleteAnswers) as refused:
        AccuracyMatrix.from_scores(perfect(seeds=(188, 288)), {"A": lacking}, photo=True)
    assert refused.value.missing == {"A": ["A_y_seed288.jpg", "Photo_x_seed188.jpg"]}


def test_a_seed_that_is_complete_can_be_named() -> None:
    lacking = by_hand()
    wider = AnswerScores.empty(AB, (188, 288))
    wider.style[..., 0], wider.object[..., 0] = lacking.style[..., 0], lacking.object[..., 0]
    matrix = AccuracyMatrix.from_scores(wider, {"A": wider}, seeds=[188])
    assert matrix.read_out("A")["CRA"] == 0.75


def test_a_long_list_is_shortened_in_the_message_alone() -> None:
    with pytest.raises(IncompleteAnswers, match=r"None: 1000 \(.*, \.\.\.\)") as refused:
        AccuracyMatrix.from_scores(AnswerScores.empty(UNLEARN_CANVAS, [188]), {})
    assert len(refused.value.missing["None"]) == 1000
    assert len(str(refused.value)) < 600


@pytest.mark.parametrize(
    ("targets", "message"),
    [({"Z": perfect()}, "target must be 'A', 'B', 'x' or 'y', but got 'Z'"), ({"Photo": perfect()}, "got 'Photo'")],
)
def test_unknown_targets_are_refused(targets: dict[str, AnswerScores], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AccuracyMatrix.from_scores(perfect(), targets)


def test_answer_sets_of_other_names_are_refused() -> None:
    with pytest.raises(ValueError, match="of different styles and objects"):
        AccuracyMatrix.from_scores(perfect(), {"A": perfect(CanvasNames(("A", "C"), ("x", "y"), photo="Photo"))})


# ---- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("photo", [False, True])
def test_a_matrix_survives_its_file(tmp_path: Path, photo: bool) -> None:
    base = noise(0)
    matrix = AccuracyMatrix.from_scores(base, {"A": noise(1), "y": noise(2)}, photo=photo)
    matrix.to_csv(tmp_path / "matrix.csv")
    back = AccuracyMatrix.from_csv(tmp_path / "matrix.csv", AB)
    assert (back.targets, back.concepts, back.photo) == (matrix.targets, matrix.concepts, photo)
    assert torch.equal(back.accuracy, matrix.accuracy)
    assert torch.equal(back.cra_without_target, matrix.cra_without_target)


def test_the_file_of_others(tmp_path: Path) -> None:
    path = tmp_path / "theirs.csv"
    path.write_text("target;y;x;B;A\nA;50;100;100;50\nNone;100;100;100;100\n", encoding="utf-8")
    matrix = AccuracyMatrix.from_csv(path, AB, percent=True)
    assert matrix.read_out("A") == {"UA": 0.5, "IRA": 1.0, "CRA": 0.75}
    assert "style/CRA_without_target" not in matrix.summary()
    matrix.to_csv(path)
    assert path.read_text(encoding="utf-8").splitlines() == [
        "target,A,B,x,y,CRA_without_target",
        "None,1.0,1.0,1.0,1.0,",
        "A,0.5,1.0,1.0,0.5,",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no column target, A, B, x, y"),
        ("target,A,B,x\nNone,1,1,1\n", "has no column y"),
        ("target,A,B,x,y,z\nNone,1,1,1,1,1\n", "has columns of no style or object: z"),
        ("target,A,B,x,y\nA,1,1,1,1\n", "has no row for the base model, named None"),
        ("target,A,B,x,y\nNone,1,1,1,1\nA,1,1,1,1\nA,1,1,1,1\n", "has two rows for A"),
        ("target,A,B,x,y\nNone,1,1,1,1\nA,1,,1,1\n", "has empty cells in the rows A"),
        ("target,A,B,x,y\nNone,1,1,1,1\nA,98.5,1,1,1\n", "there is 98.5. Divide percentages by 100"),
        ("target,A,B,x,y\nNone,1,1,1,1\nA,none,1,1,1\n", "could not convert string to float: 'none'"),
        ("target,A,B,x,y\nNone,1,1,1,1\nC,1,1,1,1\n", "but got 'C'"),
    ],
)
def test_files_that_are_no_matrix(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "matrix.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        AccuracyMatrix.from_csv(path, AB)


def test_numbers_that_are_no_matrix() -> None:
    row, one = torch.ones(1, 4), torch.ones(1)
    with pytest.raises(ValueError, match=r"accuracy must have the shape \(2, 4\), but has \(1, 4\)"):
        AccuracyMatrix(AB, ("A",), row, one)
    with pytest.raises(ValueError, match=r"there is nan"):
        AccuracyMatrix(AB, ("A",), torch.full((2, 4), math.nan), one)
    with pytest.raises(ValueError, match="is there twice"):
        AccuracyMatrix(AB, ("A", "A"), torch.ones(3, 4), torch.ones(2))
