"""Fingerprint of a model: all that an image depends on beside its prompt, seed, steps and guidance."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_unlearn.diffusion.engine.model import TextToImage
from lightning_unlearn.diffusion.engine.passes import PassCounter

__all__ = ["fingerprint"]

_PARTS = ("unet", "text_encoder", "vae", "tokenizer", "scheduler")
_DRAWN_WITH = (*_PARTS, "safety_checker")
_FREE_U = ("s1", "s2", "b1", "b2")
_PRIME = 65_521


@torch.no_grad()
def fingerprint(model: TextToImage) -> str:
    """A hash of what a model draws with.

    It is of the weights of UNet, text encoder and autoencoder and their types, the adapters on them, the scheduler, the
    tokenizer and its added tokens, the guards that are on and other hooks, and of the parts of the ``pipeline`` where
    these are others.
    """
    state = hashlib.sha256()
    seen: set[int] = set()
    for owner, names in ((model, _PARTS), (getattr(model, "pipeline", None), _DRAWN_WITH)):
        for name in names:
            part = getattr(owner, name, None)
            if part is None or id(part) in seen:
                continue
            seen.add(id(part))
            for line in _lines(part):
                state.update(f"{name}.{line}\n".encode())
    if not seen and isinstance(model, nn.Module):  # of other parts, with a generate of its own
        for line in _lines(model):
            state.update(f"{line}\n".encode())
    generate = getattr(model, "generate", None)
    if generate is not None and not str(generate.__module__).startswith("lightning_unlearn."):
        state.update(f"{generate.__module__}.{getattr(generate, '__qualname__', generate)}".encode())
    for device in ("cpu", "cuda"):
        if torch.is_autocast_enabled(device):
            state.update(f"autocast {device} {torch.get_autocast_dtype(device)}".encode())
    return state.hexdigest()[:16]


def _lines(part: Any) -> Iterator[str]:
    if isinstance(part, nn.Module):
        # Not the state_dict, which leaves out some adapters.
        for name, weight in (*part.named_parameters(), *part.named_buffers()):
            yield f"{name} {tuple(weight.shape)} {weight.dtype} {_sums(weight)}"
        for path, module in part.named_modules():
            yield from (f"{path}: {text}" for text in _behaviour(module))
    elif hasattr(part, "get_vocab"):
        yield from _tokenizer(part)
    else:
        # A wrapper of one of its methods, as a guard has, is among its own attributes.
        config = {name: value for name, value in dict(part.config).items() if not name.startswith("_")}
        yield f"{type(part).__name__} {json.dumps(config, sort_keys=True, default=str)}"
        yield from (f"{name} is wrapped" for name, value in vars(part).items() if callable(value))


def _sums(weight: Tensor) -> list[int]:
    """Sums of a tensor's bits, plain and weighted by their places.

    Sums of integers are the same in any order, so on any number of threads and on any device.
    """
    size = weight.element_size()
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    bits = weight.detach().contiguous().reshape(-1).view(kinds[min(size, 8)]).to(torch.int64)
    places = torch.arange(len(bits), device=bits.device).remainder_(_PRIME).add_(1)
    return [int(bits.sum()), int((bits * places).sum())]


def _behaviour(module: nn.Module) -> Iterator[str]:
    """What changes a layer's output beside its weights."""
    for hooks in (module._forward_pre_hooks, module._forward_hooks):
        for hook in hooks.values():
            if not getattr(hook, "__qualname__", "").startswith(PassCounter.__name__):
                yield _hook(hook)
    processor = getattr(module, "processor", None)
    if processor is not None and not type(processor).__module__.startswith("diffusers."):
        yield type(processor).__qualname__
    for name in _FREE_U:
        if isinstance(getattr(module, name, None), (int, float)):
            yield f"{name}={getattr(module, name)}"


def _hook(hook: Any) -> str:
    """A hook by its name, and by the settings of the object that it is a method of."""
    owner = getattr(hook, "__self__", None)
    if isinstance(owner, nn.Module) or owner is None:
        settings = {"multiplier": str(getattr(owner, "multiplier", "")), "alpha": getattr(owner, "alpha", "")}
    else:
        settings = {
            name: asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
            for name, value in vars(owner).items()
            if not name.startswith("_") and (isinstance(value, (str, int, float, bool)) or is_dataclass(value))
        }
        settings.pop("suppressed", None)  # a count
    kind = type(hook) if owner is None and not hasattr(hook, "__qualname__") else hook
    return f"{kind.__module__}.{kind.__qualname__} {json.dumps(settings, sort_keys=True, default=str)}"


def _tokenizer(tokenizer: Any) -> Iterator[str]:
    yield f"{tokenizer.model_max_length} {json.dumps(tokenizer.special_tokens_map, sort_keys=True, default=str)}"
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        yield json.dumps(tokenizer.get_vocab(), sort_keys=True)
        return
    described = json.loads(backend.to_str())
    # Each call sets these anew.
    yield json.dumps({name: value for name, value in described.items() if name not in ("truncation", "padding")})
