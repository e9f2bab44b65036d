# python examples/markov_weights.py --seeds 0 1 2
"""Which weights move, and how far: masks and Sophia on the Markov chains of markov.py.

Masks (arXiv:2410.17509): NPO with a mask that lets a tenth, half or nine tenths of the weights move, chosen in several
ways. Optimizers (arXiv:2404.18239): GradDiff with AdamW and with Sophia, at a usual and at an aggressive learning rate.
Each number is a divergence from a model that never saw what is to be forgotten, in nats a token. Writes
runs/markov/weights.json and weights.svg.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from markov import MarkovLM, chains, pretrain, quiet_arguments, unlearn
from torch import Tensor
from tqdm import tqdm

from lightning_unlearn import NPO, SNIP, SOUL, WAGLE, GradDiff, GradientMask, MagnitudeMask, RandomMask, Sophia

MASKS: dict[str, Any] = {
    "random": RandomMask,
    "magnitude": MagnitudeMask,
    "gradient": GradientMask,
    "SNIP": SNIP,
    "WAGLE": WAGLE,
}
DENSITIES = (0.1, 0.5, 0.9)
RATES = (3e-4, 1e-3)


class SophiaLM(MarkovLM):
    """The same model for Sophia with the constants of SOUL's released code."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return Sophia(self.parameters(), lr=self.lr, betas=(0.9, 0.95), rho=0.04, weight_decay=0.0)


OPTIMIZERS: dict[str, tuple[type[MarkovLM], Callable[[], list[L.Callback]]]] = {
    "AdamW": (MarkovLM, list),
    "SOUL": (SophiaLM, lambda: [SOUL(every_n_steps=10)]),
    "SOUL, released": (SophiaLM, lambda: [SOUL(parity="released")]),
}


def run(seed: int, only: list[str] | None = None) -> dict[str, dict[str, float]]:
    """Divergence before and after 60 steps, on the retain chain and on both forget chains together."""
    train, tests = chains(seed, short=False)
    tests = {"retain": tests["retain"], "forget": torch.cat([tests["forget1"], tests["forget2"]])}
    start, goal = pretrain(list(train.values()), seed), pretrain([train["retain"]], seed)
    rows: dict[str, list[Tensor]] = {"forget": [*train["forget1"], *train["forget2"]], "retain": [*train["retain"]]}

    def measured(kind: type[MarkovLM], lr: float, callbacks: list[L.Callback], **options: Any) -> list[Any]:
        torch.manual_seed(seed)
        model = kind(lr=lr)
        model.load_state_dict(start.state_dict())
        return unlearn(model, goal, callbacks, rows["forget"], tests, rows["retain"], 8, max_steps=60, **options)

    jobs: dict[str, Callable[[], list[Any]]] = {"dense": lambda: measured(MarkovLM, 1e-3, [_npo()])}
    for name, mask in MASKS.items():
        for density in DENSITIES:
            jobs[f"{name} {density}"] = lambda mask=mask, density=density: measured(  # type: ignore[misc]
                MarkovLM, 1e-3, [_npo(), mask(density=density)]
            )
    for name, (kind, beside) in OPTIMIZERS.items():
        for lr in RATES:
            jobs[f"{name} {lr:g}"] = lambda kind=kind, beside=beside, lr=lr: measured(  # type: ignore[misc]
                kind, lr, [GradDiff(retain_weight=2.0), *beside()], gradient_clip_val=1.0
            )
    found = {name: jobs[name]() for name in tqdm(only or list(jobs), desc=f"seed {seed}", leave=False)}
    first = next(iter(found.values()))[0]
    return {"before": first} | {name: points[-1] for name, points in found.items()}


def _npo() -> NPO:
    return NPO(beta=1.0, retain_weight=5.0)


def draw(results: list[dict[str, dict[str, float]]], path: Path) -> None:
    """What is left to forget against what was broken, one point a method and seed."""
    from matplotlib.figure import Figure

    panels = {f"density {d}": [f"{name} {d}" for name in MASKS] for d in DENSITIES}
    panels |= {f"learning rate {lr:g}": [f"{name} {lr:g}" for name in OPTIMIZERS] for lr in RATES}
    figure = Figure((16, 3.8), layout="constrained")
    for axes, (title, names) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        for number, name in enumerate(["before", *names]):
            x, y = ([found[name][k] for found in results] for k in ("forget", "retain"))
            axes.plot(x, y, "ox^sDv"[number], color=f"C{number}", label=name.rsplit(" ", 1)[0])
        axes.set(title=title, xlabel="KL on what is to go", xscale="log", yscale="log")
        axes.legend(fontsize=7)
    figure.axes[0].set_ylabel("KL on what is to stay")
    figure.savefig(path)


def main() -> None:
    args = quiet_arguments(__doc__)
    results = [run(seed) for seed in args.seeds]
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "weights.json").write_text(json.dumps(dict(zip(args.seeds, results, strict=True)), indent=1) + "\n")
    draw(results, args.output / "weights.svg")
    print(f"KL on what is to stay · to go, seeds {args.seeds}")
    for name in results[0]:
        print(
            f"  {name:<22}"
            + "   ".join(f"{found[name]['retain']:.3f}·{found[name]['forget']:.3f}" for found in results)
        )
    print(f"Open {args.output / 'weights.svg'}.")


if __name__ == "__main__":
    main()
