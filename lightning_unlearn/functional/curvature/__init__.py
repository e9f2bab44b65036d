"""Curvature estimates, optimizer steps and linear solvers."""

from lightning_unlearn.functional.curvature.conjugate_gradient import conjugate_gradient
from lightning_unlearn.functional.curvature.gauss_newton import sample_labels
from lightning_unlearn.functional.curvature.sophia import sophia, sophia_hessian
from lightning_unlearn.functional.curvature.woodfisher import woodfisher

__all__ = ["conjugate_gradient", "sample_labels", "sophia", "sophia_hessian", "woodfisher"]
