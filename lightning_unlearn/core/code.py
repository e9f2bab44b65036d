"""Hashes of the source code that a run depends on, found by following imports."""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from importlib import import_module
from importlib.util import find_spec, resolve_name
from pathlib import Path
from pkgutil import resolve_name as resolve_object
from threading import Lock
from typing import Any, NamedTuple

__all__ = ["import_paths", "sources"]

_PACKAGE = "lightning_unlearn"
_Names = set[tuple[str, str]]
"""Modules, and a name in each: ``""`` or ``"*"`` stand for all of it."""
_parsing = Lock()
"""Python 3.11 keeps one recursion depth for all threads that build syntax trees, and fails when two build at once."""


def import_paths(value: Any) -> Iterator[str]:
    """Import paths in the fields of a cell: values of ``class_path``, and names in this package."""
    if isinstance(value, dict):
        if "class_path" in value:
            yield value["class_path"]
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for entry in value:
            yield from import_paths(entry)
    elif isinstance(value, str) and value.startswith(f"{_PACKAGE}."):
        yield value


def sources(run: Callable[..., Any], paths: Iterable[str]) -> dict[str, str]:
    """Hashes of the source code that a run uses, by module.

    They cover the definitions of a function, of some classes with their bases, and of everything they use from this
    package or from the function's own. The rest of a file is left out, so that a table beside the function may change;
    so are comments, docstrings and imports for type checkers.

    Args:
        run: A function of a module.
        paths: Import paths of classes or functions.
    """
    packages, waiting = {_PACKAGE, run.__module__.partition(".")[0]}, {(run.__module__, run.__name__)}
    others = set()
    for path in paths:
        value = resolve_object(path)
        others.add(value.__module__)
        waiting |= {(part.__module__, part.__qualname__) for part in getattr(value, "__mro__", [value])}
    wanted: dict[str, set[str]] = {}
    while waiting:
        module, name = waiting.pop()
        if module not in others and module.partition(".")[0] not in packages:
            continue
        module, name = _defining(module, name)
        if name not in wanted.setdefault(module, set()):
            wanted[module].add(name)
            waiting |= set().union(*(part.imports for part in _used(module, wanted[module])))
    codes = {module: "\n".join(part.code for part in _used(module, names)) for module, names in wanted.items()}
    return {module: hashlib.sha256(codes[module].encode()).hexdigest()[:16] for module in sorted(codes)}


class _Statement(NamedTuple):
    """A statement of a module: the names that it defines, those that it uses, what it imports, and its code."""

    defines: set[str]
    uses: set[str]
    imports: _Names
    code: str


def _used(module: str, names: set[str]) -> list[_Statement]:
    """The statements that define some names or define nothing, and those that these need."""
    statements = _statements(module)
    if names & {"", "*"}:
        return statements
    known: set[str] = set()
    used: list[_Statement] = []
    while names - known:
        known |= names
        used = [part for part in statements if not part.defines or part.defines & known]
        names = set().union(*(part.uses for part in used))
    return used


def _defining(module: str, name: str) -> tuple[str, str]:
    """Where a name of a module is defined, which a package may offer for a module in it."""
    if name in ("", "*") or any(name in part.defines for part in _statements(module)):
        return module, name
    if (submodule := f"{module}.{name}") in sys.modules or (_file(module).stem == "__init__" and find_spec(submodule)):
        return submodule, ""
    value = getattr(import_module(module), name, None)
    return getattr(value, "__module__", None) or module, getattr(value, "__qualname__", None) or ""


def _file(module: str) -> Path:
    known = sys.modules.get(module)
    return Path(getattr(known, "__file__", None) or "") if known else Path(getattr(find_spec(module), "origin", ""))


def _statements(module: str) -> list[_Statement]:
    """The statements of a module; none of one that is not written in Python."""
    path = _file(module)
    return _parsed(module, path, path.stat().st_mtime_ns) if path.suffix == ".py" else []


@cache
def _parsed(module: str, path: Path, changed: int) -> list[_Statement]:
    package = module if path.stem == "__init__" else module.rpartition(".")[0]
    statements = []
    with _parsing:
        tree = ast.parse(path.read_bytes())
    for node in _Code().visit(tree).body:
        parts = [type(node)(**{**vars(node), "names": [a]}) for a in node.names] if _is_import(node) else [node]
        for part in parts:
            uses = {name.id for name in ast.walk(part) if isinstance(name, ast.Name)}
            imports = {pair for inner in ast.walk(part) if _is_import(inner) for pair in _imported(inner, package)}
            statements.append(_Statement(_defined(part), uses, imports, ast.dump(part)))
    return statements


class _Code(ast.NodeTransformer):
    """Leaves out docstrings and what is for type checkers."""

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        return None if isinstance(node.value, ast.Constant) else node

    def visit_If(self, node: ast.If) -> Any:
        self.generic_visit(node)
        return node.orelse if ast.unparse(node.test).endswith("TYPE_CHECKING") else node


def _is_import(node: ast.AST) -> bool:
    return isinstance(node, (ast.Import, ast.ImportFrom))


def _imported(node: Any, package: str) -> _Names:
    if isinstance(node, ast.Import):
        return {(alias.name, "") for alias in node.names}
    module = resolve_name("." * node.level + (node.module or ""), package)
    return {(module, alias.name) for alias in node.names}


def _defined(node: Any) -> set[str]:
    """The names that a statement only defines; without any, it counts always."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return {node.name}
    if _is_import(node):
        return {alias.asname or alias.name.partition(".")[0] for alias in node.names} - {"*"}
    if isinstance(node, (ast.Assign, ast.AnnAssign)):
        return {name.id for name in ast.walk(node) if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)}
    return set()
