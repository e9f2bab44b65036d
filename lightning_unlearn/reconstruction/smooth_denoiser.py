"""Randomised smoothing of a denoiser inside any LightningModule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from inspect import getattr_static
from typing import Any, Literal, get_args

from torch import Tensor, nn

from lightning_unlearn.core.checks import one_of
from lightning_unlearn.core.distributed import replica
from lightning_unlearn.core.layers import stripped
from lightning_unlearn.core.lightning import (
    Callback,
    LightningModule,
    MisconfigurationException,
    Trainer,
    rank_zero_warn,
)
from lightning_unlearn.core.transfer import Patches
from lightning_unlearn.reconstruction.noisy_argument import parameter_names
from lightning_unlearn.reconstruction.reconstructor import Reconstructor
from lightning_unlearn.reconstruction.smoothed import Smoothing
from lightning_unlearn.reconstruction.smoothed_forward import Draws, SmoothedForward
from lightning_unlearn.smoothing.gaussian import GaussianSmoother

__all__ = ["SmoothDenoiser", "Stage"]

Stage = Literal["fit", "validate", "test", "predict"]

_LOOPS = {"train": 0, "validate": 1, "test": 2, "predict": 3}


class SmoothDenoiser(Callback):
    r"""Replaces a part of a LightningModule, during a run, by its mean over Gaussian noise on its input.

    $$\bar D(x) = \frac1M \sum_{i=1}^M D(x + \eta_i), \qquad \eta_i \sim \mathcal{N}(0, \sigma^2 I)$$

    This turns an unrolled network into one of SMUG, which smooths the denoiser of each step, without a change to its
    code. All samples go through the denoiser in one batch, so layers with batch statistics see the samples of all rows.
    Only one argument gets noise: the first tensor in the order of the denoiser's signature, or the one named
    ``argument``. Its first dimension is the batch; other tensors with the same number of rows, such as time steps, are
    repeated with it, and all other arguments are passed unchanged. After the run, the module is as it was before; its
    checkpoints have the weights and names of the plain module throughout.

    The noise depends only on the seed, the batch, the index of the call within it, and the row: two processes draw the
    same as one, a resumed run the same as an uninterrupted one, and every validation has the same noise. Calls that
    begin with the same global random state, such as those of recomputed activations, have the same noise.

    Args:
        module_path: Dotted name of the denoiser in the LightningModule, such as ``"net.denoiser"``. With ``*`` it may
            match several, as in ``"net.prior.*.denoiser"`` or ``"net.denoisers.*"``; parts inside a part that matches
            are not smoothed again. A part with several names is smoothed whatever it is called by.
        sigma: Standard deviation $\sigma$ in units of the denoiser's input; with 0 nothing changes.
        n_samples: Number of samples $M$.
        antithetic: Whether samples come in pairs $\eta, -\eta$.
        shared: Whether all calls of a batch, such as the steps of an unrolled network, use the same noise.
        stages: Trainer stages in which the denoiser is smoothed.
        seed: Seed of the noise.
        argument: Name of the denoiser's argument that gets noise, where it is not the first tensor of its signature.

    Raises:
        ValueError: If a number is out of range, or a stage is unknown.
        MisconfigurationException: If the module has no such part, another callback or the module itself smooths it
            already, or the part is not called in the first batch.
        TypeError: If the denoiser returns more than one tensor, or takes none.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> smooth = SmoothDenoiser("net.denoiser", sigma=0.01, n_samples=10)
        >>> trainer = Trainer(callbacks=[smooth], logger=False, accelerator="cpu")

    References:
        Liang et al., *Robust MRI Reconstruction by Smoothed Unrolling (SMUG)*, arXiv:2312.07784.
    """

    def __init__(
        self,
        module_path: str,
        sigma: float = 0.01,
        n_samples: int = 10,
        antithetic: bool = False,
        shared: bool = False,
        stages: Sequence[Stage] = ("fit", "validate", "test", "predict"),
        seed: int = 0,
        argument: str | None = None,
    ) -> None:
        self.module_path, self.sigma, self.n_samples, self.shared = module_path, sigma, n_samples, shared
        self.argument = argument
        self.smoother = GaussianSmoother(sigma, n_samples, antithetic, seed=seed)
        self.stages = tuple(one_of("stages", stage, get_args(Stage)) for stage in stages)
        self._patches, self._draws = Patches(), Draws()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Smooth the denoiser if this stage is selected; modules that are built late have their parts by now."""
        if trainer.state.fn not in self.stages or self._draws.active:
            return
        parts = find_parts(pl_module, self.module_path)
        if any(_is_smoothed(part) for part in parts):
            raise MisconfigurationException(
                f"Another SmoothDenoiser smooths {self.module_path!r} already, and a mean of means has other noise "
                "than either of them sets. Keep one of them."
            )
        own = getattr(pl_module, "smoothing", None)
        if isinstance(own, Smoothing) and own.mode != "vanilla":
            raise MisconfigurationException(
                f"{type(pl_module).__name__} smooths by itself, as its mode is {own.mode!r}, and SmoothDenoiser would "
                'smooth it once more. Leave SmoothDenoiser out, or use mode="vanilla".'
            )
        self._draws = Draws(replica(trainer), self.shared)
        for part in parts:
            names = parameter_names(part)
            smoothed = SmoothedForward(part.forward, self.smoother, self._draws, names, self.argument)
            self._patches.set(part, "forward", smoothed)

    on_validation_start = on_test_start = on_predict_start = on_fit_start

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Choose the noise of a batch."""
        # Updates are not counted where training_step makes them past Lightning, so the epoch is part of the key.
        self._draws.begin(_LOOPS["train"], trainer.current_epoch, trainer.global_step, batch_idx)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Choose the noise of a batch, which is the same in each validation."""
        self._draws.begin(_LOOPS["validate"], dataloader_idx, batch_idx)

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Choose the noise of a batch."""
        self._draws.begin(_LOOPS["test"], dataloader_idx, batch_idx)

    def on_predict_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Choose the noise of a batch."""
        self._draws.begin(_LOOPS["predict"], dataloader_idx, batch_idx)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Raise an error before the first update if the denoiser was not called."""
        if pl_module.automatic_optimization:  # else an update may be that of another network
            self._check_called(pl_module, "train")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Raise an error if the denoiser was not called: the callback would have had no effect."""
        self._check_called(pl_module, "train")

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Raise the same error in a test."""
        self._check_called(pl_module, "test")

    def on_predict_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Raise the same error in a prediction."""
        self._check_called(pl_module, "predict")

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Raise the same error in a standalone validation, and warn in that of a training."""
        if trainer.state.fn == "validate":
            self._check_called(pl_module, "validate")
        elif self._draws.active and _LOOPS["validate"] not in self._draws.used:
            self._draws.used.add(_LOOPS["validate"])
            rank_zero_warn(
                f"SmoothDenoiser: the first batch of validation did not call {self.module_path!r}, so validation may "
                "measure a network that is not smoothed, such as a copy of it. With * in module_path, several are."
            )

    def _check_called(self, module: LightningModule, loop: str) -> None:
        if self._draws.active and _LOOPS[loop] not in self._draws.used:
            raise MisconfigurationException(
                f"SmoothDenoiser: the first batch did not call {self.module_path!r} of {type(module).__name__}, so "
                "that nothing is smoothed. Name the part that is called on images, as module(x), in this stage; or "
                "leave the stage out of stages."
            )

    def unsmoothed(self, module: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        """The reconstruction of a batch by the plain network, for ``MeasurementPGD(surrogate="adaptive", base=...)``.

        Args:
            module: The module, with a method ``reconstruct(batch)``.
            batch: A batch.

        Returns:
            What ``module.reconstruct`` returns without noise.
        """
        active, self._draws.active = self._draws.active, False
        try:
            return Reconstructor(module)(batch)
        finally:
            self._draws.active = active

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restore the plain denoiser."""
        self._draws.active = False  # also turns copies of the module made during the run back into plain ones
        self._patches.undo()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restore the plain denoiser."""
        self.teardown(trainer, pl_module, "fit")

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_patches": Patches(), "_draws": Draws()}


def _is_smoothed(part: nn.Module) -> bool:
    forward = vars(part).get("forward")
    return isinstance(forward, SmoothedForward) and forward.draws.active


def find_parts(module: nn.Module, path: str) -> list[nn.Module]:
    """The submodules that match a path by any of their dotted names, in which ``*`` stands for any characters.

    Args:
        module: The user's module.
        path: Dotted name, such as ``"net.denoiser"``, without names inserted by wrappers.

    Returns:
        Each submodule once, without those inside another one that matches. For a wrapper and the module it wraps, only
        the wrapper. Containers that can't be called, such as ``ModuleList``, are left out.

    Raises:
        MisconfigurationException: If nothing matches that can be called.

    Example:
        >>> [type(part).__name__ for part in find_parts(nn.Sequential(nn.ReLU(), nn.Identity()), "*")]
        ['ReLU', 'Identity']
    """
    names: dict[str, nn.Module] = {}
    for name, child in module.named_modules(remove_duplicate=False):
        names.setdefault(stripped(name), child)
    names.pop("", None)
    matches = {id(child): child for name, child in names.items() if fnmatchcase(name, path)}
    found = [child for child in matches.values() if _is_callable(child)]
    if found:
        inside = {id(child) for part in found for child in part.modules() if child is not part}
        return [part for part in found if id(part) not in inside]
    if matches:
        kind = type(next(iter(matches.values()))).__name__
        raise MisconfigurationException(
            f"module_path={path!r} names a {kind}, which has no forward method and so is not called itself. Name what "
            f"it holds: {path}.* for all of it, or one of {', '.join(_below(names, path)[:3]) or 'its parts'}."
        )
    last = path.rpartition(".")[2]
    close = [*get_close_matches(path, names, n=3, cutoff=0.5), *(name for name in names if name.endswith(f".{last}"))]
    close = list(dict.fromkeys(close)) or list(names)[:5]
    raise MisconfigurationException(
        f"module_path={path!r} names no part of {type(module).__name__}. "
        + (f"The closest ones are {', '.join(close[:5])}." if close else "It has no parts.")
        + " module.named_modules() lists all; with * a name may stand for several."
    )


def _is_callable(part: nn.Module) -> bool:
    return getattr_static(type(part), "forward") is not nn.Module.forward or "forward" in vars(part)


def _below(names: dict[str, nn.Module], path: str) -> list[str]:
    """Names of the direct parts of a container that can be called."""
    return [name for name, child in names.items() if fnmatchcase(name.rpartition(".")[0], path) and _is_callable(child)]
