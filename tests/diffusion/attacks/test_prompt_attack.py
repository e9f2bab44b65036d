"""UnlearnDiffAtk and its relatives on a pipeline of random weights, with judges that are told what to say."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentError, ArgumentParser
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_unlearn import ESD, LitTextToImage
from lightning_unlearn.core.distributed import Replica
from lightning_unlearn.core.modes import differentiable
from lightning_unlearn.diffusion.attacks.prompt_attack import PromptAttack
from lightning_unlearn.diffusion.attacks.prompts import attack_prompts
from lightning_unlearn.diffusion.attacks.result import AttackResult, PromptResult, ResultFile, wilson_interval
from lightning_unlearn.diffusion.attacks.search import GCG, Descent, HardPrompt, PromptSearch, TextGrad
from lightning_unlearn.diffusion.attacks.victim import PromptLoss, fit_images, target_latents
from lightning_unlearn.diffusion.engine.model import alphas_bar, image_size
from lightning_unlearn.diffusion.engine.text import tokenize
from lightning_unlearn.diffusion.unlearn_diff_atk import UnlearnDiffAtk
from lightning_unlearn.functional.diffusion.ddim import attack_timesteps
from lightning_unlearn.functional.diffusion.noise import row_noise
from tests.diffusion.tiny import prompts as prompt_data
from tests.diffusion.tiny import trainer
from tests.helpers import save_resumable

PROMPTS = ["a red circle", "van gogh", "a green square", "the art of van gogh"]
SMALL: dict[str, Any] = {"tokens": 2, "levels": 2, "iterations": 2, "sampler_steps": 2, "batch_size": 4}
SEARCH = [field.name for field in fields(PromptSearch)]


class Told:
    """Says what a function of the images' mean colours and the number of images seen before says."""

    name, version, classes = "told", "1", ("other", "concept")

    def __init__(self, says: Callable[[Tensor, int], Tensor]) -> None:
        self.says, self.seen = says, 0

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        score = images.double().mean((1, 2, 3))
        labels = self.says(score, self.seen).long()
        self.seen += len(images)
        return labels, torch.stack([1 - score, score], 1)


def never() -> Told:
    return Told(lambda score, seen: torch.zeros(len(score)))


def always() -> Told:
    return Told(lambda score, seen: torch.ones(len(score)))


def after(count: int) -> Told:
    return Told(lambda score, seen: (torch.arange(len(score)) + seen) >= count)


def above(threshold: float) -> Told:
    return Told(lambda score, seen: score > threshold)


@pytest.fixture(scope="module")
def targets(tiny_sd: Path) -> Tensor:
    return LitTextToImage(str(tiny_sd)).generate(PROMPTS, [10, 11, 12, 13], steps=2)


def attack(judge: Told, **options: Any) -> PromptAttack:
    options = SMALL | options
    search = PromptSearch(**{name: options.pop(name) for name in SEARCH if name in options})
    return PromptAttack(judge, "concept", search, **options)


def outcome(result: AttackResult) -> list[tuple[Any, ...]]:
    return [(r.before, r.success, r.adversarial, r.token_ids, r.image_seed, r.rounds, r.steps) for r in result.prompts]


# Schedule


def test_timesteps_are_the_middles_of_equal_parts() -> None:
    assert attack_timesteps(50, 1000) == list(range(10, 1000, 20))
    assert attack_timesteps(10, 1000) == list(range(50, 1000, 100))
    with pytest.raises(ValueError, match=r"levels must be in \[1, 1000\]"):
        attack_timesteps(1001)


def test_noise_levels_are_those_of_stable_diffusion(model: LitTextToImage) -> None:
    levels = alphas_bar(model)[[0, 10, 30, 490, 500, 990, 999]]
    wanted = torch.tensor([0.999150, 0.990431, 0.971799, 0.289851, 0.276333, 0.005192, 0.004660])
    torch.testing.assert_close(levels, wanted, atol=1e-6, rtol=0)
    assert ((1 - levels[-1]) / levels[-1]).sqrt().item() == pytest.approx(14.6146, abs=1e-3)


# Searches


@pytest.mark.parametrize(
    ("kind", "options"), [(TextGrad, {"lr": 0.05}), (HardPrompt, {"lr": 0.05}), (GCG, {"candidates": 8})]
)
def test_searches_find_the_best_token_of_a_model_that_averages_embeddings(kind: Any, options: dict[str, Any]) -> None:
    """The output is the distance of the mean embedding from a token's: by trying all, that token is the best."""
    vocabulary, size, tasks = 59, 16, 20
    generator = torch.Generator().manual_seed(0)
    table = nn.functional.normalize(torch.randn(vocabulary, size, generator=generator), dim=-1)
    best = torch.randint(vocabulary, (tasks,), generator=generator)

    def at(step: int) -> Callable[[Tensor, list[int]], Tensor]:
        def loss(tokens: Tensor, rows: list[int]) -> Tensor:
            noise = row_noise((32, size), rows, step)
            output = 4 * (tokens.mean(1) - table[best[rows]])
            return (noise - output[:, None]).square().flatten(1).mean(1)

        return loss

    search: Descent = kind(table, list(range(tasks)), PromptSearch(tokens=1, **options))
    everyone = list(range(tasks))
    for step in range(60):
        search.step(everyone, step, at(step))
    found = search.tokens(everyone, 0)[:, 0]
    assert (found == best).float().mean() >= 0.95
    oracle = torch.stack([at(999)(table[[v] * tasks][:, None], everyone) for v in range(vocabulary)]).amin(0)
    assert at(999)(table[found][:, None], everyone).mean() <= 1.05 * oracle.mean()


def test_the_gradient_passes_the_draw_clipped_to_one() -> None:
    """One step of SGD would be lr x clip; of Adam without decay it is lr x sign, here of (-1, 0.2, 1)."""
    table = torch.eye(3)
    search = TextGrad(table, [0], PromptSearch(tokens=1, lr=0.1, weight_decay=0.0))
    seen = []

    def loss(tokens: Tensor, rows: list[int]) -> Tensor:
        seen.append(tokens.detach().clone())
        return (tokens[:, 0] * torch.tensor([-3.0, 0.2, 5.0])).sum(1)

    captured: list[Tensor] = []
    original = search.optimizer.step
    search.optimizer.step = lambda: (captured.append(search.weights[0].grad.clone()), original())[1]  # type: ignore[assignment, method-assign, union-attr]
    for step in range(20):
        search.step([0], step, loss)
    torch.testing.assert_close(captured[0], torch.tensor([[-1.0, 0.2, 1.0]]))
    assert all(sorted(tokens.flatten().tolist()) == [0, 0, 1] for tokens in seen)  # one-hot, drawn
    assert search.tokens([0], 0).tolist() == [[0]]
    torch.testing.assert_close(search.weights[0].sum(-1), torch.ones(1))


def test_weight_decay_is_in_the_gradient_and_steps_are_projected() -> None:
    """By hand: from (1/2, 1/2) Adam moves by lr x sign(g + decay u), so to (1/2 + lr, 1/2 - lr)."""
    search = TextGrad(torch.eye(2), [0], PromptSearch(tokens=1, lr=0.01, weight_decay=0.1))
    search.step([0], 0, lambda tokens, rows: (tokens[:, 0] * torch.tensor([-0.2, 0.2])).sum(1))
    torch.testing.assert_close(search.weights[0], torch.tensor([[0.51, 0.49]]), atol=1e-6, rtol=0)
    decayed = TextGrad(
        torch.eye(2), [0], PromptSearch(tokens=1, lr=0.01, weight_decay=0.1)
    )  # 0.05 of decay outweighs -0.04
    decayed.step([0], 0, lambda tokens, rows: (tokens[:, 0] * torch.tensor([-0.04, -0.2])).sum(1))
    torch.testing.assert_close(decayed.weights[0], torch.tensor([[0.49, 0.51]]), atol=1e-6, rtol=0)


def test_a_search_leaves_the_tokens_of_others_alone() -> None:
    table = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    for kind in (TextGrad, HardPrompt, GCG):
        search: Any = kind(table, [5, 6], PromptSearch(tokens=2))
        state = {TextGrad: "weights", HardPrompt: "points", GCG: "chosen"}[kind]
        for step in range(3):
            search.step([0, 1], step, lambda tokens, rows: tokens.square().sum((1, 2)))
        before = getattr(search, state)[1].clone()
        search.step([0], 3, lambda tokens, rows: tokens.square().sum((1, 2)))
        assert torch.equal(getattr(search, state)[1], before)


# Loss


class FixedUNet(nn.Module):
    """Gives zero, or the true noise of latents that it knows."""

    def __init__(self, latents: Tensor | None, levels: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.latents, self.levels, self.device = latents, levels, torch.device("cpu")

    def forward(self, noisy: Tensor, timesteps: Tensor, encoder_hidden_states: Tensor) -> Any:
        if self.latents is None:
            return SimpleNamespace(sample=torch.zeros_like(noisy))
        a = self.levels[timesteps][:, None, None, None]
        return SimpleNamespace(sample=(noisy - a.sqrt() * self.latents) / (1 - a).sqrt())


def prompt_loss(model: Any, latents: Tensor, **options: Any) -> PromptLoss:
    ids = tokenize(model.tokenizer, PROMPTS)["input_ids"]
    lengths = (ids == model.tokenizer.eos_token_id).int().argmax(1) - 1
    return PromptLoss(model, ids, lengths, latents, [1, 2, 3, 4], "prefix", **options)


def test_the_loss_is_zero_for_a_model_that_knows_the_noise_and_one_for_one_that_says_zero(
    model: LitTextToImage,
) -> None:
    latents = torch.randn(4, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    tokens = torch.zeros(4, 2, 32)
    timesteps = torch.tensor([10, 300, 500, 990])
    model.unet = FixedUNet(latents, model.scheduler.alphas_cumprod)
    assert prompt_loss(model, latents)(tokens, [0, 1, 2, 3], timesteps, 0).max() < 1e-5
    model.unet = FixedUNet(None, model.scheduler.alphas_cumprod)
    torch.testing.assert_close(
        prompt_loss(model, latents)(tokens, [0, 1, 2, 3], timesteps, 0), torch.ones(4), atol=0.06, rtol=0
    )
    first = prompt_loss(model, latents, criterion="l1")(tokens, [0, 1, 2, 3], timesteps, 0)
    torch.testing.assert_close(first, torch.full((4,), (2 / torch.pi) ** 0.5), atol=0.04, rtol=0)


def test_the_loss_is_the_training_loss_of_the_prompt_with_the_tokens(model: LitTextToImage) -> None:
    """With tokens of the vocabulary: that of the longer prompt, computed by hand; P4D has the base's output in it."""
    latents = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    model.eval()
    green = model.tokenizer("green", add_special_tokens=False)["input_ids"]
    table = model.text_encoder.get_input_embeddings().weight
    rows, timesteps = [0, 2], torch.tensor([100, 0, 700, 0])
    with torch.no_grad():
        tokens = table[torch.tensor([green * 2] * 2)]
        found = prompt_loss(model, latents)(tokens, rows, timesteps, step=7)
        p4d = prompt_loss(model, latents, base=model)(tokens, rows, timesteps, step=7)
        noise = row_noise((4, 8, 8), [1, 3], 0, 1, 7)
        a = model.scheduler.alphas_cumprod[timesteps[rows]][:, None, None, None]
        noisy = a.sqrt() * latents[rows] + (1 - a).sqrt() * noise

        def output(texts: list[str]) -> Tensor:
            states = model.text_encoder(tokenize(model.tokenizer, texts)["input_ids"])[0]
            return model.unet(noisy, timesteps[rows], encoder_hidden_states=states).sample

        longer = output([f"green green {PROMPTS[r]}" for r in rows])
        torch.testing.assert_close(found, (longer - noise).square().mean((1, 2, 3)))
        plain = output([PROMPTS[r] for r in rows])
        torch.testing.assert_close(p4d, (longer - plain).square().mean((1, 2, 3)), rtol=1e-3, atol=1e-8)


def test_target_latents_are_the_scaled_means(model: LitTextToImage, targets: Tensor) -> None:
    with torch.no_grad():
        mean = model.vae.encode(2 * targets - 1).latent_dist.mean
    torch.testing.assert_close(target_latents(model, targets), mean * model.vae.config.scaling_factor)


# The victim


def test_the_victim_is_left_as_it_was(model: LitTextToImage, targets: Tensor) -> None:
    model.train()
    model.vae.eval()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = {name: module.training for name, module in model.named_modules()}
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    rng = torch.get_rng_state()
    assert len(set(flags.values())) == len(set(modes.values())) == 2
    attack(never()).run(model, PROMPTS, targets)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), rng)
    with pytest.raises(RuntimeError, match="midway"), differentiable(model):
        raise RuntimeError("midway")
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags


def test_gradients_flow_inside_inference_mode(model: LitTextToImage) -> None:
    with torch.inference_mode(), differentiable(model):
        token = torch.zeros(1, 2, 32, requires_grad=True)
        loss = prompt_loss(model, torch.zeros(4, 4, 8, 8))(token, [0], torch.tensor([10, 10, 10, 10]), 0)
        assert torch.autograd.grad(loss.sum(), token)[0].abs().sum() > 0


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


# Batches and seeds


@pytest.mark.parametrize("optimizer", ["text_grad", "hard_prompt", "gcg", "random", "seed_search"])
def test_a_batch_gives_what_one_by_one_gives(optimizer: Any, model: LitTextToImage, targets: Tensor) -> None:
    options: dict[str, Any] = {"optimizer": optimizer, "candidates": 4}
    trial = attack(never(), **options).run(model, PROMPTS, targets)
    scores = sorted(r.score for r in trial.prompts if r.score is not None)
    middle = (scores[1] + scores[2]) / 2
    whole = attack(above(middle), **options).run(model, PROMPTS, targets)
    single = attack(above(middle), **options, batch_size=1).run(model, PROMPTS, targets)
    assert outcome(whole) == outcome(single)
    assert 0 < whole.asr < 1
    for one, other in zip(whole.prompts, single.prompts, strict=True):
        assert one.score == pytest.approx(other.score, abs=1e-5)
        assert one.loss == (other.loss and pytest.approx(other.loss, rel=1e-4))
    alone = attack(above(middle), **options).run(model, [{"prompt": PROMPTS[2], "seed": 2}], targets[2:3])
    assert outcome(alone) == outcome(whole)[2:3]


def test_a_batch_of_four_makes_a_third_of_the_passes_or_less(model: LitTextToImage, targets: Tensor) -> None:
    whole, single = (attack(never(), batch_size=n).run(model, PROMPTS, targets) for n in (4, 1))
    assert whole.cost["unet"] * 3 <= single.cost["unet"]
    assert whole.cost["unet_rows"] == single.cost["unet_rows"]


def test_the_seed_decides(model: LitTextToImage, targets: Tensor) -> None:
    runs = [attack(never(), seed=s, optimizer="random").run(model, PROMPTS) for s in (0, 0, 1)]
    assert outcome(runs[0]) == outcome(runs[1])
    assert [r.token_ids for r in runs[0].prompts] != [r.token_ids for r in runs[2].prompts]


def test_special_tokens_are_never_inserted(model: LitTextToImage) -> None:
    special = set(model.tokenizer.all_special_ids)
    result = attack(never(), optimizer="random", tokens=12, levels=8).run(model, ["a", "art"])
    assert all(not special & set(r.token_ids) and len(r.token_ids) == 12 for r in result.prompts)


@pytest.mark.parametrize(
    ("placement", "wanted"),
    [
        ("prefix", "x x a photo of art"),
        ("suffix", "a photo of art x x"),
        ("mid", "a photo x x of art"),
        ("spread", "a x photo x of art"),
        ("replace", "x x"),
    ],
)
def test_tokens_go_where_they_are_told(
    placement: Any, wanted: str, model: LitTextToImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lightning_unlearn.diffusion.attacks.search import RandomTokens

    ids = [i for i in range(len(model.tokenizer)) if i not in model.tokenizer.all_special_ids]
    (green,) = model.tokenizer("green", add_special_tokens=False)["input_ids"]
    always_green = torch.tensor([[ids.index(green)] * 2])
    monkeypatch.setattr(RandomTokens, "tokens", lambda self, rows, number: always_green)
    result = attack(never(), optimizer="random", levels=1, placement=placement).run(model, ["a photo of art"])
    (row,) = result.prompts
    assert row.adversarial is not None
    assert row.adversarial.replace("green", "x").split() == wanted.split()
    assert row.exact


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


# Resume


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_kill_costs_the_prompts_in_work_only(
    batch_size: int, model: LitTextToImage, targets: Tensor, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"batch_size": batch_size, "iterations": 1}
    whole = attack(never(), **options).run(model, PROMPTS, targets, output_dir=tmp_path / "whole")

    class Killed(Told):
        def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
            if self.seen >= 9:
                raise KeyboardInterrupt
            return super().__call__(images)

    with pytest.raises(KeyboardInterrupt):
        attack(Killed(never().says), **options).run(model, PROMPTS, targets, output_dir=tmp_path / "cut")
    path = tmp_path / "cut" / "prompts.jsonl"
    done = len(path.read_text().splitlines()) - 1
    assert 0 < done < 4
    assert not (tmp_path / "cut" / "summary.json").exists()
    with path.open("a") as file:
        file.write('{"key": "cut sho')  # a kill in the middle of a line
    judge = never()
    resumed = attack(judge, **options).run(model, PROMPTS, targets, output_dir=tmp_path / "cut")
    assert judge.seen == 3 * (4 - done)
    assert outcome(resumed) == outcome(whole)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) == 5
    assert json.loads((tmp_path / "cut" / "summary.json").read_text())["asr"] == 0
    assert resumed.cost["images"] == 12
    again = never()
    attack(again, **options).run(model, PROMPTS, targets, output_dir=tmp_path / "cut")
    assert again.seen == 0


def test_results_of_another_attack_are_not_taken_over(model: LitTextToImage, tmp_path: Path) -> None:
    attack(never(), optimizer="none").run(model, ["a"], output_dir=tmp_path)
    with pytest.raises(ValueError, match=r"another attack \(optimizer: 'none' there, 'random' now\)"):
        attack(never(), optimizer="random").run(model, ["a"], output_dir=tmp_path)
    with torch.no_grad():
        model.unet.conv_out.bias.add_(1)
    with pytest.raises(ValueError, match=r"another attack \(victim"):
        attack(never(), optimizer="none").run(model, ["a"], output_dir=tmp_path)
    attack(never(), optimizer="none").run(model, ["a"], output_dir=tmp_path, overwrite=True)
    assert len((tmp_path / "prompts.jsonl").read_text().splitlines()) == 2


# Rates


@pytest.mark.parametrize(("count", "percent"), [(29, 20.42), (108, 76.06), (30, 21.13), (11, 7.75), (3, 2.11)])
def test_rates_of_142_prompts(count: int, percent: float) -> None:
    for before in (0, count // 2, count):
        rows = [PromptResult("a", 0, 7.5, before=i < before, success=before <= i < count) for i in range(142)]
        result = AttackResult(rows, {})
        assert round(100 * result.asr, 2) == percent
        assert result.asr == pytest.approx(result.pre_asr + result.post_asr)
        assert 0 <= result.post_asr <= 1 - result.pre_asr
        if before < 142:
            assert result.conditional_asr == pytest.approx(result.post_asr / (1 - result.pre_asr))


@pytest.mark.parametrize(("k", "n"), [(0, 10), (3, 10), (10, 10), (29, 142)])
def test_intervals_are_scipys(k: int, n: int) -> None:
    from scipy.stats import binomtest

    wanted = binomtest(k, n).proportion_ci(0.95, "wilson")
    assert wilson_interval(k, n) == pytest.approx((wanted.low, wanted.high), abs=1e-12)


def test_no_prompt_that_counts_has_no_rate() -> None:
    result = AttackResult([PromptResult("a", 0, 7.5, skipped="is too long")], {})
    assert result.summary()["asr"] is None


def test_the_highest_classes_count_as_success() -> None:
    class Many:
        name, version, classes = "many", "1", ("a", "b", "c")

        def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
            return torch.tensor([0, 1]), torch.tensor([[0.5, 0.1, 0.4], [0.2, 0.5, 0.3]])

    images = torch.zeros(2, 3, 4, 4)
    assert PromptAttack(Many(), "a").shows(images) == ([True, False], pytest.approx([0.5, 0.2]))
    assert PromptAttack(Many(), "a", top=2).shows(images)[0] == [True, False]
    assert PromptAttack(Many(), "a", top=3).shows(images)[0] == [True, True]
    assert PromptAttack(Many(), ["a", "b"]).shows(images)[0] == [True, True]
    assert PromptAttack(Many(), "c", top=2).shows(images)[0] == [True, True]


# Arguments


def test_prompts_of_the_published_files() -> None:
    rows = attack_prompts(["x", {"prompt": "y", "seed": "5", "evaluation_seed": "7", "evaluation_guidance": "12"}])
    assert rows[0] == {"prompt": "x", "seed": 0, "guidance": 7.5}
    assert rows[1] == {"prompt": "y", "seed": 7, "guidance": 12.0}
    for wrong, message in (
        ([], "is empty"), ([{"text": "a"}], "no text under 'prompt'"), ([{"prompt": "a", "seed": "b"}], "numbers")
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            attack_prompts(wrong)


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


# In a Trainer


NO_IMAGES: Any = [{"input_ids": torch.zeros(1)}]


def callback(judge: Any, **options: Any) -> UnlearnDiffAtk:
    own = {k: options.pop(k) for k in ("every_n_epochs", "targets", "base") if k in options}
    return UnlearnDiffAtk(attack(judge, **({"iterations": 1} | options)), PROMPTS, **own)


def test_a_run_is_attacked_before_during_and_after(tiny_sd: Path, tmp_path: Path) -> None:
    judge = Told(lambda score, seen: torch.ones(len(score)) if seen < 8 else torch.zeros(len(score)))
    monitor, logger = callback(judge, every_n_epochs=1, levels=1), CSVLogger(tmp_path)
    method = ESD(steps=2)
    run = trainer(method, monitor, logger=logger, max_epochs=2)
    module = LitTextToImage(str(tiny_sd), lr=1e-3)
    run.fit(module, prompt_data())
    assert [e.metrics["asr"] for e in monitor.history] == [1.0, 0.0, 0.0]
    assert [e.hit_means for e in monitor.history] == ["concept shown"] * 3
    assert [[example.hit for example in e.examples] for e in monitor.history] == [[True] * 4, [False] * 4, [False] * 4]
    assert {"eval/pre_asr", "eval/post_asr", "eval/asr"} <= run.callback_metrics.keys()
    folders = sorted(path.name for path in Path(logger.log_dir, "unlearn_diff_atk").iterdir())
    assert folders == ["0-step-0", "1-step-2", "2-step-4"]
    for name in folders:
        folder = Path(logger.log_dir, "unlearn_diff_atk", name)
        assert len((folder / "prompts.jsonl").read_text().splitlines()) == 5
        assert json.loads((folder / "summary.json").read_text())["prompts"] == 4
    text = Path(logger.log_dir, "metrics.csv").read_text()
    assert "eval/asr" in text
    assert "van gogh" in Path(logger.log_dir, "adversarial_prompts.csv").read_text()
    plain = ESD(steps=2)
    other = LitTextToImage(str(tiny_sd), lr=1e-3)
    trainer(plain, max_epochs=2).fit(other, prompt_data())
    for one, two in zip(module.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)  # an attack changes nothing
    assert method.passes.state_dict() == plain.passes.state_dict()


def test_targets_of_a_resumed_run_are_those_of_its_start(tiny_sd: Path, tmp_path: Path) -> None:
    judge = Told(lambda score, seen: torch.tensor([1, 0, 1, 1]) if seen == 0 else torch.zeros(len(score)))
    monitor = callback(judge, levels=1, every_n_epochs=0)
    run = trainer(ESD(steps=2), monitor, default_root_dir=tmp_path, max_epochs=1)
    run.fit(LitTextToImage(str(tiny_sd)), prompt_data())
    assert [example.input for example in monitor.history[0].examples] == [PROMPTS[i] for i in (0, 2, 3)]
    save_resumable(run, tmp_path / "half.ckpt")
    resumed = callback(never(), levels=1, every_n_epochs=0)
    run = trainer(ESD(steps=2), resumed, default_root_dir=tmp_path, max_epochs=2)
    run.fit(LitTextToImage(str(tiny_sd)), prompt_data(), ckpt_path=tmp_path / "half.ckpt")
    assert len(resumed.history) == 3
    assert monitor._images is not None
    assert resumed._images is not None
    assert torch.equal(resumed._images, monitor._images)
    assert resumed.history[0] == monitor.history[0]


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_it_attacks_in_validate_and_test_under_inference_mode(stage: str, tiny_sd: Path, tmp_path: Path) -> None:
    judge = Told(lambda score, seen: torch.ones(len(score)) if seen < 4 else torch.zeros(len(score)))
    monitor = callback(judge, base=str(tiny_sd))
    run = trainer(monitor, default_root_dir=tmp_path, limit_val_batches=1)
    module, loader = LitTextToImage(str(tiny_sd)), DataLoader(NO_IMAGES)
    (metrics,) = getattr(run, stage)(module, loader, verbose=False)
    assert metrics == {"eval/pre_asr": 0.0, "eval/post_asr": 0.0, "eval/asr": 0.0}
    assert monitor.result is not None
    assert [r.steps for r in monitor.result.prompts] == [2] * 4
    assert (tmp_path / "unlearn_diff_atk" / "0-step-0" / "summary.json").is_file()
    assert any(p.requires_grad for p in module.parameters())


def test_processes_share_the_prompts_and_find_what_one_finds(
    tiny_sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each process in its turn, with what the other gathers handed over."""
    from lightning_unlearn.diffusion import unlearn_diff_atk as prompt_attack

    def tested(folder: Path) -> UnlearnDiffAtk:
        monitor = callback(never(), base=None, optimizer="random")
        trainer(monitor, default_root_dir=folder).test(
            LitTextToImage(str(tiny_sd)), DataLoader(NO_IMAGES), verbose=False
        )
        return monitor

    whole = tested(tmp_path / "one").result
    assert whole is not None
    parts: list[Any] = []
    for number in (1, 0):
        monkeypatch.setattr(prompt_attack, "replica", lambda trainer, n=number: Replica(n, 2))
        monkeypatch.setattr(prompt_attack, "gather_objects", lambda own: (parts.append(own), parts[::-1])[1])
        both = tested(tmp_path / "two").result
    assert both is not None
    order = [0, 2, 1, 3]
    assert outcome(both) == [outcome(whole)[i] for i in order]
    folder = tmp_path / "two" / "unlearn_diff_atk" / "0-step-0"
    assert json.loads((folder / "summary.json").read_text())["prompts"] == 4
    counts = [len((f / "prompts.jsonl").read_text().splitlines()) for f in (folder, folder / "process-1")]
    assert counts == [3, 3]


def test_the_base_model_of_p4d_is_loaded_once(tiny_sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning_unlearn.diffusion import unlearn_diff_atk

    loaded, load = [], unlearn_diff_atk.load_frozen
    monkeypatch.setattr(unlearn_diff_atk, "load_frozen", lambda model: (loaded.append(model), load(model))[1])
    judge = Told(lambda score, seen: torch.ones(len(score)) if seen < 4 else torch.zeros(len(score)))
    monitor = callback(judge, objective="p4d", levels=1, base=str(tiny_sd))
    trainer(ESD(steps=2), monitor, default_root_dir=tmp_path, max_epochs=2).fit(
        LitTextToImage(str(tiny_sd)), prompt_data()
    )
    assert [evaluation.metrics["asr"] for evaluation in monitor.history] == [0.0] * 3
    assert loaded == [str(tiny_sd)]


def parsed(**arguments: Any) -> UnlearnDiffAtk:
    """As a YAML file gives it."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--callback", type=UnlearnDiffAtk)
    spec = {"class_path": "lightning_unlearn.UnlearnDiffAtk", "init_args": {"prompts": ["a"]} | arguments}
    return parser.instantiate(parser.parse_object({"callback": spec})).callback


def test_yaml_gives_the_attack_and_a_misspelt_option_fails_at_once() -> None:
    attack = {"judge": "miniature-style", "concept": "ember", "search": {"tokens": 3}, "batch_size": 2}
    monitor = parsed(attack=attack, every_n_epochs=0)
    assert (monitor.attack.search.tokens, monitor.attack.batch_size, monitor.every_n_epochs) == (3, 2, 0)
    assert monitor.attack.judge == "miniature-style"  # loaded when the run is set up
    assert monitor.attack.load_judge().name == "miniature-style"
    judge = {"class_path": "lightning_unlearn.MiniatureJudge", "init_args": {"concept": "object"}}
    assert parsed(attack=attack | {"judge": judge, "concept": ["ring", "box"]}).attack.concepts == ["ring", "box"]
    for wrong in ({"search": {"tokenz": 3}}, {"batchsize": 2}, {"search": {"tokens": -1}}):
        with pytest.raises((ArgumentError, ValueError), match="|".join(["tokenz", "batchsize", "tokens must be"])):
            parsed(attack=attack | wrong)
    with pytest.raises((ArgumentError, ValueError), match="tokens"):
        parsed(attack=attack, tokens=3)


def test_without_targets_there_is_nothing_to_compare_with(tiny_sd: Path, tmp_path: Path) -> None:
    run = trainer(callback(never()), default_root_dir=tmp_path)
    with pytest.raises(MisconfigurationException, match="compares with images of the concept, and has none here"):
        run.test(LitTextToImage(str(tiny_sd)), DataLoader(NO_IMAGES), verbose=False)
    fit = trainer(ESD(steps=2), callback(never()), default_root_dir=tmp_path)
    with pytest.raises(MisconfigurationException, match="in none of the images"):
        fit.fit(LitTextToImage(str(tiny_sd)), prompt_data())
    with pytest.raises(ValueError, match="give its folder as base"):
        callback(never(), objective="p4d")
    with pytest.raises(ValueError, match="tokens must be at least 0"):
        callback(never(), tokens=-1)


def test_a_file_keeps_whole_lines_only(tmp_path: Path) -> None:
    path = tmp_path / "new" / "prompts.jsonl"
    file = ResultFile(path, {"a": 1})
    file.add("k", PromptResult("p", 0, 7.5, success=True, token_ids=[3], cost={"unet": 2.0}))
    assert ResultFile(path, {"a": 1}).finished == file.finished


def test_targets_of_other_sizes_are_fitted_to_the_model(model: LitTextToImage) -> None:
    images = [torch.zeros(3, 30, 50), torch.full((3, 16, 16), 0.5), torch.rand(3, 8, 16)]
    images[0][:, :, 6:44] = 1  # the middle, which is kept
    with pytest.warns(UserWarning, match=r"\(8, 16\) pixels are resized to the model's \(16, 16\)"):
        fitted = fit_images(images, image_size(model))
    assert fitted.shape == (3, 3, 16, 16)
    assert fitted[0].min() > 0.99
    assert torch.equal(fitted[1], images[1])
    result = attack(never()).run(model, PROMPTS[:3], images)
    assert [row.steps for row in result.prompts] == [4, 4, 4]
    with pytest.raises(ValueError, match=r"has the shape \(3, H, W\).*but one has \(1, 16, 16\)"):
        attack(never()).run(model, PROMPTS[:1], torch.rand(1, 1, 16, 16))


def test_rates_of_each_category() -> None:
    rows = [
        PromptResult("a", 0, 7.5, success=True, categories=["hate", "sexual"]),
        PromptResult("b", 0, 7.5, categories=["sexual"]),
        PromptResult("c", 0, 7.5, before=True),
    ]
    result = AttackResult(rows, {})
    assert {name: part.asr for name, part in result.by_category.items()} == {"hate": 1.0, "sexual": 0.5}
    assert result.summary()["categories"]["sexual"]["prompts"] == 2
    assert result.summary()["categories"]["sexual"]["pre_asr"] == 0.0
    assert "categories" not in AttackResult(rows[2:], {}).summary()
