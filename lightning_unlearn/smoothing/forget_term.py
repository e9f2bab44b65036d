"""The forget term of one batch as a function of the weights."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lightning_unlearn.core.distributed import local_tensor, sum_over_ranks, world_size
from lightning_unlearn.core.layers import stripped
from lightning_unlearn.core.lightning import LightningModule, MisconfigurationException, Trainer
from lightning_unlearn.core.modes import kept_buffers
from lightning_unlearn.core.reference import reshard
from lightning_unlearn.core.smoothing import Term
from lightning_unlearn.smoothing.sharded import set_value

__all__ = ["Evaluation", "ForgetTerm", "Gradients"]

Gradients = list[Tensor | None]
"""One for each parameter of a `ForgetTerm`, in its order; ``None`` where the term does not depend on it."""


class Evaluation(NamedTuple):
    """The forget term at some weights.

    Args:
        value: The term with its weight, a scalar without graph.
        gradients: Its gradient. For weights that every process holds whole (DDP) it is over this process's rows, and
            the mean over processes is the gradient over all rows. For sharded weights (FSDP2) it is that mean already.
        parts: What the objective logs of it.
    """

    value: Tensor
    gradients: Gradients
    parts: dict[str, Tensor]


class ForgetTerm:
    """The forget term of one batch as a function of the weights.

    All evaluations draw the same random numbers, so that dropout has the same mask; afterwards the random state is that
    after one evaluation. Only the first evaluation at the live weights enters running statistics and the module's own
    logs. Gradients that training has accumulated stay.

    Args:
        trainer: Trainer of the run.
        module: The user's module.
        term: The objective's function.
    """

    def __init__(self, trainer: Trainer, module: LightningModule, term: Term) -> None:
        reshard(module)  # a forward pass leaves the root's weights gathered, in memory that is freed later
        named = {stripped(name): p for name, p in module.named_parameters() if p.requires_grad}
        self.module = module
        self.names: list[str] = list(named)
        """Of all weights that train; a tied one comes once."""
        self.parameters: list[nn.Parameter] = list(named.values())
        self.sharded = any(isinstance(parameter, DTensor) for parameter in self.parameters)
        self.update = trainer.global_step
        """The number of the update that this batch belongs to, the same for all batches that it accumulates."""
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        self._scale = 1.0 if scaler is None else float(scaler.get_scale())
        self._term = term
        self._random = _random_state(module.device)
        self._began = self._counted = self._moved = False

    # ---- evaluation --------------------------------------------------------------------------------------------

    def gradient(self) -> Evaluation:
        """Value and gradient at the current weights, from a forward and a backward pass. The gradient is a new tensor.

        Gradients pass through ``.grad``, the only place where the backward pass of sharded weights puts them.
        """
        with self._undisturbed(), self._own_gradients():
            parts = self._term()
            loss = parts["loss"]
            with torch.autocast(self.module.device.type, enabled=False):
                (loss * self._scale).backward()
            gradients: Gradients = [parameter.grad for parameter in self.parameters]
        if self._scale != 1.0:
            for gradient in gradients:
                if gradient is not None:
                    local_tensor(gradient).mul_(1 / self._scale)
        return Evaluation(loss.detach(), gradients, _detached(parts))

    @contextmanager
    def graph(self, values: Sequence[Tensor] | None = None) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """The term as a scalar with its graph, for use in the body, and its parts.

        For derivatives of any order by ``torch.autograd.grad``, which sharded weights do not allow.

        Args:
            values: Weights to take in place of ``parameters``, such as ``[p + 0.01 * v for p, v in ...]``: the graph
                leads through them. By default the parameters themselves.
        """
        if self.sharded:
            raise RuntimeError("The graph of sharded weights holds gathered ones: use gradient() at several weights.")
        replaced = _replaced(self.module, self.parameters, values or self.parameters)
        with self._undisturbed(moved=values is not None), replaced:
            parts = self._term()
            yield parts["loss"], _detached(parts)

    def gradient_of(self, value: Tensor) -> Gradients:
        """Gradient of a scalar computed from `graph`, inside its body.

        It makes a whole backward pass: ``autograd.grad`` would pass over the marks that functions without a second
        derivative (``once_differentiable``) leave in a graph, and give a wrong one.
        """
        with self._own_gradients():
            value.backward()
            return [parameter.grad for parameter in self.parameters]

    @contextmanager
    def at(self, values: Sequence[Tensor | None]) -> Iterator[None]:
        """Run the body with other weights, then put back the weights that were there, bit for bit.

        Nothing is copied unless weights are sharded: the parameters point to ``values``, whose memory is the caller's.

        Args:
            values: New values of ``parameters``, in their type; of a sharded one, those of the part that this process
                holds, or a DTensor. ``None`` leaves one as it is.
        """
        reshard(self.module)
        pairs = [(p, v.detach()) for p, v in zip(self.parameters, values, strict=True) if v is not None]
        own = [local_tensor(p).clone() if isinstance(p, DTensor) else p.data for p, _ in pairs]
        before, self._moved = self._moved, True
        try:
            for parameter, value in pairs:
                set_value(parameter, value)
            torch.clear_autocast_cache()  # it holds casts of the weights that were there
            yield
        finally:
            reshard(self.module)
            for (parameter, _), value in zip(pairs, own, strict=True):
                set_value(parameter, value)
            torch.clear_autocast_cache()
            self._moved = before

    def chosen(self, pattern: str | None) -> list[bool]:
        """Which parameters match a regular expression by name; all of them if it is ``None``.

        Raises:
            MisconfigurationException: If none has.
        """
        found = [re.search(pattern or "", name) is not None for name in self.names]
        if not any(found):
            raise MisconfigurationException(
                f"parameters={pattern!r} is found in the name of no weight that trains. Names look like "
                f"{self.names[0]!r}."
            )
        return found

    # ---- several processes -------------------------------------------------------------------------------------

    def average_(self, gradients: Gradients) -> None:
        """Replace gradients by their means over processes, in place; those of sharded weights are means already.

        A gradient that only other processes have is filled in.
        """
        if world_size() == 1 or self.sharded:
            return
        there = torch.tensor([float(gradient is not None) for gradient in gradients], device=self.module.device)
        sum_over_ranks(there)
        for place, (anywhere, parameter) in enumerate(zip(there.tolist(), self.parameters, strict=True)):
            if not anywhere:
                continue
            gradient = gradients[place]
            if gradient is None:
                gradient = gradients[place] = torch.zeros_like(parameter)
            dist.all_reduce(gradient)
            gradient /= world_size()

    # ---- internals ---------------------------------------------------------------------------------------------

    @contextmanager
    def _own_gradients(self) -> Iterator[None]:
        held = [(parameter, parameter.grad) for parameter in self.parameters]
        for parameter in self.parameters:
            parameter.grad = None
        try:
            yield
        finally:
            for parameter, gradient in held:
                parameter.grad = gradient

    @contextmanager
    def _undisturbed(self, moved: bool = False) -> Iterator[None]:
        """Draw the numbers of the first evaluation, and leave statistics and logs alone where this is a further one."""
        if self._began:
            _set_random_state(self.module.device, self._random)
        self._began = True
        with ExitStack() as stack, torch.enable_grad():
            if self._moved or moved or self._counted:
                stack.enter_context(_unchanged(self.module))
            else:
                self._counted = True
            yield


@contextmanager
def _replaced(module: nn.Module, parameters: Sequence[Tensor], values: Sequence[Tensor]) -> Iterator[None]:
    """Run the body with other tensors in place of parameters, tied ones included."""
    new = {id(parameter): value for parameter, value in zip(parameters, values, strict=True)}
    places = [
        (child, name, parameter)
        for child in module.modules()
        for name, parameter in child._parameters.items()
        if id(parameter) in new
    ]
    try:
        for child, name, parameter in places:
            child._parameters[name] = new[id(parameter)]  # type: ignore[assignment]
        torch.clear_autocast_cache()
        yield
    finally:
        for child, name, parameter in places:
            child._parameters[name] = parameter
        torch.clear_autocast_cache()


def _detached(parts: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in parts.items() if name != "loss"}


@contextmanager
def _unchanged(module: LightningModule) -> Iterator[None]:
    """Put buffers, such as running statistics, back after the body, and let the module log nothing in it."""
    log = vars(module).get("log")
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    try:
        with kept_buffers(module):
            yield
    finally:
        del module.log
        if log is not None:
            module.log = log  # type: ignore[method-assign]


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    own = None if device.type == "cpu" else torch.get_device_module(device).get_rng_state()
    return torch.get_rng_state(), own


def _set_random_state(device: torch.device, state: tuple[Tensor, Tensor | None]) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.get_device_module(device).set_rng_state(state[1])
