"""State of a prompt during an attack, and the meter of its cost."""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lightning_unlearn.diffusion.attacks.result import PromptResult
from lightning_unlearn.diffusion.engine.passes import PassCounter

__all__ = ["Candidate", "Case", "Meter"]


@dataclass(frozen=True)
class Candidate:
    """A prompt to draw in a round, and the seed of its image."""

    text: str
    seed: int
    token_ids: list[int] | None = None
    exact: bool | None = None


@dataclass
class Case:
    """State of a prompt during an attack."""

    row: dict[str, Any]
    target: Tensor | None
    images: int = 0
    steps: int = 0
    rounds: int = 0
    loss: float | None = None
    success: bool = False
    best: Candidate | None = None
    score: float | None = None

    def __post_init__(self) -> None:
        self.prompt, self.seed, self.guidance = self.row["prompt"], self.row["seed"], self.row["guidance"]
        # Random numbers of a prompt must not depend on its place among the others.
        self.number = zlib.crc32(f"{self.seed} {self.prompt}".encode())
        image = None if self.target is None else zlib.crc32(self.target.float().cpu().contiguous().numpy().tobytes())
        self.key = json.dumps([*self.row.values(), image])

    def judged(self, candidate: Candidate, score: float, success: bool) -> None:
        self.rounds, self.images = self.rounds + 1, self.images + 1
        if success or self.score is None or score > self.score:
            self.best, self.score, self.success = candidate, score, success

    def result(self) -> PromptResult:
        best = self.best or Candidate("", self.seed)
        return PromptResult(
            self.prompt,
            self.seed,
            self.guidance,
            success=self.success,
            adversarial=best.text if self.best else None,
            token_ids=best.token_ids or [],
            image_seed=best.seed if self.best else None,
            exact=best.exact,
            score=self.score,
            loss=self.loss,
            rounds=self.rounds,
            steps=self.steps,
            images=self.images,
        )


class Meter:
    """Passes, images and seconds since the last lap."""

    def __init__(self, modules: Sequence[Any]) -> None:
        self.images = 0
        self.modules, self.counters = modules, [PassCounter() for _ in modules]
        self._last: dict[str, float] = {}

    def __enter__(self) -> Meter:
        for counter, module in zip(self.counters, self.modules, strict=True):
            counter.attach(module)
        self._last = self._now()
        return self

    def __exit__(self, *_: object) -> None:
        for counter in self.counters:
            counter.detach()

    def lap(self) -> dict[str, float]:
        now = self._now()
        spent = {name: now[name] - self._last[name] for name in now}
        self._last = now
        return spent

    def _now(self) -> dict[str, float]:
        states = [counter.state_dict() for counter in self.counters]
        passes = {name: float(sum(state[name] for state in states)) for name in states[0]}
        return {**passes, "images": float(self.images), "seconds": time.perf_counter()}
