"""Deltas from the command line and of real models."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightning_unlearn import LitCausalLM, apply_delta, delta_info
from lightning_unlearn.cli.fit import UnlearnCLI
from lightning_unlearn.cli.main import main
from tests.helpers import same, trainer
from tests.weights.delta.models import digests, move


@pytest.mark.parametrize("lora", [False, True])
def test_export_apply_and_revert_from_the_command_line(
    lora: bool, tiny_lm: Path, tmp_path: Path, delta: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForCausalLM

    run = ["--config", "examples/capitals.yaml", f"--model.init_args.model={tiny_lm}", "--trainer.accelerator=cpu"]
    run += [f"--trainer.default_root_dir={tmp_path}", "--trainer.enable_progress_bar=false", "--trainer.max_steps=2"]
    run += ["--model.init_args.lora.r=4"] if lora else [r"--model.init_args.trainable=mlp\.down_proj"]
    cli = UnlearnCLI(["fit", *run, "--config", "callbacks/objectives/simnpo.yaml"])
    path = cli.trainer.checkpoint_callback.best_model_path  # type: ignore[union-attr]
    before = digests(tiny_lm)

    capsys.readouterr()
    main(["export", f"--ckpt_path={path}", f"--delta={delta}", f"--output_dir={tmp_path / 'whole'}"])
    assert "weights changed (" in capsys.readouterr().out
    info = delta_info(delta)
    down = 2 * 32 * 64
    assert info.changed > 0
    assert lora or info.changed <= down
    main(["export", f"--ckpt_path={path}", f"--delta={tmp_path / 'again.safetensors'}", f"--base={tiny_lm}"])
    assert (tmp_path / "again.safetensors").read_bytes() == delta.read_bytes()

    patched, reverted = tmp_path / "patched", tmp_path / "reverted"
    main(["delta", "apply", f"--model={tiny_lm}", f"--delta={delta}", f"--output={patched}"])
    plain, expected = (AutoModelForCausalLM.from_pretrained(folder) for folder in (patched, tmp_path / "whole"))
    assert same(plain, expected)
    main(["delta", "revert", f"--model={patched}", f"--delta={delta}", f"--output={reverted}"])
    assert digests(reverted) == digests(tiny_lm) == before


def test_the_command_says_what_it_needs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=r"There is nothing to write\. Give --output_dir"):
        main(["export", "--ckpt_path=run.ckpt"])
    with pytest.raises(SystemExit):
        main(["delta", "--help"])
    text = capsys.readouterr().out
    assert "apply" in text
    assert "revert" in text


def checkpoint(module: LitCausalLM, path: Path) -> Path:
    run = trainer(max_epochs=0)
    run.strategy.connect(module)
    run.save_checkpoint(path)
    return path


def test_a_run_in_fp32_from_a_folder_in_bf16(tiny_lm: Path, tmp_path: Path, delta: Path) -> None:
    half, full = tmp_path / "half", tmp_path / "full"
    LitCausalLM(str(tiny_lm), dtype="bfloat16").save_pretrained(half)
    module = LitCausalLM(str(half))
    with torch.no_grad():
        module.model.model.norm.weight[:3] *= 1 + 2**-20  # too little for bf16
    main(["export", f"--ckpt_path={checkpoint(module, tmp_path / 'run.ckpt')}", f"--delta={delta}"])
    assert (delta_info(delta).dtype, delta_info(delta).changed) == ("float32", 3)
    with pytest.raises(ValueError, match=r"but bfloat16 .* in the model.*save both with the same dtype"):
        apply_delta(half, delta, tmp_path / "out")
    LitCausalLM(str(half)).save_pretrained(full)
    apply_delta(full, delta, tmp_path / "out")
    assert same(LitCausalLM(str(tmp_path / "out")).model, module.model)


@pytest.mark.slow
def test_a_gguf_file_is_a_base(smollm2: str, tmp_path: Path, delta: Path) -> None:
    module = LitCausalLM(smollm2, trainable=r"layers\.3\.mlp\.down_proj")
    weight = module.model.model.layers[3].mlp.down_proj.weight
    with torch.no_grad():
        weight.copy_(move(weight, 0.1))
    main(["export", f"--ckpt_path={checkpoint(module, tmp_path / 'run.ckpt')}", f"--delta={delta}"])
    assert delta_info(delta).changed == round(0.1 * weight.numel())
    main(["delta", "apply", f"--model={smollm2}", f"--delta={delta}", f"--output={tmp_path / 'out'}"])
    assert same(LitCausalLM(str(tmp_path / "out")).model, module.model)


@pytest.mark.slow
@pytest.mark.alone
def test_the_unlearning_of_a_real_model_goes_on_and_off(smollm2: str, tmp_path: Path) -> None:
    example = Path(__file__).parents[3] / "examples" / "delta.py"
    command = [sys.executable, str(example), "--model", smollm2, "--output", str(tmp_path / "delta")]
    subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "2"}, check=True, capture_output=True, timeout=800)
    found = json.loads((tmp_path / "delta" / "delta.json").read_text())
    assert found["applied_is_trained"]
    assert found["reverted_is_base"]
    assert found["changed"] <= found["weights"] // 10
    assert found["delta_bytes"] < 0.135 * found["model_bytes"]  # a tenth of the weights, and a bit for each
    assert found["reverted"] == found["base"]
    assert found["unlearned"]["forget"] <= 1 / 12 < 8 / 12 <= found["base"]["forget"]
    assert found["unlearned"]["retain"] >= 11 / 12
