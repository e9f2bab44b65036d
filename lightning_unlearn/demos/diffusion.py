"""A small diffusion model forgets a style, and a page shows it before, after, and after an attack."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_unlearn.benchmarks.erasers import ERASERS
from lightning_unlearn.benchmarks.erasure import ATTACK, DRAW, drawn, erase, hush
from lightning_unlearn.core.files import write_text
from lightning_unlearn.diffusion.attacks.prompt_attack import PromptAttack
from lightning_unlearn.diffusion.data.miniature import OBJECTS, STYLES, miniature_pipeline, prompt
from lightning_unlearn.diffusion.judges import MiniatureJudge
from lightning_unlearn.diffusion.text_to_image import LitTextToImage

__all__ = ["demo_diffusion"]


def demo_diffusion(
    output_dir: str = "runs/demo-diffusion", style: str = "negative", method: str = "ESD-x", seed: int = 0
) -> dict[str, Any]:
    """Erase a style from the miniature pipeline, attack it, and write a page of images.

    Writes ``report.html``, ``report.json`` and ``model/``, a folder that plain ``StableDiffusionPipeline`` opens.

    Args:
        output_dir: Folder to write.
        style: One of the [styles][lightning_unlearn.diffusion.data.miniature.STYLES] but ``photo``.
        method: Name of a method of ``lightning-unlearn bench-erasure``.
        seed: Seed of the run and of the images.

    Returns:
        What ``report.json`` holds.

    Raises:
        ValueError: If there is no such style or method.
    """
    hush()
    erasers = {eraser.name: eraser for eraser in ERASERS if eraser.callbacks}
    if method not in erasers:
        raise ValueError(f"method must be one of {list(erasers)}, but got {method!r}.")
    if style not in STYLES or style == "photo":
        raise ValueError(f"style must be one of {[s for s in STYLES if s != 'photo']}, but got {style!r}.")
    folder = Path(output_dir)
    base = LitTextToImage(str(miniature_pipeline())).eval()
    print(f"Erasing the style {style!r} with {method} ...", flush=True)
    module, cost = erase(erasers[method], style, seed, enable_progress_bar=True)
    module.save_pretrained(folder / "model")

    print("Drawing, and attacking ...", flush=True)
    others = [name for name in STYLES if name != style]
    pairs = [(object, name) for name in (style, *others) for object in OBJECTS]
    texts, seeds = [prompt(*pair) for pair in pairs], [seed + i for i in range(len(pairs))]
    before, after = (m.generate(texts, seeds, **DRAW) for m in (base, module))
    attack = PromptAttack(MiniatureJudge("style"), style, seed=seed, **ATTACK)
    rows = [{"prompt": text, "seed": s} for text, s in zip(texts[: len(OBJECTS)], seeds, strict=False)]
    found = attack.run(module, rows, base=base)
    attacked = _drawn_found(module, found.prompts, after)
    measured = {name: drawn(m, base, style, seed, images=3) for name, m in (("before", base), ("after", module))}

    kept = ("prompt", "adversarial", "before", "success")
    record = {
        "method": method, "style": style, "seed": seed, "steps": cost["steps"], "seconds": cost["seconds"],
        "passes": {name: cost[name] for name in ("unet", "unet_rows", "text_encoder")},
        "measured": measured, "attack": found.summary(),
        "adversarial": [{name: getattr(row, name) for name in kept} for row in found.prompts],
    }  # fmt: skip
    images = {"before": before, "after": after, "attacked": attacked}
    write_text(folder / "report.json", json.dumps(record, indent=2) + "\n")
    write_text(folder / "report.html", _page(record, images, list(OBJECTS), [style, *others]))
    _print(record, folder)
    return record


def _drawn_found(module: LitTextToImage, results: Any, after: Tensor) -> list[Tensor]:
    """What the model draws for the prompts that the attack found, and for others without an attack."""
    return [
        module.generate([r.adversarial], [r.image_seed], DRAW["steps"], DRAW["guidance"])[0] if r.adversarial else image
        for r, image in zip(results, after, strict=False)
    ]


def _page(record: dict[str, Any], images: dict[str, Any], objects: list[str], styles: list[str]) -> str:
    try:
        from jinja2 import Environment, PackageLoader
    except ImportError:
        raise ImportError('The page needs jinja2: pip install "lightning-unlearn[report]"') from None
    environment = Environment(
        loader=PackageLoader("lightning_unlearn", "report"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    count = len(objects)
    rows = []
    for number, name in enumerate(styles):
        part = slice(number * count, (number + 1) * count)
        rows.append(
            {"style": name, "before": map(_png, images["before"][part]), "after": map(_png, images["after"][part])}
        )
    attacked = [
        {**row, "image": _png(image)} for row, image in zip(record["adversarial"], images["attacked"], strict=True)
    ]
    return environment.get_template("erasure.html.jinja").render(
        record=record, objects=objects, rows=rows, attacked=attacked
    )


def _png(image: Tensor) -> str:
    """An image in [0, 1] as a data URI."""
    from PIL import Image

    array = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _print(record: dict[str, Any], folder: Path) -> None:
    before, after, attack = record["measured"]["before"], record["measured"]["after"], record["attack"]
    print(f"\n{'':<36}{'before':>8}{'after':>8}")
    for name, key, value in (
        (f"images in style {record['style']}", "UA", lambda x: 1 - x),
        ("other styles right", "IRA", float),
        ("objects right", "CRA", float),
    ):
        print(f"{name:<36}{value(before[key]):>8.0%}{value(after[key]):>8.0%}")
    won = round(attack["asr"] * attack["prompts"]) if attack["prompts"] else 0
    print(f"\nWith an attack {won} of {attack['prompts']} prompts show the style again.")
    print(f"Open {folder / 'report.html'}. The model is in {folder / 'model'}.")
