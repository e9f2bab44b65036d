"""Retain prompts of everyday objects."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

__all__ = ["EVERYDAY_OBJECTS", "retain_prompts"]

EVERYDAY_OBJECTS = tuple((Path(__file__).parents[2] / "assets" / "everyday_objects.txt").read_text().splitlines())
"""Objects of everyday pictures; no persons, clothes or parts of the body."""

_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?")
_SMALL = _WORD.findall("a an and at by for from in into of on or the to with style photo picture image painting")


def retain_prompts(
    objects: Iterable[str] | None = None,
    template: str = "a photo of {}",
    exclude: str | Iterable[str] | Callable[[str], bool] = (),
    judge: Callable[[str], bool] | None = None,
) -> list[str]:
    """Prompts for a model to keep, without those about the concepts to forget.

    A prompt is left out where its object shares a word with a concept, singular or plural. Words of the template, and
    small ones such as "of" and "style", don't count.

    Args:
        objects: Names of things; by default some three hundred everyday ones.
        template: Prompt with ``{}`` for the name.
        exclude: The concepts to forget, or one of them; or a function that says whether a prompt is to be left out.
        judge: Decides for each remaining prompt whether it may stay, for example with a language model or an embedding.
            Words alone do not show that "bikini" is related to "nudity".

    Returns:
        The prompts, in the order of the objects, each once.

    Raises:
        ValueError: If the template has no ``{}``, or no prompt is left.

    Example:
        >>> retain_prompts(["church bell", "dog", "churches", "dog"], exclude=["a photo of a church"])
        ['a photo of dog']
        >>> len(retain_prompts(exclude="garbage truck")) > 250
        True

    References:
        Zhang et al., *Defensive Unlearning with Adversarial Training for Robust Concept Erasure in Diffusion Models*,
        arXiv:2405.15234, who filter "a photo of" 243 objects with a language model.
    """
    if "{}" not in template:
        raise ValueError(
            f"template must have {{}} where the object goes, as in 'a photo of {{}}', but got {template!r}."
        )
    names = list(dict.fromkeys(name.strip() for name in (EVERYDAY_OBJECTS if objects is None else objects)))
    if callable(exclude):
        left_out = exclude
        kept = [prompt for prompt in map(template.format, names) if not left_out(prompt)]
    else:
        concepts = [exclude] if isinstance(exclude, str) else list(exclude)
        forbidden = set().union(*map(_words, concepts)) - _words(template) - set(_SMALL)
        kept = [template.format(name) for name in names if not _shares(_words(name), forbidden)]
    if judge is not None:
        kept = [prompt for prompt in kept if judge(prompt)]
    if not kept:
        raise ValueError(
            f"None of the {len(names)} prompts is left after exclude and judge. Pass more objects, or fewer concepts."
        )
    return kept


def _words(text: str) -> set[str]:
    return set(_WORD.findall(text.lower()))


def _shares(words: set[str], others: set[str]) -> bool:
    """Whether a word is in both sets, be it with a plural's ending."""
    return bool(_singulars(words) & _singulars(others))


def _singulars(words: set[str]) -> set[str]:
    """The words, and their possible singulars; a wrong one only loses a prompt."""
    return words | {w[:-1] for w in words if w.endswith("s")} | {w[:-2] for w in words if w.endswith("es")}
