"""Context managers that run a module in another mode and then restore its state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from lightning_unlearn.core.lightning import LightningModule, isolate_rng

__all__ = [
    "differentiable",
    "evaluating",
    "evaluation_mode",
    "frozen",
    "kept_attributes",
    "kept_buffers",
    "undisturbed",
    "without_gradients",
]


@contextmanager
def without_gradients() -> Iterator[None]:
    """Run without gradients inside a training step.

    Autocast caches the casts of weights. Casts made here carry no gradient and may come from other weights, so the
    cache is cleared before the training forward pass can use them.
    """
    torch.clear_autocast_cache()
    try:
        with torch.no_grad():
            yield
    finally:
        torch.clear_autocast_cache()


@contextmanager
def evaluation_mode(*modules: nn.Module) -> Iterator[None]:
    """Run with every submodule in evaluation mode, then restore each submodule's own mode."""
    children = [child for module in modules for child in module.modules()]
    training = [child for child in children if child.training]
    try:
        if all(type(child).train is nn.Module.train and type(child).eval is nn.Module.eval for child in children):
            _set_training(training, False)
        else:
            for module in modules:
                module.eval()
        yield
    finally:
        _set_training(training, True)


def _set_training(modules: list[nn.Module], mode: bool) -> None:
    """What ``train(mode)`` does to each of them, without the checks of ``nn.Module.__setattr__``."""
    for module in modules:
        if "training" in vars(module):
            vars(module)["training"] = mode
        else:  # a ScriptModule
            module.training = mode


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Run in evaluation mode and without gradients."""
    with evaluation_mode(module), without_gradients():
        yield


@contextmanager
def kept_buffers(module: nn.Module) -> Iterator[None]:
    """Restore all buffers, such as running statistics, also those that the body replaces by other tensors."""
    kept = [
        (child, name, buffer, None if buffer is None else buffer.detach().clone())
        for child in module.modules()
        for name, buffer in child._buffers.items()
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for child, name, buffer, value in kept:
                if buffer is not None and value is not None:
                    buffer.copy_(value)
                if getattr(child, name) is not buffer:
                    setattr(child, name, buffer)


@contextmanager
def kept_attributes(module: nn.Module) -> Iterator[None]:
    """Restore attributes that the body changes, including the states of metrics."""
    attributes = [(child.__dict__, dict(child.__dict__)) for child in module.modules()]
    values = [value for _, before in attributes for value in before.values()]
    plain = [value for value in values if isinstance(value, Tensor) and not value.requires_grad]
    tensors = [(value, value._version, value.clone()) for value in plain]
    lists = [(value, list(value)) for value in values if isinstance(value, list)]
    dicts = [(value, dict(value)) for value in values if isinstance(value, dict)]
    try:
        yield
    finally:
        for current, before in attributes:
            current.clear()
            current.update(before)
        for tensor, version, copy in tensors:
            if tensor._version != version:  # a graph may hold the others, as weights of a loss
                tensor.copy_(copy)
        for items, listed in lists:
            items[:] = listed
        for mapping, entries in dicts:
            mapping.clear()
            mapping.update(entries)


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Run with weights that require no gradient, which saves the memory of their gradients."""
    trained = [p for module in modules for p in module.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


@contextmanager
def differentiable(*modules: nn.Module) -> Iterator[None]:
    """Let gradients flow to a model's input, also inside Lightning's validation and test.

    In the body the modules are in evaluation mode and frozen. Weights do not change; modes, ``requires_grad`` flags and
    the global random state are restored after it.

    Args:
        modules: The models that are run.
    """
    with ExitStack() as stack:
        for context in (isolate_rng(), torch.inference_mode(False), torch.enable_grad()):
            stack.enter_context(context)
        stack.enter_context(evaluation_mode(*modules))
        stack.enter_context(frozen(*modules))
        yield


@contextmanager
def undisturbed(module: LightningModule, drops_gradients: bool = True) -> Iterator[None]:
    """Run in evaluation mode, then restore modes, buffers and random state, and drop gradients and logged values."""
    buffers = {name: buffer.detach().clone() for name, buffer in module.named_buffers()}
    log = module.__dict__.get("log")
    # training_step_loss calls the user's training_step, whose metrics don't belong to the run.
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    try:
        with isolate_rng(), evaluating(module):
            yield
    finally:
        del module.log
        if log is not None:
            module.log = log  # type: ignore[method-assign]
        if drops_gradients:
            module.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, buffer in module.named_buffers():
                buffer.copy_(buffers[name])
