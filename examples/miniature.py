# python examples/miniature.py
"""Trains the miniature text-to-image pipeline and its judges, and writes lightning_unlearn/assets/miniature.

Four runs of an ordinary Trainer: two classifiers, an autoencoder, and the UNet together with its text encoder. The
folder is one of a StableDiffusionPipeline. The seed fixes everything but the order in which threads add.
"""

from __future__ import annotations

import argparse
import random
import shutil
import string
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler, TensorDataset
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from lightning_unlearn.diffusion.data.miniature import (
    FILLERS,
    OBJECTS,
    STYLES,
    MiniCanvas,
    captions,
    miniature_pipeline,
    prompt,
)
from lightning_unlearn.diffusion.judges import Judge, MiniatureJudge, miniature_classifier

BATCH = 32
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


class Progress(L.Callback):
    """A line every hundred steps."""

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, *_: Any) -> None:
        if trainer.global_step % 100 == 0:
            print(f"{type(module).__name__} {trainer.global_step} loss {outputs['loss']:.4f}", flush=True)


def fit(module: L.LightningModule, rows: Dataset[Any], steps: int) -> Any:
    trainer = L.Trainer(
        max_steps=steps, gradient_clip_val=1.0, callbacks=[Progress()], accelerator="cpu", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    sampler = RandomSampler(rows, replacement=True, num_samples=BATCH * steps)
    trainer.fit(module.train(), DataLoader(rows, BATCH, sampler=sampler))
    return module.eval()


def train(output: Path, steps: int, without: str | None) -> None:
    """Trains all parts. Text encoder and UNet never see a concept that is left out; judges and autoencoder do."""
    canvas = MiniCanvas(images=100)
    images, styles, objects = (torch.stack([torch.as_tensor(row[k]) for row in canvas]) for k in KEYS)
    shutil.rmtree(output, ignore_errors=True)
    (output / "judges").mkdir(parents=True)
    for concept, labels in (("style", styles), ("object", objects)):
        judge = fit(LitJudge(int(labels.max()) + 1), TensorDataset(images, labels), steps=500)
        save_file(halved(judge.classifier), output / "judges" / f"{concept}.safetensors")

    autoencoder = fit(LitAutoencoder(), TensorDataset(images), steps=600)
    latents, tokenizer = autoencoder.encode(images), make_tokenizer()
    seen = [number for number, row in enumerate(canvas.rows) if without not in names_of(row)]
    canvas.rows = [canvas.rows[number] for number in seen]
    rows = CaptionedLatents(latents[seen], canvas, tokenizer, seed=1)
    text = fit(LitText(len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id), rows, steps=1000)
    diffusion = fit(LitDiffusion(text.text_encoder), rows, steps)
    StableDiffusionPipeline(
        vae=autoencoder.vae.half(),
        text_encoder=diffusion.text_encoder,  # loads in the type it is saved in, unlike the others
        tokenizer=tokenizer,
        unet=diffusion.unet.half(),
        scheduler=diffusion.scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(output)


@torch.no_grad()
def check(output: Path, seeds: Sequence[int]) -> None:
    """Accuracies of the judges on rendered images, and of what the saved pipeline draws."""
    judges: dict[str, Judge] = {"style": MiniatureJudge("style"), "object": MiniatureJudge("object")}
    rows = MiniCanvas(images=40, first=1000)
    images, styles, objects = (torch.stack([torch.as_tensor(row[k]) for row in rows]) for k in KEYS)
    for concept, labels in (("style", styles), ("object", objects)):
        report(f"judge of the {concept}, rendered images", judges[concept](images)[0] == labels)

    pipeline = StableDiffusionPipeline.from_pretrained(output)
    pipeline.set_progress_bar_config(disable=True)
    pairs = [(object, style) for object in OBJECTS for style in STYLES]
    styles = torch.tensor([list(STYLES).index(style) for _, style in pairs] * len(seeds))
    objects = torch.tensor([list(OBJECTS).index(object) for object, _ in pairs] * len(seeds))
    kinds = {
        "held-out captions": lambda o, s, seed: captions(o, s, 1, seed, heldout=True)[0],
        "plain prompts": lambda o, s, seed: prompt(o, s),
    }
    for kind, text in kinds.items():
        drawn = []
        for seed in seeds:
            generators = [torch.Generator().manual_seed(1000 * seed + i) for i in range(len(pairs))]
            texts = [text(o, s, 1000 * seed + i) for i, (o, s) in enumerate(pairs)]
            drawn.append(
                pipeline(
                    texts, num_inference_steps=20, guidance_scale=4.0, generator=generators, output_type="pt"
                ).images
            )
        images = torch.cat(drawn)
        report(f"styles drawn from {kind}", judges["style"](images)[0] == styles)
        report(f"objects drawn from {kind}", judges["object"](images)[0] == objects)


def report(what: str, right: Tensor) -> None:
    """Prints a share with its 95 % Wilson interval."""
    n, p, z = len(right), right.float().mean().item(), 1.96
    middle, half = p + z**2 / (2 * n), z * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
    low, high = ((middle + sign * half) / (1 + z**2 / n) for sign in (-1, 1))
    print(f"{what}: {p:.3f} [{low:.3f}, {high:.3f}] of {n}", flush=True)


def halved(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.half() if value.is_floating_point() else value for name, value in module.state_dict().items()}


def names_of(row: dict[str, Any]) -> tuple[str, str]:
    return list(OBJECTS)[row["object"]], list(STYLES)[row["style"]]


def _model(tokenizer: Tokenizer) -> dict[str, Any]:
    import json

    return json.loads(tokenizer.to_str())["model"]


KEYS = ("image", "style", "object")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=miniature_pipeline())
    parser.add_argument("--without", choices=[*OBJECTS, *STYLES], help="a concept that text encoder and UNet never see")
    parser.add_argument("--steps", type=int, default=2400, help="of the UNet and the text encoder")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--check", action="store_true", help="only measure the folder that is there")
    args = parser.parse_args()
    if args.without and args.output == miniature_pipeline():
        parser.error("--without trains another model than the one that the package ships: give an --output for it.")
    torch.set_num_threads(args.threads)
    L.seed_everything(0, verbose=False)
    start = time.perf_counter()
    if not args.check:
        train(args.output, args.steps, args.without)
        print(f"trained in {time.perf_counter() - start:.0f} s", flush=True)
    check(args.output, seeds=range(10))


if __name__ == "__main__":
    main()
