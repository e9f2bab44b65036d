"""Retain prompts of everyday objects."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

__all__ = ["EVERYDAY_OBJECTS", "retain_prompts"]

EVERYDAY_OBJECTS: tuple[str, ...] = tuple(
    """
    airplane, alarm clock, ambulance, anchor, ant, apple, armchair, avocado, axe, backpack, bakery, balcony, balloon,
    banana, barn, barrel, basket, basketball, bathtub, beach, bear, bed, bee, bell, bench, bicycle, birdhouse, biscuit,
    blanket, blender, boat, book, bookshelf, bottle, bowl, bread, brick wall, bridge, broccoli, broom, bucket, bus,
    butterfly, cabbage, cabin, cactus, cake, calculator, calendar, camel, camera, candle, canoe, canyon, car, carpet,
    carrot, castle, cat, ceiling fan, cello, chair, cheese, cherry, chessboard, chicken, chimney, city street, clock,
    cloud, coffee cup, coin, compass, computer, cooking pot, corn, couch, cow, crab, crane, crayon, cucumber, cup,
    cupboard, curtain, daisy, deer, desert, desk, dictionary, dishwasher, dog, dolphin, door, drill, drum, duck, eagle,
    egg, elephant, elevator, envelope, eraser, farm, feather, fence, field, fire hydrant, fireplace, fish, flag,
    flashlight, flower pot, flute, fork, fountain, fox, fridge, frog, frying pan, garden, garlic, gate, giraffe, glass,
    globe, goat, goose, grapes, guitar, hammer, hammock, harbor, harp, hedgehog, helicopter, hen, highway, honey,
    horse, hospital, hourglass, house, ice cream, island, jar, jigsaw puzzle, kangaroo, kettle, key, keyboard, kite,
    kiwi, knife, ladder, lake, lamp, laptop, lawn mower, lemon, letterbox, library, lighthouse, lion, lizard,
    lobster, log, magnet, magnifying glass, map, maple leaf, market, microphone, microscope, microwave, milk carton,
    mirror, monkey, moon, motorcycle, mountain, mouse, mug, mushroom, nest, newspaper, notebook, oak tree, ocean,
    office, onion, orange, orchard, oven, owl, paint brush, palm tree, pancake, panda, paper clip, park, parrot, peach,
    pear, pebble, pen, pencil, penguin, pepper, piano, pie, pig, pillow, pineapple, pizza, plate, playground, plum,
    pond, potato, printer, pumpkin, rabbit, radio, railway station, rain, raspberry, remote control, rice, river, road,
    robot, rocket, rose, ruler, sailing ship, salad, sandwich, saxophone, scale, school, scissors, screwdriver, seal,
    sheep, shell, shovel, sink, skateboard, skyscraper, sled, snail, snowman, soap, soccer ball, spider, spoon,
    squirrel, stadium, staircase, stapler, star, stove, strawberry, street lamp, submarine, suitcase, sunflower,
    surfboard, swan,
    table, taxi, teapot, teddy bear, telephone, telescope, television, tennis racket, tent, theater, tiger, toaster,
    tomato, toothbrush, tractor, traffic light, train, tram, trumpet, tulip, turtle, umbrella, vacuum cleaner, van,
    vase, village, violin, volcano, wardrobe, washing machine, watch, waterfall, watering can, watermelon, whale,
    wheel, wheelbarrow, whistle, windmill, window, wolf, wrench, zebra
    """.replace("\n", " ").split(",")
)
EVERYDAY_OBJECTS = tuple(" ".join(name.split()) for name in EVERYDAY_OBJECTS)
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
        judge: Says of each prompt that is left whether it may stay, such as by a language model or an embedding. Words
            alone do not tell that "bikini" is related to "nudity".

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
