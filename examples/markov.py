# python examples/markov.py --seeds 0 1 2
"""Forgetting Markov chains: where NPO spends its budget, and where SimNPO does (arXiv:2410.07163; reduced).

A small transformer learns three chains over ten states. Two are to be forgotten. A model that never saw them is the
goal: the divergence from it on each chain is what is left to forget, or what was broken. In case 1 the second chain's
sequences are short; in case 2 it was never learned, so there is nothing to forget. Writes runs/markov/markov.json and
trajectories.svg.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from lightning_unlearn import NPO, ForgetRetainDataModule, GradientAscent, SimNPO

STATES, LENGTH, SHORT = 10, 20, 5
CHAINS = {"retain": (0, 1, 2), "forget1": (3, 4, 5), "forget2": (6, 7, 8)}
COUNTS = {"retain": 2000, "forget1": 1000, "forget2": 1000}
METHODS = {
    "GA": GradientAscent,
    "NPO 0.1": lambda: NPO(beta=0.1, retain_weight=0.0),
    "NPO 0.2": lambda: NPO(beta=0.2, retain_weight=0.0),
    "NPO 1": lambda: NPO(beta=1.0, retain_weight=0.0),
    **{f"SimNPO {beta}": lambda beta=beta: SimNPO(beta=beta, retain_weight=0.0) for beta in (1, 2.5, 4, 7, 10)},
}


def sequences(states: tuple[int, ...], count: int, length: int, generator: torch.Generator) -> Tensor:
    """Samples of a chain that stays among its three states with probability 0.8 and is uniform outside them."""
    start = torch.full((STATES,), 0.2 / 7)
    start[list(states)] = 0.8 / 3
    step = torch.full((STATES, STATES), 0.1)
    step[list(states)] = start
    path = [torch.multinomial(start, count, replacement=True, generator=generator)]
    for _ in range(length - 1):
        path.append(torch.multinomial(step[path[-1]], 1, generator=generator).squeeze(1))
    return torch.stack(path, dim=1)


class MarkovLM(L.LightningModule):
    """Two post-norm decoder layers of width 32. It knows nothing of unlearning."""

    def __init__(self, width: int = 32, layers: int = 2, lr: float = 1e-3) -> None:
        super().__init__()
        self.lr = lr
        self.tokens, self.places = nn.Embedding(STATES, width), nn.Embedding(LENGTH, width)
        nn.init.normal_(self.places.weight, std=0.02)
        self.attend = nn.ModuleList(nn.Linear(width, 3 * width, bias=False) for _ in range(layers))
        self.mlp = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)) for _ in range(layers)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * layers))
        self.out = nn.Linear(width, STATES)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        h = self.tokens(input_ids) + self.places.weight[: input_ids.shape[1]]
        for i, (attend, mlp) in enumerate(zip(self.attend, self.mlp, strict=True)):
            q, k, v = attend(h).chunk(3, dim=-1)
            h = self.norms[2 * i](h + F.scaled_dot_product_attention(q, k, v, is_causal=True))
            h = self.norms[2 * i + 1](h + mlp(h))
        return self.out(h)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        logits = self(batch)[:, :-1]
        return F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), ignore_index=-100)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=0.0)


def pretrain(data: list[Tensor], seed: int, epochs: int = 15) -> MarkovLM:
    torch.manual_seed(seed)
    model = MarkovLM()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.0)
    generator = torch.Generator().manual_seed(seed)
    batches = [chunk for part in data for chunk in part.split(64)]
    for _ in range(epochs):
        for i in torch.randperm(len(batches), generator=generator).tolist():
            optimizer.zero_grad()
            model.training_step(batches[i], i).backward()
            optimizer.step()
    return model


@torch.no_grad()
def divergence(model: MarkovLM, goal: MarkovLM, data: Tensor) -> float:
    """Mean over tokens of KL(goal || model)."""
    p, q = (m(data)[:, :-1].log_softmax(-1) for m in (goal, model))
    return (p.exp() * (p - q)).sum(-1).mean().item()


class Trajectory(L.Callback):
    def __init__(self, goal: MarkovLM, tests: dict[str, Tensor], every: int = 5) -> None:
        self.goal, self.tests, self.every = goal, tests, every
        self.points: list[dict[str, float]] = []

    def measure(self, step: int, model: Any) -> None:
        self.points.append({"step": step, **{k: divergence(model, self.goal, v) for k, v in self.tests.items()}})

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.measure(0, pl_module)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if trainer.global_step % self.every == 0:
            self.measure(trainer.global_step, pl_module)


def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    ids = nn.utils.rnn.pad_sequence([row["tokens"] for row in rows], batch_first=True, padding_value=-100)
    index = torch.tensor([row["index"] for row in rows])
    return {"input_ids": ids.clamp(min=0), "attention_mask": (ids >= 0).long(), "labels": ids, "index": index}


def unlearn(
    model: MarkovLM,
    goal: MarkovLM,
    callbacks: list[L.Callback],
    forget: list[Tensor],
    tests: dict[str, Tensor],
    retain: list[Tensor] | None = None,
    batch_size: int = 4,
    **options: Any,
) -> list[Any]:
    watch = Trajectory(goal, tests)
    rows = [[{"tokens": row} for row in part] if part is not None else None for part in (forget, retain)]
    data = ForgetRetainDataModule(*rows, batch_size=batch_size, seed=1, collate_fn=collate)
    quiet: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    trainer = L.Trainer(accelerator="cpu", callbacks=[*callbacks, watch], limit_val_batches=0, **quiet, **options)
    trainer.fit(model, data)
    return watch.points


def chains(seed: int, short: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Training and test sequences of each chain."""
    generator = torch.Generator().manual_seed(seed)
    lengths = {"retain": LENGTH, "forget1": LENGTH, "forget2": SHORT if short else LENGTH}
    data = {k: sequences(states, COUNTS[k], lengths[k], generator) for k, states in CHAINS.items()}
    cut = {k: int(0.8 * len(v)) for k, v in data.items()}
    return {k: v[: cut[k]] for k, v in data.items()}, {k: v[cut[k] :] for k, v in data.items()}


def run(case: int, seed: int, methods: list[str]) -> dict[str, Any]:
    """All methods on one case and seed: the divergences from the retrained model along the way."""
    train, tests = chains(seed, short=case == 1)
    known = ["retain", "forget1", "forget2"] if case == 1 else ["retain", "forget1"]
    start, goal = pretrain([train[k] for k in known], seed), pretrain([train["retain"]], seed)
    forget = [*train["forget1"], *train["forget2"]]
    progress = tqdm(methods, desc=f"case {case}, seed {seed}", leave=False)
    return {
        name: unlearn(copy.deepcopy(start), goal, [METHODS[name]()], forget, tests, max_steps=50) for name in progress
    }


def draw(results: dict[str, Any], path: Path) -> None:
    """Divergence on what is to be forgotten against divergence on what is to stay, one line a method and seed."""
    from matplotlib.figure import Figure

    figure = Figure((12, 4.6), layout="constrained")
    panels = figure.subplots(1, 4, sharey=True)
    for axes, (case, chain) in zip(panels, [(c, k) for c in (1, 2) for k in ("forget1", "forget2")], strict=True):
        for number, name in enumerate(METHODS):
            for key, methods in results.items():
                if key.startswith(f"case {case}") and name in methods:
                    points = methods[name]
                    x, y = [p[chain] for p in points], [p["retain"] for p in points]
                    axes.plot(x, y, color=f"C{number}", linewidth=1, label=name if key.endswith("seed 0") else None)
                    axes.plot(x[-1], y[-1], "o", color=f"C{number}", markersize=4)
        what = "" if chain == "forget1" else (", short" if case == 1 else ", never learned")
        axes.set(title=f"case {case}: {chain}{what}", xlabel="KL on it", xscale="log", yscale="log")
    panels[0].set_ylabel("KL on the retain chain")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(METHODS), frameon=False)
    figure.savefig(path)


def quiet_arguments(description: str | None) -> argparse.Namespace:
    """Seeds and output folder of the command line, for a quiet run on one thread."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("runs/markov"))
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    return parser.parse_args()


def main() -> None:
    args = quiet_arguments(__doc__)
    results = {f"case {c}, seed {s}": run(c, s, list(METHODS)) for c in (1, 2) for s in args.seeds}
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "markov.json").write_text(json.dumps(results, indent=1) + "\n")
    draw(results, args.output / "trajectories.svg")
    for key, methods in results.items():
        print(f"\n{key}: KL on retain, forget1, forget2")
        print(f"  {'before':<12}" + "".join(f"{next(iter(methods.values()))[0][k]:8.3f}" for k in CHAINS))
        for name, points in methods.items():
            print(f"  {name:<12}" + "".join(f"{points[-1][k]:8.3f}" for k in CHAINS))
    print(f"\nOpen {args.output / 'trajectories.svg'}.")


if __name__ == "__main__":
    main()
