"""Gradients with respect to weights: summed over the rows of a run, or one for each row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.func import functional_call, grad, vmap

from lightning_unlearn.core.batches import map_tensors, row_count, rows_at
from lightning_unlearn.core.distributed import local_tensor, sum_over_ranks, world_size
from lightning_unlearn.core.lightning import LightningModule, MisconfigurationException, Trainer
from lightning_unlearn.core.modes import undisturbed
from lightning_unlearn.core.reading import likelihood
from lightning_unlearn.core.rows import RunRows
from lightning_unlearn.core.scores import Batch, Score

__all__ = ["refuse_reentrant_checkpoints", "row_gradient", "rows_of", "sample_gradients", "weight_gradients"]


def row_gradient(
    trainer: Trainer,
    module: LightningModule,
    parameters: Mapping[str, Tensor],
    score: Score,
    rows: RunRows,
    mean: Literal["tokens", "rows"] = "tokens",
) -> dict[str, Tensor]:
    r"""Gradient of the NLL of all rows, in evaluation mode, the same on every process.

    Args:
        trainer: The trainer.
        module: The user's module.
        parameters: What to take gradients of, by name.
        score: Reads likelihoods off the module.
        rows: The rows.
        mean: ``"tokens"``: of the mean over all supervised tokens of all rows (over rows, where the score does not
            tell tokens), which does not depend on the batch size; ``"rows"``: of the sum over rows of each row's
            mean per token, divided by the number of batches that the run accumulates.

    Returns:
        By name the part that this process holds, in fp32.

    Raises:
        FloatingPointError: If a gradient is not finite.
        MisconfigurationException: Under tensor parallelism.
    """
    if rows.replica.total != world_size():
        raise MisconfigurationException(
            "Gradients of rows are summed over processes, which under tensor parallelism read the same rows. Use "
            "ModelParallelStrategy(tensor_parallel_size=1)."
        )
    total = {name: torch.zeros_like(local_tensor(p), dtype=torch.float32) for name, p in parameters.items()}
    length = torch.zeros((), device=module.device, dtype=torch.float64)
    # Without its gradient scaler, fp16 would lose small gradients.
    scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
    with undisturbed(module), torch.enable_grad():
        for batch, counted in rows:
            with nullcontext() if scaled else trainer.precision_plugin.forward_context():
                nll, lengths = likelihood(score, module, batch)
            loss = (nll / lengths.clamp(min=1) if mean == "rows" else nll).sum()
            (loss if counted else 0 * loss).backward()
            length += lengths.sum() if counted else 0
            for name, parameter in parameters.items():
                # Added to a buffer of our own: what .grad points to is reused by DDP and by optimizers.
                if parameter.grad is not None:
                    total[name] += local_tensor(parameter.grad)
            module.zero_grad(set_to_none=True)
    sum_over_ranks(length)
    scale = 1 / trainer.accumulate_grad_batches if mean == "rows" else 1 / max(length.item(), 1.0)
    for name, parameter in parameters.items():
        if isinstance(parameter, DTensor):
            total[name] *= rows.replica.total  # FSDP2 has averaged it over processes
        else:
            sum_over_ranks(total[name])  # a backward pass outside of DDP's forward is not reduced
        total[name] *= scale
        if not bool(total[name].isfinite().all()):
            raise FloatingPointError(
                f"{rows.description}: the gradient with respect to {name} is not finite. "
                "Check the model on these rows, or train with precision='bf16-mixed' or '32-true'."
            )
    return total


def sample_gradients(
    value: Callable[[LightningModule, Batch], Tensor], module: LightningModule, names: Iterable[str], batch: Batch
) -> dict[str, Tensor]:
    """Gradients of a per-row value for each row of a batch, in one vectorized pass.

    Args:
        value: ``(module, batch of one row) -> scalar``. Operations whose shape depends on values, such as choosing
            supervised tokens, can't be vectorized.
        module: In evaluation mode.
        names: Parameters to differentiate by.
        batch: Tensors have the rows in dimension 0.

    Returns:
        For each name, a tensor of shape ``(B, *parameter.shape)``.
    """
    parameters = dict(module.named_parameters())
    weights = {f"module.{name}": parameters[name].detach() for name in names}
    reader = _Reader(value, module)

    leaves: list[Tensor] = []
    map_tensors(batch, leaves.append)

    def of_row(weights: dict[str, Tensor], row: list[Tensor]) -> Tensor:
        parts = iter(row)  # not the batch itself: vmap takes no dataclass, and no mapping but a dict
        return functional_call(reader, weights, (map_tensors(batch, lambda _: next(parts).unsqueeze(0)),))

    gradients = vmap(grad(of_row), in_dims=(None, 0))(weights, leaves)
    return {name.removeprefix("module."): g for name, g in gradients.items()}


def weight_gradients(
    loss: Tensor, parameters: Sequence[Tensor], *, retain_graph: bool | None = None, create_graph: bool = False
) -> list[Tensor]:
    """Gradients of a loss with respect to weights, without ``.grad``; zeros where it does not depend on one.

    Args:
        loss: A scalar.
        parameters: The weights.
        retain_graph: As in ``torch.autograd.grad``.
        create_graph: As in ``torch.autograd.grad``, for a second derivative.

    Raises:
        MisconfigurationException: If layers are checkpointed in the reentrant way: ``autograd.grad`` takes their
            weights for unused.
    """
    found = torch.autograd.grad(
        loss, list(parameters), retain_graph=retain_graph, create_graph=create_graph, allow_unused=True
    )
    if any(gradient is None for gradient in found):
        refuse_reentrant_checkpoints(loss)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters, strict=True)]


def refuse_reentrant_checkpoints(loss: Tensor) -> None:
    """Refuse a loss of which ``autograd.grad`` finds no gradient of some weights, if layers are checkpointed.

    Raises:
        MisconfigurationException: If they are checkpointed in the reentrant way.
    """
    if _is_checkpointed(loss):
        raise MisconfigurationException(
            "The module checkpoints activations in the reentrant way, by which the gradients of the weights inside "
            "would be taken for 0 here. Call torch.utils.checkpoint.checkpoint(..., use_reentrant=False), or switch "
            "checkpointing off."
        )


def _is_checkpointed(loss: Tensor) -> bool:
    """Whether the graph of a loss has a reentrant checkpoint."""
    waiting, seen = [loss.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name() == "CheckpointFunctionBackward":
            return True
        waiting += [parent for parent, _ in node.next_functions]
    return False


def rows_of(batch: Batch, size: int) -> Iterator[Batch]:
    """Split a batch into parts with a maximum number of rows."""
    for start in range(0, row_count(batch), size):
        part = rows_at(batch, slice(start, start + size))
        if part is None:
            raise TypeError(
                f"A {type(batch).__name__} is to be read in parts, but its tensors have not one row for each example."
            )
        yield part


class _Reader(nn.Module):
    """Wraps a function of a module as a module, so that ``functional_call`` can replace its weights."""

    def __init__(self, value: Callable[[LightningModule, Batch], Tensor], module: LightningModule) -> None:
        super().__init__()
        self.value, self.module = value, module

    def forward(self, row: Batch) -> Tensor:
        return self.value(self.module, row)
