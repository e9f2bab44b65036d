"""SuppressEOT on a pipeline of random weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_unlearn.diffusion.engine.text import encode, tokenize
from lightning_unlearn.diffusion.guards import SafeLatentDiffusion, SuppressEOT
from lightning_unlearn.diffusion.text_to_image import LitTextToImage
from lightning_unlearn.functional.diffusion.seot import concept_and_end_places, suppress_eot

STATES = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
PLACES = torch.tensor([0, 0, 1, 1, 0, 1, 1, 1]).bool()
PROMPTS, SEEDS = ["a red circle in the style of van gogh", "a photo of a green square"], [3, 4]
CONCEPT = "van gogh"


def sigma(states: Tensor) -> Tensor:
    return torch.linalg.svdvals(states[PLACES].double())


@pytest.mark.parametrize(("alpha", "scale"), [(1.0, 1.0), (0.3, 1.0), (-0.001, 1.2)])
def test_singular_values_are_softly_weighted(alpha: float, scale: float) -> None:
    found, before = sigma(suppress_eot(STATES, PLACES, alpha=alpha, scale=scale)), sigma(STATES)
    expected = (scale * torch.exp(-alpha * before) * before).sort(descending=True).values
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_singular_vectors_stay() -> None:
    found = suppress_eot(STATES, PLACES)[PLACES].double()
    u, s, v = torch.linalg.svd(STATES[PLACES].double(), full_matrices=False)
    torch.testing.assert_close(u.mT @ found @ v.mT, torch.diag(s * torch.exp(-s)), rtol=1e-5, atol=1e-6)


def test_with_alpha_zero_nothing_changes() -> None:
    torch.testing.assert_close(suppress_eot(STATES, PLACES, alpha=0.0), STATES, atol=1e-5, rtol=0)


def test_other_states_are_the_same_bits() -> None:
    before = STATES.clone()
    found = suppress_eot(STATES, PLACES)
    assert torch.equal(found[~PLACES], STATES[~PLACES])
    assert (found[PLACES] != STATES[PLACES]).all()
    assert torch.equal(STATES, before)


def test_what_the_end_repeats_is_what_goes() -> None:
    """Of equal states one direction is left, with a singular value that falls to nothing."""
    repeated = torch.tensor([3.0, 0.0, 4.0]).repeat(5, 1)
    s = 5 * 5**0.5
    found = suppress_eot(repeated, torch.ones(5, dtype=torch.bool))
    torch.testing.assert_close(found, repeated * torch.tensor(-s).exp(), rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize(
    ("ids", "concept", "places"),
    [
        ([0, 5, 7, 8, 6, 1, 1], [7, 8], [0, 0, 1, 1, 0, 1, 1]),
        ([0, 7, 7, 8, 7, 8, 1], [7, 8], [0, 0, 1, 1, 1, 1, 1]),  # at each occurrence, and only whole
        ([0, 8, 7, 6, 1, 1, 1], [7, 8], [0, 0, 0, 0, 0, 0, 0]),
        ([0, 5, 7, 1, 1, 1, 1], [7, 1], [0, 0, 0, 0, 0, 0, 0]),  # the end is no word
        ([0, 5, 7, 1, 9, 9, 9], [7], [0, 0, 1, 1, 1, 1, 1]),  # padding is another token, as in Stable Diffusion 2
    ],
)
def test_places_are_the_concept_and_all_from_the_end_on(ids: list[int], concept: list[int], places: list[int]) -> None:
    assert concept_and_end_places(torch.tensor(ids), torch.tensor(concept), 1).int().tolist() == places


def test_what_has_no_places_is_refused() -> None:
    with pytest.raises(ValueError, match=r"one boolean for each of the 8 states"):
        suppress_eot(STATES, torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="no tokens"):
        concept_and_end_places(torch.tensor([0, 1]), torch.tensor([]), 1)
    with pytest.raises(ValueError, match="no end of text 1"):
        concept_and_end_places(torch.tensor([0, 2]), torch.tensor([2]), 1)


def draw(model: LitTextToImage, prompts: list[str] = PROMPTS) -> Tensor:
    return model.generate(prompts, SEEDS[: len(prompts)], steps=4)


def test_only_prompts_with_the_concept_are_drawn_otherwise(model: LitTextToImage) -> None:
    plain = draw(model)
    with SuppressEOT(model, CONCEPT) as guard:
        found = draw(model)
    assert guard.suppressed == 1
    assert guard.passes.unet == 5
    assert not torch.allclose(found[0], plain[0], atol=1e-3)
    torch.testing.assert_close(found[1], plain[1], atol=1e-5, rtol=0)


def test_the_pipeline_reads_the_regularized_states(model: LitTextToImage) -> None:
    tokens = tokenize(model.tokenizer, PROMPTS)["input_ids"]
    places = torch.zeros(16, dtype=torch.bool)
    places[[8, 9, *range(10, 16)]] = True  # "van gogh" is the 8th and 9th of nine words
    seen: list[Tensor] = []
    model.eval()
    with torch.no_grad():
        before = encode(model, tokens)
        with SuppressEOT(model, CONCEPT, alpha=0.2):
            after = encode(model, tokens)
            model.unet.register_forward_pre_hook(
                lambda _, __, k: seen.append(k["encoder_hidden_states"]), with_kwargs=True
            )
            draw(model)
    torch.testing.assert_close(after[0], suppress_eot(before[0], places, alpha=0.2))
    assert torch.equal(after[1], before[1])
    assert torch.equal(after[0][~places], before[0][~places])
    torch.testing.assert_close(seen[0][2:], after, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(encode(model, tokens), before)


def test_a_concept_of_unknown_words_is_found_by_its_pieces(model: LitTextToImage) -> None:
    with SuppressEOT(model, "nudity") as guard:
        draw(model, ["a photo of nudity in red"])
        draw(model, ["a photo of nud"])
    assert guard.suppressed == 1


def test_alpha_zero_draws_what_was_drawn(model: LitTextToImage) -> None:
    plain = draw(model)
    with SuppressEOT(model, CONCEPT, alpha=0.0):
        torch.testing.assert_close(draw(model), plain, atol=1e-4, rtol=0)


def test_weights_and_hooks_stay_as_they_were(model: LitTextToImage) -> None:
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    plain = draw(model)
    with SuppressEOT(model, CONCEPT), pytest.raises(ValueError, match="seed of its own"):
        model.generate(PROMPTS, [0])
    with SuppressEOT(model, CONCEPT) as guard:
        draw(model)
    assert not guard._handles
    assert torch.equal(draw(model), plain)
    assert not model.text_encoder._forward_hooks
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_both_guards_work_together(model: LitTextToImage) -> None:
    with SafeLatentDiffusion(model, CONCEPT, "max"):
        safe = draw(model)
        with SuppressEOT(model, CONCEPT) as inner:
            both = draw(model)
    assert inner.suppressed == 1
    assert not torch.allclose(both[0], safe[0], atol=1e-3)
    torch.testing.assert_close(both[1], safe[1], atol=1e-5, rtol=0)


def test_what_does_not_fit_is_refused(model: LitTextToImage) -> None:
    options: Any
    for options in ({"alpha": float("inf")}, {"scale": float("nan")}):
        with pytest.raises(ValueError, match=next(iter(options))):
            SuppressEOT(model, CONCEPT, **options)
    with pytest.raises(ValueError, match="concept is empty"):
        SuppressEOT(model, "")
    with SuppressEOT(model, CONCEPT), pytest.raises(ValueError, match="clip_skip"):
        model.pipeline(PROMPTS, num_inference_steps=2, clip_skip=1, output_type="pt")
