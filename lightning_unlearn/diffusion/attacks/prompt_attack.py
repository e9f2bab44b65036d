"""UnlearnDiffAtk and its relatives: tokens in a prompt that make an erased model draw what it is said to have lost."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from lightning_unlearn.core.modes import differentiable
from lightning_unlearn.core.sources import Source
from lightning_unlearn.diffusion.attacks.cases import Candidate, Case, Meter
from lightning_unlearn.diffusion.attacks.prompts import allowed_tokens, attack_prompts, attack_timesteps, word_counts
from lightning_unlearn.diffusion.attacks.result import AttackResult, ResultFile
from lightning_unlearn.diffusion.attacks.search import GCG, Descent, HardPrompt, RandomTokens, Search, TextGrad
from lightning_unlearn.diffusion.attacks.victim import Criterion, PromptLoss, draw, fingerprint, target_latents
from lightning_unlearn.diffusion.engine.model import TextToImage, as_text_to_image
from lightning_unlearn.diffusion.engine.text import tokenize
from lightning_unlearn.diffusion.judges import Judge
from lightning_unlearn.functional.diffusion.soft_tokens import Placement, insert_tokens
from lightning_unlearn.functional.random import keyed_generator

__all__ = ["Objective", "Optimizer", "PromptAttack"]

Objective = Literal["uda", "p4d", "transfer"]
Optimizer = Literal["text_grad", "hard_prompt", "gcg", "random", "seed_search", "none"]

_GRADIENT = ("text_grad", "hard_prompt", "gcg")
_PLACEMENTS = ("prefix", "suffix", "mid", "spread", "every_3", "replace")
_SEEDS, _LEVELS = 4, 5


class PromptAttack:
    r"""Insert tokens into prompts of an erased concept, until the model's image shows it again.

    UnlearnDiffAtk, the default, minimises the denoising loss of a target image $z$ that shows the concept, with the
    tokens $\delta$ in the prompt $c$, over $\delta$: $\mathbb{E}\,\| \epsilon - e_\theta(z_t, t, c \oplus \delta)
    \|^2$. It needs neither the model before erasure nor a classifier's gradient. Noise levels are taken in order, from
    little to much noise, with so many steps each; after each level the tokens become text, the model draws it with the
    prompt's own seed, and the judge ends the search where it sees the concept.

    Prompts are attacked in batches, each as if it were alone: the result is that of one by one, up to rounding. What
    is judged is the text, encoded anew. Weights of the model, its flags and modes, and the state of the global random
    numbers are left as they were.

    Args:
        judge: Says what images show.
        concept: The class of the judge that is success, or several.
        objective: ``"uda"``; ``"p4d"``, which matches the output of the base model for the prompt without tokens, at
            twice the passes; or ``"transfer"``, which only judges the prompts that the rows have as ``adversarial``.
        optimizer: ``"text_grad"``, projected gradients on weights of the vocabulary (UnlearnDiffAtk);
            ``"hard_prompt"``, PEZ (P4D); ``"gcg"``; ``"random"`` tokens; ``"seed_search"``, the prompt as it is with
            other seeds; ``"none"``.
        tokens: Number of tokens $k$; the paper takes 5 for nudity and violence and its code 3 for styles and objects.
            With 0 there is no attack.
        placement: Where they go, see [`insert_tokens`][lightning_unlearn.functional.diffusion.soft_tokens].
        levels: Noise levels, so rounds: the most prompts that are tried.
        iterations: Steps at each level.
        schedule: ``"sequential"``, or ``"random"``: a level of its own for each step and prompt.
        lr: Learning rate of Adam.
        weight_decay: Its L2 term, in the gradient.
        init: Weights of ``"text_grad"`` at the start: ``"uniform"`` or ``"random"``.
        candidates: Exchanges that ``"gcg"`` tries in a step.
        criterion: ``"l2"`` or ``"l1"``.
        sampler_steps: Steps of the sampler that draws.
        guidance: Guidance of prompts that name none.
        top: Success is when the concept is among so many classes of highest score.
        batch_size: Prompts attacked together.
        seed: Seed of all that is drawn, but the images.

    Raises:
        ValueError: If an argument is out of range, or the judge does not know the concept.
        TypeError: If the judge is none.

    Example:
        >>> from lightning_unlearn.diffusion.judges import MiniatureJudge
        >>> attack = PromptAttack(MiniatureJudge("style"), "ember", tokens=3, levels=10, iterations=10)
        >>> attack.settings["optimizer"]
        'text_grad'

    References:
        Zhang et al., *To Generate or Not? Safety-Driven Unlearned Diffusion Models Are Still Easy To Generate Unsafe
        Images ... For Now*, arXiv:2310.11868; Chin et al., *Prompting4Debugging*, arXiv:2309.06135.
    """

    def __init__(
        self,
        judge: Judge,
        concept: str | Sequence[str],
        objective: Objective = "uda",
        optimizer: Optimizer = "text_grad",
        tokens: int = 5,
        placement: Placement = "prefix",
        levels: int = 50,
        iterations: int = 40,
        schedule: Literal["sequential", "random"] = "sequential",
        lr: float = 0.01,
        weight_decay: float = 0.1,
        init: Literal["uniform", "random"] = "uniform",
        candidates: int = 32,
        criterion: Criterion = "l2",
        sampler_steps: int = 50,
        guidance: float = 7.5,
        top: int = 1,
        batch_size: int = 8,
        seed: int = 0,
    ) -> None:
        for name, value, known in (
            ("objective", objective, ("uda", "p4d", "transfer")),
            ("optimizer", optimizer, (*_GRADIENT, "random", "seed_search", "none")),
            ("placement", placement, _PLACEMENTS),
            ("schedule", schedule, ("sequential", "random")),
            ("init", init, ("uniform", "random")),
            ("criterion", criterion, ("l2", "l1")),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {known}, but got {value!r}.")
        for name, number, least in (
            ("tokens", tokens, 0), ("levels", levels, 1), ("iterations", iterations, 1), ("candidates", candidates, 1),
            ("sampler_steps", sampler_steps, 1), ("top", top, 1), ("batch_size", batch_size, 1),
            ("weight_decay", weight_decay, 0), ("guidance", guidance, 0),
        ):  # fmt: skip
            if not number >= least:
                raise ValueError(f"{name} must be at least {least}, but got {number}.")
        if not lr > 0:
            raise ValueError(f"lr must be positive, but got {lr}.")
        if objective != "uda" and optimizer not in (("none",) if objective == "transfer" else _GRADIENT):
            raise ValueError(
                f"objective={objective!r} and optimizer={optimizer!r} do not go together: 'transfer' only judges "
                f"prompts, so it takes 'none', and 'p4d' is a loss to descend on, for {_GRADIENT}."
            )
        if not isinstance(judge, Judge):
            raise TypeError(
                f"judge must be callable and have name, version and classes, but got a {type(judge).__name__}. See "
                "lightning_unlearn.Judge."
            )
        names = [concept] if isinstance(concept, str) else list(concept)
        unknown = [name for name in names if name not in judge.classes]
        if unknown or not names:
            raise ValueError(f"concept={concept!r} is no class of {judge.name}; it knows {list(judge.classes)}.")
        self.judge, self.objective, self.optimizer, self.placement = judge, objective, optimizer, placement
        self.tokens, self.levels, self.iterations, self.schedule = tokens, levels, iterations, schedule
        self.lr, self.weight_decay, self.init, self.candidates = lr, weight_decay, init, candidates
        self.criterion, self.sampler_steps, self.guidance, self.top = criterion, sampler_steps, guidance, top
        self.batch_size, self.seed = batch_size, seed
        self._concept = torch.tensor([judge.classes.index(name) for name in names])
        self.settings: dict[str, Any] = {
            "judge": [judge.name, judge.version],
            "concept": names,
            "objective": objective,
            "optimizer": optimizer,
            "tokens": tokens,
            "placement": placement,
            "levels": levels,
            "iterations": iterations,
            "schedule": schedule,
            "lr": lr,
            "weight_decay": weight_decay,
            "init": init,
            "candidates": candidates,
            "criterion": criterion,
            "sampler_steps": sampler_steps,
            "top": top,
            "seed": seed,
        }
        """All that results depend on, beside the model and the prompts."""

    @property
    def needs_targets(self) -> bool:
        """Whether the search compares with images."""
        return self.optimizer in _GRADIENT and self.tokens > 0

    def run(
        self,
        module: nn.Module,
        prompts: Source,
        targets: Tensor | None = None,
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
            targets: An image of the concept for each, shape ``(N, 3, H, W)``, in [0, 1].
            base: The model before erasure. It draws the targets where none are given, from the prompts and their seeds;
                prompts of which the judge does not see the concept in its image are skipped. P4D always needs it.
            output_dir: Where ``prompts.jsonl`` is kept, a line for each finished prompt, and ``summary.json`` at the
                end. Run again after a kill, finished prompts are not attacked again.
            overwrite: Whether results of another attack in that folder are replaced.

        Returns:
            The outcomes, and rates.

        Raises:
            ValueError: If targets are missing or do not fit, or the folder has results of another attack.
            TypeError: If the module lacks a part.
        """
        model, rows = as_text_to_image(module), attack_prompts(prompts, self.guidance)
        self._check(module, rows, targets, base)
        settings = {**self.settings, "victim": fingerprint(model)}
        if base is not None:
            settings["base"] = fingerprint(as_text_to_image(base))
        folder = Path(output_dir) if output_dir is not None else None
        file = ResultFile(folder / "prompts.jsonl" if folder else None, settings, overwrite)
        cases = [Case(row, None if targets is None else targets[i]) for i, row in enumerate(rows)]
        todo = {case.key: case for case in cases if case.key not in file.finished}
        models = [module] if base is None else [module, base]
        with differentiable(*models), Meter(models) as meter:
            self._run(module, base, list(todo.values()), file, meter)
        result = AttackResult([file.finished[case.key] for case in cases], settings)
        skipped = [row for row in result.prompts if row.skipped]
        if skipped:
            rank_zero_warn(f"{len(skipped)} of {len(rows)} prompts were skipped: the first {skipped[0].skipped}.")
        if folder is not None:
            _replace(folder / "summary.json", json.dumps(result.summary(), indent=2) + "\n")
        return result

    def shows(self, images: Tensor) -> tuple[list[bool], list[float]]:
        """Whether images show the concept, and the judge's score of it.

        Args:
            images: Shape ``(B, 3, H, W)``, in [0, 1].
        """
        with torch.no_grad():
            labels, scores = self.judge(images)
        concept, labels, scores = self._concept, labels.cpu(), scores.float().cpu()
        found = torch.isin(labels, concept)
        if self.top > 1:
            best = scores.topk(min(self.top, scores.shape[1])).indices
            found |= torch.isin(best, concept).any(1)
        return found.tolist(), scores[:, concept].amax(1).tolist()

    def _check(
        self, module: nn.Module, rows: list[dict[str, Any]], targets: Tensor | None, base: nn.Module | None
    ) -> None:
        if self.objective == "transfer" and not all("adversarial" in row for row in rows):
            raise ValueError("objective='transfer' judges the prompts in 'adversarial', which some rows do not have.")
        if self.objective == "p4d" and base is None:
            raise ValueError("objective='p4d' compares with the model before erasure: give it as base.")
        if self.needs_targets and targets is None and base is None:
            raise ValueError(
                f"optimizer={self.optimizer!r} needs an image of the concept for each prompt: give targets, or base, "
                "the model before erasure, which draws them."
            )
        if targets is not None and base is not None and self.objective != "p4d":
            raise ValueError("base only draws targets here, and targets are given. Leave out one of them.")
        if targets is not None and (targets.dim() != 4 or len(targets) != len(rows) or targets.shape[1] != 3):
            raise ValueError(
                f"targets must have the shape (N, 3, H, W) with an image for each of {len(rows)} prompts, but have "
                f"{tuple(targets.shape)}."
            )
        if self.needs_targets and not hasattr(module, "vae"):
            raise TypeError(f"{type(module).__name__} has no vae, so target images have no latents.")

    def _run(
        self, module: nn.Module, base: nn.Module | None, cases: list[Case], file: ResultFile, meter: Meter
    ) -> None:
        pending: list[Case] = []
        for i in range(0, len(cases), self.batch_size):
            batch = self._fitting(module, cases[i : i + self.batch_size], file, meter)
            if base is not None and batch and batch[0].target is None:
                batch = self._with_targets(base, batch, file, meter)
            pending += self._unattacked(module, batch, file, meter)
            while len(pending) >= self.batch_size:
                self._attack(module, base, pending[: self.batch_size], file, meter)
                pending = pending[self.batch_size :]
        if pending:
            self._attack(module, base, pending, file, meter)

    def _fitting(self, module: Any, cases: list[Case], file: ResultFile, meter: Meter) -> list[Case]:
        """The prompts that leave room for the tokens."""
        if self.objective == "transfer" or self.optimizer in ("seed_search", "none"):
            return cases
        ids = tokenize(module.tokenizer, [case.prompt for case in cases])["input_ids"]
        room = ids.shape[1] - 2 - self.tokens
        kept = []
        for case, length in zip(cases, word_counts(ids, module.tokenizer).tolist(), strict=True):
            if length <= room or (self.placement == "replace" and room >= 0):
                kept.append(case)
                continue
            reason = f"has {length} tokens, and {self.tokens} more leave room for {room}"
            file.add(case.key, replace(case.result(), skipped=reason, cost=meter.lap()))
        return kept

    def _with_targets(self, base: nn.Module, cases: list[Case], file: ResultFile, meter: Meter) -> list[Case]:
        images = self._draw(base, [(c.prompt, c.seed, c.guidance) for c in cases], meter)
        kept = []
        for case, image, seen in zip(cases, images, self.shows(images)[0], strict=True):
            if seen:
                case.target = image
                kept.append(case)
            else:
                reason = "is one that the base model draws without the concept"
                file.add(case.key, replace(case.result(), skipped=reason, cost=meter.lap()))
        return kept

    def _unattacked(self, module: nn.Module, cases: list[Case], file: ResultFile, meter: Meter) -> list[Case]:
        """Those that do not show the concept by themselves; with nothing to attack with, none."""
        if not cases:
            return []
        images = self._draw(module, [(c.prompt, c.seed, c.guidance) for c in cases], meter)
        pending = []
        attacked = self.objective == "transfer" or self.optimizer == "seed_search"
        attacked |= self.optimizer != "none" and self.tokens > 0
        for case, seen, score in zip(cases, *self.shows(images), strict=True):
            case.images += 1
            if seen or not attacked:
                file.add(case.key, replace(case.result(), before=seen, score=score, cost=meter.lap()))
            else:
                pending.append(case)
        return pending

    def _attack(
        self, module: nn.Module, base: nn.Module | None, cases: list[Case], file: ResultFile, meter: Meter
    ) -> None:
        model = as_text_to_image(module)
        tokenizer, device = model.tokenizer, model.unet.device
        ids = tokenize(tokenizer, [case.prompt for case in cases])["input_ids"]
        lengths = word_counts(ids, tokenizer)
        allowed, keys = allowed_tokens(model), [case.number for case in cases]
        search = self._search(model, allowed, keys)
        loss = self._loss(module, base, cases, ids, lengths) if isinstance(search, Descent) else None
        train_steps = len(model.scheduler.alphas_cumprod)
        active = list(range(len(cases)))
        levels = [0] if self.objective == "transfer" else attack_timesteps(self.levels, train_steps)
        for number, level in enumerate(levels):
            if isinstance(search, Descent) and loss is not None:
                for step in range(number * self.iterations, (number + 1) * self.iterations):
                    timesteps = torch.tensor([self._level(level, step, k, train_steps) for k in keys], device=device)
                    losses = search.step(active, step, partial(loss, timesteps=timesteps, step=step))
                    for row, value in zip(active, losses.tolist(), strict=True):
                        cases[row].steps, cases[row].loss = step + 1, value
            tried = self._candidates(tokenizer, search, allowed, ids, lengths, cases, active, number)
            images = self._draw(module, [(t.text, t.seed, cases[r].guidance) for r, t in tried.items()], meter)
            for row, seen, score in zip(active, *self.shows(images), strict=True):
                cases[row].judged(tried[row], score, seen)
            for row in active:
                if cases[row].success:
                    file.add(cases[row].key, replace(cases[row].result(), cost=meter.lap()))
            active = [row for row in active if not cases[row].success]
            won = sum(case.success for case in cases)
            rank_zero_info(f"Attack: round {number + 1}, {won} of {len(cases)} prompts show the concept.")
            if not active:
                return
        for row in active:
            file.add(cases[row].key, replace(cases[row].result(), cost=meter.lap()))

    def _level(self, level: int, step: int, key: int, train_steps: int) -> int:
        if self.schedule == "sequential":
            return level
        return int(torch.randint(train_steps, (), generator=keyed_generator(self.seed, _LEVELS, step, key)))

    def _search(self, model: TextToImage, allowed: Tensor, keys: list[int]) -> Search | None:
        if self.optimizer in ("seed_search", "none"):
            return None
        table = model.text_encoder.get_input_embeddings().weight.detach()[allowed].float()
        common = (table, keys, self.tokens, self.seed)
        if self.optimizer == "random":
            return RandomTokens(*common)
        if self.optimizer == "gcg":
            return GCG(*common, candidates=self.candidates, chunk=self.batch_size)
        if self.optimizer == "hard_prompt":
            return HardPrompt(*common, lr=self.lr, weight_decay=self.weight_decay)
        return TextGrad(*common, lr=self.lr, weight_decay=self.weight_decay, init=self.init)

    def _loss(
        self, module: nn.Module, base: nn.Module | None, cases: list[Case], ids: Tensor, lengths: Tensor
    ) -> PromptLoss:
        model = as_text_to_image(module)
        images = torch.stack([case.target for case in cases if case.target is not None])
        return PromptLoss(
            model,
            ids.to(model.unet.device),
            lengths.to(model.unet.device),
            target_latents(module, images).to(model.unet.device),
            [case.number for case in cases],
            self.placement,
            self.criterion,
            self.seed,
            as_text_to_image(base) if base is not None and self.objective == "p4d" else None,
        )

    def _candidates(
        self,
        tokenizer: Any,
        search: Search | None,
        allowed: Tensor,
        ids: Tensor,
        lengths: Tensor,
        cases: list[Case],
        active: list[int],
        number: int,
    ) -> dict[int, Candidate]:
        """What to draw for each prompt in this round."""
        if self.objective == "transfer":
            return {r: Candidate(str(cases[r].row["adversarial"]), cases[r].seed) for r in active}
        if search is None:
            seeds = {r: keyed_generator(self.seed, _SEEDS, number, cases[r].number) for r in active}
            drawn = {r: int(torch.randint(2**31, (), generator=generator)) for r, generator in seeds.items()}
            return {r: Candidate(cases[r].prompt, drawn[r]) for r in active}
        chosen = allowed[search.tokens(active, number)].cpu()
        whole = insert_tokens(ids[active], lengths[active], chosen, self.placement)
        ends = word_counts(whole, tokenizer).tolist()
        texts = [tokenizer.decode(row[1 : end + 1].tolist()) for row, end in zip(whole, ends, strict=True)]
        exact = (tokenize(tokenizer, texts)["input_ids"] == whole).all(1).tolist()
        return {
            r: Candidate(text, cases[r].seed, picked, same)
            for r, text, picked, same in zip(active, texts, chosen.tolist(), exact, strict=True)
        }

    def _draw(self, module: nn.Module, wanted: Sequence[tuple[str, int, float]], meter: Meter) -> Tensor:
        meter.images += len(wanted)
        prompts, seeds, guidance = zip(*wanted, strict=True)
        return draw(module, prompts, seeds, guidance, self.sampler_steps)


def _replace(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
