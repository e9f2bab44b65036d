"""Gradients of the likelihood of the run's own rows, without leaving a trace in the run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.distributed.tensor import DTensor
from tqdm import tqdm

from lightning_unlearn.core.distributed import local_tensor, rank, world_size
from lightning_unlearn.core.pairing import row_loader
from lightning_unlearn.core.reference import evaluating
from lightning_unlearn.core.scores import Score, likelihood_and_length
from lightning_unlearn.weights.layout import sum_over_ranks

__all__ = ["RowShare", "likelihood_gradient", "undisturbed"]


class RowShare:
    """The rows of a role, in the batches that this process reads.

    Every process makes the same number of passes, as sharded ones are collective; those it has too many count 0.

    Args:
        trainer: The trainer, with its training data.
        role: ``"forget"`` or ``"retain"``.
        rows: At most so many rows, drawn without replacement; ``None`` takes all.
        seed: Seed of the draw.

    Raises:
        MisconfigurationException: If there are no such rows, they can't be read one by one, or under tensor
            parallelism.
    """

    def __init__(self, trainer: Trainer, role: str, rows: int | None = None, seed: int = 0) -> None:
        self.trainer, self.role = trainer, role
        loader = row_loader(trainer.train_dataloader, role)
        chunks = [list(chunk) for chunk in loader.batch_sampler] if loader is not None else []  # type: ignore[union-attr]
        if not chunks:
            raise MisconfigurationException(
                f"The mask is scored on the {role} rows, but they can't be read one by one here. Train on a dict of "
                "loaders, {'forget': ..., 'retain': ...}, over map-style datasets that are not empty, or on a "
                "ForgetRetainDataModule."
            )
        chosen = [i for chunk in chunks for i in chunk]
        if rows is not None and rows < len(chosen):
            order = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(seed))[:rows]
            chosen = [chosen[i] for i in order.sort().values.tolist()]
        self.count, size = len(chosen), len(chunks[0])
        """Number of rows on all processes."""
        chunks = [chosen[i : i + size] for i in range(0, len(chosen), size)]
        share = getattr(trainer.strategy, "distributed_sampler_kwargs", None) or {"num_replicas": 1, "rank": 0}
        self.replicas = share["num_replicas"]
        if self.replicas != world_size():
            raise MisconfigurationException(
                "Rows can't be scored under tensor parallelism, where several processes read the same ones. Use "
                "ModelParallelStrategy(tensor_parallel_size=1)."
            )
        turns = [i * self.replicas + share["rank"] for i in range(-(-len(chunks) // self.replicas))]
        self.counted = [turn < len(chunks) for turn in turns]
        self.chunks = [chunks[min(turn, len(chunks) - 1)] for turn in turns]

    def __iter__(self) -> Iterator[tuple[Any, bool]]:
        """Batches on the device, and whether each one counts."""
        loader = row_loader(self.trainer.train_dataloader, self.role, chunks=self.chunks)
        assert loader is not None
        progress = tqdm(loader, desc=f"Scoring the weights ({self.role})", disable=rank() != 0, leave=False)
        for batch, counted in zip(progress, self.counted, strict=True):
            batch = self.trainer.strategy.batch_to_device(batch)
            yield self.trainer.precision_plugin.convert_input(batch), counted


@contextmanager
def undisturbed(module: LightningModule) -> Iterator[None]:
    """Run in evaluation mode, then put back training flags, buffers and random state, and drop gradients and logs."""
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
        module.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, buffer in module.named_buffers():
                buffer.copy_(buffers[name])


def likelihood_gradient(
    trainer: Trainer,
    module: LightningModule,
    parameters: Mapping[str, Tensor],
    score: Score,
    share: RowShare,
    mean: Literal["tokens", "released"] = "tokens",
) -> dict[str, Tensor]:
    r"""Gradient of the NLL of all rows, in evaluation mode, the same on every process.

    Args:
        trainer: The trainer.
        module: The user's module.
        parameters: What to take gradients of, by name.
        score: Reads likelihoods off the module.
        share: The rows.
        mean: ``"tokens"``: of the mean over all supervised tokens of all rows (over rows, where the score does not
            tell tokens), which does not depend on the batch size; ``"released"``: of the sum over rows of each row's
            mean per token, divided by the number of batches that the run accumulates.

    Returns:
        By name the part that this process holds, in fp32.

    Raises:
        FloatingPointError: If a gradient is not finite.
    """
    total = {name: torch.zeros_like(local_tensor(p), dtype=torch.float32) for name, p in parameters.items()}
    length = torch.zeros((), device=module.device, dtype=torch.float64)
    # Without its gradient scaler, fp16 would lose small gradients.
    scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
    with undisturbed(module), torch.enable_grad():
        for batch, counted in share:
            with nullcontext() if scaled else trainer.precision_plugin.forward_context():
                nll, lengths = likelihood_and_length(score, module, batch)
            loss = (nll / lengths.clamp(min=1) if mean == "released" else nll).sum()
            (loss if counted else 0 * loss).backward()
            length += lengths.sum() if counted else 0
            for name, parameter in parameters.items():
                # Added to a buffer of our own: what .grad points to is reused by DDP and by optimizers.
                if parameter.grad is not None:
                    total[name] += local_tensor(parameter.grad)
            module.zero_grad(set_to_none=True)
    sum_over_ranks(length)
    scale = 1 / trainer.accumulate_grad_batches if mean == "released" else 1 / max(length.item(), 1.0)
    for name, parameter in parameters.items():
        if isinstance(parameter, DTensor):
            total[name] *= share.replicas  # FSDP2 has averaged it over processes
        else:
            sum_over_ranks(total[name])  # a backward pass outside of DDP's forward is not reduced
        total[name] *= scale
        if not bool(total[name].isfinite().all()):
            raise FloatingPointError(
                f"The gradient of the {share.role} rows with respect to {name} is not finite, so the weights can't be "
                "ranked. Check the model on these rows, or train with precision='bf16-mixed' or '32-true'."
            )
    return total
