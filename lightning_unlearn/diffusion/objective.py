"""What objectives for diffusion models share: who is the teacher, where randomness comes from, what a run costs."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_unlearn.core.callback import Needs, UnlearnCallback
from lightning_unlearn.diffusion.engine.denoising import batch_number, denoising_nll, row_numbers
from lightning_unlearn.diffusion.engine.model import as_text_to_image, latent_shape
from lightning_unlearn.diffusion.engine.passes import PassCounter
from lightning_unlearn.functional.diffusion.noise import row_noise
from lightning_unlearn.functional.random import keyed_generator

__all__ = ["DiffusionObjective"]


class DiffusionObjective(UnlearnCallback):
    """An objective on a module with the parts of [`TextToImage`][lightning_unlearn.diffusion.engine.model.TextToImage].

    The teacher is the starting model. Of it only the weights that train are kept, and exchanged in while it runs.
    Every draw depends on the seed, the number of the batch and the row, so a run can be resumed and distributed.

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
        self.passes.detach()
        super().teardown(trainer, pl_module, stage)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.passes.detach()
        super().on_exception(trainer, pl_module, exception)

    def state_dict(self) -> dict[str, Any]:
        """The teacher, and the passes made."""
        return {**super().state_dict(), "passes": self.passes.state_dict()}

    def teacher(self, module: LightningModule) -> Any:
        """A context in which the module is the starting model, in evaluation mode and without gradients."""
        assert self.snapshot is not None
        return self.snapshot.active(module)

    def noise(self, module: LightningModule, rows: int) -> Tensor:
        """Noise to begin a sampler with, shape ``(rows, C, h, w)``."""
        shape = latent_shape(as_text_to_image(module))
        return row_noise(shape, row_numbers(rows), self.seed, batch_number(module)).to(module.device)

    def generator(self, module: LightningModule) -> torch.Generator:
        """Draws what all rows and processes of a batch share: were samplers to stop apart, some would wait."""
        return keyed_generator(self.seed, batch_number(module))
