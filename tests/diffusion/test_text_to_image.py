"""The module: it opens and writes folders of diffusers, trains, and draws."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader

from lightning_unlearn import LitTextToImage, TextEncoderWeights, denoising_nll
from lightning_unlearn.diffusion.engine.model import unet_output
from lightning_unlearn.diffusion.engine.text import encode, tokenize
from tests.diffusion.tiny import erase, trainer


def rows(model: LitTextToImage, count: int = 8) -> DataLoader:
    pixels = torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    ids = tokenize(model.tokenizer, ["a red circle", "a green square"] * (count // 2))["input_ids"]
    return DataLoader(
        [{"pixel_values": p, "input_ids": i, "index": n} for n, (p, i) in enumerate(zip(pixels, ids, strict=True))],  # type: ignore[arg-type]
        batch_size=4,
    )


@pytest.mark.parametrize("trainable", ["noxattn", "text_encoder"])
def test_a_plain_pipeline_opens_what_is_saved(trainable: str, tiny_v: Path, tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    module = erase(tiny_v, trainable=trainable, lr=1.0)
    module.save_pretrained(tmp_path / "erased")
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "erased")
    assert type(pipeline.scheduler).__name__ == "PNDMScheduler"
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    assert not list(tmp_path.rglob("*.bin"))
    for part in ("unet", "text_encoder", "vae"):
        saved, live = getattr(pipeline, part).state_dict(), getattr(module, part).state_dict()
        assert saved.keys() == live.keys()
        assert all(torch.equal(saved[key], live[key]) for key in live)
    z, t = torch.randn(2, 4, 8, 8), torch.tensor(500)
    again = LitTextToImage(str(tmp_path / "erased"))
    with torch.no_grad():
        ids = tokenize(module.tokenizer, ["van gogh", "art"])["input_ids"]
        outputs = [unet_output(m, z, t, encode(m, ids)) for m in (module, again)]
    assert torch.equal(*outputs)


def test_a_checkpoint_knows_its_subset(tiny_sd: Path, tmp_path: Path) -> None:
    module = LitTextToImage(str(tiny_sd), trainable=TextEncoderWeights(layers=[0]), lr=1e-3)
    run = trainer()
    run.strategy.connect(module)
    trainer(max_steps=1).fit(module, rows(module))
    module.trainer.save_checkpoint(tmp_path / "run.ckpt")
    loaded = LitTextToImage.load_from_checkpoint(tmp_path / "run.ckpt", weights_only=True)
    trains = [{n for n, p in m.named_parameters() if p.requires_grad} for m in (module, loaded)]
    assert trains[0] == trains[1]
    assert len(trains[0]) == 16


@pytest.mark.parametrize("folder", ["tiny_sd", "tiny_v"])
def test_on_its_own_it_trains(folder: str, request: pytest.FixtureRequest) -> None:
    from lightning_unlearn import denoising_nll

    torch.manual_seed(0)
    module = LitTextToImage(str(request.getfixturevalue(folder)), trainable="all", lr=2e-3)
    loader = rows(module)
    batch = next(iter(loader))
    with torch.no_grad():
        before = denoising_nll(module, batch).mean()
    trainer(max_epochs=15).fit(module, loader)
    with torch.no_grad():
        after = denoising_nll(module, batch).mean()
    assert after < 0.8 * before


def test_gradient_checkpointing_changes_memory_alone(tiny_sd: Path) -> None:
    torch.manual_seed(0)
    runs = [LitTextToImage(str(tiny_sd), trainable="full", lr=1e-3, gradient_checkpointing=g) for g in (False, True)]
    assert runs[1].unet.is_gradient_checkpointing
    for module in runs:
        trainer(max_steps=1).fit(module, rows(module))
    for p, q in zip(runs[0].parameters(), runs[1].parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_images_depend_on_their_seed_alone(tiny_sd: Path) -> None:
    model = LitTextToImage(str(tiny_sd))
    images = model.generate(["red", "green", "art"], [1, 2, 3], steps=2, batch_size=2)
    assert images.shape == (3, 3, 16, 16)
    assert 0 <= images.min() <= images.max() <= 1
    torch.testing.assert_close(model.generate(["art"], [3], steps=2), images[2:], atol=1e-5, rtol=0)
    assert model.unet.training  # as it was
    with pytest.raises(ValueError, match="seed of its own"):
        model.generate(["red"], [1, 2])


def change(folder: Path, target: Path, **values: Any) -> Path:
    """A copy of a folder with other values in its index."""
    import shutil

    shutil.copytree(folder, target)
    index = json.loads((target / "model_index.json").read_text())
    (target / "model_index.json").write_text(json.dumps(index | values))
    return target


def test_what_does_not_fit_is_refused(tiny_sd: Path, tmp_path: Path) -> None:
    xl = change(tiny_sd, tmp_path / "xl", _class_name="StableDiffusionXLPipeline")
    with pytest.raises(TypeError, match=r"is a StableDiffusionXLPipeline, but .* StableDiffusionPipeline"):
        LitTextToImage(str(xl))
    with pytest.raises(ValueError, match="lr must be greater than 0"):
        LitTextToImage(str(tiny_sd), lr=0.0)
    with pytest.raises(ValueError, match="trainable must be one of"):
        LitTextToImage(str(tiny_sd), trainable="xatn")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="component must be"):
        LitTextToImage(str(tiny_sd), trainable={"component": "mlp"})


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_images_of_each_set_are_measured_and_prompts_are_not(stage: str, tiny_sd: Path) -> None:
    module = LitTextToImage(str(tiny_sd))
    prompts = DataLoader([{"input_ids": torch.tensor([0, 1])}])  # type: ignore[arg-type]
    sets = {"kept": rows(module), "gone": prompts, "rest": rows(module, 4)}
    run = trainer(limit_val_batches=None)
    getattr(run, stage)(module, sets, verbose=False)
    prefix = "val" if stage == "validate" else "test"
    assert set(run.callback_metrics) == {f"{prefix}/kept_denoising", f"{prefix}/rest_denoising"}
    with torch.no_grad():
        expected = torch.cat([denoising_nll(module.eval(), batch) for batch in rows(module)]).mean()
    torch.testing.assert_close(run.callback_metrics[f"{prefix}/kept_denoising"], expected)


@pytest.mark.parametrize("mesh", [(2, 1), (1, 2)])
def test_a_mesh_of_several_processes_is_refused(mesh: tuple[int, int], model: LitTextToImage) -> None:
    """Under tensor parallelism too each process would train a model of its own."""
    model._device_mesh = SimpleNamespace(size=lambda: mesh[0] * mesh[1])  # type: ignore[assignment]
    with pytest.raises(MisconfigurationException, match="train as many different models"):
        model.configure_model()
    model._device_mesh = SimpleNamespace(size=lambda: 1)  # type: ignore[assignment]
    model.configure_model()
