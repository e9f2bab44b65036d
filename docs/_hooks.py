"""Builds the pages of the methods and of the reference from the docstrings, so that no page is written twice."""

from __future__ import annotations

import html
import importlib
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path

import griffe
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

PACKAGE = "lightning_unlearn"
ROOT = Path(__file__).parent.parent
MODULES = (
    *("data", "modules", "delta", "optimizers", "scores", "functional", "metrics", "evaluation", "report"),
    *("diffusion", "diffusion.guards", "attacks", "judges"),
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages, and put them into the navigation."""
    callbacks = importlib.import_module(f"{PACKAGE}.callbacks")
    public = [getattr(callbacks, name) for name in callbacks.__all__ if inspect.isclass(getattr(callbacks, name))]
    methods = [c for c in public if issubclass(c, callbacks.UnlearnCallback) and not inspect.isabstract(c)]
    beside = [c for c in public if c not in methods]

    pages = {f"methods/{c.__name__}.md": method_page(c) for c in methods}
    things = {c.__name__: f"{PACKAGE}.callbacks.{c.__name__}" for c in beside}
    things |= {f"{PACKAGE}.{name}": f"{PACKAGE}.{name}" for name in MODULES}
    reference = {f"reference/{title}.md": reference_page(title, path) for title, path in things.items()}
    for uri, content in {**pages, **reference}.items():
        files.append(File.generated(config, uri, content=content))

    for section in config.nav or []:
        if "Methods" in section:
            section["Methods"] = list(pages)
        elif "Reference" in section:
            section["Reference"] += list(reference)
    return files


def method_page(method: type) -> str:
    """The class, the YAML file that attaches it, and the pure functions that its file and its bases' files import."""
    page = _title(method.__name__) + _object(f"{PACKAGE}.callbacks.{method.__name__}", level=1, members=False)
    if fragment := fragment_of(method):
        path = fragment.relative_to(ROOT).as_posix()
        page += f"\n## On the command line\n\nAdd `--config {path}` to a run:\n\n```yaml\n{fragment.read_text()}```\n"
    used = {}
    for base in method.__mro__:
        for name, function in inspect.getmembers(sys.modules[base.__module__], inspect.isfunction):
            if function.__module__.startswith(f"{PACKAGE}.functional."):
                used.setdefault(name, function)
    if used:
        page += "\n## The mathematics\n"
    return page + "".join(_object(_path(f), level=3, inventory=False) for f in used.values())


def reference_page(title: str, path: str) -> str:
    """One class or module."""
    if path != f"{PACKAGE}.functional":
        return _title(title) + _object(path, level=1)
    # A function there often has the name of its file, and by that name the page would get the file.
    functional = importlib.import_module(path)
    members = (getattr(functional, name) for name in functional.__all__)
    functions = (_path(member) for member in members if callable(member))
    return _title(title) + _object(path, level=1, members=False) + "".join(_object(f, level=2) for f in functions)


def fragment_of(method: type) -> Path | None:
    """The file in callbacks/ that attaches a method."""
    attaches = re.compile(rf"class_path:\s*{PACKAGE}\S*\.{method.__name__}\s*$", re.MULTILINE)
    return next((f for f in sorted(ROOT.glob("callbacks/**/*.yaml")) if attaches.search(f.read_text())), None)


def _path(function: Callable[..., object]) -> str:
    return f"{function.__module__}.{function.__qualname__}"


def _title(title: str) -> str:
    return f"---\ntitle: {title}\n---\n"


def _object(path: str, *, level: int, members: bool | None = None, inventory: bool = True) -> str:
    options = {
        "heading_level": level,
        "members": members,
        "skip_local_inventory": not inventory,  # where it has its own place elsewhere, links go there
    }
    lines = (f"      {name}: {str(value).lower()}" for name, value in options.items() if value is not None)
    return f"\n::: {path}\n    options:\n" + "\n".join(lines) + "\n"


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn formulas into MathML, which browsers draw by themselves."""
    return _FORMULA.sub(_mathml, content)


_FORMULA = re.compile(
    r'<(?:span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</(?:span|div)>' + r"|:math:<code>(.*?)</code>", re.DOTALL
)


def _mathml(found: re.Match[str]) -> str:
    kind, latex, role = found.groups()
    return convert(html.unescape(latex or role), display="block" if kind == "[" else "inline")


class Docstrings(griffe.Extension):
    """Reads our docstrings: ``Example:`` is a section of doctests, and a paper is a link on a line of its own."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Rewrite a docstring before it is parsed."""
        if obj.docstring is None:
            return
        text = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
        text = re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)
        obj.docstring.value = re.sub(r"(arxiv\.org/abs/\S+\)\.)\n(?=\s*\S)", r"\1\n\n", text)
