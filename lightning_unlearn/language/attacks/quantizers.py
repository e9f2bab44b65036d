"""Backends that quantise weights: plain torch, bitsandbytes, torchao and GGUF."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_unlearn.core.checks import one_of
from lightning_unlearn.functional.quantization import QUANTIZATION_SCHEMES, round_weight

__all__ = ["Backend", "rounding"]

Backend = Literal["torch", "bitsandbytes", "torchao", "gguf"]

_SCHEMES: dict[str, tuple[str, ...]] = {
    "torch": tuple(QUANTIZATION_SCHEMES),
    "bitsandbytes": ("int8", "nf4", "fp4"),
    "torchao": ("int8", "int4", "int4_g128", "int4_g32"),
    "gguf": ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0"),
}


def rounding(scheme: str, backend: Backend) -> Callable[[Tensor], Tensor]:
    """A function that quantises a weight of shape ``(out, in)`` and dequantises it again.

    Args:
        scheme: Name of the scheme.
        backend: Library whose arithmetic it is.

    Raises:
        ValueError: If the backend has no such scheme.
        ImportError: If the library is missing.
    """
    one_of("backend", backend, Backend)
    one_of("scheme", scheme, _SCHEMES[backend], f"these are the schemes of backend={backend!r}")
    if backend == "torch":
        return partial(round_weight, scheme=QUANTIZATION_SCHEMES[scheme])
    try:
        library = import_module(backend)
    except ImportError as error:
        raise ImportError(
            f"backend={backend!r} needs a package that can't be imported ({error}): pip install {backend}, or use "
            "backend='torch'."
        ) from None
    if backend == "bitsandbytes":
        return partial(_bitsandbytes, scheme, library)
    return partial(_torchao if backend == "torchao" else _gguf, scheme)


def _bitsandbytes(scheme: str, library: Any, weight: Tensor) -> Tensor:
    functions = library.functional
    weight = weight.contiguous()
    if scheme == "int8":
        # LLM.int8() takes weights as fp16.
        codes, scale, _ = functions.int8_vectorwise_quant(weight.half())
        return functions.int8_vectorwise_dequant(codes, scale).to(weight.dtype)
    # A block a row: the kernel for CPUs (0.50) takes the scales of other blocks where blocks cross rows.
    blocks = weight.view(-1, 64) if weight.numel() % 64 == 0 else weight.view(1, -1)
    packed, state = functions.quantize_4bit(blocks, blocksize=64, quant_type=scheme)
    return functions.dequantize_4bit(packed, state).to(weight.dtype).view(weight.shape)


def _torchao(scheme: str, weight: Tensor) -> Tensor:
    quantization: Any = import_module("torchao.quantization")
    if scheme == "int8":
        config = quantization.Int8WeightOnlyConfig()
    else:
        group = QUANTIZATION_SCHEMES[scheme].group or 0
        if weight.shape[1] % group:
            raise ValueError(
                f"torchao needs whole groups of {group}, but a layer has {weight.shape[1]} inputs. Use "
                "backend='torch', or a scheme with smaller groups."
            )
        granularity = import_module("torchao.quantization.granularity").PerGroup(group)
        config = quantization.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=granularity)  # type: ignore[attr-defined]
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight.clone(), requires_grad=False)
    quantization.quantize_(layer, config)
    rounded: Any = layer.weight
    return rounded.dequantize().to(weight.dtype)


def _gguf(scheme: str, weight: Tensor) -> Tensor:
    quants: Any = import_module("gguf.quants")
    kind = getattr(import_module("gguf").GGMLQuantizationType, scheme.upper())
    if weight.shape[1] % 32:  # the size of a block; llama.cpp keeps such a weight in half precision
        return weight.half().to(weight.dtype)
    values = weight.float().cpu().numpy()
    rounded = torch.from_numpy(quants.dequantize(quants.quantize(values, kind), kind))
    return rounded.to(weight.device, weight.dtype)
