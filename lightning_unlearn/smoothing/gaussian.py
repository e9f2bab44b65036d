"""Randomised smoothing of a function over its input."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_unlearn.core.checks import at_least
from lightning_unlearn.functional.smoothing.gaussian import gaussian_noise

__all__ = ["GaussianSmoother"]


class GaussianSmoother:
    r"""A function's mean over Gaussian noise on its input, by Monte Carlo.

    $$\bar f(x) = \frac1n \sum_{i=1}^n f(x + \eta_i), \qquad \eta_i \sim \mathcal{N}(0, \sigma^2 I)$$

    The noise of a row is a function of the seed, a key and the number of the row, and of nothing else: two processes
    draw what one draws, and a resumed run draws what an uninterrupted one does. Kinds of devices draw different
    numbers. Complex input gets independent noise on its real and imaginary parts, each of standard deviation $\sigma$.

    Args:
        sigma: Standard deviation $\sigma$ in units of the input; with 0 the function is called once, without noise.
        n_samples: Samples $n$.
        antithetic: Whether samples come in pairs $\eta, -\eta$, which makes the mean exact for a linear function.
        shared: Whether all keys have the same noise, such as the steps of an unrolled network.
        seed: Chooses the noise.

    Raises:
        ValueError: If ``sigma`` is negative, ``n_samples`` not positive, or odd where ``antithetic``.

    Example:
        >>> import torch
        >>> smoother = GaussianSmoother(sigma=0.5, n_samples=4, antithetic=True)
        >>> x = torch.tensor([[1.0, 2.0]])
        >>> torch.allclose(smoother(lambda rows: 3 * rows, x), 3 * x)
        True

    References:
        Cohen et al., *Certified Adversarial Robustness via Randomized Smoothing*, arXiv:1902.02918.
    """

    def __init__(
        self, sigma: float, n_samples: int = 10, antithetic: bool = False, shared: bool = False, seed: int = 0
    ) -> None:
        self.sigma = at_least("sigma", sigma, 0)
        self.n_samples = at_least("n_samples", n_samples, 1)
        if antithetic and n_samples % 2:
            raise ValueError(f"antithetic draws samples in pairs, so n_samples must be even, but is {n_samples}.")
        self.antithetic, self.shared, self.seed = antithetic, shared, seed

    @torch.compiler.disable
    def noise(self, like: Tensor, key: Sequence[int] = (), rows: Tensor | None = None) -> Tensor:
        r"""The noise $\eta_i$ for a batch.

        Args:
            like: Shape ``(rows, ...)``, floating or complex.
            key: Chooses the noise beside the seed, such as the epoch or the step of an unrolled network.
            rows: Number of each row, shape ``(rows,)``, such as its index in the data set; by default 0, 1, and so on.

        Returns:
            Shape ``(n_samples, *like.shape)``.
        """
        if not self.sigma:
            return like.new_zeros(self.n_samples, *like.shape)
        stream = (self.seed,) if self.shared else (self.seed, *key)
        numbers = None if rows is None else rows.tolist()
        return self.sigma * gaussian_noise(like, self.n_samples, stream, numbers, self.antithetic)

    def __call__(
        self,
        function: Callable[[Tensor], Tensor],
        x: Tensor,
        key: Sequence[int] = (),
        rows: Tensor | None = None,
    ) -> Tensor:
        r"""The mean $\bar f(x)$.

        Args:
            function: Maps ``(rows, ...)`` to ``(rows, ...)``, each row by itself. It is called once, on the samples of
                all rows; row $b$ of sample $i$ is row ``i * len(x) + b``.
            x: Shape ``(rows, ...)``.
            key: As in ``noise``.
            rows: As in ``noise``.

        Returns:
            What ``function`` gives for ``x``, averaged over the samples.
        """
        if not self.sigma:
            return function(x)
        noisy = (x + self.noise(x, key, rows)).flatten(0, 1)
        return function(noisy).unflatten(0, (self.n_samples, len(x))).mean(0)

    def __repr__(self) -> str:
        return (
            f"GaussianSmoother(sigma={self.sigma}, n_samples={self.n_samples}, antithetic={self.antithetic}, "
            f"shared={self.shared}, seed={self.seed})"
        )
