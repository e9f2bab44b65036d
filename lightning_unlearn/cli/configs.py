"""Lookup of the configuration files that come with the package, by the end of their path."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path

__all__ = ["PACKAGE", "find_config", "shipped_configs", "with_shipped"]

PACKAGE = Path(__file__).parents[1]


def shipped_configs() -> list[Path]:
    """The files in ``callbacks/`` and ``examples/``: below ``configs/`` in an installed package, else in the clone.

    Sweep files of Weights & Biases among the examples are excluded.
    """
    root = PACKAGE / "configs" if (PACKAGE / "configs").is_dir() else PACKAGE.parent
    examples = (path for path in root.glob("examples/*.yaml") if path.name != "sweep.yaml")
    return sorted([*root.glob("callbacks/**/*.yaml"), *examples])


def find_config(name: str, own: bool = True) -> str:
    """The path of a configuration file.

    Args:
        name: A file, or the end of the path of a shipped one: ``callbacks/objectives/npo.yaml``, ``objectives/npo`` and
            ``npo`` are equivalent.
        own: Whether a file in the working directory takes precedence.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If several shipped files have this name.
    """
    if own and (Path(name).is_file() or not re.fullmatch(r"[\w./-]+", name)):  # otherwise a configuration itself
        return name
    wanted = Path(name.removesuffix(".yaml")).parts
    shipped = shipped_configs()
    matches = [path for path in shipped if path.with_suffix("").parts[-len(wanted) :] == wanted]
    if len(matches) == 1:
        return str(matches[0])
    names = ["/".join(path.with_suffix("").parts[-2:]) for path in matches or shipped]
    if matches:
        raise ValueError(f"--config {name} could be any of {', '.join(names)}. Give one of them.")
    close = difflib.get_close_matches("/".join(wanted[-2:]), names) or names
    raise FileNotFoundError(
        f"There is no file {name} (looked in {Path.cwd()}), and none of that name comes with lightning-unlearn. "
        f"These do: {', '.join(close)}."
    )


def with_shipped(words: Sequence[str]) -> list[str]:
    """A command line in which names of shipped files are replaced by their paths."""
    resolved = []
    for previous, word in zip(["", *words], words, strict=False):
        option, equals, name = word.partition("=")
        if previous in ("--config", "-c"):
            word = find_config(word)
        elif equals and option in ("--config", "-c"):
            word = f"{option}={find_config(name)}"
        resolved.append(word)
    return resolved
