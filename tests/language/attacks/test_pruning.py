"""Pruning attack: which weights are zero, and that they come back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_unlearn.language.attacks import PruningAttack
from lightning_unlearn.language.attacks.swapping import linear_weights
from lightning_unlearn.language.attacks.token_batches import token_batches
from tests.language.attacks.worlds import PROBES, Unchanged, likelihoods, victim


def linear(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {weight.name: weight.value.clone() for weight in linear_weights(module)}


def test_the_smallest_weights_of_all_layers_are_zero(tiny_lm: Path) -> None:
    module = victim(tiny_lm)
    module.model.model.layers[0].mlp.down_proj.weight.data *= 10
    before, attack = linear(module.model), PruningAttack(0.3, "global")
    with Unchanged(module), attack.pruned(module):
        after = linear(module.model)
    values = torch.cat([value.flatten() for value in before.values()])
    threshold = values.abs().sort().values[int(0.3 * len(values))]
    for name, value in before.items():
        assert torch.equal(after[name], torch.where(value.abs() >= threshold, value, 0.0)), name
    assert sum(int((value == 0).sum()) for value in after.values()) == int(0.3 * len(values))
    shares = {name: float((value == 0).float().mean()) for name, value in after.items()}
    assert shares["model.layers.0.mlp.down_proj"] < 0.1


def test_each_layer_loses_its_share(tiny_lm: Path) -> None:
    module = victim(tiny_lm)
    before = linear(module.model)
    with Unchanged(module), PruningAttack(0.25, "layer").pruned(module):
        after = linear(module.model)
    for name, value in after.items():
        assert int((value == 0).sum()) == value.numel() // 4
        assert before[name][value == 0].abs().max() <= before[name][value != 0].abs().min()


def test_wanda_weighs_by_the_inputs_of_the_calibration_rows(tiny_lm: Path) -> None:
    module = victim(tiny_lm)
    name, layer = "model.layers.0.mlp.up_proj", module.model.model.layers[0].mlp.up_proj
    inputs = []
    handle = layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0].detach()))
    for batch in token_batches(module, PROBES[:3], 1):  # one by one: no padding
        module(batch["input_ids"], batch["attention_mask"])
    handle.remove()
    norm = torch.cat([part.flatten(0, 1) for part in inputs]).square().sum(0).sqrt()
    attack = PruningAttack(0.5, "wanda", PROBES[:3], batch_size=3)
    with Unchanged(module):
        attacked = attack.knowledge(module, PROBES, likelihoods)
        with attack.pruned(module):
            pruned = linear(module.model)[name]
    scores = layer.weight.abs() * norm
    kept = scores >= scores.sort(1, descending=True).values[:, 15:16]
    assert torch.equal(pruned != 0, kept)
    assert torch.equal(pruned[kept], layer.weight[kept])
    assert torch.isfinite(attacked.strength).all()  # type: ignore[arg-type]


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match=r"share must be in \(0, 1\)"):
        PruningAttack(1.0)
    with pytest.raises(ValueError, match="needs calibration rows"):
        PruningAttack(0.5, "wanda")
    with pytest.raises(ValueError, match="got 6"):
        PruningAttack(0.5, "layer", PROBES)
    assert PruningAttack().gate is None
