"""EraseDiff on a pipeline of random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_unlearn.diffusion.engine.denoising import denoising_loss, noised
from lightning_unlearn.diffusion.engine.draws import Draws
from lightning_unlearn.diffusion.engine.model import unet_output
from lightning_unlearn.diffusion.engine.parameters import select_params
from lightning_unlearn.diffusion.engine.text import encode
from lightning_unlearn.diffusion.erase_diff import EraseDiff
from lightning_unlearn.functional.diffusion.erase_diff import erasediff_multiplier
from tests.diffusion.tiny import SgdTextToImage, captioned, first_batch, prompts, run, trainer, weights
from tests.helpers import save_resumable


class Watch(L.Callback):
    """Loss, parts and gradients of each batch."""

    def __init__(self) -> None:
        self.parts: list[dict[str, Tensor]] = []
        self.gradients: list[dict[str, Tensor]] = []

    def on_before_optimizer_step(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        self.gradients.append({n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None})

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        parts = {k.removeprefix("unlearn/"): v for k, v in trainer.callback_metrics.items()}
        self.parts.append({k: v.clone() for k, v in parts.items()})


def erase(folder: Path, *callbacks: L.Callback, **options: Any) -> Any:
    return run(folder, *callbacks, **({"data": captioned()} | options))


def watched(folder: Path, method: EraseDiff, **options: Any) -> tuple[Any, Watch]:
    watch = Watch()
    return erase(folder, method, watch, **options), watch


def first_gradients(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Of the retain loss and of the distance from the anchor, in the first batch of a run."""
    module = SgdTextToImage(str(folder))
    batch = first_batch(module, captioned)
    parameters = select_params(module, "xattn")
    forget, retain = (noised(module, batch[role], Draws(3, 1), i) for i, role in enumerate(("forget", "retain")))
    f = denoising_loss(module, batch["retain"], retain)
    with torch.no_grad():
        target = unet_output(
            module, forget.latents, forget.timesteps, encode(module, batch["forget"]["anchor_input_ids"])
        )
    g = F.mse_loss(
        unet_output(module, forget.latents, forget.timesteps, encode(module, batch["forget"]["input_ids"])), target
    )
    found = [torch.autograd.grad(loss, list(parameters.values())) for loss in (f, g)]
    return tuple(dict(zip(parameters, each, strict=True)) for each in found)  # type: ignore[return-value]


def dot(a: dict[str, Tensor], b: dict[str, Tensor]) -> Tensor:
    return sum((a[name] * b[name]).sum() for name in a)  # type: ignore[return-value]


@pytest.mark.parametrize("multiplier", [0.0, 0.7, "cosine", "norm", "value"])
def test_the_update_is_the_retain_gradient_plus_lambda_times_the_forget_gradient(
    multiplier: Any, tiny_sd: Path
) -> None:
    _, watch = watched(tiny_sd, EraseDiff(multiplier=multiplier, eta=0.4, inner_lr=0.5, seed=3))
    f, q = first_gradients(tiny_sd)
    expected = {
        "cosine": 0.4 - dot(f, q) / (dot(f, f) * dot(q, q)).sqrt(),
        "norm": 0.4 - dot(f, q) / dot(q, q),
        "value": (0.4 * watch.parts[0]["gap"] - dot(f, q)) / dot(q, q),
    }
    weight = expected[multiplier].clamp(min=0) if isinstance(multiplier, str) else torch.tensor(multiplier)
    torch.testing.assert_close(watch.parts[0]["multiplier"], weight, rtol=1e-3, atol=1e-6)
    for name, gradient in watch.gradients[0].items():
        torch.testing.assert_close(gradient, f[name] + weight * q[name], rtol=1e-3, atol=1e-7)
    parts = watch.parts[0]
    torch.testing.assert_close(parts["loss"], parts["retain"] + weight * parts["gap"], rtol=1e-4, atol=1e-7)


def test_inner_steps_are_undone_bit_for_bit_and_close_the_gap(tiny_sd: Path) -> None:
    with_steps, watch = watched(tiny_sd, EraseDiff(inner_steps=3, inner_lr=0.5), max_epochs=2)
    without = erase(tiny_sd, EraseDiff(inner_steps=0), max_epochs=2)
    for a, b in zip(with_steps.parameters(), without.parameters(), strict=True):
        assert torch.equal(a, b)
    assert all(0 < parts["gap"] < parts["forget"] for parts in watch.parts)
    _, one = watched(tiny_sd, EraseDiff(inner_steps=1, inner_lr=1e-3, seed=3))
    _, q = first_gradients(tiny_sd)
    torch.testing.assert_close(one.parts[0]["gap"], 1e-3 * dot(q, q), rtol=0.05, atol=1e-9)


def test_a_crash_in_an_inner_step_leaves_the_weights_as_they_were(
    tiny_sd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses: list[Tensor] = []

    def breaks(*args: Any) -> Tensor:
        if losses:
            raise RuntimeError("out of memory")
        losses.append(denoising_loss(*args))
        return losses[0]

    monkeypatch.setattr("lightning_unlearn.diffusion.erase_diff.denoising_loss", breaks)
    module = SgdTextToImage(str(tiny_sd))
    before = weights(module)
    with pytest.raises(RuntimeError, match="out of memory"):
        trainer(EraseDiff(inner_steps=3, inner_lr=1.0)).fit(module, captioned())
    assert losses
    assert all(torch.equal(value, before[name]) for name, value in module.named_parameters())


def test_lambda_0_is_fine_tuning_on_the_retain_images(tiny_sd: Path) -> None:
    """It does not depend on what is to be forgotten."""
    other = captioned("a red circle")
    one, two = erase(tiny_sd, EraseDiff(multiplier=0.0)), erase(tiny_sd, EraseDiff(multiplier=0.0), data=other)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    three = erase(tiny_sd, EraseDiff(multiplier=5.0), data=other)
    assert any(not torch.equal(a, b) for a, b in zip(one.parameters(), three.parameters(), strict=True))


def test_the_multiplier_by_hand() -> None:
    f, q = torch.tensor([3.0, 4.0]), torch.tensor([4.0, 3.0])

    def choose(rule: Any, a: Tensor, b: Tensor, eta: float = 0.1, gap: float = 50.0) -> float:
        return erasediff_multiplier(a @ b, a.norm(), b.norm(), torch.tensor(gap), rule=rule, eta=eta).item()

    assert choose("cosine", f, q) == 0.0  # they agree: the cosine is 0.96
    assert choose("cosine", f, -q) == pytest.approx(0.1 + 0.96)
    assert choose("cosine", f, -f) == pytest.approx(1.1)  # the most it can be
    assert choose("norm", f, -q) == pytest.approx(0.1 + 24 / 25)
    assert choose("value", f, -q) == pytest.approx((0.1 * 50 + 24) / 25)
    assert choose("cosine", f, 0 * q) == choose("norm", f, 0 * q) == choose("value", f, 0 * q) == 0.0
    with pytest.raises(ValueError, match="gap"):
        erasediff_multiplier(f @ q, f.norm(), q.norm(), rule="value")
    with pytest.raises(ValueError, match="rule"):
        erasediff_multiplier(f @ q, f.norm(), q.norm(), rule="bome")  # type: ignore[arg-type]


def test_the_uniform_target_is_what_uniform_noise_would_ask_for(tiny_sd: Path, tiny_v: Path) -> None:
    for folder in (tiny_sd, tiny_v):
        module = SgdTextToImage(str(folder))
        batch = first_batch(module, captioned)["forget"]
        draws = Draws(0, 0)
        drawn = noised(module, batch, draws)
        target = EraseDiff("uniform").uniform_output(module, batch, drawn, draws)
        share = module.scheduler.alphas_cumprod[drawn.timesteps][:, None, None, None]
        if folder == tiny_v:
            clean = share.sqrt() * drawn.latents - (1 - share).sqrt() * drawn.target
            target = (target + (1 - share).sqrt() * clean) / share.sqrt()
        assert target.min() > -1e-2
        assert target.max() < 1 + 1e-2
        assert 0.4 < target.mean() < 0.6
        assert target.std() == pytest.approx(12**-0.5, rel=0.15)


def test_only_the_subset_moves_and_no_second_model_is_kept(tiny_sd: Path) -> None:
    before = weights(SgdTextToImage(str(tiny_sd)))
    method = EraseDiff(multiplier="cosine")
    module = erase(tiny_sd, method, trainable="kv", lr=1.0)
    moved = {name for name, value in weights(module).items() if not torch.equal(value, before[name])}
    assert moved == set(select_params(module, "kv"))
    assert method.snapshot is None


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_one_epoch_and_a_resume_equal_two_bit_for_bit(precision: Any, tiny_sd: Path, tmp_path: Path) -> None:
    def make() -> EraseDiff:
        return EraseDiff(multiplier="value", inner_steps=1)

    whole = erase(tiny_sd, make(), max_epochs=2, precision=precision)
    half = erase(tiny_sd, make(), max_epochs=1, precision=precision)
    save_resumable(half.trainer, tmp_path / "half.ckpt")
    resumed = erase(tiny_sd, make(), max_epochs=2, precision=precision, ckpt_path=tmp_path / "half.ckpt")
    for a, b in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(a, b)


def test_bf16_does_not_read_casts_of_the_inner_weights(tiny_sd: Path) -> None:
    full, mixed = (
        watched(tiny_sd, EraseDiff(inner_lr=5.0, inner_steps=1), precision=p)[1].parts[0]
        for p in ("32-true", "bf16-mixed")
    )
    assert full["gap"].abs() > 0.2 * full["forget"]
    torch.testing.assert_close(mixed["forget"], full["forget"], rtol=0.1, atol=1e-6)


def test_a_step_costs_what_it_says(tiny_sd: Path) -> None:
    for target, passes in (("anchor", 2 + 4), ("uniform", 2 + 3)):
        method = EraseDiff(target, inner_steps=2)  # type: ignore[arg-type]
        erase(tiny_sd, method)
        assert method.passes.unet == passes


def test_what_does_not_fit_is_refused_before_a_weight_moves(tiny_sd: Path) -> None:
    for options in (
        {"target": "noise"},
        {"multiplier": -1.0},
        {"multiplier": "bome"},
        {"eta": -0.1},
        {"inner_steps": -1},
        {"inner_lr": 0.0},
        {"inner_steps": 0, "multiplier": "value"},
    ):
        with pytest.raises(ValueError, match=next(iter(options))):
            EraseDiff(**options)  # type: ignore[arg-type]
    module = SgdTextToImage(str(tiny_sd))
    before = weights(module)
    bare = [{"pixel_values": torch.zeros(3, 16, 16), "input_ids": torch.zeros(16, dtype=torch.int64)}]
    with pytest.raises(MisconfigurationException, match="anchor_input_ids"):
        trainer(EraseDiff()).fit(module, {"forget": DataLoader(bare), "retain": DataLoader(bare)})
    with pytest.raises(TypeError, match="pixel_values"):
        trainer(EraseDiff()).fit(module, prompts())
    assert all(torch.equal(value, before[name]) for name, value in module.named_parameters())
