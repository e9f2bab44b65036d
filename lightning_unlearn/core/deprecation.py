"""Deprecation of public names and arguments: a warning with the successor and the release of removal."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

__all__ = ["Deprecation", "UnlearnDeprecationWarning", "deprecated", "renamed_arguments"]

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


class UnlearnDeprecationWarning(FutureWarning):
    """Warning that a later release removes a name. Python always shows it, unlike a ``DeprecationWarning``."""


class Deprecation(NamedTuple):
    """A public name or argument that a later release removes.

    Args:
        what: Its name.
        instead: What to use in its place, as a noun phrase.
        since: Release that began to warn.
        removed_in: Release that no longer has it.
    """

    what: str
    instead: str
    since: str
    removed_in: str

    @property
    def message(self) -> str:
        """The warning."""
        return (
            f"{self.what} is deprecated since lightning-unlearn {self.since} and goes in {self.removed_in}. "
            f"Use {self.instead} instead."
        )

    def warn(self, stacklevel: int = 3) -> None:
        """Warn, with the line of the user's code.

        Args:
            stacklevel: Frames from here to that code.
        """
        warnings.warn(self.message, UnlearnDeprecationWarning, stacklevel=stacklevel)


def deprecated(instead: str, since: str, removed_in: str) -> Callable[[Decorated], Decorated]:
    """Deprecate a public function or class. It works as before, and warns when it is called.

    Args:
        instead: What to use in its place.
        since: Release that begins to warn.
        removed_in: Release that no longer has it.

    Returns:
        A decorator, which keeps signature, name and docstring, so that the command line takes it as before.

    Example:
        >>> @deprecated("npo", since="0.2.0", removed_in="0.4.0")
        ... def npo_loss(nll: float) -> float:
        ...     return nll
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     npo_loss(1.0)
        1.0
        >>> print(caught[0].message)
        npo_loss is deprecated since lightning-unlearn 0.2.0 and goes in 0.4.0. Use npo instead.
    """

    def decorate(old: Decorated) -> Decorated:
        entry = Deprecation(old.__name__, instead, since, removed_in)
        if not isinstance(old, type):
            return _warning(old, lambda _: entry.warn(4))
        kind: Any = old
        kind.__init__ = _warning(kind.__init__, lambda args: entry.warn(4) if type(args[0]) is old else None)
        return old

    return decorate


def renamed_arguments(since: str, removed_in: str, **new_names: str) -> Callable[[Decorated], Decorated]:
    """Let a function or a constructor take keyword arguments under their old names, with a warning.

    The signature has only the new names. The command line and configuration files follow it, and refuse the old ones.

    Args:
        since: Release that begins to warn.
        removed_in: Release that no longer takes the old names.
        new_names: The new name of each old one.

    Returns:
        A decorator; of a constructor, put it on ``__init__``.

    Raises:
        TypeError: When it is called with an argument under both names.

    Example:
        >>> @renamed_arguments(since="0.2.0", removed_in="0.4.0", coeff="weight")
        ... def term(weight: float = 1.0) -> float:
        ...     return weight
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     term(coeff=2.0)
        2.0
        >>> print(caught[0].message)
        term(coeff=...) is deprecated since lightning-unlearn 0.2.0 and goes in 0.4.0. Use weight=... instead.
    """

    def decorate(function: Decorated) -> Decorated:
        name = function.__qualname__.removesuffix(".__init__").rpartition(".")[2]
        entries = {
            old: Deprecation(f"{name}({old}=...)", f"{new}=...", since, removed_in) for old, new in new_names.items()
        }

        @functools.wraps(function)
        def renamed(*args: Any, **options: Any) -> Any:
            for old in options.keys() & entries.keys():
                if new_names[old] in options:
                    raise TypeError(f"{name} got both {old}= and {new_names[old]}=, which is its new name. Give one.")
                entries[old].warn()
                options[new_names[old]] = options.pop(old)
            return function(*args, **options)

        return renamed  # type: ignore[return-value]

    return decorate


def _warning(function: Any, warn: Callable[[tuple[Any, ...]], None]) -> Any:
    @functools.wraps(function)
    def called(*args: Any, **options: Any) -> Any:
        warn(args)
        return function(*args, **options)

    return called
