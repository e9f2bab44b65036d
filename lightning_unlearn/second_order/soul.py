"""SOUL: curvature estimates for the Sophia optimizer."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_unlearn.core.batches import row_count
from lightning_unlearn.core.callback import objective_score
from lightning_unlearn.core.checks import at_least, one_of, strategy, trainer_optimizes
from lightning_unlearn.core.distributed import all_true, average_over_ranks, local_tensor, mean_over_ranks, replica
from lightning_unlearn.core.gradients import weight_gradients
from lightning_unlearn.core.lightning import LightningModule, MisconfigurationException, Trainer, rank_zero_warn
from lightning_unlearn.core.modes import evaluating
from lightning_unlearn.core.resume import ResumableCallback
from lightning_unlearn.core.scores import Batch, Predictions, PredictionScore, Score
from lightning_unlearn.functional.curvature.gauss_newton import sample_labels
from lightning_unlearn.functional.likelihood import token_nll
from lightning_unlearn.functional.random import keyed_seed
from lightning_unlearn.second_order.sophia import Parity, Sophia

__all__ = ["SOUL"]

HessianData = Literal["retain", "both", "objective"]
Estimator = Literal["gnb", "empirical", "hutchinson"]

_ROLES: dict[str, tuple[str, ...]] = {"retain": ("retain",), "both": ("forget", "retain"), "objective": ()}
_SIGN_MOMENTUM = 0.99
_PATIENCE = 50


class SOUL(ResumableCallback):
    r"""Second-order unlearning: gives the [`Sophia`][lightning_unlearn.Sophia] optimizer its curvature.

    Works beside any objective. Before every $k$-th update it runs one more forward and backward pass over the retain
    rows of that update's batches, to estimate the diagonal of the Gauss-Newton matrix of the retain loss: steps are
    short where the retained behaviour is sensitive. By Gauss-Newton-Bartlett, labels $\hat y$ are drawn from the model
    at the supervised positions and $\hat h = \hat g \odot \hat g$ with $\hat g$ the gradient of their mean
    cross-entropy. The mean is over all $B$ tokens of all processes and accumulated batches, and squared last, so that
    $B\,\hat h$ is unbiased. Labels are a function of the seed, the update and the place of a row in the whole batch:
    two processes, sharded or not, and accumulated batches draw what one process draws on the joined batch. No random
    generator moves.

    The estimate is read in evaluation mode, and is not clipped. A retain row costs as much as in training, so with
    $k = 10$ the estimate adds less than a tenth. Logs ``soul/clip_fraction``, the share of the coordinates with
    momentum whose step was clipped, and ``soul/curvature_mean``, the mean of $B\,\hat h$ over the weights.

    Args:
        every_n_steps: Updates from one estimate to the next, $k$.
        hessian_data: ``"retain"`` or ``"both"`` for forget and retain rows; ``"objective"`` takes the square of the
            update's own gradient, as it is after accumulation and clipping, and makes no further pass.
        estimator: ``"gnb"`` as above; ``"empirical"``: the same with the true labels; ``"hutchinson"``:
            $z \odot Hz$ of the mean loss with random signs $z$, by a second backward pass, not for sharded weights.
        parity: ``"paper"``, or ``"released"`` to have the optimizer do what SOUL's released code does (see
            ``Sophia``); the arguments above then play no part.
        score: Reads predictions off the module; by default the score of the run's objective, else ``causal_lm_nll``.
        seed: Chooses the labels and signs that are drawn.

    Raises:
        ValueError: If an argument is out of range.
        MisconfigurationException: If the run's optimizer is not Sophia, on an unsupported strategy, or where the
            predictions or the rows can't be found.
        FloatingPointError: If an estimate is not finite.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_unlearn import NPO
        >>> trainer = Trainer(callbacks=[NPO(), SOUL(every_n_steps=10)], logger=False, accelerator="cpu")

    References:
        Jia et al., *SOUL: Unlocking the Power of Second-Order Optimization for LLM Unlearning*, arXiv:2404.18239.
        Liu et al., *Sophia: A Scalable Stochastic Second-order Optimizer for Language Model Pre-training*,
        arXiv:2305.14342.
    """

    def __init__(
        self,
        every_n_steps: int = 10,
        hessian_data: HessianData = "retain",
        estimator: Estimator = "gnb",
        parity: Parity = "paper",
        score: Score | None = None,
        seed: int = 0,
    ) -> None:
        self.every_n_steps = at_least("every_n_steps", every_n_steps, 1)
        self.hessian_data = one_of("hessian_data", hessian_data, HessianData)
        self.estimator = one_of("estimator", estimator, Estimator)
        self.parity, self.score, self.seed = one_of("parity", parity, Parity), score, seed
        if hessian_data == "objective" and estimator != "empirical" and parity == "paper":
            raise ValueError(
                f"hessian_data='objective' squares the gradient of the update itself, but got estimator={estimator!r}. "
                "Set estimator='empirical', or take hessian_data='retain'."
            )
        self._gradients: dict[nn.Parameter, Tensor] = {}
        self._tokens = self._unit = 0.0
        self._rows: dict[str, int] = {}
        self._updates = self._sign_steps = 0

    # ---- Lightning hooks ---------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the run."""
        optimizer = self._check(trainer, pl_module)
        if self.parity == "released":
            for group in optimizer.param_groups:
                group["parity"] = "released"
        self._forget_estimate()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the optimizer again, as a checkpoint may have set it."""
        self._check(trainer, pl_module)
        super().on_train_start(trainer, pl_module)

    def begin(self, trainer: Trainer, module: LightningModule) -> None:
        """Start counting updates."""
        self._updates, self._sign_steps = trainer.global_step, 0

    def restore(self, state: dict[str, Any], trainer: Trainer, module: LightningModule) -> None:
        """Continue counting."""
        self._updates, self._sign_steps = trainer.global_step, state["sign_steps"]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Read the rows of this batch, where an estimate is due with the coming update."""
        if self.parity == "released" or not self._due(trainer):
            return
        for role in _ROLES[self.hessian_data]:
            if not isinstance(batch, dict) or batch.get(role) is None:
                got = sorted(map(str, batch)) if isinstance(batch, dict) else type(batch).__name__
                raise MisconfigurationException(
                    f"SOUL(hessian_data={self.hessian_data!r}) reads the {role} rows of every batch, but got {got}. "
                    "Train on {'forget': ..., 'retain': ...}, or take hessian_data='objective' with "
                    "estimator='empirical', which reads no rows."
                )
            self._accumulate(trainer, pl_module, role, batch[role])

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Pass the estimate to the optimizer."""
        assert isinstance(optimizer, Sophia)
        optimizer.squares_gradient = self.hessian_data == "objective" and self._due(trainer)
        if self._tokens > 0:
            self._hand_over(trainer, pl_module, optimizer)
        self._forget_estimate()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log how much of an update was clipped."""
        if trainer.global_step == self._updates:
            return
        self._updates = trainer.global_step
        clipped, moving = mean_over_ranks(_sophia(trainer).clipped.to(pl_module.device)).tolist()
        fraction = clipped / moving if moving else 0.0
        pl_module.log("soul/clip_fraction", fraction)
        self._sign_steps = self._sign_steps + 1 if fraction > _SIGN_MOMENTUM else 0
        if self._sign_steps == _PATIENCE:
            rank_zero_warn(
                f"For {_PATIENCE} updates, more than {_SIGN_MOMENTUM:.0%} of the coordinates were clipped: Sophia has "
                "become the sign of the momentum, and the curvature plays no part. Raise rho (or bs), until half to "
                "nine in ten are clipped."
            )

    def state_dict(self) -> dict[str, Any]:
        """How long the optimizer has been the sign of the momentum. Nothing else outlives an update."""
        return {"sign_steps": self._sign_steps}

    # ---- the estimate ------------------------------------------------------------------------------------------

    def _due(self, trainer: Trainer) -> bool:
        return trainer.global_step % self.every_n_steps == 0

    def _accumulate(self, trainer: Trainer, module: LightningModule, role: str, batch: Batch) -> None:
        # The gradients of the estimate and those of training change places: the backward pass of sharded weights knows
        # no other place to put them, and training may have accumulated some.
        self._exchange(module)
        try:
            with evaluating(module), torch.enable_grad(), trainer.precision_plugin.forward_context():
                if self.estimator == "hutchinson":
                    with sdpa_kernel(SDPBackend.MATH):  # the other attention kernels have no second derivative
                        loss, count = self._loss(trainer, module, role, batch)
                        self._add_curvature(trainer, module, loss)
                else:
                    loss, count = self._loss(trainer, module, role, batch)
                    (loss * _loss_scale(trainer)).backward()
            self._tokens += count
            self._rows[role] = self._rows.get(role, 0) + row_count(batch)
        finally:
            self._exchange(module)

    def _loss(self, trainer: Trainer, module: LightningModule, role: str, batch: Batch) -> tuple[Tensor, float]:
        """A cross-entropy whose mean over processes is the sum over all tokens, over a constant of the window."""
        predictions = self._score(trainer).predictions(module, batch)
        labels = predictions.labels
        if self.estimator == "gnb":
            seed = self._key(role, trainer.global_step)
            labels = sample_labels(predictions.logits, self._position(trainer, role, predictions), seed=seed)
        count = mean_over_ranks(torch.tensor(float(len(labels)), device=module.device)).item()
        self._unit = self._unit or count or 1.0
        return token_nll(predictions.logits, labels).sum() / self._unit, count

    def _add_curvature(self, trainer: Trainer, module: LightningModule, loss: Tensor) -> None:
        parameters = [p for p in module.parameters() if p.requires_grad]
        generator = torch.Generator(module.device).manual_seed(self._key("signs", trainer.global_step))
        signs = [
            torch.randint(0, 2, p.shape, generator=generator, device=p.device).to(p.dtype) * 2 - 1 for p in parameters
        ]
        gradients = weight_gradients(loss, parameters, create_graph=True)
        slope = torch.stack([(g * z).sum() for g, z in zip(gradients, signs, strict=True)]).sum()
        products = weight_gradients(slope, parameters)
        for parameter, sign, product in zip(parameters, signs, products, strict=True):
            diagonal = sign * product
            parameter.grad = diagonal if parameter.grad is None else parameter.grad + diagonal

    @torch.no_grad()
    def _hand_over(self, trainer: Trainer, module: LightningModule, optimizer: Sophia) -> None:
        hutchinson = self.estimator == "hutchinson"
        weight = self._unit / (self._tokens * (1.0 if hutchinson else _loss_scale(trainer)))
        bs = 1.0 if hutchinson else self._tokens * replica(trainer).total
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        trained = [p for p in parameters if p.requires_grad]
        means = [self._gradients[p].float() if p in self._gradients else torch.zeros_like(p).float() for p in trained]
        means = average_over_ranks(means)
        for mean in means:
            mean.mul_(weight)
            if not hutchinson:
                mean.square_()  # after the average over processes and batches: squares of parts are too large
        local = [local_tensor(mean) for mean in means]
        total = mean_over_ranks(
            torch.stack(
                [torch.stack([x.sum() for x in local]).sum() * bs, local[0].new_tensor(sum(map(torch.numel, local)))]
            )
        )
        if not all_true(total.isfinite().all()):
            if getattr(trainer.precision_plugin, "scaler", None) is not None:
                return  # an overflow of fp16: the scaler skips the update too, or the next estimate comes soon
            raise FloatingPointError(
                f"SOUL: the curvature estimate is not finite at step {trainer.global_step}. Lower the learning rate, "
                "or use precision='32-true' if the logits overflow."
            )
        by_parameter = dict(zip(trained, means, strict=True))
        optimizer.update_hessian([by_parameter.get(p) for p in parameters], bs=bs)
        module.log("soul/curvature_mean", total[0] / total[1])

    def _exchange(self, module: LightningModule) -> None:
        for parameter in module.parameters():
            held = self._gradients.pop(parameter, None)
            if parameter.grad is not None:
                self._gradients[parameter] = parameter.grad
            parameter.grad = held

    def _forget_estimate(self) -> None:
        self._gradients, self._rows = {}, {}
        self._tokens = self._unit = 0.0

    def _position(self, trainer: Trainer, role: str, predictions: Predictions) -> Tensor:
        """A number of its own for each supervised position, the same however rows are shared over processes.

        The position with place $j$ in row $i$ of the whole batch of an update has the number $2^{32} i + j$, where
        row $b$ of replica $r$ of $R$ is row $i = b R + r$.
        """
        share = replica(trainer)
        rows = predictions.rows
        first = torch.searchsorted(rows, rows)  # of the same row; rows ascend
        place = torch.arange(len(rows), device=rows.device) - first
        row = (self._rows.get(role, 0) + rows) * share.total + share.rank
        return (row << 32) + place

    def _key(self, purpose: str, step: int) -> int:
        return keyed_seed(self.seed - 1, *purpose.encode(), step)

    # ---- checks ------------------------------------------------------------------------------------------------

    def _check(self, trainer: Trainer, module: LightningModule) -> Sophia:
        strategy("SOUL", trainer)
        trainer_optimizes("SOUL", module)
        optimizer = next(iter(trainer.optimizers), None)
        if not isinstance(optimizer, Sophia):
            raise MisconfigurationException(
                f"SOUL supplies the curvature to Sophia, but the optimizer is {type(optimizer).__name__}. Return "
                "lightning_unlearn.Sophia from configure_optimizers, or on the command line add "
                "--optimizer=lightning_unlearn.Sophia --optimizer.lr=1e-5."
            )
        if not {p for group in optimizer.param_groups for p in group["params"]} <= set(module.parameters()):
            raise MisconfigurationException(
                "Sophia holds parameters that are not the module's: it was made before the strategy sharded them, as "
                "LightningCLI's --optimizer is. Return Sophia(self.parameters(), ...) from configure_optimizers."
            )
        if self.parity == "paper":
            self._check_estimator(trainer, module, optimizer)
        return optimizer

    def _check_estimator(self, trainer: Trainer, module: LightningModule, optimizer: Sophia) -> None:
        if any(group["parity"] == "released" for group in optimizer.param_groups):
            raise MisconfigurationException(
                "Sophia(parity='released') takes its own curvature at every step, and SOUL would add another. Set "
                "parity='released' on SOUL too, or on neither."
            )
        if self.hessian_data == "objective":
            if any(group["bs"] == "auto" for group in optimizer.param_groups):
                raise MisconfigurationException(
                    "SOUL(hessian_data='objective') squares the gradient of a loss whose tokens it does not count, so "
                    "bs='auto' has no number. Give Sophia one, such as bs=5120 as in SOUL's released code."
                )
            return
        score = self._score(trainer)
        if not isinstance(score, PredictionScore):
            raise MisconfigurationException(
                "SOUL reads logits, but the score only gives likelihoods. Give SOUL a score such as causal_lm_nll or "
                "classifier_nll, or a function that returns Predictions decorated with from_predictions."
            )
        if self.estimator == "hutchinson" and any(isinstance(p, DTensor) for p in module.parameters()):
            raise MisconfigurationException(
                "SOUL(estimator='hutchinson') differentiates twice, which sharded weights (FSDP2) do not allow. Use "
                "estimator='gnb', or strategy='ddp'."
            )

    def _score(self, trainer: Trainer) -> Any:
        if self.score is not None:
            return self.score
        return objective_score("SOUL", trainer)


def _sophia(trainer: Trainer) -> Sophia:
    optimizer = trainer.optimizers[0]
    assert isinstance(optimizer, Sophia)
    return optimizer


def _loss_scale(trainer: Trainer) -> float:
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return float(scaler.get_scale()) if scaler is not None else 1.0
