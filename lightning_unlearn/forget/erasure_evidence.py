"""Evidence of an erasure: images before and after, what judges see in them, and an attack."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from lightning_unlearn.audit.entries import model_entry
from lightning_unlearn.diffusion.attacks.prompt_attack import PromptAttack
from lightning_unlearn.diffusion.attacks.result import AttackResult
from lightning_unlearn.diffusion.text_to_image import LitTextToImage
from lightning_unlearn.forget.erasure_images import draw_pictures
from lightning_unlearn.forget.erasure_judges import seen_by
from lightning_unlearn.forget.erasure_report import ErasureEvidence, erasure_numbers, erasure_report
from lightning_unlearn.forget.erasure_verdict import GONE, KEPT, RULE, THERE
from lightning_unlearn.forget.request import Findings

if TYPE_CHECKING:
    from lightning_unlearn.forget.diffusion import ConceptRequest

__all__ = ["erasure_findings", "measure_erasure"]


def measure_erasure(request: ConceptRequest, model: Path, work: Path) -> ErasureEvidence:
    """Draw and judge images before and after, and attack the model where that is asked for.

    Args:
        request: The request.
        model: Folder of the model after.
        work: Folder of what is drawn and attacked, so that a killed request goes on with it.
    """
    asked, batch_size = request.asked, request.drawing.batch_size
    base, unlearned = request.open(request.source), request.open(str(model))
    before = draw_pictures(base, asked.pictures, work / "before", "Images before", batch_size)
    after = draw_pictures(unlearned, asked.pictures, work / "after", "Images after", batch_size)
    seen = [
        seen_by(judge, request.classes if number == 0 else None, asked, before, after)
        for number, judge in enumerate(request.judges)
    ]
    attack, found = _attacked(request, unlearned, base, work / "attack") if request.attack else (None, None)
    return ErasureEvidence(asked, before, after, seen, request.effects, attack, found)


def erasure_findings(request: ConceptRequest, evidence: ErasureEvidence, model: Path) -> Findings:
    """The report, and what the record says of it.

    Args:
        request: The request.
        evidence: What was measured.
        model: Folder of the model after.
    """
    shown, method, words = request.options.show_text, request.recipe, request.asked.words
    source = Path(request.source)
    subject = {
        "to forget": ", ".join(words) if shown else "a concept, which is hidden here",
        "pipeline": source.name if source.exists() else request.source,
        "method": method.name,
        "training steps": request.steps,
    }
    settings = {"trainable": method.trainable, "lr": method.lr, "batch_size": method.batch_size, **request.sampler}
    provenance = {
        "seed": request.options.seed,
        "model": model_entry(model)["content_hash"],
        "settings": {**settings, **method.seeded(request.options.seed)},
    }
    title = f"{method.name} erases {f'“{words[0]}”' if shown else 'a concept'}"
    report = erasure_report(evidence, title, subject, provenance, request.steps, shown)
    assert report.headline is not None
    numbers = asdict(erasure_numbers(evidence))
    entry = {
        "verdict": report.headline.word,
        "headline": report.headline.summary,
        "rule": RULE,
        "thresholds": {"there": THERE, "gone": GONE, "kept": KEPT},
        "numbers": {**numbers, "effects": list(numbers["effects"].values())},
    }
    return Findings(report, entry)


def _attacked(
    request: ConceptRequest, unlearned: LitTextToImage, base: LitTextToImage, folder: Path
) -> tuple[AttackResult, Tensor | None]:
    """UnlearnDiffAtk on prompts of the concept, and an image of each prompt that it found."""
    attack = PromptAttack(
        request.judges[0],
        request.classes,
        request.search,
        sampler_steps=request.sampler["steps"],
        guidance=request.sampler["guidance"],
        batch_size=request.drawing.batch_size,
        seed=request.options.seed,
    )
    result = attack.run(unlearned, request.asked.attacked, base=base, output_dir=folder, overwrite=True)
    prompts = [row.adversarial or row.prompt for row in result.counted]
    seeds = [row.seed if row.image_seed is None else row.image_seed for row in result.counted]
    if not prompts:
        return result, None
    return result, unlearned.generate(prompts, seeds, batch_size=request.drawing.batch_size)
