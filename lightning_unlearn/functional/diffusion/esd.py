"""Target of ESD."""

from __future__ import annotations

from torch import Tensor

__all__ = ["esd_target"]


def esd_target(unconditional: Tensor, concept: Tensor, base: Tensor | None = None, *, eta: float = 1.0) -> Tensor:
    r"""Target of ESD for the concept: $e_b - \eta\,(e_p - e_0)$.

    All outputs come from the frozen model. With $e_b = e_0$ (the paper) this is classifier-free guidance with weight
    $-\eta$. The authors' newer code uses $e_b = e_p$, so its $\eta$ is larger by 1 for the same target.

    Args:
        unconditional: $e_0$, output for the empty prompt, shape ``(B, C, H, W)``.
        concept: $e_p$, output for the concept, same shape.
        base: $e_b$, output that the guidance is subtracted from; by default $e_0$.
        eta: Negative guidance $\eta$; 0 leaves the base.

    Returns:
        Shape ``(B, C, H, W)``.

    Example:
        >>> import torch
        >>> e_0, e_p = torch.tensor([1.0]), torch.tensor([3.0])
        >>> esd_target(e_0, e_p), esd_target(e_0, e_p, base=e_p, eta=2.0)
        (tensor([-1.]), tensor([-1.]))

    References:
        Gandikota et al., *Erasing Concepts from Diffusion Models*, arXiv:2303.07345.
    """
    return (unconditional if base is None else base) - eta * (concept - unconditional)
