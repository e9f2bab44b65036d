"""Forget-Me-Not: minimizes the attention to a concept."""

from __future__ import annotations

from torch import Tensor

from lightning_unlearn.core.callback import Needs
from lightning_unlearn.core.lightning import LightningModule, Trainer
from lightning_unlearn.core.rows import row_loader
from lightning_unlearn.core.scores import Batch
from lightning_unlearn.diffusion.engine.attention import attention_probabilities, check_attention
from lightning_unlearn.diffusion.engine.denoising import noised
from lightning_unlearn.diffusion.engine.model import TextToImage, as_text_to_image, unet_output
from lightning_unlearn.diffusion.engine.text import concept_tokens, encode
from lightning_unlearn.diffusion.objective import DiffusionObjective
from lightning_unlearn.functional.diffusion.forget_me_not import attention_norm

__all__ = ["ForgetMeNot"]


class ForgetMeNot(DiffusionObjective):
    r"""Forget-Me-Not: minimise the attention to the words of a concept.

    $$\mathcal{L} = \Big( \sum_{l, h, q} \sum_{k \in P} A_{lhqk}(z_t, t, c)^2 \Big)^{1/2}$$

    Mean over the rows. $A$ are the probabilities with which position $q$ of the image attends to token $k$ of its
    caption, in head $h$ of cross-attention layer $l$. $P$ are the tokens of the concept, which are found in each row's
    own caption, and $z_t$ are noised images of it. A concept without a word can get one by textual inversion, which the
    paper does first for all concepts: add its tokens to the tokenizer and the text encoder, and name them here.

    The paper trains ``"full"``, or ``"xattn"`` for styles, with AdamW at ``lr=2e-6``, ``weight_decay=0.01``,
    ``gradient_clip_val=1.0`` for 35 steps of one image. There is no retain term: more steps or a larger rate ruin all
    images, and the loss alone does not show it.

    Args:
        concept: The words that name the concept, or several such names. Each caption to forget must have one.
        end_of_text: Whether $P$ includes the token that ends the caption, whose state summarises the caption.
        seed: Seed of the noise and of the noise levels.
        keep_reference: Whether checkpoints keep state of the original model after the run, so that it can be resumed.

    Raises:
        ValueError: If a concept is empty, or a caption to forget has no token of any.
        MisconfigurationException: With gradient checkpointing, which recomputes attention where it is not recorded.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[ForgetMeNot("Van Gogh")], max_steps=35, logger=False, accelerator="cpu")

    References:
        Zhang et al., *Forget-Me-Not: Learning to Forget in Text-to-Image Diffusion Models*, arXiv:2303.17591.
    """

    needs = Needs(roles=("forget",))
    separable = True

    def __init__(
        self, concept: str | list[str], end_of_text: bool = False, seed: int = 0, keep_reference: bool = False
    ) -> None:
        super().__init__(seed)
        self.keep_reference = keep_reference
        self.names = [concept] if isinstance(concept, str) else list(concept)
        if not self.names or not all(name.strip() for name in self.names):
            raise ValueError(f"concept is the words that name what to forget, but got {concept!r}.")
        self.concept, self.end_of_text = concept, end_of_text

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that attention can be recorded, and take over ``training_step``."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            check_attention(as_text_to_image(pl_module).unet, type(self).__name__)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look for the concept in every caption before a weight moves."""
        super().on_train_start(trainer, pl_module)
        for rows in row_loader(trainer.train_dataloader, "forget") or ():
            self.positions(as_text_to_image(pl_module), rows["input_ids"])

    def positions(self, model: TextToImage, input_ids: Tensor) -> Tensor:
        """The tokens of the concept in captions, boolean, shape ``(B, L)``.

        Raises:
            ValueError: If a caption has none.
        """
        positions = concept_tokens(model, input_ids, self.names).any(0)
        if self.end_of_text:
            ends = input_ids == model.tokenizer.eos_token_id
            positions |= ends & (ends.cumsum(1) == 1)  # the first: padding may be the same token
        return positions

    def step(self, module: LightningModule, batch: dict[str, Batch]) -> dict[str, Tensor]:
        """The attention of one batch of images to the concept."""
        model, rows = as_text_to_image(module), batch["forget"]
        positions = self.positions(model, rows["input_ids"])
        latents, timesteps, _ = noised(module, rows, self.draws(module))

        def term() -> dict[str, Tensor]:
            with attention_probabilities(model.unet) as recorded:
                output = unet_output(model, latents, timesteps, encode(model, rows["input_ids"]))
            loss = attention_norm([call for calls in recorded.values() for call in calls], positions).mean()
            # The output has no part in the loss, but DDP waits for a gradient of all that trains.
            return {"loss": loss + 0 * output.sum()}

        return self.smoothed(module, term)
