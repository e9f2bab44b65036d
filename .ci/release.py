"""Check of what a release still lacks, which names it and fails: `make check-release TAG=v1.2.3`."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def lacking(tag: str, root: Path = ROOT) -> list[str]:
    """Sentences, one for each thing; none where the release can go out."""
    project = (root / "pyproject.toml").read_text(encoding="utf-8")
    (version,) = re.findall(r'^version = "(.+)"$', project, re.MULTILINE)
    found = []
    if tag != f"v{version}":
        found.append(
            f"The tag is {tag or 'not given'}, but pyproject.toml has version {version}: the tag is v{version}."
        )
    if not re.search(rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$", _read(root / "CHANGELOG.md"), re.MULTILINE):
        found.append(f"CHANGELOG.md has no heading '## [{version}] - <date>'.")
    if f"\nversion: {version}\n" not in _read(root / "CITATION.cff"):
        found.append(f"CITATION.cff does not have version {version}.")
    for line in ("date-released:", "repository-code:"):
        if f"\n{line}" not in _read(root / "CITATION.cff"):
            found.append(f"CITATION.cff has no line {line}.")
    urls = re.search(r"^\[project\.urls\]\n((?:[^\[\n].*\n)*)", project, re.MULTILINE)
    for name in ("Documentation", "Repository", "Issues", "Changelog"):
        if urls is None or not re.search(rf'^{name} = "https://', urls[1], re.MULTILINE):
            found.append(f"[project.urls] in pyproject.toml has no {name}, so a page on PyPI would not link to it.")
    return found


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


if __name__ == "__main__":
    faults = lacking(sys.argv[1] if len(sys.argv) > 1 else "")
    print("\n".join(faults) or "Nothing is lacking.")
    sys.exit(bool(faults))
