"""Bad teacher: distillation from an untrained model and from the original model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_unlearn.classification.objective import BatchNormMode, ClassifierObjective
from lightning_unlearn.classification.untrained import ModuleInit, check_untrained, untrained_values
from lightning_unlearn.core.callback import Needs
from lightning_unlearn.core.checks import above
from lightning_unlearn.core.lightning import LightningModule, Trainer
from lightning_unlearn.core.modes import evaluating
from lightning_unlearn.core.reference import exchanged
from lightning_unlearn.core.scores import Batch, Predictions, PredictionScore, Score, classifier_nll
from lightning_unlearn.functional.classification.distillation import distillation

__all__ = ["BadTeacher"]


class BadTeacher(ClassifierObjective):
    r"""Bad teacher: distillation from an untrained model on forget rows and from the original model on retain rows.

    $$\mathcal{L} = \frac{1}{|B_f| + |B_r|} \Big[\sum_f \mathrm{KL}(q_{bad} \Vert p) + \sum_r \mathrm{KL}(q_o \Vert
    p)\Big]$$

    The bad teacher is the module that ``module_init`` makes or, by default, a copy of this module in which the
    ``reset_parameters`` of every layer, nested ones included, has been called. Its weights depend only on ``seed``, so
    a resumed run has the same teacher. The released code averages over rows and classes, which makes the loss $K$ times
    smaller, and trains for one epoch on all forget rows and 30 % of the retain rows, using Adam at 1e-4.

    Args:
        temperature: $T > 0$, applied to teachers and student alike; the factor $T^2$ keeps the scale of the gradient.
        seed: Seed of the untrained weights.
        module_init: Makes an untrained module; needed if a layer has no ``reset_parameters``, such as the norm layers
            of Hugging Face models.
        bn_mode: ``"joint"``, ``"frozen"`` or ``"train"``, see
            [`ClassifierObjective`][lightning_unlearn.ClassifierObjective].
        score: Reads predictions from the module.
        keep_reference: Whether checkpoints keep state of the original model after the run, so that it can be resumed.

    Raises:
        ValueError: If the temperature is not positive.
        MisconfigurationException: If a weight belongs to a layer without ``reset_parameters`` and there is no
            ``module_init``, or weights are sharded.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[BadTeacher()], logger=False, accelerator="cpu")

    References:
        Chundawat et al., *Can Bad Teaching Induce Forgetting? Unlearning in Deep Networks using an Incompetent
        Teacher*, arXiv:2205.08096.
    """

    needs = Needs(snapshot=True)
    separable = True

    def __init__(
        self,
        temperature: float = 1.0,
        seed: int = 0,
        module_init: ModuleInit | None = None,
        bn_mode: BatchNormMode = "joint",
        score: Score = classifier_nll,
        keep_reference: bool = False,
    ) -> None:
        super().__init__(bn_mode, score, reference="snapshot")
        self.keep_reference = keep_reference
        self.temperature, self.seed, self.module_init = above("temperature", temperature, 0), seed, module_init
        self._untrained: dict[str, Tensor] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that the module can be reset."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            check_untrained("BadTeacher", trainer, pl_module, self.module_init)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make both teachers."""
        super().on_train_start(trainer, pl_module)
        self._untrained = untrained_values(pl_module, self.seed, self.module_init)

    def step(self, module: LightningModule, batch: dict[str, Batch]) -> dict[str, Tensor]:
        """Divergence of the student from the teacher of each row."""
        # Run the teachers first: exchanging weights would invalidate a graph that already refers to them.
        bad = self._bad_predictions(module, batch["forget"]).logits
        good = self.reference_predictions(module, batch["retain"]).logits
        teachers, rows = {"forget": bad, "retain": good}, len(bad) + len(good)

        def terms(roles: Sequence[str]) -> dict[str, Tensor]:
            students = zip(roles, self.predictions(module, batch, roles), strict=True)
            distances = {
                role: distillation(student.logits, teachers[role], temperature=self.temperature)
                for role, student in students
            }
            parts = {f"{role}_divergence": self.row_mean(distance) for role, distance in distances.items()}
            return {"loss": self.share(torch.cat(list(distances.values())), rows), **parts}

        return self.by_term(module, terms, ("forget", "retain"))

    def _bad_predictions(self, module: LightningModule, batch: Batch) -> Predictions:
        assert isinstance(self.score, PredictionScore)
        with exchanged(module, self._untrained), evaluating(module):
            return self.score.predictions(module, batch)
