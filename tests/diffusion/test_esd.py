"""ESD on a pipeline of random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from lightning_unlearn import ESD, LitTextToImage, TextEncoderWeights, UnlearnCallback
from lightning_unlearn.diffusion.engine.model import unet_output
from lightning_unlearn.diffusion.engine.parameters import select_params
from lightning_unlearn.diffusion.engine.sampling import partial_samples
from lightning_unlearn.diffusion.engine.text import empty_states, encode
from lightning_unlearn.functional.diffusion.noise import row_noise
from lightning_unlearn.functional.random import keyed_generator
from tests.diffusion.tiny import erase, first_batch, prompts, trainer, weights
from tests.helpers import save_resumable

NEWER = {"negative_guidance": 2.0, "base": "concept", "sampler": "teacher"}


def losses(folder: Path, method: UnlearnCallback, **options: Any) -> Tensor:
    return torch.stack([parts["loss"] for parts in erase(folder, method, **options).seen])


def forget_ids(model: LitTextToImage) -> Tensor:
    """Tokens of the first training batch."""
    return first_batch(model, prompts)["forget"]["input_ids"]


@pytest.mark.parametrize("eta", [0.0, 1.0, 2.5])
def test_the_first_loss_is_one_plus_eta_squared_times_the_distance(tiny_sd: Path, eta: float) -> None:
    (loss,) = losses(tiny_sd, ESD(eta, steps=5, seed=3), max_steps=1, lr=1e-9)
    model = LitTextToImage(str(tiny_sd))
    ids = forget_ids(model)
    with torch.no_grad():
        empty, concept = empty_states(model, 2), encode(model, ids)
        noise = row_noise((4, 8, 8), [0, 1], 3, 1)
        ((z, t),) = partial_samples(model, concept, empty, noise, [keyed_generator(3, 1)], steps=5)
        apart = (unet_output(model, z, t, concept) - unet_output(model, z, t, empty)).square().mean()
    torch.testing.assert_close(loss, (1 + eta) ** 2 * apart, rtol=1e-4, atol=0)


def test_the_newer_form_is_the_paper_with_an_eta_larger_by_one(tiny_sd: Path) -> None:
    newer = losses(tiny_sd, ESD(**NEWER, steps=5))  # type: ignore[arg-type]
    paper = losses(tiny_sd, ESD(1.0, sampler="teacher", steps=5))
    torch.testing.assert_close(newer, paper, rtol=1e-4, atol=1e-9)


def test_latents_of_student_and_teacher_part_ways(tiny_sd: Path) -> None:
    student, teacher = (losses(tiny_sd, ESD(sampler=s, steps=5), max_epochs=3) for s in ("student", "teacher"))
    assert student[0] == teacher[0]
    assert not torch.allclose(student[1:], teacher[1:], rtol=1e-3)


@pytest.mark.parametrize(("folder", "epochs"), [("tiny_sd", 20), ("tiny_v", 10)])
def test_the_concept_is_steered_away_from(folder: str, epochs: int, request: pytest.FixtureRequest) -> None:
    """On draws that it was not trained on, the output is near to its target."""
    path = request.getfixturevalue(folder)
    model, erased = LitTextToImage(str(path)), LitTextToImage(str(path), trainable="xattn", lr=2e-3)
    trainer(ESD(steps=5), max_epochs=epochs).fit(erased, prompts())
    ids, before, after = forget_ids(model), torch.zeros(()), torch.zeros(())
    with torch.no_grad():
        empty, concept = empty_states(model, 2), encode(model, ids)
        for seed in range(4):
            noise = row_noise((4, 8, 8), [0, 1], seed, 99)
            ((z, t),) = partial_samples(model, concept, empty, noise, [keyed_generator(seed, 99)], steps=5)
            e_0, e_p = unet_output(model, z, t, empty), unet_output(model, z, t, concept)
            target = e_0 - (e_p - e_0)
            before += (e_p - target).square().mean()
            after += (unet_output(erased, z, t, concept) - target).square().mean()
    assert after < 0.2 * before


SUBSETS: dict[str, Any] = {
    "xattn": "xattn",
    "noxattn": "noxattn",
    "full": "full",
    "kv": "kv",
    "text_encoder": "text_encoder",
    "layer": TextEncoderWeights(layers=[0]),
}


@pytest.mark.parametrize("name", SUBSETS)
def test_only_the_subset_moves(name: str, tiny_sd: Path) -> None:
    before = weights(LitTextToImage(str(tiny_sd)))
    method = ESD(steps=4)
    module = erase(tiny_sd, method, trainable=SUBSETS[name], lr=1.0)
    chosen = select_params(module, SUBSETS[name])
    for key, value in weights(module).items():
        if key not in chosen:
            assert torch.equal(value, before[key]), key
    still = [key for key in chosen if torch.equal(before[key], module.get_parameter(key))]
    # A bias of keys shifts all scores of a query alike, and the final states of an empty prompt have none to move.
    assert all("k_proj.bias" in key or "to_k.bias" in key for key in still), still
    assert method.snapshot is not None
    kept = {key for key, value in method.snapshot.values.items() if value.is_floating_point()}
    assert kept == set(chosen)  # no second copy of what does not train


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulate": {"accumulate_grad_batches": 2},
    "clip": {"gradient_clip_val": 1e-3},
    "bf16": {"precision": "bf16-mixed"},
    "all": {"accumulate_grad_batches": 2, "gradient_clip_val": 1e-3, "precision": "bf16-mixed"},
}
TOGETHER = ("accumulate", "clip", "bf16")
"""Of which "all" has each; they are tried by themselves in the slow tests."""


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] if kind in TOGETHER else []) for kind in OPTIONS]
)
@pytest.mark.parametrize("sampler", ["student", "teacher"])
def test_one_epoch_and_a_resume_equal_two_bit_for_bit(kind: str, sampler: Any, tiny_sd: Path, tmp_path: Path) -> None:
    options = OPTIONS[kind]
    whole = erase(tiny_sd, ESD(steps=4, sampler=sampler), max_epochs=2, **options)
    half = erase(tiny_sd, ESD(steps=4, sampler=sampler), max_epochs=1, **options)
    save_resumable(half.trainer, tmp_path / "half.ckpt")
    method = ESD(steps=4, sampler=sampler)
    resumed = erase(tiny_sd, method, max_epochs=2, ckpt_path=tmp_path / "half.ckpt", **options)
    for (key, value), other in zip(weights(resumed).items(), weights(whole).values(), strict=True):
        assert torch.equal(value, other), key
    assert method.passes.state_dict() == whole.trainer.callbacks[0].passes.state_dict()
    assert any(not torch.equal(a, b) for a, b in zip(half.parameters(), whole.parameters(), strict=True))


def test_bf16_is_near_to_fp32(tiny_sd: Path) -> None:
    full, mixed = (losses(tiny_sd, ESD(steps=4), precision=p) for p in ("32-true", "bf16-mixed"))
    torch.testing.assert_close(mixed, full, rtol=0.1, atol=1e-6)


def test_a_run_costs_what_it_counts(tiny_sd: Path) -> None:
    method = ESD(steps=4)
    erase(tiny_sd, method, prompts(repeat=4), max_epochs=2)
    sampled = sum(int(torch.randint(4, (), generator=keyed_generator(0, batch))) for batch in range(1, 9))
    # A step: sampler passes, one of the teacher for both prompts, one with gradient; each has two rows a prompt or one.
    assert method.passes.unet == sampled + 2 * 8
    assert method.passes.unet_rows == 4 * sampled + 8 * (4 + 2)
    assert method.passes.text_encoder == 3 * 8


def test_an_anchor_is_what_the_student_trains_on(tiny_sd: Path) -> None:
    """With the concept for an anchor it is the newer form."""
    itself = prompts(anchor="van gogh")
    itself.sources["forget"] = [{"prompt": p, "anchor": p} for p in ("van gogh", "a circle in the style of van gogh")]
    anchored = erase(tiny_sd, ESD(2.0, base="anchor", steps=4), itself)
    concept = erase(tiny_sd, ESD(2.0, base="concept", steps=4))
    for a, b in zip(anchored.parameters(), concept.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_what_does_not_fit_is_refused_before_a_weight_moves(tiny_sd: Path) -> None:
    for options in ({"negative_guidance": -1.0}, {"steps": 0}, {"base": "none"}, {"sampler": "x"}, {"pairing": "y"}):
        with pytest.raises(ValueError, match=next(iter(options))):
            ESD(**options)  # type: ignore[arg-type]

    class Plain(L.LightningModule):
        def training_step(self, batch: Any, batch_idx: int) -> None: ...

        def configure_optimizers(self) -> None: ...

    with pytest.raises(TypeError, match="no unet and no text_encoder"):
        trainer(ESD()).fit(Plain(), [])
    with pytest.raises(MisconfigurationException, match="no unlearning callback"):
        trainer().fit(LitTextToImage(str(tiny_sd)), prompts())
