from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_unlearn.diffusion.canvas.names import MINI_CANVAS, UNLEARN_CANVAS, CanvasNames
from lightning_unlearn.diffusion.canvas.scores import AnswerScores


def test_the_published_names() -> None:
    assert (len(UNLEARN_CANVAS.styles), len(UNLEARN_CANVAS.all_styles), len(UNLEARN_CANVAS.objects)) == (50, 51, 20)
    assert UNLEARN_CANVAS.prompt("Seed_Images", "Architectures") == "A Architectures image in Photo style."
    assert MINI_CANVAS.prompt("photo", "ring") == "a ring image in photo style"


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("Cold_Warm_Cats_seed188.jpg", ("Cold_Warm", "Cats", 188)),
        ("Red_Blue_Ink_Sea_seed888.jpg", ("Red_Blue_Ink", "Sea", 888)),
        ("Artist_Sketch_Dogs_seed288.png", ("Artist_Sketch", "Dogs", 288)),
        ("folder/Seed_Images_Trees_seed5.jpg", ("Seed_Images", "Trees", 5)),
    ],
)
def test_file_names_with_underscores(file: str, expected: tuple[str, str, int]) -> None:
    assert UNLEARN_CANVAS.parse(file) == expected
    assert UNLEARN_CANVAS.parse(UNLEARN_CANVAS.file_name(*expected)) == expected


@pytest.mark.parametrize("file", ["Cats_Cold_Warm_seed188.jpg", "Cold_Warm_Cats.jpg", "Cold_Cats_seed1.jpg", "x.txt"])
def test_other_files_are_refused(file: str) -> None:
    with pytest.raises(ValueError, match="is not named as an image of an answer set"):
        UNLEARN_CANVAS.parse(file)


def test_a_name_that_occurs_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="Sketch"):
        CanvasNames(("Sketch",), ("Sketch",))


def test_scores_survive_their_file(tmp_path: Path) -> None:
    names = CanvasNames(("A", "B_C"), ("x", "y"), photo="Seed_Images")
    scores = AnswerScores.empty(names, [188, 288])
    scores.style[1, 0, 1], scores.object[1, 0, 1] = 2, 1
    scores.style[0, 1, 0], scores.object[0, 1, 0] = 0, 1
    scores.write(tmp_path / "scores.csv")
    back = AnswerScores.read(tmp_path / "scores.csv", names)
    assert back.seeds == (188, 288)
    assert torch.equal(back.style, scores.style)
    assert torch.equal(back.object, scores.object)
    assert int(back.seen.sum()) == 2
    assert back.style_right[0, 1, 0]
    assert back.object_right[0, 1, 0]
    assert back.missing() == [
        *("A_x_seed188.jpg", "A_x_seed288.jpg", "A_y_seed288.jpg"),
        *("B_C_x_seed188.jpg", "B_C_y_seed188.jpg", "B_C_y_seed288.jpg"),
    ]
