"""Deprecations: they warn where the user's code is, change nothing else, and none has outlived its release."""

from __future__ import annotations

import ast
import inspect
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
from jsonargparse import ArgumentParser
from packaging.version import Version

import lightning_unlearn
from lightning_unlearn import GradDiff, classifier_nll
from lightning_unlearn.core.deprecation import UnlearnDeprecationWarning, deprecated, renamed_arguments


def test_an_old_name_of_a_class_works_warns_at_the_call_and_stays_on_the_command_line() -> None:
    @deprecated("GradDiff", since="0.2.0", removed_in="0.4.0")
    class GradientDifference(GradDiff):
        """As it was."""

    class Derived(GradientDifference): ...

    with pytest.warns(
        UnlearnDeprecationWarning, match=r"GradientDifference .* goes in 0\.4\.0\. Use GradDiff"
    ) as caught:
        method = GradientDifference(score=classifier_nll, retain_weight=2.0)
    assert caught[0].filename == __file__
    assert isinstance(method, GradDiff)
    assert method.retain_weight == 2.0
    assert inspect.signature(GradientDifference) == inspect.signature(GradDiff)
    assert GradientDifference.__doc__ == "As it was."
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(GradientDifference, "method")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnlearnDeprecationWarning)
        assert parser.parse_args(["--method.retain_weight=3"]).method.retain_weight == 3
        Derived(score=classifier_nll)  # warns its author alone, who has the name in the code


def test_a_renamed_argument_is_taken_under_both_names_but_not_at_once() -> None:
    class Term:
        @renamed_arguments(since="0.2.0", removed_in="0.4.0", coeff="weight")
        def __init__(self, weight: float = 1.0) -> None:
            self.weight = weight

    with pytest.warns(UnlearnDeprecationWarning, match=r"Term\(coeff=\.\.\.\) .* Use weight=\.\.\.") as caught:
        assert Term(coeff=2.0).weight == 2.0  # type: ignore[call-arg]
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnlearnDeprecationWarning)
        assert (Term().weight, Term(3.0).weight, Term(weight=4.0).weight) == (1.0, 3.0, 4.0)
    with pytest.raises(TypeError, match="Term got both coeff= and weight="):
        Term(coeff=1.0, weight=2.0)  # type: ignore[call-arg]
    assert list(inspect.signature(Term).parameters) == ["weight"]


@deprecated("a list", since="0.2.0", removed_in="0.4.0")
def old_function(*values: Any) -> list[Any]:
    return list(values)


def test_a_deprecated_function_can_still_be_pickled() -> None:
    with pytest.warns(UnlearnDeprecationWarning):
        assert pickle.loads(pickle.dumps(old_function))(1, 2) == [1, 2]


def removals(source: str) -> list[str]:
    """The releases that decorators in a file name for what is to go."""
    return [
        keyword.value.value  # type: ignore[attr-defined]
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg == "removed_in"
    ]


def test_none_has_outlived_the_release_that_it_goes_in() -> None:
    here = Path(__file__).read_text(encoding="utf-8")
    assert set(removals(here)) == {"0.4.0"}
    files = Path(lightning_unlearn.__path__[0]).rglob("*.py")
    texts = {file: file.read_text(encoding="utf-8") for file in files}
    named = {file: removals(text) for file, text in texts.items() if "removed_in=" in text}
    now = Version(lightning_unlearn.__version__)
    assert {file for file, releases in named.items() if any(Version(r) <= now for r in releases)} == set()
