"""Folders that other versions and other users' tools open: layouts, variants, safety checkers."""

from __future__ import annotations

import json
import os
import shutil
import stat
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lightning_unlearn import LitTextToImage
from tests.diffusion.tiny import write_pipeline


def half_folder(source: Path, target: Path) -> Path:
    from diffusers import StableDiffusionPipeline

    StableDiffusionPipeline.from_pretrained(source).to(torch.float16).save_pretrained(target, variant="fp16")
    return target


def checked_folder(source: Path, target: Path) -> Path:
    """A copy with a safety checker, as transformers 5 without torchvision writes it."""
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig

    shutil.copytree(source, target)
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    eyes = {**small, "image_size": 16, "patch_size": 8}
    words = {**small, "vocab_size": 50, "bos_token_id": 0, "eos_token_id": 1}
    config = CLIPConfig(text_config=words, vision_config=eyes, projection_dim=8)
    StableDiffusionSafetyChecker(config).save_pretrained(target / "safety_checker")
    (target / "feature_extractor").mkdir()
    (target / "feature_extractor" / "preprocessor_config.json").write_text(
        '{"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 16}, "crop_size": 16}'
    )
    index = json.loads((target / "model_index.json").read_text())
    index |= {
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "feature_extractor": ["transformers", "CLIPImageProcessorPil"],
        "requires_safety_checker": True,
    }
    (target / "model_index.json").write_text(json.dumps(index))
    return target


@pytest.fixture(scope="module")
def halved(tiny_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return half_folder(tiny_sd, tmp_path_factory.mktemp("halved"))


def test_the_files_of_earlier_versions_are_written(tiny_sd: Path, tmp_path: Path) -> None:
    """transformers 4 reads text_model.* from the text encoder, and vocab.json and merges.txt of the tokenizer."""
    module = LitTextToImage(str(tiny_sd))
    module.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "text_encoder" / "model.safetensors")
    assert {name.split(".")[0] for name in weights} == {"text_model"}
    own = module.text_encoder.state_dict()
    assert all(torch.equal(value, own[name.removeprefix("text_model.")]) for name, value in weights.items())
    vocabulary = json.loads((tmp_path / "tokenizer" / "vocab.json").read_text())
    assert vocabulary == json.loads((tiny_sd / "words" / "vocab.json").read_text())
    merges = [(folder / "merges.txt").read_text() for folder in (tmp_path / "tokenizer", tiny_sd / "words")]
    assert merges[0] == merges[1]
    settings = json.loads((tmp_path / "tokenizer" / "tokenizer_config.json").read_text())
    assert "<|endoftext|>" in {token["content"] for token in settings["added_tokens_decoder"].values()}
    assert settings["model_max_length"] == 16
    mask = os.umask(0)
    os.umask(mask)
    files = [*tmp_path.rglob("*.safetensors")]
    assert len(files) == 3
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o666 & ~mask}


def test_words_learned_by_textual_inversion_are_exported(tiny_sd: Path, tmp_path: Path) -> None:
    module = LitTextToImage(str(tiny_sd))
    save_file({"<cat>": torch.randn(2, 32)}, tmp_path / "cat.safetensors")
    module.pipeline.load_textual_inversion(str(tmp_path / "cat.safetensors"), token="<cat>")
    module.save_pretrained(tmp_path / "out")
    settings = json.loads((tmp_path / "out" / "tokenizer" / "tokenizer_config.json").read_text())
    assert {"<cat>", "<cat>_1"} <= {token["content"] for token in settings["added_tokens_decoder"].values()}
    again = LitTextToImage(str(tmp_path / "out"))
    ids = again.tokenizer("a <cat> <cat>_1")["input_ids"]
    assert ids == module.tokenizer("a <cat> <cat>_1")["input_ids"]
    table = [model.text_encoder.get_input_embeddings().weight[ids[2:4]] for model in (module, again)]
    assert torch.equal(*table)


def test_of_an_fp16_folder_the_export_is_one(halved: Path, tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    module = LitTextToImage(str(halved), variant="fp16")
    assert next(module.parameters()).dtype == torch.float32
    module.save_pretrained(tmp_path)
    assert not [p for p in tmp_path.rglob("*.safetensors") if ".fp16." not in p.name]
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path, variant="fp16", torch_dtype=torch.float16)
    for part in ("unet", "text_encoder", "vae"):
        live, read = getattr(module, part).state_dict(), getattr(pipeline, part).state_dict()
        assert all(torch.equal(value.half(), read[name]) for name, value in live.items())
    module.save_single_file(tmp_path / "one.safetensors")
    assert {v.dtype for v in load_file(tmp_path / "one.safetensors").values()} == {torch.float16}


def test_the_safety_checker_of_a_folder_is_kept(tiny_sd: Path, tmp_path: Path) -> None:
    source = checked_folder(tiny_sd, tmp_path / "checked")
    module = LitTextToImage(str(source))
    assert module.pipeline.safety_checker is None
    module.save_pretrained(tmp_path / "out")
    index = json.loads((tmp_path / "out" / "model_index.json").read_text())
    assert index["safety_checker"] == ["stable_diffusion", "StableDiffusionSafetyChecker"]
    assert index["requires_safety_checker"] is True
    assert index["feature_extractor"] == ["transformers", "CLIPImageProcessor"]  # the name that version 4 knows
    assert (tmp_path / "out" / "feature_extractor" / "preprocessor_config.json").is_file()
    before, after = (load_file(f / "safety_checker" / "model.safetensors") for f in (source, tmp_path / "out"))
    assert any(name.startswith("vision_model.vision_model.encoder.") for name in after)
    plain = {name.replace("vision_model.vision_model.", "vision_model."): value for name, value in after.items()}
    assert plain.keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in plain.items())


def test_a_safety_checker_that_is_not_at_hand_is_missed_aloud(tiny_sd: Path, tmp_path: Path) -> None:
    source = checked_folder(tiny_sd, tmp_path / "checked")
    module = LitTextToImage(str(source))
    (source / "safety_checker" / "model.safetensors").unlink()
    with pytest.warns(UserWarning, match="has a safety checker, which was not loaded"):
        module.save_pretrained(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "model_index.json").read_text())["safety_checker"] == [None, None]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        LitTextToImage(str(tiny_sd)).save_pretrained(tmp_path / "none")


def pickled(source: Path, target: Path) -> str:
    from diffusers import StableDiffusionPipeline

    StableDiffusionPipeline.from_pretrained(source).save_pretrained(target, safe_serialization=False)
    return str(target)


def renamed(source: Path, target: Path) -> str:
    """A text encoder whose weights transformers would leave at random, with a line in the log."""
    shutil.copytree(source, target)
    file = target / "text_encoder" / "model.safetensors"
    save_file({f"clip.{k}": v for k, v in load_file(file).items()}, file, metadata={"format": "pt"})
    return str(target)


@pytest.mark.parametrize(
    ("make", "options", "error", "match"),
    [
        (lambda source, target: str(source), {"variant": "fp16"}, ValueError, r"leave variant='fp16' out"),
        (pickled, {}, ValueError, r"use_safetensors=False\).save_pretrained"),
        (renamed, {}, ValueError, r"lacks 36 weights of the text encoder.*would be random"),
        (lambda source, target: str(source / "unet"), {}, FileNotFoundError, "has no model_index.json"),
        (lambda source, target: str(target), {}, FileNotFoundError, "There is no folder"),
        (lambda source, target: str(target / "model.ckpt"), {}, ValueError, "pickled weights.*from_single_file"),
        (lambda source, target: str(target / "x.safetensors"), {}, FileNotFoundError, "There is no file"),
    ],
)
def test_what_does_not_open_says_the_way_out(
    make: Any, options: dict[str, Any], error: Any, match: str, tiny_sd: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=match):
        LitTextToImage(make(tiny_sd, tmp_path / "made"), **options)


def test_a_folder_of_a_variant_names_it(halved: Path) -> None:
    with pytest.raises(ValueError, match="pass variant='fp16'"):
        LitTextToImage(str(halved))


def test_other_schedulers_and_unets(tiny_sd: Path, tmp_path: Path) -> None:
    from diffusers import DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler, FlowMatchEulerDiscreteScheduler

    module = LitTextToImage(str(tiny_sd))
    known = module.scheduler.config
    for kind in (DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler):
        module.pipeline.scheduler = kind.from_config(known)
        module.save_pretrained(tmp_path / kind.__name__)
        other = LitTextToImage(str(tmp_path / kind.__name__))
        assert torch.equal(other.scheduler.alphas_cumprod, module.scheduler.alphas_cumprod)
    module.pipeline.scheduler = FlowMatchEulerDiscreteScheduler()
    module.save_pretrained(tmp_path / "flow")
    with pytest.raises(
        TypeError, match=r"FlowMatchEulerDiscreteScheduler.*no alphas_cumprod.*DDIMScheduler.from_config"
    ):
        LitTextToImage(str(tmp_path / "flow"))
    inpainting = write_pipeline(tmp_path / "inpainting")
    unet = module.unet.from_config(module.unet.config, in_channels=9)
    unet.save_pretrained(inpainting / "unet")
    with pytest.raises(TypeError, match="reads 9 channels, but the latents have 4"):
        LitTextToImage(str(inpainting))
    unet.from_config(module.unet.config, time_cond_proj_dim=8).save_pretrained(inpainting / "unet")
    with pytest.raises(TypeError, match=r"time_cond_proj_dim.*Use the model that it was distilled from"):
        LitTextToImage(str(inpainting))
