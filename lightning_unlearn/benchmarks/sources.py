"""Source files that a run depends on, found by following imports."""

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
from typing import Any

__all__ = ["import_paths", "sources"]

_PACKAGE = "lightning_unlearn"
_Imports = frozenset[tuple[str, str]]  # a module, and a name in it or "" for the module itself


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
    """Hashes of the source files that a run reads, by module.

    These are the files of a function and of some classes with their bases, and whatever of this package, or of the
    function's own, these files import. Comments, docstrings and imports for type checking do not count. Of the
    function's file only the definitions count that the function uses: a table beside it may change. An ``__init__.py``
    counts if a name is imported from it that no other file defines.

    Args:
        run: A function of a module.
        paths: Import paths of classes or functions.
    """
    packages = {_PACKAGE, run.__module__.partition(".")[0]}
    used = _used(_read(run.__module__)[0], run.__name__)
    hashes, waiting = {run.__module__: _hash(used)}, set(_imports(used, run.__module__))
    for path in paths:
        value = resolve_object(path)
        module = getattr(value, "__module__", path.rpartition(".")[0])
        _, hashes[module], imports = _read(module)  # of any package
        waiting |= {*imports, *((base.__module__, "") for base in getattr(value, "__mro__", ()))}
    followed = set()
    while waiting:
        module, name = waiting.pop()
        if module.partition(".")[0] in packages and (module := _defining(module, name)) not in followed:
            followed.add(module)
            _, hashes[module], imports = _read(module)
            waiting |= imports
    return dict(sorted(hashes.items()))


def _file(module: str) -> Path:
    spec = None if module in sys.modules else find_spec(module)
    return Path((spec.origin if spec else getattr(sys.modules.get(module), "__file__", None)) or "")


def _read(module: str) -> tuple[list[ast.stmt], str, _Imports]:
    """Statements of a module, their hash, and what they import; of a module that is not Python, none."""
    path = _file(module)
    return _parsed(module, path, path.stat().st_mtime_ns) if path.suffix == ".py" else ([], "", frozenset())


@cache
def _parsed(module: str, path: Path, changed: int) -> tuple[list[ast.stmt], str, _Imports]:
    body = _Code().visit(ast.parse(path.read_bytes())).body
    return body, _hash(body), _imports(body, module)


class _Code(ast.NodeTransformer):
    """Leaves out docstrings and what is for type checkers."""

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        return None if isinstance(node.value, ast.Constant) else node

    def visit_If(self, node: ast.If) -> Any:
        self.generic_visit(node)
        return node.orelse if ast.unparse(node.test).endswith("TYPE_CHECKING") else node


def _hash(statements: list[ast.stmt]) -> str:
    return hashlib.sha256("\n".join(map(ast.dump, statements)).encode()).hexdigest()[:16]


def _used(body: list[ast.stmt], function: str) -> list[ast.stmt]:
    """Statements of a module that a function needs: definitions of the names in it, and what defines nothing."""
    known: set[str] = set()
    names = {function}
    while names - known:
        known |= names
        used = [node for node in body if not (defined := _defined(node)) or defined & known]
        names = {name.id for node in used for name in ast.walk(node) if isinstance(name, ast.Name)}
    return used


def _defined(node: ast.stmt) -> set[str]:
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return {node.name}
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return {alias.asname or alias.name.partition(".")[0] for alias in node.names}
    if isinstance(node, (ast.Assign, ast.AnnAssign)):
        return {name.id for name in ast.walk(node) if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)}
    return set()


def _imports(body: list[ast.stmt], module: str) -> _Imports:
    package = module if _file(module).name == "__init__.py" else module.rpartition(".")[0]
    found: set[tuple[str, str]] = set()
    for node in (node for statement in body for node in ast.walk(statement)):
        if isinstance(node, ast.Import):
            found |= {(alias.name, "") for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            source = resolve_name("." * node.level + (node.module or ""), package)
            found |= {(source, alias.name) for alias in node.names}
    return frozenset(found)


def _defining(module: str, name: str) -> str:
    """The module that defines a name which another one, maybe a package, offers."""
    if not name or _file(module).name != "__init__.py":
        return module
    if (submodule := f"{module}.{name}") in sys.modules or find_spec(submodule):
        return submodule
    return getattr(getattr(import_module(module), name, None), "__module__", module)
