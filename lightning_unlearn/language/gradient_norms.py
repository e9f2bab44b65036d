"""Gradient norms of rows, the scores of the membership attack GradNorm."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from lightning_unlearn.core.checks import at_least, one_of
from lightning_unlearn.core.distributed import gather_objects, replica
from lightning_unlearn.core.gradients import refuse_reentrant_checkpoints
from lightning_unlearn.core.lightning import MisconfigurationException, isolate_rng
from lightning_unlearn.core.modes import evaluation_mode
from lightning_unlearn.core.scores import causal_lm_nll
from lightning_unlearn.core.transfer import transferred
from lightning_unlearn.functional.language.membership import GradientNormVariant, gradient_norm
from lightning_unlearn.language.attacks.token_batches import token_rows
from lightning_unlearn.language.causal_lm import LitCausalLM
from lightning_unlearn.language.data.token_rows import TokenRows, collate_tokens
from lightning_unlearn.language.probes import Probe

__all__ = ["gradient_norms"]


def gradient_norms(
    module: LitCausalLM,
    probes: Sequence[Probe],
    p: float = 2.0,
    variant: GradientNormVariant = "mean",
    max_length: int = 512,
) -> Tensor:
    """Norm of the gradient of each row's mean negative log-likelihood, in all weights that require one.

    Each row takes a forward and a backward pass of its own. The model is in evaluation mode; open-unlearning reads
    these norms with dropout on. Weights, their ``grad``, modes and random numbers are as before afterwards. Processes
    of a distributed run share the rows, and each returns all scores.

    Args:
        module: The model. With an adapter, its gradients are those of the adapter.
        probes: The rows.
        p: Order of the norm, at least 1, or infinity.
        variant: ``"mean"`` over weight tensors, or ``"global"``, see
            [`gradient_norm`][lightning_unlearn.functional.gradient_norm].
        max_length: Longest row in tokens; it is cut there.

    Returns:
        Shape ``(N,)``, fp64; lower for rows that the model was trained on.

    Raises:
        MisconfigurationException: If weights are sharded.
        ValueError: If there is no row, no weight requires a gradient, or an argument is out of range.

    Example:
        ```python
        forget, unseen = (gradient_norms(module, probes_of(rows)) for rows in (forget_rows, unseen_rows))
        membership_inference(forget, unseen).auc
        ```
    """
    at_least("p", p, 1)
    one_of("variant", variant, GradientNormVariant)
    if not probes:
        raise ValueError("There is no row to score. Give at least one.")
    weights = [weight for weight in module.parameters() if weight.requires_grad]
    if not weights:
        raise ValueError("No weight requires a gradient, so there is no norm. Unfreeze those that are of interest.")
    if any(isinstance(weight, DTensor) for weight in weights):
        raise MisconfigurationException(
            "Gradient norms need whole weights, but these are sharded. Score the exported model in one process."
        )
    share = replica(module._trainer)
    rows = TokenRows(token_rows(module, probes, max_length))
    own = list(range(share.rank, len(rows), share.total))
    found = []
    with isolate_rng(), torch.inference_mode(False), torch.enable_grad(), evaluation_mode(module):
        for i in own:
            predictions = causal_lm_nll.predictions(module, transferred(module, collate_tokens([rows[i]])))
            loss = predictions.nll().sum() / predictions.length().sum()
            gradients = torch.autograd.grad(loss, weights, allow_unused=True)
            if any(g is None for g in gradients):
                refuse_reentrant_checkpoints(loss)
            found.append(gradient_norm([g for g in gradients if g is not None], p, variant))
    by_row = {i: score for part in gather_objects(dict(zip(own, found, strict=True))) for i, score in part.items()}
    return torch.stack([by_row[i] for i in range(len(rows))])
