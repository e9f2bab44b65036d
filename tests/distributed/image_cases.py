"""Cases on text-to-image models, and metrics of images."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import lightning_unlearn as lu
from tests.diffusion.tiny import SgdTextToImage, images, prompts
from tests.distributed.layouts import LAYOUTS, ROOT, Training, grouped


def thrice(size: int) -> Any:
    """Prompts alone, each three times in an epoch."""
    return prompts(batch_size=size, repeat=3)


def eraser(make: Callable[[], Any], trainable: Any, lr: float = 1.0, data: Any = None) -> Training:
    """A method on the tiny pipeline."""
    return Training(
        lambda _: [make()],
        lambda models: SgdTextToImage(str(models / "pipeline"), trainable=trainable, lr=lr),
        lambda replicas: (data or thrice)(2 // replicas),
        layouts=("ddp",),
        epochs=1 if data is None else 2,
        resumes=False,
        atol=1e-5,
    )


def eraser_of_images(make: Callable[[], Any], trainable: Any) -> Training:
    """A method on the tiny pipeline that reads images with captions."""
    return eraser(make, trainable, 0.05, lambda size: images(batch_size=size, retain_batch_size=size))


ERASERS = {
    "ESD": eraser(lambda: lu.ESD(steps=4), "xattn"),
    "ESD-newer": eraser(lambda: lu.ESD(2.0, base="concept", sampler="teacher", steps=4), "noxattn"),
    "ESD-ldm": eraser(lambda: lu.ESD(steps=4, pairing="ldm"), "kv"),
    "ESD-text-encoder": eraser(lambda: lu.ESD(steps=4), lu.TextEncoderWeights(layers=[0])),
    "UCE": eraser(lu.UCE, "kv"),
    "RECE": eraser(lu.RECE, "kv"),
    "AdvUnlearn": eraser(
        lambda: lu.AdvUnlearn(
            warmup=1, attack=lu.SoftPromptAttacker(steps=2, step_size=0.01, init="latest", tokens=2), steps=4
        ),
        lu.TextEncoderWeights(layers=[0]),
    ),
    "AdvUnlearn-unet": eraser(
        lambda: lu.AdvUnlearn(
            warmup=1, attack=lu.SoftPromptAttacker(steps=2, rule="normalized", latents="trajectory"), steps=4
        ),
        "xattn",
    ),
    "SPM": eraser(lambda: lu.SPM(steps=4, anchors=2, anchor_weight=1.0), "xattn"),
    "ConceptAblation": eraser_of_images(lambda: lu.ConceptAblation(prior_weight=0.5), "kv"),
    "ForgetMeNot": eraser_of_images(lambda: lu.ForgetMeNot("van gogh"), "xattn"),
    "DiffusionSalUn": eraser_of_images(lu.DiffusionSalUn, "xattn"),
    "EraseDiff": eraser_of_images(lambda: lu.EraseDiff(inner_steps=1, inner_lr=0.05), "xattn"),
    "Scissorhands": eraser_of_images(lambda: lu.Scissorhands(sparsity=0.9, batches=2), "xattn"),
    "MACE": eraser_of_images(lambda: lu.MACE({"van gogh": "green"}, lamb=1.0, preserve_scale=0.1), "xattn"),
}


def drawn(layout: str, models: Path, path: Path) -> dict[str, Any]:
    """The images that the command line draws, and their rows."""
    import numpy
    from PIL import Image

    from lightning_unlearn.cli.main import main

    folder = path.parent / f"{layout}-drawn"  # the same for all processes
    words = ["predict", f"--config={ROOT / 'examples/erase.yaml'}", f"--model.init_args.model={models / 'pipeline'}"]
    words += ["--model.init_args.steps=2", "--trainer.accelerator=cpu", "--trainer.logger=false"]
    words += [f"--trainer.default_root_dir={folder}", f"--trainer.devices={LAYOUTS[layout].processes}"]
    main(words)
    if dist.is_initialized() and dist.get_rank():
        return {}  # the first process writes the rows
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    images = [torch.from_numpy(numpy.array(Image.open(folder / row["file_name"]))).int() for row in rows]
    return {"rows": rows, "images": images}


def image_metrics(layout: str, models: Path, path: Path) -> dict[str, Any]:
    """Metrics of images, of which the processes have unlike numbers."""
    from tests.diffusion.metrics.test_canvas_accuracy import shared as canvas
    from tests.diffusion.metrics.test_images import shared
    from tests.reconstruction.metrics.test_quality import shared as quality

    share = grouped(layout)
    return {"found": [*shared(*share), *canvas(*share), *quality(*share)]}
