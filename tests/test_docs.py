"""Notebooks run, their pages show them as they are, and the figures of the documentation are those of its tables."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, DOCS / "figures" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


doc_tables = script("doc_tables")
which_method, canvas, render_notebooks = script("which_method"), script("canvas"), script("render_notebooks")
NOTEBOOKS = sorted(render_notebooks.NOTEBOOKS.glob("*.py"))


def test_figures_are_those_of_the_tables() -> None:
    for plot in which_method.plots():
        drawn = (DOCS / "figures" / f"which_{plot.name}.svg").read_text(encoding="utf-8")
        assert drawn == which_method.svg(plot), f"Run docs/figures/which_method.py: which_{plot.name}.svg is old."
    drawn = canvas.FIGURE.read_text(encoding="utf-8")
    assert drawn == canvas.svg(canvas.accuracies()), "Run docs/figures/canvas.py: canvas_heatmap.svg is old."


def test_a_figure_of_a_missing_table_is_refused() -> None:
    with pytest.raises(ValueError, match=r"docs/facts\.md has no table 7"):
        doc_tables.table("facts", "| | lr | forget %", 7)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_pages_show_the_notebooks(notebook: Path) -> None:
    page = (DOCS / "notebooks" / f"{notebook.stem}.md").read_text(encoding="utf-8")
    for cell in render_notebooks.cells(notebook):
        assert cell.text in page, f"Run docs/figures/render_notebooks.py {notebook.stem}: its page is old."
    for picture in re.findall(r"!\[\]\((.*?)\)", page):
        assert (DOCS / "notebooks" / picture).is_file()


def run(name: str, monkeypatch: pytest.MonkeyPatch, folder: Path, **parameters: Any) -> tuple[str, int]:
    """What a notebook prints, and how many figures it draws."""
    monkeypatch.chdir(folder)
    cells = list(render_notebooks.run(render_notebooks.NOTEBOOKS / f"{name}.py", **parameters))
    return "".join(printed for _, printed, _ in cells), sum(len(drawn) for *_, drawn in cells)


def test_notebook_of_a_classifier(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    printed, figures = run("classifier", monkeypatch, tmp_path, EPOCHS=8)
    shares = dict(re.findall(r"^(\w+) +([\d.]+)%", printed, re.MULTILINE))
    assert float(shares["original"]) > 80
    assert float(shares["unlearned"]) < 20
    assert figures == 2


def test_notebook_of_a_chat_model(tiny_lm: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    few = {"TEACH_EPOCHS": 1, "FORGET_EPOCHS": 5, "FOLDER": tmp_path}
    printed, figures = run("chat_model", monkeypatch, tmp_path, MODEL=str(tiny_lm), **few)
    assert "Where does our customer Ada Quill live?" in printed
    assert "model.safetensors" in printed
    assert figures == 1


@pytest.mark.slow
def test_notebook_of_a_diffusion_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    printed, figures = run("diffusion", monkeypatch, tmp_path, SAMPLER_STEPS=4, SEARCHES=1)
    assert "without an attack" in printed
    assert figures == 2


def test_unknown_parameters_of_a_notebook_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"diffusion\.py has no parameters \['STEP'\]"):
        run("diffusion", monkeypatch, tmp_path, STEP=1)


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    nav = yaml.safe_load(text[text.index("nav:") : text.index("theme:")])["nav"]
    pages = {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")}
    assert set(re.findall(r"[\w/]+\.md", str(nav))) == pages
