"""Quantisation: codes, scales and values of each scheme, by numbers worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lightning_unlearn.functional import (
    QUANTIZATION_SCHEMES,
    QuantizationScheme,
    code_overlap,
    dequantize,
    quantize,
    round_weight,
)

W = torch.tensor([[0.10, -0.25, 1.0, -1.27]])


def scheme(name: str, **changes: int) -> QuantizationScheme:
    return replace(QUANTIZATION_SCHEMES[name], **changes)


@pytest.mark.parametrize(
    ("name", "group", "codes", "values"),
    [
        ("int8", None, [10, -25, 100, -127], [0.10, -0.25, 1.0, -1.27]),
        ("int4_row", None, [1, -1, 6, -7], [0.181429, -0.181429, 1.088571, -1.27]),
        ("int4", 2, [3, -7, 6, -7], [0.107143, -0.25, 1.088571, -1.27]),
        ("int4_durableun", None, [1, -1, 6, -7], [0.181429, -0.181429, 1.088571, -1.27]),
        ("int4_asym", 4, [9, 6, 15, 0], [0.151333, -0.302667, 1.059333, -1.210667]),
        ("nf4", 4, [8, 5, 14, 0], [0.101067, -0.234662, 0.918155, -1.27]),
        ("fp4", 4, [1, 14, 2, 11], [0.0066146, -0.2116667, 0.8466667, -1.27]),
    ],
)
def test_codes_and_values(name: str, group: int | None, codes: list[int], values: list[float]) -> None:
    own = scheme(name, group=group)
    quantized = quantize(W, own)
    assert quantized.codes.tolist() == [codes]
    assert dequantize(quantized, own)[0].tolist() == pytest.approx(values, abs=1e-6)


def test_scales_and_zero_points() -> None:
    assert quantize(W, scheme("int4", group=2)).scale.tolist() == pytest.approx([0.0357143, 0.1814286], abs=1e-7)
    asymmetric = quantize(W, scheme("int4_asym"))
    assert asymmetric.zero is not None
    assert (asymmetric.scale.item(), asymmetric.zero.item()) == (pytest.approx(0.1513333, abs=1e-7), 8)


def test_a_half_is_rounded_to_even() -> None:
    assert quantize(torch.tensor([[0.5, 1.5, 2.5, 127.0]]), scheme("int8")).codes.tolist() == [[0, 2, 2, 127]]


def test_the_decision_points_of_nf4_are_the_midpoints() -> None:
    first, below = 0.0397901498, -0.0455250181
    values = torch.tensor([[1.0, first - 1e-6, first + 1e-6, below - 1e-6, below + 1e-6]])
    assert quantize(values, scheme("nf4")).codes.tolist() == [[15, 7, 8, 6, 7]]


def test_an_update_can_be_invisible_to_int4() -> None:
    buckets = torch.tensor([[0.50, 0.51, 0.55, 1.27]])
    assert quantize(buckets, scheme("int4")).codes.tolist() == [[3, 3, 3, 7]]
    assert quantize(buckets, scheme("int8")).codes.tolist() == [[50, 51, 55, 127]]
    moved = torch.tensor([[0.55, 0.51, 0.50, 1.27]])
    assert code_overlap(buckets, moved, scheme("int4")) == 1.0
    assert code_overlap(buckets, moved, scheme("int8")) == 0.5


def reference(weight: Tensor, high: int, group: int) -> Tensor:
    """Round to nearest, one group after the other."""
    rounded = weight.clone()
    for row in rounded:
        for first in range(0, len(row), group):
            part = row[first : first + group]
            scale = part.abs().max() / high
            if scale > 0:
                part.copy_((part / scale).round().clamp(-high, high) * scale)
    return rounded


@pytest.mark.parametrize(("name", "high", "group"), [("int8", 127, 70), ("int4", 7, 64), ("int4_g32", 7, 32)])
def test_a_last_group_may_be_short(name: str, high: int, group: int) -> None:
    weight = torch.randn(5, 70, generator=torch.Generator().manual_seed(0))
    weight[2, :64] = 0
    assert torch.equal(round_weight(weight, scheme(name)), reference(weight, high, group))


@pytest.mark.parametrize("name", QUANTIZATION_SCHEMES)
def test_what_holds_for_every_scheme(name: str) -> None:
    own = scheme(name)
    weight = torch.randn(6, 100, generator=torch.Generator().manual_seed(1))
    weight[3] = 0
    rounded = round_weight(weight, own)
    assert rounded.shape == weight.shape
    assert not rounded[3].any() or own.kind == "codebook"  # a block of a codebook crosses rows
    largest = weight.abs().max()
    assert (rounded - weight).abs().max() < {127: 0.01, 15: 0.1}.get(own.high, 0.2) * largest
    again = quantize(rounded, own)
    assert torch.equal(again.codes, quantize(weight, own).codes), "quantised twice is quantised once"
    torch.testing.assert_close(dequantize(again, own), rounded, rtol=1e-6, atol=1e-7)
    assert not round_weight(torch.zeros(2, 65), own).any()
    assert round_weight(weight.bfloat16(), own).dtype == torch.bfloat16


@pytest.mark.parametrize("name", QUANTIZATION_SCHEMES)
def test_bad_weights_are_refused(name: str) -> None:
    with pytest.raises(TypeError, match="int8: it is quantised already"):
        quantize(torch.ones(2, 4, dtype=torch.int8), scheme(name))
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="NaN or infinite"):
            quantize(torch.tensor([[1.0, bad]]), scheme(name))
