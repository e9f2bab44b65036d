"""A text encoder that goes from one model into others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lightning_unlearn import LitTextToImage
from lightning_unlearn.diffusion.engine.export import export_text_encoder, load_text_encoder
from lightning_unlearn.diffusion.engine.text import encode, tokenize


def edited(folder: Path) -> LitTextToImage:
    module = LitTextToImage(str(folder))
    with torch.no_grad():
        for i, parameter in enumerate(module.text_encoder.parameters()):
            parameter.add_(0.01 * (i + 1))
    return module


@torch.no_grad()
def states(model: Any) -> torch.Tensor:
    return encode(model, tokenize(model.tokenizer, ["a photo of van gogh"])["input_ids"])


@pytest.mark.parametrize("layout", ["transformers4", "transformers5"])
def test_each_layout_opens_everywhere_with_the_same_states(tiny_sd: Path, tmp_path: Path, layout: Any) -> None:
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPTextModel

    module = edited(tiny_sd)
    before = states(LitTextToImage(str(tiny_sd)))
    export_text_encoder(module, tmp_path / "encoder", layout)
    names = load_file(tmp_path / "encoder" / "model.safetensors").keys()
    assert len(names) == 36
    assert all(name.startswith("text_model.") == (layout == "transformers4") for name in names)
    assert "final_layer_norm.weight" in {name.removeprefix("text_model.") for name in names}
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_sd, safety_checker=None)
    other, encoder = LitTextToImage(str(tiny_sd)), CLIPTextModel.from_pretrained(tmp_path / "encoder")
    for target in (pipeline, other, other.text_encoder):
        load_text_encoder(target, tmp_path / "encoder")
    for found in (pipeline.text_encoder, other.text_encoder, encoder):
        other.text_encoder = found
        assert torch.equal(states(other), states(module))
    assert not torch.allclose(before, states(module), atol=1e-2)
    assert torch.equal(pipeline.unet.conv_in.weight, module.unet.conv_in.weight)


def test_the_models_own_encoder_keeps_its_place_and_precision(tiny_sd: Path, tmp_path: Path) -> None:
    export_text_encoder(edited(tiny_sd).text_encoder, tmp_path)
    module = LitTextToImage(str(tiny_sd))
    encoder = module.text_encoder.half()
    parameters = list(encoder.parameters())
    load_text_encoder(module, tmp_path)
    assert module.pipeline.text_encoder is module.text_encoder is encoder
    assert all(p is q and p.dtype == torch.float16 for p, q in zip(parameters, encoder.parameters(), strict=True))
    expected = edited(tiny_sd).text_encoder.half().parameters()
    assert all(torch.equal(p, q) for p, q in zip(parameters, expected, strict=True))


def test_a_pipelines_folder_and_old_position_ids_are_read(tiny_sd: Path, tmp_path: Path) -> None:
    module = edited(tiny_sd)
    module.save_pretrained(tmp_path / "whole")
    other = LitTextToImage(str(tiny_sd))
    load_text_encoder(other, tmp_path / "whole")
    assert torch.equal(states(other), states(module))
    export_text_encoder(module, tmp_path / "old")
    file = tmp_path / "old" / "model.safetensors"
    save_file(load_file(file) | {"text_model.embeddings.position_ids": torch.arange(16)[None]}, file)
    other = LitTextToImage(str(tiny_sd))
    load_text_encoder(other, tmp_path / "old")
    assert torch.equal(states(other), states(module))


def test_what_does_not_fit_is_refused_before_a_weight_moves(tiny_sd: Path, deep_sd: Path, tmp_path: Path) -> None:
    module = LitTextToImage(str(tiny_sd))
    before = states(module)
    with pytest.raises(ValueError, match=r"the model has no encoder.layers.10\..*and 157 more"):
        load_text_encoder(module, deep_sd)
    with pytest.raises(ValueError, match=r"the folder has no encoder.layers.10\."):
        load_text_encoder(LitTextToImage(str(deep_sd)), tiny_sd)
    export_text_encoder(edited(tiny_sd), tmp_path)
    file, name = tmp_path / "model.safetensors", "text_model.embeddings.token_embedding.weight"
    weights = load_file(file)
    save_file(weights | {name: torch.cat([weights[name], weights[name][:1]])}, file)
    rows = len(weights[name])
    with pytest.raises(ValueError, match=rf"shape \({rows + 1}, 32\) in the folder and \({rows}, 32\) in the model"):
        load_text_encoder(module, tmp_path)
    save_file(weights, file)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_act": "gelu"}))
    with pytest.raises(ValueError, match="hidden_act is 'gelu' in the folder and 'quick_gelu' in the model"):
        load_text_encoder(module, tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no config.json and no model.safetensors"):
        load_text_encoder(module, tmp_path / "nowhere")
    assert torch.equal(states(module), before)


def test_other_models_are_refused(tiny_sd: Path, tmp_path: Path) -> None:
    module: Any = LitTextToImage(str(tiny_sd))
    with pytest.raises(ValueError, match="'transformers3'"):
        export_text_encoder(module, tmp_path, "transformers3")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="got Linear"):
        export_text_encoder(torch.nn.Linear(1, 1), tmp_path)
    with pytest.raises(TypeError, match="got UNet2DConditionModel"):
        load_text_encoder(module.unet, tiny_sd)
    module.text_encoder_2 = None
    export_text_encoder(module, tmp_path / "one")
    module.text_encoder_2 = torch.nn.Linear(1, 1)
    with pytest.raises(TypeError, match="two text encoders"):
        export_text_encoder(module, tmp_path)
