"""Schedule and searches of attacks on prompts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_unlearn import LitTextToImage
from lightning_unlearn.diffusion.attacks.search import GCG, Descent, HardPrompt, PromptSearch, TextGrad
from lightning_unlearn.diffusion.engine.model import alphas_bar
from lightning_unlearn.functional.diffusion.ddim import attack_timesteps
from lightning_unlearn.functional.diffusion.noise import row_noise
from tests.diffusion.attacks.told import PROMPTS, above, attack, never, outcome

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
