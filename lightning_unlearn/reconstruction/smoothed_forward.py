"""Forward method of a module, averaged over noise on its input."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from lightning_unlearn.core.distributed import Replica
from lightning_unlearn.smoothing.gaussian import GaussianSmoother

__all__ = ["Draws", "SmoothedForward"]


class Draws:
    """Selector of the noise of the next call, from the batch and the index of the call within it.

    A checkpointed call runs a second time in the backward pass and must get the same noise. It is identified by the
    global random state, which ``torch.utils.checkpoint`` restores for the second run.

    Args:
        replica: Determines which rows of the global batch this process has.
        shared: Whether all calls of a batch get the same noise.
    """

    def __init__(self, replica: Replica | None = None, shared: bool = False) -> None:
        self.active, self.used = replica is not None, False
        self.replica, self.shared = replica or Replica(0, 1), shared
        self._batch: tuple[int, ...] = ()
        self._calls: dict[int, int] = {}
        self._count = 0

    def begin(self, *batch: int) -> None:
        """Begin a batch."""
        self._batch, self._calls, self._count = batch, {}, 0

    def key(self) -> tuple[int, ...]:
        """The key of the current call.

        Raises:
            RuntimeError: If the call is made in a backward pass and can't be matched to the call that it repeats.
        """
        if self.shared:
            return self._batch
        mark = int(torch.randint(1 << 62, ()))
        if torch._C._current_graph_task_id() == -1:
            self._calls[mark] = self._count
            self._count += 1
        elif mark not in self._calls:
            raise RuntimeError(
                "SmoothDenoiser: the denoiser is computed again in the backward pass, with another random state than "
                "it had, so that it would get other noise. Checkpoint with preserve_rng_state=True, or give all calls "
                "the same noise, shared=True."
            )
        return (*self._batch, self._calls[mark])

    def rows(self, count: int) -> Tensor:
        """Indices of the rows in the batch of all processes, as distributed by a DistributedSampler."""
        return self.replica.rank + self.replica.total * torch.arange(count)

    def __deepcopy__(self, memo: dict[int, Any]) -> Draws:
        return self


class SmoothedForward:
    """A forward method that returns its mean over noise on its first tensor.

    A deep copy belongs to the copied module. When pickled, it becomes the plain method.

    Args:
        forward: The method.
        smoother: Draws the noise.
        draws: Selects the noise.
    """

    def __init__(self, forward: Callable[..., Any], smoother: GaussianSmoother, draws: Draws) -> None:
        self.forward, self.smoother, self.draws = forward, smoother, draws

    @torch.compiler.disable(recursive=False)  # random draws must not become constants of a graph
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The mean over samples, which go through the method in one batch."""
        self.draws.used = True
        if not self.draws.active or not self.smoother.sigma:
            return self.forward(*args, **kwargs)
        place, x = _first_tensor(args, kwargs)
        results: list[tuple[list[Any], Any]] = []

        def samples(noisy: Tensor) -> Tensor:
            if x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
                noisy = noisy.contiguous(memory_format=torch.channels_last)
            rest = {k: _repeated(v, len(x), self.smoother.n_samples) for k, v in _named(args, kwargs) if k != place}
            rest[place] = noisy
            output = self.forward(*(rest[i] for i in range(len(args))), **{name: rest[name] for name in kwargs})
            leaves, tree = tree_flatten(output)
            results.append((leaves, tree))
            return _only_tensor(leaves, output, len(noisy))

        mean = self.smoother(samples, x, self.draws.key(), self.draws.rows(len(x)))
        ((leaves, tree),) = results
        return tree_unflatten([mean if isinstance(leaf, Tensor) else leaf for leaf in leaves], tree)

    def __deepcopy__(self, memo: dict[int, Any]) -> SmoothedForward:
        return SmoothedForward(deepcopy(self.forward, memo), self.smoother, self.draws)

    def __reduce__(self) -> tuple[Any, ...]:
        return _same, (self.forward,)


def _same(forward: Callable[..., Any]) -> Callable[..., Any]:
    return forward


def _named(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[tuple[int | str, Any]]:
    return [*enumerate(args), *kwargs.items()]


def _first_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int | str, Tensor]:
    place, x = next(((k, v) for k, v in _named(args, kwargs) if isinstance(v, Tensor)), (0, None))
    if x is None:
        raise TypeError(
            f"SmoothDenoiser: a denoiser takes a tensor, but the part was called with {_kinds(_named(args, kwargs))}. "
            "Name the part that takes the image itself in module_path."
        )
    if not x.dim() or not (x.is_floating_point() or x.is_complex()):
        raise TypeError(
            "SmoothDenoiser: noise is added to a batch of real or complex images, but the first tensor that the part "
            f"was called with is {x.dtype} of shape {tuple(x.shape)}. Name another part in module_path."
        )
    return place, x


def _repeated(value: Any, rows: int, copies: int) -> Any:
    def repeat(leaf: Any) -> Any:
        batched = isinstance(leaf, Tensor) and leaf.dim() and len(leaf) == rows
        return leaf.repeat(copies, *[1] * (leaf.dim() - 1)) if batched else leaf

    return tree_map(repeat, value)


def _only_tensor(leaves: list[Any], output: Any, rows: int) -> Tensor:
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    if len(tensors) != 1:
        raise TypeError(
            f"SmoothDenoiser: a denoiser gives one tensor, but the part gives {type(output).__name__} with "
            f"{len(tensors)}, and which of them to average is not known. Name a part that gives the image alone in "
            "module_path."
        )
    if not tensors[0].dim() or len(tensors[0]) != rows:
        raise TypeError(
            f"SmoothDenoiser: the part was called with {rows} rows, samples times the batch, but gives a tensor of "
            f"shape {tuple(tensors[0].shape)}. A denoiser gives one image for each row; name another part in "
            "module_path."
        )
    return tensors[0]


def _kinds(named: list[tuple[int | str, Any]]) -> str:
    return ", ".join(type(value).__name__ for _, value in named) or "nothing"
