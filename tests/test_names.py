"""Every public name has one home, and one way to it."""

from __future__ import annotations

from collections import Counter
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import lightning_unlearn
from lightning_unlearn import functional

PARTS = [import_module(f"lightning_unlearn.{part}") for part in lightning_unlearn._PARTS]
ROOT_FUNCTIONS = {"keyed_generator", "keyed_seed", "kl_divergence", "length_normalised", "mixed_bits"}
ROOT_FUNCTIONS |= {"auc", "delong", "sequence_nll", "token_mean", "token_nll", "tpr_at_fpr"}
ROOT_FUNCTIONS |= {
    "QUANTIZATION_SCHEMES",
    "QuantizationScheme",
    "Quantized",
    "code_overlap",
    "dequantize",
    "quantize",
    "round_weight",
}
ROOT_FUNCTIONS |= {"curve_area", "meta_robustness", "quantization_robustness", "recovery", "recovery_area"}
ROOT_FUNCTIONS |= {"precision_usable", "recovery_ratio", "relearning_robustness", "self_recovery", "steps_to_recovery"}


def functional_parts() -> list[ModuleType]:
    folder = Path(functional.__file__).parent
    return [
        import_module(f"lightning_unlearn.functional.{path.parent.name}")
        for path in sorted(folder.glob("*/__init__.py"))
    ]


def test_the_public_names_are_those_of_the_parts() -> None:
    names = Counter(name for part in PARTS for name in part.__all__)
    assert set(lightning_unlearn.__all__) == set(names)
    assert len(lightning_unlearn.__all__) == len(names)
    assert {name for name, count in names.items() if count > 1} == set()


def test_the_functional_names_are_those_of_its_parts_and_its_own() -> None:
    names = Counter(name for part in functional_parts() for name in part.__all__) + Counter(ROOT_FUNCTIONS)
    assert set(functional.__all__) == set(names)
    assert len(functional.__all__) == len(names)
    assert {name for name, count in names.items() if count > 1} == set()


@pytest.mark.parametrize(
    "module", [lightning_unlearn, functional, *PARTS, *functional_parts()], ids=lambda m: m.__name__
)
def test_every_name_is_there_and_listed(module: ModuleType) -> None:
    for name in module.__all__:
        assert getattr(module, name) is not None, name
    assert set(module.__all__) <= set(dir(module))


def test_a_name_is_the_same_object_from_the_root_and_from_its_part() -> None:
    for part in PARTS:
        for name in part.__all__:
            assert getattr(lightning_unlearn, name) is getattr(part, name)
    for part in functional_parts():
        for name in part.__all__:
            assert getattr(functional, name) is getattr(part, name)


@pytest.mark.parametrize("module", [lightning_unlearn, functional, *PARTS], ids=lambda m: m.__name__)
@pytest.mark.parametrize("name", ["Npo", "no_such_name", "_private", "__path_of_no_one__"])
def test_an_unknown_name_is_an_attribute_error(module: ModuleType, name: str) -> None:
    with pytest.raises(AttributeError, match=name):
        getattr(module, name)
