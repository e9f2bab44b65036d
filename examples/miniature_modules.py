"""Tokenizer, captioned rows and LightningModules of miniature.py."""

from __future__ import annotations

import json
import random
import string
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from lightning_unlearn.diffusion.data.miniature import FILLERS, OBJECTS, STYLES, MiniCanvas, captions
from lightning_unlearn.diffusion.judges import miniature_classifier

TOKENS = 20
NAMES = [name for names in (*OBJECTS.values(), *STYLES.values()) for name in names]


def make_tokenizer() -> CLIPTokenizer:
    """Byte-pair encoding in which every word of the captions is one token, and other words are pieces and letters."""
    specials = ["<|startoftext|>", "<|endoftext|>"]
    words = [*NAMES, *FILLERS, "a", "an", "image", "in", "style", *string.ascii_lowercase, ",", "."]
    pairs = Tokenizer(models.BPE(unk_token=specials[1], end_of_word_suffix="</w>"))
    pairs.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    pairs.train_from_iterator(
        words,
        trainers.BpeTrainer(vocab_size=10_000, special_tokens=specials, end_of_word_suffix="</w>", show_progress=False),
    )
    merges = [tuple(pair) for pair in _model(pairs)["merges"]]
    return CLIPTokenizer(vocab=_model(pairs)["vocab"], merges=merges, model_max_length=TOKENS)


class CaptionedLatents(Dataset[tuple[Tensor, ...]]):
    """Latents with a new caption at every visit, and the object and the style that it names, -100 where it does not.

    A tenth of the captions is empty, for guidance, and a fifth names the object only or the style only. A fifth gets
    random pieces of the vocabulary between its words: else an attack would find tokens that nothing was learnt about.
    """

    def __init__(self, latents: Tensor, rows: MiniCanvas, tokenizer: CLIPTokenizer, seed: int) -> None:
        self.latents, self.rows, self.tokenizer = latents, rows, tokenizer
        self.random = random.Random(seed)
        known = {*tokenizer.all_special_ids, *tokenizer.convert_tokens_to_ids([f"{name}</w>" for name in NAMES])}
        self.pieces = [number for number in range(len(tokenizer)) if number not in known]

    def __len__(self) -> int:
        return len(self.latents)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        row, which, pieces = self.rows[index], self.random.random(), self.random.random()
        object = None if 0.1 <= which < 0.2 else list(OBJECTS)[row["object"]]
        style = None if 0.2 <= which < 0.3 else list(STYLES)[row["style"]]
        text = "" if which < 0.1 else captions(object, style, seed=self.random)[0]
        ids = self.tokenizer(text).input_ids
        if text and pieces < 0.2:
            for piece in self.random.choices(self.pieces, k=self.random.randint(1, 5)):
                ids.insert(self.random.randint(1, len(ids) - 1), piece)
        ids += [self.tokenizer.pad_token_id] * (TOKENS - len(ids))
        labels = (row["object"] if text and object else -100, row["style"] if text and style else -100)
        return self.latents[index], torch.tensor(ids), torch.tensor(labels)


class OneCycle(L.LightningModule):
    """AdamW whose learning rate rises and falls once."""

    lr: float

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, self.lr, total_steps=int(self.trainer.estimated_stepping_batches)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class LitJudge(OneCycle):
    """Cross-entropy on rendered images with a little noise."""

    lr = 2e-3

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classifier = miniature_classifier(classes)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        return F.cross_entropy(self.classifier(images + 0.03 * torch.randn_like(images)), labels)


class LitAutoencoder(OneCycle):
    """Images of 32 pixels to latents of shape (4, 16, 16) and back."""

    lr = 3e-3

    def __init__(self) -> None:
        super().__init__()
        self.vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(16, 32),
            norm_num_groups=8,
            sample_size=32,
            mid_block_add_attention=False,
        )

    def training_step(self, batch: tuple[Tensor], batch_idx: int) -> Tensor:
        images = 2 * batch[0] - 1
        posterior = self.vae.encode(images).latent_dist
        decoded = self.vae.decode(posterior.sample()).sample
        kl = posterior.kl().mean() / (4 * 16 * 16)
        return F.l1_loss(decoded, images) + F.mse_loss(decoded, images) + 2e-4 * kl

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Latents of unit standard deviation; remembers the factor."""
        means = torch.cat([self.vae.encode(2 * part - 1).latent_dist.mean for part in images.split(100)])
        self.vae.register_to_config(scaling_factor=1 / means.std().item())
        return means * self.vae.config.scaling_factor


class LitText(OneCycle):
    """Object and style as read off the states behind a caption.

    Stable Diffusion's text encoder knew images before its UNet saw a word, too. From nothing, this UNet learns the
    styles and takes the objects for noise.
    """

    lr = 2e-3

    def __init__(self, vocabulary: int, bos: int, eos: int) -> None:
        super().__init__()
        self.text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=vocabulary,
                hidden_size=48,
                intermediate_size=96,
                projection_dim=48,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=TOKENS,
                bos_token_id=bos,
                eos_token_id=eos,
                pad_token_id=eos,
            )
        )
        self.objects, self.styles = nn.Linear(48, len(OBJECTS)), nn.Linear(48, len(STYLES))

    def training_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> Tensor:
        _, ids, (object, style) = batch[0], batch[1], batch[2].T
        behind = (ids == ids[:, -1:]).float()[..., None]
        states = (self.text_encoder(ids)[0] * behind).sum(1) / behind.sum(1)
        return F.cross_entropy(self.objects(states), object) + F.cross_entropy(self.styles(states), style)


class LitDiffusion(OneCycle):
    r"""The UNet predicts :math:`v = \sqrt{\bar\alpha_t}\,\epsilon - \sqrt{1 - \bar\alpha_t}\,z_0`.

    At this size predictions of the noise do not learn the objects.
    """

    lr = 2e-3

    def __init__(self, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.unet = UNet2DConditionModel(
            sample_size=16,
            layers_per_block=1,
            block_out_channels=(32, 64),
            down_block_types=("CrossAttnDownBlock2D",) * 2,
            up_block_types=("CrossAttnUpBlock2D",) * 2,
            cross_attention_dim=48,
            attention_head_dim=4,
            norm_num_groups=8,
        )
        self.scheduler = DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
            prediction_type="v_prediction",
        )

    def training_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> Tensor:
        latents, ids, _ = batch
        noise = torch.randn_like(latents)
        # More of the high levels, at which only the caption tells one object from another.
        t = (1000 * torch.rand(len(latents), device=latents.device).pow(0.7)).long()
        noisy = self.scheduler.add_noise(latents, noise, t)
        predicted = self.unet(noisy, t, encoder_hidden_states=self.text_encoder(ids)[0]).sample
        return F.mse_loss(predicted, self.scheduler.get_velocity(latents, noise, t))


def _model(tokenizer: Tokenizer) -> dict[str, Any]:
    return json.loads(tokenizer.to_str())["model"]
