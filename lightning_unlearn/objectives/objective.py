"""Base class of objectives with a forget, a retain and a refusal term."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Literal, NamedTuple

from torch import Tensor

from lightning_unlearn.core.batches import row_count
from lightning_unlearn.core.callback import Reference, UnlearnCallback
from lightning_unlearn.core.checks import at_least, one_of
from lightning_unlearn.core.distributed import mean_over_ranks
from lightning_unlearn.core.interruption import stop
from lightning_unlearn.core.lightning import LightningModule, Trainer
from lightning_unlearn.core.reading import Reading
from lightning_unlearn.core.scores import Batch, PredictionScore, Score
from lightning_unlearn.functional.kl import kl_divergence
from lightning_unlearn.objectives.embedding_difference import EmbeddingDifference, embedding_distance, of_role
from lightning_unlearn.objectives.ramp import Ramp

__all__ = ["ForgetRetainObjective", "RetainTerm"]

RetainTerm = Literal["nll", "kl"] | EmbeddingDifference
"""What holds the retain rows: their likelihood, the model's predictions on them, or its hidden states."""


class _Starting(NamedTuple):
    """Outputs of the original model: likelihoods and logits by role, and hidden states of the retain rows."""

    nll: Mapping[str, Tensor]
    logits: Mapping[str, Tensor]
    hidden: Tensor | None


class ForgetRetainObjective(UnlearnCallback):
    r"""Base class of objectives with three terms: forget, retain and refusal.

    $$\mathcal{L} = w_f \mathcal{L}_{forget} + w_r \mathcal{L}_{retain} + w_u \mathcal{L}_{refusal}$$

    Rows of all roles go through the model in one forward pass. A term of weight 0 is not computed. A callback that
    smooths the forget term reads its rows apart from the others.

    Args:
        forget_weight: $w_f$.
        retain_weight: $w_r$, or a [`Ramp`][lightning_unlearn.Ramp] that moves it from epoch to epoch.
        retain: ``"nll"``: mean NLL per token of the retain rows; ``"kl"``: mean divergence per supervised position
            from the original model; an [`EmbeddingDifference`][lightning_unlearn.EmbeddingDifference]: mean
            squared distance of hidden states from those of the original model.
        refusal_weight: $w_u$, the weight of the mean NLL per token of a refusal to the forget questions (the
            batch's ``"idk"`` rows). It leaves a model that says it does not know where others leave noise.
        score: Reads likelihoods off the module.
        reference: How the original model is kept where it is needed.
    """

    rises = ("forget_nll", "retain")
    inseparable = "has no forget term, whose weight is 0"
    forget_roles: tuple[str, ...] = ("forget",)
    """The roles that the forget term reads."""
    max_forget_nll: float | None = None
    """Mean NLL per token of the forget rows above which training ends."""

    def __init__(
        self,
        forget_weight: float,
        retain_weight: float | Ramp,
        retain: RetainTerm,
        refusal_weight: float,
        score: Score,
        reference: Reference = "auto",
    ) -> None:
        super().__init__(score, reference)
        if self.needs.logits and not isinstance(score, PredictionScore):
            raise ValueError(
                f"{type(self).__name__} reads the logits of each token, but score={score!r} only gives likelihoods. "
                "Use classifier_nll or causal_lm_nll, or decorate a function that returns Predictions with "
                "from_predictions."
            )
        if not isinstance(retain, EmbeddingDifference):
            one_of("retain", retain, ("nll", "kl"), "or give an EmbeddingDifference")
        self.forget_weight = at_least("forget_weight", forget_weight, 0)
        if not isinstance(retain_weight, Ramp):  # which checks itself
            at_least("retain_weight", retain_weight, 0)
        self.retain_weight, self.retain = retain_weight, retain
        self.refusal_weight = at_least("refusal_weight", refusal_weight, 0)
        self.separable = bool(forget_weight)
        if not (forget_weight or refusal_weight):
            raise ValueError("forget_weight and refusal_weight are both 0, so nothing would be forgotten.")
        weights = {"forget": forget_weight, "retain": retain_weight, "idk": refusal_weight}
        roles = tuple(role for role, weight in weights.items() if weight)
        divergence = ("retain",) if retain == "kl" else ()
        self.needs = replace(
            self.needs,
            roles=roles,
            reference_nll=tuple(role for role in self.needs.reference_nll if role in roles),
            reference_logits=tuple(role for role in (*self.needs.reference_logits, *divergence) if role in roles),
            snapshot=isinstance(retain, EmbeddingDifference) and "retain" in roles,
        )

    @abstractmethod
    def forget_loss(self, module: LightningModule, readings: Mapping[str, Reading]) -> Tensor:
        """The forget term, a scalar, from the readings of each role; of ``readings["forget"]`` in most objectives."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the run, a ramp's length included, and take over ``training_step``."""
        if stage == "fit" and isinstance(self.retain_weight, Ramp):
            self.retain_weight.length(trainer)
        super().setup(trainer, pl_module, stage)

    def step(self, module: LightningModule, batch: dict[str, Batch]) -> dict[str, Tensor]:
        """All terms of the loss on one batch."""
        rows = {role: self.retain_rows(batch[role]) if role == "retain" else batch[role] for role in self.needs.roles}
        # The original model goes first: exchanging weights would spoil a graph that already holds them.
        parts = self._loss(module, rows, self._starting(module, rows))
        # Not where the forget term is evaluated, which smoothing does at other weights too.
        nll, largest = parts.get("forget_nll"), self.max_forget_nll
        if nll is not None and largest is not None and (mean := mean_over_ranks(nll)) > largest:
            stop(module.trainer, f"the mean forget NLL of this batch is {mean:.3g}, above max_forget_nll={largest:g}")
        return parts

    def _loss(self, module: LightningModule, rows: Mapping[str, Batch], starting: _Starting) -> dict[str, Tensor]:
        if self.smoothing is None:
            return self._terms(module, rows, starting)
        own = {role: rows[role] for role in rows if role in self.forget_roles}
        others = {role: rows[role] for role in rows if role not in self.forget_roles}
        forget = self.smoothed(module, lambda: self._terms(module, own, starting))
        if not others:
            return forget
        kept = self._terms(module, others, starting)
        return {**forget, **kept, "loss": forget["loss"] + kept["loss"]}

    def _starting(self, module: LightningModule, rows: Mapping[str, Batch]) -> _Starting:
        compared = {role: rows[role] for role in self.needs.reference_nll}
        return _Starting(
            self.reference_nll(module, compared) if compared else {},
            {role: self.reference_predictions(module, rows[role]).logits for role in self.needs.reference_logits},
            self._reference_hidden(module, rows["retain"]) if self._compares_hidden() else None,
        )

    def _terms(self, module: LightningModule, rows: Mapping[str, Batch], starting: _Starting) -> dict[str, Tensor]:
        """The terms of some roles and their sum, from one forward pass over all rows."""
        logits = ("forget" in rows and self.needs.logits) or bool(rows.keys() & starting.logits.keys())
        with self._watching(module) as hidden:
            readings = self.read(module, list(rows.values()), logits)
        read = {
            role: reading._replace(reference_nll=starting.nll.get(role), reference_logits=starting.logits.get(role))
            for role, reading in zip(rows, readings, strict=True)
        }
        parts: dict[str, Tensor] = {}
        terms: list[Tensor] = []
        if "forget" in read:
            parts["forget"] = self.forget_loss(module, read)
            parts["forget_nll"] = self.token_mean(read["forget"].nll, read["forget"].length)
            terms.append(self.forget_weight * parts["forget"])
        if "retain" in read:
            if starting.hidden is None:
                parts["retain"] = self._retain_loss(read["retain"])
            else:
                sizes = {role: row_count(batch) for role, batch in rows.items()}
                parts["retain"] = self._hidden_loss(of_role(hidden, sizes, "retain"), starting.hidden, rows["retain"])
            weight = self.retain_weight
            if isinstance(weight, Ramp):
                weight = weight.value(module.trainer)
                parts["retain_weight"] = parts["retain"].new_tensor(weight)
            terms.append(weight * parts["retain"])
        if "idk" in read and self.refusal_weight:
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
