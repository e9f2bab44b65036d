"""Forget-Me-Not on a pipeline of random weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from lightning_unlearn import LitTextToImage
from lightning_unlearn.diffusion.engine.attention import attention_probabilities
from lightning_unlearn.diffusion.engine.denoising import noised
from lightning_unlearn.diffusion.engine.parameters import select_params
from lightning_unlearn.diffusion.engine.text import encode, tokenize
from lightning_unlearn.diffusion.forget_me_not import ForgetMeNot
from lightning_unlearn.functional.diffusion.forget_me_not import attention_norm, token_positions
from tests.diffusion.tiny import first_batch, prompts, run, same, weights
from tests.helpers import save_resumable

# Where "van gogh" is in the captions of images.py, after the token that begins them; "by" is of two tokens.
PLACES = {0: [1, 2], 1: [7, 8], 2: [2, 3], 3: [5, 6]}


class Recorder(ForgetMeNot):
    last: Any = None

    def step(self, module: Any, batch: Any) -> dict[str, Tensor]:
        self.last = noised(module, batch["forget"], self.draws(module))
        return super().step(module, batch)


class Stream(IterableDataset):
    """Batches that can't be looked at beforehand."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __iter__(self) -> Any:
        return iter(self.batches)


def attention(model: LitTextToImage, z: Tensor, t: Tensor, states: Tensor) -> list[Tensor]:
    """Probabilities of every cross-attention layer, from the outputs of its linear layers, whatever computes it."""
    made: dict[str, Tensor] = {}
    layers = {n: m for n, m in model.unet.named_modules() if n.endswith("attn2")}
    handles = [
        getattr(layer, part).register_forward_hook(lambda _, __, out, key=f"{name}.{part}": made.update({key: out}))
        for name, layer in layers.items()
        for part in ("to_q", "to_k")
    ]
    with torch.no_grad():
        model.unet(z, t, encoder_hidden_states=states)
    for handle in handles:
        handle.remove()
    found = []
    for name, layer in layers.items():
        query, key = (
            made[f"{name}.{part}"].unflatten(-1, (layer.heads, -1)).transpose(1, 2) for part in ("to_q", "to_k")
        )
        found.append((query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])).softmax(-1))
    return found


def looked_at(model: LitTextToImage, z: Tensor, t: Tensor, batch: Any, places: dict[int, list[int]]) -> Tensor:
    with torch.no_grad():
        probabilities = attention(model, z, t, encode(model, batch["input_ids"]))
    norms = []
    for row, index in enumerate(batch["index"].tolist()):
        squares = [float(layer[row, :, :, places[index]].square().sum()) for layer in probabilities]
        norms.append(math.sqrt(sum(squares)))
    return torch.tensor(norms)


def test_the_loss_is_one_norm_over_all_layers_seen_by_other_hooks(tiny_sd: Path) -> None:
    model, recorder = LitTextToImage(str(tiny_sd)), Recorder("Van Gogh", seed=3)
    seen = run(tiny_sd, recorder, max_steps=1).seen[0]
    batch, (z, t, _) = first_batch(model)["forget"], recorder.last
    expected = looked_at(model, z, t, batch, PLACES).mean()
    torch.testing.assert_close(seen["loss"], expected, rtol=1e-4, atol=0)
    with torch.no_grad(), attention_probabilities(model.unet) as recorded:
        model.unet(z, t, encoder_hidden_states=encode(model, batch["input_ids"]))
    for (calls,), other in zip(
        recorded.values(), attention(model, z, t, encode(model, batch["input_ids"])), strict=True
    ):
        torch.testing.assert_close(calls.sum(-1), torch.ones_like(calls[..., 0]))
        torch.testing.assert_close(calls, other, rtol=1e-4, atol=1e-6)


def test_names_and_the_end_of_the_caption_add_up(tiny_sd: Path) -> None:
    model = LitTextToImage(str(tiny_sd))
    ids = tokenize(model.tokenizer, ["van gogh", "a red circle of van gogh", "green"])["input_ids"]

    def places(*names: str, end: bool = False) -> list[list[int]]:
        found = ForgetMeNot(list(names), end).positions(model, ids)
        return [row.nonzero().flatten().tolist() for row in found]

    assert places("van gogh", "green") == [[1, 2], [5, 6], [1]]
    assert places("Van Gogh", "red circle", "green") == [[1, 2], [2, 3, 5, 6], [1]]
    assert places("van gogh", "green", end=True) == [[1, 2, 3], [5, 6, 7], [1, 2]]  # and no padding
    with pytest.raises(ValueError, match="the caption 'green' of a row to forget has none"):
        places("van gogh")


def test_the_mathematics_by_hand() -> None:
    first, second = torch.tensor([[[[0.5, 0.3, 0.2]]]]), torch.tensor([[[[0.1, 0.4, 0.5], [0.2, 0.2, 0.6]]]])
    value = attention_norm([first, second], torch.tensor([[False, True, True]]))
    assert value.item() == pytest.approx(math.sqrt(0.09 + 0.04 + 0.16 + 0.25 + 0.04 + 0.36))
    assert attention_norm([first], torch.tensor([[False, False, False]])).item() == 0
    ids = torch.tensor([[1, 2, 2, 3, 2, 3], [2, 3, 1, 1, 1, 2]])
    assert token_positions(ids, [[2, 3]]).int().tolist() == [[0, 0, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0]]
    assert token_positions(ids, [[2] * 7]).sum() == 0
    with pytest.raises(ValueError, match="at least one layer"):
        attention_norm([], torch.ones(1, 1, dtype=torch.bool))


@pytest.mark.parametrize("trainable", ["xattn", "full"])
def test_only_the_subset_moves_and_the_concept_is_no_longer_looked_at(trainable: str, tiny_sd: Path) -> None:
    base = LitTextToImage(str(tiny_sd))
    module = run(tiny_sd, ForgetMeNot("van gogh"), kind=LitTextToImage, trainable=trainable, lr=1e-2, max_epochs=8)
    before, chosen = weights(base), select_params(module, trainable)  # type: ignore[arg-type]
    for name, value in weights(module).items():
        assert name in chosen or torch.equal(value, before[name]), name
    batch = first_batch(base)["forget"]
    z, t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(5)), torch.tensor([300, 700])
    assert (looked_at(module, z, t, batch, PLACES) < 0.5 * looked_at(base, z, t, batch, PLACES)).all()
    # Layers behind the last attention have no part in it.
    last = "unet.conv_out.weight"
    assert torch.equal(module.get_parameter(last), before[last])


def test_a_resumed_run_ends_in_the_same_bits(tiny_sd: Path, tmp_path: Path) -> None:
    def go(**options: Any) -> Any:
        return run(tiny_sd, ForgetMeNot("van gogh"), **options)

    whole, half = go(max_epochs=2), go(max_epochs=1)
    save_resumable(half.trainer, tmp_path / "half.ckpt")
    resumed = go(max_epochs=2, ckpt_path=tmp_path / "half.ckpt")
    assert same(resumed, whole)
    assert not same(half, whole)


@pytest.mark.parametrize("fails", [False, True])
def test_the_models_own_attention_comes_back(fails: bool, tiny_sd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = LitTextToImage(str(tiny_sd))
    processors = dict(module.unet.attn_processors)
    if fails:

        def failing(*_: Any) -> Tensor:
            assert any(type(p).__name__ == "AttnProcessor" for p in module.unet.attn_processors.values())
            raise RuntimeError("out of memory")

        monkeypatch.setattr("lightning_unlearn.diffusion.forget_me_not.unet_output", failing)
        with pytest.raises(RuntimeError, match="out of memory"):
            run(tiny_sd, ForgetMeNot("van gogh"), kind=lambda *_, **__: module)
    else:
        run(tiny_sd, ForgetMeNot("van gogh"), kind=lambda *_, **__: module)
    now = module.unet.attn_processors
    assert all(now[name] is processor for name, processor in processors.items())
    assert not any("get_attention_scores" in vars(layer) for layer in module.unet.modules())


def test_what_is_saved_opens_in_a_plain_pipeline(tiny_sd: Path, tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    module = run(tiny_sd, ForgetMeNot("van gogh"))
    module.save_pretrained(tmp_path / "erased")
    unet = StableDiffusionPipeline.from_pretrained(tmp_path / "erased").unet
    saved, own = unet.state_dict(), module.unet.state_dict()
    assert saved.keys() == own.keys()
    assert all(torch.equal(saved[name], own[name]) for name in own)
    z, t, states = torch.randn(1, 4, 8, 8), torch.tensor([500]), torch.randn(1, 16, 32)
    with torch.no_grad():
        outputs = [m(z, t, encoder_hidden_states=states).sample for m in (unet, module.unet.eval())]
    torch.testing.assert_close(*outputs)  # where weights lie in memory changes sums on some processors


def test_what_does_not_fit_is_refused_before_a_weight_moves(tiny_sd: Path) -> None:
    for concept in ("", " ", [], ["red", ""]):
        with pytest.raises(ValueError, match="concept is the words"):
            ForgetMeNot(concept)  # type: ignore[arg-type]
    with pytest.raises(MisconfigurationException, match="gradient_checkpointing=False"):
        run(tiny_sd, ForgetMeNot("van gogh"), gradient_checkpointing=True)
    with pytest.raises(TypeError, match="CaptionedImageDataModule makes such rows"):
        run(tiny_sd, ForgetMeNot("van gogh"), data=prompts())

    class Never(ForgetMeNot):
        def step(self, module: Any, batch: Any) -> dict[str, Tensor]:
            raise AssertionError("a step was made")

    with pytest.raises(ValueError, match=r"but the caption '[^']*' of a row to forget has none"):
        run(tiny_sd, Never("red art"))
    first = first_batch(LitTextToImage(str(tiny_sd)))["forget"]
    with pytest.raises(ValueError, match="has none of them"):
        run(tiny_sd, ForgetMeNot("green"), data={"forget": DataLoader(Stream([first]), batch_size=None)})
