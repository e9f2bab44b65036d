"""Concept Ablation on a pipeline of random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_unlearn import LitTextToImage
from lightning_unlearn.diffusion.concept_ablation import ConceptAblation
from lightning_unlearn.diffusion.engine.denoising import noised
from lightning_unlearn.diffusion.engine.model import unet_output
from lightning_unlearn.diffusion.engine.parameters import kv_layers
from lightning_unlearn.diffusion.engine.sampling import partial_samples
from lightning_unlearn.diffusion.engine.text import empty_states, encode, tokenize
from lightning_unlearn.functional.diffusion.noise import row_noise
from lightning_unlearn.functional.random import keyed_generator
from tests.diffusion.tiny import first_batch, images, prompts, run, same, weights
from tests.helpers import save_resumable


class Recorder(ConceptAblation):
    """Keeps the latents, timesteps and noise of the last batch."""

    last: Any = None

    def step(self, module: Any, batch: Any) -> dict[str, Tensor]:
        self.last = noised(module, batch["forget"], self.draws(module))
        return super().step(module, batch)


def drawn(folder: Path) -> tuple[LitTextToImage, dict[str, Any], Any]:
    """A fresh model, the first batch, and its draws."""
    recorder = Recorder()
    run(folder, recorder, max_steps=1, lr=1e-30)
    model = LitTextToImage(str(folder), trainable="kv")
    return model, first_batch(model)["forget"], recorder.last


@pytest.mark.parametrize("folder", ["tiny_sd", "tiny_v"])
def test_the_first_loss_is_the_formula(folder: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(folder)
    model, batch, (z, t, noise) = drawn(path)
    with torch.no_grad():
        concept = unet_output(model, z, t, encode(model, batch["input_ids"]))
        anchor = unet_output(model, z, t, encode(model, batch["anchor_input_ids"]))
    ablation, prior = (concept - anchor).square().mean(), (anchor - noise).square().mean()
    noisy = (concept - noise).square().mean()
    methods: list[tuple[dict[str, Any], Tensor]] = [
        ({}, ablation),
        ({"target": "teacher"}, ablation),
        ({"prior_weight": 0.5}, ablation + 0.5 * prior),
        ({"variant": "noise"}, noisy),
        ({"variant": "noise", "prior_weight": 2.0}, noisy + 2 * prior),
    ]
    for options, value in methods:
        seen = run(path, ConceptAblation(**options), max_steps=1, trainable="kv").seen[0]
        torch.testing.assert_close(seen["loss"], value, rtol=1e-4, atol=1e-9, msg=str(options))


@pytest.mark.parametrize("target", ["student", "teacher"])
def test_a_concept_that_is_its_anchor_costs_nothing(target: Any, tiny_sd: Path) -> None:
    module = run(tiny_sd, ConceptAblation(target=target), data=images(concept="{}", anchor=""), trainable="kv")
    assert [float(seen["loss"]) for seen in module.seen] == [0.0, 0.0]
    assert same(module, LitTextToImage(str(tiny_sd)))


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_first_token_gives_keys_and_values_no_gradient(first: bool, checkpointing: bool, tiny_sd: Path) -> None:
    """A plain step is the sum over tokens of the gradient of a token's key times its state, without the first."""
    options: dict[str, Any] = {"gradient_checkpointing": checkpointing, "trainable": "kv", "lr": 1.0}
    module = run(tiny_sd, ConceptAblation(first_token=first), max_steps=1, **options)
    model, batch, (z, t, _) = drawn(tiny_sd)
    made: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(_: Any, __: Any, output: Tensor) -> None:
            output.retain_grad()
            made[name] = output

        return hook

    with torch.no_grad():
        target = unet_output(model, z, t, encode(model, batch["anchor_input_ids"]))
    for name, layer in kv_layers(model.unet).items():
        layer.register_forward_hook(keep(name))
    states = encode(model, batch["input_ids"]).detach()
    (unet_output(model, z, t, states) - target).square().mean().backward()
    skip = 0 if first else 1
    for name, layer in kv_layers(model.unet).items():
        grad = made[name].grad
        assert grad is not None
        expected = torch.einsum("bld,ble->de", grad[:, skip:], states[:, skip:])
        moved = layer.weight - module.get_parameter(f"unet.{name}.weight")
        torch.testing.assert_close(moved, expected, rtol=2e-3, atol=1e-7)
    assert not any(layer._forward_hooks for layer in kv_layers(module.unet).values())


def test_only_keys_and_values_move_and_the_concept_becomes_its_anchor(tiny_sd: Path) -> None:
    base = LitTextToImage(str(tiny_sd))
    module = run(
        tiny_sd, ConceptAblation(target="teacher"), kind=LitTextToImage, trainable="kv", lr=3e-3, max_epochs=12
    )
    before = weights(base)
    moved = {name for name, value in weights(module).items() if not torch.equal(value, before[name])}
    assert moved == {f"unet.{name}.weight" for name in kv_layers(module.unet)}
    ids = tokenize(base.tokenizer, ["van gogh", "the photo"])["input_ids"]
    z, t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(5)), torch.tensor([300, 700])
    with torch.no_grad():
        anchor = unet_output(base, z, t, encode(base, ids[1:]).expand(2, -1, -1))
        apart = [
            (unet_output(m, z, t, encode(m, ids[:1]).expand(2, -1, -1)) - anchor).square().mean()
            for m in (base, module)
        ]
    assert apart[1] < 0.5 * apart[0]


def test_sampled_latents_are_the_teachers_on_their_way_to_the_anchor(tiny_sd: Path) -> None:
    method = ConceptAblation(latents="sampled", guidance=2.0, steps=4, seed=3)
    seen = run(tiny_sd, method, data=prompts(), max_steps=1, trainable="kv").seen[0]
    model = LitTextToImage(str(tiny_sd))
    data = prompts(tokenizer=model.tokenizer)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))["forget"]
    with torch.no_grad():
        concept, anchor = encode(model, batch["input_ids"]), encode(model, batch["anchor_input_ids"])
        noise, draw = row_noise((4, 8, 8), [0, 1], 3, 1), keyed_generator(3, 1)
        ((z, t),) = partial_samples(model, anchor, empty_states(model, 2), noise, [draw], steps=4, guidance=2.0)
        loss = (unet_output(model, z, t, concept) - unet_output(model, z, t, anchor)).square().mean()
    torch.testing.assert_close(seen["loss"], loss, rtol=1e-4, atol=1e-9)


CASES: dict[str, dict[str, Any]] = {
    "student": {"prior_weight": 1.0},
    "teacher": {"target": "teacher"},
    "sampled": {"latents": "sampled", "steps": 4},
}


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_ends_in_the_same_bits(case: str, tiny_sd: Path, tmp_path: Path) -> None:
    def go(**options: Any) -> Any:
        return run(tiny_sd, ConceptAblation(**CASES[case]), trainable="kv", **options)

    whole, half = go(max_epochs=2), go(max_epochs=1)
    save_resumable(half.trainer, tmp_path / "half.ckpt")
    resumed = go(max_epochs=2, ckpt_path=tmp_path / "half.ckpt")
    assert same(resumed, whole)
    assert not same(half, whole)


def test_hooks_go_when_a_run_fails(tiny_sd: Path) -> None:
    class Failing(ConceptAblation):
        def step(self, module: Any, batch: Any) -> dict[str, Tensor]:
            assert all(layer._forward_hooks for layer in kv_layers(module.unet).values())
            raise RuntimeError("out of memory")

    module = LitTextToImage(str(tiny_sd), trainable="kv")
    with pytest.raises(RuntimeError, match="out of memory"):
        run(tiny_sd, Failing(), kind=lambda *_, **__: module)
    assert not any(layer._forward_hooks for layer in kv_layers(module.unet).values())


def test_what_does_not_fit_is_refused_before_a_weight_moves(tiny_sd: Path) -> None:
    bad: list[tuple[str, dict[str, Any]]] = [
        ("variant must be 'model' or 'noise'", {"variant": "x"}),
        ("target must be 'student' or 'teacher'", {"target": "x"}),
        ("latents must be 'images' or 'sampled'", {"latents": "x"}),
        ("prior_weight must be at least 0", {"prior_weight": -1.0}),
        ("guidance must be at least 0", {"guidance": -1.0}),
        ("steps must be at least 1", {"steps": 0}),
        ("sampled latents do not have", {"latents": "sampled", "prior_weight": 1.0}),
        ("sampled latents do not have", {"latents": "sampled", "variant": "noise"}),
    ]
    for match, options in bad:
        with pytest.raises(ValueError, match=match):
            ConceptAblation(**options)
    with pytest.raises(TypeError, match="CaptionedImageDataModule makes such rows"):
        run(tiny_sd, ConceptAblation(), data=prompts())
    bare: Any = [{"pixel_values": torch.zeros(3, 16, 16), "input_ids": torch.zeros(16, dtype=torch.int64)}]
    with pytest.raises(MisconfigurationException, match="no 'anchor_input_ids'"):
        run(tiny_sd, ConceptAblation(), data={"forget": DataLoader(bare)})
