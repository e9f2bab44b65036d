"""Every YAML file of the repository parses, instantiates, and starts with the command that launches it."""

from __future__ import annotations

import io
import json
import shlex
import shutil
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from lightning.pytorch.cli import LightningCLI

import lightning_unlearn
from lightning_unlearn import (
    NPO,
    CaptionedImageDataModule,
    DialogueJudge,
    LitCausalLM,
    LitTextToImage,
    UnlearnMonitor,
)
from lightning_unlearn.cli.fit import UnlearnCLI
from lightning_unlearn.cli.main import main
from tests.dialogue.uss_files import write_jsonl, write_uss
from tests.user_module import LitNet, loaders

ROOT = Path(__file__).parents[2]
FRAGMENTS = sorted(ROOT.glob("callbacks/**/*.yaml"))
SWEEPS = {ROOT / "examples/sweep.yaml", *ROOT.glob("examples/sweeps/*.yaml")}
EXAMPLES = sorted(set(ROOT.glob("examples/**/*.yaml")) - SWEEPS)
CLASSIFIERS = {"examples/digits.yaml", "examples/tabular.yaml", "examples/text.yaml"}
"""Examples of classifiers."""
PIPELINES = {"examples/erase.yaml", "examples/erase_images.yaml", "examples/canvas_base.yaml"}
"""Examples that open a pipeline of diffusers."""
TRAINING = {"examples/canvas_base.yaml", "examples/canvas_judge.yaml"}
"""Examples that train what a benchmark needs, and forget nothing."""
SCANS = {"examples/mri.yaml", "examples/mri_pretrain.yaml"}
"""Examples of image reconstruction, which forget nothing."""
JUDGES = {"examples/judge.yaml", "examples/judge_probe.yaml", "examples/judge_uss.yaml"}
"""Examples of a judge of dialogues."""
QUIET = ["--trainer.logger=false", "--trainer.accelerator=cpu", "--trainer.enable_checkpointing=false"]


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["lightning-unlearn"])


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


class Data(L.LightningDataModule):
    def train_dataloader(self) -> Any:
        return loaders()


def test_there_are_yaml_files() -> None:
    assert len(FRAGMENTS) >= 7
    assert EXAMPLES


@pytest.mark.parametrize("path", [*FRAGMENTS, *EXAMPLES], ids=name)
def test_the_first_line_launches_the_file(path: Path, tiny_lm: Path, tiny_sd: Path, tmp_path: Path) -> None:
    first = path.read_text().splitlines()[0]
    assert f"--config {name(path)}" in first
    _, program, command, *words = shlex.split(first, comments=False)
    assert (program, command) in {("lightning-unlearn", name) for name in ("fit", "predict", "test")}
    kind: Any = LitCausalLM
    small = f"--model.init_args.model={tiny_lm}"
    if CLASSIFIERS.intersection(words):
        kind, small = L.LightningModule, "--model.init_args.weights=null"
    elif PIPELINES.intersection(words):
        kind, small = LitTextToImage, f"--model.init_args.model={tiny_sd}"
    elif TRAINING.intersection(words):
        kind, small = L.LightningModule, "--model.init_args.backbone=miniature"
    elif SCANS.intersection(words):
        kind, small = L.LightningModule, "--data.init_args.batch_size=1"
    elif JUDGES.intersection(words):
        uss = "examples/judge_uss.yaml" in words
        data = write_uss(tmp_path) if uss else write_jsonl(tmp_path / "dialogues.jsonl")
        kind, words = DialogueJudge, [*words, f"--data.init_args.path={data}"]
    cli = UnlearnCLI([*words, small, *QUIET], run=False)
    assert isinstance(cli.model, kind)
    acts = lightning_unlearn.UnlearnCallback if command == "fit" else lightning_unlearn.Guard
    assert any(isinstance(c, acts) for c in cli.trainer.callbacks) != bool(
        (TRAINING | SCANS | JUDGES).intersection(words)
    )


@pytest.mark.parametrize("path", FRAGMENTS, ids=name)
def test_a_fragment_attaches_to_any_lightning_cli(path: Path) -> None:
    cli = LightningCLI(LitNet, Data, run=False, save_config_callback=None, args=["--config", name(path), *QUIET])
    for entry in yaml.safe_load(path.read_text())["trainer"]["callbacks+"]:
        expected = getattr(lightning_unlearn, entry["class_path"].rpartition(".")[2])
        (attached,) = [c for c in cli.trainer.callbacks if isinstance(c, expected)]
        assert_given(attached, entry.get("init_args", {}))


def assert_given(instance: Any, arguments: dict[str, Any]) -> None:
    for key, value in arguments.items():
        part = getattr(instance, key)
        if isinstance(value, dict) and not isinstance(part, dict):
            assert_given(part, value)
        else:
            assert part == value


def test_a_bare_lightning_cli_of_a_users_module_trains_with_a_fragment() -> None:
    score = "--trainer.callbacks.score=lightning_unlearn.classifier_nll"
    fragment = ["--config", "callbacks/objectives/npo.yaml", score]
    cli = LightningCLI(
        LitNet, Data, save_config_callback=None, args=["fit", *fragment, *QUIET, "--trainer.max_steps=2"]
    )
    assert cli.trainer.global_step == 2
    assert "unlearn/forget" in cli.trainer.callback_metrics


def test_fragments_add_up() -> None:
    configs = ["examples/capitals.yaml", "callbacks/objectives/npo.yaml", "callbacks/language/monitor.yaml"]
    text = printed(["fit", *(word for config in configs for word in ("--config", config))])
    paths = [c["class_path"].rpartition(".")[2] for c in yaml.safe_load(text)["trainer"]["callbacks"]]
    assert paths == [NPO.__name__, UnlearnMonitor.__name__]


def test_print_config_round_trips(tmp_path: Path) -> None:
    once = printed(["fit", "--config", "examples/capitals.yaml", "--config", "callbacks/objectives/npo.yaml"])
    (tmp_path / "run.yaml").write_text(once)
    assert printed(["fit", "--config", str(tmp_path / "run.yaml")]) == once


def printed(args: list[str]) -> str:
    out = io.StringIO()
    with redirect_stdout(out), pytest.raises(SystemExit) as done:
        UnlearnCLI([*args, "--print_config"])
    assert done.value.code == 0
    return out.getvalue()


def test_fit_validate_predict_and_export_from_the_command_line(
    tiny_lm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = f"--model.init_args.model={tiny_lm}"
    run = ["--config", "examples/capitals.yaml", model, "--trainer.accelerator=cpu"]
    run += [f"--trainer.default_root_dir={tmp_path}", "--trainer.enable_progress_bar=false"]
    cli = UnlearnCLI(["fit", *run, "--config", "callbacks/objectives/simnpo.yaml", "--trainer.max_steps=2"])
    checkpoint = cli.trainer.checkpoint_callback.best_model_path  # type: ignore[union-attr]
    assert Path(checkpoint).is_file()

    UnlearnCLI(["validate", *run, f"--ckpt_path={checkpoint}"])
    UnlearnCLI(["test", *run, f"--ckpt_path={checkpoint}"])
    output = capsys.readouterr().out
    assert "val/forget_nll" in output
    assert "test/general_nll" in output
    UnlearnCLI(["predict", *run, f"--ckpt_path={checkpoint}"])
    lines = (tmp_path / "predictions.jsonl").read_text().splitlines()
    assert len(lines) == 48
    assert json.loads(lines[0]).keys() == {"set", "question", "answer", "accept", "text"}

    main(["export", f"--ckpt_path={checkpoint}", f"--output_dir={tmp_path / 'out'}"])
    AutoTokenizer.from_pretrained(tmp_path / "out")
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    for key, value in cli.model.model.state_dict().items():
        assert (exported[key] == value).all()


def test_a_diffusion_model_from_the_command_line(
    tiny_sd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fit, predict with a guard and export; what is drawn can be learned from."""
    from diffusers import StableDiffusionPipeline

    run = ["--config", "examples/erase.yaml", f"--model.init_args.model={tiny_sd}", "--model.init_args.steps=2"]
    run += ["--trainer.accelerator=cpu", f"--trainer.default_root_dir={tmp_path}", "--trainer.logger=false"]
    run += ["--trainer.enable_progress_bar=false"]
    cli = UnlearnCLI(["fit", *run, "--config", "callbacks/diffusion/esd.yaml", "--trainer.max_steps=2"])
    checkpoint = cli.trainer.checkpoint_callback.best_model_path  # type: ignore[union-attr]

    def drawn(*more: str) -> list[dict[str, Any]]:
        shutil.rmtree(tmp_path / "images", ignore_errors=True)  # predict does not write over files
        (tmp_path / "predictions.jsonl").unlink(missing_ok=True)
        UnlearnCLI(["predict", *run, f"--ckpt_path={checkpoint}", *more])
        return [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]

    rows = drawn()
    assert [row["prompt"] for row in rows] == [cli.datamodule.sources["forget"][0], *cli.datamodule.sources["retain"]]
    assert rows[1] == {"set": "retain", "prompt": "a photo of a dog", "seed": 1, "file_name": "images/00001.png"}
    data = CaptionedImageDataModule(str(tmp_path / "predictions.jsonl"), size=16, tokenizer=cli.model.tokenizer)
    data.setup("fit")
    images = torch.stack([row["pixel_values"] for row in data.sets["forget"]]) / 2 + 0.5
    prompts, seeds = ([row[key] for row in rows] for key in ("prompt", "seed"))
    torch.testing.assert_close(images, cli.model.generate(prompts, seeds), atol=1 / 255, rtol=0)
    with pytest.raises(FileExistsError, match=r"predictions\.jsonl is already.*--trainer\.default_root_dir"):
        UnlearnCLI(["predict", *run, f"--ckpt_path={checkpoint}"])
    guard = ["--config", "callbacks/diffusion/suppress_eot.yaml", "--trainer.callbacks.options={scale: 3.0}"]
    drawn(*guard)
    guarded = torch.stack([row["pixel_values"] for row in data.sets["forget"]]) / 2 + 0.5
    differs = (guarded - images).abs().flatten(1).amax(1) > 2 / 255
    assert differs.tolist() == [True, False, False, False, False]

    main(["export", f"--ckpt_path={checkpoint}", f"--output_dir={tmp_path / 'out'}"])
    with pytest.raises((FileExistsError, SystemExit)):
        main(["export", f"--ckpt_path={checkpoint}", f"--output_dir={tmp_path / 'out'}"])
    exported = StableDiffusionPipeline.from_pretrained(tmp_path / "out", safety_checker=None).unet.state_dict()
    for key, value in cli.model.unet.state_dict().items():
        assert torch.equal(exported[key], value)
    capsys.readouterr()
    with pytest.raises((ValueError, SystemExit)):
        main(["export", f"--ckpt_path={checkpoint}", f"--delta={tmp_path / 'delta'}"])


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    text = capsys.readouterr().out
    for command in ("fit", "validate", "test", "predict", "demo", "export"):
        assert f"\n  {command} " in text
