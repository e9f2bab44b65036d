"""Noise in the place of a class."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.utils._pytree import tree_map_only

from lightning_unlearn.classification.inputs import check_not_sharded, input_of, with_input
from lightning_unlearn.classification.objective import BatchNormMode, ClassifierObjective, batch_accuracy
from lightning_unlearn.core.callback import Needs
from lightning_unlearn.core.distributed import rank, world_size
from lightning_unlearn.core.modes import evaluating
from lightning_unlearn.core.reading import row_count
from lightning_unlearn.core.scores import Batch, PredictionScore, Score, classifier_nll
from lightning_unlearn.functional.classification.unsir import unsir_noise
from lightning_unlearn.functional.likelihood import token_nll

__all__ = ["UNSIR"]


class UNSIR(ClassifierObjective):
    r"""UNSIR: a class is spoiled with noise that the model finds least like it, then the others are repaired.

    $$N = \arg\min_N \frac{1}{n} \sum_i \big[-\ell(h_{\theta_o}(N_i), c) + \lambda \lVert N_i \rVert_2^2\big]$$

    $$\mathcal{L}_{impair} = \frac{1}{|B_N| + |B_r|} \Big[\sum_{i \in B_N} \ell(h_\theta(N_i), c) + \sum_r \ell_r\Big],
    \quad \mathcal{L}_{repair} = \frac{1}{|B_r|} \sum_r \ell_r$$

    It forgets a whole class $c$ and reads none of its rows. The noise is learned before the first step, from the normal
    distribution by Adam, with the model in evaluation mode (released code leaves it as it is). The first
    ``impair_epochs`` epochs impair; all epochs after them repair. The noise is no part of the module; it is saved with
    the callback's state.

    Released code takes one epoch each, by Adam at 1e-4, of 500 rows of each other class, in batches of 32 for the
    impairment and 128 for the repair. The batch size is that of the data here.

    Args:
        forget_class: The class to forget $c$. No retain row may have it.
        noise_rows: Rows of noise $n$.
        noise_steps: Steps of Adam on the noise; 250 in the released code for a sub-class.
        noise_lr: Learning rate of these.
        penalty: $\lambda \ge 0$.
        noise_ratio: Rows of noise in a batch for each retain row. Released code has 80 times 32 beside 500 of each of
            the other classes: 0.57 with ten classes.
        impair_epochs: Epochs with noise.
        seed: Seed of the noise.
        bn_mode: ``"joint"``, ``"frozen"`` or ``"train"``, see
            [`ClassifierObjective`][lightning_unlearn.ClassifierObjective].
        score: Reads predictions off the module.

    Raises:
        ValueError: If a number is out of range.
        MisconfigurationException: If no epoch is left for the repair, a retain row is of the class to forget, a row has
            not exactly one floating-point tensor, or weights are sharded.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[UNSIR(forget_class=3)], max_epochs=2, logger=False, accelerator="cpu")

    References:
        Tarun et al., *Fast Yet Effective Machine Unlearning*, arXiv:2111.08947.
    """

    driver = "retain"

    needs = Needs(roles=("retain",))

    def __init__(
        self,
        forget_class: int,
        noise_rows: int = 32,
        noise_steps: int = 25,
        noise_lr: float = 0.1,
        penalty: float = 0.1,
        noise_ratio: float = 0.57,
        impair_epochs: int = 1,
        seed: int = 0,
        bn_mode: BatchNormMode = "joint",
        score: Score = classifier_nll,
    ) -> None:
        super().__init__(bn_mode, score)
        if forget_class < 0:
            raise ValueError(f"forget_class must be the number of a class, at least 0, but got {forget_class}.")
        for name, number in (
            ("noise_rows", noise_rows),
            ("noise_steps", noise_steps),
            ("impair_epochs", impair_epochs),
        ):
            if number < 1:
                raise ValueError(f"{name} must be at least 1, but got {number}.")
        for name, value in (("noise_lr", noise_lr), ("noise_ratio", noise_ratio)):
            if not value > 0:
                raise ValueError(f"{name} must be greater than 0, but got {value}.")
        if not penalty >= 0:
            raise ValueError(f"penalty must be at least 0, but got {penalty}.")
        self.forget_class, self.impair_epochs, self.seed = forget_class, impair_epochs, seed
        self.noise_rows, self.noise_steps, self.noise_lr = noise_rows, noise_steps, noise_lr
        self.penalty, self.noise_ratio = penalty, noise_ratio
        self.noise: Tensor | None = None
        """The noise, shape ``(noise_rows, ...)``, once it is learned."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that there is an epoch of either kind."""
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        check_not_sharded("UNSIR", trainer)
        epochs = trainer.max_epochs
        if epochs is not None and 0 <= epochs <= self.impair_epochs:
            raise MisconfigurationException(
                f"UNSIR repairs the model after {self.impair_epochs} epochs of impairment, but max_epochs={epochs} "
                "leaves none for that. Raise max_epochs."
            )

    def step(self, module: LightningModule, batch: dict[str, Batch]) -> dict[str, Tensor]:
        """The loss of the phase that the epoch belongs to."""
        rows = batch["retain"]
        if module.trainer.current_epoch >= self.impair_epochs:
            (retain,) = self.predictions(module, batch, ("retain",))
            loss = self.row_mean(self._retain_nll(retain.logits, retain.labels))
            return {"loss": loss, "retain": loss, "retain_accuracy": batch_accuracy(retain)}
        if self.noise is None:
            self.noise = self._learned(module, rows)
        place = module.trainer.fit_loop.epoch_loop.batch_idx
        retain, noise = self.predictions(
            module, {"retain": rows, "forget": self._noisy(rows, place)}, ("retain", "forget")
        )
        kept = self._retain_nll(retain.logits, retain.labels)
        spoiled = token_nll(noise.logits, torch.full_like(noise.labels, self.forget_class))
        return {
            "loss": self.row_mean(torch.cat([spoiled, kept])),
            "noise": self.row_mean(spoiled),
            "retain": self.row_mean(kept),
            "retain_accuracy": batch_accuracy(retain),
        }

    def state_dict(self) -> dict[str, Any]:
        """The method's name and the noise."""
        return {**super().state_dict(), "noise": self.noise.cpu() if self.noise is not None else None}

    def begin(self, trainer: Trainer, module: LightningModule) -> None:
        """Learn the noise with the first batch."""
        self.noise = None

    def restore(self, state: dict[str, Any], trainer: Trainer, module: LightningModule) -> None:
        """Continue with the noise of the checkpoint: noise learned now would be of an impaired model."""
        self.noise = state["noise"]

    def _retain_nll(self, logits: Tensor, labels: Tensor) -> Tensor:
        if (labels == self.forget_class).any():
            raise MisconfigurationException(
                f"UNSIR forgets a whole class, but a retain row has forget_class={self.forget_class}. Take all rows of "
                "that class out of the retain rows."
            )
        return token_nll(logits, labels)

    def _noisy(self, rows: Batch, place: int) -> Batch:
        """The rows of noise whose turn it is, in the form of the user's batch."""
        assert self.noise is not None
        inputs = input_of("UNSIR", rows)
        count = max(1, round(self.noise_ratio * len(inputs)))
        turn = torch.arange(count) + (place * world_size() + rank()) * count
        self.noise = self.noise.to(inputs.device)
        return _with_noise(rows, self.noise[turn.to(inputs.device) % len(self.noise)])

    def _learned(self, module: LightningModule, rows: Batch) -> Tensor:
        assert isinstance(self.score, PredictionScore)
        inputs = input_of("UNSIR", rows)
        start = torch.randn(self.noise_rows, *inputs.shape[1:], generator=torch.Generator().manual_seed(self.seed))
        noise = start.to(inputs.device).requires_grad_()
        optimizer = torch.optim.Adam([noise], lr=self.noise_lr)
        with evaluating(module), torch.enable_grad():
            for _ in range(self.noise_steps):
                logits = self.score.predictions(module, _with_noise(rows, noise)).logits
                if self.forget_class >= logits.shape[1]:
                    raise MisconfigurationException(
                        f"forget_class={self.forget_class}, but the model has the classes 0 to {logits.shape[1] - 1}."
                    )
                labels = torch.full((len(noise),), self.forget_class, device=logits.device)
                loss = unsir_noise(logits, labels, noise, penalty=self.penalty).mean()
                (noise.grad,) = torch.autograd.grad(loss, noise)
                optimizer.step()
        return noise.detach()


def _with_noise(rows: Batch, noise: Tensor) -> Batch:
    """As many rows as there is noise: their inputs are the noise, and all else is of the user's rows in turn."""
    count = row_count(rows)
    turn = torch.arange(len(noise), device=noise.device) % count
    fitted = tree_map_only(Tensor, lambda t: t[turn] if t.dim() > 0 and len(t) == count else t, rows)
    return with_input(fitted, noise.to(input_of("UNSIR", rows).dtype))
