"""Concept inversion: a learned word that brings an erased concept back."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_unlearn.core.checks import above, at_least
from lightning_unlearn.core.files import replacing, write_text
from lightning_unlearn.core.lightning import rank_zero_info, rank_zero_warn
from lightning_unlearn.core.modes import differentiable
from lightning_unlearn.core.sources import Source
from lightning_unlearn.diffusion.attacks.cases import Candidate, Case, Meter
from lightning_unlearn.diffusion.attacks.fingerprint import fingerprint
from lightning_unlearn.diffusion.attacks.judged import JudgedAttack
from lightning_unlearn.diffusion.attacks.prompts import attack_prompts
from lightning_unlearn.diffusion.attacks.result import AttackResult, ResultFile
from lightning_unlearn.diffusion.attacks.victim import fit_images, target_latents
from lightning_unlearn.diffusion.engine.learned_words import learned_words
from lightning_unlearn.diffusion.engine.model import (
    TextToImage,
    alphas_bar,
    as_text_to_image,
    image_size,
    prediction_type,
    unet_output,
)
from lightning_unlearn.diffusion.engine.pipeline import draw
from lightning_unlearn.diffusion.engine.text import encode, tokenize, word_ids
from lightning_unlearn.diffusion.guards import is_steered
from lightning_unlearn.functional.diffusion.ddim import add_noise, prediction_target
from lightning_unlearn.functional.diffusion.noise import row_noise
from lightning_unlearn.functional.random import keyed_generator

__all__ = ["ConceptInversion", "InversionSearch"]

_WORD = "<learned>"
_FILE = "learned.safetensors"
_TEMPLATES = ("a photo of {}", "a rendering of {}", "a picture of {}", "an image of {}", "{}")
_DRAW, _NOISE = 6, 7  # what a draw is for


@dataclass(frozen=True)
class InversionSearch:
    """How [`ConceptInversion`][lightning_unlearn.ConceptInversion] learns its word; defaults of the authors' code.

    Args:
        templates: Captions of the images, with ``{}`` for the word. The lists of textual inversion are longer.
        init: Words from whose embeddings, or their mean, the learned word starts, such as ``"art"``. The default is the
            name of the concept, which erasure by name may have moved the furthest from the concept.
        vectors: Number of tokens of the word.
        steps: Steps of AdamW.
        batch_size: Images per step.
        lr: Learning rate; the default is the code's 0.005 times its 16 images per step on one device.
        weight_decay: Decoupled weight decay, the default of AdamW.

    Raises:
        ValueError: If a number is out of range, or a template has no ``{}``.
    """

    templates: list[str] = field(default_factory=lambda: list(_TEMPLATES))
    init: str | None = None
    vectors: int = 1
    steps: int = 5000
    batch_size: int = 4
    lr: float = 0.08
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        bare = [template for template in self.templates if "{}" not in template]
        if bare or not self.templates:
            raise ValueError(f"templates are captions with {{}} where the word goes, but got {list(self.templates)!r}.")
        at_least("vectors", self.vectors, 1)
        at_least("steps", self.steps, 0)
        at_least("batch_size", self.batch_size, 1)
        above("lr", self.lr, 0)
        at_least("weight_decay", self.weight_decay, 0)


@dataclass(eq=False)
class ConceptInversion(JudgedAttack):
    r"""Learn a word from images of an erased concept, and ask for the concept with this word.

    The embedding $v_*$ of one new word is trained by textual inversion on the erased model, whose weights are frozen,

    $$v_* = \arg\min_v \mathbb{E}_{z, t, \epsilon}\, \| \epsilon - e_\theta(z_t, t, c(v)) \|^2,$$

    over images $z$ of the concept and captions $c(v)$ made from templates. Then each prompt is drawn with this word in
    place of the concept's name, and with the prompt's own seed. A success shows that the weights can still draw the
    concept. Unlike [`PromptAttack`][lightning_unlearn.PromptAttack], which finds a text for each prompt, this attack
    uses one word for all prompts, and searches the space of embeddings rather than the vocabulary.

    The model's weights, flags and modes, and the global random state are left as they were.

    Args:
        judge: Classifies the images; or the name of a judge, see [`judge_named`][lightning_unlearn.judge_named], which
            is loaded when it is first needed.
        concept: The class or classes of the judge that count as success.
        name: The words of the concept in the prompts, which the learned word replaces.
        search: How the word is learned, see [`InversionSearch`][lightning_unlearn.InversionSearch].
        sampler_steps: Steps of the sampler that draws.
        guidance: Guidance for prompts that do not set their own.
        top: The attack succeeds if the concept is among this many classes with the highest scores.
        batch_size: Prompts drawn together.
        seed: Seed of the training; images have the seeds of their prompts.

    Raises:
        ValueError: If an argument is out of range, or the judge does not know the concept; with the name of a judge,
            when it is loaded.

    Example:
        >>> attack = ConceptInversion("miniature-style", "ember", "ember", InversionSearch(steps=100, lr=0.01))
        >>> attack.settings["method"], attack.settings["steps"]
        ('concept inversion', 100)

    References:
        Pham et al., *Circumventing Concept Erasure Methods For Text-to-Image Generative Models*, arXiv:2308.01508; Gal
        et al., *An Image is Worth One Word*, arXiv:2208.01618.
    """

    name: str
    search: InversionSearch = field(default_factory=InversionSearch)
    sampler_steps: int = 50
    guidance: float = 7.5
    top: int = 1
    batch_size: int = 8
    seed: int = 0

    needs_targets, needs_base = True, False

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise ValueError("name is empty. Give the words of the concept that the prompts have.")
        at_least("sampler_steps", self.sampler_steps, 1)
        at_least("guidance", self.guidance, 0)
        at_least("top", self.top, 1)
        at_least("batch_size", self.batch_size, 1)
        if not isinstance(self.judge, str):
            self.load_judge()

    @property
    def settings(self) -> dict[str, Any]:
        """All that results depend on, beside the model, the images and the prompts."""
        judge = self.load_judge()
        drawn = {name: getattr(self, name) for name in ("name", "sampler_steps", "top", "seed")}
        of_judge = {"judge": [judge.name, judge.version], "concept": self.concepts}
        return {"method": "concept inversion", **of_judge, **asdict(self.search), **drawn}

    def prompt_with(self, prompt: str, word: str) -> str:
        """A prompt with a word in place of the concept's name.

        Raises:
            ValueError: If the prompt does not have the name.
        """
        pattern = rf"(?<!\w){re.escape(self.name)}(?!\w)"
        replaced, count = re.subn(pattern, lambda _: word, prompt, flags=re.IGNORECASE)
        if not count:
            raise ValueError(
                f"The prompt {prompt!r} does not have the concept's name {self.name!r}, in whose place the learned "
                "word comes. Give the words that the prompts call it by, and prompts that have them."
            )
        return replaced

    def run(
        self,
        module: nn.Module,
        prompts: Source,
        targets: Tensor | Sequence[Tensor] | None = None,
        base: nn.Module | None = None,
        output_dir: str | Path | None = None,
        overwrite: bool = False,
    ) -> AttackResult:
        """Attack a model.

        Args:
            module: A module with the parts of
                [`TextToImage`][lightning_unlearn.diffusion.engine.model.TextToImage], and ``vae``.
            prompts: Prompts that name the concept, see
                [`attack_prompts`][lightning_unlearn.diffusion.attacks.prompts.attack_prompts].
            targets: Images of the concept, any number, shape ``(N, 3, H, W)`` or a list of ``(3, H, W)``, in [0, 1];
                the authors take 25. Those of another size than the model's are resized and cut.
            base: The model before erasure, which draws the images from the prompts where none are given; those that do
                not show the concept are left out.
            output_dir: Where ``prompts.jsonl``, ``summary.json`` and the word are kept; the word as
                ``learned.safetensors``, which ``pipeline.load_textual_inversion(path, token="<learned>")`` reads. Run
                again after a kill, a word that is learned is not learned again.
            overwrite: Whether results of another attack in that folder are replaced.

        Returns:
            The outcomes, and rates; ``adversarial`` has the word as ``<learned>``.

        Raises:
            ValueError: If there are no images, a prompt lacks the name, the folder has results of another attack, or
                the model has a loaded LoRA or is guarded by ``SafeLatentDiffusion``.
            TypeError: If the module lacks a part.
        """
        model, rows = as_text_to_image(module), attack_prompts(prompts, self.guidance)
        for row in rows:
            self.prompt_with(row["prompt"], _WORD)
        if not hasattr(module, "vae"):
            raise TypeError(f"{type(module).__name__} has no vae, so images have no latents.")
        if is_steered(module):
            raise ValueError(
                "SafeLatentDiffusion steers the passes of a pipeline, but this attack calls the UNet on its own. Leave "
                "the guard."
            )
        models = [module] if base is None else [module, base]
        with differentiable(*models), Meter(models) as meter:
            images = self._images(model, rows, targets, base, meter)
            settings = {**self.settings, "victim": fingerprint(model), "images": _hash(images)}
            folder = Path(output_dir) if output_dir is not None else None
            file = ResultFile(folder / "prompts.jsonl" if folder else None, settings, overwrite)
            cases = [Case(row, None) for row in rows]
            vectors, loss = self._learned(model, images, folder, _hash(settings))
            unfinished = list({case.key: case for case in cases if case.key not in file.finished}.values())
            for i in range(0, len(unfinished), self.batch_size):
                self._judge(module, unfinished[i : i + self.batch_size], vectors, loss, file, meter)
        result = AttackResult([file.finished[case.key] for case in cases], settings)
        if folder is not None:
            write_text(folder / "summary.json", json.dumps(result.summary(), indent=2) + "\n")
        return result

    def learn(self, module: nn.Module, images: Tensor) -> tuple[Tensor, float]:
        """Train the word.

        Args:
            module: The erased model.
            images: Shape ``(N, 3, H, W)``, in [0, 1], at the model's size.

        Returns:
            The word's embeddings, shape ``(k, D)``, and the mean loss of the last tenth of the steps.
        """
        model, search = as_text_to_image(module), self.search
        with differentiable(module):
            latents = target_latents(module, images.to(model.unet.device))
            vectors = self._start(model).requires_grad_()
            optimizer = torch.optim.AdamW([vectors], lr=search.lr, weight_decay=search.weight_decay)
            last: list[float] = []
            with learned_words(model, vectors, _WORD) as word:
                texts = [template.replace("{}", word) for template in search.templates]
                ids = tokenize(model.tokenizer, texts)["input_ids"].to(latents.device)
                for step in range(search.steps):
                    loss = self._loss(model, latents, ids, step)
                    (vectors.grad,) = torch.autograd.grad(loss, vectors)
                    optimizer.step()
                    last = [*last, loss.item()][-max(search.steps // 10, 1) :]
                    if (step + 1) % max(search.steps // 10, 1) == 0:
                        mean = sum(last) / len(last)
                        rank_zero_info(f"ConceptInversion: step {step + 1} of {search.steps}, loss {mean:.4f}.")
        return vectors.detach(), sum(last) / max(len(last), 1)

    def _start(self, model: TextToImage) -> Tensor:
        """Embeddings that the word starts at, in fp32."""
        ids = word_ids(model.tokenizer, self.search.init or self.name)
        table = model.text_encoder.get_input_embeddings().weight.detach().float()
        if len(ids) == self.search.vectors:
            return table[ids].clone()
        return table[ids].mean(0, keepdim=True).repeat(self.search.vectors, 1)

    def _loss(self, model: TextToImage, latents: Tensor, ids: Tensor, step: int) -> Tensor:
        """The denoising loss of a step's images, with captions, noise and noise levels of its own."""
        generator, count = keyed_generator(self.seed, _DRAW, step), self.search.batch_size
        levels = alphas_bar(model)
        rows = torch.randint(len(latents), (count,), generator=generator).to(latents.device)
        captions = torch.randint(len(ids), (count,), generator=generator).to(latents.device)
        times = torch.randint(len(levels), (count,), generator=generator).to(latents.device)
        clean = latents[rows]
        noise = row_noise(clean.shape[1:], range(count), self.seed, _NOISE, step).to(clean)
        noisy = add_noise(clean, noise, levels[times])
        target = prediction_target(clean, noise, levels[times], prediction_type(model))
        states = encode(model, ids[captions])
        dtype = next(model.unet.parameters()).dtype
        return (unet_output(model, noisy.to(dtype), times, states) - target).square().mean()

    def _images(
        self,
        model: Any,
        rows: list[dict[str, Any]],
        targets: Tensor | Sequence[Tensor] | None,
        base: nn.Module | None,
        meter: Meter,
    ) -> Tensor:
        """Images of the concept at the model's size."""
        if targets is None and base is None:
            raise ValueError(
                "The word is learned from images of the concept: give targets, or base, the model before erasure, "
                "which draws them."
            )
        if targets is not None:
            if not len(targets):
                raise ValueError("targets has no image. Give at least one of the concept.")
            return fit_images(targets, image_size(model))
        wanted, kept = [(row["prompt"], row["seed"], row["guidance"]) for row in rows], []
        meter.images += len(rows)
        for i in range(0, len(rows), self.batch_size):
            drawn = draw(base, wanted[i : i + self.batch_size], self.sampler_steps)  # type: ignore[arg-type]
            kept += [image for image, shown in zip(drawn, self.shows(drawn)[0], strict=True) if shown]
        if not kept:
            raise ValueError(
                f"{self.load_judge().name} sees {self.concept!r} in none of the images that the model before erasure "
                f"draws of {len(rows)} prompts. Check the judge, the concept and the prompts, or give targets."
            )
        if len(kept) < len(rows):
            rank_zero_warn(f"{len(rows) - len(kept)} of {len(rows)} images of the base model do not show the concept.")
        return torch.stack(kept)

    def _learned(self, model: Any, images: Tensor, folder: Path | None, settings: str) -> tuple[Tensor, float]:
        """The word of this attack, learned now or before a kill."""
        from safetensors import safe_open
        from safetensors.torch import save_file

        path = folder / _FILE if folder is not None else None
        if path is not None and path.is_file():
            with safe_open(path, "pt") as opened:
                about = opened.metadata() or {}
                if about.get("settings") == settings:
                    return opened.get_tensor(_WORD).to(model.unet.device), float(about["loss"])
        vectors, loss = self.learn(model, images)
        if path is not None:
            with replacing(path) as part:
                save_file({_WORD: vectors.cpu()}, part, metadata={"settings": settings, "loss": str(loss)})
        return vectors, loss

    def _judge(
        self, module: nn.Module, cases: list[Case], vectors: Tensor, loss: float, file: ResultFile, meter: Meter
    ) -> None:
        """Draw prompts as they are, and those that do not show the concept with the word."""
        images = draw(module, [(c.prompt, c.seed, c.guidance) for c in cases], self.sampler_steps)
        meter.images += len(cases)
        hidden = []
        for case, shown, score in zip(cases, *self.shows(images), strict=True):
            case.update(images=1, before=shown, score=score)
            if not shown:
                hidden.append(case)
        if hidden:
            with learned_words(as_text_to_image(module), vectors, _WORD) as word:
                texts = [self.prompt_with(case.prompt, word) for case in hidden]
                wanted = [(text, case.seed, case.guidance) for text, case in zip(texts, hidden, strict=True)]
                images = draw(module, wanted, self.sampler_steps)
            meter.images += len(hidden)
            for case, shown, score in zip(hidden, *self.shows(images), strict=True):
                case.update(score=None, steps=self.search.steps, loss=loss)
                case.judged(Candidate(self.prompt_with(case.prompt, _WORD), case.seed), score, shown)
        for case in cases:
            case.update(cost=meter.lap())
            file.add(case.key, case.result)


def _hash(value: Any) -> str:
    """A hash of a tensor, or of what JSON can say."""
    if isinstance(value, Tensor):
        return hashlib.sha256(value.float().cpu().contiguous().numpy().tobytes()).hexdigest()[:16]
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
