"""The mechanism that all objectives share. The only clever file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, ModelParallelStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader

from lightning_unlearn.core.distributed import all_true, local_tensor, mean_over_ranks
from lightning_unlearn.core.pairing import join, row_count, row_loader
from lightning_unlearn.core.reference import CachedReference, SnapshotReference, without_gradients
from lightning_unlearn.core.scores import Batch, Predictions, PredictionScore, Score, causal_lm_nll, training_step_loss

__all__ = ["Reading", "Reference", "UnlearnCallback", "is_unlearning_checkpoint"]

Reference = Literal["auto", "cache", "snapshot"]

_CHECKPOINT_KEY = "lightning_unlearn"
_MAKERS = {
    "idk": "LanguageDataModule with questions to forget",
    "alternate": "LanguageDataModule whose questions to forget have alternates (generate_alternates)",
}
_CACHED_ANSWERS = 16  # about as often as a run visits a row; not its epochs, since a resumed run may have other ones
_REFERENCE_DRIFT = 1e-2  # nats; padding and kernels move a likelihood by less, dropout by much more


class Reading(NamedTuple):
    """What an objective knows of the rows of one role.

    Args:
        nll: Negative log-likelihood of each row, summed over its supervised positions, shape ``(B,)``, fp32.
        length: Supervised positions of each row, shape ``(B,)``, fp32.
        predictions: The logits behind them, where they were asked for.
        reference_nll: The same likelihoods under the starting model, where the objective compares them.
        reference_logits: The logits of the starting model at the same positions, where the objective compares those.
    """

    nll: Tensor
    length: Tensor
    predictions: Predictions | None = None
    reference_nll: Tensor | None = None
    reference_logits: Tensor | None = None


class UnlearnCallback(Callback, ABC):
    """Makes any Lightning run unlearn: replaces ``training_step`` on the module instance while ``fit`` runs.

    The module's class, its checkpoint keys, hooks, optimizers, validation and logging stay what they are; its
    checkpoints load into its own class. A run has exactly one such callback; masks and monitors stack beside it.
    The training batch is a dict with the rows of each role, ``{"forget": ..., "retain": ...}``.

    A subclass supplies ``step``. Everything ``step`` returns is logged as ``unlearn/<name>``.

    Args:
        score: Reads the per-example negative log-likelihood off the module.
        reference: Where an objective needs the starting model: ``"cache"`` reads one likelihood a row before the
            first step and needs rows with a stable ``index``; ``"snapshot"`` keeps the starting values of the weights
            that train and exchanges them in; ``"auto"`` takes the cache where rows have an ``index``, unless there are
            more than 16 answers a forget row to read, as with a long list of refusals.

    Raises:
        MisconfigurationException: On manual optimization, an unsupported strategy, a second objective, or a run that
            made no update.
        FloatingPointError: If the loss or a gradient is not finite. The weights are then those of the last finite
            step, and are saved as ``last-finite.ckpt`` where checkpoints are enabled.
    """

    needs_reference: ClassVar[bool] = False
    """Whether the objective compares likelihoods with those of the starting model."""

    reference_roles: ClassVar[tuple[str, ...]] = ("forget",)
    """The roles whose likelihoods it compares, where it does: ``"forget"`` and what follows its rows."""

    per_example: ClassVar[bool] = False
    """Whether the objective is non-linear in the likelihood, so that a loss averaged over a batch won't do."""

    def __init__(self, score: Score = causal_lm_nll, reference: Reference = "auto") -> None:
        if not callable(score):
            raise TypeError(f"score must be a function (module, batch) -> NLL of shape (B,), but got {score!r}.")
        if reference not in ("auto", "cache", "snapshot"):
            raise ValueError(f"reference must be 'auto', 'cache' or 'snapshot', but got {reference!r}.")
        if self.per_example and score is training_step_loss:
            raise ValueError(
                f"{type(self).__name__} weighs each example by its own likelihood, but training_step_loss gives one "
                "number a batch. Use classifier_nll, causal_lm_nll or your own score, or take GradDiff."
            )
        self.score = score
        self.reference = reference
        self.caches: dict[str, CachedReference] = {}
        self.snapshot: SnapshotReference | None = None
        self._restored: dict[str, Any] | None = None
        self._steps = 0
        self._patch: Any = None
        self._shadowed: Any = None
        self._joinable = True

    @abstractmethod
    def step(self, module: LightningModule, batch: dict[str, Batch]) -> dict[str, Tensor]:
        """The loss of one training batch and its parts.

        Args:
            module: The user's module.
            batch: The rows of each role.

        Returns:
            ``{"loss": scalar, ...}``; the loss carries gradients.
        """

    def roles(self) -> tuple[str, ...]:
        """The keys that a training batch must have."""
        return ("forget", "retain")

    def reads_reference_logits(self) -> bool:
        """Whether the objective runs the starting model on training batches, which takes a snapshot."""
        return False

    # ---- what subclasses read with -----------------------------------------------------------------------------

    def row_loaders(self, trainer: Trainer) -> dict[str, DataLoader]:
        """For each role a loader of its rows, each once and in order, the same on every process.

        Raises:
            MisconfigurationException: If rows can't be read one by one.
        """
        loaders = {role: row_loader(trainer.train_dataloader, role) for role in self.roles()}
        found = {role: loader for role, loader in loaders.items() if loader is not None}
        missing = sorted(loaders.keys() - found.keys())
        if missing:
            raise MisconfigurationException(
                f"{type(self).__name__} reads the {missing} rows one by one, but the run has none, or they are of an "
                "iterable dataset. Pass trainer.fit(module, {'forget': ..., 'retain': ...}) with map-style datasets."
            )
        return found

    def read(self, module: LightningModule, batches: Sequence[Batch], logits: bool = False) -> list[Reading]:
        """Read several roles off the module, in one forward pass wherever their rows can be joined.

        Args:
            module: The user's module.
            batches: Rows of each role.
            logits: Whether to return the predictions too; needs a score made by ``from_predictions``.

        Returns:
            A reading for each role.
        """
        joinable = self._joinable and isinstance(self.score, PredictionScore) and len(batches) > 1
        joined = join(batches) if joinable else None
        if joined is None:
            return [self._read_one(module, batch, logits) for batch in batches]
        whole = self._read_one(module, joined, logits)
        sizes = [row_count(batch) for batch in batches]
        return [
            Reading(nll, length, predictions)
            for nll, length, predictions in zip(
                whole.nll.split(sizes), whole.length.split(sizes), _split(whole.predictions, sizes), strict=True
            )
        ]

    def _read_one(self, module: LightningModule, batch: Batch, logits: bool) -> Reading:
        if not isinstance(self.score, PredictionScore):
            nll = self._likelihood(module, batch)
            return Reading(nll, torch.ones_like(nll))
        predictions = self.score.predictions(module, batch)
        return Reading(predictions.nll(), predictions.length(), predictions if logits else None)

    def _likelihood(self, module: LightningModule, batch: Batch) -> Tensor:
        nll = self.score(module, batch)
        if nll.dim() != 1 or (self.per_example and len(nll) != row_count(batch)):
            raise ValueError(
                f"score returned shape {tuple(nll.shape)} for {row_count(batch)} rows; {type(self).__name__} needs "
                "one negative log-likelihood a row, shape (B,)."
            )
        return nll

    def reference_nll(self, module: LightningModule, rows: Mapping[str, Batch]) -> dict[str, Tensor]:
        """Likelihoods of rows under the starting model, by role, each of shape ``(B,)`` and without gradient."""
        if self.caches:
            return {role: self.caches[role](batch) for role, batch in rows.items()}
        assert self.snapshot is not None
        with self.snapshot.active(module):
            readings = self.read(module, list(rows.values()))
        return {role: reading.nll for role, reading in zip(rows, readings, strict=True)}

    def reference_predictions(self, module: LightningModule, batch: Batch) -> Predictions:
        """Logits of the starting model at the supervised positions of a batch, without gradient."""
        assert self.snapshot is not None
        assert isinstance(self.score, PredictionScore)
        with self.snapshot.active(module):
            return self.score.predictions(module, batch)

    @staticmethod
    def token_mean(values: Tensor, length: Tensor) -> Tensor:
        """Mean over the tokens of all processes: averaging this over ranks gives the mean of the joined batch."""
        return values.sum() / mean_over_ranks(length.sum())

    # ---- Lightning hooks ---------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the run and take over ``training_step``."""
        if stage != "fit":
            return
        self._check(trainer, pl_module)
        self._steps = 0

        # A plain function: copies of the module (EMA) keep it as it is. Made here and not earlier, as it can't be
        # pickled for processes that are spawned.
        def training_step(batch: dict[str, Batch], batch_idx: int) -> Tensor:
            return self._training_step(trainer, pl_module, batch, batch_idx)

        self._shadowed = pl_module.__dict__.get("training_step")
        self._patch = pl_module.training_step = training_step  # type: ignore[method-assign]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make or restore the reference: the first hook that comes after the checkpoint for every strategy."""
        self._joinable = not any(isinstance(child, _BatchNorm) for child in pl_module.modules())
        self._prepare_reference(trainer, pl_module)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Stop before a gradient that is not finite reaches the weights."""
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            return  # overflow is the gradient scaler's business: it skips the step and lowers its scale
        gradients = [local_tensor(p.grad) for p in pl_module.parameters() if p.grad is not None]
        if gradients and not all_true(torch.stack(torch._foreach_norm(gradients)).isfinite().all()):
            self._stop(trainer, "a gradient is not finite")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raise if nothing was unlearned."""
        if self._steps == 0 and trainer.global_step == 0:
            raise MisconfigurationException(
                f"{type(self).__name__} ran 0 updates: the module that went in is the module that came out. Check "
                "that the forget loader is not empty, that max_epochs, max_steps and limit_train_batches are not 0, "
                "and that nothing else replaces training_step."
            )

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give ``training_step`` back."""
        self._restore(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give ``training_step`` back, so that the module can be tested after a crash."""
        self._restore(pl_module)

    # ---- state -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The method's name and the reference."""
        return {
            "method": type(self).__name__,
            "caches": {role: cache.state_dict() for role, cache in self.caches.items()},
            "snapshot": self.snapshot.state_dict() if self.snapshot is not None else None,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until ``on_train_start``, when weights exist under every strategy."""
        self._restored = state_dict

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Mark the checkpoint as one of an unlearning run."""
        checkpoint[_CHECKPOINT_KEY] = {"method": type(self).__name__, "global_step": trainer.global_step}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuse to resume a run that was not unlearning with this method.

        Raises:
            MisconfigurationException: If the checkpoint has no state for this callback.
        """
        if trainer.state.fn != "fit" or self.state_key in checkpoint.get("callbacks", {}):
            return
        marker = checkpoint.get(_CHECKPOINT_KEY)
        was = f"of a run with {marker['method']}" if marker else "not of an unlearning run"
        raise MisconfigurationException(
            f"ckpt_path continues a run, but this checkpoint is {was}, so {type(self).__name__} has no state in it. "
            f"To start unlearning from its weights, load them first ({type(pl_module).__name__}.load_from_checkpoint) "
            "and call fit without ckpt_path."
        )

    # ---- internals ---------------------------------------------------------------------------------------------

    def _check(self, trainer: Trainer, module: LightningModule) -> None:
        name = type(self).__name__
        objectives = [type(c).__name__ for c in trainer.callbacks if isinstance(c, UnlearnCallback)]  # type: ignore[attr-defined]
        if len(objectives) > 1:
            raise MisconfigurationException(
                f"A run has one unlearning objective, but got {objectives}. Keep one of them; masks and monitors may "
                "stay beside it."
            )
        if not module.automatic_optimization:
            raise MisconfigurationException(
                f"{name} gives the Trainer a loss to step on, but {type(module).__name__} optimizes manually. Set "
                "automatic_optimization = True, or pass a module that leaves the step to Lightning."
            )
        supported = isinstance(trainer.strategy, (SingleDeviceStrategy, DDPStrategy, ModelParallelStrategy))
        if isinstance(trainer.strategy, DeepSpeedStrategy) or not supported:
            raise MisconfigurationException(
                f"{name} does not support {type(trainer.strategy).__name__}, which takes parameters apart in its own "
                "way. Use strategy='ddp', or ModelParallelStrategy(data_parallel_size=...) (FSDP2) for sharded weights."
            )
        if self.reads_reference_logits() and not isinstance(self.score, PredictionScore):
            raise MisconfigurationException(
                f"{name} compares logits with the starting model, but its score only gives likelihoods. "
                "Use classifier_nll or causal_lm_nll, or decorate a function that returns Predictions with "
                "from_predictions."
            )

    def _prepare_reference(self, trainer: Trainer, module: LightningModule) -> None:
        self.caches, self.snapshot = {}, None
        restored, self._restored = self._restored, None
        if restored is not None:
            # A reference made now would be the half-unlearned model.
            self._restore_reference(restored, module)
            return
        if self.needs_reference and self._cacheable(trainer):
            caches = {role: CachedReference(role) for role in self.reference_roles}
            for cache in caches.values():
                cache.build(trainer, module, self._likelihood)
            self.caches = caches
        if self.reads_reference_logits() or (self.needs_reference and not self.caches):
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
            self.snapshot.load_state_dict(state["snapshot"])
        if (self.reads_reference_logits() and self.snapshot is None) or (
            self.needs_reference and self.snapshot is None and not self.caches.keys() >= set(self.reference_roles)
        ):
            raise MisconfigurationException(
                f"The checkpoint holds no reference model, but {type(self).__name__} needs one as it is set now. "
                "Resume with the settings that the run was started with."
            )

    def _cacheable(self, trainer: Trainer) -> bool:
        if self.reference == "snapshot":
            return False
        loaders = {role: row_loader(trainer.train_dataloader, role) for role in self.reference_roles}
        for role, loader in loaders.items():
            rows = next(iter(loader), None) if loader is not None else None
            if isinstance(rows, dict) and "index" in rows:
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
        sizes = {role: len(loader.dataset) for role, loader in loaders.items() if loader is not None}  # type: ignore[arg-type]
        return max(sizes.values()) <= _CACHED_ANSWERS * sizes["forget"]

    def _training_step(
        self, trainer: Trainer, module: LightningModule, batch: dict[str, Batch], batch_idx: int
    ) -> Tensor:
        missing = [role for role in self.roles() if not isinstance(batch, dict) or batch.get(role) is None]
        if missing:
            got = sorted(map(str, batch)) if isinstance(batch, dict) else type(batch).__name__
            raise MisconfigurationException(
                f"{type(self).__name__} needs {missing} in every training batch, but got {got}. Pass "
                f"trainer.fit(module, {{{', '.join(f'{role!r}: ...' for role in self.roles())}}}) or a "
                f"{next((_MAKERS[role] for role in missing if role in _MAKERS), 'ForgetRetainDataModule')}."
            )
        if batch_idx % trainer.accumulate_grad_batches == 0 and not _watches_zero_grad(trainer, module):
            # Lightning drops the last gradients after the forward pass, which would need their memory.
            for optimizer in trainer.optimizers:
                optimizer.zero_grad()
        if self.needs_reference and self._steps == 0 and trainer.global_step == 0:
            self._check_drift(module, {role: batch[role] for role in self.reference_roles if role in self.roles()})
        parts = self.step(module, batch)
        loss = parts["loss"]
        if not all_true(loss.detach().isfinite()):
            values = ", ".join(f"{name}={value.item():.6g}" for name, value in parts.items())
            self._stop(trainer, f"the loss is not finite ({values})")
        self._steps += 1
        module.log_dict(
            {f"unlearn/{name}": value.detach() for name, value in parts.items()},
            prog_bar=True,
            batch_size=row_count(batch[self.roles()[0]]),
            sync_dist=trainer.world_size > 1,
        )
        return loss

    def _check_drift(self, module: LightningModule, rows: Mapping[str, Batch]) -> None:
        if not rows:
            return
        reference = self.reference_nll(module, rows)
        with without_gradients():
            readings = self.read(module, list(rows.values()))
        pairs = zip(readings, reference.values(), strict=True)
        drift = torch.cat([reading.nll - start for reading, start in pairs]).abs().mean().item()
        if drift > _REFERENCE_DRIFT:
            rank_zero_warn(
                f"Before the first update, {' and '.join(rows)} likelihoods differ from the reference by {drift:.3g} "
                "nats. The reference is read without dropout: switch dropout off for unlearning (module.eval() before "
                "fit, or p=0), or the objective starts from a random offset."
            )

    def _stop(self, trainer: Trainer, what: str) -> None:
        epoch, batch = trainer.current_epoch, trainer.fit_loop.epoch_loop.batch_idx
        saved = ""
        if trainer.checkpoint_callback is not None:
            folder = getattr(trainer.checkpoint_callback, "dirpath", None) or trainer.default_root_dir
            path = Path(folder) / "last-finite.ckpt"
            trainer.save_checkpoint(path)
            saved = f" and are saved in {path}"
        raise FloatingPointError(
            f"{type(self).__name__}: {what} at step {trainer.global_step} (epoch {epoch}, batch {batch}). The weights "
            f"are those of the last finite step{saved}. Lower the learning rate, set gradient_clip_val=1.0, or use a "
            "bounded objective (NPO, SimNPO)."
        )

    def _restore(self, module: LightningModule) -> None:
        if self._patch is None or module.__dict__.get("training_step") is not self._patch:
            return
        del module.training_step
        if self._shadowed is not None:
            module.training_step = self._shadowed  # type: ignore[method-assign]
        self._patch = self._shadowed = None


def _watches_zero_grad(trainer: Trainer, module: LightningModule) -> bool:
    """Whether someone's own hook may look at gradients until Lightning drops them."""
    hooks: list[tuple[type, object, str]] = [
        (LightningModule, module, name) for name in ("on_before_zero_grad", "optimizer_zero_grad")
    ]
    hooks += [(Callback, callback, "on_before_zero_grad") for callback in trainer.callbacks]  # type: ignore[attr-defined]
    return any(getattr(type(owner), name) is not getattr(parent, name) for parent, owner, name in hooks)


def _split(predictions: Predictions | None, sizes: list[int]) -> list[Predictions | None]:
    if predictions is None:
        return [None] * len(sizes)
    edges = torch.tensor(sizes, device=predictions.rows.device).cumsum(0)
    counts = torch.diff(torch.searchsorted(predictions.rows, edges), prepend=edges.new_zeros(1)).tolist()
    starts = [0, *edges.tolist()]
    return [
        Predictions(logits, labels, rows - start, size)
        for logits, labels, rows, start, size in zip(
            predictions.logits.split(counts),
            predictions.labels.split(counts),
            predictions.rows.split(counts),
            starts[:-1],
            sizes,
            strict=True,
        )
    ]


def is_unlearning_checkpoint(checkpoint: dict[str, Any]) -> bool:
    """Whether a checkpoint was written by a run with an unlearning callback."""
    return _CHECKPOINT_KEY in checkpoint
