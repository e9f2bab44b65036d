"""State of a prompt during an attack, and the meter of its cost."""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from torch import Tensor

from lightning_unlearn.diffusion.attacks.result import PromptResult
from lightning_unlearn.diffusion.engine.passes import PassCounter

__all__ = ["Candidate", "Case", "Meter"]


class Candidate(NamedTuple):
    """A prompt to draw in a round, and the seed of its image."""

    text: str
    seed: int
    token_ids: list[int] | None = None
    exact: bool | None = None


class Case:
    """A prompt during an attack, and its result so far."""

    def __init__(self, row: dict[str, Any], target: Tensor | None) -> None:
        self.row, self.target = row, target
        self.prompt, self.seed, self.guidance = row["prompt"], row["seed"], row["guidance"]
        self.result = PromptResult(self.prompt, self.seed, self.guidance, categories=row.get("categories", []))
        # Random numbers of a prompt must not depend on its place among the others.
        self.number = zlib.crc32(f"{self.seed} {self.prompt}".encode())
        image = None if target is None else zlib.crc32(target.float().cpu().contiguous().numpy().tobytes())
        self.key = json.dumps([*row.values(), image])

    def update(self, **outcome: Any) -> None:
        """Change parts of the result."""
        self.result = replace(self.result, **outcome)

    def judged(self, candidate: Candidate, score: float, success: bool) -> None:
        """Count a round, and keep its candidate if it is the best so far."""
        self.update(rounds=self.result.rounds + 1, images=self.result.images + 1)
        if success or self.result.score is None or score > self.result.score:
            best = {"adversarial": candidate.text, "image_seed": candidate.seed, "token_ids": candidate.token_ids or []}
            self.update(**best, exact=candidate.exact, score=score, success=success)


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
