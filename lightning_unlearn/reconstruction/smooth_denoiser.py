"""Randomised smoothing of a denoiser inside any LightningModule."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

from torch import nn

from lightning_unlearn.core.checks import one_of
from lightning_unlearn.core.distributed import replica
from lightning_unlearn.core.layers import stripped
from lightning_unlearn.core.lightning import Callback, LightningModule, MisconfigurationException, Trainer
from lightning_unlearn.core.transfer import Patches
from lightning_unlearn.reconstruction.smoothed_forward import Draws, SmoothedForward
from lightning_unlearn.smoothing.gaussian import GaussianSmoother

__all__ = ["SmoothDenoiser", "Stage"]

Stage = Literal["fit", "validate", "test", "predict"]

_LOOPS = {"train": 0, "validate": 1, "test": 2, "predict": 3}


class SmoothDenoiser(Callback):
    r"""Replaces a part of a LightningModule, during a run, by its mean over Gaussian noise on its input.

    $$\bar D(x) = \frac1M \sum_{i=1}^M D(x + \eta_i), \qquad \eta_i \sim \mathcal{N}(0, \sigma^2 I)$$

    This turns an unrolled network into one of SMUG, which smooths the denoiser of each step, without a change to its
    code. All samples go through the denoiser in one batch. Only the first tensor that the denoiser takes gets noise.
    Its first dimension is the batch; other tensors with the same number of rows, such as time steps, are repeated with
    it, and all other arguments are passed unchanged. After the run, the module is as it was before; its checkpoints
    have the weights and names of the plain module throughout.

    The noise depends only on the seed, the batch, the index of the call within it, and the row: two processes draw the
    same as one, a resumed run the same as an uninterrupted one, and every validation has the same noise.
    Checkpointed activations are recomputed with the same noise.

    Args:
        module_path: Dotted name of the denoiser in the LightningModule, such as ``"net.denoiser"``. With ``*`` it may
            match several, as in ``"net.prior.*.denoiser"``.
        sigma: Standard deviation $\sigma$ in units of the denoiser's input; with 0 nothing changes.
        n_samples: Number of samples $M$.
        antithetic: Whether samples come in pairs $\eta, -\eta$.
        shared: Whether all calls of a batch, such as the steps of an unrolled network, use the same noise.
        stages: Trainer stages in which the denoiser is smoothed.
        seed: Seed of the noise.

    Raises:
        ValueError: If a number is out of range, or a stage is unknown.
        MisconfigurationException: If the module has no such part, or the part is not called in the first batch.
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
    ) -> None:
        self.module_path, self.sigma, self.n_samples, self.shared = module_path, sigma, n_samples, shared
        self.smoother = GaussianSmoother(sigma, n_samples, antithetic, seed=seed)
        self.stages = tuple(one_of("stages", stage, get_args(Stage)) for stage in stages)
        self._patches, self._draws = Patches(), Draws()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Smooth the denoiser if this stage is selected; modules that are built late have their parts by now."""
        if trainer.state.fn not in self.stages or self._draws.active:
            return
        self._draws = Draws(replica(trainer), self.shared)
        for part in find_parts(pl_module, self.module_path):
            self._patches.set(part, "forward", SmoothedForward(part.forward, self.smoother, self._draws))

    on_validation_start = on_test_start = on_predict_start = on_fit_start

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Choose the noise of a batch."""
        self._draws.begin(_LOOPS["train"], trainer.global_step, batch_idx)

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

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Raise an error if the denoiser was not called: the callback would have had no effect."""
        if self._draws.active and not self._draws.used:
            raise MisconfigurationException(
                f"SmoothDenoiser: the first batch did not call {self.module_path!r} of {type(pl_module).__name__}, so "
                "that nothing is smoothed. Name the part that is called on images, as module(x), in this stage; or "
                "leave the stage out of stages."
            )

    on_test_batch_end = on_predict_batch_end = on_train_batch_end  # type: ignore[assignment]

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Raise the same error in a standalone validation."""
        if trainer.state.fn == "validate":
            self.on_train_batch_end(trainer, pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restore the plain denoiser."""
        self._draws.active = False  # also turns copies of the module made during the run back into plain ones
        self._patches.undo()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restore the plain denoiser."""
        self.teardown(trainer, pl_module, "fit")

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_patches": Patches(), "_draws": Draws()}


def find_parts(module: nn.Module, path: str) -> list[nn.Module]:
    """The submodules whose dotted name matches a path, in which ``*`` stands for any characters.

    Args:
        module: The user's module.
        path: Dotted name, such as ``"net.denoiser"``, without names inserted by wrappers.

    Returns:
        Each submodule once; for a wrapper and the module it wraps, only the wrapper.

    Raises:
        MisconfigurationException: If nothing matches.

    Example:
        >>> [type(part).__name__ for part in find_parts(nn.Sequential(nn.ReLU(), nn.Identity()), "*")]
        ['ReLU', 'Identity']
    """
    named: dict[str, nn.Module] = {}
    for name, child in module.named_modules():
        named.setdefault(stripped(name), child)
    named.pop("", None)
    found = [child for name, child in named.items() if fnmatchcase(name, path)]
    if found:
        return found
    last = path.rpartition(".")[2]
    close = [*get_close_matches(path, named, n=3, cutoff=0.5), *(name for name in named if name.endswith(f".{last}"))]
    close = list(dict.fromkeys(close)) or list(named)[:5]
    raise MisconfigurationException(
        f"module_path={path!r} names no part of {type(module).__name__}. "
        + (f"The closest ones are {', '.join(close[:5])}." if close else "It has no parts.")
        + " module.named_modules() lists all; with * a name may stand for several."
    )
