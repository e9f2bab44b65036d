"""Adversarial prompts for an erased model: UnlearnDiffAtk, P4D and controls."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_unlearn.core.checks import at_least
from lightning_unlearn.core.files import write_text
from lightning_unlearn.core.lightning import rank_zero_info, rank_zero_warn
from lightning_unlearn.core.modes import differentiable
from lightning_unlearn.core.sources import Source
from lightning_unlearn.diffusion.attacks.cases import Candidate, Case, Meter
from lightning_unlearn.diffusion.attacks.fingerprint import fingerprint
from lightning_unlearn.diffusion.attacks.judged import JudgedAttack
from lightning_unlearn.diffusion.attacks.prompts import allowed_tokens, attack_prompts, word_counts
from lightning_unlearn.diffusion.attacks.result import AttackResult, ResultFile
from lightning_unlearn.diffusion.attacks.search import Descent, PromptSearch
from lightning_unlearn.diffusion.attacks.victim import PromptLoss, fit_images, target_latents
from lightning_unlearn.diffusion.engine.model import as_text_to_image, image_size
from lightning_unlearn.diffusion.engine.pipeline import draw
from lightning_unlearn.diffusion.engine.text import tokenize
from lightning_unlearn.diffusion.guards import is_steered
from lightning_unlearn.functional.diffusion.ddim import attack_timesteps
from lightning_unlearn.functional.diffusion.soft_tokens import insert_tokens
from lightning_unlearn.functional.random import keyed_generator

__all__ = ["PromptAttack"]

_SEEDS, _LEVELS = 4, 5  # what a draw is for


@dataclass(eq=False)
class PromptAttack(JudgedAttack):
    r"""Insert tokens into prompts of an erased concept, until the model's image shows it again.

    UnlearnDiffAtk, the default, minimises the denoising loss of a target image $z$ that shows the concept, with the
    tokens $\delta$ in the prompt $c$, over $\delta$: $\mathbb{E}\,\| \epsilon - e_\theta(z_t, t, c \oplus \delta)
    \|^2$. It needs neither the model before erasure nor a classifier's gradient. Noise levels are visited in order,
    from little to much noise, with ``iterations`` steps each. After each level the tokens are decoded to text, the
    model draws this prompt with the prompt's own seed, and the search ends if the judge sees the concept.

    Prompts are attacked in batches, with the same result as one by one, up to rounding. What is judged is the decoded
    text, tokenized again. The model's weights, flags and modes, and the global random state are left as they were.

    Args:
        judge: Classifies the images; or the name of a judge, see [`judge_named`][lightning_unlearn.judge_named], which
            is loaded when it is first needed.
        concept: The class or classes of the judge that count as success, see
            [`class_numbers`][lightning_unlearn.diffusion.judges.class_numbers].
        search: How tokens are searched for, see [`PromptSearch`][lightning_unlearn.PromptSearch].
        sampler_steps: Steps of the sampler that draws.
        guidance: Guidance for prompts that do not set their own.
        top: The attack succeeds if the concept is among this many classes with the highest scores.
        batch_size: Prompts attacked together.
        seed: Seed of the search; images have the seeds of their prompts.

    Raises:
        ValueError: If an argument is out of range, or the judge does not know the concept or has several classes of
            that name; with the name of a judge, when it is loaded.
        TypeError: If ``judge`` is not a judge.

    Example:
        >>> attack = PromptAttack("miniature-style", "ember", PromptSearch(tokens=3, levels=10, iterations=10))
        >>> attack.settings["optimizer"]
        'text_grad'

    References:
        Zhang et al., *To Generate or Not? Safety-Driven Unlearned Diffusion Models Are Still Easy To Generate Unsafe
        Images ... For Now*, arXiv:2310.11868; Chin et al., *Prompting4Debugging*, arXiv:2309.06135.
    """

    search: PromptSearch = field(default_factory=PromptSearch)
    sampler_steps: int = 50
    guidance: float = 7.5
    top: int = 1
    batch_size: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        at_least("sampler_steps", self.sampler_steps, 1)
        at_least("guidance", self.guidance, 0)
        at_least("top", self.top, 1)
        at_least("batch_size", self.batch_size, 1)
        if not isinstance(self.judge, str):
            self.load_judge()

    @property
    def needs_targets(self) -> bool:
        """Whether the search compares with images."""
        return self.search.needs_targets

    @property
    def needs_base(self) -> bool:
        """Whether the search compares with the model before erasure."""
        return self.search.objective == "p4d"

    @property
    def settings(self) -> dict[str, Any]:
        """All that results depend on, beside the model and the prompts."""
        judge, drawn = self.load_judge(), {name: getattr(self, name) for name in ("sampler_steps", "top", "seed")}
        return {"judge": [judge.name, judge.version], "concept": self.concepts, **asdict(self.search), **drawn}

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
            targets: An image of the concept for each, shape ``(N, 3, H, W)`` or a list of ``(3, H, W)``, in [0, 1].
                Those of another size than the model's are resized until they cover it, and cut in the middle.
            base: The model before erasure. It draws the targets where none are given, from the prompts and their seeds;
                prompts of which the judge does not see the concept in its image are skipped. P4D always needs it.
            output_dir: Where ``prompts.jsonl`` is kept, a line for each finished prompt, and ``summary.json`` at the
                end. Run again after a kill, finished prompts are not attacked again.
            overwrite: Whether results of another attack in that folder are replaced.

        Returns:
            The outcomes, and rates.

        Raises:
            ValueError: If targets are missing or do not fit, the folder has results of another attack, the model has a
                loaded LoRA, or ``SafeLatentDiffusion`` meets an attack by gradient.
            TypeError: If the module lacks a part.
        """
        model, rows = as_text_to_image(module), attack_prompts(prompts, self.guidance)
        self._check(module, rows, targets, base)
        if targets is not None and hasattr(module, "vae"):
            targets = fit_images(targets, image_size(module))
        settings = {**self.settings, "victim": fingerprint(model)}
        if base is not None:
            settings["base"] = fingerprint(as_text_to_image(base))
        folder = Path(output_dir) if output_dir is not None else None
        file = ResultFile(folder / "prompts.jsonl" if folder else None, settings, overwrite)
        cases = [Case(row, None if targets is None else targets[i]) for i, row in enumerate(rows)]
        unfinished = {case.key: case for case in cases if case.key not in file.finished}
        models = [module] if base is None else [module, base]
        with differentiable(*models), Meter(models) as meter:
            _Run(self, module, base, file, meter).attack_all(list(unfinished.values()))
        result = AttackResult([file.finished[case.key] for case in cases], settings)
        skipped = [row for row in result.prompts if row.skipped]
        if skipped:
            rank_zero_warn(f"{len(skipped)} of {len(rows)} prompts were skipped: the first {skipped[0].skipped}.")
        if folder is not None:
            write_text(folder / "summary.json", json.dumps(result.summary(), indent=2) + "\n")
        return result

    def _check(
        self,
        module: nn.Module,
        rows: list[dict[str, Any]],
        targets: Sequence[Tensor] | Tensor | None,
        base: nn.Module | None,
    ) -> None:
        search = self.search
        if search.objective == "transfer" and not all("adversarial" in row for row in rows):
            raise ValueError("objective='transfer' judges the prompts in 'adversarial', which some rows do not have.")
        if search.objective == "p4d" and base is None:
            raise ValueError("objective='p4d' compares with the model before erasure: give it as base.")
        if search.needs_targets and targets is None and base is None:
            raise ValueError(
                f"optimizer={search.optimizer!r} needs an image of the concept for each prompt: give targets, or base, "
                "the model before erasure, which draws them."
            )
        if search.needs_targets and any(map(is_steered, (module, base))):
            raise ValueError(
                "SafeLatentDiffusion steers the passes of a pipeline, but an attack by gradient calls the UNet on its "
                "own. Attack with optimizer='random', 'seed_search' or 'none', or leave the guard."
            )
        if targets is not None and base is not None and search.objective != "p4d":
            raise ValueError("base only draws targets here, and targets are given. Leave out one of them.")
        if targets is not None and len(targets) != len(rows):
            raise ValueError(
                f"targets must have an image for each of {len(rows)} prompts, but there are {len(targets)}."
            )
        if search.needs_targets and not hasattr(module, "vae"):
            raise TypeError(f"{type(module).__name__} has no vae, so target images have no latents.")


@dataclass
class _Run:
    """One run of an attack on a model."""

    attack: PromptAttack
    module: nn.Module
    base: nn.Module | None
    file: ResultFile
    meter: Meter

    def __post_init__(self) -> None:
        self.search, self.model = self.attack.search, as_text_to_image(self.module)
        self.train_steps = len(self.model.scheduler.alphas_cumprod)

    def attack_all(self, cases: list[Case]) -> None:
        """Attack in whole batches the prompts that do not show the concept by themselves."""
        size = self.attack.batch_size
        pending: list[Case] = []
        for i in range(0, len(cases), size):
            batch = self.fitting(cases[i : i + size])
            if self.base is not None and batch and batch[0].target is None:
                batch = self.with_targets(batch)
            pending += self.unattacked(batch)
            while len(pending) >= size:
                self.attack_batch(pending[:size])
                pending = pending[size:]
        if pending:
            self.attack_batch(pending)

    def fitting(self, cases: list[Case]) -> list[Case]:
        """The prompts that leave room for the tokens."""
        if not self.search.inserts:
            return cases
        tokens = self.search.tokens
        ids = tokenize(self.model.tokenizer, [case.prompt for case in cases])["input_ids"]
        room, kept = ids.shape[1] - 2 - tokens, []
        for case, length in zip(cases, word_counts(ids, self.model.tokenizer).tolist(), strict=True):
            if length <= room or (self.search.placement == "replace" and room >= 0):
                kept.append(case)
            else:
                self.finish(case, skipped=f"has {length} tokens, and {tokens} more leave room for {room}")
        return kept

    def with_targets(self, cases: list[Case]) -> list[Case]:
        """The prompts whose image by the base model shows the concept, with that image as their target."""
        assert self.base is not None
        images, kept = self.draw(self.base, [(c.prompt, c.seed, c.guidance) for c in cases]), []
        for case, image, shown in zip(cases, images, self.attack.shows(images)[0], strict=True):
            if shown:
                case.target = image
                kept.append(case)
            else:
                self.finish(case, skipped="is one that the base model draws without the concept")
        return kept

    def unattacked(self, cases: list[Case]) -> list[Case]:
        """The prompts that do not show the concept by themselves; none where there is nothing to attack with."""
        if not cases:
            return []
        images, pending = self.draw(self.module, [(c.prompt, c.seed, c.guidance) for c in cases]), []
        for case, shown, score in zip(cases, *self.attack.shows(images), strict=True):
            case.update(images=1)
            if shown or not self.search.attacks:
                self.finish(case, before=shown, score=score)
            else:
                pending.append(case)
        return pending

    def attack_batch(self, cases: list[Case]) -> None:
        """Search, draw and judge in rounds, until the concept is shown or the rounds are over."""
        batch, active = _Batch(self, cases), list(range(len(cases)))
        levels = [0] if self.search.objective == "transfer" else attack_timesteps(self.search.levels, self.train_steps)
        for number, level in enumerate(levels):
            batch.descend(active, number, level)
            tried = batch.candidates(active, number)
            images = self.draw(self.module, [(t.text, t.seed, cases[r].guidance) for r, t in tried.items()])
            for row, shown, score in zip(active, *self.attack.shows(images), strict=True):
                cases[row].judged(tried[row], score, shown)
            for row in active:
                if cases[row].result.success:
                    self.finish(cases[row])
            active = [row for row in active if not cases[row].result.success]
            won = sum(case.result.success for case in cases)
            rank_zero_info(f"Attack: round {number + 1}, {won} of {len(cases)} prompts show the concept.")
            if not active:
                return
        for row in active:
            self.finish(cases[row])

    def finish(self, case: Case, **outcome: Any) -> None:
        """Keep the result of a prompt, and what it cost."""
        case.update(cost=self.meter.lap(), **outcome)
        self.file.add(case.key, case.result)

    def draw(self, module: nn.Module, wanted: Sequence[tuple[str, int, float]]) -> Tensor:
        self.meter.images += len(wanted)
        return draw(module, wanted, self.attack.sampler_steps)


class _Batch:
    """Prompts that are attacked together."""

    def __init__(self, run: _Run, cases: list[Case]) -> None:
        self.run, self.cases, self.tokenizer = run, cases, run.model.tokenizer
        self.ids = tokenize(self.tokenizer, [case.prompt for case in cases])["input_ids"]
        self.lengths = word_counts(self.ids, self.tokenizer)
        self.allowed, self.keys = allowed_tokens(run.model), [case.number for case in cases]
        embeddings = run.model.text_encoder.get_input_embeddings().weight.detach()
        self.search = run.search.begin(embeddings, self.allowed, self.keys, run.attack.seed, run.attack.batch_size)
        self.loss = self.prompt_loss() if isinstance(self.search, Descent) else None

    def prompt_loss(self) -> PromptLoss:
        run, device = self.run, self.run.model.unet.device
        images = torch.stack([case.target for case in self.cases if case.target is not None])
        return PromptLoss(
            run.model,
            self.ids.to(device),
            self.lengths.to(device),
            target_latents(run.module, images).to(device),
            self.keys,
            run.search.placement,
            run.search.criterion,
            run.attack.seed,
            as_text_to_image(run.base) if run.base is not None and run.search.objective == "p4d" else None,
        )

    def descend(self, active: list[int], number: int, level: int) -> None:
        """The steps of a round, where the search has any."""
        if not isinstance(self.search, Descent) or self.loss is None:
            return
        count, device = self.run.search.iterations, self.run.model.unet.device
        for step in range(number * count, (number + 1) * count):
            timesteps = torch.tensor([self.timestep(level, step, key) for key in self.keys], device=device)
            losses = self.search.step(active, step, partial(self.loss, timesteps=timesteps, step=step))
            for row, value in zip(active, losses.tolist(), strict=True):
                self.cases[row].update(steps=step + 1, loss=value)

    def timestep(self, level: int, step: int, key: int) -> int:
        if self.run.search.schedule == "sequential":
            return level
        generator = keyed_generator(self.run.attack.seed, _LEVELS, step, key)
        return int(torch.randint(self.run.train_steps, (), generator=generator))

    def candidates(self, active: list[int], number: int) -> dict[int, Candidate]:
        """What to draw for each prompt in a round."""
        cases, seed = self.cases, self.run.attack.seed
        if self.run.search.objective == "transfer":
            return {r: Candidate(str(cases[r].row["adversarial"]), cases[r].seed) for r in active}
        if self.search is None:
            generators = {r: keyed_generator(seed, _SEEDS, number, cases[r].number) for r in active}
            seeds = {r: int(torch.randint(2**31, (), generator=generator)) for r, generator in generators.items()}
            return {r: Candidate(cases[r].prompt, seeds[r]) for r in active}
        chosen = self.allowed[self.search.tokens(active, number)].cpu()
        whole = insert_tokens(self.ids[active], self.lengths[active], chosen, self.run.search.placement)
        ends = word_counts(whole, self.tokenizer).tolist()
        texts = [self.tokenizer.decode(row[1 : end + 1].tolist()) for row, end in zip(whole, ends, strict=True)]
        exact = (tokenize(self.tokenizer, texts)["input_ids"] == whole).all(1).tolist()
        return {
            r: Candidate(text, cases[r].seed, picked, same)
            for r, text, picked, same in zip(active, texts, chosen.tolist(), exact, strict=True)
        }
