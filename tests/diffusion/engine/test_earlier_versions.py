"""Exports in an environment with transformers 4 and the diffusers of its time, and pipelines that these write."""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

from lightning_unlearn import LitTextToImage, export_text_encoder
from tests.diffusion.engine.test_folders import checked_folder, half_folder

PACKAGES = ["transformers==4.57.3", "diffusers==0.35.2"]
OFFLINE = re.compile("NewConnectionError|NameResolutionError|ConnectTimeout|ProxyError|Temporary failure|timed out")
PROMPT = "a red circle in the style of van gogh"

READ = """
import sys, torch, diffusers, transformers
from safetensors.torch import load_file
assert transformers.__version__ == "4.57.3" and diffusers.__version__ == "0.35.2"
def same(part, weights):
    own = part.state_dict()
    assert own.keys() == weights.keys(), sorted(own.keys() ^ weights.keys())
    assert all(torch.equal(own[name], weights[name]) for name in own)
def drawn(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    options = dict(num_inference_steps=3, generator=[torch.Generator().manual_seed(0)], output_type="pt")
    return pipeline(PROMPT, **options).images.float()
plain, half, checked, encoder, expected, written = sys.argv[1:]
pipeline = diffusers.StableDiffusionPipeline.from_pretrained(plain)
same(pipeline.text_encoder, load_file(f"{plain}/text_encoder/model.safetensors"))
same(pipeline.unet, load_file(f"{plain}/unet/diffusion_pytorch_model.safetensors"))
same(pipeline.vae, load_file(f"{plain}/vae/diffusion_pytorch_model.safetensors"))
wanted = torch.load(expected)
assert pipeline.tokenizer(PROMPT)["input_ids"] == wanted["ids"]
assert pipeline.tokenizer("Red, GREEN 12 xyz don't")["input_ids"] == wanted["odd"]
assert pipeline.tokenizer.model_max_length == 16
torch.testing.assert_close(drawn(pipeline), wanted["image"], atol=1e-5, rtol=0)
same(transformers.CLIPTextModel.from_pretrained(encoder), load_file(f"{encoder}/model.safetensors"))
halved = diffusers.StableDiffusionPipeline.from_pretrained(half, variant="fp16", torch_dtype=torch.float16)
same(halved.text_encoder, load_file(f"{half}/text_encoder/model.fp16.safetensors"))
guarded = diffusers.StableDiffusionPipeline.from_pretrained(checked)
same(guarded.safety_checker, load_file(f"{checked}/safety_checker/model.safetensors"))
assert type(guarded.feature_extractor).__name__ == "CLIPImageProcessor"
guarded.save_pretrained(written)
"""


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of an environment with the earlier versions, and torch of this one."""
    folder = tmp_path_factory.mktemp("earlier")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PACKAGES]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    if done.returncode and OFFLINE.search(done.stderr):
        pytest.skip(f"The package registry can't be reached, so {' and '.join(PACKAGES)} can't be installed.")
    assert done.returncode == 0, done.stderr
    # After its own packages, which pip has installed with all that they need except torch.
    where = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    )
    (Path(where.stdout.strip()) / "torch_of_the_other.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


@pytest.mark.slow
def test_last_years_versions_open_exports_and_write_what_opens_here(
    earlier: Path, tiny_sd: Path, tmp_path: Path
) -> None:
    module = LitTextToImage(str(tiny_sd))
    module.save_pretrained(tmp_path / "plain")
    export_text_encoder(module, tmp_path / "encoder")
    LitTextToImage(str(half_folder(tiny_sd, tmp_path / "a")), variant="fp16").save_pretrained(tmp_path / "half")
    LitTextToImage(str(checked_folder(tiny_sd, tmp_path / "b"))).save_pretrained(tmp_path / "checked")
    image = module.generate([PROMPT], [0], steps=3)
    ids = {
        "ids": module.tokenizer(PROMPT)["input_ids"],
        "odd": module.tokenizer("Red, GREEN 12 xyz don't")["input_ids"],
    }
    torch.save({"image": image, **ids}, tmp_path / "expected.pt")
    names = ("plain", "half", "checked", "encoder", "expected.pt", "written")
    command = [earlier, "-c", f"PROMPT = {PROMPT!r}\n{READ}", *(tmp_path / name for name in names)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    again = LitTextToImage(str(tmp_path / "written"))
    assert torch.equal(again.generate([PROMPT], [0], steps=3), image)
    again.save_pretrained(tmp_path / "back")
    assert (tmp_path / "back" / "safety_checker" / "model.safetensors").is_file()
