"""Soft prompt attack for adversarial training: tokens in the embedding space that bring a concept back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lightning_unlearn.core.checks import above, at_least, one_of
from lightning_unlearn.core.distributed import all_true, gather_objects
from lightning_unlearn.core.lightning import LightningModule, MisconfigurationException
from lightning_unlearn.core.modes import evaluating, frozen
from lightning_unlearn.core.scores import Batch
from lightning_unlearn.diffusion.attacks.prompts import allowed_tokens
from lightning_unlearn.diffusion.engine.draws import Draws, row_numbers
from lightning_unlearn.diffusion.engine.model import TextToImage, as_text_to_image, unet_output
from lightning_unlearn.diffusion.engine.sampling import Point
from lightning_unlearn.diffusion.engine.text import encode, encode_inserted, tokenize
from lightning_unlearn.functional.diffusion.soft_prompt_attack import AttackNorm, AttackRule, soft_prompt_attack
from lightning_unlearn.functional.diffusion.soft_tokens import Placement, insert_tokens
from lightning_unlearn.functional.random import keyed_generator

__all__ = ["Prompts", "SoftPromptAttacker"]

Latents = Literal["fresh", "trajectory"]
Init = Literal["random", "latest"]
Perturb = Literal["embeddings", "states"]

_TOKENS = 3  # what a draw is for, beside those of AdvUnlearn
_TEACHER_ROWS = 8  # of a pass without gradients over latents of a trajectory


class Prompts(NamedTuple):
    """Prompts of a batch.

    Args:
        ids: Token ids, shape ``(B, L)``.
        lengths: Words of each prompt, in tokens, shape ``(B,)``.
        concept: The original model's text states of them, shape ``(B, L, D)``.
        empty: Its text states of the empty prompt, shape ``(B, L, D)``.
    """

    ids: Tensor
    lengths: Tensor
    concept: Tensor
    empty: Tensor


class SoftPromptAttacker:
    r"""Attacker of [`AdvUnlearn`][lightning_unlearn.AdvUnlearn]: soft tokens that make the model draw a concept.

    $$\delta^* = \arg\min_\delta \big\| e_\theta(z_t, t, E_\theta(x \oplus \delta)) - e^*(z_t, t, E^*(x)) \big\|^2$$

    This differs from the authors' code in three ways: gradients of the attack are not summed over its steps, its last
    step is not dropped, and the length of a concept is its number of tokens rather than of words.

    Args:
        steps: Steps $K$ of an attack; 0 for none.
        step_size: Step size.
        rule: ``"adam"``; ``"sign"``, which with ``steps=1`` is the fast form; or ``"normalized"``, see
            [`soft_prompt_attack`][lightning_unlearn.functional.diffusion.soft_prompt_attack.soft_prompt_attack].
        radius: Radius of the ball around the initial tokens; by default there is none.
        norm: The ball's norm, ``"linf"`` or ``"l2"``.
        latents: ``"fresh"``: each step of the attack samples latents of its own (the paper). ``"trajectory"``: they
            are taken from the trajectory that the latents of the training step lie on, for a tenth of the passes.
        perturb: Where the soft tokens are inserted: among the words' ``"embeddings"`` before the text encoder, or among
            the text ``"states"`` after it.
        placement: Their position in the prompt, see
            [`insert_tokens`][lightning_unlearn.functional.diffusion.soft_tokens.insert_tokens].
        tokens: Number ``k`` of soft tokens; with ``placement="add"`` there is one for each word.
        init: ``"random"``: embeddings of random tokens of the vocabulary, or with ``perturb="states"`` the states of a
            prompt made of them. ``"latest"``: the result of the row's last attack.
        refresh_every: Training steps between two attacks of a row.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> SoftPromptAttacker(steps=1, rule="sign").step_size
        0.001

    References:
        Zhang et al., *Defensive Unlearning with Adversarial Training for Robust Concept Erasure in Diffusion Models*,
        arXiv:2405.15234.
    """

    def __init__(
        self,
        steps: int = 30,
        step_size: float = 1e-3,
        rule: AttackRule = "adam",
        radius: float | None = None,
        norm: AttackNorm = "linf",
        latents: Latents = "fresh",
        perturb: Perturb = "embeddings",
        placement: Placement = "prefix",
        tokens: int = 1,
        init: Init = "random",
        refresh_every: int = 1,
    ) -> None:
        self.steps, self.step_size = at_least("steps", steps, 0), above("step_size", step_size, 0)
        self.rule, self.norm = one_of("rule", rule, AttackRule), one_of("norm", norm, AttackNorm)
        self.radius = radius if radius is None else at_least("radius", radius, 0)
        self.latents, self.perturb = one_of("latents", latents, Latents), one_of("perturb", perturb, Perturb)
        self.placement, self.tokens = one_of("placement", placement, Placement), at_least("tokens", tokens, 1)
        self.init, self.refresh_every = one_of("init", init, Init), at_least("refresh_every", refresh_every, 1)
        self.soft_tokens: dict[int, Tensor] = {}
        """Of each row by its ``index`` the last result, shape ``(k, D)``, where a later step needs it."""

    def state_dict(self) -> dict[int, Tensor]:
        """The soft tokens of each row."""
        return dict(self.soft_tokens)

    def load_state_dict(self, state: dict[int, Tensor], model: TextToImage) -> None:
        """Continue with the soft tokens of a checkpoint."""
        for tokens in state.values():
            if len(tokens) != self.count(model):
                raise MisconfigurationException(
                    f"The checkpoint holds {len(tokens)} soft tokens a prompt, but the settings ask for "
                    f"{self.count(model)}. Resume with the tokens and the placement that the run was started with."
                )
        self.soft_tokens = dict(state)

    def count(self, model: TextToImage) -> int:
        """Soft tokens of a row. With "add" there is one for every place that a word could have."""
        return model.tokenizer.model_max_length - 2 if self.placement == "add" else self.tokens

    def lengths(self, rows: Batch) -> Tensor:
        """Words of each prompt, in tokens; refuses rows that lack a column or the room for the soft tokens."""
        missing = [name for name in ("attention_mask", "index") if name not in rows]
        if missing:
            raise ValueError(
                f"AdvUnlearn reads input_ids, attention_mask and index of forget rows, but {' and '.join(missing)} "
                "is missing. PromptDataModule makes such rows."
            )
        ids, lengths = rows["input_ids"], rows["attention_mask"].sum(1) - 2
        if self.steps > 0 and self.placement != "add":
            insert_tokens(ids, lengths, ids.new_zeros(len(ids), self.tokens), self.placement)
        return lengths

    def is_due(self, step: int, rows: Batch) -> bool:
        """Whether to attack rows at a step since the warm-up: their tokens are old, or missing on some process."""
        if self.steps == 0 or step < 0:
            return False
        if step % self.refresh_every == 0:
            return True
        return not all_true(torch.tensor(self.known(rows) is not None, device=rows["input_ids"].device))

    def known(self, rows: Batch) -> Tensor | None:
        """Soft tokens of earlier steps, shape ``(B, k, D)``, if every row has some."""
        known = [self.soft_tokens[i] for i in rows["index"].tolist() if i in self.soft_tokens]
        return torch.stack(known).to(rows["input_ids"].device) if len(known) == len(rows["index"]) else None

    def remember(self, rows: Batch, tokens: Tensor) -> None:
        """Keep the tokens if a later step needs them; every process keeps those of all, as rows change processes."""
        if self.init == "random" and self.refresh_every == 1:
            return
        own = list(zip(row_numbers(len(tokens)), rows["index"].tolist(), tokens.cpu(), strict=True))
        of_all = sorted((entry for part in gather_objects(own) for entry in part), key=lambda entry: entry[0])
        self.soft_tokens |= {index: kept for _, index, kept in of_all}

    def initial(self, module: LightningModule, rows: Batch, draws: Draws) -> Tensor:
        """Tokens that the attack begins with, shape ``(B, k, D)``."""
        model = as_text_to_image(module)
        words, count = allowed_tokens(model).cpu(), self.count(model)
        drawn = [
            torch.randint(len(words), (count,), generator=keyed_generator(*draws, _TOKENS, row))
            for row in row_numbers(len(rows["input_ids"]))
        ]
        ids = torch.stack([words[places] for places in drawn]).to(module.device)
        with evaluating(module):
            if self.perturb == "embeddings":
                tokens = model.text_encoder.get_input_embeddings()(ids).float()
            else:
                blank = tokenize(model.tokenizer, [""])["input_ids"].to(module.device).expand(len(ids), -1)
                lengths = torch.zeros(len(ids), dtype=torch.int64)
                tokens = encode(model, insert_tokens(blank, lengths, ids))[:, 1 : count + 1].float()
        if self.init == "random":
            return tokens
        earlier = [self.soft_tokens.get(i) for i in rows["index"].tolist()]
        return torch.stack([new if old is None else old.to(new) for old, new in zip(earlier, tokens, strict=True)])

    def search(
        self,
        module: LightningModule,
        prompts: Prompts,
        start: Tensor,
        points: Callable[[int], tuple[Point, Tensor]],
    ) -> Tensor:
        """Soft tokens with which the model draws what the original model would, shape ``(B, k, D)``.

        Args:
            module: The model as it is.
            prompts: The prompts.
            start: Tokens to begin with.
            points: Of each step of the attack the latents, and the original model's output there.
        """
        model, plain = as_text_to_image(module), None
        if self.perturb == "states":
            with evaluating(module):
                plain = encode(model, prompts.ids)

        def loss(tokens: Tensor, step: int) -> Tensor:
            point, target = points(step)
            output = unet_output(model, *point, self.states(model, prompts, tokens, plain))
            return (output - target).square().flatten(1).mean(1)

        with evaluating(module), frozen(module):
            return soft_prompt_attack(loss, start, self.steps, self.step_size, self.rule, self.radius, self.norm)

    def states(
        self, model: TextToImage, prompts: Prompts, tokens: Tensor | None, plain: Tensor | None = None
    ) -> Tensor:
        """Text states of the prompts with the soft tokens in them, if any; ``plain`` are those without, if known."""
        if tokens is None:
            return encode(model, prompts.ids)
        if self.perturb == "states":
            states = encode(model, prompts.ids) if plain is None else plain
            return insert_tokens(states, prompts.lengths, tokens, self.placement)
        return encode_inserted(model, prompts.ids, prompts.lengths, tokens, self.placement)

    @staticmethod
    def targets(model: TextToImage, states: Tensor, path: Sequence[Point]) -> list[Tensor]:
        """A model's output at each point of a trajectory, several to a pass."""
        together = max(1, _TEACHER_ROWS // len(states))
        outputs: list[Tensor] = []
        for i in range(0, len(path), together):
            latents, timesteps = zip(*path[i : i + together], strict=True)
            times = torch.stack(timesteps).repeat_interleave(len(states))
            repeated = states.repeat(len(latents), 1, 1)
            outputs += unet_output(model, torch.cat(latents), times, repeated).chunk(len(latents))
        return outputs
