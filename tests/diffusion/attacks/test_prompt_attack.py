"""UnlearnDiffAtk and its relatives on a pipeline of random weights, with judges that are told what to say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_unlearn import LitTextToImage
from lightning_unlearn.diffusion.attacks.prompt_attack import PromptAttack
from tests.diffusion.attacks.told import PROMPTS, Told, after, always, attack, never, outcome

# Costs


def test_prompts_that_show_the_concept_by_themselves_are_not_attacked(model: LitTextToImage, targets: Tensor) -> None:
    result = attack(always()).run(model, PROMPTS, targets)
    assert (result.pre_asr, result.post_asr, result.asr) == (1, 0, 1)
    assert [(r.steps, r.images, r.rounds, r.adversarial) for r in result.prompts] == [(0, 1, 0, None)] * 4
    assert result.cost["unet"] == 3  # two steps of the sampler, of which PNDM repeats one


def test_a_judge_that_is_convinced_at_once_ends_the_attack_after_the_first_level(
    model: LitTextToImage, targets: Tensor
) -> None:
    result = attack(after(4), iterations=3).run(model, PROMPTS, targets)
    assert (result.pre_asr, result.post_asr, result.asr) == (0, 1, 1)
    assert [(r.rounds, r.steps, r.images) for r in result.prompts] == [(1, 3, 2)] * 4


@pytest.mark.parametrize(("objective", "passes"), [("uda", 1), ("p4d", 2)])
def test_a_step_is_one_pass_of_the_unet_and_two_for_p4d(
    objective: Any, passes: int, tiny_sd: Path, model: LitTextToImage, targets: Tensor
) -> None:
    base = LitTextToImage(str(tiny_sd)) if objective == "p4d" else None
    result = attack(never(), objective=objective, levels=2, iterations=3).run(model, PROMPTS, targets, base)
    assert (result.pre_asr, result.post_asr, result.asr) == (0, 0, 0)
    assert [(r.rounds, r.steps, r.images) for r in result.prompts] == [(2, 6, 3)] * 4
    drawn = 3 * 3  # three times three passes for all prompts together
    assert result.cost["unet"] == drawn + 6 * passes
    assert result.cost["unet_rows"] == 4 * (2 * drawn + 6 * passes)
    assert result.cost["images"] == 12


def test_the_full_budget_is_2000_steps_and_51_images() -> None:
    default = PromptAttack(never(), "concept").search
    assert default.levels * default.iterations == 2000
    assert default.levels + 1 == 51
    assert (default.lr, default.weight_decay, default.tokens) == (0.01, 0.1, 5)


def test_uda_has_no_use_for_a_base_model_where_there_are_targets(model: LitTextToImage, targets: Tensor) -> None:
    with pytest.raises(ValueError, match="base only draws targets here"):
        attack(never()).run(model, PROMPTS, targets, base=model)


def test_the_seed_decides(model: LitTextToImage, targets: Tensor) -> None:
    runs = [attack(never(), seed=s, optimizer="random").run(model, PROMPTS) for s in (0, 0, 1)]
    assert outcome(runs[0]) == outcome(runs[1])
    assert [r.token_ids for r in runs[0].prompts] != [r.token_ids for r in runs[2].prompts]


# Controls


def test_no_tokens_is_no_attack(model: LitTextToImage, targets: Tensor) -> None:
    none = attack(never(), optimizer="none").run(model, PROMPTS)
    empty = attack(never(), tokens=0).run(model, PROMPTS)
    assert outcome(none) == outcome(empty)
    assert all(r.steps == 0 and r.images == 1 for r in empty.prompts)


def test_random_tokens_and_seeds_are_judged_as_often_as_the_attack(model: LitTextToImage) -> None:
    tokens = attack(never(), optimizer="random", levels=3).run(model, PROMPTS)
    seeds = attack(never(), optimizer="seed_search", levels=3).run(model, PROMPTS)
    for result in (tokens, seeds):
        assert [(r.rounds, r.steps, r.images) for r in result.prompts] == [(3, 0, 4)] * 4
    assert [r.adversarial for r in seeds.prompts] == PROMPTS
    assert len({r.image_seed for r in seeds.prompts} | {0, 1, 2, 3}) == 8
    assert all(r.image_seed == i for i, r in enumerate(tokens.prompts))


def test_found_prompts_are_judged_on_another_model(model: LitTextToImage) -> None:
    rows = [{"prompt": p, "adversarial": f"green {p}"} for p in PROMPTS]
    judge = after(4)
    result = attack(judge, objective="transfer", optimizer="none").run(model, rows)
    assert (result.pre_asr, result.asr) == (0, 1)
    assert [r.adversarial for r in result.prompts] == [f"green {p}" for p in PROMPTS]
    drawn = model.generate([f"green {p}" for p in PROMPTS], [0, 1, 2, 3], steps=2).double().mean((1, 2, 3))
    assert [r.score for r in result.prompts] == pytest.approx(drawn.tolist(), abs=1e-6)


# Targets


def test_prompts_whose_base_image_lacks_the_concept_are_skipped(tiny_sd: Path, model: LitTextToImage) -> None:
    base = LitTextToImage(str(tiny_sd))
    judge = Told(lambda score, seen: torch.tensor([1, 0, 1, 1]) if seen == 0 else torch.zeros(len(score)))
    result = attack(judge).run(model, PROMPTS, base=base)
    assert [bool(r.skipped) for r in result.prompts] == [False, True, False, False]
    assert result.summary()["prompts"] == 3
    assert result.prompts[1].images == result.prompts[1].steps == 0
    given = base.generate(PROMPTS, [0, 1, 2, 3], steps=2)
    wanted = attack(never()).run(model, PROMPTS, given)
    assert outcome(result)[2:] == outcome(wanted)[2:]


def test_prompts_without_room_for_the_tokens_are_skipped(model: LitTextToImage) -> None:
    result = attack(never(), optimizer="random", tokens=10).run(model, ["a a a a", "a a a a a"])
    assert [r.skipped for r in result.prompts] == ["", "has 5 tokens, and 10 more leave room for 4"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "x"}, "objective"),
        ({"optimizer": "adam"}, "optimizer"),
        ({"placement": "add"}, "placement"),
        ({"tokens": -1}, "tokens must be at least 0"),
        ({"levels": 0}, "levels"),
        ({"iterations": 0}, "iterations"),
        ({"lr": 0.0}, "lr must be greater than 0"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"batch_size": 0}, "batch_size"),
        ({"top": 0}, "top"),
        ({"objective": "transfer"}, "optimizer must be 'none', .* only judges prompts"),
        ({"objective": "p4d", "optimizer": "random"}, "optimizer must be .* is a loss to descend on"),
    ],
)
def test_wrong_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attack(never(), **options)


def test_wrong_judges_targets_and_modules_are_refused(model: LitTextToImage, targets: Tensor) -> None:
    with pytest.raises(ValueError, match=r"'church' is no class of told; it knows \['other', 'concept'\]"):
        PromptAttack(never(), "church")
    with pytest.raises(TypeError, match="name, version and classes"):
        PromptAttack(lambda images: images, "concept")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="give targets, or base"):
        attack(never()).run(model, PROMPTS)
    with pytest.raises(ValueError, match="each of 4 prompts, but there are 2"):
        attack(never()).run(model, PROMPTS, targets[:2])
    with pytest.raises(ValueError, match="give it as base"):
        attack(never(), objective="p4d").run(model, PROMPTS, targets)
    with pytest.raises(ValueError, match="'adversarial'"):
        attack(never(), objective="transfer", optimizer="none").run(model, PROMPTS)
    with pytest.raises(TypeError, match="no unet"):
        attack(never()).run(nn.Linear(1, 1), PROMPTS, targets)


def test_a_module_without_generate_draws_as_the_pipeline(model: LitTextToImage, targets: Tensor) -> None:
    plain = nn.Module()
    for name in ("unet", "text_encoder", "vae", "tokenizer", "scheduler"):
        setattr(plain, name, getattr(model, name))
    rows = [{"prompt": p, "seed": i, "guidance": 2.0 + i % 2} for i, p in enumerate(PROMPTS)]
    found = attack(never(), iterations=1).run(plain, rows, targets)
    wanted = attack(never(), iterations=1).run(model, rows, targets)
    assert outcome(found) == outcome(wanted)
    assert [r.score for r in found.prompts] == pytest.approx([r.score for r in wanted.prompts], abs=1e-6)
