"""A delta turns the base into the unlearned model and back, bit for bit."""

from __future__ import annotations

import copy
import hashlib
import math
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lightning_unlearn import apply_delta, delta_info, revert_delta, save_delta
from tests.helpers import bits, same
from tests.weights.delta.models import FLOATS, INTEGERS, clone, move


@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS, torch.bool, torch.complex64, torch.float8_e4m3fn])
def test_every_type_comes_back_bit_for_bit(dtype: torch.dtype, delta: Path) -> None:
    size = torch.empty((), dtype=dtype).element_size()
    raw = torch.randint(0, 2 if dtype is torch.bool else 256, (30 * size,), dtype=torch.uint8)
    weight = raw.view(dtype).view(5, 6)  # among the floats NaN of every payload, infinities and subnormal numbers
    base = {"a": weight, "scalar": weight[0, 0].clone(), "empty": weight[:0], "still": weight.clone()}
    unlearned = {**base, "a": move(weight, 0.3), "scalar": move(weight[0, 0], 1.0)}
    state = clone(base)

    info = save_delta(base, unlearned, delta)
    assert (info.weights, info.changed) == (61, 10)
    apply_delta(state, delta)
    assert same(state, unlearned)
    revert_delta(state, delta)
    assert same(state, base)


@pytest.mark.parametrize("dtype", FLOATS)
def test_minus_zero_and_the_payload_of_a_nan_are_changes(dtype: torch.dtype, delta: Path) -> None:
    base = {"w": torch.tensor([0.0, math.nan, 1.0, math.inf], dtype=dtype)}
    unlearned = clone(base)
    unlearned["w"][0] = -0.0
    bits(unlearned["w"])[1] ^= 1
    assert torch.equal(base["w"].nan_to_num(), unlearned["w"].nan_to_num())
    assert save_delta(base, unlearned, delta).changed == 2
    apply_delta(base, delta)
    assert same(base, unlearned)


def test_a_module_of_any_memory_layout_is_changed_in_place(delta: Path) -> None:
    base = nn.Conv2d(3, 4, 5).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    unlearned = copy.deepcopy(base)
    with torch.no_grad():
        unlearned.weight[:, 0].mul_(1.5)
    start, weight = clone(base.state_dict()), base.weight
    save_delta(base, unlearned, delta)
    apply_delta(base, delta)
    assert base.weight is weight
    assert same(base, unlearned)
    revert_delta(base, delta)
    assert same(base.state_dict(), start)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(8, 4), nn.Linear(4, 8, bias=False)
        self.head.weight = self.embedding.weight


def test_tied_weights_are_stored_and_flipped_once(delta: Path, tmp_path: Path) -> None:
    base = Tied()
    unlearned = copy.deepcopy(base)
    with torch.no_grad():
        unlearned.head.weight[0] += 1
    info = save_delta(base, unlearned, delta)
    assert (info.weights, info.changed) == (32, 4)
    with safe_open(delta, "pt") as file:
        assert sorted(file.keys()) == ["mask/embedding.weight", "xor/embedding.weight"]
    apply_delta(base, delta)
    assert same(base, unlearned)

    # A file that kept the other of the two names.
    for name, model in (("one", base), ("two", Tied())):
        (tmp_path / name).mkdir()
        save_file({"head.weight": model.head.weight.detach()}, tmp_path / name / "model.safetensors")
    save_delta(tmp_path / "two", base, delta)
    apply_delta(tmp_path / "two", delta, tmp_path / "out")
    assert same(load_file(tmp_path / "out/model.safetensors"), load_file(tmp_path / "one/model.safetensors"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("density", "kind"), [(0.01, "index"), (0.1, "mask"), (1.0, "mask")])
def test_the_size_is_that_of_the_formula(dtype: torch.dtype, density: float, kind: str, delta: Path) -> None:
    n = 99_999
    base = {"w": torch.randn(n).to(dtype), "still": torch.randn(1000)}
    info = save_delta(base, {**base, "w": move(base["w"], density)}, delta)
    k = round(density * n)
    assert info.changed == k
    assert info.density == k / (n + 1000)
    with safe_open(delta, "pt") as file:
        assert sorted(file.keys()) == [f"{kind}/w", "xor/w"]
    content = k * dtype.itemsize + min(math.ceil(n / 8), 4 * k)
    header = 8 + int.from_bytes(delta.read_bytes()[:8], "little")
    assert delta.stat().st_size == content + header
    assert header < 2000


def test_the_file_says_what_it_is(delta: Path) -> None:
    base = {"w": torch.zeros(4), "count": torch.zeros(3, dtype=torch.int64)}
    unlearned = {**base, "w": torch.tensor([0.0, 1.0, 0.0, 0.0])}
    info = save_delta(base, unlearned, delta)
    assert info == delta_info(delta)
    assert (info.dtype, info.weights, info.changed, info.density) == ("float32", 7, 1, 1 / 7)

    def digest(kind: str, tensor: Tensor) -> str:
        return hashlib.sha256(kind.encode() + b"\n" + tensor.numpy().tobytes()).hexdigest()

    count = digest("int64 [3]", base["count"])
    for state, fingerprint in ((base, info.base), (unlearned, info.unlearned)):
        lines = f"count {count}\nw {digest('float32 [4]', state['w'])}\n"
        assert fingerprint == hashlib.sha256(lines.encode()).hexdigest()
