"""Scissorhands on a pipeline of random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from diffusers import StableDiffusionPipeline
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from lightning_unlearn.diffusion.engine.denoising import denoising_loss, noised
from lightning_unlearn.diffusion.engine.draws import Draws
from lightning_unlearn.diffusion.engine.parameters import select_params
from lightning_unlearn.diffusion.erase_diff import EraseDiff
from lightning_unlearn.diffusion.scissorhands import Scissorhands
from lightning_unlearn.functional.diffusion.scissorhands import fresh_values, projection_weight
from tests.diffusion.tiny import SgdTextToImage, captioned, first_batch, run, trainer, weights
from tests.helpers import save_resumable


class Watch(L.Callback):
    """The weights that training starts from, and the gradients of its batches."""

    def __init__(self) -> None:
        self.start: dict[str, Tensor] = {}
        self.gradients: list[dict[str, Tensor]] = []

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        self.start = self.start or weights(module)

    def on_before_optimizer_step(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        self.gradients.append({n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None})


def erase(folder: Path, *callbacks: L.Callback, **options: Any) -> Any:
    return run(folder, *callbacks, **({"data": captioned()} | options))


def watched(folder: Path, method: Scissorhands, **options: Any) -> tuple[Any, Watch]:
    watch = Watch()
    return erase(folder, method, watch, **options), watch


def batch_gradients(module: Any, subset: str, number: int = 1) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Of the loss of retain and of forget images in the first batch."""
    batch, parameters = first_batch(module, captioned), select_params(module, subset)  # type: ignore[arg-type]
    gradients = []
    for role, draws in (("retain", 1), ("forget", 0)):
        loss = denoising_loss(module, batch[role], noised(module, batch[role], Draws(0, number), draws))
        gradients.append(dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True)))
    return gradients[0], gradients[1]


@pytest.mark.parametrize("sparsity", [0.9, 0.999])
def test_as_many_weights_as_sparsity_leaves_are_drawn_anew_and_no_other_one(sparsity: float, tiny_sd: Path) -> None:
    before = weights(SgdTextToImage(str(tiny_sd)))
    method = Scissorhands(sparsity, batches=2)
    module, watch = watched(tiny_sd, method, trainable="xattn")
    chosen = select_params(module, "xattn")
    total = sum(p.numel() for p in chosen.values())
    assert sum(method.reinitialized.values()) == total - int(sparsity * total)
    changed = {name: int((watch.start[name] != before[name]).sum()) for name in before}
    # Zeros stay zeros: a bias of the untrained pipeline has a score of 0, and is chosen last.
    assert {name: n for name, n in changed.items() if n} == method.reinitialized
    assert method.passes.unet == 2 + 2


def test_the_scores_are_weights_times_summed_absolute_gradients(tiny_sd: Path) -> None:
    """With all forget rows in one batch, two batches differ in their noise alone."""
    found: dict[str, Tensor] = {}

    class Keeps(Scissorhands):
        def reinitialize(self, module: L.LightningModule, scores: dict[str, Tensor]) -> None:
            found.update(scores)

    erase(tiny_sd, Keeps(batches=2), trainable="kv")
    module = SgdTextToImage(str(tiny_sd), trainable="kv").eval()
    rows = first_batch(module, captioned)["forget"]
    for name, parameter in select_params(module, "kv").items():
        total = torch.zeros_like(parameter)
        for number in range(2):
            loss = denoising_loss(module, rows, noised(module, rows, Draws(0, 0), 2 + number))
            total += torch.autograd.grad(loss, parameter)[0].abs()
        torch.testing.assert_close(found[name], parameter.detach().abs() * total, rtol=1e-3, atol=1e-9)


def test_sparsity_1_and_lambda_0_is_fine_tuning(tiny_sd: Path) -> None:
    plain = erase(tiny_sd, EraseDiff(multiplier=0.0, inner_steps=0), max_epochs=2)
    for repair in ("ascent", "anchor"):
        method = Scissorhands(1.0, repair, forget_weight=0.0, batches=1)  # type: ignore[arg-type]
        tuned = erase(tiny_sd, method, max_epochs=2)
        assert method.reinitialized == {}
        assert all(torch.equal(a, b) for a, b in zip(tuned.parameters(), plain.parameters(), strict=True))


def test_a_projected_step_does_not_go_down_on_the_forget_images(tiny_sd: Path) -> None:
    module = SgdTextToImage(str(tiny_sd))
    r, f = batch_gradients(module, "xattn")
    inner, square = (sum((a[n] * f[n]).sum() for n in f) for a in (r, f))
    assert inner > 0
    for margin in (0.0, 2.0):
        _, watch = watched(tiny_sd, Scissorhands(1.0, margin=margin, batches=1))
        weight = max(margin, float(inner / (square + 1e-3)))
        for name, gradient in watch.gradients[0].items():
            torch.testing.assert_close(gradient, r[name] - weight * f[name], rtol=1e-3, atol=1e-7)
    assert sum((watch.gradients[0][n] * f[n]).sum() for n in f) < 0


def test_the_projection_by_hand() -> None:
    def weight(inner: float, square: float, **options: float) -> float:
        return projection_weight(torch.tensor(inner), torch.tensor(square), **options).item()

    assert weight(-1.0, 4.0) == 0.0  # the step raises the forget loss already
    assert weight(0.0, 0.0) == 0.0
    assert weight(1.0, 4.0, damping=0.0) == 0.5  # the margin
    assert weight(1.0, 4.0, margin=0.0, damping=0.0) == 0.25  # orthogonal
    assert weight(6.0, 4.0, damping=2.0) == 1.0
    r, f = torch.tensor([3.0, 1.0]), torch.tensor([2.0, 0.0])
    assert (r - weight(float(r @ f), float(f @ f), margin=0.0, damping=0.0) * f).tolist() == [0.0, 1.0]


def test_new_values_have_the_spread_of_untrained_layers() -> None:
    draw = torch.Generator().manual_seed(0)
    kernel = fresh_values(torch.ones(64, 16, 3, 3), draw)
    assert kernel.abs().max() <= (6 / 144) ** 0.5
    assert kernel.std().item() == pytest.approx((2 / 144) ** 0.5, rel=0.05)
    assert fresh_values(torch.ones(64, 64), draw, "trunc_normal").std().item() == pytest.approx(0.02, rel=0.05)
    assert fresh_values(torch.full((5,), 2.0), draw).tolist() == [0.0] * 5
    assert fresh_values(torch.full((5,), 2.0), draw, vector=1.0).tolist() == [1.0] * 5


def test_ascent_subtracts_what_anchor_adds(tiny_sd: Path) -> None:
    r, f = batch_gradients(SgdTextToImage(str(tiny_sd)), "xattn")
    _, watch = watched(tiny_sd, Scissorhands(1.0, "ascent", forget_weight=0.5, batches=1))
    for name, gradient in watch.gradients[0].items():
        torch.testing.assert_close(gradient, r[name] - 0.5 * f[name], rtol=1e-3, atol=1e-7)
    (anchored, erased) = (
        watched(tiny_sd, method)[1]  # type: ignore[arg-type]
        for method in (
            Scissorhands(1.0, "anchor", forget_weight=0.5, batches=1),
            EraseDiff(multiplier=0.5, inner_steps=0),
        )
    )
    for name, gradient in anchored.gradients[0].items():
        torch.testing.assert_close(gradient, erased.gradients[0][name], rtol=1e-4, atol=1e-8)


def test_guided_scores_ask_for_two_outputs(tiny_sd: Path) -> None:
    plain, guided = Scissorhands(batches=1), Scissorhands(batches=1, guidance=8.5)
    for method in (plain, guided):
        erase(tiny_sd, method)
    assert plain.reinitialized != guided.reinitialized
    assert guided.passes.unet_rows == plain.passes.unet_rows + 2


def test_layers_filter_what_the_whole_model_ranks(tiny_sd: Path) -> None:
    everything, mid = Scissorhands(0.9, batches=1), Scissorhands(0.9, batches=1, layers=r"mid_block\..*attn1")
    for method in (everything, mid):
        erase(tiny_sd, method, trainable="selfattn")
    assert mid.reinitialized == {n: c for n, c in everything.reinitialized.items() if "mid_block" in n}
    assert 0 < len(mid.reinitialized) < len(everything.reinitialized)
    module = SgdTextToImage(str(tiny_sd))
    before = weights(module)
    with pytest.raises(MisconfigurationException, match="layers="):
        trainer(Scissorhands(layers="down_blocks.9")).fit(module, captioned())
    assert all(torch.equal(value, before[name]) for name, value in module.named_parameters())


def test_one_epoch_and_a_resume_equal_two_bit_for_bit(tiny_sd: Path, tmp_path: Path) -> None:
    whole = erase(tiny_sd, Scissorhands(0.99, batches=2), max_epochs=2)
    half = erase(tiny_sd, Scissorhands(0.99, batches=2), max_epochs=1)
    save_resumable(half.trainer, tmp_path / "half.ckpt")
    method = Scissorhands(0.99, batches=2)
    resumed = erase(tiny_sd, method, max_epochs=2, ckpt_path=tmp_path / "half.ckpt")
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), whole.parameters(), strict=True))
    assert method.reinitialized == whole.trainer.callbacks[0].reinitialized
    assert method.passes.state_dict() == whole.trainer.callbacks[0].passes.state_dict()
    resumed.save_pretrained(tmp_path / "erased")
    opened = StableDiffusionPipeline.from_pretrained(tmp_path / "erased", safety_checker=None)
    assert all(torch.equal(a, b) for a, b in zip(opened.unet.parameters(), resumed.unet.parameters(), strict=True))


def test_what_does_not_fit_is_refused() -> None:
    for options in (
        {"sparsity": 1.5},
        {"repair": "none"},
        {"forget_weight": -1.0},
        {"margin": -1.0},
        {"batches": 0},
        {"guidance": -1.0},
        {"layers": "("},
        {"initialization": "zeros"},
    ):
        with pytest.raises(ValueError, match=next(iter(options))):
            Scissorhands(**options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="kind"):
        fresh_values(torch.ones(2, 2), torch.Generator(), "zeros")  # type: ignore[arg-type]
