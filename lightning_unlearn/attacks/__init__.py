"""Attacks on erased text-to-image models: can a prompt bring the concept back?"""

from lightning_unlearn.attacks.prompt_attack import PromptAttack
from lightning_unlearn.attacks.prompts import attack_prompts, attack_timesteps
from lightning_unlearn.attacks.result import AttackResult, PromptResult, wilson_interval
from lightning_unlearn.attacks.victim import differentiable

__all__ = [
    "AttackResult",
    "PromptAttack",
    "PromptResult",
    "attack_prompts",
    "attack_timesteps",
    "differentiable",
    "wilson_interval",
]
