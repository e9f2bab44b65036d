"""Hessian-vector products of the forget term, under every strategy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_unlearn.core.distributed import world_size
from lightning_unlearn.core.gradients import weight_gradients
from lightning_unlearn.core.lightning import MODEL_PARALLEL, LightningModule, MisconfigurationException, Trainer
from lightning_unlearn.functional.smoothing.finite_difference import difference_step, hessian_vector_product
from lightning_unlearn.functional.smoothing.gradient_penalty import inner_product
from lightning_unlearn.smoothing.forget_term import ForgetTerm, Gradients

__all__ = ["Derivative", "added", "check_derivative", "check_resolution", "filled", "hessian_product", "mean_gradient"]

Derivative = Literal["double_backward", "finite_difference"]
"""How second derivatives are made."""

_COARSEST = 1e-3
_NO_SECOND = ("derivative for", "differentiate twice", "ouble backward")  # in torch's own messages


def check_derivative(name: str, mode: Derivative, trainer: Trainer) -> None:
    """Refuse a run whose gradients can't be differentiated twice.

    Raises:
        MisconfigurationException: With ``"double_backward"``, if weights are sharded or gradients scaled.
    """
    reason = None
    if isinstance(trainer.strategy, MODEL_PARALLEL):
        reason = "ModelParallelStrategy shards the weights, and no graph leads through their gradients"
    elif getattr(trainer.precision_plugin, "scaler", None) is not None:
        reason = "precision='16-mixed' scales the loss for one backward pass only"
    if mode == "double_backward" and reason is not None:
        raise MisconfigurationException(
            f"{name}(mode='double_backward') differentiates gradients, but {reason}. Use mode='finite_difference', "
            "which only makes backward passes."
        )


def check_resolution(name: str, module: LightningModule, remedy: str = "") -> None:
    """Refuse weights in half precision, which can't resolve small perturbations.

    Raises:
        MisconfigurationException: If a weight that trains is in half precision.
    """
    coarse = [n for n, p in module.named_parameters() if p.requires_grad and torch.finfo(p.dtype).eps > _COARSEST]
    if coarse:
        raise MisconfigurationException(
            f"{name} compares gradients at weights that lie close together, but {coarse[0]!r} is in half precision, "
            f"where they round to the same. Keep the weights in float32 (precision='bf16-mixed'){remedy}."
        )


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Run with the only attention kernel that has a second derivative.

    Raises:
        MisconfigurationException: If something else in the module has none.
    """
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    except RuntimeError as error:  # also NotImplementedError
        if not any(words in str(error) for words in _NO_SECOND):
            raise
        raise MisconfigurationException(
            f"A part of the module has no second derivative ({error}). Use mode='finite_difference', which needs none."
        ) from error


def hessian_product(term: ForgetTerm, vector: Sequence[Tensor], mode: Derivative) -> list[Tensor]:
    """Product of the Hessian at the current weights with a vector, averaged over processes.

    Args:
        term: The forget term of a batch.
        vector: One tensor for each of its parameters, the same on every process.
        mode: How it is made.

    Returns:
        One tensor for each parameter.
    """
    product: Gradients
    if mode == "double_backward":
        with twice_differentiable(), term.graph() as (loss, _), torch.autocast(term.module.device.type, enabled=False):
            first = weight_gradients(loss, term.parameters, create_graph=True)
            slope = inner_product(first, vector)
            product = term.gradient_of(slope) if slope.requires_grad else [None] * len(term.parameters)
    else:
        length, way = (inner_product(x, x).sqrt().item() for x in (_values(term), vector))
        step = difference_step(length, way, term.parameters[0].dtype)

        def displaced(by: Sequence[Tensor]) -> list[Tensor]:
            with term.at([p + d for p, d in zip(_values(term), by, strict=True)]):
                return filled(term, term.gradient().gradients)

        product = list(hessian_vector_product(displaced, vector, step=step))
    if world_size() > 1:
        term.average_(product)
    return filled(term, product)


def filled(term: ForgetTerm, gradients: Gradients) -> list[Tensor]:
    """Gradients with 0 where the term does not depend on a parameter."""
    return [torch.zeros_like(p) if g is None else g for p, g in zip(_values(term), gradients, strict=True)]


def mean_gradient(term: ForgetTerm, gradients: Gradients) -> list[Tensor]:
    """The mean over processes of a gradient of the term, which itself stays as it is."""
    if world_size() > 1:
        gradients = [None if g is None else g.clone() for g in gradients]
        term.average_(gradients)
    return filled(term, gradients)


def added(gradients: Gradients, penalty: Sequence[Tensor], coef: float) -> Gradients:
    """Gradients of the term plus those of a penalty; none where the term does not depend on a parameter."""
    pairs = zip(gradients, penalty, strict=True)
    return [None if g is None else (g + coef * p).to(g.dtype) for g, p in pairs]


def _values(term: ForgetTerm) -> list[Tensor]:
    return [parameter.detach() for parameter in term.parameters]
