"""Base class of objectives on diffusion models."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_unlearn.core.callback import Needs, UnlearnCallback
from lightning_unlearn.core.lightning import LightningModule, Trainer
from lightning_unlearn.diffusion.engine.denoising import denoising_nll
from lightning_unlearn.diffusion.engine.draws import Draws, batch_number
from lightning_unlearn.diffusion.engine.model import as_text_to_image, refuse_half
from lightning_unlearn.diffusion.engine.passes import PassCounter
from lightning_unlearn.diffusion.engine.sampling import Pairing, Point, partial_samples

__all__ = ["DiffusionObjective"]


class DiffusionObjective(UnlearnCallback):
    """An objective on a module with the parts of [`TextToImage`][lightning_unlearn.diffusion.engine.model.TextToImage].

    The teacher is the original model. Only its values of the trainable weights are stored, and they are swapped in
    while it runs. Each random number depends on the seed, the batch and the row alone, so a run can be resumed and
    distributed.

    Args:
        seed: Seed of the noise and of the noise levels.
    """

    needs = Needs(snapshot=True)

    def __init__(self, seed: int = 0) -> None:
        super().__init__(denoising_nll, reference="snapshot")
        self.seed = seed
        self.passes = PassCounter()
        """Passes of the UNet and the text encoder since training began."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the module, and take over ``training_step``."""
        if stage == "fit":
            as_text_to_image(pl_module)
            refuse_half(pl_module)
        super().setup(trainer, pl_module, stage)

    def begin(self, trainer: Trainer, module: LightningModule) -> None:
        """Start to count passes."""
        self.passes.load_state_dict(PassCounter().state_dict())
        self.passes.attach(as_text_to_image(module))

    def restore(self, state: dict[str, Any], trainer: Trainer, module: LightningModule) -> None:
        """Continue to count passes."""
        self.passes.load_state_dict(state["passes"])
        self.passes.attach(as_text_to_image(module))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.release()
        super().teardown(trainer, pl_module, stage)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.release()
        super().on_exception(trainer, pl_module, exception)

    def release(self) -> None:
        """Take hooks off the module, at the end of a run and after a crash."""
        self.passes.detach()

    def state_dict(self) -> dict[str, Any]:
        """The teacher, and the passes made."""
        return {**super().state_dict(), "passes": self.passes.state_dict()}

    def teacher(self, module: LightningModule) -> Any:
        """A context in which the module is the original model, in evaluation mode and without gradients."""
        assert self.snapshot is not None
        return self.snapshot.active(module)

    def sample(
        self,
        module: LightningModule,
        states: Tensor,
        empty: Tensor,
        steps: int,
        guidance: float,
        pairing: Pairing = "exact",
    ) -> Point:
        """Latents of the model as it is, whose sampler stops at a random step, see `partial_samples`."""
        model, draws = as_text_to_image(module), self.draws(module)
        noise, once = draws.noise(model, len(states)), [draws.generator()]
        return partial_samples(model, states, empty, noise, once, steps=steps, guidance=guidance, pairing=pairing)[0]

    def draws(self, module: LightningModule) -> Draws:
        """The random numbers of the batch that trains now."""
        return Draws(self.seed, batch_number(module))
