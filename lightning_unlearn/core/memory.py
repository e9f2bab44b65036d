"""Peak memory of a process."""

from __future__ import annotations

import sys

import torch

__all__ = ["peak_memory"]


def peak_memory(accelerator: str) -> int:
    """Peak memory of this process in bytes: the device's if it is CUDA, resident memory otherwise."""
    if accelerator in ("cuda", "gpu") and torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if sys.platform == "win32":
        return 0  # not measured
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes everywhere but on macOS
