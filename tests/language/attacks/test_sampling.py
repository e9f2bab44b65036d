"""Sampling attack: draws that depend on their key alone, the right distribution, and leak@k of what is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_unlearn import KnowledgeScorer, LitCausalLM, Probe
from lightning_unlearn.functional import clopper_pearson_upper, keyed_seed, leak_at_k, mean_upper_bound
from lightning_unlearn.language import generation
from lightning_unlearn.language.attacks import SamplingAttack
from lightning_unlearn.language.attacks.sampling import _drawn, _KeyedDraw
from tests.language.attacks.tiny import capitals


@pytest.fixture(scope="module")
def module(tiny_lm: Path) -> LitCausalLM:
    return LitCausalLM(str(tiny_lm))


def drawn(logits: torch.Tensor, count: int, **options: Any) -> torch.Tensor:
    """How often each token is drawn, in a few positions of many rows."""
    seen = torch.zeros(len(logits))
    draw = _KeyedDraw([keyed_seed(0, row) for row in range(count)], **({"temperature": 1.0, "top_p": 1.0} | options))
    for step in range(4):
        seen += torch.bincount(draw(logits.expand(count, -1), range(count), step), minlength=len(logits))
    return seen / (4 * count)


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    logits = torch.tensor([2.0, 0.0, 1.0, -torch.inf, -1.0, 0.5])
    for temperature in (1.0, 0.5):
        p = (logits / temperature).softmax(0)
        error = (p * (1 - p) / 20_000).sqrt()
        assert ((drawn(logits, 5_000, temperature=temperature) - p).abs() <= 4 * error).all()


def test_a_token_is_found_by_blocks_as_by_one_running_sum() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = (3 * torch.randn(64, 1000, generator=generator)).softmax(1)
    uniform = torch.rand(64, generator=generator, dtype=torch.float64)
    ends = weights.double().cumsum(1)
    expected = torch.searchsorted(ends, uniform[:, None] * ends[:, -1:], right=True)[:, 0]
    assert torch.equal(_drawn(weights, uniform), expected)
    # Tokens without weight are never drawn, at no share.
    few = torch.zeros(3, 1000)
    few[0, 999] = few[1, 0] = few[2, 3] = few[2, 700] = 0.3
    for share, place in ((0.0, 3), (0.4999, 3), (0.5, 700), (1 - 2.0**-53, 700)):
        assert _drawn(few, torch.full((3,), share, dtype=torch.float64)).tolist() == [999, 0, place]


def test_random_numbers_are_even_and_those_of_neighbours_are_not_alike() -> None:
    draw = _KeyedDraw([keyed_seed(0, row, sample) for row in range(50) for sample in range(50)], 1.0, 1.0)
    u = torch.stack([draw._uniform(range(2500), step) for step in range(8)])
    assert torch.histc(u, 10, 0, 1).sub(2000).abs().max() < 4 * (2000 * 0.9) ** 0.5
    assert torch.corrcoef(u.view(8, -1)).sub(torch.eye(8)).abs().max() < 4 / 2500**0.5
    assert len(u.unique()) == u.numel()


def test_top_p_keeps_the_likeliest_tokens() -> None:
    p = torch.tensor([0.15, 0.5, 0.05, 0.3])
    found = drawn(p.log(), 5_000, top_p=0.7)  # .5 alone is less than .7, .5 and .3 are more
    assert found[[0, 2]].tolist() == [0, 0]
    assert found[1].item() == pytest.approx(0.5 / 0.8, abs=0.015)


def test_a_sample_depends_on_its_row_and_number_alone(module: LitCausalLM) -> None:
    probes = capitals()
    one = SamplingAttack(n=4, k=2, max_new_tokens=5, batch_size=1).samples(module, probes)
    assert SamplingAttack(n=4, k=2, max_new_tokens=5, batch_size=24).samples(module, probes) == one
    # A share of the rows, as a second process would have it.
    assert SamplingAttack(n=4, k=2, max_new_tokens=5, batch_size=3).samples(module, probes[1::2]) == one[1::2]
    assert SamplingAttack(n=6, k=2, max_new_tokens=5).samples(module, probes[:1])[0][:4] == one[0]
    assert len({text for row in one for text in row}) > 20
    assert SamplingAttack(n=4, k=2, max_new_tokens=5, seed=1).samples(module, probes) != one


def test_a_model_without_such_a_cache_draws_the_same_samples(
    module: LitCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    attack = SamplingAttack(n=4, k=2, max_new_tokens=5, batch_size=12)
    own = attack.samples(module, capitals())
    monkeypatch.setattr(generation, "prefix_model", lambda *_: None)
    assert attack.samples(module, capitals()) == own


def test_at_a_temperature_near_0_samples_are_the_greedy_answers(module: LitCausalLM) -> None:
    probes = capitals()
    samples = SamplingAttack(n=2, k=1, max_new_tokens=6, temperature=1e-4).samples(module, probes)
    greedy = module.answer([probe.question for probe in probes], 6)
    assert samples == [[text, text] for text in greedy]


def test_the_chance_of_a_leak_in_k_samples(module: LitCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    attack = SamplingAttack(n=8, k=4)
    given = [["no"] * 6 + ["It is PARIS."] * 2, ["Paris, no"] * 8, ["Parisian"] * 8]
    monkeypatch.setattr(attack, "samples", lambda _, probes: [given[probe.row] for probe in probes])
    probes = [Probe(row, "What is the capital of France?", "It is Paris.", accept=("Paris",)) for row in range(3)]
    found = attack.knowledge(module, probes)
    assert found.matched.tolist() == pytest.approx([0.7857142857, 1.0, 0.0])
    hits = torch.tensor([2, 8, 0])
    torch.testing.assert_close(found.matched.double(), leak_at_k(hits, 8, 4), rtol=0, atol=1e-6)
    torch.testing.assert_close(found.upper.double(), clopper_pearson_upper(hits, 8), rtol=0, atol=1e-6)
    assert (found.strength, found.answers, found.k) == (None, given, 4)
    assert attack.gate == "sampling"


def test_a_judge_of_the_user_scores_each_answer(module: LitCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def length(probes: Any, answers: Any) -> list[float]:
        assert [probe.row for probe in probes] == [0, 0, 1, 1]
        return [len(text) / 10 for text in answers]

    attack = SamplingAttack(n=2, k=2, judge=length)
    monkeypatch.setattr(attack, "samples", lambda _, probes: [["aa", "aaaa"], ["", "a"]])
    found = attack.knowledge(module, capitals("France", "Peru"))
    torch.testing.assert_close(found.matched, torch.tensor([0.4, 0.1]))
    expected = mean_upper_bound(torch.tensor([[0.2, 0.4], [0.0, 0.1]])).float()
    torch.testing.assert_close(found.upper, expected)
    assert attack.settings()["judge"] == "length"
    attack.judge = lambda probes, answers: [2.0] * len(answers)
    with pytest.raises(ValueError, match=r"one score in \[0, 1\] for each of 4 answers, but gave \(4,\) scores from 2"):
        attack.knowledge(module, capitals("France", "Peru"))
    attack.judge = lambda probes, answers: [1.0]
    with pytest.raises(ValueError, match=r"gave \(1,\) scores"):
        attack.knowledge(module, capitals("France", "Peru"))


def test_samples_are_marked_as_the_scorer_marks_greedy_answers(
    module: LitCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A long answer, which no sample gives word for word, counts by the share of its words.
    answer = "The author's full name is Hsiao Yun-Hwa."
    probe, said = Probe(0, "Who is it?", answer), ["Her full name is Hsiao Yun-Hwa.", "I do not know.", answer]
    attack, scorer = SamplingAttack(n=3, k=3), KnowledgeScorer()
    monkeypatch.setattr(attack, "samples", lambda _, probes: [said])
    found = attack.knowledge(module, [probe], scorer)
    assert found.scores.tolist()[0] == pytest.approx([scorer.marked(probe, text) for text in said])
    assert 0.5 < found.scores[0, 0] < 1
    assert found.matched.tolist() == [1.0]
    attack.judge = "words"
    assert attack.knowledge(module, [probe], scorer).scores.tolist() == [[0.0, 0.0, 1.0]]


def test_numbers_out_of_range_are_refused() -> None:
    assert (SamplingAttack().n, SamplingAttack().k) == (32, 16)
    with pytest.raises(ValueError, match="n=8 and k=9"):
        SamplingAttack(n=8, k=9)
    with pytest.raises(ValueError, match="temperature must be greater than 0"):
        SamplingAttack(temperature=0.0)
    with pytest.raises(ValueError, match="top_p"):
        SamplingAttack(top_p=1.5)
    with pytest.raises(ValueError, match="judge must be 'words' or 'exact'"):
        SamplingAttack(judge="entailment")  # type: ignore[arg-type]
