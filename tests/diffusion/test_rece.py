"""RECE on a pipeline of random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from lightning_unlearn.diffusion.engine.model import unet_output
from lightning_unlearn.diffusion.engine.parameters import kv_layers
from lightning_unlearn.diffusion.engine.passes import PassCounter
from lightning_unlearn.diffusion.engine.text import empty_states, encode, tokenize
from lightning_unlearn.diffusion.rece import RECE
from lightning_unlearn.diffusion.text_to_image import LitTextToImage
from lightning_unlearn.diffusion.uce import UCE
from lightning_unlearn.functional.diffusion.rece import closed_form_attack
from lightning_unlearn.functional.diffusion.uce import uce
from tests.diffusion.tiny import erase, prompts, trainer

CONCEPTS = ["van gogh", "a circle in the style of van gogh"]


def kv(model: LitTextToImage) -> list[Tensor]:
    return [layer.weight.detach().clone() for layer in kv_layers(model.unet).values()]


@torch.no_grad()
def states(model: LitTextToImage, texts: list[str]) -> Tensor:
    """All text states of the prompts, one below the other."""
    return encode(model, tokenize(model.tokenizer, texts)["input_ids"]).flatten(0, 1)


def apart(base: LitTextToImage, weights: list[Tensor], found: Tensor) -> float:
    """How far the keys and values of states are from those that the base has for the concepts."""
    concepts = states(base, CONCEPTS).double()
    pairs = zip(weights, kv(base), strict=True)
    return sum((found @ w.double().T - concepts @ old.double().T).square().sum().item() for w, old in pairs)


def test_only_keys_and_values_change_without_a_pass_of_the_unet(tiny_sd: Path) -> None:
    base, module = LitTextToImage(str(tiny_sd)), LitTextToImage(str(tiny_sd), trainable="full")
    with PassCounter() as passes:
        passes.attach(module)
        trainer(RECE(epochs=2)).fit(module, prompts())
    assert passes.unet == 0
    changed = {
        n for (n, p), q in zip(module.named_parameters(), base.parameters(), strict=True) if not torch.equal(p, q)
    }
    assert changed == {f"unet.{name}.weight" for name in kv_layers(module.unet)}
    assert module.trainer.global_step == 0


def test_an_epoch_is_an_attack_and_an_edit_to_the_empty_prompt(tiny_sd: Path) -> None:
    """Written out for each layer, from the weights that UCE leaves."""
    base = LitTextToImage(str(tiny_sd))
    options: dict[str, Any] = {"erase_scale": 0.7, "preserve_scale": 0.2, "lamb": 0.3}
    weights = kv(erase(tiny_sd, UCE(states="rest", **options)))
    concepts, keep = states(base, CONCEPTS), states(base, ["a photo of a green square", "a red circle"])
    empty = states(base, ["", ""])
    for _ in range(2):
        found = closed_form_attack(concepts, weights, kv(base), lamb=0.05)
        weights = [uce(w, found, empty, keep, **options) for w in weights]
    for weight, expected in zip(kv(erase(tiny_sd, RECE(2, 0.05, **options))), weights, strict=True):
        torch.testing.assert_close(weight, expected, rtol=1e-4, atol=1e-6)


def test_what_brings_the_concept_back_after_uce_does_so_less_after_rece(tiny_sd: Path) -> None:
    base = LitTextToImage(str(tiny_sd))
    concepts = states(base, CONCEPTS)
    before, after = (kv(erase(tiny_sd, m)) for m in (UCE(preserve_scale=0.1, lamb=0.1, states="rest"), RECE(epochs=1)))
    attack = closed_form_attack(concepts, before, kv(base), lamb=0.1)
    assert apart(base, before, attack) < 0.5 * apart(base, before, concepts.double())
    assert apart(base, after, attack) > 2 * apart(base, before, attack)


def test_each_epoch_leaves_less_for_the_next_attack(tiny_sd: Path) -> None:
    base = LitTextToImage(str(tiny_sd))
    concepts, left = states(base, CONCEPTS), []
    for epochs in (1, 2, 3):
        weights = kv(erase(tiny_sd, RECE(epochs=epochs)))
        left.append(apart(base, weights, closed_form_attack(concepts, weights, kv(base), lamb=0.1)))
    assert left[0] < left[1] < left[2]


def test_the_saved_folder_opens_in_the_plain_pipeline(tiny_sd: Path, tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    module = erase(tiny_sd, RECE())
    module.save_pretrained(tmp_path / "erased")
    opened = StableDiffusionPipeline.from_pretrained(tmp_path / "erased", safety_checker=None)
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        text = empty_states(module, 2)
        found = opened.unet(latents, torch.tensor(500), encoder_hidden_states=text).sample
        assert torch.equal(found, unet_output(module.eval(), latents, torch.tensor(500), text))


def test_repeated_prompts_are_one_edit_and_a_second_is_refused(tiny_sd: Path, tmp_path: Path) -> None:
    once = erase(tiny_sd, RECE(), prompts(repeat=1))
    often = erase(tiny_sd, RECE(), prompts(repeat=5), precision="bf16-mixed")
    assert all(torch.equal(p, q) for p, q in zip(once.parameters(), often.parameters(), strict=True))
    once.trainer.save_checkpoint(tmp_path / "edited.ckpt")
    with pytest.raises(MisconfigurationException, match="edited by RECE already"):
        erase(tiny_sd, RECE(), ckpt_path=tmp_path / "edited.ckpt")


def test_it_works_without_a_trainer_and_without_retain_prompts(tiny_sd: Path) -> None:
    model = LitTextToImage(str(tiny_sd))
    data = prompts(tokenizer=model.tokenizer)
    data.setup("fit")
    forget, before = data.train_dataloader().rows("forget", [[0, 1]]), kv(model)
    with pytest.raises(ValueError, match="preserve_scale=0"):
        RECE().edit(model, forget)
    assert all(torch.equal(a, b) for a, b in zip(kv(model), before, strict=True))
    RECE(preserve_scale=0.0).edit(model, forget)
    assert all(not torch.equal(a, b) for a, b in zip(kv(model), before, strict=True))
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    "options",
    [{"epochs": 0}, {"attack_lamb": 0.0}, {"attack_lamb": float("nan")}, {"erase_scale": 0.0}, {"lamb": 0.0}],
)
def test_numbers_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        RECE(**options)
