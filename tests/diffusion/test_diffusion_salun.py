"""SalUn of concepts on a pipeline of random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_unlearn import LitTextToImage, SalUn
from lightning_unlearn.diffusion.diffusion_salun import DiffusionSalUn
from lightning_unlearn.diffusion.engine.denoising import noised
from lightning_unlearn.diffusion.engine.draws import Draws
from lightning_unlearn.diffusion.engine.model import unet_output
from lightning_unlearn.diffusion.engine.parameters import select_params
from lightning_unlearn.diffusion.engine.text import encode, tokenize
from tests.diffusion.tiny import CONCEPT, first_batch, images, prompts, rows, run, same, weights
from tests.helpers import save_resumable


class Loud(LitTextToImage):
    """With weight decay and momentum, both of which move weights that have no gradient."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.5)


class Recorder(DiffusionSalUn):
    last: Any = None

    def step(self, module: Any, batch: Any) -> dict[str, Tensor]:
        self.last = noised(module, batch["forget"], self.draws(module))[:2]
        return super().step(module, batch)


def expected(model: LitTextToImage, batch: dict[str, Any], key: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The two terms of the first batch, from draws that are made anew."""
    from diffusers import DDPMScheduler

    from lightning_unlearn.functional.random import keyed_generator

    scheduler = DDPMScheduler.from_config(model.scheduler.config)
    terms = []
    for role, number in (("forget", 0), ("retain", 1)):
        part, (seed, place) = batch[role], key
        clean, noise, times = [], [], []
        for pixels, index in zip(part["pixel_values"], part["index"].tolist(), strict=True):
            posterior = model.vae.encode(pixels[None]).latent_dist
            draw = keyed_generator(3, keyed_generator(seed, number, place).initial_seed(), index)
            clean.append(posterior.mean[0] + posterior.std[0] * torch.randn(4, 8, 8, generator=draw))
            noise.append(torch.randn(4, 8, 8, generator=keyed_generator(seed, number, place, 1, index)))
            times.append(torch.randint(1000, (), generator=keyed_generator(seed, number, place, 2, index)))
        z0, eps, t = torch.stack(clean) * model.vae.config.scaling_factor, torch.stack(noise), torch.stack(times)
        z = scheduler.add_noise(z0, eps, t)
        target = eps if model.scheduler.config.prediction_type == "epsilon" else scheduler.get_velocity(z0, eps, t)
        if role == "forget":
            target = model.unet(z, t, model.text_encoder(part["anchor_input_ids"])[0]).sample
        output = model.unet(z, t, model.text_encoder(part["input_ids"])[0]).sample
        terms.append((output - target).square().mean())
    return terms[0], terms[1]


@pytest.mark.parametrize("folder", ["tiny_sd", "tiny_v"])
@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_the_first_loss_is_the_formula(folder: str, alpha: float, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(folder)
    seen = run(path, DiffusionSalUn(alpha, seed=3), max_steps=1).seen[0]
    with torch.no_grad():
        model = LitTextToImage(str(path))
        forget, retain = expected(model, first_batch(model), (3, 1))
    torch.testing.assert_close(seen["forget"], forget, rtol=1e-3, atol=1e-9)
    torch.testing.assert_close(seen["loss"], forget + alpha * retain, rtol=1e-4, atol=1e-9)
    assert ("retain" in seen) == (alpha > 0)


def test_no_gradient_flows_into_the_target(tiny_sd: Path) -> None:
    """One plain step moves the weights as the gradient with the target held fixed says."""
    module = run(tiny_sd, DiffusionSalUn(0.0), max_steps=1, lr=1.0)
    model = LitTextToImage(str(tiny_sd), trainable="xattn")
    batch, recorder = first_batch(model)["forget"], Recorder()
    run(tiny_sd, recorder, max_steps=1, lr=1e-30)
    z, t = recorder.last
    target = unet_output(model, z, t, encode(model, batch["anchor_input_ids"])).detach()
    (unet_output(model, z, t, encode(model, batch["input_ids"])) - target).square().mean().backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            moved = module.get_parameter(name) - parameter
            torch.testing.assert_close(moved, -parameter.grad, rtol=1e-3, atol=1e-6)


def test_the_concept_becomes_its_anchor(tiny_sd: Path) -> None:
    base = LitTextToImage(str(tiny_sd))
    module = run(tiny_sd, DiffusionSalUn(), SalUn(), kind=LitTextToImage, lr=3e-3, max_epochs=12)
    ids = tokenize(base.tokenizer, ["van gogh", "the photo"])["input_ids"]
    z, t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(5)), torch.tensor([300, 700])
    with torch.no_grad():
        apart = [
            (unet_output(m, z, t, encode(m, ids[:1]).expand(2, -1, -1)) - unet_output(m, z, t, states)).square().mean()
            for m in (base, module)
            for states in [encode(m, ids[1:]).expand(2, -1, -1)]
        ]
    assert apart[1] < 0.3 * apart[0]


@pytest.mark.parametrize("density", [0.1, 0.5])
def test_what_the_mask_leaves_out_never_moves(density: float, tiny_sd: Path) -> None:
    before = weights(LitTextToImage(str(tiny_sd)))
    mask = SalUn(density)
    module = run(tiny_sd, DiffusionSalUn(), mask, kind=Loud, max_epochs=3)
    chosen = select_params(module, "xattn")
    total = sum(p.numel() for p in chosen.values())
    assert mask.masks.keys() == chosen.keys()
    assert sum(int(m.sum()) for m in mask.masks.values()) == int(density * total)
    for name, value in weights(module).items():
        live = mask.masks.get(name, torch.zeros_like(value, dtype=torch.bool))
        assert torch.equal(value[~live], before[name][~live]), name
    assert any(not torch.equal(module.get_parameter(name), before[name]) for name in chosen)


def test_a_small_mask_lies_within_a_large_one_and_a_full_one_is_none(tiny_sd: Path) -> None:
    small, large = SalUn(0.1), SalUn(0.5)
    for mask in (small, large):
        run(tiny_sd, DiffusionSalUn(), mask, max_steps=1)
    assert all(bool((large.masks[name] | ~mask).all()) for name, mask in small.masks.items())
    full, none = run(tiny_sd, DiffusionSalUn(), SalUn(1.0)), run(tiny_sd, DiffusionSalUn())
    assert same(full, none)


def test_the_mask_ranks_the_guided_loss_and_sums_before_it_takes_sizes(tiny_sd: Path) -> None:
    """Two batches of one row: the absolute value of the sum is not the sum of absolute values."""
    data = images(batch_size=1, anchor="art")
    data.sources["forget"] = rows(CONCEPT[:2], 0)
    mask = SalUn(0.5)
    run(tiny_sd, DiffusionSalUn(), mask, data=data, max_steps=1, lr=1e-30)
    model = LitTextToImage(str(tiny_sd), trainable="xattn").eval()
    grads: list[dict[str, Tensor]] = []
    chosen = select_params(model, "xattn")
    for i in range(2):
        row = {k: torch.as_tensor(v)[None] for k, v in data.sets["forget"][i].items()}
        with torch.no_grad():
            z, t, target = noised(model, row, Draws(0, 0))
        e_c = unet_output(model, z, t, encode(model, row["input_ids"]))
        e_0 = unet_output(model, z, t, encode(model, tokenize(model.tokenizer, [""])["input_ids"]))
        loss = (8.5 * e_c - 7.5 * e_0 - target).square().mean()
        found = torch.autograd.grad(loss, list(chosen.values()))
        grads.append(dict(zip(chosen, found, strict=True)))

    def share(scores: Tensor) -> float:
        made = torch.cat([mask.masks[name].flatten() for name in chosen])
        return float((made == (scores >= scores.sort().values[len(scores) - int(len(scores) * 0.5)])).float().mean())

    def flat(of: Any) -> Tensor:
        return torch.cat([of(*(g[name] for g in grads)).flatten() for name in chosen])

    assert share(flat(lambda a, b: (a + b).abs())) > 0.999
    assert share(flat(lambda a, b: a.abs() + b.abs())) < 0.99


def test_a_resumed_run_ends_in_the_same_bits(tiny_sd: Path, tmp_path: Path) -> None:
    def go(**options: Any) -> Any:
        return run(tiny_sd, DiffusionSalUn(), SalUn(), **options)

    whole, half = go(max_epochs=2), go(max_epochs=1)
    save_resumable(half.trainer, tmp_path / "half.ckpt")
    resumed = go(max_epochs=2, ckpt_path=tmp_path / "half.ckpt")
    assert same(resumed, whole)
    assert not same(half, whole)


def test_a_step_costs_two_passes(tiny_sd: Path) -> None:
    method = DiffusionSalUn()
    run(tiny_sd, method)
    assert method.passes.state_dict() == {"unet": 4, "unet_rows": 12, "text_encoder": 4, "text_encoder_rows": 12}
    assert method.snapshot is None


def test_what_does_not_fit_is_refused_before_a_weight_moves(tiny_sd: Path) -> None:
    for name in ("retain_weight", "mask_guidance"):
        with pytest.raises(ValueError, match=f"{name} must be at least 0"):
            DiffusionSalUn(**{name: -1.0})
    with pytest.raises(TypeError, match="CaptionedImageDataModule makes such rows"):
        run(tiny_sd, DiffusionSalUn(), data=prompts())
    bare = [{"pixel_values": torch.zeros(3, 16, 16), "input_ids": torch.zeros(16, dtype=torch.int64)}]
    with pytest.raises(
        MisconfigurationException, match=r"no 'anchor_input_ids'; they have \['input_ids', 'pixel_values'\]"
    ):
        run(tiny_sd, DiffusionSalUn(0.0), data={"forget": DataLoader(bare)})  # type: ignore[arg-type]
    swapped = images()
    swapped.sources = {"forget": rows(CONCEPT, 0), "retain": None}
    with pytest.raises(Exception, match="needs \\['retain'\\] in every training batch"):
        run(tiny_sd, DiffusionSalUn(), data=swapped)
