"""Plan of a request to erase a concept: what will be done, what it costs, and what the user should know."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_unlearn.forget.erasure_verdict import KNOWN, ErasureNumbers
from lightning_unlearn.forget.request import Plan

if TYPE_CHECKING:
    from lightning_unlearn.forget.diffusion import ConceptRequest

__all__ = ["erasure_plan"]


def erasure_plan(request: ConceptRequest) -> Plan:
    """The plan of a request that has been checked.

    Args:
        request: The request.
    """
    asked, method = request.asked, request.recipe
    forget, keep = asked.of("forget"), asked.of("keep")
    drawn = 2 * len(asked.pictures)
    read = "" if method.retain_batch_size else ", which the method does not read"
    judges = " and ".join(judge.name for judge in request.judges) or "no judge"
    lines = {
        "model": request.source,
        "to forget": f"{', '.join(map(repr, asked.words))}, by {len(asked.forget)} prompts",
        "known so far": f"by the effect of its words on what is drawn, between 0 and about 1.4: {_effects(request)}",
        "to keep": f"{len(asked.keep)} prompts{read}",
        "method": f"{method.name}, with the settings of {method.source}",
        "stops when": f"{request.steps} steps are done" if request.steps else "the edit is done; it has no steps",
        "cost": f"about {method.passes(request.steps):,} passes of the UNet to train, and "
        f"{drawn * request.sampler['steps']:,} to draw {drawn} images",
        "evidence": f"{len(forget)} images to forget and {len(keep)} to keep, before and after, seen by {judges}"
        f"{'; UnlearnDiffAtk' if request.attack else '; no attack (--attack true)'}",
    }
    return Plan(lines, [*asked.notes, *_notes(request)])


def _effects(request: ConceptRequest) -> str:
    return ", ".join(f"{word!r} {effect:.2f}" for word, effect in request.effects.items())


def _notes(request: ConceptRequest) -> list[str]:
    notes = ["run.yaml names the concept, as any repetition of the run has to."]
    if ErasureNumbers(effects=request.effects).unknown:
        notes.append(
            "The words of the concept hardly change what the pipeline draws: none has an effect of "
            f"{KNOWN:g}. There may be nothing to erase. Check the spelling and the pipeline, and look at images of the "
            "words; --concept takes several."
        )
    if not request.judges:
        hidden = "" if request.options.show_text else " They are hidden without --show_text true."
        notes.append(f"No --judge was given, so that the images alone will be the evidence.{hidden}")
    if request.recipe.name in ("UCE", "RECE", "ConceptAblation") and not request.anchor and not request.asked.judges:
        notes.append("No --anchor was given, so that the concept becomes nothing in its prompts.")
    return notes
