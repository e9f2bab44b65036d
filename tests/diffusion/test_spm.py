"""SPM on a pipeline of random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from diffusers import StableDiffusionPipeline
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from lightning_unlearn import LitTextToImage
from lightning_unlearn.diffusion.engine.adapters import LowRankAdapters, adapted_layers
from lightning_unlearn.diffusion.engine.model import unet_output
from lightning_unlearn.diffusion.engine.sampling import partial_samples
from lightning_unlearn.diffusion.engine.text import empty_states, encode
from lightning_unlearn.diffusion.spm import SPM
from lightning_unlearn.functional.diffusion.noise import row_noise
from lightning_unlearn.functional.random import keyed_generator
from tests.diffusion.tiny import Losses, SgdTextToImage, erase, first_batch, prompts, trainer, weights
from tests.helpers import save_resumable


def small(**options: Any) -> SPM:
    return SPM(**({"steps": 4, "anchors": 2, "anchor_weight": 1.0} | options))


def drawn(model: LitTextToImage, number: int, seed: int = 0) -> dict[str, Tensor]:
    """Latents of a batch, and what the model predicts of them."""
    rows = first_batch(model, prompts)["forget"]
    with torch.no_grad():
        empty, concept, anchor = (
            empty_states(model, 2),
            encode(model, rows["input_ids"]),
            encode(model, rows["anchor_input_ids"]),
        )
        noise = row_noise((4, 8, 8), [0, 1], seed, number)
        ((z, t),) = partial_samples(model, concept, empty, noise, [keyed_generator(seed, number)], steps=4)
        found = {k: unet_output(model, z, t, c) for k, c in (("e_0", empty), ("e_p", concept), ("e_a", anchor))}
    return {"z": z, "t": t, "concept": concept, **found}


@pytest.mark.parametrize("neutral", ["empty", "anchor"])
@pytest.mark.parametrize("eta", [0.0, 1.5])
def test_the_first_loss_is_one_plus_eta_squared_times_the_distance(eta: float, neutral: Any, tiny_sd: Path) -> None:
    module = erase(tiny_sd, small(negative_guidance=eta, neutral=neutral), lr=1e-9, max_steps=1)
    found = drawn(LitTextToImage(str(tiny_sd)), 1)
    apart = (found["e_p"] - found["e_0" if neutral == "empty" else "e_a"]).square().mean()
    torch.testing.assert_close(module.seen[0]["erase"], (1 + eta) ** 2 * apart, rtol=1e-3, atol=0)
    assert module.seen[0]["anchor"] < 1e-10  # adapters begin with nothing


def test_the_concept_is_steered_away_from_and_anchors_hold(tiny_sd: Path) -> None:
    """On draws that it was not trained on."""
    after, moved = {}, {}
    for weight in (0.0, 100.0):
        watch = Losses()
        model, erased = LitTextToImage(str(tiny_sd)), LitTextToImage(str(tiny_sd), lr=2e-2)
        trainer(small(anchor_weight=weight), watch, max_epochs=8).fit(erased, prompts())
        found = drawn(model, 99)
        target = found["e_0"] - (found["e_p"] - found["e_0"])
        with torch.no_grad():
            output = unet_output(erased, found["z"], found["t"], found["concept"])
        before = (found["e_p"] - target).square().mean()
        after[weight] = ((output - target).square().mean() / before).item()
        moved[weight] = watch.values[-1]["anchor"].item()
    assert after[0.0] < 0.5
    assert after[0.0] < after[100.0] < 1
    assert moved[100.0] < 0.5 * moved[0.0]


def test_merged_weights_of_adapted_layers_are_all_that_changes(tiny_sd: Path, tmp_path: Path) -> None:
    base = LitTextToImage(str(tiny_sd))
    before, method = weights(base), small()
    module = erase(tiny_sd, method, lr=1.0, trainable="full")
    assert list(weights(module)) == list(before)
    changed = {name for name, value in weights(module).items() if not torch.equal(value, before[name])}
    assert changed == {f"unet.{path}.weight" for path in adapted_layers(module.unet)}
    assert all(p.requires_grad for p in module.unet.parameters())  # as before
    module.save_pretrained(tmp_path / "erased")
    opened = StableDiffusionPipeline.from_pretrained(tmp_path / "erased", safety_checker=None)
    assert all(torch.equal(a, b) for a, b in zip(opened.unet.parameters(), module.unet.parameters(), strict=True))


def test_unmerged_the_module_stays_and_the_file_erases(tiny_sd: Path, tmp_path: Path) -> None:
    before = weights(LitTextToImage(str(tiny_sd)))
    method = small(merge=False)
    module, merged = erase(tiny_sd, method, lr=1.0), erase(tiny_sd, small(), lr=1.0)
    assert all(torch.equal(value, before[name]) for name, value in module.named_parameters())
    assert list(weights(module)) == list(before)
    method.adapters.save(tmp_path / "erased.safetensors")
    LowRankAdapters.load(module.unet, tmp_path / "erased.safetensors").merge()
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), merged.parameters(), strict=True))


@pytest.mark.parametrize("merge", [True, False])
def test_one_epoch_and_a_resume_equal_two_bit_for_bit(merge: bool, tiny_sd: Path, tmp_path: Path) -> None:
    whole_method, method = small(merge=merge), small(merge=merge)
    whole = erase(tiny_sd, whole_method, max_epochs=2)
    half = erase(tiny_sd, small(merge=merge), max_epochs=1)
    save_resumable(half.trainer, tmp_path / "half.ckpt")
    resumed = erase(tiny_sd, method, max_epochs=2, ckpt_path=tmp_path / "half.ckpt")
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), whole.parameters(), strict=True))
    for name, value in whole_method.adapters.state_dict().items():
        assert torch.equal(method.adapters.state_dict()[name], value), name
    assert method.passes.state_dict() == whole_method.passes.state_dict()
    assert any(value.abs().max() > 0 for name, value in method.adapters.state_dict().items() if name.endswith("up"))


def test_a_checkpoint_in_the_midst_of_training_is_erased_and_continues(tiny_sd: Path, tmp_path: Path) -> None:
    class Saves(L.Callback):
        def on_train_epoch_end(self, trainer: L.Trainer, *_: Any) -> None:
            if trainer.current_epoch == 0:
                trainer.save_checkpoint(tmp_path / "mid.ckpt")
                trainer.save_checkpoint(tmp_path / "weights.ckpt", weights_only=True)

    whole = SgdTextToImage(str(tiny_sd), lr=0.05)
    method = small()
    method.keep_reference = True
    trainer(method, Saves(), max_epochs=2).fit(whole, prompts())
    half = erase(tiny_sd, small(), max_epochs=1)
    for name in ("mid", "weights"):
        loaded = LitTextToImage.load_from_checkpoint(tmp_path / f"{name}.ckpt")
        assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), half.parameters(), strict=True))
    resumed = erase(tiny_sd, small(), max_epochs=2, ckpt_path=tmp_path / "mid.ckpt")
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), whole.parameters(), strict=True))


def test_a_run_costs_what_it_counts(tiny_sd: Path) -> None:
    method = small()
    erase(tiny_sd, method, prompts(repeat=4))
    sampled = sum(int(torch.randint(4, (), generator=keyed_generator(0, batch))) for batch in range(1, 5))
    assert method.passes.unet == sampled + 2 * 4
    # Two prompts and two anchors each; the teacher answers for the empty prompt too.
    assert method.passes.unet_rows == 4 * sampled + 4 * (8 + 6)


def test_a_crash_leaves_the_module_as_it_was(tiny_sd: Path) -> None:
    class Breaks(SPM):
        def sample_anchors(self, *_: Any) -> Tensor:
            raise RuntimeError("out of memory")

    module = SgdTextToImage(str(tiny_sd))
    before, trains = weights(module), [p.requires_grad for p in module.parameters()]
    with pytest.raises(RuntimeError, match="out of memory"):
        trainer(Breaks()).fit(module, prompts())
    assert list(weights(module)) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in module.named_parameters())
    assert [p.requires_grad for p in module.parameters()] == trains
    assert not any(layer._forward_hooks for layer in adapted_layers(module.unet).values())


def test_what_does_not_fit_is_refused_before_a_weight_moves(tiny_sd: Path) -> None:
    for options in (
        {"negative_guidance": -1.0},
        {"neutral": "none"},
        {"anchors": 0},
        {"anchor_weight": -1.0},
        {"rank": 0},
        {"alpha": 0.0},
        {"start_guidance": -1.0},
        {"steps": 0},
    ):
        with pytest.raises(ValueError, match=next(iter(options))):
            SPM(**options)  # type: ignore[arg-type]

    class Own(LitTextToImage):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD([self.unet.conv_in.weight], lr=1.0)

    with pytest.raises(MisconfigurationException, match="does not take the adapters"):
        trainer(small()).fit(Own(str(tiny_sd)), prompts())
