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
from lightning_unlearn.core.trainer_progress import log_progress
from lightning_unlearn.diffusion.attacks.prompt_attack import PromptAttack
from lightning_unlearn.diffusion.attacks.search import PromptSearch
from lightning_unlearn.diffusion.data.miniature import OBJECTS, STYLES, captions, miniature_pipeline, prompt
from lightning_unlearn.diffusion.data.prompts import PromptDataModule
from lightning_unlearn.diffusion.esd import ESD
from lightning_unlearn.diffusion.judges import MiniatureJudge
from lightning_unlearn.diffusion.text_to_image import LitTextToImage
from lightning_unlearn.report.images import png
from lightning_unlearn.report.model import UnlearningReport
from lightning_unlearn.report.runs import attack_section, run_report
from lightning_unlearn.report.sections import ImageRow, Images, Part, Section, Text
from lightning_unlearn.report.write import write_report

__all__ = ["demo_diffusion"]

IMAGES = 3  # of each object in each style; the page shows the first


def demo_diffusion(output_dir: str = "runs/demo-diffusion", style: str = "negative", seed: int = 0) -> UnlearningReport:
    """Erase a style from the miniature pipeline with ESD-x, attack the result, and write a page of images.

    Writes ``report.json``, ``report.md``, ``report.html`` and ``model/``, a folder that plain
    ``StableDiffusionPipeline`` opens.

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
    log_progress(trainer)
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
    provenance = {
        "seed": seed,
        "model_sha256": sha256(*sorted((folder / "model").rglob("*.safetensors"))),
        "data_sha256": hashlib.sha256(json.dumps(forget).encode()).hexdigest(),
    }
    images: list[Part] = [_grid("Before", before, styles), _grid("After", after, styles)]
    report = run_report(
        type(method).__name__,
        "miniature",
        Evaluation(0, _accuracies(before, pairs, style), hit_means="drawn as asked"),
        Evaluation(trainer.global_step, _accuracies(after, pairs, style), hit_means="drawn as asked"),
        title=f"{type(method).__name__} erases the style “{style}”",
        provenance=provenance,
        seconds=seconds,
        peak_memory_bytes=peak_memory("cpu"),
        settings={"trainable": module.hparams["trainable"], "lr": module.lr, "batch_size": data.batch_size},
        sections=[
            Section("images", "Images, before and after", images, "Both tables have the same prompts and seeds."),
            _attack(module, base, style, seed, trainer.global_step),
        ],
        terms={
            "drawn as asked": "A judge, trained on drawings alone, sees the style or object that the caption asks for.",
            "UA, IRA, CRA": "Names of UnlearnCanvas: UA is 1 − the accuracy of forget, IRA that of other styles, CRA "
            "that of objects.",
        },
    )
    write_report(report, folder, show_text=True)  # facts and styles that come with the package
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


def _grid(title: str, images: Tensor, styles: list[str]) -> Images:
    shown = images[::IMAGES].split(len(OBJECTS))
    erased = styles[0]
    rows = [
        ImageRow(style, [png(image) for image in row], secret=style == erased)
        for style, row in zip(styles, shown, strict=True)
    ]
    return Images(title, list(OBJECTS), rows)


def _attack(module: LitTextToImage, base: LitTextToImage, style: str, seed: int, step: int) -> Section:
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
    return attack_section("UnlearnDiffAtk", summary, evaluation, [png(image) for image in images])


def _print(report: UnlearningReport, folder: Path) -> None:
    print(f"\n{'':<16}{'before':>8}{'after':>8}")
    for part in report.section("outcome").measurements:
        print(f"{part.name:<16}{part.anchors.original:>8.0%}{part.value:>8.0%}")
    (attack,) = (section for section in report.sections if section.id.startswith("attack-"))
    print("\n" + "".join(f"{attack.title}: {part.text}" for part in attack.parts if isinstance(part, Text)))
    print(f"Open {folder / 'report.html'}. The model is in {folder / 'model'}.")
