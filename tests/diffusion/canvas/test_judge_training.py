"""Training of judges, on the miniature's drawings and with a vision transformer on a folder of the published layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_unlearn.cli.fit import UnlearnCLI
from lightning_unlearn.diffusion.canvas.export import export_mini_canvas
from lightning_unlearn.diffusion.canvas.folder import StyleObjectFolder
from lightning_unlearn.diffusion.canvas.judge_training import LitCanvasJudge, train_canvas_judges
from lightning_unlearn.diffusion.canvas.judges import CanvasJudges
from lightning_unlearn.diffusion.canvas.names import MINI_CANVAS, UNLEARN_CANVAS
from lightning_unlearn.diffusion.data.captioned_images import pixels

QUIET: dict[str, Any] = {"accelerator": "cpu", "enable_progress_bar": False}


@pytest.fixture(scope="module")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> StyleObjectFolder:
    return export_mini_canvas(tmp_path_factory.mktemp("mini") / "canvas", images=12, suffix=".png")


def test_trained_judges_tell_drawings_that_they_never_saw(drawings: StyleObjectFolder, tmp_path: Path) -> None:
    judges, accuracies = train_canvas_judges(
        drawings, tmp_path / "judges", epochs=12, noise=0.03, trainer=QUIET, batch_size=32
    )
    assert accuracies["style_accuracy"] >= 0.9
    assert accuracies["object_accuracy"] >= 0.8
    assert json.loads((tmp_path / "judges" / "accuracy.json").read_text()) == accuracies
    items = drawings.items("test")
    images = torch.stack([pixels(item.path, 32) for item in items])
    style, object = judges(images)
    right = [MINI_CANVAS.all_styles[s] == item.style for s, item in zip(style, items, strict=True)]
    assert sum(right) / len(right) == pytest.approx(accuracies["style_accuracy"])
    again = CanvasJudges.from_pretrained(tmp_path / "judges", MINI_CANVAS)
    assert all(torch.equal(a, b) for a, b in zip(again(images), (style, object), strict=True))
    assert again.version == judges.version


def test_a_transformer_of_51_and_20_classes_trains_from_the_command_line(
    canvas: Path, tiny_vit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(__file__).parents[3]
    monkeypatch.chdir(root)
    monkeypatch.setattr("sys.argv", ["lightning-unlearn"])
    command = ["fit", "--config", "examples/canvas_judge.yaml", f"--data.init_args.folder={canvas}"]
    command += [f"--model.init_args.backbone={tiny_vit}", f"--model.init_args.output={tmp_path / 'judges'}"]
    command += ["--data.init_args.size=16", "--data.init_args.num_workers=0", "--trainer.max_epochs=1"]
    command += ["--trainer.accelerator=cpu", "--trainer.precision=32-true", "--trainer.limit_val_batches=1"]
    command += ["--trainer.limit_train_batches=3", "--trainer.logger=false", "--trainer.enable_checkpointing=false"]
    cli = UnlearnCLI([*command, "--trainer.enable_progress_bar=false", f"--trainer.default_root_dir={tmp_path}"])
    assert isinstance(cli.model, LitCanvasJudge)
    judges = CanvasJudges.from_pretrained(tmp_path / "judges")
    assert [len(judges.style.classes), len(judges.object.classes)] == [51, 20]
    folder = StyleObjectFolder(canvas)
    images = torch.stack([pixels(item.path, 16) for item in folder.items("test", objects=["Sea"])])
    style, object = judges(images)
    assert style.shape == object.shape == (len(UNLEARN_CANVAS.all_styles),)
    with torch.no_grad():
        expected = cli.model.network.eval()(images)
    assert torch.equal(style, expected["style"].argmax(1))
    assert torch.equal(object, expected["object"].argmax(1))
