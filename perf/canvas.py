"""Cost of scoring an answer set of UnlearnCanvas, against one image at a time."""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import islice, product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import ViTConfig, ViTModel

from lightning_unlearn import CanvasClassifier, CanvasJudges, score_answers
from lightning_unlearn.diffusion.canvas.names import ANSWER_SEEDS, UNLEARN_CANVAS

VITS: dict[str, dict[str, int]] = {
    "tiny": {"hidden_size": 192, "num_hidden_layers": 12, "num_attention_heads": 3, "intermediate_size": 768},
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
    "large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
}


def network(size: str) -> CanvasClassifier:
    """A ViT of random weights with heads of 51 styles and 20 objects."""
    torch.manual_seed(0)
    classes: Any = {"style": UNLEARN_CANVAS.all_styles, "object": UNLEARN_CANVAS.objects}
    return CanvasClassifier(ViTModel(ViTConfig(**VITS[size]), add_pooling_layer=False), classes)


def write_answers(folder: Path, count: int, side: int) -> list[Path]:
    """JPEG images with as much detail as drawn ones: coarse colours and some noise."""
    random = np.random.default_rng(0)
    files = []
    for seed, (style, object) in islice(product(ANSWER_SEEDS, UNLEARN_CANVAS.pairs(photo=True)), count):
        coarse = Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8)).resize((side, side))
        pixels = np.asarray(coarse).astype(np.int16) + random.integers(-12, 13, (side, side, 3))
        files.append(folder / UNLEARN_CANVAS.file_name(style, object, seed))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(files[-1])
    return files


@torch.no_grad()
def one_at_a_time(judges: CanvasJudges, files: Sequence[Path]) -> list[list[int]]:
    """As the released script does: a pass of each judge over the files, each file opened, resized and judged alone."""
    labels = []
    device = next(judges.parameters()).device
    for judge in (judges.style, judges.object):
        labels.append([])
        for file in files:
            image = Image.open(file).convert("RGB").resize((224, 224), Image.Resampling.BILINEAR)
            colours = torch.tensor(np.asarray(image)).permute(2, 0, 1)[None].to(device).float() / 255
            labels[-1].append(int(judge(colours)[0]))
    return labels


class Clock:
    """Seconds of the wall and of the processors, a run of some images."""

    def __init__(self, images: int) -> None:
        self.images = images

    def __enter__(self) -> Clock:
        self._start = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall, self.processor = (
            1e3 * (now - then) / self.images
            for now, then in zip((time.perf_counter(), time.process_time()), self._start, strict=True)
        )

    def __str__(self) -> str:
        return f"{self.wall:.1f} ms an image ({self.processor:.1f} of the processors)"


def peak() -> float:
    """Largest memory of the process so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m perf.canvas", description=__doc__)
    parser.add_argument("--vit", choices=VITS, default="large")
    parser.add_argument("--images", type=int, default=5000, help="that are scored; at most 5,100")
    parser.add_argument("--alone", type=int, default=100, help="images that are judged one at a time")
    parser.add_argument("--side", type=int, default=512, help="of the images, in pixels")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    judges = CanvasJudges.of(network(args.vit), UNLEARN_CANVAS).to(args.device)
    with TemporaryDirectory() as name:
        folder = Path(name, "answers")
        folder.mkdir()
        files = write_answers(folder, args.images, args.side)
        one_at_a_time(judges, files[:2])
        with Clock(args.alone) as alone:
            labels = one_at_a_time(judges, files[: args.alone])
        print(f"ViT-{args.vit} on {args.device}, images of {args.side} pixels, one at a time: {alone}")
        bf16 = torch.autocast(args.device, torch.bfloat16)
        precisions: dict[str, AbstractContextManager[Any]] = {"fp32": nullcontext(), "bf16": bf16}
        for precision, context in precisions.items():
            peaks = []
            for part in (files[: 2 * args.batch_size], files):  # the first to warm up
                linked = Path(name, f"{precision} {len(part)}")
                linked.mkdir(exist_ok=True)
                for file in part:
                    (linked / file.name).symlink_to(file)
                with context, Clock(len(part)) as together:
                    scores = score_answers(linked, UNLEARN_CANVAS, judges, batch_size=args.batch_size)
                peaks.append(peak())
            seen = [scores.style[:, :, 0].flatten(), scores.object[:, :, 0].flatten()]
            equal = [s[: args.alone] == torch.tensor(expected) for s, expected in zip(seen, labels, strict=True)]
            share = torch.stack(equal).float().mean().item()
            print(
                f"score_answers, {precision}: {together}, {alone.wall / together.wall:.1f} times as fast "
                f"({alone.processor / together.processor:.1f}); equal verdicts {share:.3f}, "
                f"peak {peaks[0]:.2f} GiB for {2 * args.batch_size} images, {peaks[1]:.2f} for {len(files)}"
            )


if __name__ == "__main__":
    main()
