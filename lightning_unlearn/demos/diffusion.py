"""Demo of concept erasure: a small diffusion model forgets a style and is then attacked, on a CPU in minutes."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path

from torch import Tensor

from lightning_unlearn.benchmarks.runs import quiet_libraries
from lightning_unlearn.core.checks import one_of
from lightning_unlearn.core.evaluation import Evaluation
from lightning_unlearn.core.files import replacing, sha256
from lightning_unlearn.core.lightning import Trainer, seed_everything
from lightning_unlearn.core.memory import peak_memory
from lightning_unlearn.diffusion.attacks.prompt_attack import PromptAttack
from lightning_unlearn.diffusion.attacks.search import PromptSearch
from lightning_unlearn.diffusion.data.miniature import OBJECTS, STYLES, captions, miniature_pipeline, prompt
from lightning_unlearn.diffusion.data.prompts import PromptDataModule
from lightning_unlearn.diffusion.esd import ESD
from lightning_unlearn.diffusion.judges import MiniatureJudge
from lightning_unlearn.diffusion.text_to_image import LitTextToImage
from lightning_unlearn.report.html import write_report
from lightning_unlearn.report.images import png
from lightning_unlearn.report.model import Attack, ImageGrid, UnlearnReport

__all__ = ["demo_diffusion"]

IMAGES = 3  # of each object in each style; the page shows the first


def demo_diffusion(output_dir: str = "runs/demo-diffusion", style: str = "negative", seed: int = 0) -> UnlearnReport:
    """Erase a style from the miniature pipeline with ESD-x, attack the result, and write a page of images.

    Writes ``report.json``, ``report.html`` and ``model/``, a folder that plain ``StableDiffusionPipeline`` opens.

    Args:
        output_dir: Folder to write.
        style: One of the [styles][lightning_unlearn.diffusion.data.miniature.STYLES] but ``photo``.
        seed: Seed of the run and of the images.

    Returns:
        The report.

    Raises:
        ValueError: If there is no such style.
    """
    one_of("style", style, [name for name in STYLES if name != "photo"])
    styles = [style, *(name for name in STYLES if name != style)]
    quiet_libraries("transformers", "diffusers")
    seed_everything(seed, verbose=False)
    base, module = (LitTextToImage(str(miniature_pipeline()), lr=3e-4, steps=20, guidance=4.0) for _ in range(2))
    forget = [f"an image in {name} style" for name in STYLES[style]]
    forget += [f"a {object} image in {name} style" for object in OBJECTS for name in STYLES[style]]
    data = PromptDataModule(forget, repeat=150, batch_size=5, seed=seed)
    method = ESD(steps=10, seed=seed)
    trainer = Trainer(
        max_epochs=1,
        max_steps=150,
        accelerator="cpu",
        devices=1,
        callbacks=[method],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    print(f"Erasing the style {style!r} ...", flush=True)
    start = time.perf_counter()
    trainer.fit(module, data)
    seconds = time.perf_counter() - start
    folder = Path(output_dir)
    with replacing(folder / "model") as part:
        module.save_pretrained(part)

    print("Drawing, and attacking ...", flush=True)
    pairs = [(object, name) for name in styles for object in OBJECTS for _ in range(IMAGES)]
    before, after = (_draw(model, pairs, seed) for model in (base, module))
    report = UnlearnReport(
        title=f"{type(method).__name__} erases the style “{style}”",
        method=type(method).__name__,
        seed=seed,
        model="miniature",
        model_sha256=sha256(*sorted((folder / "model").rglob("*.safetensors"))),
        data_sha256=hashlib.sha256(json.dumps(forget).encode()).hexdigest(),
        seconds=seconds,
        peak_memory_bytes=peak_memory("cpu"),
        settings={"trainable": module.hparams["trainable"], "lr": module.lr, "batch_size": data.batch_size},
        before=Evaluation(0, _accuracies(before, pairs, style), hit_means="drawn as asked"),
        after=Evaluation(trainer.global_step, _accuracies(after, pairs, style), hit_means="drawn as asked"),
        images=ImageGrid(list(OBJECTS), _rows(before, styles), _rows(after, styles)),
        attacks=[_attack(module, base, style, seed, trainer.global_step)],
        notes={
            "drawn as asked": "A judge, trained on drawings alone, sees the style or object that the caption asks for.",
            "UA, IRA, CRA": "Names of UnlearnCanvas: UA is 1 − the accuracy of forget, IRA that of other styles, CRA "
            "that of objects.",
        },
    )
    write_report(report, folder, show_answers=True)  # facts and styles that come with the package
    _print(report, folder)
    return report


def _draw(module: LitTextToImage, pairs: list[tuple[str, str]], seed: int) -> Tensor:
    """Draw an image of each object and style, from captions that the pipeline was not trained on."""
    seeds = [10_000 * seed + number for number in range(len(pairs))]
    texts = [captions(*pair, seed=number, heldout=True)[0] for pair, number in zip(pairs, seeds, strict=True)]
    return module.eval().generate(texts, seeds, batch_size=50)


def _accuracies(images: Tensor, pairs: list[tuple[str, str]], style: str) -> dict[str, float]:
    """The share of images whose style and object are those asked for."""
    styles, objects = MiniatureJudge("style"), MiniatureJudge("object")
    style_right = [styles.classes[label] == name for label, (_, name) in zip(styles(images)[0], pairs, strict=True)]
    object_right = [objects.classes[label] == name for label, (name, _) in zip(objects(images)[0], pairs, strict=True)]
    erased = [right for right, (_, name) in zip(style_right, pairs, strict=True) if name == style]
    kept = [right for right, (_, name) in zip(style_right, pairs, strict=True) if name != style]
    sets = {"forget": erased, "other styles": kept, "objects": object_right}
    return {f"{name}_accuracy": sum(right) / len(right) for name, right in sets.items()}


def _rows(images: Tensor, styles: list[str]) -> dict[str, list[str]]:
    shown = images[::IMAGES].split(len(OBJECTS))
    return {style: [png(image) for image in row] for style, row in zip(styles, shown, strict=True)}


def _attack(module: LitTextToImage, base: LitTextToImage, style: str, seed: int, step: int) -> Attack:
    """UnlearnDiffAtk on the plain prompts of the erased style, with the images of what it found."""
    attack = PromptAttack(
        MiniatureJudge("style"),
        style,
        PromptSearch(tokens=3, levels=10, iterations=10, lr=0.05),
        sampler_steps=20,
        guidance=4.0,
        batch_size=10,
        seed=seed,
    )
    rows = [{"prompt": prompt(object, style), "seed": seed + i} for i, object in enumerate(OBJECTS)]
    result = attack.run(module, rows, base=base)
    evaluation = result.evaluation(step, style)
    seeds = [row.seed if row.image_seed is None else row.image_seed for row in result.counted]
    images = module.generate([example.output for example in evaluation.examples], seeds)
    summary = (
        "It searches for tokens that bring the style back. "
        f"Without them {result.pre_asr:.0%} of these prompts show it, with them {result.asr:.0%}."
    )
    return Attack("UnlearnDiffAtk", summary, evaluation, [png(image) for image in images])


def _print(report: UnlearnReport, folder: Path) -> None:
    print(f"\n{'':<16}{'before':>8}{'after':>8}")
    for name in report.before.metrics:
        values = [f"{evaluation.metrics[name]:>8.0%}" for evaluation in (report.before, report.after)]
        print(f"{name.removesuffix('_accuracy'):<16}" + "".join(values))
    print(f"\n{report.attacks[0].name}: {report.attacks[0].summary}")
    print(f"Open {folder / 'report.html'}. The model is in {folder / 'model'}.")
