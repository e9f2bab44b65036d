"""Check of an installation: versions, devices, extras, and packages that would be refused.

Only torch is imported, so that a Lightning that must not run is reported and not started.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Sequence

from packaging.requirements import Requirement

from lightning_unlearn.cli.extras import extras, install_line, installed

__all__ = ["devices", "extra_lines", "notes", "refusals", "versions"]

_MALICIOUS = {"lightning": ("2.6.2", "2.6.3"), "pytorch-lightning": ("2.6.2", "2.6.3")}
"""Releases with code that steals credentials (GHSA-w37p-236h-pfx3)."""
_TOOLS = ("dev", "docs", "all")


def versions() -> list[str]:
    """The versions of Python, this package and its core dependencies."""
    names = ["torch", "lightning", "pytorch-lightning", "torchmetrics", "jsonargparse", "transformers", "diffusers"]
    found = {name: installed(name) for name in names}
    machine = f"Python {platform.python_version()}, {platform.platform()}"
    return [
        f"lightning-unlearn {installed('lightning-unlearn')}, {machine}",
        ", ".join(f"{name} {version}" for name, version in found.items() if version),
    ]


def devices() -> list[str]:
    """The devices that torch can use."""
    try:
        import torch
    except Exception as error:  # a broken installation may raise anything
        return [f"torch can't be imported: {error}"]
    found = [f"CPU: {os.cpu_count()} cores, {torch.get_num_threads()} threads of torch"]
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        bf16 = "with bf16" if facts.major >= 8 else "without bf16"
        found.append(f"cuda:{index}: {facts.name}, {facts.total_memory / 2**30:.0f} GiB, {bf16}")
    if torch.backends.mps.is_available():
        found.append("mps: no test of this package has run on it")
    return found


def extra_lines() -> list[str]:
    """Each extra: installed, or what is missing and the command that installs it."""
    lines = []
    for name, requirements in extras().items():
        if not name or name in _TOOLS:
            continue
        lacks = [*map(_lack, requirements)]
        reasons = ", ".join(reason for reason in lacks if reason)
        lines.append(f"{name:<10} {f'{install_line([name])}   ({reasons})' if reasons else 'installed'}")
    return lines


def refusals() -> list[str]:
    """Installed packages that can't be used, and how to fix that; empty if all can."""
    return [*_malicious(), *_unmet(extras()[""])]


def notes() -> list[str]:
    """Installed packages that a run refuses."""
    found = []
    if version := installed("deepspeed"):
        found.append(
            f"deepspeed {version} is installed, but its strategies are refused: they keep parameters and gradients "
            "where callbacks can't reach them. Take ddp, or ModelParallelStrategy (FSDP2)."
        )
    pair = [installed(name) for name in ("lightning", "pytorch-lightning")]
    if None not in pair and pair[0] != pair[1]:
        found.append(
            f"lightning {pair[0]} and pytorch-lightning {pair[1]} differ: install the same release of both, since "
            "classes here are derived from both, and are tested with equal releases."
        )
    return found


def _malicious() -> Iterator[str]:
    for name, releases in _MALICIOUS.items():
        if (version := installed(name)) in releases:
            yield (
                f"{name} {version} is a malicious release that steals credentials (GHSA-w37p-236h-pfx3). Remove it "
                f"without importing it, pip uninstall {name}, change every credential of this machine, and install "
                f'pip install "{name}>=2.6.4,<2.7".'
            )


def _unmet(requirements: Sequence[Requirement]) -> Iterator[str]:
    for requirement in requirements:
        if reason := _lack(requirement):
            yield f'{reason}: pip install "{requirement.name}{requirement.specifier}"'


def _lack(requirement: Requirement) -> str:
    """How an installed package falls short of a requirement."""
    version = installed(requirement.name)
    if version is None:
        return f"{requirement.name} is missing"
    if requirement.specifier.contains(version, prereleases=True):
        return ""
    return f"{requirement.name} {version} is not {requirement.specifier}"
