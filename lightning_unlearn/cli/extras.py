"""Packages that commands need beyond the core, and the extras that install them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

__all__ = ["NEEDS", "extras", "install_line", "installed", "missing_packages", "module_hint"]

_DISTRIBUTION = "lightning-unlearn"
_MODULES = {"sklearn": "scikit-learn", "PIL": "pillow"}  # modules with a name other than the package's
_LLM = {"llm": ("transformers", "jinja2")}
_DIFFUSION = {"diffusion": ("diffusers", "transformers")}
_REPORT = {"report": ("jinja2", "matplotlib")}

NEEDS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    **{name: {"cli": ("omegaconf",)} for name in ("fit", "validate", "test", "predict")},
    "forget": {"cli": ("omegaconf",), **_REPORT},
    "forget --model": _LLM,
    "forget --pipeline": _DIFFUSION,
    "demo": {**_LLM, "cli": ("omegaconf",), **_REPORT, "record": ("cryptography", "huggingface-hub")},
    "demo-diffusion": {**_DIFFUSION, "cli": ("omegaconf",), **_REPORT, "record": ("cryptography", "huggingface-hub")},
    "demo-mri": {"mri": ("nibabel", "nilearn"), **_REPORT},
    "bench-facts": {**_LLM, **_REPORT},
    "bench-language": {**_LLM, **_REPORT},
    "bench-stopping": _LLM,
    "bench-retain": _LLM,
    "bench-classification": {"bench": ("mlxtend", "scikit-learn", "scipy", "matplotlib"), "report": ("jinja2",)},
    "bench-smoothing": {"bench": ("mlxtend", "scikit-learn", "scipy", "matplotlib"), **_LLM, "report": ("jinja2",)},
    "bench-erasure": {**_DIFFUSION, **_REPORT},
    "bench-reconstruction": {"mri": ("nibabel", "nilearn"), **_REPORT},
    "bench-dialogue": {**_LLM, "dialogue": ("scikit-learn", "scipy"), **_REPORT},
    "canvas run": {**_DIFFUSION, **_REPORT},
    "canvas sample": _DIFFUSION,
    "attack": _DIFFUSION,
    "attack-inversion": _DIFFUSION,
    "delta": {"llm": ("safetensors",)},
    "dashboard": {"wandb": ("wandb", "wandb-workspaces")},
    "audit": {**_LLM, **_REPORT},
    "judge": {"llm": ("transformers",), "dialogue": ("scikit-learn",)},
}
"""Of each command, the extras that it needs and the packages of theirs that it can't do without.

After a command may stand a word: the needs of a command's option or part are added to its own.
"""


def extras() -> dict[str, list[Requirement]]:
    """The requirements of each extra, and those of the core under ``""``, as the installed package declares them."""
    found: dict[str, list[Requirement]] = {"": []}
    for line in requires(_DISTRIBUTION) or ():
        requirement = Requirement(line)
        marker = re.search(r"""extra == ["']([\w-]+)["']""", line)
        if requirement.name != _DISTRIBUTION:
            found.setdefault(marker[1] if marker else "", []).append(requirement)
    return found


def installed(package: str) -> str | None:
    """The version of an installed package, or ``None``.

    Args:
        package: Its name in the package index.
    """
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def missing_packages(words: Sequence[str]) -> dict[str, list[str]]:
    """The packages that a command lacks, by the extra that installs them.

    Args:
        words: A command line, starting with the name of the command.
    """
    command, *rest = words
    named = [command, *(f"{command} {word.partition('=')[0]}" for word in rest)]
    needs: dict[str, list[str]] = {}
    for key in named:
        for extra, packages in NEEDS.get(key, {}).items():
            needs.setdefault(extra, []).extend(name for name in packages if name not in needs.get(extra, ()))
    lacks = {extra: [name for name in names if installed(name) is None] for extra, names in needs.items()}
    return {extra: names for extra, names in lacks.items() if names}


def install_line(names: Iterable[str]) -> str:
    """The command that installs the given extras.

    Args:
        names: Names of the extras.

    Example:
        >>> install_line(["llm", "report"])
        'pip install "lightning-unlearn[llm,report]"'
    """
    return f'pip install "{_DISTRIBUTION}[{",".join(names)}]"'


def module_hint(module: str) -> str | None:
    """How to install a module that can't be imported, if it belongs to an extra.

    Args:
        module: Its name in an import.
    """
    root = module.partition(".")[0]
    package = _MODULES.get(root, root.replace("_", "-"))
    bringing = [name for name, parts in extras().items() if name and any(part.name == package for part in parts)]
    users = [name for name in bringing if name not in ("dev", "docs")]
    return f"This needs {package}, which is not installed: {install_line(users[:1])}" if users else None
