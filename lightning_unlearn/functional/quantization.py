"""Round-to-nearest quantisation of weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "QUANTIZATION_SCHEMES",
    "QuantizationScheme",
    "Quantized",
    "code_overlap",
    "dequantize",
    "quantize",
    "round_weight",
]

_NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
    *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
_FP4 = tuple(sign * value / 12 for sign in (1, -1) for value in (0, 0.0625, 8, 12, 4, 6, 2, 3))
_CHUNK = 1 << 18  # weights rounded at a time: on a CPU they stay in the core's cache


@dataclass(frozen=True)
class QuantizationScheme:
    r"""Grid of values to which weights are rounded.

    Args:
        kind: ``"symmetric"`` has codes $-h..h$ and the scale $\max|w| / h$. ``"asymmetric"`` has codes $0..h$, the
            scale $(\max w - \min w) / h$ with 0 inside the range, and the zero point $-\min w / s$, rounded.
            ``"codebook"`` has the values of a table, times $\max|w|$.
        group: Number of neighbours along the input dimension that share a scale, or ``None`` for a whole output row. A
            codebook uses neighbours in row-major order, which cross rows.
        high: Largest code $h$; unused for a codebook.
        low: Smallest code, if it is not the default one.
        values: Table of a codebook, in the order of its codes.
        floor: Smallest scale; a group with a smaller scale is rounded to zeros.
    """

    kind: Literal["symmetric", "asymmetric", "codebook"]
    group: int | None = None
    high: int = 7
    low: int | None = None
    values: tuple[float, ...] = ()
    floor: float = 0.0


QUANTIZATION_SCHEMES: dict[str, QuantizationScheme] = {
    "int8": QuantizationScheme("symmetric", None, 127),
    "int4": QuantizationScheme("symmetric", 64),
    "int4_g128": QuantizationScheme("symmetric", 128),
    "int4_g32": QuantizationScheme("symmetric", 32),
    "int4_row": QuantizationScheme("symmetric", None),
    "int4_durableun": QuantizationScheme("symmetric", None, 7, -8, floor=1e-8 / 7),
    "int4_asym": QuantizationScheme("asymmetric", 64, 15),
    "nf4": QuantizationScheme("codebook", 64, values=_NF4, floor=1e-38),
    "fp4": QuantizationScheme("codebook", 64, values=_FP4, floor=1e-38),
}
"""Schemes by name.

``int4`` has groups of 64; 128 is the habit of GPTQ and AWQ, 32 that of GGUF. ``int4_durableun`` is what the code that
was released with DurableUn (arXiv:2605.02196) rounds to: its lowest code, -8, is never reached. ``nf4`` and ``fp4`` are
those of bitsandbytes without its second quantisation, that of the scales.
"""


class Quantized(NamedTuple):
    """A quantised weight.

    Args:
        codes: Codes in the shape of the weight, int8; for a codebook, indices into its table.
        scale: Scale of each group, shape ``(groups,)``, fp32.
        zero: Zero point of each group, shape ``(groups,)``, fp32; ``None`` if the scheme has none.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor | None = None


@torch.no_grad()
def quantize(weight: Tensor, scheme: QuantizationScheme) -> Quantized:
    """Codes and scales of a weight.

    Args:
        weight: Shape ``(out, in)``, any floating type; the arithmetic is in fp32.
        scheme: The grid. The last group may be shorter.

    Raises:
        TypeError: If the weight is not floating-point, and therefore quantised already.
        ValueError: If a weight is NaN or infinite.

    Example:
        >>> weight = torch.tensor([[0.10, -0.25, 1.0, -1.27]])
        >>> quantize(weight, QUANTIZATION_SCHEMES["int8"]).codes
        tensor([[  10,  -25,  100, -127]], dtype=torch.int8)
        >>> quantize(weight, QUANTIZATION_SCHEMES["nf4"]).codes
        tensor([[ 8,  5, 14,  0]], dtype=torch.int8)
    """
    if not weight.is_floating_point():
        raise TypeError(
            f"A weight to quantise must be floating, but this one is {weight.dtype}: it is quantised already. Attack "
            "the model in floating point, as it was before."
        )
    blocks = _blocks(weight.detach().float(), scheme)
    scale, zero = _scales(blocks, scheme)
    if not bool(torch.isfinite(scale).all()):
        raise ValueError("A weight is NaN or infinite, so it can't be quantised. Has the model diverged?")
    rows = max(1, _CHUNK // max(1, blocks.shape[1]))
    parts = [
        _codes(
            part,
            scale[i * rows : (i + 1) * rows, None],
            None if zero is None else zero[i * rows :][: len(part)],
            scheme,
        )
        for i, part in enumerate(blocks.split(rows))
    ]
    return Quantized(_whole(torch.cat(parts), weight.shape, scheme), scale, zero)


@torch.no_grad()
def dequantize(quantized: Quantized, scheme: QuantizationScheme) -> Tensor:
    """The weight that the codes represent, in fp32.

    Example:
        >>> weight = torch.tensor([[0.10, -0.25, 1.0, -1.27]])
        >>> dequantize(quantize(weight, QUANTIZATION_SCHEMES["int4_row"]), QUANTIZATION_SCHEMES["int4_row"])
        tensor([[ 0.1814, -0.1814,  1.0886, -1.2700]])
    """
    blocks = _blocks(quantized.codes, scheme)
    if scheme.kind == "codebook":
        values = torch.tensor(scheme.values, device=blocks.device)
        rows = max(1, _CHUNK // max(1, blocks.shape[1]))
        numbers = torch.cat([_looked_up(values, part) for part in blocks.split(rows)])
    else:
        numbers = blocks.float()
    if quantized.zero is not None:
        numbers = numbers - quantized.zero[:, None]
    return _whole(numbers.mul_(quantized.scale[:, None]), quantized.codes.shape, scheme)


def round_weight(weight: Tensor, scheme: QuantizationScheme) -> Tensor:
    """The weight rounded to the grid: quantised, dequantised in fp32, then cast to its own type.

    Example:
        >>> round_weight(torch.tensor([[0.10, -0.25, 1.0, -1.27]]), QUANTIZATION_SCHEMES["int4_row"])
        tensor([[ 0.1814, -0.1814,  1.0886, -1.2700]])
    """
    return dequantize(quantize(weight, scheme), scheme).to(weight.dtype)


def code_overlap(weight: Tensor, other: Tensor, scheme: QuantizationScheme) -> float:
    """Fraction of the codes of a weight that equal those of another weight.

    If an unlearned model has the codes of the original model, quantisation undoes the unlearning.

    Args:
        weight: Shape ``(out, in)``.
        other: The same weight of the other model.
        scheme: The grid.

    Example:
        >>> before, after = torch.tensor([[1.27, 0.50]]), torch.tensor([[1.27, 0.55]])
        >>> (
        ...     code_overlap(before, after, QUANTIZATION_SCHEMES["int4"]),
        ...     code_overlap(before, after, QUANTIZATION_SCHEMES["int8"]),
        ... )
        (1.0, 0.5)

    References:
        Zhang et al., *Catastrophic Failure of LLM Unlearning via Quantization*, arXiv:2410.16454.
    """
    return float((quantize(weight, scheme).codes == quantize(other, scheme).codes).float().mean())


def _looked_up(table: Tensor, numbers: Tensor) -> Tensor:
    return table.to(numbers.device).index_select(0, numbers.reshape(-1).int()).view(numbers.shape)


def _blocks(weight: Tensor, scheme: QuantizationScheme) -> Tensor:
    """One row per group; a short one is padded with zeros, which change neither a scale nor a zero point."""
    if scheme.kind == "codebook":
        flat, size = weight.reshape(-1), scheme.group or weight.shape[-1]
        return F.pad(flat, (0, -len(flat) % size)).reshape(-1, size)
    rows = weight.reshape(-1, weight.shape[-1])
    size = scheme.group or rows.shape[1]
    return F.pad(rows, (0, -rows.shape[1] % size)).reshape(-1, size)


def _whole(blocks: Tensor, shape: torch.Size, scheme: QuantizationScheme) -> Tensor:
    if scheme.kind == "codebook":
        return blocks.reshape(-1)[: shape.numel()].view(shape)
    rows = shape.numel() // shape[-1]
    return blocks.reshape(rows, -1)[:, : shape[-1]].reshape(shape)


def _scales(blocks: Tensor, scheme: QuantizationScheme) -> tuple[Tensor, Tensor | None]:
    if scheme.kind == "asymmetric":
        low, high = blocks.amin(1).clamp(max=0.0), blocks.amax(1).clamp(min=0.0)
        scale = (high - low) / scheme.high
        scale = torch.where(scale > scheme.floor, scale, 1.0 + 0 * scale)
        return scale, torch.round(-low / scale)
    largest = blocks.abs().amax(1)
    if scheme.kind == "codebook":
        return largest.clamp(min=scheme.floor), None
    scale = (largest / scheme.high).clamp(min=scheme.floor)
    return torch.where(scale > 0, scale, 1.0 + 0 * scale), None


def _codes(blocks: Tensor, scale: Tensor, zero: Tensor | None, scheme: QuantizationScheme) -> Tensor:
    if scheme.kind == "codebook":
        # Decision points are the midpoints between neighbouring values. At a midpoint, the lower value wins.
        order = sorted(set(scheme.values))
        values = torch.tensor(order, device=blocks.device)
        points = (values[1:] + values[:-1]) / 2
        shares, places = (blocks / scale).clamp(-1, 1), torch.zeros_like(blocks, dtype=torch.int8)
        for point in points.tolist():  # on a CPU, twice as fast as bucketize
            places += shares > point
        numbers = [scheme.values.index(value) for value in order]
        return places if numbers == sorted(numbers) else _looked_up(torch.tensor(numbers, dtype=torch.int8), places)
    codes = torch.round(blocks / scale)
    if zero is not None:
        return (codes + zero[:, None]).clamp(0, scheme.high).to(torch.int8)
    return codes.clamp(-scheme.high if scheme.low is None else scheme.low, scheme.high).to(torch.int8)
