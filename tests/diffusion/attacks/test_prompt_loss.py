"""Loss that an attack on prompts descends, and the targets it compares with."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_unlearn import LitTextToImage
from lightning_unlearn.core.modes import differentiable
from lightning_unlearn.diffusion.attacks.victim import PromptLoss, fit_images, target_latents
from lightning_unlearn.diffusion.engine.model import image_size
from lightning_unlearn.diffusion.engine.text import tokenize
from lightning_unlearn.functional.diffusion.noise import row_noise
from tests.diffusion.attacks.told import PROMPTS, attack, never

# Loss


class FixedUNet(nn.Module):
    """Gives zero, or the true noise of latents that it knows."""

    def __init__(self, latents: Tensor | None, levels: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.latents, self.levels, self.device = latents, levels, torch.device("cpu")

    def forward(self, noisy: Tensor, timesteps: Tensor, encoder_hidden_states: Tensor) -> Any:
        if self.latents is None:
            return SimpleNamespace(sample=torch.zeros_like(noisy))
        a = self.levels[timesteps][:, None, None, None]
        return SimpleNamespace(sample=(noisy - a.sqrt() * self.latents) / (1 - a).sqrt())


def prompt_loss(model: Any, latents: Tensor, **options: Any) -> PromptLoss:
    ids = tokenize(model.tokenizer, PROMPTS)["input_ids"]
    lengths = (ids == model.tokenizer.eos_token_id).int().argmax(1) - 1
    return PromptLoss(model, ids, lengths, latents, [1, 2, 3, 4], "prefix", **options)


def test_the_loss_is_zero_for_a_model_that_knows_the_noise_and_one_for_one_that_says_zero(
    model: LitTextToImage,
) -> None:
    latents = torch.randn(4, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    tokens = torch.zeros(4, 2, 32)
    timesteps = torch.tensor([10, 300, 500, 990])
    model.unet = FixedUNet(latents, model.scheduler.alphas_cumprod)
    assert prompt_loss(model, latents)(tokens, [0, 1, 2, 3], timesteps, 0).max() < 1e-5
    model.unet = FixedUNet(None, model.scheduler.alphas_cumprod)
    torch.testing.assert_close(
        prompt_loss(model, latents)(tokens, [0, 1, 2, 3], timesteps, 0), torch.ones(4), atol=0.06, rtol=0
    )
    first = prompt_loss(model, latents, criterion="l1")(tokens, [0, 1, 2, 3], timesteps, 0)
    torch.testing.assert_close(first, torch.full((4,), (2 / torch.pi) ** 0.5), atol=0.04, rtol=0)


def test_the_loss_is_the_training_loss_of_the_prompt_with_the_tokens(model: LitTextToImage) -> None:
    """With tokens of the vocabulary: that of the longer prompt, computed by hand; P4D has the base's output in it."""
    latents = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    model.eval()
    green = model.tokenizer("green", add_special_tokens=False)["input_ids"]
    table = model.text_encoder.get_input_embeddings().weight
    rows, timesteps = [0, 2], torch.tensor([100, 0, 700, 0])
    with torch.no_grad():
        tokens = table[torch.tensor([green * 2] * 2)]
        found = prompt_loss(model, latents)(tokens, rows, timesteps, step=7)
        p4d = prompt_loss(model, latents, base=model)(tokens, rows, timesteps, step=7)
        noise = row_noise((4, 8, 8), [1, 3], 0, 1, 7)
        a = model.scheduler.alphas_cumprod[timesteps[rows]][:, None, None, None]
        noisy = a.sqrt() * latents[rows] + (1 - a).sqrt() * noise

        def output(texts: list[str]) -> Tensor:
            states = model.text_encoder(tokenize(model.tokenizer, texts)["input_ids"])[0]
            return model.unet(noisy, timesteps[rows], encoder_hidden_states=states).sample

        longer = output([f"green green {PROMPTS[r]}" for r in rows])
        torch.testing.assert_close(found, (longer - noise).square().mean((1, 2, 3)))
        plain = output([PROMPTS[r] for r in rows])
        torch.testing.assert_close(p4d, (longer - plain).square().mean((1, 2, 3)), rtol=1e-3, atol=1e-8)


def test_target_latents_are_the_scaled_means(model: LitTextToImage, targets: Tensor) -> None:
    with torch.no_grad():
        mean = model.vae.encode(2 * targets - 1).latent_dist.mean
    torch.testing.assert_close(target_latents(model, targets), mean * model.vae.config.scaling_factor)


# The victim


def test_the_victim_is_left_as_it_was(model: LitTextToImage, targets: Tensor) -> None:
    model.train()
    model.vae.eval()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = {name: module.training for name, module in model.named_modules()}
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    rng = torch.get_rng_state()
    assert len(set(flags.values())) == len(set(modes.values())) == 2
    attack(never()).run(model, PROMPTS, targets)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), rng)
    with pytest.raises(RuntimeError, match="midway"), differentiable(model):
        raise RuntimeError("midway")
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags


def test_gradients_flow_inside_inference_mode(model: LitTextToImage) -> None:
    with torch.inference_mode(), differentiable(model):
        token = torch.zeros(1, 2, 32, requires_grad=True)
        loss = prompt_loss(model, torch.zeros(4, 4, 8, 8))(token, [0], torch.tensor([10, 10, 10, 10]), 0)
        assert torch.autograd.grad(loss.sum(), token)[0].abs().sum() > 0


def test_targets_of_other_sizes_are_fitted_to_the_model(model: LitTextToImage) -> None:
    images = [torch.zeros(3, 30, 50), torch.full((3, 16, 16), 0.5), torch.rand(3, 8, 16)]
    images[0][:, :, 6:44] = 1  # the middle, which is kept
    with pytest.warns(UserWarning, match=r"\(8, 16\) pixels are resized to the model's \(16, 16\)"):
        fitted = fit_images(images, image_size(model))
    assert fitted.shape == (3, 3, 16, 16)
    assert fitted[0].min() > 0.99
    assert torch.equal(fitted[1], images[1])
    result = attack(never()).run(model, PROMPTS[:3], images)
    assert [row.steps for row in result.prompts] == [4, 4, 4]
    with pytest.raises(ValueError, match=r"has the shape \(3, H, W\).*but one has \(1, 16, 16\)"):
        attack(never()).run(model, PROMPTS[:1], torch.rand(1, 1, 16, 16))
