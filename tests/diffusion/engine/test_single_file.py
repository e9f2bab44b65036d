"""Single files in the original layout, read back by diffusers' own converter."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lightning_unlearn import LitTextToImage
from lightning_unlearn.diffusion.engine.single_file import original_layout, save_single_file


def equal_parts(one: Any, other: Any) -> bool:
    pairs = [(getattr(one, n).state_dict(), getattr(other, n).state_dict()) for n in ("unet", "vae", "text_encoder")]
    return all(a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a) for a, b in pairs)


@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
def test_diffusers_reads_the_same_weights(act: str, deep_sd: Path, tiny_v: Path, tmp_path: Path) -> None:
    """With the text encoders of 1.x (OpenAI) and of 2.x (OpenCLIP), whose queries, keys and values are one tensor."""
    from diffusers import StableDiffusionPipeline

    source = deep_sd if act == "quick_gelu" else tiny_v
    module = LitTextToImage(str(source))
    module.text_encoder.config.hidden_act = act
    module.save_single_file(tmp_path / "one.safetensors")
    names = load_file(tmp_path / "one.safetensors").keys()
    assert ("cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight" in names) == (act == "gelu")
    read = StableDiffusionPipeline.from_single_file(
        str(tmp_path / "one.safetensors"), config=str(source), safety_checker=None, local_files_only=True
    )
    if act == "gelu":  # the folder's own settings say that it is of the other kind
        assert module.text_encoder.state_dict().keys() == read.text_encoder.state_dict().keys()
    assert equal_parts(module, read)
    assert read.scheduler.config.prediction_type == ("epsilon" if act == "quick_gelu" else "v_prediction")


def test_a_single_file_opens_trains_and_draws_as_its_folder(tiny_sd: Path, tmp_path: Path) -> None:
    module = LitTextToImage(str(tiny_sd), trainable="kv")
    module.save_single_file(tmp_path / "one.safetensors")
    other = LitTextToImage(str(tmp_path / "one.safetensors"), trainable="kv", config=str(tiny_sd))
    assert equal_parts(module, other)
    assert sum(p.requires_grad for p in other.parameters()) == sum(p.requires_grad for p in module.parameters())
    assert torch.equal(*(m.generate(["a red circle"], [0], steps=2) for m in (module, other)))
    other.save_pretrained(tmp_path / "folder")
    assert equal_parts(module, LitTextToImage(str(tmp_path / "folder")))


def test_the_layout_of_stable_diffusion_1_5() -> None:
    """The released file has 686 tensors of the UNet, 248 of the autoencoder, and 196 weights of the text encoder."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8, sample_size=64)
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
        )
        text = CLIPTextModel(CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12))
    weights = original_layout(SimpleNamespace(unet=unet, vae=vae, text_encoder=text))
    counts = {n: sum(k.startswith(n) for k in weights) for n in ("model.", "first_stage_model.", "cond_stage_model.")}
    assert counts == {"model.": 686, "first_stage_model.": 248, "cond_stage_model.": 196}
    known = {
        "model.diffusion_model.output_blocks.2.1.conv.weight": (1280, 1280, 3, 3),
        "model.diffusion_model.output_blocks.8.2.conv.weight": (640, 640, 3, 3),
        "model.diffusion_model.input_blocks.3.0.op.weight": (320, 320, 3, 3),
        "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": (640, 768),
        "first_stage_model.decoder.up.1.block.0.nin_shortcut.weight": (256, 512, 1, 1),
        "first_stage_model.decoder.mid.attn_1.proj_out.weight": (512, 512, 1, 1),
        "cond_stage_model.transformer.text_model.encoder.layers.11.mlp.fc2.bias": (768,),
    }
    assert {name: tuple(weights[name].shape) for name in known} == known


@pytest.mark.parametrize(
    ("name", "error", "match"),
    [
        ("conditioner.embedders.0.weight", TypeError, "Stable Diffusion XL"),
        ("model.diffusion_model.joint_blocks.0.weight", TypeError, "Stable Diffusion 3"),
        ("double_blocks.0.img_attn.qkv.weight", TypeError, "Flux"),
        ("lora_unet_mid_block.lora_down.weight", TypeError, "a LoRA"),
        (
            "model.diffusion_model.out.2.bias",
            TypeError,
            r"no weights named first_stage_model\.\*, cond_stage_model\.\*",
        ),
    ],
)
def test_other_files_are_refused_by_name(name: str, error: Any, match: str, tiny_sd: Path, tmp_path: Path) -> None:
    save_file({name: torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(error, match=match):
        LitTextToImage(str(tmp_path / "x.safetensors"), config=str(tiny_sd))


def test_bad_files(tiny_sd: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.safetensors").write_bytes(b"x")
    with pytest.raises(ValueError, match="is no safetensors file"):
        LitTextToImage(str(tmp_path / "cut.safetensors"))
    module = LitTextToImage(str(tiny_sd))
    with pytest.raises(ValueError, match="Let it end so"):
        save_single_file(module, tmp_path / "one.ckpt")
    module.save_single_file(tmp_path / "one.safetensors")
    with pytest.raises(ValueError, match=r"has neither settings nor a tokenizer\. Give config="):
        LitTextToImage(str(tmp_path / "one.safetensors"))
