"""A check that there is something to erase."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

from lightning_unlearn import ESD, ConceptPresence, LitTextToImage, PromptDataModule
from lightning_unlearn.diffusion.data.miniature import miniature_pipeline
from tests.diffusion.tiny import prompts, same, trainer


def test_words_that_the_model_does_not_know_are_named() -> None:
    module = LitTextToImage(str(miniature_pipeline()), trainable="kv")
    check = ConceptPresence(images=1, steps=8)
    known = ["negative", "a ring image in sketch style"]
    data = PromptDataModule([*known, "Van Gogh", "a church"], repeat=2)
    with pytest.warns(UserWarning, match=r"2 of 4 prompts to forget hardly change.*'Van Gogh': 0\.\d+, 'a church': 0"):
        trainer(ESD(steps=2), check, max_steps=1).fit(module, data)
    assert list(check.effects) == [*known, "Van Gogh", "a church"]
    assert all((effect > 0.6) == (prompt in known) for prompt, effect in check.effects.items())


def test_the_run_is_as_it_is_without(tiny_sd: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        method, check = ESD(steps=2), ConceptPresence(["van gogh"], images=1, steps=2)
        state = torch.get_rng_state()
        plain = LitTextToImage(str(tiny_sd), lr=0.01)
        torch.set_rng_state(state)
        trainer(method, max_steps=2).fit(plain, prompts())
        passes = method.passes.state_dict()
        module, again = LitTextToImage(str(tiny_sd), lr=0.01), ESD(steps=2)
        torch.set_rng_state(state)
        trainer(check, again, max_steps=2).fit(module, prompts())
    assert same(module, plain)
    assert again.passes.state_dict() == passes


def test_without_prompts_it_says_so(tiny_sd: Path) -> None:
    data = prompts()
    module = LitTextToImage(str(tiny_sd))
    data.tokenizer = module.tokenizer
    data.setup("fit")
    with pytest.raises(ValueError, match="ConceptPresence reads the prompts of a PromptDataModule"):
        trainer(ESD(steps=2), ConceptPresence()).fit(module, data.train_dataloader())
    with pytest.raises(ValueError, match="threshold must be greater than 0"):
        ConceptPresence(threshold=0)
