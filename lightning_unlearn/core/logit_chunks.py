"""Logits at chosen positions, computed in chunks so that the full tensor never exists."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from lightning_unlearn.core.scores import head_only_at, logits_of, output_head

__all__ = ["ChunkedLogits", "Places"]

Places = tuple[Tensor, Tensor]
"""Rows and columns of positions, each of shape ``(P,)``; columns may count from the end."""

Read = Callable[[Tensor, slice], None]
"""Takes the logits ``(n, V)`` of some of the positions, and which ones they are."""

_CHUNK = {"cpu": 1 << 22}  # logits at a time
_CHUNK_ELSEWHERE = 1 << 25  # fewer would read the weights of the output layer too often
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}  # of one product and a row of another, in their largest value
_TOLERANCE_HALF = 0.02


class ChunkedLogits:
    """Reads logits of a causal language model at some positions, chunk by chunk.

    If the model names its output layer, as Hugging Face models do, its hidden states are kept, and the output layer
    with any soft cap or scale after it runs once for each chunk of positions. For any other module, or one that changes
    the logits of such a model, the returned logits are read in chunks.

    Args:
        module: The model, or a module around it.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._in_chunks = True

    def __call__(self, run: Callable[[], Any], places: Places, read: Read) -> None:
        """Run the model once, and read.

        Args:
            run: Runs it, and returns logits ``(B, T, V)`` or an object with ``.logits``.
            places: The positions to read, at least one.
            read: Called with each chunk; what it is given last for a position counts.
        """
        if self._in_chunks and (tail := _Tail.of(self.module)) is not None:
            with tail.attached(places, read):
                logits = logits_of(run())
            if not tail.done:
                _read_returned(logits, places, read)
            self._in_chunks = not tail.done or tail.agrees(logits)
            if self._in_chunks:
                return
        with head_only_at(self.module, *places):
            logits = logits_of(run())
        _read_returned(logits, places, read)


def _read_returned(logits: Tensor, places: Places, read: Read) -> None:
    rows, columns = (part.to(logits.device) for part in places)
    size = _positions(logits.shape[-1], logits.device)
    for start in range(0, len(rows), size):
        part = slice(start, min(start + size, len(rows)))
        read(logits[part] if logits.dim() == 2 else logits[rows[part], columns[part]], part)


def _positions(vocabulary: int, device: torch.device) -> int:
    return max(1, _CHUNK.get(device.type, _CHUNK_ELSEWHERE) // vocabulary)


class _Tail:
    """What a model does after its decoder, run for one chunk of hidden states after another.

    It runs inside the forward pass, in a hook of the output layer, where sharded weights are gathered. The model's
    ``forward`` is called again for each chunk, with the recorded outputs of all other parts.

    Args:
        owner: The module whose ``forward`` calls the output layer.
        head: The output layer.
        parts: The other modules that it calls.
    """

    def __init__(self, owner: nn.Module, head: nn.Module, parts: list[nn.Module]) -> None:
        self.owner, self.head, self.parts = owner, head, parts
        self.outputs: dict[nn.Module, Any] = {}
        self.arguments: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        self.chunk: Tensor | None = None
        self.first: Tensor | None = None
        self.done = self.repeated = False

    @classmethod
    def of(cls, module: nn.Module) -> _Tail | None:
        """The tail of a model that tells its output layer, where it can run alone."""
        head = output_head(module)
        if head is None:
            return None
        owners = [child for child in module.modules() if _head_of(child) is head]
        owner = owners[-1]
        parts = [child for child in owner.children() if all(part is not head for part in child.modules())]
        if any(isinstance(part, FSDPModule) for part in (head, *parts)):
            return None  # each call would gather weights, and processes have different numbers of chunks
        return cls(owner, head, parts)

    @contextmanager
    def attached(self, places: Places, read: Read) -> Iterator[None]:
        """Let the next forward pass read chunks."""

        def keep_arguments(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self.arguments is None:
                self.arguments = args, kwargs

        def keep_output(part: nn.Module, _: Any, output: Any) -> None:
            if self.chunk is None:
                self.repeated |= part in self.outputs
                self.outputs[part] = output

        def enter_head(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Any, ...]:
            if self.chunk is not None:
                return (self.chunk, *args[1:])
            rows, columns = (part.to(args[0].device) for part in places)
            hidden = args[0][rows, columns]
            if not self._can_run_alone():
                return (hidden, *args[1:])
            self._read(hidden, read)
            return (hidden[None, :1], *args[1:])

        handles = [
            self.owner.register_forward_pre_hook(keep_arguments, with_kwargs=True),
            *(part.register_forward_hook(keep_output) for part in self.parts),
            self.head.register_forward_pre_hook(enter_head),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self.outputs, self.arguments, self.chunk = {}, None, None

    def agrees(self, returned: Tensor) -> bool:
        """Whether the module returns what its model does, and does not change the logits afterwards."""
        if self.first is None or returned.shape[-1] != self.first.shape[-1]:
            return False
        a, b = returned.reshape(-1, returned.shape[-1])[0].float(), self.first.float()
        finite = a.isfinite() & b.isfinite()
        scale = b[finite].abs().max().clamp(min=1.0) if finite.any() else b.new_ones(())
        tolerance = _TOLERANCE.get(returned.dtype, _TOLERANCE_HALF)
        return bool(torch.equal(a.isfinite(), b.isfinite()) and ((a - b)[finite].abs() <= tolerance * scale).all())

    def _can_run_alone(self) -> bool:
        """Whether all that has weights is in parts that have run, each once."""
        complete = all(part in self.outputs for part in self.parts if any(True for _ in part.parameters()))
        return self.arguments is not None and not self.repeated and complete

    def _read(self, hidden: Tensor, read: Read) -> None:
        assert self.arguments is not None
        weight = getattr(self.head, "weight", None)
        size = _positions(
            getattr(self.head, "out_features", len(weight) if weight is not None else 1 << 17), hidden.device
        )
        args, kwargs = self.arguments
        # Under FSDP2 the hooks of a call would gather the weights anew.
        call = self.owner.forward if isinstance(self.owner, FSDPModule) else self.owner
        with self._parts_kept():
            for start in range(0, len(hidden), size):
                self.chunk = hidden[None, start : start + size]
                logits = logits_of(call(*args, **kwargs))
                logits = logits.reshape(-1, logits.shape[-1])
                if start == 0:
                    self.first = logits[0].clone()
                read(logits, slice(start, min(start + size, len(hidden))))
        self.chunk, self.done = None, True

    @contextmanager
    def _parts_kept(self) -> Iterator[None]:
        """Let the parts return what they did."""
        with ExitStack() as stack:
            for part, output in self.outputs.items():
                stack.enter_context(_returning(part, output))
            yield


@contextmanager
def _returning(part: nn.Module, output: Any) -> Iterator[None]:
    own = vars(part).get("forward")
    part.forward = lambda *_, **__: output
    try:
        yield
    finally:
        del part.forward
        if own is not None:
            part.forward = own


def _head_of(module: nn.Module) -> Any:
    get_head = getattr(module, "get_output_embeddings", None)
    return get_head() if callable(get_head) else None
