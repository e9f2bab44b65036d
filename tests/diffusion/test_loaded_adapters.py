"""A LoRA that is loaded is refused everywhere, before a weight moves, and the ways out work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from peft import LoraConfig, inject_adapter_in_model
from peft.utils import get_peft_model_state_dict

from lightning_unlearn import (
    ESD,
    RECE,
    SPM,
    UCE,
    AdvUnlearn,
    LitTextToImage,
    SafeLatentDiffusion,
    export_text_encoder,
    load_text_encoder,
)
from lightning_unlearn.diffusion.engine.model import as_text_to_image
from tests.diffusion.tiny import first_batch, prompts, trainer, weights


@pytest.fixture(scope="module")
def lora(tiny_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from diffusers.utils import convert_state_dict_to_diffusers

    folder, module = tmp_path_factory.mktemp("lora"), LitTextToImage(str(tiny_sd))
    module.unet.add_adapter(LoraConfig(r=2, target_modules=["to_k", "to_v"], init_lora_weights=False))
    state = convert_state_dict_to_diffusers(get_peft_model_state_dict(module.unet))
    module.pipeline.save_lora_weights(folder, unet_lora_layers=state)
    return folder


def loaded(module: LitTextToImage, lora: Path) -> None:
    module.pipeline.load_lora_weights(str(lora))


def fused(module: LitTextToImage, lora: Path) -> None:
    loaded(module, lora)
    module.pipeline.fuse_lora()


def in_text_encoder(module: LitTextToImage, lora: Path) -> None:
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["q_proj"]), module.text_encoder)


def dora_in_unet(module: LitTextToImage, lora: Path) -> None:
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["to_q"], use_dora=True), module.unet)


@pytest.mark.parametrize("load", [loaded, fused, in_text_encoder, dora_in_unet])
def test_methods_and_exports_refuse_it(load: Callable[..., None], tiny_sd: Path, lora: Path, tmp_path: Path) -> None:
    module = LitTextToImage(str(tiny_sd))
    batch = first_batch(module)
    load(module, lora)
    before = weights(module)
    data: Any = prompts()
    tries: list[Callable[[], Any]] = [
        lambda: trainer(ESD(steps=2)).fit(module, data),
        lambda: trainer(AdvUnlearn(warmup=0, steps=2)).fit(module, data),
        lambda: trainer(SPM(steps=2)).fit(module, data),
        lambda: trainer(UCE()).fit(module, data),
        lambda: trainer(RECE()).fit(module, data),
        lambda: UCE().edit(module, data, data),
        lambda: module.training_step(batch["forget"], 0),
        lambda: module.save_pretrained(tmp_path / "out"),
        lambda: module.save_single_file(tmp_path / "out.safetensors"),
        lambda: export_text_encoder(module, tmp_path / "out"),
        lambda: load_text_encoder(module, tiny_sd),
    ]
    for run in tries:
        with pytest.raises(ValueError, match=r"An adapter, such as a LoRA, is loaded in .*unload_lora_weights"):
            run()
    assert not list(tmp_path.iterdir())
    assert all(torch.equal(p, before[name]) for name, p in module.named_parameters())
    if load is loaded:  # a guard changes no weight, and may be used
        with SafeLatentDiffusion(module, "van gogh"):
            module.generate(["a red circle"], [0], steps=1)


def test_the_ways_out(tiny_sd: Path, lora: Path, tmp_path: Path) -> None:
    module = LitTextToImage(str(tiny_sd), trainable="kv")
    loaded(module, lora)
    wanted = module.generate(["a red circle"], [0], steps=2)
    module.pipeline.fuse_lora()
    module.pipeline.unload_lora_weights()
    as_text_to_image(module)
    with pytest.raises(MisconfigurationException, match=r"No weight of the module trains\. Loading a LoRA freezes"):
        trainer(ESD(steps=2)).fit(module, prompts())
    module.save_pretrained(tmp_path)
    merged = LitTextToImage(str(tmp_path), trainable="kv")
    torch.testing.assert_close(merged.generate(["a red circle"], [0], steps=2), wanted, atol=1e-4, rtol=0)
    trainer(ESD(steps=2), max_steps=1).fit(merged, prompts())


def test_fused_projections_are_refused_and_the_way_out(tiny_sd: Path, tmp_path: Path) -> None:
    module = LitTextToImage(str(tiny_sd))
    module.pipeline.fuse_qkv_projections()
    before, data = weights(module), prompts()
    tries: list[Callable[[], Any]] = [
        lambda: trainer(ESD(steps=2)).fit(module, data),
        lambda: trainer(UCE()).fit(module, data),
        lambda: module.save_pretrained(tmp_path / "out"),
    ]
    for run in tries:
        with pytest.raises(ValueError, match=r"projections of unet are fused.*unfuse_qkv_projections"):
            run()
    assert all(torch.equal(p, before[name]) for name, p in module.named_parameters())
    with SafeLatentDiffusion(module, "van gogh"):
        module.generate(["a red circle"], [0], steps=1)
    module.pipeline.unfuse_qkv_projections()
    trainer(UCE()).fit(module, data)
    module.save_pretrained(tmp_path / "out")
    drawn = LitTextToImage(str(tmp_path / "out")).generate(["van gogh"], [0], steps=2)
    torch.testing.assert_close(drawn, module.generate(["van gogh"], [0], steps=2))


def test_attention_with_weights_of_its_own_is_refused(tiny_sd: Path, tmp_path: Path) -> None:
    """As Custom Diffusion has it, whose keys and values are those of the processor."""
    from diffusers.models.attention_processor import AttnProcessor2_0, CustomDiffusionAttnProcessor2_0

    module = LitTextToImage(str(tiny_sd))
    attention = module.unet.mid_block.attentions[0].transformer_blocks[0].attn2
    sizes = {"hidden_size": attention.to_k.out_features, "cross_attention_dim": attention.to_k.in_features}
    attention.set_processor(CustomDiffusionAttnProcessor2_0(train_q_out=False, **sizes))
    for run in (lambda: trainer(UCE()).fit(module, prompts()), lambda: module.save_pretrained(tmp_path / "out")):
        with pytest.raises(ValueError, match=r"mid_block\S*attn2, has a CustomDiffusionAttnProcessor2_0 with weights"):
            run()
    module.unet.set_attn_processor(AttnProcessor2_0())
    trainer(UCE()).fit(module, prompts())


def test_an_image_prompt_adapter_is_refused(tiny_sd: Path) -> None:
    module = LitTextToImage(str(tiny_sd))
    module.unet.encoder_hid_proj = torch.nn.Linear(1, 1)
    with pytest.raises(ValueError, match="unload_ip_adapter"):
        as_text_to_image(module)


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_weights_of_half_precision_are_refused(precision: Any, tiny_sd: Path) -> None:
    for method in (ESD(steps=2), UCE()):
        with pytest.raises(MisconfigurationException, match=f"would be {precision}.*bf16-mixed"):
            trainer(method, precision=precision).fit(LitTextToImage(str(tiny_sd)), prompts())
    module = LitTextToImage(str(tiny_sd)).bfloat16()
    with pytest.raises(MisconfigurationException, match=r"would be torch.bfloat16.*module.float\(\)"):
        trainer(ESD(steps=2)).fit(module, prompts())
