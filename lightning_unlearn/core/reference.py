"""Reference model: the starting weights or their likelihoods, without a second model in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.modules.dropout import _DropoutNd

from lightning_unlearn.core.batch_norm import has_batch_statistics
from lightning_unlearn.core.batches import named_tensors, row_fingerprint, rows_in
from lightning_unlearn.core.checks import one_of
from lightning_unlearn.core.distributed import full_tensor, load_full_tensor, local_tensor
from lightning_unlearn.core.lightning import (
    FINETUNING,
    PRUNING,
    LightningModule,
    MisconfigurationException,
    Trainer,
    rank_zero_warn,
)
from lightning_unlearn.core.modes import evaluating, kept_buffers, without_gradients
from lightning_unlearn.core.reading import Reading, read
from lightning_unlearn.core.resume import ResumableCallback, callbacks_of
from lightning_unlearn.core.rows import RunRows, row_loader
from lightning_unlearn.core.scores import Batch, Predictions, PredictionScore, Score, score_function
from lightning_unlearn.core.transfer import own_transfer_hooks

__all__ = [
    "CachedReference",
    "Needs",
    "Reference",
    "ReferenceCallback",
    "SnapshotReference",
    "exchange",
    "exchanged",
    "reshard",
]

Reference = Literal["auto", "cache", "snapshot"]

_CACHED_ANSWERS = 16  # about as often as a run visits a row; not its epochs, since a resumed run may have other ones
_REFERENCE_DRIFT = 1e-2  # nats; padding and kernels move a likelihood by less, dropout by much more


class SnapshotReference:
    """The starting values of all weights that train, exchanged with the live ones while the reference runs.

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
        reshard(module)
        tensors = _named_tensors(module)
        gone = self.values.keys() - tensors.keys()
        if gone:
            raise MisconfigurationException(
                f"{len(gone)} weights of the original model, such as {min(gone)!r}, have other names in the module by "
                "now, as torch.nn.utils.prune and parametrizations give them in the midst of a run. Change the module "
                "before fit, or use reference='cache', which needs no starting weights."
            )
        with exchanged(module, self.values, tensors), evaluating(module):
            yield

    def follow(self, module: nn.Module) -> None:
        """Take in the weights that train only now, such as layers that a schedule thaws: they have not moved yet."""
        if self._own is not None:
            return
        for name, parameter in module.named_parameters():
            if parameter.requires_grad and name not in self.values:
                self.values[name] = parameter.detach().clone()

    def state_dict(self) -> dict[str, Tensor]:
        """The whole starting values on the CPU. Collective where they are sharded."""
        return {name: full_tensor(value) for name, value in self.values.items()}

    def load_state_dict(self, state: dict[str, Tensor], module: nn.Module, thaws: bool = False) -> None:
        """Take over starting values saved by `state_dict`.

        Args:
            state: The values.
            module: The module, with its weights of now.
            thaws: Whether a schedule thaws layers, so that there may be values of layers that are frozen now.

        Raises:
            ValueError: If they belong to other weights.
        """
        tensors = dict(module.named_parameters()) | dict(module.named_buffers())
        for name in (state.keys() & tensors.keys()) - self.values.keys() if thaws else ():
            self.values[name] = tensors[name].detach().clone()
        if state.keys() != self.values.keys():
            odd = sorted(state.keys() ^ self.values.keys())
            raise ValueError(
                f"The checkpoint's reference weights don't fit this module: {len(odd)} names differ, such as "
                f"{odd[0]!r}. Resume with the module, and the frozen layers, that the run was started with."
            )
        for name, value in state.items():
            load_full_tensor(self.values[name], value)


@torch.no_grad()
def exchange(module: nn.Module, values: dict[str, Tensor], tensors: Mapping[str, Tensor] | None = None) -> None:
    """Exchange the module's weights with stored ones of the same names; a second call puts them back.

    Args:
        module: The module.
        values: The stored values.
        tensors: The weights and buffers of the module, where the caller has them; to list them takes time.
    """
    reshard(module)
    tensors = _named_tensors(module) if tensors is None else tensors
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
def exchanged(
    module: nn.Module, values: dict[str, Tensor], tensors: Mapping[str, Tensor] | None = None
) -> Iterator[None]:
    """Run with other weights of the same names, then put the module's own back; arguments are those of `exchange`."""
    if tensors is None:
        reshard(module)
        tensors = _named_tensors(module)
    exchange(module, values, tensors)
    try:
        yield
    finally:
        exchange(module, values, tensors)


def reshard(module: nn.Module) -> None:
    """Release gathered weights before shards change: FSDP2 keeps those of the root and would reuse them."""
    if not (dist.is_available() and dist.is_initialized()):
        return
    for child in module.modules():
        if isinstance(child, FSDPModule):
            child.reshard()


def _named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """All weights and buffers by name, in one walk through the module."""
    return {
        f"{path}.{name}" if path else name: tensor
        for path, child in module.named_modules()
        for tensors in (child._parameters, child._buffers)
        for name, tensor in tensors.items()
        if tensor is not None
    }


def _movable(module: nn.Module) -> dict[str, Tensor]:
    parameters = {k: p for k, p in module.named_parameters() if p.requires_grad}
    return parameters | dict(module.named_buffers())


class CachedReference:
    """One value per row of a role, computed by the original model in a single pass and looked up by ``index``.

    Each value is kept with a fingerprint of its row. A row whose content changes later (augmentation, another tokenizer
    or ``max_length``, edited data) then raises an error in place of giving a wrong reference.

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
            raise ValueError(f"The run has no {self.role} rows to read before training. Use reference='snapshot'.")
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
                "on. Keep the data, refusals, tokenizer, prompt format (with the date in it) and max_length fixed over "
                "a run and its resumption, or use reference='snapshot' where rows change (augmentation)."
            )
        return self.value[at]

    def state_dict(self) -> dict[str, Tensor]:
        """The cache on the CPU."""
        return {name: getattr(self, name).cpu() for name in ("index", "fingerprint", "value")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a cache saved by `state_dict`."""
        self.index, self.fingerprint, self.value = state["index"], state["fingerprint"], state["value"]


@dataclass(frozen=True)
class Needs:
    """What an objective needs from the training batches and the original model.

    Args:
        roles: Rows that every training batch must have.
        per_example: Whether the loss is non-linear in each row's likelihood, so that one value per batch is not enough.
        logits: Whether it reads the logits of the forget rows.
        reference_nll: Roles whose likelihoods it compares with those of the original model.
        reference_logits: Roles on whose rows it runs the original model at each step.
        snapshot: Whether it needs the starting weights for anything else.
    """

    roles: tuple[str, ...] = ("forget", "retain")
    per_example: bool = False
    logits: bool = False
    reference_nll: tuple[str, ...] = ()
    reference_logits: tuple[str, ...] = ()
    snapshot: bool = False


class ReferenceCallback(ResumableCallback):
    """A callback that reads the module and its original model.

    Args:
        score: Reads the per-example negative log-likelihood off the module.
        reference: Where an objective needs the original model: ``"cache"``, ``"snapshot"`` or ``"auto"``.
    """

    needs = Needs()
    """What the objective reads; a constructor may refine it."""

    private: tuple[str, ...] = ("snapshot", "caches")

    def __init__(self, score: Score, reference: Reference = "auto") -> None:
        self.score = score_function(score)
        self.reference = one_of("reference", reference, Reference)
        self.caches: dict[str, CachedReference] = {}
        self.snapshot: SnapshotReference | None = None
        self._joinable = True

    def read(self, module: LightningModule, batches: Sequence[Batch], logits: bool = False) -> list[Reading]:
        """Read several roles off the module, in one forward pass wherever their rows can be joined.

        Args:
            module: The user's module.
            batches: Rows of each role.
            logits: Whether to return the predictions too; needs a `PredictionScore`.

        Returns:
            A reading for each role.
        """
        return read(self.likelihood, module, batches, logits, self._joinable)

    @property
    def likelihood(self) -> Score:
        """The score, checked to give one value a row where the objective needs that."""
        return self.score if isinstance(self.score, PredictionScore) else self._checked_score

    def _checked_score(self, module: LightningModule, batch: Batch) -> Tensor:
        nll = self.score(module, batch)
        sizes = {len(tensor) for _, tensor in named_tensors(batch)}  # of nodes and edges, too, in a batch of graphs
        if nll.dim() != 1 or (self.needs.per_example and len(sizes) == 1 and len(nll) not in sizes):
            raise ValueError(
                f"score returned shape {tuple(nll.shape)} for {rows_in(batch)} rows; {type(self).__name__} needs "
                "one negative log-likelihood a row, shape (B,)."
            )
        return nll

    def reference_nll(self, module: LightningModule, rows: Mapping[str, Batch]) -> dict[str, Tensor]:
        """Likelihoods of rows under the original model, by role, each of shape ``(B,)`` and without gradient."""
        if self.caches:
            return {role: self.caches[role](batch) for role, batch in rows.items()}
        assert self.snapshot is not None
        with self.snapshot.active(module):
            readings = self.read(module, list(rows.values()))
        return {role: reading.nll for role, reading in zip(rows, readings, strict=True)}

    def reference_predictions(self, module: LightningModule, batch: Batch) -> Predictions:
        """Logits of the original model at the supervised positions of a batch, without gradient."""
        assert self.snapshot is not None
        assert isinstance(self.score, PredictionScore)
        with self.snapshot.active(module):
            return self.score.predictions(module, batch)

    # ---- internals ---------------------------------------------------------------------------------------------

    def _make_reference(self, trainer: Trainer, module: LightningModule) -> None:
        needs = self.needs
        if needs.reference_nll and self._cacheable(trainer):
            self.caches = {role: CachedReference(role) for role in needs.reference_nll}
            for cache in self.caches.values():
                cache.build(trainer, module, self.likelihood)
        if needs.snapshot or needs.reference_logits or (needs.reference_nll and not self.caches):
            if callbacks_of(trainer, PRUNING):
                raise MisconfigurationException(
                    f"ModelPruning renames weights in the midst of the run, so {type(self).__name__} could not put its "
                    "starting weights in any more. Use reference='cache' and rows with an 'index' where the method "
                    "has it, or prune in a run of its own."
                )
            self.snapshot = SnapshotReference(module)

    def _restore_reference(self, state: dict[str, Any], module: LightningModule) -> None:
        if state["method"] != type(self).__name__:
            raise MisconfigurationException(
                f"The checkpoint is of a run with {state['method']}, not {type(self).__name__}. Resume with the same "
                "method, or load the weights and start a new run without ckpt_path."
            )
        for role, values in state["caches"].items():
            self.caches[role] = CachedReference(role)
            self.caches[role].load_state_dict(values)
        if state["snapshot"] is not None:
            self.snapshot = SnapshotReference(module)
            self.snapshot.load_state_dict(
                state["snapshot"], module, thaws=bool(callbacks_of(module.trainer, FINETUNING))
            )
        needs = self.needs
        uncached = not self.caches.keys() >= set(needs.reference_nll)
        if self.snapshot is None and (needs.snapshot or needs.reference_logits or uncached):
            raise MisconfigurationException(
                f"The checkpoint holds no reference model, but {type(self).__name__} needs one as it is set now. "
                "Resume with the settings that the run was started with."
            )

    def _cacheable(self, trainer: Trainer) -> bool:
        if self.reference == "snapshot":
            return False
        if self.reference == "auto" and own_transfer_hooks(trainer, trainer.lightning_module):
            return False  # they may augment, or normalize over the batch: a row differs from one visit to the next
        loaders = {role: row_loader(trainer.train_dataloader, role) for role in self.needs.reference_nll}
        for role, loader in loaders.items():
            if self.reference == "auto" and (loader is None or loader.streamed):
                return False  # a stream may be long, and is not read twice unasked
            rows = next(iter(loader), None) if loader is not None else None
            if isinstance(rows, Mapping) and "index" in rows:
                continue
            if self.reference == "cache":
                raise ValueError(
                    f"reference='cache' looks values up by row, but the {role} rows have no 'index'. Let the dataset "
                    "return dicts with a stable integer 'index', as ForgetRetainDataModule does, or use "
                    "reference='snapshot'."
                )
            return False
        if self.reference == "cache":
            return True
        sizes = {role: loader.count for role, loader in loaders.items() if loader is not None}
        return max(sizes.values()) <= _CACHED_ANSWERS * sizes["forget"]

    def _check_drift(self, module: LightningModule, rows: Mapping[str, Batch]) -> None:
        reference = self.reference_nll(module, rows)
        with without_gradients(), kept_buffers(module):
            readings = self.read(module, list(rows.values()))
        pairs = zip(readings, reference.values(), strict=True)
        drift = torch.cat([reading.nll - start for reading, start in pairs]).abs().mean().item()
        if drift > _REFERENCE_DRIFT:
            rank_zero_warn(
                f"Before the first update, {' and '.join(rows)} likelihoods differ from the reference by {drift:.3g} "
                "nats, so the objective starts from an offset. The reference is read in evaluation mode. "
                + _cause(module)
            )


def _cause(module: nn.Module) -> str:
    """Why a module gives other likelihoods in training mode, and what to do."""
    training = [child for child in module.modules() if child.training]
    causes = []
    if any(isinstance(child, _DropoutNd) and child.p > 0 for child in training):
        causes.append("The module has dropout: switch it off for unlearning (p=0).")
    if any(has_batch_statistics(child) and list(child.buffers(recurse=False)) for child in training):
        causes.append(
            "It has batch normalization, which in training takes the statistics of the batch in place of the running "
            "ones: set these layers to evaluation, as in module.eval() before fit."
        )
    if causes:
        return " ".join(causes)
    return (
        "It has neither dropout nor batch normalization, so look for what else is random or changes in training mode, "
        "such as augmentation in the module or in its dataset, or noise in forward."
    )
