"""Forward method of a module, averaged over noise on its input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from lightning_unlearn.core.distributed import Replica
from lightning_unlearn.core.lightning import rank_zero_warn
from lightning_unlearn.reconstruction.noisy_argument import named, noisy_argument
from lightning_unlearn.smoothing.gaussian import GaussianSmoother

__all__ = ["Draws", "SmoothedForward"]

_HALF = (torch.bfloat16, torch.float16)
_LEAST_SHARE = 0.5
_IMAGE_KERNEL = 4  # dimensions of the weight of a convolution over images


class Draws:
    """Selector of the noise of the next call, from the batch and the index of the call within it.

    Calls that begin with the same global random state get the same noise, as those of any other random function do: a
    checkpointed call that runs a second time in the backward pass, for which ``torch.utils.checkpoint`` restores the
    state, or an attack that seeds the generator before each evaluation.

    Args:
        replica: Determines which rows of the global batch this process has.
        shared: Whether all calls of a batch get the same noise.
    """

    def __init__(self, replica: Replica | None = None, shared: bool = False) -> None:
        self.active = replica is not None
        self.used: set[int] = set()
        """The loops in which the denoiser was called."""
        self.replica, self.shared = replica or Replica(0, 1), shared
        self.warned: set[str] = set()
        self._batch: tuple[int, ...] = ()
        self._calls: dict[int, int] = {}

    def begin(self, *batch: int) -> None:
        """Begin a batch, whose first number is that of the loop."""
        self._batch, self._calls = batch, {}

    @torch.compiler.disable
    def call(self) -> None:
        """Note that the denoiser was called."""
        self.used.update(self._batch[:1])

    @torch.compiler.disable
    def key(self) -> tuple[int, ...]:
        """The key of the current call.

        Raises:
            RuntimeError: If the call is made in a backward pass and can't be matched to the call that it repeats.
        """
        if self.shared:
            return self._batch
        mark = int(torch.randint(1 << 62, ()))
        if torch._C._current_graph_task_id() != -1 and mark not in self._calls:
            raise RuntimeError(
                "SmoothDenoiser: the denoiser is computed again in the backward pass, with another random state than "
                "it had, so that it would get other noise. Checkpoint with preserve_rng_state=True, or give all calls "
                "the same noise, shared=True."
            )
        return (*self._batch, self._calls.setdefault(mark, len(self._calls)))

    def rows(self, count: int) -> Tensor:
        """Indices of the rows in the batch of all processes, as distributed by a DistributedSampler."""
        return self.replica.rank + self.replica.total * torch.arange(count)

    def __deepcopy__(self, memo: dict[int, Any]) -> Draws:
        return self


class SmoothedForward:
    """A forward method that returns its mean over noise on its input.

    A deep copy belongs to the copied module. When pickled, it becomes the plain method.

    Args:
        forward: The method.
        smoother: Draws the noise.
        draws: Selects the noise.
        parameters: Names of the method's parameters; the first tensor in their order gets the noise.
        argument: Name of the one that gets it instead.
    """

    def __init__(
        self,
        forward: Callable[..., Any],
        smoother: GaussianSmoother,
        draws: Draws,
        parameters: Sequence[str] = (),
        argument: str | None = None,
    ) -> None:
        self.forward, self.smoother, self.draws = forward, smoother, draws
        self.parameters, self.argument = parameters, argument

    @torch.compiler.disable(recursive=False)  # random draws must not become constants of a graph
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The mean over samples, which go through the method in one batch."""
        self.draws.call()
        if not self.draws.active or not self.smoother.sigma:
            return self.forward(*args, **kwargs)
        place, x = noisy_argument(self.parameters, args, kwargs, self.argument)
        results: list[tuple[list[Any], Any]] = []

        def samples(noisy: Tensor) -> Tensor:
            self._check_rounding(x, noisy)
            if x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
                noisy = noisy.contiguous(memory_format=torch.channels_last)
            rest = {k: _repeated(v, len(x), self.smoother.n_samples) for k, v in named(args, kwargs) if k != place}
            rest[place] = noisy
            try:
                output = self.forward(*(rest[i] for i in range(len(args))), **{name: rest[name] for name in kwargs})
            except Exception as error:
                if hasattr(error, "add_note"):  # Python 3.11
                    error.add_note(
                        f"SmoothDenoiser called the part with all samples in one batch, {tuple(noisy.shape)} in place "
                        f"of {tuple(x.shape)}: the first dimension has to be that of rows. Call a part that takes one "
                        "image with image[None], or name a part that takes batches."
                    )
                raise
            leaves, tree = tree_flatten(output)
            results.append((leaves, tree))
            return _only_tensor(leaves, output, len(noisy))

        mean = self.smoother(samples, x, self.draws.key(), self.draws.rows(len(x)))
        ((leaves, tree),) = results
        self._check_rows(x, mean)
        return tree_unflatten([mean if isinstance(leaf, Tensor) else leaf for leaf in leaves], tree)

    @torch.compiler.disable
    def _check_rounding(self, x: Tensor, noisy: Tensor) -> None:
        """In the first call, warn where low precision rounds most of the noise away."""
        kind, device = x.dtype, x.device.type
        if kind == torch.float32 and torch.is_autocast_enabled(device):
            kind = torch.get_autocast_dtype(device)
        if "rounding" in self.draws.warned or kind not in _HALF:
            return
        self.draws.warned.add("rounding")
        moved = noisy.detach().to(kind).float().unflatten(0, (-1, len(x))) - x.detach().to(kind).float()
        share = moved.square().mean().sqrt().item() / self.smoother.sigma
        if share < _LEAST_SHARE:
            rank_zero_warn(
                f"SmoothDenoiser: the noise that the denoiser sees is {share:.1%} of sigma={self.smoother.sigma}: the "
                f"rest is lost to the rounding of {kind} images. Use precision='32-true', or a larger sigma."
            )

    @torch.compiler.disable
    def _check_rows(self, x: Tensor, mean: Tensor) -> None:
        """In the first call, warn where a single image without a batch dimension would be taken for a batch."""
        part = getattr(self.forward, "__self__", None)
        if "rows" in self.draws.warned or x.dim() != 2 or x.shape != mean.shape or not isinstance(part, nn.Module):
            return
        self.draws.warned.add("rows")
        if any(parameter.dim() >= _IMAGE_KERNEL for parameter in part.parameters()):
            rank_zero_warn(
                f"SmoothDenoiser takes the input of shape {tuple(x.shape)} for {len(x)} rows of {x.shape[1]} numbers, "
                f"but {type(part).__name__} has convolutions over images. If this is a single image, its samples were "
                "joined to one tall image: call the part with image[None], or name a part that takes batches."
            )

    def __deepcopy__(self, memo: dict[int, Any]) -> SmoothedForward:
        copied = deepcopy(self.forward, memo)
        return SmoothedForward(copied, self.smoother, self.draws, self.parameters, self.argument)

    def __reduce__(self) -> tuple[Any, ...]:
        # Names of the standard library alone: a file must be readable where this package is not installed.
        owner = getattr(self.forward, "__self__", None)
        return (partial, (self.forward,)) if owner is None else (getattr, (owner, self.forward.__name__))


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
