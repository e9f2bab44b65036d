"""Cost of the multi-coil operator and of data consistency, against bare Fourier transforms and the textbook form.

`python -m perf.reconstruction`: one slice, complex64. Everything is timed in one run, alternately; the median counts.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from lightning_unlearn import MultiCoilMRI
from lightning_unlearn.functional import (
    birdcage_maps,
    centred_fft2,
    centred_ifft2,
    column_mask,
    data_consistency,
)


class Textbook:
    """The formula as it is written, with shifts."""

    def __init__(self, maps: Tensor, mask: Tensor) -> None:
        self.maps, self.mask = maps, mask

    def A(self, x: Tensor) -> Tensor:
        return self.mask * centred_fft2(self.maps * x[:, None])

    def A_adjoint(self, k: Tensor) -> Tensor:
        return (self.maps.conj() * centred_ifft2(self.mask * k)).sum(1)

    def normal(self, x: Tensor) -> Tensor:
        return self.A_adjoint(self.A(x))


def bare(maps: Tensor, mask: Tensor, x: Tensor) -> Tensor:
    """Two transforms a coil and the products by maps and mask, uncentred."""
    k = torch.fft.fft2(maps * x[:, None]) * mask
    return (torch.fft.ifft2(k * mask) * maps).sum(1)


def solve_and_differentiate(operator: MultiCoilMRI | Textbook, z: Tensor, d: Tensor) -> None:
    z = z.requires_grad_()
    x = data_consistency(operator.normal, z, d)
    torch.autograd.grad(x.abs().square().sum(), z)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m perf.reconstruction", description=__doc__)
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--coils", type=int, default=15)
    parser.add_argument("--acceleration", type=float, default=4.0)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    maps = birdcage_maps(args.coils, args.size, args.size)[None].to(args.device)
    mask = column_mask(args.size, args.acceleration).to(args.device)
    ours, textbook, weights = MultiCoilMRI(maps, mask), Textbook(maps, mask), mask.to(maps.dtype)
    x = torch.randn(1, args.size, args.size, dtype=maps.dtype, device=args.device)
    d, k, z = torch.randn_like(x), ours.A(x), ours.A_adjoint(ours.A(x))
    assert torch.allclose(ours.normal(x), textbook.normal(x), atol=1e-5)

    runs: dict[str, Callable[[], object]] = {
        "two transforms a coil and the products": lambda: bare(maps, weights, x),
        "A": lambda: ours.A(x),
        "A_adjoint": lambda: ours.A_adjoint(k),
        "A, then A_adjoint": lambda: ours.A_adjoint(ours.A(x)),
        "normal": lambda: ours.normal(x),
        "normal, as it is written": lambda: textbook.normal(x),
        "data consistency with its gradient": lambda: solve_and_differentiate(ours, z, d),
        "data consistency with its gradient, as it is written": lambda: solve_and_differentiate(textbook, z, d),
    }
    taken: dict[str, list[float]] = {name: [] for name in runs}
    clock = time.process_time if args.device == "cpu" else time.perf_counter
    for _ in range(args.repeats):
        for name, run in runs.items():
            start = clock()
            run()
            if args.device != "cpu":
                torch.accelerator.synchronize()
            taken[name].append(clock() - start)
    seconds = {name: statistics.median(values) for name, values in taken.items()}
    unit = seconds["two transforms a coil and the products"]
    print(f"{args.size} x {args.size}, {args.coils} coils, {args.threads} threads on {args.device}")
    for name, value in seconds.items():
        print(f"{name}: {1000 * value:.1f} ms, {value / unit:.2f} times")


if __name__ == "__main__":
    main()
