"""What the objectives have in common: a forget term, a retain term, and a refusal term."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import AbstractContextManager, nullcontext
from typing import ClassVar, Literal

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_unlearn.core.callback import Reading, Reference, UnlearnCallback
from lightning_unlearn.core.pairing import row_count
from lightning_unlearn.core.scores import Batch, PredictionScore, Score, causal_lm_nll
from lightning_unlearn.functional.kl import kl_divergence
from lightning_unlearn.objectives.embedding_difference import EmbeddingDifference, embedding_distance, of_role
from lightning_unlearn.objectives.ramp import Ramp

__all__ = ["ForgetRetainObjective", "RetainTerm", "check_non_negative", "check_positive"]

RetainTerm = Literal["nll", "kl"] | EmbeddingDifference
"""What holds the retain rows: their likelihood, the model's predictions on them, or its hidden states."""


class ForgetRetainObjective(UnlearnCallback):
    r"""An objective of three terms: forget, retain and refusal.

    $$\mathcal{L} = w_f \mathcal{L}_{forget} + w_r \mathcal{L}_{retain} + w_u \mathcal{L}_{refusal}$$

    Rows of all roles go through the model in one forward pass. A term of weight 0 is not computed.

    Args:
        forget_weight: $w_f$.
        retain_weight: $w_r$, or a [`Ramp`][lightning_unlearn.Ramp] that moves it from epoch to epoch.
        retain: ``"nll"``: mean NLL per token of the retain rows; ``"kl"``: mean divergence per supervised position
            from the starting model; an [`EmbeddingDifference`][lightning_unlearn.EmbeddingDifference]: mean
            squared distance of hidden states from those of the starting model.
        refusal_weight: $w_u$, the weight of the mean NLL per token of a refusal to the forget questions (the
            batch's ``"idk"`` rows). It leaves a model that says it does not know where others leave noise.
        score: Reads likelihoods off the module.
        reference: How the starting model is kept where it is needed.
    """

    reads_logits: ClassVar[bool] = False
    """Whether the forget term is made of tokens, and so needs the logits of the forget rows."""

    def __init__(
        self,
        forget_weight: float,
        retain_weight: float | Ramp,
        retain: RetainTerm,
        refusal_weight: float,
        score: Score = causal_lm_nll,
        reference: Reference = "auto",
    ) -> None:
        super().__init__(score, reference)
        if self.reads_logits and not isinstance(score, PredictionScore):
            raise ValueError(
                f"{type(self).__name__} reads the logits of each token, but score={score!r} only gives likelihoods. "
                "Use classifier_nll or causal_lm_nll, or decorate a function that returns Predictions with "
                "from_predictions."
            )
        if retain not in ("nll", "kl") and not isinstance(retain, EmbeddingDifference):
            raise ValueError(f"retain must be 'nll' or 'kl', or an EmbeddingDifference, but got {retain!r}.")
        self.forget_weight = check_non_negative("forget_weight", forget_weight)
        if not isinstance(retain_weight, Ramp):  # which checks itself
            check_non_negative("retain_weight", retain_weight)
        self.retain_weight = retain_weight
        self.refusal_weight = check_non_negative("refusal_weight", refusal_weight)
        if not (forget_weight or refusal_weight):
            raise ValueError("forget_weight and refusal_weight are both 0, so nothing would be forgotten.")
        self.retain = retain

    @abstractmethod
    def forget_loss(self, module: LightningModule, forget: Reading) -> Tensor:
        """The forget term, a scalar, from what was read of the forget rows."""

    def forget_term(self, module: LightningModule, read: dict[str, Reading]) -> Tensor:
        """The forget term, for objectives that hold the forget rows against those of another role."""
        return self.forget_loss(module, read["forget"])

    def roles(self) -> tuple[str, ...]:
        """Rows that the terms with a weight read."""
        weights = {"forget": self.forget_weight, "retain": self.retain_weight, "idk": self.refusal_weight}
        return tuple(role for role, weight in weights.items() if weight)

    def reference_logit_roles(self) -> tuple[str, ...]:
        """The roles on whose rows the starting model runs at each step: retain rows for the KL retain term."""
        return ("retain",) if self.retain == "kl" and self.retain_weight else ()

    def reads_reference_logits(self) -> bool:
        """Whether the starting model runs on training batches at all."""
        return bool(self.reference_logit_roles()) or self._compares_hidden()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the run, a ramp's length included, and take over ``training_step``."""
        if stage == "fit" and isinstance(self.retain_weight, Ramp):
            self.retain_weight.length(trainer)
        super().setup(trainer, pl_module, stage)

    def step(self, module: LightningModule, batch: dict[str, Batch]) -> dict[str, Tensor]:
        """All terms of the loss on one batch."""
        roles = self.roles()
        rows = {role: self.retain_rows(batch[role]) if role == "retain" else batch[role] for role in roles}
        # The starting model goes first: exchanging weights would spoil a graph that already holds them.
        compared = {role: rows[role] for role in self.reference_roles if self.needs_reference and role in rows}
        reference_nll = self.reference_nll(module, compared) if compared else {}
        reference_logits = {
            role: self.reference_predictions(module, rows[role]).logits
            for role in self.reference_logit_roles()
            if role in rows
        }
        reference_hidden = self._reference_hidden(module, rows["retain"]) if self._compares_hidden() else None
        logits = self.reads_logits or bool(reference_logits)
        with self._watching(module) as hidden:
            readings = self.read(module, list(rows.values()), logits)
        read = {
            role: reading._replace(reference_nll=reference_nll.get(role), reference_logits=reference_logits.get(role))
            for role, reading in zip(roles, readings, strict=True)
        }
        parts: dict[str, Tensor] = {}
        terms: list[Tensor] = []
        if "forget" in read:
            parts["forget"] = self.forget_term(module, read)
            parts["forget_nll"] = self.token_mean(read["forget"].nll, read["forget"].length)
            terms.append(self.forget_weight * parts["forget"])
        if "retain" in read:
            if reference_hidden is None:
                parts["retain"] = self._retain_loss(read["retain"])
            else:
                sizes = {role: row_count(batch) for role, batch in rows.items()}
                parts["retain"] = self._hidden_loss(of_role(hidden, sizes, "retain"), reference_hidden, rows["retain"])
            weight = self.retain_weight
            if isinstance(weight, Ramp):
                weight = weight.value(module.trainer)
                parts["retain_weight"] = parts["retain"].new_tensor(weight)
            terms.append(weight * parts["retain"])
        if self.refusal_weight:
            parts["refusal"] = self.token_mean(read["idk"].nll, read["idk"].length)
            terms.append(self.refusal_weight * parts["refusal"])
        return {"loss": sum(terms[1:], terms[0]), **parts}

    def retain_rows(self, rows: Batch) -> Batch:
        """The retain rows as the retain term reads them."""
        return rows

    def _compares_hidden(self) -> bool:
        return isinstance(self.retain, EmbeddingDifference) and bool(self.retain_weight)

    def _watching(self, module: LightningModule) -> AbstractContextManager[list[Tensor]]:
        if isinstance(self.retain, EmbeddingDifference) and self._compares_hidden():
            return self.retain.watching(module)
        return nullcontext([])

    def _reference_hidden(self, module: LightningModule, rows: Batch) -> Tensor:
        assert self.snapshot is not None
        with self.snapshot.active(module), self._watching(module) as hidden:
            self.read(module, [rows])
        return of_role(hidden, {"retain": row_count(rows)}, "retain")

    def _hidden_loss(self, hidden: Tensor, reference: Tensor, rows: Batch) -> Tensor:
        distance, positions = embedding_distance(hidden, reference, rows)
        return self.token_mean(distance, positions)

    def _retain_loss(self, retain: Reading) -> Tensor:
        if retain.predictions is None or retain.reference_logits is None:
            return self.token_mean(retain.nll, retain.length)
        divergence = kl_divergence(retain.predictions.logits, retain.reference_logits)
        return self.token_mean(divergence, retain.length)


def check_positive(name: str, value: float) -> float:
    """``value``, or an error that names it."""
    if not value > 0:
        raise ValueError(f"{name} must be greater than 0, but got {value}.")
    return value


def check_non_negative(name: str, value: float) -> float:
    """``value``, or an error that names it."""
    if not value >= 0:
        raise ValueError(f"{name} must be at least 0, but got {value}.")
    return value
