"""LightningModule of a Stable Diffusion pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_unlearn.core.callback import UnlearnCallback
from lightning_unlearn.core.checks import above, at_least
from lightning_unlearn.core.distributed import rank
from lightning_unlearn.core.files import give_usual_mode
from lightning_unlearn.core.lightning import LightningModule, MisconfigurationException
from lightning_unlearn.core.modes import evaluating
from lightning_unlearn.core.resume import record_class, refuse_fine_tuning
from lightning_unlearn.diffusion.engine.denoising import denoising_nll
from lightning_unlearn.diffusion.engine.folders import SafetyChecker, half_type, save_folder
from lightning_unlearn.diffusion.engine.model import prediction_type, refuse_adapters, refuse_half, unet_output
from lightning_unlearn.diffusion.engine.parameters import Compat, TextEncoderWeights, Trainable, select_params
from lightning_unlearn.diffusion.engine.pipeline import draw, load_pipeline
from lightning_unlearn.diffusion.engine.single_file import save_single_file

__all__ = ["LitTextToImage"]


class LitTextToImage(LightningModule):
    r"""A text-to-image model that ``StableDiffusionPipeline`` opens: Stable Diffusion 1.x and 2.x.

    Without an unlearning callback it is fine-tuned: ``training_step`` is the denoising loss on images with captions.
    With one, such as [`ESD`][lightning_unlearn.ESD], it forgets a concept. Weights are read from safetensors files
    only, no code of a repository is run, and the safety checker is not loaded.

    Weights are fp32, because at the learning rates of unlearning most updates of bf16 weights would round to zero. For
    speed, train with ``precision="bf16-mixed"``.

    Args:
        model: Folder written by ``save_pretrained``, or hub id; or a single ``.safetensors`` file in the original
            layout, as ComfyUI and AUTOMATIC1111 have them.
        trainable: The weights that train, see [`select_params`]
            [lightning_unlearn.diffusion.engine.parameters.select_params]: ``"xattn"`` (ESD-x), ``"noxattn"`` (ESD-u),
            ``"kv"``, ``"full"`` and others of the UNet; ``"text_encoder"`` or ``TextEncoderWeights(...)``; ``"all"``.
        compat: ``"ldm"`` for the subsets of the original code of ESD, ``"diffusers"`` for those of the newer one.
        lr: Learning rate of AdamW.
        weight_decay: Decoupled weight decay; with 0 it is Adam.
        gradient_checkpointing: Recompute the UNet's activations in the backward pass, for memory.
        revision: Branch, tag or commit on the hub.
        variant: Which files of the folder, such as ``"fp16"``; ``save_pretrained`` writes the same.
        steps: Steps of the sampler, where images are drawn.
        guidance: Weight of classifier-free guidance there.
        config: For a single file, folder or hub id of a pipeline of the same architecture, whose settings and tokenizer
            are taken; by default diffusers looks one up on the hub.

    Raises:
        ValueError: If the subset is empty or unknown, a number is out of range, or the weights are in files that are
            not read.
        TypeError: If the pipeline has another architecture.
        FileNotFoundError: If there is no such file or folder.
    """

    pipeline: Any
    unet: Any
    text_encoder: Any
    vae: Any
    tokenizer: Any
    scheduler: Any
    safety_checker_source: SafetyChecker | None
    """The safety checker of the pipeline's folder, which is not loaded."""

    def __init__(
        self,
        model: str,
        trainable: Trainable | dict[str, Any] = "xattn",
        compat: Compat = "ldm",
        lr: float = 1e-5,
        weight_decay: float = 0.0,
        gradient_checkpointing: bool = False,
        revision: str | None = None,
        variant: str | None = None,
        steps: int = 50,
        guidance: float = 7.5,
        config: str | None = None,
    ) -> None:
        super().__init__()
        self.lr, self.weight_decay = above("lr", lr, 0), at_least("weight_decay", weight_decay, 0)
        self.variant = variant
        self.steps, self.guidance = at_least("steps", steps, 1), guidance
        self.save_hyperparameters(ignore="trainable")
        # As a dict, so that checkpoints load with weights_only=True.
        plain = asdict(trainable) if isinstance(trainable, TextEncoderWeights) else trainable
        self.save_hyperparameters({"trainable": plain})
        load_pipeline(self, model, revision, variant, config)
        prediction_type(self)
        self.train()  # loaded for evaluation, in which gradient checkpointing would do nothing
        self.requires_grad_(False)
        for parameter in select_params(self, trainable, compat).values():
            parameter.requires_grad_(True)
        if gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()

    def setup(self, stage: str) -> None:
        """Refuse to train weights of half precision."""
        if stage == "fit":
            refuse_half(self)

    def configure_model(self) -> None:
        """Refuse to shard."""
        if self.device_mesh is not None and self.device_mesh.size() > 1:
            raise MisconfigurationException(
                "LitTextToImage does not shard its weights, so ModelParallelStrategy would train as many different "
                "models. Use strategy='ddp'."
            )

    def forward(self, latents: Tensor, timesteps: Tensor, states: Tensor) -> Tensor:
        """The UNet's output, noise or velocity, shape ``(B, C, h, w)``."""
        return unet_output(self, latents, timesteps, states)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The denoising loss on images with captions."""
        if "forget" in batch:
            raise MisconfigurationException(
                "The batch has rows to forget, but the Trainer has no unlearning callback: it would train on them. "
                "Add one, such as Trainer(callbacks=[ESD()])."
            )
        loss = denoising_nll(self, batch).mean()
        self.log("train/denoising", loss, batch_size=len(batch["input_ids"]), prog_bar=True)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """The denoising loss of each named set with images, logged as ``val/<set>_denoising``."""
        self._evaluate(batch, self.trainer.val_dataloaders, "val", dataloader_idx)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """The same on the test sets."""
        self._evaluate(batch, self.trainer.test_dataloaders, "test", dataloader_idx)

    def predict_step(self, batch: list[dict[str, Any]], batch_idx: int) -> list[dict[str, Any]]:
        """Each prompt with the ``image`` that it draws, ``(3, H, W)`` in [0, 1]."""
        wanted = [(row["prompt"], row["seed"], row.get("guidance", self.guidance)) for row in batch]
        images = draw(self, wanted, self.steps)
        return [{**row, "image": image} for row, image in zip(batch, images, strict=True)]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW over what trains, at a constant rate."""
        parameters = [p for p in self.parameters() if p.requires_grad]
        if not parameters:
            raise MisconfigurationException(
                "No weight of the module trains. Loading a LoRA freezes all others, also when it is fused and unloaded "
                "again: save the pipeline, module.save_pretrained('merged'), and open LitTextToImage('merged')."
            )
        return torch.optim.AdamW(parameters, lr=self.lr, weight_decay=self.weight_decay)

    def generate(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        steps: int | None = None,
        guidance: float | None = None,
        batch_size: int = 8,
    ) -> Tensor:
        """Draw an image for each prompt, with the pipeline's own sampler and the weights as they are now.

        Args:
            prompts: ``N`` prompts.
            seeds: Seed of each image's noise.
            steps: Steps of the sampler; by default the module's.
            guidance: Weight of classifier-free guidance; by default the module's.
            batch_size: Images drawn together.

        Returns:
            Shape ``(N, 3, H, W)``, in [0, 1], on the CPU.

        Raises:
            ValueError: If there are not as many seeds as prompts.
        """
        if len(prompts) != len(seeds):
            raise ValueError(f"Each prompt needs a seed of its own, but got {len(prompts)} and {len(seeds)}.")
        images = []
        with evaluating(self):
            for i in range(0, len(prompts), batch_size):
                output = self.pipeline(
                    list(prompts[i : i + batch_size]),
                    num_inference_steps=self.steps if steps is None else steps,
                    guidance_scale=self.guidance if guidance is None else guidance,
                    generator=[torch.Generator().manual_seed(int(seed)) for seed in seeds[i : i + batch_size]],
                    output_type="pt",
                )
                images.append(output.images.float().cpu())
        return torch.cat(images)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder that plain ``StableDiffusionPipeline.from_pretrained`` opens. The first process writes.

        It opens with versions 4 and 5 of transformers, and has the files of the module's ``variant``: of an fp16 folder
        it is an fp16 folder, in which changes below the resolution of fp16 are lost. The safety checker of a local
        folder is copied; of another one a warning says that it is missing.

        Raises:
            ValueError: If a LoRA or another adapter is loaded.
        """
        refuse_adapters(self)
        if rank() == 0:
            save_folder(self.pipeline, folder, self.variant, self.safety_checker_source)
            give_usual_mode(folder)

    def save_single_file(self, path: str | Path) -> None:
        """Write one ``.safetensors`` file in the original layout, for ComfyUI, AUTOMATIC1111 and ``from_single_file``.

        It has the weights of UNet, autoencoder and text encoder, in fp16 if the module was opened by that variant. The
        first process writes.

        Raises:
            ValueError: If the path does not end with ``.safetensors``, or a LoRA or another adapter is loaded.
        """
        refuse_adapters(self)
        if rank() == 0:
            save_single_file(self, path, half_type(self.variant))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Record the class, for ``lightning-unlearn export``."""
        record_class(self, checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to resume an unlearning run without its objective."""
        refuse_fine_tuning(self, checkpoint, UnlearnCallback)

    def _evaluate(self, batch: dict[str, Tensor], loaders: Any, stage: str, dataloader_idx: int) -> None:
        if isinstance(batch, dict) and not {"pixel_values", "latents"} & batch.keys():
            return  # prompts without images
        name = list(loaders)[dataloader_idx] if isinstance(loaders, dict) else str(dataloader_idx)
        self.log(
            f"{stage}/{name}_denoising",
            denoising_nll(self, batch).mean(),
            batch_size=len(batch["input_ids"]),
            add_dataloader_idx=False,
            sync_dist=True,
        )
