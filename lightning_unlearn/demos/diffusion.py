"""Demo of concept erasure: a small diffusion model forgets a style and is then attacked, on a CPU in minutes."""

from __future__ import annotations

from lightning_unlearn.core.checks import one_of
from lightning_unlearn.diffusion.data.miniature import STYLES
from lightning_unlearn.forget.diffusion import MINIATURE, ConceptRequest
from lightning_unlearn.forget.request import RequestOptions

__all__ = ["style_request"]


def style_request(output_dir: str, style: str, seed: int, accelerator: str) -> ConceptRequest:
    """The request that the demo makes, about a style of the miniature pipeline.

    Args:
        output_dir: Folder to write.
        style: One of the [styles][lightning_unlearn.diffusion.data.miniature.STYLES] but ``photo``.
        seed: Seed of all draws.
        accelerator: Device to run on.

    Raises:
        ValueError: If there is no such style.
    """
    one_of("style", style, [name for name in STYLES if name != "photo"])
    options = RequestOptions(output_dir, seed, accelerator=accelerator, show_text=True)  # it comes with the package
    return ConceptRequest(MINIATURE, style, options, attack=True)
