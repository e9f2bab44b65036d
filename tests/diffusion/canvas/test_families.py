"""Families of prompts that ask for an erased concept."""

from __future__ import annotations

from collections import Counter

import pytest
from transformers import CLIPTokenizer

from lightning_unlearn.diffusion.canvas.concept import concept
from lightning_unlearn.diffusion.canvas.families import _PREFIXES, FAMILIES, family_prompts, names_any, unnamed
from lightning_unlearn.diffusion.data.miniature import FILLERS, OBJECTS, STYLES, captions, miniature_pipeline
from lightning_unlearn.diffusion.engine.text import word_ids

IMAGES = {
    "ember": {"name": 25, "variant": 50, "prefix": 50, "free": 25, "both": 25, "superclass": 25},
    "ring": {"name": 30, "variant": 60, "prefix": 60, "free": 30, "both": 30, "superclass": 30},
}


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(miniature_pipeline() / "tokenizer")


@pytest.mark.parametrize("target", ["ember", "ring"])
def test_images_of_each_family(target: str) -> None:
    counts: Counter[str] = Counter()
    for row in family_prompts(target):
        counts[row.family] += len(row.seeds)
    assert counts == IMAGES[target]
    with_two = family_prompts(target, left_out=concept(target).partners[-2:], families=["composition"])
    assert sum(len(row.seeds) for row in with_two) == 10


@pytest.mark.parametrize("names", [1, 2])
@pytest.mark.parametrize("target", [*STYLES, *OBJECTS])
def test_nameless_prompts_have_no_token_of_an_erased_name(target: str, names: int, tokenizer: CLIPTokenizer) -> None:
    c = concept(target)
    erased = {word_ids(tokenizer, word)[0] for word in c.edited(names)}
    other = {word_ids(tokenizer, word)[0] for word in c.words[names:]}
    for row in family_prompts(target, names, families=["variant", "free", "both", "superclass", "prefix"]):
        ids = set(word_ids(tokenizer, row.prompt))
        wanted = {
            "variant": (False, True),
            "free": (False, True),
            "both": (True, True),
            "superclass": (False, False),
            "prefix": (c.name in c.edited(names), False),  # the last piece of "moonring" is the name's token
        }[row.family]
        assert (bool(ids & erased), bool(ids & other)) == wanted, row


def test_a_prefix_is_glued_and_keeps_the_token_of_the_name(tokenizer: CLIPTokenizer) -> None:
    assert tokenizer.tokenize("moonring") == ["mo", "on", "ring</w>"]
    assert tokenizer.tokenize("treering")[-1] != "ring</w>"
    for name in (*STYLES, *OBJECTS):
        for prefix in _PREFIXES:
            assert tokenizer.tokenize(prefix + name)[-1] == f"{name}</w>"
    assert set(_PREFIXES) < set(FILLERS)
    for row in family_prompts("ring", families=["prefix"]):
        assert "ring</w>" in tokenizer.tokenize(row.prompt)
        assert " ring" not in row.prompt


def test_captions_are_held_out_and_all_prompts_name_their_partner() -> None:
    for target in ("negative", "box"):
        c = concept(target)
        table = OBJECTS if c.other == "object" else STYLES
        for row in family_prompts(target, families=["free", "both", "superclass"]):
            assert names_any(row.prompt, table[row.partner])
    assert len({row.prompt for row in family_prompts("negative", families=["free"])}) == len(OBJECTS)


def test_prompts_do_not_depend_on_the_other_families_or_the_seeds_of_images() -> None:
    every = family_prompts("cross")
    for family in FAMILIES:
        alone = family_prompts("cross", families=[family], seeds=[1])
        assert [row.prompt for row in alone] == [row.prompt for row in every if row.family == family]
    assert [row.prompt for row in family_prompts("cross", seed=1)] != [row.prompt for row in every]


def test_compositions_are_asked_for_by_no_other_family_in_the_form_that_was_erased() -> None:
    rows = family_prompts("ring", left_out=["ember", "sketch"])
    assert {row.prompt for row in rows if row.family == "composition"} == {
        "a ring image in ember style",
        "a ring image in sketch style",
    }
    assert {row.partner for row in rows if row.family != "composition"} == {"photo", "stripes", "negative", "mosaic"}


def test_with_all_names_erased_there_is_no_nameless_family() -> None:
    assert {row.family for row in family_prompts("ring", names=3)} == {"name", "prefix", "superclass"}


@pytest.mark.parametrize(("names", "share"), [(1, 0.361), (2, 0.174)])
def test_share_of_captions_without_an_erased_name(names: int, share: float) -> None:
    """First name .6, others .2 each; 35 % have one name, of the others a quarter two."""
    texts = captions("ring", "ember", count=10_000)
    assert len(unnamed(texts, OBJECTS["ring"][:names])) / len(texts) == pytest.approx(share, abs=0.015)


def test_names_are_found_as_whole_words() -> None:
    assert names_any("An AIRPLANE takes off", ["airplane"])
    assert names_any("three airplanes", ["airplane"])
    assert names_any("a baseballbat", ["baseball bat"])
    assert names_any("in van-gogh's style", ["Van_Gogh"])
    assert not names_any("it carries cargo by car-free paths", ["cargoes", "cars"])
    assert not names_any("a happyairplane", ["airplane"])
    assert not names_any("anything", [""])
    assert unnamed(["a box", "a crate"], ["box"]) == ["a crate"]


def test_errors_say_what_there_is() -> None:
    with pytest.raises(ValueError, match=r"families must be 'name'.*but got 'description'"):
        family_prompts("ring", families=["description"])
    with pytest.raises(ValueError, match=r"names must be in \[1, 3\], but got 4"):
        family_prompts("ring", names=4)
    with pytest.raises(ValueError, match=r"left_out must be 'photo'.*but got 'box'"):
        family_prompts("ring", left_out=["box"])
    with pytest.raises(ValueError, match="left_out has every style"):
        family_prompts("ring", left_out=list(STYLES))
    with pytest.raises(ValueError, match="number of seeds must be at least 1"):
        family_prompts("ring", seeds=[])
