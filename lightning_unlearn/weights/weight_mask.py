"""Base class of weight masks, which freeze all but the chosen weights."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from lightning_unlearn.core.callback import objective_score
from lightning_unlearn.core.checks import between, one_of, regex, strategy
from lightning_unlearn.core.distributed import rank, sum_over_ranks
from lightning_unlearn.core.lightning import (
    PRUNING,
    LightningModule,
    MisconfigurationException,
    Trainer,
    rank_zero_warn,
)
from lightning_unlearn.core.monitor import log_table
from lightning_unlearn.core.resume import ResumableCallback, callbacks_of
from lightning_unlearn.core.scores import Score, score_function
from lightning_unlearn.functional.saliency.bits import pack_mask, unpack_mask
from lightning_unlearn.functional.saliency.threshold import top_mask, top_threshold
from lightning_unlearn.weights.density import DensityRow, density_rows, layer_of
from lightning_unlearn.weights.frozen_weights import FrozenWeights
from lightning_unlearn.weights.layout import counts, local_part, parameter_names, place_of, whole_mask
from lightning_unlearn.weights.mask_file import read_mask_file, write_mask_file

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

__all__ = ["Scope", "WeightMask"]

_COLUMNS = [*DensityRow._fields, "density"]
Scope = Literal["global", "per_layer", "per_tensor"]


class WeightMask(ResumableCallback, ABC):
    r"""Base class of weight masks: lets a share of the weights move, and keeps all others bit-identical.

    Works beside an objective, with its module, optimizer and strategy (one device, DDP, FSDP2). Before each update it
    zeroes the gradients of frozen weights, so that clipping sees only live ones; after each update it restores frozen
    weights. They stay whatever the optimizer does: weight decay, momentum, or steps that mix coordinates (Muon,
    Shampoo) move live weights only. The mask is made once, before the first step, from the original model; a resumed
    run takes it from its checkpoint, where it costs one bit a weight.

    In memory it costs one byte a weight, and a copy of each parameter that has frozen weights.

    A subclass supplies `scores`; the weights with the highest may move.

    Args:
        density: Share of weights that may move, in [0, 1]: of $d$ weights it is exactly $\lfloor density\, d \rfloor$.
        scope: Where scores compete: ``"global"``: among all weights; ``"per_layer"``: within each numbered layer, and
            among the weights outside of these; ``"per_tensor"``: within each parameter.
        parameters: Regular expression; only trainable parameters whose name it is found in are scored and may move.
            The density is of these; every other one is frozen. ``r"mlp\."`` leaves attention alone. Where whole layers
            are to stay, ``LitCausalLM(trainable=...)`` costs less memory.
        mask_file: A file that `save_mask` wrote, by a callback with the same settings: no weight is scored then.
        score: Reads likelihoods off the module; by default that of the run's objective.

    Raises:
        ValueError: If a number is out of range or ``parameters`` is no regular expression.
        MisconfigurationException: On an unsupported strategy, a second mask, or a checkpoint without this mask.

    Example:
        A mask that lets biases move first.

        >>> class SmallTensorsFirst(WeightMask):
        ...     def scores(self, trainer, module, parameters):
        ...         return {name: torch.full(p.shape, 1 / p.numel()) for name, p in parameters.items()}
        >>> SmallTensorsFirst(density=0.1).density
        0.1
    """

    own_settings: ClassVar[tuple[str, ...]] = ()
    """Names of a subclass's attributes that its mask depends on."""

    def __init__(
        self,
        density: float,
        scope: Scope = "global",
        parameters: str | None = None,
        mask_file: str | None = None,
        score: Score | None = None,
    ) -> None:
        if score is not None:
            score_function(score)
        regex("parameters", parameters or "")
        self.density = between("density", density, 0, 1, "it is the share of weights that may move")
        self.scope, self.parameters = one_of("scope", scope, Scope), parameters
        self.mask_file, self.score = mask_file, score
        self.masks: dict[str, Tensor] = {}
        """By parameter name the part of the mask that this process holds; ``True`` may move."""
        self._parameters: dict[str, nn.Parameter] = {}
        self._frozen = FrozenWeights()
        self._trained: Collection[str] = ()
        self._hooks: list[RemovableHandle] = []

    @abstractmethod
    def scores(
        self, trainer: Trainer, module: LightningModule, parameters: dict[str, nn.Parameter]
    ) -> dict[str, Tensor]:
        """Score the weights; the highest may move.

        Args:
            trainer: The trainer, with its strategy and training data.
            module: The user's module, with the weights before unlearning. It must be left as it is.
            parameters: The parameters in scope. Sharded ones are DTensors.

        Returns:
            By name non-negative fp32 scores of the part that this process holds (``local_tensor(parameter)``).
        """

    def eligible(self, module: LightningModule, parameters: dict[str, nn.Parameter]) -> dict[str, nn.Parameter]:
        """Those of the parameters in scope that the method can score; all others are frozen."""
        return parameters

    def build(
        self, trainer: Trainer, module: LightningModule, parameters: dict[str, nn.Parameter]
    ) -> dict[str, Tensor]:
        """Make the mask: by name the part that this process holds, boolean."""
        scores = self.scores(trainer, module, parameters)
        masks = {}
        for names in self._groups(list(parameters)):
            places, offset = {}, 0
            for name in names:
                places[name] = place_of(parameters[name], offset)
                offset += parameters[name].numel()
            mine = [name for name in names if counts(parameters[name])]
            cutoff = top_threshold(
                [scores[name] for name in mine],
                int(self.density * offset),
                [places[name] for name in mine],
                lambda histogram: sum_over_ranks(histogram, module.device),
            )
            for name in names:
                masks[name] = top_mask(scores.pop(name), cutoff, places[name])
        return masks

    def likelihood(self, trainer: Trainer) -> Score:
        """The score that gradients are taken of: the mask's own, or else the objective's.

        Raises:
            MisconfigurationException: If the run has neither.
        """
        return self.score or objective_score(type(self).__name__, trainer)

    def density_table(self) -> list[DensityRow]:
        """How many weights may move, by layer and kind of weight. Collective; call it after training has started."""
        return density_rows(self._counted())

    def save_mask(self, path: str | Path) -> None:
        """Write the mask to a safetensors file. Collective; call it after training has started.

        Args:
            path: The file, for ``mask_file`` of another run or for `load_mask`.
        """
        if not self.masks:
            raise RuntimeError("There is no mask yet: it is made when training starts. Call save_mask after that.")
        masks = self._whole()
        if rank() == 0:
            write_mask_file(path, masks, self._settings())

    # ---- Lightning hooks ---------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the run."""
        if stage == "fit":
            self._check(trainer, pl_module)
            self.go_on(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make or restore the mask: the first hook that comes after the checkpoint for every strategy."""
        everything = parameter_names(pl_module)
        inside = {name: p for name, p in everything.items() if re.search(self.parameters or "", name)}
        self._parameters = self.eligible(pl_module, inside)
        if not self._parameters:
            raise MisconfigurationException(
                f"{type(self).__name__} has no weights to choose from: parameters={self.parameters!r} fits none that "
                f"it can score. Trainable parameters look like {next(iter(everything), 'none at all')!r}."
            )
        super().on_train_start(trainer, pl_module)
        counted = self._counted()
        self._frozen = FrozenWeights(everything, self.masks, counted)
        self._trained = everything.keys()
        self._keep_averages(trainer)
        for optimizer in trainer.optimizers:
            if trainer.global_step == 0:
                self._frozen.clear_state(optimizer)
            self._hooks.append(optimizer.register_step_post_hook(lambda *_: self._frozen.restore()))
        live, total = (sum(column) for column in zip(*counted.values(), strict=True))
        rows = density_rows(counted)
        for logger in trainer.loggers:
            logger.log_metrics({"mask/density": live / max(1, total)}, step=trainer.global_step)
            if trainer.is_global_zero:
                log_table(logger, "mask/by_layer", _COLUMNS, [row.cells for row in rows], trainer.global_step)

    def begin(self, trainer: Trainer, module: LightningModule) -> None:
        """Read the mask of ``mask_file``, or make one."""
        if self.mask_file is not None:
            masks, settings = read_mask_file(self.mask_file)
            self.masks = self._fitted(settings, masks, f"The mask file {self.mask_file}")
        else:
            self.masks = self.build(trainer, module, self._parameters)

    def restore(self, state: dict[str, Any], trainer: Trainer, module: LightningModule) -> None:
        """Take over the mask of the checkpoint."""
        self.masks = self._fitted(state["settings"], _unpacked(state), "The checkpoint")

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Clear the gradients of frozen weights, after accumulation and before clipping."""
        self._refuse_thawed(pl_module)
        self._frozen.clear_gradients()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save frozen weights as they were, even if something other than an update has moved them."""
        self._frozen.restore_saved(checkpoint.get("state_dict", {}))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore frozen weights that something other than an update has moved, and release their values."""
        moved = self._frozen.moved()
        if moved:
            self._frozen.restore()
            rank_zero_warn(
                f"{type(self).__name__} froze weights that were moved other than by an update, such as those of "
                f"{moved[0]!r}; they are restored now, and are right in checkpoints. A hook that writes to weights "
                "does that, and so does an optimizer with two copies of the weights (schedule-free, in "
                "optimizer.eval()). Between updates the model ran with the moved weights."
            )
        self._release()
        super().on_fit_end(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Let go of the optimizers, so that the module can be trained after a crash."""
        self._release()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let go of the optimizers."""
        self._release()

    # ---- state -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The whole mask, one bit a weight. Collective where weights are sharded."""
        if not self.masks:
            return {}
        whole = self._whole()
        return {
            "settings": self._settings(),
            "shapes": {name: list(mask.shape) for name, mask in whole.items()},
            "masks": {name: pack_mask(mask) for name, mask in whole.items()},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until ``on_train_start``; that of a run that ended before its mask was made is empty."""
        super().load_state_dict(state_dict)
        self._state = self._state or None

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuse to resume a run that had no such mask.

        Raises:
            MisconfigurationException: If the checkpoint has no state for this callback.
        """
        super().on_load_checkpoint(trainer, pl_module, checkpoint)
        why = "weights that the mask would freeze have moved"
        self.refuse_runs_without_it(trainer, pl_module, checkpoint, why)

    # ---- internals ---------------------------------------------------------------------------------------------

    def _check(self, trainer: Trainer, module: LightningModule) -> None:
        name = type(self).__name__
        masks = [type(callback).__name__ for callback in callbacks_of(trainer, WeightMask)]
        if len(masks) > 1:
            raise MisconfigurationException(f"A run has one mask, but got {masks}. Keep one of them.")
        strategy(name, trainer)
        if callbacks_of(trainer, PRUNING):
            raise MisconfigurationException(
                f"ModelPruning sets weights to zero that {name} keeps as they are. Prune the module in a run of its "
                "own, before or after unlearning, or leave the mask out."
            )
        for path, child in module.named_modules():
            if isinstance(child, (nn.Embedding, nn.EmbeddingBag)) and child.sparse:
                raise MisconfigurationException(
                    f"{name} can't mask the sparse gradients of {path}. Make the embedding with sparse=False."
                )

    def _refuse_thawed(self, module: LightningModule) -> None:
        thawed = [name for name in parameter_names(module) if name not in self._trained]
        if thawed:
            raise MisconfigurationException(
                f"{len(thawed)} weights, such as {thawed[0]!r}, train only since {type(self).__name__} made its mask, "
                "which freezes all that is not in it. Unfreeze them before fit, or leave the mask out."
            )

    def _keep_averages(self, trainer: Trainer) -> None:
        """Let averages of the weights hold frozen ones bit for bit: an average of equal values rounds."""
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            average = getattr(callback, "_average_model", None)
            update = getattr(average, "update_parameters", None)
            if not callable(update):
                continue
            averaged = dict(average.module.named_parameters())  # type: ignore[union-attr]

            def update_parameters(model: nn.Module, update: Any = update, averaged: Any = averaged) -> None:
                update(model)
                self._frozen.restore(averaged)

            average.update_parameters = update_parameters  # type: ignore[union-attr]

    def _settings(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in self.own_settings}
        return {
            "method": type(self).__name__,
            "density": self.density,
            "scope": self.scope,
            "parameters": self.parameters,
            **own,
        }

    def _fitted(self, settings: dict[str, Any], masks: dict[str, Tensor], where: str) -> dict[str, Tensor]:
        if settings != self._settings():
            raise MisconfigurationException(
                f"{where} holds a mask made with {settings}, but this run asks for {self._settings()}. Use the "
                "settings that it was made with."
            )
        shapes = {name: tuple(p.shape) for name, p in self._parameters.items()}
        odd = {name for name, mask in masks.items() if shapes.get(name) != tuple(mask.shape)} | shapes.keys() ^ masks
        if odd:
            raise MisconfigurationException(
                f"{where} holds a mask of another module: {len(odd)} parameters differ in name or shape, such as "
                f"{min(odd)!r}. Use the module, and the frozen layers, that it was made with."
            )
        return {name: local_part(p, masks[name]) for name, p in self._parameters.items()}

    def _groups(self, names: list[str]) -> list[list[str]]:
        groups: dict[Any, list[str]] = {}
        for name in names:
            key = {"global": "", "per_layer": layer_of(name)[:2], "per_tensor": name}[self.scope]
            groups.setdefault(key, []).append(name)
        return list(groups.values())

    def _counted(self) -> dict[str, tuple[int, int]]:
        live = torch.tensor(
            [int(self.masks[name].sum()) if counts(p) else 0 for name, p in self._parameters.items()],
            device=next(iter(self.masks.values())).device,
        )
        sum_over_ranks(live)
        return {
            name: (count, p.numel()) for count, (name, p) in zip(live.tolist(), self._parameters.items(), strict=True)
        }

    def _whole(self) -> dict[str, Tensor]:
        return {name: whole_mask(self._parameters[name], mask) for name, mask in self.masks.items()}

    def _release(self) -> None:
        while self._hooks:
            self._hooks.pop().remove()
        self._frozen = FrozenWeights()


def _unpacked(state: dict[str, Any]) -> dict[str, Tensor]:
    return {name: unpack_mask(packed, tuple(state["shapes"][name])) for name, packed in state["masks"].items()}
