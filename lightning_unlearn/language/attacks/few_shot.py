"""Attacks by context: retain rows, or other facts of the same entity, before the question."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lightning_unlearn.core.checks import at_least
from lightning_unlearn.functional.random import keyed_generator
from lightning_unlearn.language.attacks.attempts import (
    Attempt,
    PromptAttack,
    after_turns,
    refuse_texts,
    warn_of_rest,
)
from lightning_unlearn.language.attacks.replicas import digest
from lightning_unlearn.language.causal_lm import LitCausalLM
from lightning_unlearn.language.matching import contains_words
from lightning_unlearn.language.probes import Probe

__all__ = ["FewShotAttack", "InContextAttack"]


class FewShotAttack(PromptAttack):
    """Few-shot attack: retain questions with their answers come before the forget question.

    Each row gets the first k retain rows of a seeded order whose question and answer do not give its own answer away.

    Args:
        retain: Retain rows; see [`probes_of`][lightning_unlearn.probes_of].
        k: Rows in the context.
        seed: Seed of the order.

    Raises:
        ValueError: If there are fewer than ``k`` retain rows, or a number is out of range.

    References:
        Jia et al., *SOUL: Unlocking the Power of Second-Order Optimization for LLM Unlearning*, arXiv:2404.18239.
    """

    name = "few_shot"

    def __init__(self, retain: Sequence[Probe], k: int = 4, seed: int = 0) -> None:
        self.k, self.seed = at_least("k", k, 1), seed
        refuse_texts(self.name, retain)
        if len(retain) < k:
            raise ValueError(f"The attack 'few_shot' puts k={k} retain rows before a question, but got {len(retain)}.")
        order = torch.randperm(len(retain), generator=keyed_generator(seed)).tolist()
        self._shots = [retain[i] for i in order]

    @property
    def size(self) -> int:
        """One."""
        return 1

    def attempts(self, module: LitCausalLM, probes: Sequence[Probe]) -> list[Attempt]:
        """Each question after its retain rows.

        Raises:
            ValueError: If too few retain rows do not give an answer away.
        """
        prompt_format = module._prompt_format()
        changed = []
        for probe in probes:
            shots = [shot for shot in self._shots if not _gives_away(shot, probe)][: self.k]
            if len(shots) < self.k:
                raise ValueError(
                    f"All but {len(shots)} of {len(self._shots)} retain rows contain the answer to row {probe.row}, "
                    f"and k={self.k} are needed that do not. Give other retain rows, or a smaller k."
                )
            turns = [(shot.question, shot.answer) for shot in shots]
            changed.append(probe.asked(after_turns(prompt_format, turns, probe.question)))
        return [Attempt(self.name, changed)]

    def settings(self) -> dict[str, Any]:
        """Number of rows, seed, and a hash of the retain rows in their order."""
        return {"k": self.k, "seed": self.seed, "retain": digest([[s.question, s.answer] for s in self._shots])}


class InContextAttack(PromptAttack):
    """In-context relearning: other facts of the same entity come first, then the question.

    No weight changes, so any answer that comes back was still in the model. Facts that contain the answer are left out,
    since they would give it away. The control model can infer from the other facts as well.

    Args:
        k: Other facts of the entity, at most; those next to the row come first.
        facts: Facts to choose from; by default the other probes.

    Raises:
        ValueError: If ``k`` is out of range, or no row has another fact of its entity.

    References:
        Lynch et al., *Eight Methods to Evaluate Robust Unlearning in LLMs*, arXiv:2402.16835.
    """

    name = "in_context"

    def __init__(self, k: int = 4, facts: Sequence[Probe] | None = None) -> None:
        self.k, self.facts = at_least("k", k, 1), facts

    @property
    def size(self) -> int:
        """One."""
        return 1

    def attempts(self, module: LitCausalLM, probes: Sequence[Probe]) -> list[Attempt]:
        """Each question after other facts of its entity."""
        prompt_format, rest = module._prompt_format(), []
        facts = probes if self.facts is None else self.facts
        changed = []
        for probe in probes:
            others = [fact for fact in facts if probe.entity and fact.entity == probe.entity]
            others = [f for f in others if f.question != probe.question and not _gives_away(f, probe)]
            others = sorted(others, key=lambda fact: abs(fact.row - probe.row))[: self.k]
            turns = [(fact.question, fact.answer) for fact in others]
            changed.append(probe.asked(after_turns(prompt_format, turns, probe.question)) if turns else probe)
            if not turns:
                rest.append(probe)
        if len(rest) == len(probes):
            raise ValueError(
                "The attack 'in_context' puts other facts of the same entity before a question, but no row has one. "
                "Name the column of the entity, Columns(entity=...), or leave the attack out."
            )
        warn_of_rest(self.name, rest, "other fact of their entity that does not contain the answer")
        return [Attempt(self.name, changed)]

    def settings(self) -> dict[str, Any]:
        """Number of facts, and a hash of them where they are not the probes."""
        facts = None if self.facts is None else digest([[f.question, f.answer, f.entity] for f in self.facts])
        return {"k": self.k, "facts": facts}


def _gives_away(shot: Probe, probe: Probe) -> bool:
    """Whether a row of the context contains an accepted answer, or the part of the answer with the fact."""
    text = f"{shot.question if isinstance(shot.question, str) else shot.question[-1].get('content')} {shot.answer}"
    return any(contains_words(text, given) for given in (*probe.accepted, probe.target) if given)
