"""MkDocs hooks: pages of methods and of the reference, built from docstrings."""

from __future__ import annotations

import html
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import griffe
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

PACKAGE = "lightning_unlearn"
ROOT = Path(__file__).parent.parent
PARTS = {
    "core": "Callbacks, scores and data",
    "objectives": "Objectives",
    "smoothing": "Smoothing",
    "weights": "Masks and deltas",
    "second_order": "Second-order",
    "language": "Language models",
    "classification": "Classifiers",
    "diffusion": "Diffusion models",
    "reconstruction": "Reconstruction of images",
    "relearning": "Relearning",
    "stopping": "Stopping",
    "dialogue": "Dialogue quality",
    "report": "Reports",
    "audit": "Audit",
}
MODULES = {
    "functional": "Functional",
    "classification.metrics": "Classification metrics",
    "language.metrics": "Language metrics",
    "language.attacks": "Attacks on language models",
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages, and put them into the navigation."""
    package = importlib.import_module(PACKAGE)
    public = {name: getattr(package, name) for name in package.__all__}
    methods = {
        name: thing
        for name, thing in public.items()
        if inspect.isclass(thing) and issubclass(thing, package.UnlearnCallback) and not inspect.isabstract(thing)
    }
    pages = {f"methods/{name}.md": method_page(thing) for name, thing in methods.items()}
    reference = {}
    for part, title in PARTS.items():
        names = [name for name in importlib.import_module(f"{PACKAGE}.{part}").__all__ if name not in methods]
        names = [name for name in names if callable(public[name])]
        objects = (_object(_path(public[name]), level=2) for name in sorted(names))
        reference[f"reference/{part}.md"] = _title(title) + f"# {title}\n" + "".join(objects)
    reference |= {f"reference/{name}.md": module_page(name, title) for name, title in MODULES.items()}
    for uri, content in {**pages, **reference}.items():
        files.append(File.generated(config, uri, content=content))

    rooms: dict[str, list[str]] = {}
    for name, thing in methods.items():
        rooms.setdefault(PARTS[thing.__module__.split(".")[1]], []).append(f"methods/{name}.md")
    for section in _sections(config.nav or []):
        if "All methods" in section:
            section["All methods"] = [{title: rooms[title]} for title in PARTS.values() if title in rooms]
        elif "Public names" in section:
            section["Public names"] += list(reference)
    return files


def _sections(nav: list[Any]) -> Iterator[dict[str, list[Any]]]:
    """The sections of the navigation, at every level."""
    for entry in nav:
        if isinstance(entry, dict):
            for content in entry.values():
                if isinstance(content, list):
                    yield entry
                    yield from _sections(content)


def method_page(method: type) -> str:
    """The class, the YAML file that attaches it, and the pure functions that its file and its bases' files import."""
    page = _title(method.__name__) + _object(_path(method), level=1, members=False)
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


def module_page(name: str, title: str) -> str:
    """The public names of a module."""
    module = importlib.import_module(f"{PACKAGE}.{name}")
    objects = (_path(member) for member in (getattr(module, n) for n in module.__all__) if callable(member))
    return (
        _title(title)
        + _object(f"{PACKAGE}.{name}", level=1, members=False)
        + "".join(_object(path, level=2) for path in objects)
    )


def fragment_of(method: type) -> Path | None:
    """The file in callbacks/ that attaches a method."""
    attaches = re.compile(rf"class_path:\s*{PACKAGE}\.{method.__name__}\s*$", re.MULTILINE)
    return next((f for f in sorted(ROOT.glob("callbacks/**/*.yaml")) if attaches.search(f.read_text())), None)


def _path(thing: Callable[..., object]) -> str:
    return f"{thing.__module__}.{thing.__qualname__}"


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


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links to public names, such as ``lightning_unlearn.NPO``, lead to where the name is defined."""
    return _defined(markdown)


def _defined(text: str) -> str:
    package = importlib.import_module(PACKAGE)
    names = set(package.__all__)

    def path(link: re.Match[str]) -> str:
        return f"][{_path(getattr(package, link[1]))}]" if link[1] in names else link[0]

    return re.sub(rf"\]\[{PACKAGE}\.(\w+)\]", path, text)


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
        text = re.sub(r"^Example:$", "Examples:", _defined(obj.docstring.value), flags=re.MULTILINE)
        text = re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)
        obj.docstring.value = re.sub(r"(arxiv\.org/abs/\S+\)\.)\n(?=\s*\S)", r"\1\n\n", text)
