"""A delta that does not fit is refused, and changes nothing."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from lightning_unlearn import apply_delta, revert_delta, save_delta
from tests.helpers import same
from tests.weights.delta.models import clone


def edit(change: Callable[[dict[str, Tensor], dict[str, Any]], None], path: Path) -> None:
    with safe_open(path, "pt") as file:
        said, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    metadata = {key: json.loads(value) for key, value in said.items()}
    change(tensors, metadata)
    save_file(tensors, path, metadata={key: json.dumps(value) for key, value in metadata.items()})


def lose(tensors: dict[str, Tensor], name: str, count: int = 1) -> None:
    tensors[name] = tensors[name][:-count].clone()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda state: state["b"].add_(1),
            r"b has SHA-256 \w{64}, but .* in which it has \w{64}, so this is another mod",
        ),
        (lambda state: state["w"].add_(1), r"w has SHA-256 .* Take the model with the fingerprint \w{64}"),
        (
            lambda state: state.pop("b"),
            r"'b' is in .*delta.safetensors, but not in the model, whose names are like 'v'",
        ),
        (lambda state: state.update(c=torch.ones(1)), r"'c' is in the model, but not in .*delta.safetensors"),
        (
            lambda state: state.update(w=torch.ones(2, 8)),
            r"'w' is float32 \[16\] in .*, but float32 \[2, 8\] in the mod",
        ),
        (
            lambda state: state.update(w=state["w"].half()),
            r"'w' is float32 \[16\] in .*, but float16 \[16\] in the mod",
        ),
        (lambda state: state.update(w=1.0), "w is a float, but a delta is made of whole dense tensors"),
        (lambda state: state.update(w=state["w"].to("meta")), "made of whole dense tensors in memory"),
        (lambda state: state.update(w=state["w"].to_sparse()), "made of whole dense tensors in memory"),
    ],
)
def test_another_model_is_refused_and_not_touched(
    change: Callable[[dict[str, Any]], None], message: str, delta: Path
) -> None:
    base = {"w": torch.arange(16.0), "b": torch.ones(4), "v": torch.ones(4)}
    save_delta(base, {**base, "w": base["w"] * 2, "v": base["v"] * 2}, delta)
    state: dict[str, Any] = clone(base)
    change(state)
    before = {name: copy.deepcopy(value) for name, value in state.items()}
    with pytest.raises((ValueError, TypeError), match=message):
        apply_delta(state, delta)
    for name, value in state.items():
        if isinstance(value, Tensor) and not (value.is_meta or value.is_sparse):
            assert torch.equal(value, before[name])


def test_applying_twice_and_reverting_what_was_never_applied_are_recognised(delta: Path) -> None:
    base = {"w": torch.arange(16.0), "v": torch.ones(4)}
    unlearned = {"w": base["w"] + 1, "v": base["v"] + 1}
    save_delta(base, unlearned, delta)
    state = clone(base)
    with pytest.raises(ValueError, match="was never applied to this model"):
        revert_delta(state, delta)
    assert same(state, base)
    apply_delta(state, delta)
    with pytest.raises(ValueError, match="is applied to this model already; revert_delta takes it back"):
        apply_delta(state, delta)
    assert same(state, unlearned)
    mixed = {"w": base["w"], "v": unlearned["v"]}
    for function in (apply_delta, revert_delta):
        with pytest.raises(ValueError, match="v is that of the unlearned model, but w that of the base"):
            function(mixed, delta)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, m: t["xor/w"].add_(1), "is damaged: it would make of w what was never saved"),
        (lambda t, m: lose(t, "xor/w"), "is damaged"),
        (lambda t, m: t["mask/w"].add_(1), "is damaged"),
        (lambda t, m: t.pop("mask/w"), "is damaged"),
        (lambda t, m: t["index/v"].add_(1000), "is damaged: it would make of v"),
        (lambda t, m: t["index/v"].sub_(1), "is damaged: it would make of v"),
        (lambda t, m: t.update({"xor/v": t["xor/v"].double()}), "is damaged: it would make of v"),
        (lambda t, m: m.clear(), "is a safetensors file, but not a delta. Write one with save_delta"),
        (
            lambda t, m: m["lightning-unlearn-delta"].update(format_version=2),
            "has format version 2, but this library reads version 1",
        ),
    ],
)
def test_a_damaged_delta_changes_nothing(change: Any, message: str, delta: Path) -> None:
    base = {"w": torch.arange(16.0), "v": torch.ones(1000)}
    unlearned = {"w": base["w"] * 2, "v": base["v"].clone()}
    unlearned["v"][0] = 2
    save_delta(base, unlearned, delta)
    edit(change, delta)
    state = clone(base)
    with pytest.raises(ValueError, match=message):
        apply_delta(state, delta)
    assert same(state, base)


def test_a_file_cut_short_or_missing_is_an_error(delta: Path) -> None:
    base = {"w": torch.arange(16.0)}
    with pytest.raises(FileNotFoundError, match="There is no delta"):
        apply_delta(base, delta)
    save_delta(base, {"w": base["w"] + 1}, delta)
    delta.write_bytes(delta.read_bytes()[:-1])
    with pytest.raises(ValueError, match="is not a safetensors file, or a part of one"):
        apply_delta(base, delta)


@pytest.mark.parametrize(
    ("unlearned", "message"),
    [
        ({"w": torch.ones(4)}, "are the same bit for bit, so there is nothing to store"),
        ({"x": torch.ones(4)}, "'w' is in the base, but not in the unlearned model, whose names are like 'x'"),
        ({"w": torch.ones(5)}, r"'w' is float32 \[4\] in the base, but float32 \[5\] in the unlearned model"),
        ({"w": torch.ones(4).bfloat16()}, r"'w' is float32 \[4\] in the base, but bfloat16 \[4\] in the unlearned"),
    ],
)
def test_models_without_a_delta_leave_no_file(unlearned: dict[str, Tensor], message: str, delta: Path) -> None:
    with pytest.raises(ValueError, match=message):
        save_delta({"w": torch.ones(4)}, unlearned, delta)
    assert list(delta.parent.iterdir()) == []


def test_a_type_without_an_integer_of_its_size_is_refused(delta: Path) -> None:
    state = {"w": torch.ones(4, dtype=torch.complex128)}
    with pytest.raises(TypeError, match=r"1, 2, 4 or 8 bytes, but got torch.complex128"):
        save_delta(state, {"w": state["w"] * 2}, delta)


def test_a_sharded_module_is_refused(delta: Path) -> None:
    from torch import distributed
    from torch.distributed.tensor import distribute_tensor, init_device_mesh

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        state = {"w": distribute_tensor(torch.ones(4), init_device_mesh("cpu", (1,)))}
        with pytest.raises(TypeError, match=r"w is a DTensor, .* save_pretrained and give the folder"):
            save_delta(state, state, delta)
    finally:
        distributed.destroy_process_group()


def test_without_safetensors_the_error_names_the_extra(delta: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(ImportError, match=r'pip install "lightning-unlearn\[llm\]"'):
        save_delta({"w": torch.ones(1)}, {"w": torch.zeros(1)}, delta)
