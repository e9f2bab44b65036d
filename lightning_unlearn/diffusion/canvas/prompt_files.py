"""Folders of prompts by family and concept, in the layout of EMMA."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_unlearn.core.checks import one_of
from lightning_unlearn.diffusion.canvas.families import unnamed

__all__ = ["CONCEPT_FAMILIES", "IMPLICIT_FAMILIES", "RETAIN_FAMILIES", "PromptFolder", "read_prompt_folder"]

CONCEPT_FAMILIES = ("name", "prefix", "variant", "short", "long")
"""Families whose prompts ask for the concept: an erased model should not show it."""

IMPLICIT_FAMILIES = ("short", "long")
"""Those that describe the concept and do not name it."""

RETAIN_FAMILIES = ("random", "hard")
"""Families whose prompts ask for other concepts, any of the domain or look-alikes, which a model should keep."""

_NAMED = ("name", "prefix")
_EXAMPLES = "2_prefix.json, 3_variant.json, 4_short.json, 5_long.json, 6_random.json or 7_hard.json"
_FILE = re.compile(r"\d+_([a-z]+)\.json")


@dataclass(frozen=True)
class PromptFolder:
    """Prompts of one domain.

    Args:
        prompts: Prompts by family and concept.
        dropped: How many prompts of a family and concept were left out because they contain an erased name.
    """

    prompts: dict[str, dict[str, list[str]]]
    dropped: dict[str, dict[str, int]]

    @property
    def concepts(self) -> list[str]:
        """The concepts that every family has, in the order of the first."""
        first, *others = self.prompts.values()
        return [concept for concept in first if all(concept in family for family in others)]

    def of(self, concept: str) -> dict[str, list[str]]:
        """A concept's prompts by family, of the families that have any.

        Raises:
            ValueError: If no family has the concept.
        """
        found = {family: rows[concept] for family, rows in self.prompts.items() if rows.get(concept)}
        if not found:
            one_of("concept", concept, sorted({name for rows in self.prompts.values() for name in rows}))
        return found


def read_prompt_folder(folder: str | Path, names: dict[str, Sequence[str]] | None = None) -> PromptFolder:
    """Read the prompts of a domain, such as ``prompts/object`` of EMMA.

    The files are named ``<number>_<family>.json``: ``1_name``, ``2_prefix``, ``3_variant``, ``4_short``, ``5_long``,
    ``6_random`` and ``7_hard``, any of which may be missing. Each is a list of objects with the prompts of a concept,
    ``[{"airplane": ["...", ...]}, ...]``, or one object with all concepts. Variants and descriptions are meant to avoid
    the name of the concept, but some published ones contain it: those with an erased name are left out and counted.

    Args:
        folder: The folder.
        names: The erased names of each concept, such as ``{"baseballbat": ["baseball bat"]}``. For concepts that are
            not listed, the name is the concept's key with spaces for hyphens.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it has no such file, or one has another form.

    References:
        *EMMA*, arXiv:2512.17320.
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is no folder. Give that of one domain, with files as 1_name.json.")
    families = {found[1]: path for path in sorted(root.iterdir()) if (found := _FILE.fullmatch(path.name))}
    unknown = sorted(families.keys() - {*CONCEPT_FAMILIES, *RETAIN_FAMILIES})
    if not families or unknown:
        inside = f"a file of the family {unknown[0]!r}" if unknown else "no such file"
        raise ValueError(f"{root} has {inside}, but files of prompts are named 1_name.json, {_EXAMPLES}.")
    prompts: dict[str, dict[str, list[str]]] = {}
    dropped: dict[str, dict[str, int]] = {}
    for family, path in families.items():
        prompts[family], dropped[family] = {}, {}
        for concept, rows in _concepts(path):
            erased = (names or {}).get(concept, [concept.replace("-", " ")])
            kept = rows if family in (*_NAMED, *RETAIN_FAMILIES) else unnamed(rows, erased)
            prompts[family][concept] = kept
            if len(kept) < len(rows):
                dropped[family][concept] = len(rows) - len(kept)
    return PromptFolder(prompts, dropped)


def _concepts(path: Path) -> Iterable[tuple[str, list[str]]]:
    content: Any = json.loads(path.read_text(encoding="utf-8"))
    objects = content if isinstance(content, list) else [content]
    pairs = [pair for entry in objects if isinstance(entry, dict) for pair in entry.items()]
    texts = all(isinstance(rows, list) and all(isinstance(row, str) for row in rows) for _, rows in pairs)
    if not pairs or not texts or not all(isinstance(entry, dict) for entry in objects):
        raise ValueError(f'{path} is not a list of objects with the prompts of a concept, [{{"cat": ["...", "..."]}}].')
    twice = [concept for number, (concept, _) in enumerate(pairs) if concept in dict(pairs[:number])]
    if twice:
        raise ValueError(f"{path} has the concept {twice[0]!r} twice: join its prompts.")
    return pairs
