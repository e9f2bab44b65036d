"""Every public objective beside a smoothing: it smooths the forget term and nothing else, or says why it can't."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

import lightning_unlearn
from lightning_unlearn import (
    DUCK,
    ESD,
    MACE,
    SCRUB,
    SPM,
    SSD,
    UNSIR,
    AdvUnlearn,
    BadTeacher,
    BoundaryExpand,
    BoundaryShrink,
    CFk,
    ConceptAblation,
    DiffusionSalUn,
    EraseDiff,
    EUk,
    FineTune,
    ForgetMeNot,
    ForgetTerm,
    GradDiff,
    IdkNLL,
    L1Sparse,
    LanguageDataModule,
    NegGradPlus,
    RandomLabels,
    Retrain,
    SatImp,
    Scissorhands,
    SimNPO,
    Smoothed,
    SmoothingStrategy,
    TaskVector,
    UGradSL,
    UGradSLPlus,
    UnlearnCallback,
    classifier_nll,
)
from lightning_unlearn.core.edit import Edit
from tests.diffusion.tiny import SgdTextToImage, images, prompts
from tests.helpers import Recorder, trainer
from tests.tiny_runs import CASES, RAGGED, lm
from tests.user_module import LitNet, loaders, seeded

LANGUAGE: dict[str, Callable[[Path], Any]] = {
    case: made.make
    for case, made in CASES.items()
    if case not in ("IdkNLL", "TaskVector") and (not case.endswith("-snapshot") and case != "GradDiff-layer")
}
# The random model is so unsure of the rows that their usual gradient is below the rounding of the others.
LANGUAGE |= {"SatImp": lambda _: SatImp(beta1=0.1), "SimNPO": lambda _: SimNPO(beta=0.1)}


class Normed(LitNet):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))


class Dropping(LitNet):
    def __init__(self) -> None:
        super().__init__(dropout=0.5)


CLASSIFIERS: dict[str, tuple[Callable[[], Any], type[LitNet]]] = {
    "BadTeacher": (BadTeacher, LitNet),
    "BoundaryShrink": (lambda: BoundaryShrink(clip=None), LitNet),
    "DUCK": (lambda: DUCK(target_accuracy=None), LitNet),
    "GradDiff": (lambda: GradDiff(score=classifier_nll), LitNet),
    "NegGradPlus": (NegGradPlus, LitNet),
    "RandomLabels": (RandomLabels, LitNet),
    "RandomLabels-passes": (lambda: RandomLabels(schedule="forget_then_retain"), LitNet),
    "SCRUB": (SCRUB, Dropping),  # without dropout, student and teacher agree at first
    "UGradSL": (UGradSL, LitNet),
    "UGradSL-joint": (UGradSL, Normed),
    "UGradSL-train": (lambda: UGradSL(bn_mode="train"), Normed),
    "UGradSLPlus": (UGradSLPlus, LitNet),
}


class Diffusion(NamedTuple):
    make: Callable[[], Any]
    data: Callable[[], Any] = images
    trainable: str = "xattn"


DIFFUSION = {
    "AdvUnlearn": Diffusion(lambda: AdvUnlearn(steps=2), prompts),
    "ConceptAblation": Diffusion(lambda: ConceptAblation(prior_weight=1.0), trainable="kv"),
    "DiffusionSalUn": Diffusion(DiffusionSalUn),
    "ESD": Diffusion(lambda: ESD(steps=2), prompts),
    "EraseDiff": Diffusion(lambda: EraseDiff(inner_steps=1)),
    "ForgetMeNot": Diffusion(lambda: ForgetMeNot("van gogh")),
    "MACE": Diffusion(lambda: MACE({"van gogh": "green"})),
    "SPM": Diffusion(lambda: SPM(steps=2, anchors=1, anchor_weight=1.0), prompts),
    "Scissorhands-anchor": Diffusion(lambda: Scissorhands(1.0, "anchor", batches=1)),
    "Scissorhands-ascent": Diffusion(lambda: Scissorhands(1.0, "ascent", batches=1)),
}

REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "BoundaryExpand": (BoundaryExpand, "trains a class of its own"),
    "CFk": (lambda: CFk(k=1), "reads no forget rows"),
    "EUk": (lambda: EUk(k=1), "reads no forget rows"),
    "EraseDiff-cosine": (lambda: EraseDiff(multiplier="cosine"), "by the gradients of both terms"),
    "FineTune": (FineTune, "reads no forget rows"),
    "GradDiff-refusal-only": (lambda: GradDiff(forget_weight=0.0, refusal_weight=1.0), "has no forget term"),
    "IdkNLL": (IdkNLL, "has no forget term"),
    "L1Sparse": (L1Sparse, "reads no forget rows"),
    "Retrain": (Retrain, "reads no forget rows"),
    "SSD": (SSD, "edits the weights once"),
    "Scissorhands": (Scissorhands, "projects the gradient"),
    "TaskVector": (TaskVector, "learns the forget rows"),
    "UGradSL-adaptive": (lambda: UGradSL(alpha=None), "off the retain rows"),
    "UGradSL-fine-tuning": (lambda: UGradSL(p=1.0), "with p=1 forgets nothing"),
    "UNSIR": (lambda: UNSIR(0), "reads no forget rows"),
}


class Doubled(SmoothingStrategy):
    """Takes the forget term twice, and keeps its value and gradient."""

    def __init__(self) -> None:
        self.value = torch.zeros(())
        self.gradient: dict[str, Tensor] = {}

    def smooth(self, term: ForgetTerm) -> Smoothed:
        here = term.gradient()
        pairs = zip(term.names, here.gradients, strict=True)
        self.value, self.gradient = here.value, {name: g.clone() for name, g in pairs if g is not None}
        twice = [None if g is None else 2 * g for g in here.gradients]
        return Smoothed(2 * here.value, twice, here.parts, {"value": here.value})


def first_step(method: Any, module: L.LightningModule, data: Any, *beside: Any) -> tuple[dict[str, Tensor], Tensor]:
    """The gradient of a run's first update, and its loss."""
    watch = Recorder(
        on_before_optimizer_step=lambda _, module, __: {
            name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None
        },
        on_train_batch_end=lambda trainer, *_: trainer.callback_metrics["unlearn/loss"].clone(),
    )
    torch.manual_seed(1)
    run = trainer(method, *beside, watch, max_steps=1, limit_val_batches=0)
    run.fit(module, data)
    gradient, loss = watch.values[:2]
    return gradient, loss


def check(make: Callable[[], Any], module: Callable[[], Any], data: Callable[[], Any]) -> None:
    plain, loss = first_step(make(), module(), data())
    doubled = Doubled()
    found, twice = first_step(make(), module(), data(), doubled)
    forget = doubled.gradient
    assert found.keys() == plain.keys()
    assert forget.keys() <= plain.keys()
    scale = torch.stack([g.norm() for g in (*plain.values(), *forget.values())]).norm()
    assert torch.stack([g.norm() for g in forget.values()]).norm() > 1e-4 * scale
    for name, gradient in found.items():
        wanted = plain[name] + forget.get(name, 0.0)
        assert (gradient - wanted).norm() <= 2e-5 * scale, name
    assert twice.item() == pytest.approx((loss + doubled.value).item(), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("case", LANGUAGE)
def test_the_forget_term_alone_is_smoothed_in_a_language_model(case: str, tiny_lm: Path) -> None:
    def data() -> LanguageDataModule:
        return LanguageDataModule(RAGGED[:6], RAGGED[6:], refusals=["No idea.", "I can't say."], batch_size=2, seed=3)

    check(lambda: LANGUAGE[case](tiny_lm), lambda: lm(tiny_lm), data)


@pytest.mark.parametrize("case", CLASSIFIERS)
def test_the_forget_term_alone_is_smoothed_in_a_classifier(case: str) -> None:
    make, kind = CLASSIFIERS[case]
    check(make, lambda: seeded(kind), loaders)


@pytest.mark.parametrize("case", DIFFUSION)
def test_the_forget_term_alone_is_smoothed_in_a_diffusion_model(case: str, tiny_sd: Path) -> None:
    make, data, trainable = DIFFUSION[case]
    check(make, lambda: SgdTextToImage(str(tiny_sd), lr=0.05, trainable=trainable), data)


@pytest.mark.parametrize("case", REFUSED)
def test_the_others_say_why_they_are_refused(case: str) -> None:
    make, reason = REFUSED[case]
    method, module = make(), seeded()
    start = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(MisconfigurationException, match=f"Doubled smooths.*{type(method).__name__}.*{reason}"):
        trainer(Doubled(), method).fit(module, loaders())
    assert all(torch.equal(value, start[name]) for name, value in module.state_dict().items())


def test_every_public_objective_is_smoothed_or_refused() -> None:
    public = [getattr(lightning_unlearn, name) for name in lightning_unlearn.__all__]
    kinds = [cls for cls in public if inspect.isclass(cls) and issubclass(cls, UnlearnCallback)]
    methods = {cls for cls in kinds if not inspect.isabstract(cls)}
    edits = {cls for cls in methods if issubclass(cls, Edit)}
    assert not any(cls.separable for cls in edits)
    tables = (LANGUAGE, CLASSIFIERS, DIFFUSION, REFUSED)
    named = {case.split("-")[0] for table in tables for case in table}
    assert {cls.__name__ for cls in methods - edits} == named - {"SSD"}
