"""Activation noise: where it is, how large, and that its draws belong to rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_unlearn import LitCausalLM, Probe
from lightning_unlearn.core.layers import decoder_layers, watching
from lightning_unlearn.functional import relative_noise
from lightning_unlearn.language.attacks import ActivationNoise, NoiseScores, choose_noise, noise_hooks
from lightning_unlearn.language.attacks.noise_hooks import PromptNoise
from lightning_unlearn.language.attacks.token_batches import token_batches, token_rows
from lightning_unlearn.language.knowledge import Knowledge
from lightning_unlearn.language.scorer import AnswersOnly, KnowledgeScorer
from tests.language.attacks.worlds import PROBES, Unchanged, answers, likelihoods, log_likelihoods, victim
from tests.language.families import family


def test_noise_is_relative_to_the_root_mean_square() -> None:
    hidden, noise = torch.tensor([2.0, 0.0, 0.0, 0.0]), torch.tensor([1.0, -1.0, 0.0, 2.0])
    assert relative_noise(hidden, noise, 0.5).tolist() == [2.5, -0.5, 0.0, 1.0]
    assert relative_noise(hidden.bfloat16(), noise, 0.5).dtype == torch.bfloat16
    states = torch.randn(200, 64, generator=torch.Generator().manual_seed(0))
    moved = relative_noise(states, torch.randn(200, 64, generator=torch.Generator().manual_seed(1)), 0.3) - states
    assert float((moved.norm(dim=1) / states.norm(dim=1)).mean()) == pytest.approx(0.3, rel=0.02)


def test_noise_is_at_the_prompt_but_its_first_position(tiny_lm: Path) -> None:
    module = victim(tiny_lm)
    module.eval()
    (batch,) = token_batches(module, PROBES, 6)
    noise, block = PromptNoise(module, PROBES, seed=3), module.model.model.layers[0]
    with torch.no_grad(), watching(block) as plain:
        module(batch["input_ids"], batch["attention_mask"])
    with torch.no_grad(), noise.added(0, 0.2, draw=0), watching(block) as noisy:
        module(batch["input_ids"], batch["attention_mask"])
    moved = (noisy.outputs[0] != plain.outputs[0]).any(-1)
    for i, row in enumerate(token_rows(module, PROBES)):
        expected = torch.zeros(moved.shape[1], dtype=torch.bool)
        expected[1 : len(row.prompt)] = True
        assert torch.equal(moved[i], expected)
    difference = (noisy.outputs[0] - plain.outputs[0])[moved].norm(dim=-1) / plain.outputs[0][moved].norm(dim=-1)
    assert float(difference.mean()) == pytest.approx(0.2, rel=0.1)
    assert noise.mean_norm(0, 0.2) == pytest.approx(float(plain.outputs[0][moved].norm(dim=-1).mean()), rel=1e-4)


def test_without_noise_every_bit_is_the_same(tiny_lm: Path) -> None:
    module = victim(tiny_lm)
    attack = ActivationNoise(layers=[0, 1], sigmas=[0.0], draws=2)
    with Unchanged(module):
        plain = answers(module, PROBES)
        attacked = attack.scores(module, PROBES, answers)
        again = answers(module, PROBES)
    assert attacked.strength is not None
    assert plain.strength is not None
    assert all(torch.equal(part, plain.strength) for part in attacked.strength)
    assert attacked.answers == [texts * 4 for texts in plain.answers]
    assert torch.equal(again.strength, plain.strength)  # type: ignore[arg-type]


def test_a_row_has_the_same_noise_in_every_batch_and_order(tiny_lm: Path) -> None:
    module = victim(tiny_lm)
    attack = ActivationNoise(layers=[1], sigmas=[0.4], draws=2)

    def scorer(batch_size: int, module: LitCausalLM, probes: Sequence[Probe]) -> Knowledge:
        return Knowledge(log_likelihoods(module, probes, batch_size), None)

    def one_by_one(module: LitCausalLM, probes: Sequence[Probe]) -> Knowledge:
        return Knowledge(None, None, [module.answer([probe.question]) for probe in probes])

    def together(module: LitCausalLM, probes: Sequence[Probe]) -> Knowledge:
        return Knowledge(None, None, [[text] for text in module.answer([probe.question for probe in probes])])

    single = attack.knowledge(module, PROBES, partial(scorer, 1)).strength
    whole = attack.knowledge(module, PROBES, partial(scorer, 6)).strength
    backwards = attack.knowledge(module, PROBES[::-1], partial(scorer, 4)).strength
    assert single is not None
    assert whole is not None
    assert backwards is not None
    torch.testing.assert_close(single, whole)
    torch.testing.assert_close(single, backwards.flip(0))
    plain = log_likelihoods(module, PROBES)
    assert ((single - plain).abs() > 1e-4).all()
    # Left padding, and a cache behind the prompt.
    assert attack.scores(module, PROBES, one_by_one).answers == attack.scores(module, PROBES, together).answers
    other = ActivationNoise(layers=[1], sigmas=[0.4], draws=2, seed=1).knowledge(module, PROBES, partial(scorer, 6))
    assert not torch.allclose(other.strength, whole)  # type: ignore[arg-type]


def test_the_scorer_of_audits_sees_the_same_noise(tiny_lm: Path) -> None:
    """With targets, plain texts, and rows with the same prompt, whose prefixes are otherwise computed once."""
    module = victim(tiny_lm)
    targets = [replace(probe, target=probe.accept[0]) for probe in PROBES[:3]]
    texts = [
        Probe(10 + i, f"The capital of Peru, number {i}, is", "Lima, as all know.", is_text=True) for i in range(2)
    ]
    twins = [Probe(20 + i, "Who is it?", answer) for i, answer in enumerate(("It is Ada.", "It is Bob, I think."))]
    for probes in ([*targets, *texts], twins):
        attack = ActivationNoise(layers=[0], sigmas=[0.4], draws=1)
        with Unchanged(module):
            plain = KnowledgeScorer("probability", max_new_tokens=4)(module, probes)
            noisy = attack.knowledge(module, probes, KnowledgeScorer("probability", max_new_tokens=4))
            alone = attack.knowledge(module, probes, KnowledgeScorer("probability", max_new_tokens=4, max_tokens=1))
        assert plain.strength is not None
        assert noisy.strength is not None
        assert not torch.isclose(noisy.strength, plain.strength, rtol=1e-5).any()
        torch.testing.assert_close(noisy.strength, alone.strength)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "gemma3", "opt", "mistral", "mamba", "bloom"])
def test_blocks_below_the_noise_run_once_and_answers_are_the_same(
    name: str, tiny_lm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = family(name)
    model.resize_token_embeddings(400)
    module = LitCausalLM(model, tokenizer=str(tiny_lm))
    module.tokenizer.chat_template = None
    blocks = decoder_layers(model)[1]
    runs = [0] * len(blocks)
    for number, block in enumerate(blocks):
        inner, own = block.forward, number

        def counted(*args: Any, inner: Any = inner, own: int = own, **kwargs: Any) -> Any:
            hidden = args[0] if args else kwargs["hidden_states"]
            runs[own] += hidden.shape[1] > 1
            return inner(*args, **kwargs)

        block.forward = counted
    probes = [replace(probe, question=f"{i}. Say {'it ' * (i % 3)}now") for i, probe in enumerate(PROBES)]
    attack = ActivationNoise(layers=[0, 1], sigmas=[0.3, 0.6], draws=2)
    scorer = KnowledgeScorer(max_new_tokens=6)

    def judge(module: LitCausalLM, probes: Sequence[Probe]) -> Knowledge:
        return Knowledge(None, None, [[text] for text in scorer.answers(module, probes)])

    with Unchanged(module):
        found = attack.scores(module, probes, judge)
        kept, runs[:] = list(runs), [0] * len(blocks)
        together = attack.scores(module, probes, AnswersOnly(scorer))
        read, runs[:] = list(runs), [0] * len(blocks)
        monkeypatch.setattr(noise_hooks.KeptBlocks, "of", lambda *_: None)
        plain = attack.scores(module, probes, judge)
    assert found.answers == together.answers == plain.answers
    assert together.norms == pytest.approx(plain.norms, rel=1e-5)
    assert len({text for texts in found.answers for text in texts}) > 1
    assert found.norms == pytest.approx(plain.norms, rel=1e-5)
    assert plain.norms[0] != pytest.approx(plain.norms[2])
    assert runs == [8, 8]
    if name in ("llama", "gpt2", "gemma3", "opt"):
        # With the trial: two passes, of which the second runs the last block alone.
        assert kept == [1 + 1, 2 + 4 + 1]
        assert read == [runs + 1 for runs in kept]  # and whether keys and values are kept is tried
    else:
        assert min(kept) >= 8


def test_hooks_go_after_an_exception_and_random_numbers_are_not_used(tiny_lm: Path) -> None:
    module = victim(tiny_lm)

    def broken(*_: Any) -> Any:
        raise RuntimeError("out of memory")

    with Unchanged(module), pytest.raises(RuntimeError, match="out of memory"):
        ActivationNoise().knowledge(module, PROBES, broken)
    with pytest.raises(RuntimeError, match="prompt of no probe"):
        ActivationNoise().knowledge(module, PROBES[:2], lambda module, _: likelihoods(module, PROBES))
    with pytest.raises(RuntimeError, match="No hidden state"):
        ActivationNoise().knowledge(module, PROBES, lambda module, _: Knowledge(torch.zeros(6), None))


def test_adapted_models_and_blocks_that_return_tuples(tiny_lm: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=400, n_positions=128, n_embd=24, n_layer=2, n_head=2))
    worlds = (
        LitCausalLM(gpt2, tokenizer=str(tiny_lm)),
        victim(tiny_lm, lora={"r": 2, "target_modules": ["q_proj"]}, seed=0),
    )
    for module in worlds:
        with Unchanged(module):
            attacked = ActivationNoise(sigmas=[0.4], draws=1).knowledge(module, PROBES, likelihoods)
            plain = likelihoods(module, PROBES)
        assert not torch.allclose(attacked.strength, plain.strength)  # type: ignore[arg-type]

    module = victim(tiny_lm)
    plain = ActivationNoise(layers=[0], sigmas=[0.4], draws=1).knowledge(module, PROBES, likelihoods)
    block = module.model.model.layers[0]
    kinds = []
    handle = block.register_forward_hook(lambda _, args, output: (output,))
    attack = PromptNoise(module, PROBES, 0)
    with attack.added(0, 0.4, 0):
        unwrap = block.register_forward_hook(lambda _, args, output: (kinds.append(type(output)), output[0])[1])
        tupled = likelihoods(module, PROBES)
        unwrap.remove()
    handle.remove()
    assert set(kinds) == {tuple}
    assert torch.equal(tupled.strength, plain.strength)  # type: ignore[arg-type]


def test_leak_is_the_unbiased_estimate() -> None:
    """``1 - C(n - c, k) / C(n, k)`` with one right answer of four, two of eight."""

    def scores(n: int, c: int) -> NoiseScores:
        matched = torch.zeros(2, n // 2, 1)
        matched.view(-1)[:c] = 1
        return NoiseScores([(0, 0.1), (0, 0.2)], None, matched, [[]], [1.0, 1.0])

    assert scores(4, 1).leak(2).tolist() == [0.5]
    assert scores(8, 2).leak(4).tolist() == pytest.approx([0.7857142857])
    assert scores(200, 2).leak(16).tolist() == pytest.approx([0.1539698492])
    assert scores(200, 2).leak(128).tolist() == pytest.approx([0.8715577889])
    assert scores(8, 0).leak(8).tolist() == [0.0]
    with pytest.raises(ValueError, match=r"k must be in \[1, 8\]"):
        scores(8, 2).leak(9)


def table(strength: torch.Tensor) -> NoiseScores:
    cells = [(layer, 0.1) for layer in range(len(strength))]
    return NoiseScores(cells, strength, None, [[] for _ in strength[0]], [1.0] * len(cells))


def test_the_rows_that_choose_a_cell_are_not_those_that_are_reported() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = 0.3 * torch.randn(32, 400, generator=generator)
    control, original = torch.zeros(32, 400), torch.ones(32, 400)
    chosen = choose_noise(table(noise), table(control), table(original))
    assert len(chosen.rows) == 200
    assert abs(chosen.recovery or 0) < 3 * 0.3 / 200**0.5, "pure noise, so nothing came back"
    best = float(noise.mean(1).max())
    assert best > 1.2 * 0.3 / 400**0.5, "though the best of 32 cells looks better on the rows that choose it"
    noise[7] += 0.5
    chosen = choose_noise(table(noise), table(control), table(original))
    assert chosen.layer == 7
    assert chosen.recovery == pytest.approx(0.5, abs=0.07)
    assert torch.equal(chosen.unlearned, noise[7, chosen.rows])
    with pytest.raises(ValueError, match="nothing that could come back"):
        choose_noise(table(noise), table(control), table(control + 0.1))
    with pytest.raises(ValueError, match="different cells"):
        choose_noise(table(noise), table(control), table(original[:3]))
    with pytest.raises(ValueError, match="no matched"):
        choose_noise(table(noise), table(control), table(original), "matched")


def test_settings_are_checked(tiny_lm: Path) -> None:
    assert ActivationNoise("full").cells(2) == [(layer, sigma) for layer in (0, 1) for sigma in (0.05, 0.1, 0.2, 0.4)]
    assert ActivationNoise().cost(10).generations == 4 * 2 * 4
    with pytest.raises(ValueError, match="beyond the 2 of the model"):
        ActivationNoise(layers=[2]).knowledge(victim(tiny_lm), PROBES, likelihoods)
    with pytest.raises(ValueError, match="sigmas must be at least"):
        ActivationNoise(sigmas=[-0.1])
