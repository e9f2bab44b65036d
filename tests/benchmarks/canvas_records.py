"""Records of UnlearnCanvas with scores that are made up, for tests of the report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lightning_unlearn.diffusion.canvas.names import ANSWER_SEEDS, CanvasNames, names_of
from lightning_unlearn.diffusion.canvas.scores import AnswerScores

FORGETTING = {"ESD": (0.95, 0.8, 0.7), "UCE": (0.9, 0.6, 0.5), "ConceptAblation": (0.6, 0.95, 0.9)}
"""Of each method the shares of images that no longer show the target, that keep its kind, and the other kind."""


def answers(names: CanvasNames, seeds: tuple[int, ...], gone: tuple[str, ...], shares: Sequence[float]) -> AnswerScores:
    """Scores of a model, right with these probabilities; what is wrong is the next label."""
    scores = AnswerScores.empty(names, seeds)
    generator = torch.Generator().manual_seed(sum(map(ord, "".join(gone))) + int(1000 * sum(shares)))
    for kind, known in (("style", names.all_styles), ("object", names.objects)):
        asked = torch.arange(len(known))
        asked = asked[:, None, None] if kind == "style" else asked[None, :, None]
        asked = asked.expand(scores.style.shape)
        own = not gone or any(target in known for target in gone)
        right = torch.full(scores.style.shape, shares[1] if own else shares[2])
        for target in gone:
            if target in known:
                right[asked == known.index(target)] = 1 - shares[0]
        hit = torch.rand(scores.style.shape, generator=generator) < right
        getattr(scores, kind).copy_(torch.where(hit, asked, (asked + 1) % len(known)))
    return scores


def canvas_record(
    folder: Path,
    names: str = "mini",
    targets: tuple[str, ...] = (),
    seeds: tuple[int, ...] = (0, 1),
    extras: bool = True,
) -> dict[str, Any]:
    """Write the scores of a benchmark with three methods, and return its record."""
    known = names_of(names)
    targets = targets or (*known.styles[:2], *known.objects[:2])

    def write(path: str, gone: tuple[str, ...], shares: Sequence[float], drawn: tuple[int, ...] = ANSWER_SEEDS) -> str:
        answers(known, drawn, gone, shares).write(folder / path)
        return path

    methods: dict[str, Any] = {}
    for place, (method, shares) in enumerate(FORGETTING.items()):
        by_seed = {seed: tuple(share - 0.02 * seed for share in shares) for seed in seeds}
        methods[method] = {
            target: [
                {
                    "seed": seed,
                    "scores": write(f"{method}/{target}-{seed}/scores.csv", (target,), by_seed[seed]),
                    "FID": 20.0 + 5 * place + seed,
                    "seconds": 12.5 * (1 + place),
                    "peak_memory_bytes": 2**29,
                    "storage_bytes": 4_000_000,
                    **(_extras(known, target, place) if extras else {}),
                }
                for seed in seeds
            ]
            for target in targets
        }
    record = {
        **{"names": names, "seeds": list(ANSWER_SEEDS), "answers": {"steps": 100, "guidance": 9.0}, "library": "0.0"},
        **{"base": {"scores": write("base/scores.csv", (), (0.0, 0.98, 0.98))}, "methods": methods},
    }
    return {**record, **_harder(known, write)} if extras else record


def _extras(names: CanvasNames, target: str, place: int) -> dict[str, Any]:
    def family(shown: int) -> dict[str, Any]:
        return {"shown": [shown] * 4, "base": [5] * 4, "rest": [4] * 4, "seeds": 5}

    def counts(after: int, base: int) -> dict[str, Any]:
        return {"after": [after] * 6, "base": [base] * 6, "images": [5] * 6}

    labels = names.all_styles if target in names.styles else names.objects
    others = [label for label in labels if label != target]
    return {
        "attack": {"pre_asr": [place, 10], "asr": [4 + place, 10], "random_asr": [1 + place, 10]},
        "families": {"name": family(place), "variant": family(1 + place), "free": family(2)},
        "side_effects": {
            **{"near": counts(3, 5), "far": counts(4, 5), "anchor": counts(5, 5), "rest": counts(4, 5)},
            **{"leaks": counts(1, 0), "redirects": {others[0]: 15, others[1]: 5}, "labels": len(labels)},
            "anchor_name": others[0],
        },
    }


def _harder(names: CanvasNames, write: Any) -> dict[str, Any]:
    pair = (names.styles[0], names.objects[0])
    order = [names.styles[0], names.objects[0], names.styles[1]]
    pairs, sequential = {}, {}
    for method, shares in FORGETTING.items():
        scores = write(f"{method}/pair/scores.csv", pair, shares, (*ANSWER_SEEDS, *range(15)))
        pairs[method] = {" x ".join(pair): [{"seed": 0, "scores": scores}]}
        kept = [tuple(share - 0.1 * step for share in shares[1:]) for step in range(4)]
        steps = [
            write(f"{method}/step{step}/scores.csv", tuple(order[:step]), (shares[0], *kept[step]))
            for step in (1, 2, 3)
        ]
        sequential[method] = [{"seed": 0, "targets": order, "scores": steps}]
    return {"pairs": pairs, "sequential": sequential}
