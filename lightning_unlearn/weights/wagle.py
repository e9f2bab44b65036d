"""WAGLE mask: weights that matter to forgetting and spare the retain rows."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor, nn

from lightning_unlearn.core.checks import above, one_of
from lightning_unlearn.core.distributed import local_tensor
from lightning_unlearn.core.gradients import row_gradient
from lightning_unlearn.core.lightning import LightningModule, Trainer
from lightning_unlearn.core.rows import RunRows
from lightning_unlearn.core.scores import Score
from lightning_unlearn.functional.saliency.wagle import wagle_score
from lightning_unlearn.weights.weight_mask import Scope, WeightMask

__all__ = ["WAGLE"]

Parity = Literal["paper", "released"]


class WAGLE(WeightMask):
    r"""Weight attribution: only weights that matter to forgetting and not to the retain rows move.

    $$S_i = \Big| \Big( \theta_i - \frac{g_{r,i}}{\gamma} \Big)\, g_{f,i} \Big|$$

    $g_f$ and $g_r$ are the gradients of the mean NLL per token of the forget and retain rows at the original model;
    the weights with the highest score may move. It works beside any objective, and costs one forward and backward pass
    over forget rows and as many retain rows before the first step.

    The released code takes sums of gradients over $N$ rows, divided by the number $a$ of batches that it accumulates,
    in place of means: its ``mu`` corresponds to $\gamma = mu \cdot a / N$ here, if answers are equally long. Its
    published masks (``mu = 1e-6``) rank by $|g_r g_f|$ nearly alone. Densities it publishes: 0.95 (GradDiff, NPO) and
    0.8 (IdkNLL) on TOFU, 0.4 (GradDiff) and 0.6 (NPO) on WMDP.

    Args:
        density: Share of weights that may move, in [0, 1].
        gamma: Curvature $\gamma$ of the retain loss, about the mean of its diagonal. The larger, the more of SNIP.
        include_magnitude_term: Whether $\theta_i$ is in the formula. Without the approximation that keeps it there, it
            cancels, and $|g_{r,i}\, g_{f,i}|$ is left.
        retain_rows: Retain rows that $g_r$ is taken on: a number, ``"all"``, or ``None`` for as many as forget rows.
            They are drawn without replacement.
        seed: Seed of that draw.
        parity: ``"paper"`` for the formula; ``"released"``: $g_f$ and $g_r$ are sums over rows of the gradient of each
            row's mean NLL per token, divided by ``Trainer(accumulate_grad_batches)``, so that ``gamma`` is the released
            code's ``mu``. That code draws retain rows with replacement and sums in the weights' type, often bf16; here
            the sum is in fp32.
        scope: ``"global"``, ``"per_layer"`` or ``"per_tensor"``: where scores compete, see
            [`WeightMask`][lightning_unlearn.WeightMask].
        parameters: Regular expression; only parameters whose name it is found in are scored and may move.
        mask_file: A mask that an earlier run saved with the same settings.
        score: Reads likelihoods off the module; by default that of the run's objective.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_unlearn import NPO
        >>> trainer = Trainer(callbacks=[NPO(), WAGLE(density=0.8)], logger=False, accelerator="cpu")

    References:
        Jia et al., *WAGLE: Strategic Weight Attribution for Effective and Modular Unlearning in Large Language Models*,
        arXiv:2410.17509.
    """

    own_settings: ClassVar[tuple[str, ...]] = ("gamma", "include_magnitude_term", "retain_rows", "seed", "parity")

    def __init__(
        self,
        density: float,
        gamma: float = 1e-6,
        include_magnitude_term: bool = True,
        retain_rows: int | Literal["all"] | None = None,
        seed: int = 0,
        parity: Parity = "paper",
        scope: Scope = "global",
        parameters: str | None = None,
        mask_file: str | None = None,
        score: Score | None = None,
    ) -> None:
        super().__init__(density, scope, parameters, mask_file, score)
        if retain_rows not in (None, "all") and (isinstance(retain_rows, str) or retain_rows < 1):
            raise ValueError(f"retain_rows must be a number of at least 1, 'all' or None, but got {retain_rows!r}.")
        self.gamma, self.include_magnitude_term = above("gamma", gamma, 0), include_magnitude_term
        self.retain_rows, self.seed, self.parity = retain_rows, seed, one_of("parity", parity, Parity)

    def scores(
        self, trainer: Trainer, module: LightningModule, parameters: dict[str, nn.Parameter]
    ) -> dict[str, Tensor]:
        """The formula, with gradients over the run's own rows."""
        forget = RunRows.of_role(trainer, "forget", "WAGLE")
        rows = forget.count if self.retain_rows is None else self.retain_rows
        retain = RunRows.of_role(trainer, "retain", "WAGLE", None if isinstance(rows, str) else rows, self.seed)
        score = self.likelihood(trainer)
        mean: Literal["tokens", "rows"] = "rows" if self.parity == "released" else "tokens"
        forget_grad = row_gradient(trainer, module, parameters, score, forget, mean)
        retain_grad = row_gradient(trainer, module, parameters, score, retain, mean)
        return {
            name: wagle_score(
                local_tensor(p.detach()).float(),
                forget_grad.pop(name),
                retain_grad.pop(name),
                self.gamma,
                self.include_magnitude_term,
            )
            for name, p in parameters.items()
        }
