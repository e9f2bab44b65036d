"""MACE on a pipeline of random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from diffusers import StableDiffusionPipeline
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from lightning_unlearn import MACE, LitTextToImage
from lightning_unlearn.diffusion.engine.denoising import noised
from lightning_unlearn.diffusion.engine.draws import Draws
from lightning_unlearn.diffusion.engine.parameters import kv_layers
from lightning_unlearn.diffusion.engine.text import encode, tokenize
from lightning_unlearn.functional.diffusion.mace import focal_density, fusion_maps, masked_attention_norm, replaced
from tests.diffusion.test_forget_me_not import PLACES, attention
from tests.diffusion.tiny import (
    CONCEPT,
    KEPT,
    SgdTextToImage,
    first_batch,
    images,
    prompts,
    run,
    same,
    trainer,
    weights,
)
from tests.helpers import save_resumable

TEMPLATES = ["a photo of {}"]
# Tokens of "a photo of van gogh" and of the captions of images.py that stay when "van gogh" becomes "green", which is
# one token, and where they go; each ends the caption and pads it to sixteen.
STAYS = [
    ("a photo of van gogh", "a photo of green", [(i, i) for i in range(4)] + [(i, i - 1) for i in range(6, 16)]),
    ("van gogh", "green", [(0, 0)] + [(i, i - 1) for i in range(3, 16)]),
    (
        "a circle in the style of van gogh",
        "a circle in the style of green",
        [(i, i) for i in range(7)] + [(i, i - 1) for i in range(9, 16)],
    ),
    ("a van gogh", "a green", [(i, i) for i in range(2)] + [(i, i - 1) for i in range(4, 16)]),
    ("red art by van gogh", "red art by green", [(i, i) for i in range(5)] + [(i, i - 1) for i in range(7, 16)]),
]


def mace(**options: Any) -> MACE:
    return MACE({"van gogh": "green"}, TEMPLATES, **({"lamb": 0.5} | options))


def states(model: LitTextToImage, text: str) -> Tensor:
    with torch.no_grad():
        return encode(model, tokenize(model.tokenizer, [text])["input_ids"])[0]


def least_squares(*terms: tuple[Tensor, Tensor, float]) -> Tensor:
    """The weight with the least sum of squares, each weighted, of what it makes of inputs, ``(N, D)``, less a goal."""
    inputs = torch.cat([weight**0.5 * x.double() for x, _, weight in terms])
    goals = torch.cat([weight**0.5 * y.double() for _, y, weight in terms])
    return torch.linalg.lstsq(inputs, goals, driver="gelsd").solution.T


def refined(model: LitTextToImage, weight: Tensor, lamb: float, preserve: float = 0.0) -> Tensor:
    pairs = [(states(model, a)[[i for i, _ in p]], states(model, b)[[j for _, j in p]]) for a, b, p in STAYS]
    concepts, guides = (torch.cat(part).double() for part in zip(*pairs, strict=True))
    old, one = weight.detach().double(), torch.eye(weight.shape[1]).double()
    kept = torch.cat([states(model, text) for text in KEPT]).double()
    return least_squares((concepts, guides @ old.T, 1.0), (one, old.T, lamb), (kept, kept @ old.T, preserve))


def kv(module: Any) -> dict[str, Tensor]:
    return {name: layer.weight.detach().clone() for name, layer in kv_layers(module.unet).items()}


def test_the_loss_by_hand() -> None:
    coarse = torch.tensor([[[[0.1, 0.9]] * 3]])  # one row, one head, three places: 2 by 5, halved to 1 by 3
    fine = torch.arange(20.0).view(1, 1, 10, 2) / 20
    mask = torch.tensor([[[[0.0, 0.0, 1.0, 1.0, 0.4], [0.0, 0.0, 0.0, 1.0, 0.0]]]])
    positions = torch.tensor([[True, False]])
    within = [2, 3, 8]
    expected = 0.1 + sum((2 * q / 20) ** 2 for q in within) ** 0.5
    assert masked_attention_norm([coarse, fine], positions, mask, (2, 5)).item() == pytest.approx(expected)
    whole = (3 * 0.01) ** 0.5 + sum((2 * q / 20) ** 2 for q in range(10)) ** 0.5
    assert masked_attention_norm([coarse, fine], positions).item() == pytest.approx(whole)
    with pytest.raises(ValueError, match="at least one layer"):
        masked_attention_norm([], positions)
    with pytest.raises(ValueError, match="size="):
        masked_attention_norm([fine], positions, mask)
    with pytest.raises(ValueError, match="10 queries"):
        masked_attention_norm([fine], positions, mask, (3, 5))


def test_the_noise_levels_by_hand(tiny_sd: Path) -> None:
    p = focal_density(1000)
    ratio = (torch.sigmoid(torch.tensor(0.05 * 50)) - torch.sigmoid(torch.tensor(-0.05 * 150))) / (
        torch.sigmoid(torch.tensor(0.05 * 100)) - torch.sigmoid(torch.tensor(-0.05 * 100))
    )
    assert p.sum().item() == pytest.approx(1)
    assert (p[250] / p[300]).item() == pytest.approx(ratio.item(), rel=1e-5)
    torch.testing.assert_close(focal_density(500)[100:300] / focal_density(500)[150], p[200:600:2] / p[300])
    model = LitTextToImage(str(tiny_sd))
    batch = first_batch(model)["forget"]
    only = torch.zeros(1000)
    only[321] = 1
    assert noised(model, batch, Draws(0, 0), density=only).timesteps.tolist() == [321, 321]


def test_the_fusion_is_the_least_squares_solution() -> None:
    draw = torch.Generator().manual_seed(0)
    first, second, kept = (torch.randn(n, 6, generator=draw).double() for n in (3, 4, 5))
    w, w0, d1, d2 = (torch.randn(2, 6, generator=draw).double() for _ in range(4))
    (r1, r2), k = fusion_maps([first, second], kept, preserve_scale=0.3, lamb=0.7)
    expected = least_squares(
        (first, first @ (w + d1).T, 1.0),
        (second, second @ (w + d2).T, 1.0),
        (kept, kept @ w0.T, 0.3),
        (torch.eye(6), w.T, 0.7),
    )
    torch.testing.assert_close(w + d1 @ r1 + d2 @ r2 + (w0 - w) @ k, expected)
    with pytest.raises(ValueError, match="lamb"):
        fusion_maps([first], lamb=0.0)
    with pytest.raises(ValueError, match="at least one concept"):
        fusion_maps([])


def test_words_are_replaced_token_by_token() -> None:
    assert replaced([1, 5, 6, 3, 5, 6, 9, 9], [5, 6], [7]) == (
        [1, 7, 3, 7, 9, 9, 9, 9],
        [(0, 0), (3, 2), (6, 4), (7, 5)],
    )
    assert replaced([1, 5, 3, 9, 9], [5], [7, 8]) == ([1, 7, 8, 3, 9], [(0, 0), (2, 3), (3, 4)])
    assert replaced([1, 5, 3, 9], [5], []) == ([1, 3, 9, 9], [(0, 0), (2, 1), (3, 2)])
    assert replaced([1, 5, 2, 3, 4], [5], [7, 8])[0] == [1, 7, 8, 2, 3]


@pytest.mark.parametrize("preserve", [0.0, 2.0])
def test_words_around_the_concept_are_those_around_what_replaces_it(preserve: float, tiny_sd: Path) -> None:
    """Adapters that hardly train leave the refinement, drawn to the starting weights once more where prompts count."""
    base = LitTextToImage(str(tiny_sd))
    module = run(tiny_sd, mace(preserve_scale=preserve), lr=1e-12, max_steps=1)
    kept = torch.cat([states(base, text) for text in KEPT]).double()
    texts = [text for text, _, _ in STAYS]
    prompts_of = torch.cat([states(base, text) for text in texts]).double()
    for name, weight in kv(module).items():
        old = base.unet.get_submodule(name).weight
        new = refined(base, old, 0.5, preserve)
        expected = least_squares(
            (prompts_of, prompts_of @ new.T, 1.0),
            (kept, kept @ old.detach().double().T, preserve),
            (torch.eye(32), new.T, 0.5),
        )
        torch.testing.assert_close(weight.double(), expected, atol=1e-5, rtol=1e-4)
        assert (weight - old).abs().max() > 1e-3


@pytest.mark.parametrize("end", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_the_first_loss_is_of_the_refined_model_seen_by_other_hooks(end: bool, masked: bool, tiny_sd: Path) -> None:
    class Recorder(MACE):
        last: Any = None

        def step(self, module: Any, batch: Any) -> dict[str, Tensor]:
            self.last = (
                noised(module, batch["forget"], self.draws(module), density=focal_density(1000)),
                batch["forget"],
            )
            return super().step(module, batch)

    base, recorder = LitTextToImage(str(tiny_sd)), Recorder({"van gogh": "green"}, TEMPLATES, lamb=0.5, end_of_text=end)
    mask = torch.zeros(1, 16, 16)
    mask[:, :8, 4:] = 1
    data = images() if not masked else images(mask=mask)
    seen = run(tiny_sd, recorder, data=data, max_steps=1).seen[0]
    with torch.no_grad():
        for layer in kv_layers(base.unet).values():
            layer.weight.copy_(refined(base, layer.weight, 0.5))
    (z, t, _), batch = recorder.last
    assert ((t > 60) & (t < 540)).all()
    with torch.no_grad():
        probabilities = attention(base, z, t, encode(base, batch["input_ids"]))
    norms = []
    for row, index in enumerate(batch["index"].tolist()):
        places = PLACES[index] + (list(range(max(PLACES[index]) + 1, 16)) if end else [])
        total = 0.0
        for layer in probabilities:
            side = int(layer.shape[2] ** 0.5)
            picked = mask[0, :: 16 // side, :: 16 // side].flatten() > 0 if masked else slice(None)
            total += layer[row][:, picked][..., places].square().sum().sqrt().item()
        norms.append(total)
    assert seen["loss"].item() == pytest.approx(sum(norms) / len(norms), rel=1e-4)


def test_keys_and_values_alone_change_and_the_concept_is_no_longer_looked_at(tiny_sd: Path, tmp_path: Path) -> None:
    base = LitTextToImage(str(tiny_sd))
    before = weights(base)
    refined_only = run(tiny_sd, mace(), lr=1e-12, max_steps=1, kind=LitTextToImage)
    module = run(tiny_sd, mace(), lr=3e-2, max_epochs=20, kind=LitTextToImage, trainable="full")
    assert list(weights(module)) == list(before)
    changed = {name for name, value in weights(module).items() if not torch.equal(value, before[name])}
    assert changed == {f"unet.{name}.weight" for name in kv(module)}
    assert all(p.requires_grad for p in module.unet.parameters())
    batch = first_batch(base)["forget"]
    z, t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(5)), torch.tensor([250, 350])
    looked = []
    for model in (refined_only, module):
        with torch.no_grad():
            probabilities = attention(model, z, t, encode(model, batch["input_ids"]))
        looked.append([sum(p[r][..., PLACES[r]].square().sum().sqrt() for p in probabilities) for r in range(2)])
    assert all(after < 0.6 * start for start, after in zip(*looked, strict=True))
    module.save_pretrained(tmp_path / "erased")
    opened = StableDiffusionPipeline.from_pretrained(tmp_path / "erased", safety_checker=None)
    assert all(torch.equal(a, b) for a, b in zip(opened.unet.parameters(), module.unet.parameters(), strict=True))


def test_each_concept_has_its_own_adapters(tiny_sd: Path) -> None:
    """Rows train those of the concepts that their captions name; fused, each acts on its own prompts."""
    base = LitTextToImage(str(tiny_sd))
    method = MACE({"van gogh": "art", "green": "photo"}, TEMPLATES)
    run(tiny_sd, method, max_epochs=4)
    first, second = (method.sets[name].adapters for name in ("van gogh", "green"))
    last = [path for path in first if path.startswith("up_blocks")][-1]  # no attention is behind these values
    assert all((adapter.up.abs().max() > 0) == (path != last) for path, adapter in first.items())
    assert all(adapter.up.abs().max() == 0 for adapter in second.values())

    rows = [{"image": torch.rand(3, 16, 16), "caption": c} for c in (*CONCEPT, "green", "a green square")]
    method = MACE({"van gogh": "art", "green": "photo"}, [], lamb=0.5)
    module = run(tiny_sd, method, data=images(rows, anchor="art"), max_epochs=4)
    own = {"van gogh": CONCEPT, "green": ["green", "a green square"]}
    for path, weight in kv(module).items():
        start = method._base[path].double()  # after the refinement
        terms = [(torch.eye(32), start.T, 0.5)]
        for name, texts in own.items():
            inputs = torch.cat([states(base, text) for text in texts]).double()
            adapted = start + method.sets[name].adapters[path].change().detach().double()
            terms.append((inputs, inputs @ adapted.T, 1.0))
        torch.testing.assert_close(weight.double(), least_squares(*terms), atol=1e-5, rtol=1e-4)
    assert all(max(a.up.abs().max() for a in s.adapters.values()) > 1e-3 for s in method.sets.values())


@pytest.mark.parametrize("preserve", [0.0, 0.5])
def test_one_epoch_and_a_resume_equal_two_bit_for_bit(preserve: float, tiny_sd: Path, tmp_path: Path) -> None:
    class Saves(L.Callback):
        def on_train_epoch_end(self, trainer: L.Trainer, *_: Any) -> None:
            if trainer.current_epoch == 0:
                trainer.save_checkpoint(tmp_path / "mid.ckpt")

    def go(*others: Any, **options: Any) -> Any:
        method = mace(preserve_scale=preserve)
        method.keep_reference = True
        return run(tiny_sd, method, *others, **options)

    whole, half = go(Saves(), max_epochs=2), go(max_epochs=1)
    loaded = LitTextToImage.load_from_checkpoint(tmp_path / "mid.ckpt")
    assert same(loaded, half)
    save_resumable(half.trainer, tmp_path / "end.ckpt")
    for name in ("mid", "end"):
        assert same(go(max_epochs=2, ckpt_path=tmp_path / f"{name}.ckpt"), whole)
    assert not same(half, whole)
    with pytest.raises(MisconfigurationException, match="Resume with the same arguments"):
        run(tiny_sd, MACE({"gogh": "green"}, TEMPLATES), max_epochs=2, ckpt_path=tmp_path / "mid.ckpt")


def test_a_crash_leaves_the_module_as_it_was(tiny_sd: Path) -> None:
    class Breaks(L.Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            raise RuntimeError("out of memory")

    module = SgdTextToImage(str(tiny_sd))
    before, trains = weights(module), [p.requires_grad for p in module.parameters()]
    with pytest.raises(RuntimeError, match="out of memory"):
        trainer(mace(), Breaks()).fit(module, images())
    assert list(weights(module)) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in module.named_parameters())
    assert [p.requires_grad for p in module.parameters()] == trains
    assert not any(layer._forward_hooks for layer in kv_layers(module.unet).values())


def test_images_can_be_drawn_while_it_trains(tiny_sd: Path) -> None:
    """However many rows a batch has."""

    class Draws(L.Callback):
        shape: Any = None

        def on_train_epoch_end(self, trainer: L.Trainer, module: Any) -> None:
            self.shape = module.generate(["van gogh"] * 3, [0, 1, 2], steps=2).shape

    draws = Draws()
    run(tiny_sd, mace(), draws)
    assert draws.shape == (3, 3, 16, 16)


def test_bf16_mixed_trains(tiny_sd: Path) -> None:
    module = run(tiny_sd, mace(), max_epochs=2, precision="bf16-mixed")
    base = LitTextToImage(str(tiny_sd))
    moved = [(w - base.unet.get_submodule(n).weight).abs().max() for n, w in kv(module).items()]
    assert all(w.dtype == torch.float32 for w in kv(module).values())
    assert max(moved) > 1e-3


def test_what_does_not_fit_is_refused_before_a_weight_moves(tiny_sd: Path) -> None:
    for concepts in ({}, {" ": "art"}, "van gogh", ["van gogh"]):
        with pytest.raises(ValueError, match="concepts are names"):
            MACE(concepts)  # type: ignore[arg-type]
    options: dict[str, Any]
    for options in ({"rank": 0}, {"alpha": 0.0}, {"lamb": 0.0}, {"preserve_scale": -1.0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            mace(**options)
    with pytest.raises(ValueError, match="A template has"):
        MACE({"van gogh": "art"}, ["a photo"])
    with pytest.raises(MisconfigurationException, match="MACE reads the attention"):
        run(tiny_sd, mace(), gradient_checkpointing=True)
    with pytest.raises(TypeError, match="CaptionedImageDataModule makes such rows"):
        run(tiny_sd, mace(), data=prompts())
    with pytest.raises(ValueError, match="the caption 'a circle' of a row to forget has none"):
        run(tiny_sd, mace(), data=images([{"image": torch.rand(3, 16, 16), "caption": "a circle"}], anchor="art"))
    with pytest.raises(ValueError, match="No caption names 'red circle'"):
        run(tiny_sd, MACE({"van gogh": "art", "red circle": "art"}, []))

    class Stream(IterableDataset):
        passes = 0

        def __iter__(self) -> Any:
            type(self).passes += 1
            rows = first_batch(LitTextToImage(str(tiny_sd)))["forget"]
            return iter([{**rows, "pixel_values": rows["pixel_values"] + self.passes}])

    with pytest.raises(MisconfigurationException, match="gave other rows than"):
        run(tiny_sd, mace(), data={"forget": DataLoader(Stream(), batch_size=None)})

    class Own(LitTextToImage):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)

    with pytest.raises(MisconfigurationException, match="does not take the adapters"):
        trainer(mace()).fit(Own(str(tiny_sd)), images())
