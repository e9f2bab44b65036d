"""Sophia optimizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from lightning_unlearn.core.checks import above, at_least, one_of
from lightning_unlearn.core.distributed import local_tensor
from lightning_unlearn.functional.curvature.sophia import sophia, sophia_hessian

__all__ = ["Parity", "Sophia"]

Parity = Literal["paper", "released"]

_RELEASED_BS = 5120.0  # the default of the released optimizer's step, which its trainer never sets


class Sophia(torch.optim.Optimizer):
    r"""Sophia-G: momentum divided by a diagonal curvature, with every coordinate's step clipped at the learning rate.

    $$\theta \leftarrow (1 - \eta\lambda)\,\theta
      - \eta\,\mathrm{sign}(m)\min\Big(\frac{|m|}{\rho\, B\, h + 10^{-15}},\ 1\Big)$$

    The optimizer keeps the momentum $m$ and the curvature $h$, both in fp32. The training loop supplies the curvature
    with `update_hessian`; in a Lightning run the callback [`SOUL`][lightning_unlearn.SOUL] does. Without it $h$ stays
    0, and the step is the sign of the momentum. A learning rate for AdamW is about three times too large here.

    Args:
        params: Parameters or groups of them. Those that get no gradient are left alone.
        lr: Learning rate $\eta > 0$, the largest step of a coordinate.
        betas: Decay of the momentum and of the curvature, each in [0, 1).
        rho: Curvature scale $\rho > 0$. Larger takes shorter steps and clips fewer coordinates; clipping half to nine
            in ten of them is a good aim.
        weight_decay: Decoupled weight decay $\lambda$.
        bs: Tokens $B$ in the mean whose squared gradient estimates the curvature; ``"auto"`` takes the number that
            comes with each estimate.
        parity: ``"paper"``, or ``"released"`` for what the released code of SOUL does: at every step, the square of the
            step's own gradient as the curvature, the momentum applied twice, and ``bs`` 5120 where it is ``"auto"``.
        foreach: Run each operation over all tensors at once; by default on a GPU.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> optimizer = Sophia([weight], lr=0.1, betas=(0.9, 0.95), rho=1.0, weight_decay=0.0)
        >>> weight.grad = torch.tensor([1.0, 1.0])
        >>> optimizer.update_hessian([torch.tensor([0.0, 20.0])], bs=1)
        >>> optimizer.step()
        >>> weight.data
        tensor([-0.1000, -0.0100])

    References:
        Liu et al., *Sophia: A Scalable Stochastic Second-order Optimizer for Language Model Pre-training*,
        arXiv:2305.14342.
        Jia et al., *SOUL: Unlocking the Power of Second-Order Optimization for LLM Unlearning*, arXiv:2404.18239.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.965, 0.99),
        rho: float = 0.04,
        weight_decay: float = 0.1,
        bs: float | Literal["auto"] = "auto",
        parity: Parity = "paper",
        foreach: bool | None = None,
    ) -> None:
        at_least("lr", lr, 0)
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas must be two numbers in [0, 1), but got {betas}.")
        above("rho", rho, 0, "a tiny rho gives the sign of the momentum")
        at_least("weight_decay", weight_decay, 0)
        if bs != "auto" and not (isinstance(bs, (int, float)) and bs > 0):
            raise ValueError(f"bs must be 'auto' or a positive number of tokens, but got {bs!r}.")
        one_of("parity", parity, Parity)
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": tuple(betas),
                "rho": rho,
                "weight_decay": weight_decay,
                "bs": bs,
                "parity": parity,
                "foreach": foreach,
                "tokens": 1.0,
            },
        )
        self.squares_gradient = False
        """Whether a step takes the square of its own gradient, as it then is, for a curvature estimate."""
        self.clipped = torch.zeros(2)
        """Of the last step: how many coordinates of this process were clipped, and how many had momentum."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update.

        Args:
            closure: Computes the gradients and returns the loss.

        Returns:
            What the closure returns.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        counts = []
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if any(p.grad.is_sparse for p in weights):
                raise RuntimeError("Sophia does not take sparse gradients. Set sparse=False on the embedding.")
            momenta, hessians = ([self._state(p, name) for p in weights] for name in ("momentum", "hessian"))
            values = [local_tensor(p) for p in weights]
            gradients = [local_tensor(p.grad) for p in weights]
            beta1, beta2 = group["betas"]
            released = group["parity"] == "released"
            if released or self.squares_gradient:
                sophia_hessian(hessians, gradients, beta2=beta2, square=True)
            counts.append(
                sophia(
                    values,
                    gradients,
                    momenta,
                    hessians,
                    lr=float(group["lr"]),
                    # Twice the same gradient: b(bm + (1 - b)g) + (1 - b)g = b²m + (1 - b²)g.
                    beta1=beta1**2 if released else beta1,
                    rho=group["rho"],
                    bs=self._batch_size(group),
                    weight_decay=group["weight_decay"],
                    foreach=_use_foreach(values) if group["foreach"] is None else group["foreach"],
                )
            )
        self.clipped = torch.stack([count.to(counts[0].device) for count in counts]).sum(0)
        return loss

    @torch.no_grad()
    def update_hessian(self, estimates: Sequence[Tensor | None], bs: float) -> None:
        """Add a curvature estimate to the running mean.

        Args:
            estimates: One for each parameter in the order of ``param_groups``, of its shape and sharded as it is;
                ``None`` leaves the parameter's curvature as it is. For Gauss-Newton-Bartlett, the *square of the mean
                gradient* over the whole batch: squared after it was averaged over processes and micro-batches.
            bs: Number of tokens in that mean, or 1 where the estimate is of the mean loss itself.

        Raises:
            ValueError: If there is not one estimate a parameter.
        """
        count = sum(len(group["params"]) for group in self.param_groups)
        if len(estimates) != count:
            raise ValueError(f"update_hessian needs one estimate a parameter: {count}, but got {len(estimates)}.")
        remaining = iter(estimates)
        for group in self.param_groups:
            group["tokens"] = float(bs)
            given = [(p, e) for p, e in zip(group["params"], remaining, strict=False) if e is not None]
            sophia_hessian(
                [self._state(p, "hessian") for p, _ in given],
                [local_tensor(e) for _, e in given],
                beta2=group["betas"][1],
            )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state, in fp32 whatever the type of the weights: torch would cast it to theirs.

        Raises:
            ValueError: If it is the state of another optimizer.
        """
        if any("rho" not in group for group in state_dict["param_groups"]):
            raise ValueError(
                "This state is of another optimizer than Sophia. Resume with the optimizer that the run was started "
                "with, or load the weights alone and start a new run without ckpt_path."
            )
        super().load_state_dict(state_dict)
        keys = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        parameters = chain.from_iterable(group["params"] for group in self.param_groups)
        for key, parameter in zip(keys, parameters, strict=True):
            for name, value in state_dict["state"].get(key, {}).items():
                self.state[parameter][name] = value.to(parameter.device, torch.float32, copy=True)

    def _state(self, parameter: Tensor, name: str) -> Tensor:
        state = self.state[parameter]
        if not state:
            for key in ("momentum", "hessian"):
                state[key] = torch.zeros_like(parameter, dtype=torch.float32)
        return local_tensor(state[name])

    @staticmethod
    def _batch_size(group: dict[str, Any]) -> float:
        if group["bs"] != "auto":
            return float(group["bs"])
        return _RELEASED_BS if group["parity"] == "released" else group["tokens"]


def _use_foreach(tensors: list[Tensor]) -> bool:
    return all(tensor.is_cuda for tensor in tensors)
