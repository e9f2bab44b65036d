# python docs/figures/render_notebooks.py [name ...]
"""Pages of the notebooks: runs examples/notebooks and writes docs/notebooks with what each prints and draws.

The notebooks are Python files in jupytext's percent format; `jupytext --to ipynb chat_model.py` makes one for Jupyter.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
NOTEBOOKS = ROOT / "examples" / "notebooks"
PAGES = ROOT / "docs" / "notebooks"


@dataclass(frozen=True)
class Cell:
    """A cell of a notebook."""

    kind: str  # "markdown", "code" or "parameters"
    text: str


def cells(notebook: Path) -> list[Cell]:
    """The cells of a notebook in the percent format."""
    _, *parts = re.split(r"^# %%(.*)\n", notebook.read_text(encoding="utf-8"), flags=re.MULTILINE)
    found = []
    for mark, body in zip(parts[::2], parts[1::2], strict=True):
        if "[markdown]" in mark:
            lines = [re.sub(r"^# ?", "", line) for line in body.strip().splitlines()]
            found.append(Cell("markdown", "\n".join(lines)))
        else:
            found.append(Cell("parameters" if "parameters" in mark else "code", body.strip()))
    return found


def run(notebook: Path, **parameters: Any) -> Iterator[tuple[Cell, str, list[bytes]]]:
    """Run the cells one after the other in the working directory.

    Args:
        notebook: The notebook.
        **parameters: Values that take the place of those in the cell of parameters.

    Yields:
        Each cell with what it prints, and with what it draws, as PNG.
    """
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    names: dict[str, Any] = {"__name__": notebook.stem}
    for cell in cells(notebook):
        printed, drawn = io.StringIO(), []
        if cell.kind != "markdown":
            with contextlib.redirect_stdout(printed):
                exec(compile(cell.text, f"{notebook.name}: {cell.text[:40]!r}", "exec"), names)
            for number in plt.get_fignums():
                drawn.append(_png(plt.figure(number)))
            plt.close("all")
        if cell.kind == "parameters":
            if unknown := parameters.keys() - names.keys():
                raise ValueError(f"{notebook.name} has no parameters {sorted(unknown)}.")
            names |= parameters
        yield cell, printed.getvalue(), drawn


def _png(figure: Any) -> bytes:
    """A figure as a small file: 128 colours."""
    from PIL import Image

    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=100)
    Image.open(drawn).convert("RGB").quantize(128).save(small, format="png", optimize=True)
    return small.getvalue()


def page(notebook: Path, **parameters: Any) -> str:
    """Run a notebook, write its pictures, and return its page."""
    parts, pictures = [], 0
    for cell, printed, drawn in run(notebook, **parameters):
        if cell.kind == "markdown":
            parts.append(cell.text)
            continue
        parts.append(f"```python\n{cell.text}\n```")
        if printed:
            parts.append(f"```text\n{printed.rstrip()}\n```")
        for picture in drawn:
            pictures += 1
            name = f"{notebook.stem}-{pictures}.png"
            (PAGES / name).write_bytes(picture)
            parts.append(f"![]({name})")
    title, *rest = parts
    source = (
        f"The source of this page is `examples/notebooks/{notebook.name}`; "
        "`jupytext --to ipynb` converts it to a Jupyter notebook."
    )
    return "\n\n".join([title, source, *rest]) + "\n"


def main(names: list[str]) -> None:
    """Render the notebooks of these names, or all."""
    warnings.simplefilter("ignore")
    PAGES.mkdir(exist_ok=True)
    for notebook in sorted(NOTEBOOKS.glob("*.py")):
        if names and notebook.stem not in names:
            continue
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            text = page(notebook, **({"MODEL": model} if (model := os.environ.get("NOTEBOOK_MODEL")) else {}))
        (PAGES / f"{notebook.stem}.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
