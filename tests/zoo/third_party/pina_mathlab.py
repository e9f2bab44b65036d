"""pina: a solver that learns a function from points, with a Trainer of its own."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from pina import Condition, Trainer
from pina.data import DataModule
from pina.optim import TorchOptimizer
from pina.problem import BaseProblem
from pina.solver import SupervisedSingleModelSolver
from torch.utils.data import DataLoader

from tests.zoo.third_party.case import QUIET, Case

REFUSED = {"SSD": "they come in batches that can't be joined"}


def nll(module, batch):
    points = dict(batch)["data"]
    return (module(points["input"]) - points["target"]).square().sum(1) / 2


def problem(x: torch.Tensor, y: torch.Tensor) -> BaseProblem:
    names = {"input_variables": ["x"], "output_variables": ["y"], "conditions": {"data": Condition(input=x, target=y)}}
    return type("Points", (BaseProblem,), names)()


def make() -> Case:
    x = torch.linspace(-1, 1, 128)[:, None]
    y = torch.sin(4 * x)
    bump = x > 0.5
    y[bump] += 1
    everything = problem(x, y)
    net = torch.nn.Sequential(torch.nn.Linear(1, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
    adam = TorchOptimizer(torch.optim.Adam, lr=5e-3)
    solver = SupervisedSingleModelSolver(everything, net, optimizer=adam, use_lt=False)
    Trainer(solver, batch_size=16, max_epochs=60, accelerator="cpu", **QUIET).train()
    loaders = {}
    for role, rows in {"forget": bump[:, 0], "retain": ~bump[:, 0]}.items():
        data = DataModule(problem(x[rows], y[rows]), 1.0, 0.0, 0.0, 16, "common_batch_size", False, True, 0, False)
        data.setup("fit")
        batches = [list(batch.items()) for batch in data.train_dataloader()]
        loaders[role] = DataLoader(batches, batch_size=None, shuffle=True)

    def load(path: Path) -> Any:
        return SupervisedSingleModelSolver.load_from_checkpoint(path, problem=everything, model=net, use_lt=False)

    return Case(solver, loaders, functools.partial(Trainer, solver), nll, load, options={"batch_size": 16})
