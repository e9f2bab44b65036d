"""README of the package on PyPI, where links to files of the repository would lead nowhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?![a-z]+:|#)([^)\s]+)\)")


def pypi_readme(text: str, source: str | None) -> str:
    """The README with absolute links, or without links where the project names no repository.

    Args:
        text: The README as it is in the repository.
        source: Address that paths in the repository are appended to, such as ``https://host/owner/name/blob/v1.2.3``.
    """

    def absolute(found: re.Match[str]) -> str:
        mark, words, path = found.groups()
        if source is not None:
            return f"{mark}[{words}]({source}/{path.removeprefix('./')})"
        return "" if mark else words

    return _LINK.sub(absolute, text)


class ReadmeHook(MetadataHookInterface):
    """Hatch calls it while it makes the package's metadata."""

    def update(self, metadata: dict[str, Any]) -> None:
        repository = metadata.get("urls", {}).get("Repository")
        source = None if repository is None else f"{repository.rstrip('/')}/blob/v{metadata['version']}"
        text = Path(self.root, "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": pypi_readme(text, source)}
