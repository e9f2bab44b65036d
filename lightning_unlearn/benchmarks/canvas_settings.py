"""Settings of the UnlearnCanvas benchmark: how answer sets are drawn, and what else is measured."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_unlearn.benchmarks.requests import PairAs
from lightning_unlearn.core.checks import at_least, one_of
from lightning_unlearn.diffusion.canvas.names import ANSWER_SEEDS, MINI_CANVAS

__all__ = ["AnswerSettings", "CanvasTests", "pair_of"]


@dataclass(frozen=True)
class AnswerSettings:
    """The answer set of each model: an image for each style (including photos), object and seed.

    Args:
        seeds: Seeds of the images.
        steps: Steps of the sampler.
        guidance: Weight of classifier-free guidance.
        keep_images: Keep the images too, as PNG in ``answers/``, beside the verdicts on them; the report shows some.

    Raises:
        ValueError: If a number is out of range, or a seed is missing or there twice.
    """

    seeds: tuple[int, ...] = ANSWER_SEEDS
    steps: int = 20
    guidance: float = 4.0
    keep_images: bool = False

    def __post_init__(self) -> None:
        at_least("steps", self.steps, 1)
        at_least("guidance", self.guidance, 0)
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"An answer set has an image of each seed, but the seeds are {list(self.seeds)}.")


@dataclass(frozen=True)
class CanvasTests:
    """What is measured beside the answer set of a single target.

    Args:
        attacked: Prompts that are attacked in a run, with UnlearnDiffAtk and with random tokens; 0 for none.
        families: Also draw families of prompts that ask for the erased concept in other ways, see
            [`family_prompts`][lightning_unlearn.diffusion.canvas.families.family_prompts].
        left_out: Styles and objects that no row of a run combines with the concept, for the family "composition".
        pairs: Pairs of a style and an object to erase in runs of their own, written as ``"ember x ring"``.
        pair_as: Whether a pair is one concept, or two requests.
        pair_images: Images of the pair itself; each other pair has one image per seed of the answer set.
        sequence: Styles and objects to erase one after another, in runs of their own.

    Raises:
        ValueError: If a name is unknown or occurs twice, or a number is out of range.
    """

    attacked: int = 5
    families: bool = True
    left_out: tuple[str, ...] = ()
    pairs: tuple[str, ...] = ()
    pair_as: PairAs = "one_concept"
    pair_images: int = 20
    sequence: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        at_least("attacked", self.attacked, 0)
        at_least("pair_images", self.pair_images, 1)
        one_of("pair_as", self.pair_as, PairAs)
        for name in self.left_out:
            one_of("left_out", name, (*MINI_CANVAS.all_styles, *MINI_CANVAS.objects))
        for name in self.sequence:
            MINI_CANVAS.kind(name)
        if len(set(self.sequence)) < len(self.sequence):
            raise ValueError(f"A sequence has each target once, but is {list(self.sequence)}.")
        for pair in self.pairs:
            pair_of(pair)


def pair_of(text: str) -> tuple[str, str]:
    """The style and the object of ``"<style> x <object>"``.

    Raises:
        ValueError: If it is not written so, or a name is unknown.

    Example:
        >>> pair_of("ember x ring")
        ('ember', 'ring')
    """
    style, times, object = text.partition(" x ")
    if not times or style not in MINI_CANVAS.styles or object not in MINI_CANVAS.objects:
        raise ValueError(
            f"A pair is written '<style> x <object>', as in 'ember x ring', but got {text!r}. Styles are "
            f"{', '.join(MINI_CANVAS.styles)}; objects {', '.join(MINI_CANVAS.objects)}."
        )
    return style, object
