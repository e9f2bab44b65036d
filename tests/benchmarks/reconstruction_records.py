"""Made-up records of the reconstruction benchmark, with differences that are known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch

from lightning_unlearn.benchmarks.reconstruction_settings import METHODS, Conditions, Recipe, Setting
from lightning_unlearn.functional.random import keyed_generator

CONDITIONS = Conditions(eps=(0.02, 0.08), noise=(0.05,), rates=(2.0, 8.0), unrolled_steps=(4, 16), rows=6)
NAMES = ("clean", "attack 0.02", "attack 0.08", "noise 0.05", "acceleration 2", "acceleration 8", "steps 4", "steps 16")


def record(offsets: Mapping[str, Mapping[str, float]], seeds: int = 3, spread: float = 0.05) -> dict[str, Any]:
    """A record in which each method has a PSNR of 20 dB plus its offset for the condition, and some noise.

    Args:
        offsets: In dB, by method and condition; 0 where there is none.
        seeds: Number of seeds.
        spread: Standard deviation of the noise.
    """
    methods = {}
    for place, (name, above) in enumerate(offsets.items()):
        runs = []
        for seed in range(seeds):
            noise = torch.randn(len(NAMES), CONDITIONS.rows, generator=keyed_generator(place, seed)) * spread
            test = {
                condition: {
                    "psnr": (20 + above.get(condition, 0.0) + noise[i]).tolist(),
                    "ssim": [0.5] * CONDITIONS.rows,
                    "nmse": [0.1] * CONDITIONS.rows,
                }
                for i, condition in enumerate(NAMES)
            }
            runs.append({"test": test, "seconds": 10.0, "steps": 4, "files": []})
        tuning = [{"setting": asdict(Setting()), "score": 19.0}, {"setting": asdict(Setting()), "score": 20.0}]
        methods[name] = {"mode": METHODS[name].mode, "setting": asdict(Setting()), "tuning": tuning, "runs": runs}
    zero = {name: {"psnr": [15.0] * 6, "ssim": [0.3] * 6, "nmse": [0.4] * 6} for name in NAMES if "steps" not in name}
    return {
        **{"recipe": asdict(Recipe()), "conditions": asdict(CONDITIONS), "seeds": list(range(seeds))},
        **{"tuning_seeds": [100], "settings": 2, "zero_filled": {"test": zero}, "methods": methods},
    }
