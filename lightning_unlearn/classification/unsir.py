"""UNSIR: impairment of a class by error-maximizing noise, followed by repair."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from lightning_unlearn.classification.inputs import input_of, with_input
from lightning_unlearn.classification.objective import (
    BatchNormMode,
    ClassifierObjective,
    batch_accuracy,
    check_one_label,
)
from lightning_unlearn.core.batches import row_count
from lightning_unlearn.core.callback import Needs
from lightning_unlearn.core.checks import above, at_least, strategy
from lightning_unlearn.core.distributed import rank, world_size
from lightning_unlearn.core.lightning import LightningModule, MisconfigurationException, Trainer
from lightning_unlearn.core.modes import evaluating
from lightning_unlearn.core.scores import Batch, Predictions, PredictionScore, Score, classifier_nll
from lightning_unlearn.functional.classification.unsir import unsir_noise
from lightning_unlearn.functional.likelihood import token_nll

__all__ = ["UNSIR"]


class UNSIR(ClassifierObjective):
    r"""UNSIR: impairs a class by training on noise that maximizes the model's error on it, then repairs the others.

    $$N = \arg\min_N \frac{1}{n} \sum_i \big[-\ell(h_{\theta_o}(N_i), c) + \lambda \lVert N_i \rVert_2^2\big]$$

    $$\mathcal{L}_{impair} = \frac{1}{|B_N| + |B_r|} \Big[\sum_{i \in B_N} \ell(h_\theta(N_i), c) + \sum_r \ell_r\Big],
    \quad \mathcal{L}_{repair} = \frac{1}{|B_r|} \sum_r \ell_r$$

    It forgets a whole class $c$ and reads none of its rows. The noise starts from the normal distribution and is
    learned by Adam before the first step, with the model in evaluation mode (the released code does not change the
    mode). The first ``impair_epochs`` epochs impair; all later epochs repair. The noise is not part of the module; it
    is saved with the callback's state.

    The released code uses one epoch each, with Adam at 1e-4, on 500 rows of each other class, in batches of 32 for the
    impairment and 128 for the repair. Here the batch size is that of the data.

    Args:
        forget_class: The class to forget, $c$. No retain row may have it.
        noise_rows: Number of noise rows $n$.
        noise_steps: Number of Adam steps on the noise; 250 in the released code for a sub-class.
        noise_lr: Learning rate of the noise.
        penalty: $\lambda \ge 0$.
        noise_ratio: Noise rows per retain row in a batch. The released code uses 80 times 32 for 500 rows of each of
            the other classes: 0.57 with ten classes.
        impair_epochs: Number of epochs with noise.
        seed: Seed of the noise.
        bn_mode: ``"joint"``, ``"frozen"`` or ``"train"``, see
            [`ClassifierObjective`][lightning_unlearn.ClassifierObjective].
        score: Reads predictions from the module.
        keep_reference: Whether checkpoints keep state of the original model after the run, so that it can be resumed.

    Raises:
        ValueError: If a number is out of range.
        MisconfigurationException: If no epoch is left for the repair, a retain row belongs to the class to forget, a
            row does not have exactly one floating-point tensor, or weights are sharded.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[UNSIR(forget_class=3)], max_epochs=2, logger=False, accelerator="cpu")

    References:
        Tarun et al., *Fast Yet Effective Machine Unlearning*, arXiv:2111.08947.
    """

    driver = "retain"

    needs = Needs(roles=("retain",))
    inseparable = "reads no forget rows, and its noise impairs the model for the first epochs only"

    private = ("snapshot", "caches", "noise")

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
        keep_reference: bool = False,
    ) -> None:
        super().__init__(bn_mode, score)
        self.keep_reference = keep_reference
        self.forget_class, self.seed = int(at_least("forget_class", forget_class, 0)), seed
        self.noise_rows = at_least("noise_rows", noise_rows, 1)
        self.noise_steps = at_least("noise_steps", noise_steps, 1)
        self.noise_lr = above("noise_lr", noise_lr, 0)
        self.penalty = at_least("penalty", penalty, 0)
        self.noise_ratio = above("noise_ratio", noise_ratio, 0)
        self.impair_epochs = at_least("impair_epochs", impair_epochs, 1)
        self.noise: Tensor | None = None
        """The noise, shape ``(noise_rows, ...)``, once it is learned."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the strategy, and that epochs are left for the repair."""
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        strategy("UNSIR", trainer, sharded=False)
        epochs = trainer.max_epochs
        if epochs is not None and 0 <= epochs <= self.impair_epochs:
            raise MisconfigurationException(
                f"UNSIR repairs the model after {self.impair_epochs} epochs of impairment, but max_epochs={epochs} "
                "leaves no epoch for the repair. Raise max_epochs."
            )

    def step(self, module: LightningModule, batch: dict[str, Batch]) -> dict[str, Tensor]:
        """Loss of the epoch's phase, impairment or repair."""
        rows = batch["retain"]
        if module.trainer.current_epoch >= self.impair_epochs:
            (retain,) = self.predictions(module, batch, ("retain",))
            loss = self.row_mean(self._retain_nll(retain))
            return {"loss": loss, "retain": loss, "retain_accuracy": batch_accuracy(retain)}
        if self.noise is None:
            self.noise = self._learn_noise(module, rows)
        batch = {"retain": rows, "forget": self._noise_batch(rows, module.trainer.fit_loop.epoch_loop.batch_idx)}
        retain, noise = self.predictions(module, batch, ("retain", "forget"))
        retain_nll = self._retain_nll(retain)
        noise_nll = token_nll(noise.logits, torch.full_like(noise.classes(), self.forget_class))
        return {
            "loss": self.row_mean(torch.cat([noise_nll, retain_nll])),
            "noise": self.row_mean(noise_nll),
            "retain": self.row_mean(retain_nll),
            "retain_accuracy": batch_accuracy(retain),
        }

    def state_dict(self) -> dict[str, Any]:
        """The method's name and the noise."""
        return {**super().state_dict(), "noise": self.noise.cpu() if self.noise is not None else None}

    def begin(self, trainer: Trainer, module: LightningModule) -> None:
        """Learn new noise at the first batch."""
        self.noise = None

    def restore(self, state: dict[str, Any], trainer: Trainer, module: LightningModule) -> None:
        """Continue with the noise of the checkpoint: an impaired model would yield different noise."""
        self.noise = state["noise"]

    def _retain_nll(self, retain: Predictions) -> Tensor:
        if (retain.classes() == self.forget_class).any():
            raise MisconfigurationException(
                f"UNSIR forgets a whole class, but a retain row has forget_class={self.forget_class}. Remove all rows "
                "of that class from the retain rows."
            )
        return token_nll(retain.logits, retain.labels)

    def _noise_batch(self, rows: Batch, number: int) -> Batch:
        """The next noise rows, in the form of the user's batch; ``number`` is the index of the batch."""
        assert self.noise is not None
        inputs = input_of("UNSIR", rows)
        count = max(1, round(self.noise_ratio * len(inputs)))
        turn = torch.arange(count) + (number * world_size() + rank()) * count
        self.noise = self.noise.to(inputs.device)
        return _with_noise(rows, self.noise[turn.to(inputs.device) % len(self.noise)])

    def _learn_noise(self, module: LightningModule, rows: Batch) -> Tensor:
        assert isinstance(self.score, PredictionScore)
        inputs = input_of("UNSIR", rows)
        start = torch.randn(self.noise_rows, *inputs.shape[1:], generator=torch.Generator().manual_seed(self.seed))
        noise = start.to(inputs.device).requires_grad_()
        optimizer = torch.optim.Adam([noise], lr=self.noise_lr)
        with evaluating(module), torch.enable_grad():
            for _ in range(self.noise_steps):
                predictions = self.score.predictions(module, _with_noise(rows, noise))
                check_one_label("UNSIR", "learns noise of one class", predictions)
                logits = predictions.logits
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
    """A batch with one row for each noise row: its inputs are the noise, everything else comes from the user's rows."""
    count = row_count(rows)
    turn = torch.arange(len(noise), device=noise.device) % count
    fitted = tree_map_only(Tensor, lambda t: t[turn] if t.dim() > 0 and len(t) == count else t, rows)
    return with_input(fitted, noise.to(input_of("UNSIR", rows).dtype))
