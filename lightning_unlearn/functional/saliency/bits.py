"""Bit-packed masks, and masking on the bits of a tensor."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["apply_mask_", "pack_mask", "unpack_mask"]

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_CHUNK = {"cpu": 1 << 17}  # a chunk's mask and values stay in the core's cache; other devices use large chunks
_LARGE_CHUNK = 1 << 24


def pack_mask(mask: Tensor) -> Tensor:
    """Pack a boolean mask into one bit per weight; the first weight is the lowest bit of the first byte.

    Args:
        mask: Boolean, any shape.

    Returns:
        Shape ``(ceil(n / 8),)``, uint8.

    Example:
        >>> pack_mask(torch.tensor([True, False, True]))
        tensor([5], dtype=torch.uint8)
    """
    flat = mask.reshape(-1).to(torch.uint8)
    columns = torch.nn.functional.pad(flat, (0, -len(flat) % 8)).view(-1, 8)
    packed = columns[:, 0].clone()
    for i in range(1, 8):
        packed |= columns[:, i] << i
    return packed


def unpack_mask(packed: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The boolean mask packed by `pack_mask`.

    Args:
        packed: Shape ``(ceil(n / 8),)``, uint8.
        shape: Shape of the mask, with ``n`` elements.

    Returns:
        Boolean, of the given shape.

    Raises:
        ValueError: If the number of bytes does not match the shape.

    Example:
        >>> unpack_mask(torch.tensor([5], dtype=torch.uint8), (3,))
        tensor([ True, False,  True])
    """
    count = torch.Size(shape).numel()
    if packed.dtype != torch.uint8 or packed.numel() != -(-count // 8):
        raise ValueError(
            f"A mask of shape {tuple(shape)} has {-(-count // 8)} bytes (uint8), but got {packed.numel()} of "
            f"{packed.dtype}. The file is damaged, or is of another model."
        )
    places = torch.arange(8, dtype=torch.uint8, device=packed.device)
    return ((packed[:, None] >> places) & 1).bool().view(-1)[:count].view(shape)


@torch.no_grad()
def apply_mask_(tensor: Tensor, live: Tensor, frozen: Tensor | None = None) -> Tensor:
    """Keep a tensor's bits where ``live``, and replace all others by those of ``frozen`` or zeros, in place.

    It works on bits, read as integers: in floating point, 0 times NaN is NaN, and adding 0 turns -0.0 into +0.0, while
    multiplying integers by 1 or 0 and adding 0 is exact. On a CPU, ``torch.where`` and ``masked_fill_`` take twice as
    long.

    Args:
        tensor: Any floating type.
        live: Boolean, ``True`` where the tensor keeps its value, same number of elements.
        frozen: Same type as ``tensor``, 0 wherever ``live``; ``None`` for zeros.

    Returns:
        ``tensor``.

    Raises:
        TypeError: If ``live`` is not boolean.

    Example:
        >>> live = torch.tensor([True, False, False])
        >>> apply_mask_(torch.tensor([1.0, float("nan"), 3.0]), live, torch.tensor([0.0, 2.0, -0.0]))
        tensor([1., 2., -0.])
    """
    if live.dtype != torch.bool:
        raise TypeError(f"live must be boolean, but got {live.dtype}. Pass live.bool().")
    if not tensor.is_contiguous():
        return tensor.copy_(apply_mask_(tensor.contiguous(), live, frozen))
    integer = _INTEGERS[tensor.element_size()]
    size = _CHUNK.get(tensor.device.type, _LARGE_CHUNK)
    values = tensor.view(-1).view(integer).split(size)
    marks = live.reshape(-1).view(torch.int8).split(size)
    rest = frozen.reshape(-1).view(integer).split(size) if frozen is not None else (None,) * len(values)
    wide = torch.empty(min(size, tensor.numel()), dtype=integer, device=tensor.device)
    for value, mark, other in zip(values, marks, rest, strict=True):
        factor = wide[: len(mark)].copy_(mark)
        if other is None:
            value *= factor
        else:
            torch.addcmul(other, value, factor, out=value)
    return tensor
