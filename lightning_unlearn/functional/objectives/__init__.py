"""Loss functions that need only likelihoods or logits."""

from lightning_unlearn.functional.objectives.ceu import ceu
from lightning_unlearn.functional.objectives.dpo import dpo
from lightning_unlearn.functional.objectives.gradient_ascent import gradient_ascent
from lightning_unlearn.functional.objectives.kto import kto
from lightning_unlearn.functional.objectives.npo import npo
from lightning_unlearn.functional.objectives.pdu import pdu
from lightning_unlearn.functional.objectives.satimp import satimp
from lightning_unlearn.functional.objectives.simnpo import simnpo
from lightning_unlearn.functional.objectives.task_vector import negate_task_vector
from lightning_unlearn.functional.objectives.undial import undial
from lightning_unlearn.functional.objectives.wga import wga

__all__ = [
    "ceu",
    "dpo",
    "gradient_ascent",
    "kto",
    "negate_task_vector",
    "npo",
    "pdu",
    "satimp",
    "simnpo",
    "undial",
    "wga",
]
