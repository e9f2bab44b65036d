# python examples/miniature.py
"""Trains the miniature text-to-image pipeline and its judges, and writes lightning_unlearn/assets/miniature.

Four runs of an ordinary Trainer: two classifiers, an autoencoder, and the UNet together with its text encoder. The
folder is one of a StableDiffusionPipeline. The seed fixes everything but the order in which threads add.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from diffusers import StableDiffusionPipeline
from miniature_modules import CaptionedLatents, LitAutoencoder, LitDiffusion, LitJudge, LitText, make_tokenizer
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler, TensorDataset

from lightning_unlearn.diffusion.data.miniature import OBJECTS, STYLES, MiniCanvas, captions, miniature_pipeline, prompt
from lightning_unlearn.diffusion.judges import Judge, MiniatureJudge

BATCH = 32
KEYS = ("image", "style", "object")


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
