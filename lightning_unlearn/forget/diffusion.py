"""Request to erase a concept from a Stable Diffusion pipeline."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from lightning_unlearn.audit.entries import model_entry
from lightning_unlearn.audit.hashes import rows_root
from lightning_unlearn.benchmarks.miniature import SEARCH
from lightning_unlearn.core.modes import differentiable
from lightning_unlearn.diffusion.attacks.search import PromptSearch
from lightning_unlearn.diffusion.concept_presence import prompt_effect
from lightning_unlearn.diffusion.data.miniature import miniature_pipeline
from lightning_unlearn.diffusion.engine.draws import Draws
from lightning_unlearn.diffusion.engine.model import image_size
from lightning_unlearn.diffusion.judges import Judge, class_numbers
from lightning_unlearn.diffusion.text_to_image import LitTextToImage
from lightning_unlearn.forget.erasure_evidence import erasure_findings, measure_erasure
from lightning_unlearn.forget.erasure_images import Drawing
from lightning_unlearn.forget.erasure_judges import find_judge
from lightning_unlearn.forget.erasure_methods import Recipe, recipe
from lightning_unlearn.forget.erasure_plan import erasure_plan
from lightning_unlearn.forget.erasure_prompts import ErasurePrompts, miniature_prompts, own_prompts
from lightning_unlearn.forget.request import Findings, Plan, RequestOptions

__all__ = ["ConceptRequest"]

MINIATURE = "miniature"


_DRAWING = Drawing()


@dataclass
class ConceptRequest:
    """Erase a concept from a Stable Diffusion pipeline, and show what it draws before and after.

    Args:
        pipeline: Folder, hub id or single ``.safetensors`` file of Stable Diffusion 1.x or 2.x; or ``miniature``, a
            small pipeline that comes with the package.
        concept: The words by which prompts call the concept: ``"Van Gogh"``, or several.
        options: Options that all requests share.
        keep: Prompts that are to be drawn as before, or a file of them; by default those of everyday objects.
        anchor: What the concept becomes with ``uce``, ``rece`` and ``concept_ablation``, such as ``"art"``; by default
            nothing.
        method: ``auto``, which is ``esd``; or ``esd_u``, ``uce``, ``rece``, ``adv_unlearn``, ``concept_ablation``,
            ``spm``.
        prompts: Prompts of the concept to draw before and after, or a file of them; by default made from its words.
        judge: What says whether an image shows the concept: ``nudenet``; ``clip:<folder or hub id>``; or the folder or
            hub id of an image classifier of transformers. Further ones look at what is to be kept.
        judge_class: The class of the first judge that is the concept; by default the first of its words.
        attack: Search prompts that bring the concept back (UnlearnDiffAtk). It needs a judge.
        drawing: How images are drawn.
        variant: Which files of the pipeline's folder, such as ``fp16``; the model is written with the same.
        architecture: For a single file, folder or hub id of a pipeline of the same architecture.
    """

    pipeline: str
    concept: list[str] | str
    options: RequestOptions = field(default_factory=RequestOptions)
    keep: list[str] | str | None = None
    anchor: str = ""
    method: str = "auto"
    prompts: list[str] | str | None = None
    judge: list[str] | str | None = None
    judge_class: str | None = None
    attack: bool = False
    drawing: Drawing = _DRAWING
    variant: str | None = None
    architecture: str | None = None

    kind = "diffusion"
    effects: dict[str, float] = field(default_factory=dict, init=False)
    """Effect of each word of the concept, alone as a prompt, on what the pipeline draws; found by `check`."""

    # ---- what is asked -----------------------------------------------------------------------------------------------

    @property
    def named(self) -> list[str]:
        """The words by which the user calls the concept."""
        return [self.concept] if isinstance(self.concept, str) else list(self.concept)

    @property
    def miniature(self) -> bool:
        """Whether the pipeline is the one that comes with the package."""
        path = Path(self.pipeline)
        return self.pipeline == MINIATURE or (path.is_dir() and path.samefile(miniature_pipeline()))

    @property
    def source(self) -> str:
        """Folder, file or hub id of the pipeline."""
        if self.miniature:
            return str(miniature_pipeline())
        path = Path(self.pipeline).expanduser()
        return str(path.resolve()) if path.exists() else self.pipeline

    @cached_property
    def recipe(self) -> Recipe:
        """The method with its settings."""
        return recipe(self.method, self.miniature)

    @property
    def steps(self) -> int:
        """Steps of training."""
        return (self.options.max_steps or self.recipe.steps) if self.recipe.steps else 0

    @cached_property
    def asked(self) -> ErasurePrompts:
        """The prompts of the request."""
        images, seed = self.drawing.images, 10_000 * self.options.seed
        known = miniature_prompts(self.named, images, seed) if self.miniature else None
        if known is not None and self.keep is None and self.prompts is None:
            return known
        return own_prompts(self.named, self.anchor, self.keep, self.prompts, images, seed)

    @property
    def judge_names(self) -> list[str]:
        """Names of the judges, the one that knows the concept first."""
        given = self.asked.judges if self.judge is None else self.judge
        return [given] if isinstance(given, str) else list(given)

    @cached_property
    def judges(self) -> list[Judge]:
        """The judges, opened."""
        return [find_judge(name, self.asked) for name in self.judge_names]

    @property
    def classes(self) -> list[str]:
        """The classes of the first judge that are the concept."""
        return [self.judge_class or self.asked.words[0]]

    # ---- before ------------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Refuse what would fail later."""
        self._check_words()
        if find_spec("PIL") is None:
            raise ImportError('Images are written by pillow: pip install "lightning-unlearn[report]"')
        self.recipe  # noqa: B018
        if self.options.max_steps is not None and not self.recipe.steps:
            raise ValueError(f"max_steps has no meaning with method={self.method!r}, an edit without steps: leave it.")
        if self.attack and not self.judge_names:
            raise ValueError(
                "attack=True searches until a judge sees the concept, and there is none: give --judge, such as "
                "clip:<folder or hub id of a CLIP model>, or leave the attack."
            )
        opened = self.open(self.source)
        size = image_size(opened)
        for number, judge in enumerate(self.judges):
            if number == 0:
                class_numbers(judge, self.classes)
            judge(torch.zeros(1, 3, *size))  # judges may want one size
        noise = Draws(0, 0).noise(opened, 2)
        with differentiable(opened), torch.no_grad():
            self.effects = {word: prompt_effect(opened, word, noise) for word in self.asked.words}

    def _check_words(self) -> None:
        if not self.named or not all(word.strip() for word in self.named):
            raise ValueError(f"concept={self.concept!r} has no word or a blank one. Name what is to go.")
        for text in [*self.named, self.anchor, *(row["prompt"] for row in self.asked.forget), *self.asked.keep]:
            if "${" in text or "{}" in text:
                raise ValueError(f"{text!r} has ${{ or {{}} in it, which has a meaning in run.yaml. Write it without.")

    def plan(self) -> Plan:
        """What the request will do."""
        return erasure_plan(self)

    def entries(self, secret: bytes) -> dict[str, Any]:
        """What the record says of the request."""
        asked, local = self.asked, Path(self.source).exists()
        drawn = [picture.prompt for picture in asked.pictures]
        measured = {"judges": [[judge.name, judge.version] for judge in self.judges], "attack": self.attack}
        method = {"name": self.recipe.name, "steps": self.steps, "lr": self.recipe.lr, "batch": self.recipe.batch_size}
        return {
            "kind": self.kind,
            "forget": {"rows": len(asked.forget), "rows_root": rows_root(asked.forget, secret)},
            "keep": {"rows": len(asked.keep), "rows_root": rows_root(asked.keep, secret)},
            "method": {**method, "trainable": self.recipe.trainable, **self.recipe.seeded(self.options.seed)},
            "measured": {**measured, "prompts_root": rows_root(drawn, secret), "drawing": asdict(self.drawing)},
            **({"models": {"before": model_entry(self.source)}} if local else {"base_model": self.source}),
            "trainer": {"seed": self.options.seed, **self.options.trainer()},
        }

    # ---- the run -----------------------------------------------------------------------------------------------------

    def config(self, folder: Path) -> dict[str, Any]:
        """The run as a configuration of LightningCLI."""
        asked, method, seed = self.asked, self.recipe, self.options.seed
        model = {
            "model": f"${{package:assets/{MINIATURE}}}" if self.miniature else self.source,
            "trainable": method.trainable,
            "lr": method.lr,
            **self.sampler,
            **({"variant": self.variant} if self.variant is not None else {}),
            **({"config": self.architecture} if self.architecture is not None else {}),
        }
        data: dict[str, Any] = {"forget": asked.forget, "batch_size": method.batch_size, "seed": seed}
        if method.retain_batch_size:
            # An edit makes one pass over both sets.
            edit = math.ceil(len(asked.keep) / math.ceil(len(asked.forget) / method.batch_size))
            data |= {"retain": asked.keep, "retain_batch_size": method.retain_batch_size if self.steps else edit}
        data["repeat"] = max(1, math.ceil(self.steps * method.batch_size / len(asked.forget)))
        named = {"prompts": asked.words, "limit": len(asked.words)}  # other words have effects of their own
        presence = {"class_path": "lightning_unlearn.ConceptPresence", "init_args": named}
        return {
            "seed_everything": seed,
            "model": {"class_path": "lightning_unlearn.LitTextToImage", "init_args": model},
            "data": {"class_path": "lightning_unlearn.PromptDataModule", "init_args": data},
            "trainer": {
                "max_epochs": 1,
                **({"max_steps": self.steps} if self.steps else {}),
                "log_every_n_steps": 1,
                "callbacks": [presence, method.seeded(seed)],
            },
        }

    def export(self, ckpt: Path, folder: Path) -> None:
        """Write the folder of a ``StableDiffusionPipeline``."""
        LitTextToImage.load_from_checkpoint(ckpt, "cpu", weights_only=True).save_pretrained(folder)

    # ---- after -------------------------------------------------------------------------------------------------------

    def evidence(self, model: Path, work: Path) -> Findings:
        """Draw and judge images before and after, and attack the model."""
        return erasure_findings(self, measure_erasure(self, model, work), model)

    @property
    def search(self) -> PromptSearch:
        """How the attack searches for tokens: the setting of its authors for styles and objects."""
        return PromptSearch(**SEARCH) if self.miniature else PromptSearch(tokens=3)

    @property
    def sampler(self) -> dict[str, Any]:
        """Steps and guidance of the sampler."""
        return self.drawing.sampler(self.miniature)

    def open(self, model: str) -> LitTextToImage:
        """A pipeline that draws, on the device that the request names.

        Args:
            model: The pipeline of the request, or the one that came of it.
        """
        config = self.architecture if model == self.source else None
        opened = LitTextToImage(model, self.recipe.trainable, variant=self.variant, config=config, **self.sampler)
        wanted = self.options.accelerator in ("auto", "gpu", "cuda")
        return opened.to("cuda" if wanted and torch.cuda.is_available() else "cpu").eval()
