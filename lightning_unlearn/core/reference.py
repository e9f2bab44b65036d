"""Reference model: the starting weights or their likelihoods, without a second model in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from lightning_unlearn.core.distributed import full_tensor, load_full_tensor, local_tensor
from lightning_unlearn.core.lightning import LightningModule, Trainer
from lightning_unlearn.core.modes import evaluating
from lightning_unlearn.core.rows import RunRows, row_loader
from lightning_unlearn.core.scores import Batch, Score
from lightning_unlearn.functional.random import mixed_bits

__all__ = ["CachedReference", "SnapshotReference", "exchange", "exchanged", "reshard", "row_fingerprint"]


class SnapshotReference:
    """The starting values of everything that can move, exchanged with the live values while the reference runs.

    Costs the memory of the trainable weights and the buffers once; nothing is copied on a step unless weights are
    sharded. A module that can produce its own reference, such as a LoRA model with its adapter disabled, gives it as
    a context manager ``reference_weights()`` and then nothing is stored.

    Args:
        module: The module as it is before unlearning.
    """

    def __init__(self, module: LightningModule) -> None:
        reshard(module)  # or the values would be those that a forward pass has gathered
        self._own = getattr(module, "reference_weights", lambda: None)()
        self.values = {} if self._own is not None else {k: v.detach().clone() for k, v in _movable(module).items()}

    @contextmanager
    def active(self, module: LightningModule) -> Iterator[None]:
        """Run the body with the starting weights, in evaluation mode and without gradients."""
        if self._own is not None:
            with module.reference_weights(), evaluating(module):  # type: ignore[operator]
                yield
            return
        with exchanged(module, self.values), evaluating(module):
            yield

    def state_dict(self) -> dict[str, Tensor]:
        """The whole starting values on the CPU. Collective where they are sharded."""
        return {name: full_tensor(value) for name, value in self.values.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over starting values saved by `state_dict`.

        Raises:
            ValueError: If they belong to other weights.
        """
        if state.keys() != self.values.keys():
            odd = sorted(state.keys() ^ self.values.keys())
            raise ValueError(
                f"The checkpoint's reference weights don't fit this module: {len(odd)} names differ, such as "
                f"{odd[0]!r}. Resume with the module, and the frozen layers, that the run was started with."
            )
        for name, value in state.items():
            load_full_tensor(self.values[name], value)


@torch.no_grad()
def exchange(module: nn.Module, values: dict[str, Tensor]) -> None:
    """Exchange the module's weights with stored ones of the same names; a second call puts them back."""
    reshard(module)
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    for name, stored in values.items():
        tensor = tensors[name]
        if isinstance(tensor, DTensor):  # FSDP2 keeps its own pointers to the shard, so the values have to move
            mine, theirs = local_tensor(tensor), local_tensor(stored)
            held = mine.clone()
            mine.copy_(theirs)
            theirs.copy_(held)
        else:
            tensor.data, stored.data = stored.data, tensor.data


@contextmanager
def exchanged(module: nn.Module, values: dict[str, Tensor]) -> Iterator[None]:
    """Run with other weights of the same names, then put the module's own back."""
    exchange(module, values)
    try:
        yield
    finally:
        exchange(module, values)


def reshard(module: nn.Module) -> None:
    """Let go of gathered weights before the shards change: FSDP2 keeps the root's, and would use them again."""
    for child in module.modules():
        if isinstance(child, FSDPModule):
            child.reshard()


def _movable(module: nn.Module) -> dict[str, Tensor]:
    parameters = {k: p for k, p in module.named_parameters() if p.requires_grad}
    return parameters | dict(module.named_buffers())


class CachedReference:
    """One number a row of a role, read off the starting model in a single pass and looked up by the row's ``index``.

    Each number is kept with a fingerprint of the row it was computed on, so a row whose content changes later
    (augmentation, another tokenizer or ``max_length``, edited data) is an error and not a wrong reference.

    Args:
        role: The rows that it holds, such as ``"forget"``.
    """

    def __init__(self, role: str) -> None:
        self.role = role
        self.index = torch.empty(0, dtype=torch.int64)
        self.fingerprint = torch.empty(0, dtype=torch.int64)
        self.value = torch.empty(0)

    def build(self, trainer: Trainer, module: LightningModule, score: Score) -> None:
        """Score every row of the role once; replicas share the work."""
        loader = row_loader(trainer.train_dataloader, self.role)
        if loader is None:
            raise ValueError("Rows can't be read one by one from an iterable dataset. Use reference='snapshot'.")
        rows = RunRows(trainer, loader, f"Reading the reference ({self.role})")
        with evaluating(module), trainer.precision_plugin.forward_context():
            read = [
                [t.cpu() for t in (batch["index"], row_fingerprint(batch), score(module, batch))] for batch, _ in rows
            ]
        index, fingerprint, value = (torch.cat(column) for column in zip(*rows.gather(read), strict=True))
        order = torch.argsort(index, stable=True)
        first = torch.ones(len(order), dtype=torch.bool)
        first[1:] = index[order][1:] != index[order][:-1]
        order = order[first]
        self.index, self.fingerprint, self.value = index[order], fingerprint[order], value[order]

    def __call__(self, batch: Batch) -> Tensor:
        """Reference values of the rows of a batch, shape ``(B,)``.

        Raises:
            ValueError: If a row is not in the cache, or is not what it was when the cache was made.
        """
        device = batch["index"].device
        if self.index.device != device:
            self.index, self.fingerprint = self.index.to(device), self.fingerprint.to(device)
            self.value = self.value.to(device)
        at = torch.searchsorted(self.index, batch["index"]).clamp(max=len(self.index) - 1)
        stale = (self.index[at] != batch["index"]) | (self.fingerprint[at] != row_fingerprint(batch))
        if stale.any():
            rows = batch["index"][stale].tolist()
            raise ValueError(
                f"The cached reference is stale: {self.role} rows with index {rows} are not the rows it was computed "
                "on. Keep the data, refusals, tokenizer and max_length fixed over a run and its resumption, or use "
                "reference='snapshot' where rows change (augmentation)."
            )
        return self.value[at]

    def state_dict(self) -> dict[str, Tensor]:
        """The cache on the CPU."""
        return {name: getattr(self, name).cpu() for name in ("index", "fingerprint", "value")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a cache saved by `state_dict`."""
        self.index, self.fingerprint, self.value = state["index"], state["fingerprint"], state["value"]


def row_fingerprint(batch: dict[str, Any]) -> Tensor:
    """A 64-bit fingerprint of each row's content that does not depend on padding or on the other rows.

    Args:
        batch: Tensors with the rows in dimension 0. Positions where ``attention_mask`` is 0 do not count.

    Returns:
        Shape ``(B,)``, int64.
    """
    mask = batch.get("attention_mask")
    total = torch.zeros_like(batch["index"], dtype=torch.int64)
    for salt, (name, tensor) in enumerate(sorted(_tensors(batch), key=itemgetter(0))):
        if name in ("index", "attention_mask"):
            continue
        values = _as_integers(tensor.reshape(len(total), -1))
        if mask is not None and values.shape == mask.shape:
            place = mask.long().cumsum(1) - 1
            values = (values + 1) * mask
        else:
            place = torch.arange(values.shape[1], device=values.device).expand_as(values)
        total = total + (values * (mixed_bits(place + (salt << 32)) | 1)).sum(1)
    return total


def _tensors(batch: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a nested batch that has rows, by its path."""
    items = batch.items() if isinstance(batch, Mapping) else enumerate(batch)
    for key, value in items:
        name = f"{prefix}{key}"
        if isinstance(value, Tensor):
            yield from [(name, value)] if value.dim() else []
        elif isinstance(value, (Mapping, list, tuple)):
            yield from _tensors(value, f"{name}.")


def _as_integers(values: Tensor) -> Tensor:
    if values.is_floating_point():
        # Bits, not values: sums of integers are exact in any order.
        return values.float().contiguous().view(torch.int32).long()
    return values.long()
