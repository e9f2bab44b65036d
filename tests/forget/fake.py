"""A request about a small classifier of random rows, in the fewest steps that the contract asks for."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from lightning_unlearn.core.pairing import ForgetRetainDataModule
from lightning_unlearn.forget.request import Findings, Plan, RequestOptions
from lightning_unlearn.report.model import Headline, UnlearningReport
from lightning_unlearn.report.sections import Anchors, Measurement, Section
from tests.user_module import LitNet, indexed, nll


class RandomRows(ForgetRetainDataModule):
    def __init__(self, rows: int = 8) -> None:
        super().__init__(batch_size=4)
        self.rows = rows

    def setup(self, stage: str) -> None:
        pair = {"forget": indexed(self.rows, 1), "retain": indexed(self.rows, 2)}
        self.sets = {role: [(row["input"], row["labels"]) for row in rows] for role, rows in pair.items()}


@dataclass
class FakeRequest:
    before: Path
    options: RequestOptions
    callbacks: list[dict[str, Any]] = field(default_factory=list)
    kind: str = "fake"
    calls: list[str] = field(default_factory=list)

    def check(self) -> None:
        self.calls.append("check")
        if not self.before.is_file():
            raise FileNotFoundError(f"There is no file {self.before}.")

    def plan(self) -> Plan:
        return Plan({"model": self.before.name, "to forget": "8 rows"}, ["The rows are random."])

    def entries(self, secret: bytes) -> dict[str, Any]:
        return {"kind": self.kind, "method": "SimNPO", "seed": self.options.seed, "rows": len(secret)}

    def config(self, folder: Path) -> dict[str, Any]:
        self.calls.append("config")
        method = {"class_path": "lightning_unlearn.SimNPO", "init_args": {"score": "lightning_unlearn.classifier_nll"}}
        return {
            "seed_everything": self.options.seed,
            "model": {"class_path": "tests.user_module.LitNet"},
            "data": {"class_path": "tests.forget.fake.RandomRows"},
            "trainer": {
                "max_steps": self.options.max_steps or 8,
                "log_every_n_steps": 1,
                "callbacks": [method, *self.callbacks],
            },
        }

    def export(self, ckpt: Path, folder: Path) -> None:
        self.calls.append("export")
        folder.mkdir()
        save_file(torch.load(ckpt, weights_only=True)["state_dict"], folder / "model.safetensors")

    def evidence(self, model: Path, work: Path) -> Findings:
        self.calls.append("evidence")
        module = LitNet()
        module.load_state_dict(load_file(model / "model.safetensors"))
        after = nll(module, 8, 1).mean().item()
        part = Measurement("forget", after, unit="nats", better="higher", anchors=Anchors(original=1.0))
        headline = Headline("forgotten", "good", "The rows are gone.")
        report = UnlearningReport(title="Fake", sections=[Section("outcome", "Outcome", [part])], headline=headline)
        return Findings(report, {"verdict": "forgotten", "forget_nll": after})
