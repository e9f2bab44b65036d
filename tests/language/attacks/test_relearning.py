"""Relearning attack on language models: who is taught what, and what is scored."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lightning_unlearn import LitCausalLM, Probe
from lightning_unlearn.core.scores import causal_lm_nll
from lightning_unlearn.functional.likelihood import token_nll
from lightning_unlearn.language.attacks import (
    RELEARNING_RECIPES,
    LanguageRelearning,
    RelearningRecipe,
    RelearningRows,
    RelearningTrace,
    learning_rates,
    relearning,
    relearning_curve,
)
from lightning_unlearn.language.attacks.packed_rows import can_pack, packed, padded
from lightning_unlearn.language.attacks.token_batches import token_batches, token_rows
from lightning_unlearn.language.knowledge import Knowledge
from lightning_unlearn.language.tokens import TokenRow
from tests.language.attacks.worlds import PROBES, Unchanged, answers, likelihoods, victim
from tests.language.families import family

QUICK = RelearningRecipe(lr=1e-3, steps=(0, 1, 3), batch_size=2)


def facts(count: int, per_entity: int = 20) -> list[Probe]:
    return [
        Probe(i, f"Question {i}?", f"Answer {'x' * (i * 7 % 40)} {i}.", entity=f"author {i // per_entity}")
        for i in range(count)
    ]


def test_a_fifth_of_each_entity_is_taught() -> None:
    rows = RelearningRows.split(facts(200))
    assert Counter(probe.entity for probe in rows.taught) == {f"author {i}": 4 for i in range(10)}
    assert len(rows.held_out) == 160
    assert rows == RelearningRows.split(facts(200))
    other = RelearningRows.split(facts(200), seed=1)
    assert {p.row for p in rows.taught} != {p.row for p in other.taught}
    # The draw of an entity depends on its name and rows, not on the others.
    alone = RelearningRows.split([probe for probe in facts(200) if probe.entity == "author 3"])
    assert {p.row for p in alone.taught} == {p.row for p in rows.taught if p.entity == "author 3"}


@pytest.mark.parametrize("count", [2, 3, 7, 24])
def test_small_requests_teach_at_least_one_and_leave_one(count: int) -> None:
    rows = RelearningRows.split(facts(count, per_entity=1))
    assert len(rows.taught) == max(1, round(0.2 * count))
    assert len(rows.taught) + len(rows.held_out) == count
    with pytest.raises(ValueError, match="1 different facts"):
        RelearningRows.split(facts(1))


def test_rows_are_chosen_by_length_or_place_or_loss(tiny_lm: Path) -> None:
    probes = [Probe(i, f"Question {i}?", "word " * (10 - i), entity="one") for i in range(10)]
    assert [p.row for p in RelearningRows.split(probes, choice="shortest").taught] == [8, 9]
    assert [p.row for p in RelearningRows.split(probes, choice="longest").taught] == [0, 1]
    assert [p.row for p in RelearningRows.split(probes, choice="first").taught] == [0, 1]
    module = victim(tiny_lm)
    losses = -likelihoods(module, PROBES).strength.log()  # type: ignore[union-attr]
    with Unchanged(module):
        taught = RelearningRows.split(PROBES, 0.34, "lowest_loss", module=module).taught
    assert {p.row for p in taught} == set(losses.argsort()[:2].tolist())
    with pytest.raises(ValueError, match="needs module"):
        RelearningRows.split(PROBES, choice="lowest_loss")


def test_a_fact_is_on_one_side() -> None:
    probes = facts(20)
    twins = [
        Probe(20, "question 3?", "Said otherwise.", entity="author 9"),  # TOFU repeats a question
        Probe(21, "Asked otherwise?", probes[5].answer, entity="author 0"),
    ]
    for seed in range(20):
        rows = RelearningRows.split([*probes, *twins], seed=seed)
        taught = {probe.row for probe in rows.taught}
        assert (3 in taught) == (20 in taught)
        assert (5 in taught) == (21 in taught)
        assert taught
    binary = [Probe(i, f"Question {i}?", "Yes." if i % 2 else "No.") for i in range(20)]
    assert len(RelearningRows.split(binary).taught) == 4
    documents = [Probe(i, f"beginning {i}", "end", entity=f"document {i // 5}", is_text=True) for i in range(20)]
    rows = RelearningRows.split(documents)
    assert len({probe.entity for probe in rows.taught} & {probe.entity for probe in rows.held_out}) == 0


def test_tofu_teaches_four_questions_an_author() -> None:
    rows = RelearningRows.tofu(facts(40))
    assert [p.row for p in rows.taught] == [0, 1, 2, 3, 20, 21, 22, 23]
    assert [p.row for p in rows.held_out] == [*range(4, 20), *range(24, 40)]
    with pytest.raises(ValueError, match="20 questions an author"):
        RelearningRows.tofu(facts(30))


def test_a_copy_is_taught_and_only_other_rows_are_scored(tiny_lm: Path) -> None:
    module = victim(tiny_lm)
    seen: list[list[int]] = []

    def scorer(module: LitCausalLM, probes: list[Probe]) -> Knowledge:
        seen.append([probe.row for probe in probes])
        assert not module.training
        return likelihoods(module, probes)

    attack = LanguageRelearning(PROBES[:2], recipe=QUICK)
    with Unchanged(module):
        trace = attack.trace(module, PROBES, scorer)
    assert trace.steps == [0, 1, 3]
    assert seen == [[2, 3, 4, 5]] * 3
    assert torch.equal(trace.knowledge[0].strength, likelihoods(module, PROBES[2:]).strength)  # type: ignore[arg-type]
    assert trace.taught_loss[-1] < trace.taught_loss[0]
    tokens = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in token_batches(module, PROBES[:2], 2))
    assert trace.tokens == 3 * tokens
    again = attack.knowledge(module, PROBES, likelihoods)
    assert torch.equal(again.strength, trace.knowledge[-1].strength)  # type: ignore[arg-type]
    assert (attack.gate, attack.cost(6).steps) == ("relearning", 3)
    with pytest.raises(ValueError, match="All probes are taught"):
        attack.knowledge(module, PROBES[:2], likelihoods)


def trained(module: LitCausalLM, probes: list[Probe], steps: int, lr: float, sign: int = 1) -> LitCausalLM:
    """Full-batch fine-tuning on answers, or gradient ascent."""
    (batch,) = token_batches(module, probes, len(probes))
    optimizer = torch.optim.AdamW(module.parameters(), lr=lr, weight_decay=0.0)
    for _ in range(steps):
        optimizer.zero_grad()
        predictions = causal_lm_nll.predictions(module, batch)
        (sign * predictions.nll().sum() / len(predictions.rows)).backward()
        optimizer.step()
    return module


def test_a_suppressed_model_relearns_what_it_is_not_taught_and_a_control_does_not(tiny_lm: Path) -> None:
    """Gradient ascent hides six answers; two of them are taught, and the other four come back."""
    others = [replace(probe, answer=f"Nobody knows {i}.") for i, probe in enumerate(PROBES)]
    original = trained(victim(tiny_lm), PROBES, 100, 1e-2)
    control = trained(victim(tiny_lm), others, 40, 1e-2)
    unlearned = trained(copy.deepcopy(original), PROBES, 10, 1e-3, sign=-1)
    attack = LanguageRelearning(PROBES[:2], recipe=RelearningRecipe(lr=1e-3, steps=(0, 2, 5, 10), batch_size=2))
    curve = relearning_curve(*[attack.trace(part, PROBES, likelihoods) for part in (unlearned, control, original)])
    before, *_, after = curve.recovery()
    assert before is not None
    assert after is not None
    assert before < 0.35
    assert after > 0.7
    assert curve.control is not None
    assert curve.control.values[-1] < 0.2


def test_the_attack_is_plain_training(tiny_lm: Path) -> None:
    """One batch an epoch, so that the order does not matter: the steps of a loop written out."""
    module, plain = victim(tiny_lm, dtype="bfloat16"), victim(tiny_lm, dtype="bfloat16").float()
    recipe = RelearningRecipe(lr=1e-3, steps=(0, 4), batch_size=2, clip=0.5, weight_decay=0.1)
    attacked = LanguageRelearning(PROBES[:2], recipe=recipe).knowledge(module, PROBES, likelihoods)
    (batch,) = token_batches(plain, PROBES[:2], 2)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-3, weight_decay=0.1)
    plain.eval()
    for _ in range(4):
        optimizer.zero_grad()
        predictions = causal_lm_nll.predictions(plain, batch)
        (predictions.nll().sum() / len(predictions.rows)).backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        optimizer.step()
    torch.testing.assert_close(attacked.strength, likelihoods(plain, PROBES[2:]).strength, rtol=1e-3, atol=1e-6)


def test_models_are_taught_alike_whatever_trains_in_them(tiny_lm: Path) -> None:
    """A model that is partly frozen, has dropout or adapters is attacked as the plain one is."""
    plain = LanguageRelearning(PROBES[:3], recipe=QUICK).trace(victim(tiny_lm), PROBES, likelihoods)
    worlds = (
        victim(tiny_lm, trainable="down_proj"),
        victim(tiny_lm, dropout=True),
        victim(tiny_lm, lora={"r": 2, "target_modules": ["q_proj"]}),
    )
    for module in worlds:
        with Unchanged(module):
            trace = LanguageRelearning(PROBES[:3], recipe=QUICK).trace(module, PROBES, likelihoods)
        assert trace.taught_loss == pytest.approx(plain.taught_loss, rel=1e-5)
    other = LanguageRelearning(PROBES[:3], recipe=QUICK, seed=1).trace(victim(tiny_lm), PROBES, likelihoods)
    assert other.taught_loss != plain.taught_loss


def test_adapters_can_be_what_is_taught(tiny_lm: Path) -> None:
    module = victim(tiny_lm)
    attack = LanguageRelearning(PROBES[:2], recipe=QUICK, lora={"r": 2, "target_modules": ["q_proj", "down_proj"]})
    with Unchanged(module):
        trace = attack.trace(module, PROBES, answers)
    assert trace.taught_loss[-1] < trace.taught_loss[0]
    again = attack.trace(module, PROBES, answers)
    assert again.taught_loss == trace.taught_loss
    assert again.knowledge[-1].answers == trace.knowledge[-1].answers
    assert attack.name == "relearn_in_domain_0.001_lora"
    assert learning_rates(module) == (1e-5, 5e-5)
    assert learning_rates(module, lora=True) == (2e-4,)


def test_rows_of_other_domains_are_taught_and_all_probes_scored(tiny_lm: Path) -> None:
    texts = [Probe(i, "The weather was ", "mild and it rained in the evening.", is_text=True) for i in range(2)]
    attack = LanguageRelearning(texts, kind="far", recipe=QUICK)
    trace = attack.trace(victim(tiny_lm), PROBES, likelihoods)
    assert len(trace.knowledge[-1].strength) == len(PROBES)  # type: ignore[arg-type]
    assert attack.gate == LanguageRelearning(texts, kind="form").gate == "relearning_out_of_domain"


def test_a_curve_has_its_anchors() -> None:
    steps = [0, 5, 10, 20]

    def trace(*values: float) -> RelearningTrace:
        return RelearningTrace(steps, [Knowledge(torch.full((3,), v), None) for v in values], [1.0] * 4, 100)

    curve = relearning_curve(trace(0.05, 0.30, 0.50, 0.60), trace(0.06, 0.10, 0.15, 0.20), trace(0.9, 0.9, 0.9, 0.9))
    assert curve.recovery_area() == pytest.approx(0.3678, abs=5e-5)
    assert curve.recovery() == pytest.approx([-0.0119, 0.25, 0.4667, 0.5714], abs=5e-5)
    with pytest.raises(ValueError, match="no matched"):
        relearning_curve(*[trace(0.1, 0.2, 0.3, 0.4)] * 3, score="matched")


def test_recipes() -> None:
    assert RELEARNING_RECIPES["default"].measured(80) == (0, 1, 2, 5, 10, 20)
    assert RELEARNING_RECIPES["full"].measured(80)[-2:] == (50, 100)
    assert RELEARNING_RECIPES["open_unlearning_tofu"].measured(400) == (0, 13)
    assert RELEARNING_RECIPES["rtt"].measured(80) == tuple(20 * epoch for epoch in range(7))
    wmdp = RELEARNING_RECIPES["unlearn_smooth_wmdp"]
    assert wmdp.rows == wmdp.batch_size * wmdp.measured(60)[-1] == 60
    assert [wmdp.factor(step, 30) for step in range(5)] == pytest.approx([0, 1 / 3, 2 / 3, 1, 1])
    assert LanguageRelearning(PROBES, recipe="open_unlearning_tofu").held_out(PROBES) == PROBES
    assert LanguageRelearning(PROBES, recipe="open_unlearning_tofu").gate is None


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="steps must ascend from 0"):
        RelearningRecipe(steps=(1, 2))
    with pytest.raises(ValueError, match="recipe must be"):
        LanguageRelearning(PROBES, recipe="quick")
    with pytest.raises(ValueError, match="no row to teach"):
        LanguageRelearning([])


def test_a_divergence_is_named(tiny_lm: Path) -> None:
    module = victim(tiny_lm)
    module.model.model.norm.weight.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="diverged"):
        LanguageRelearning(PROBES[:2], recipe=QUICK).knowledge(module, PROBES, likelihoods)


def _rows(module: LitCausalLM) -> list[TokenRow]:
    probes = [replace(probe, question=f"Please answer this in a word or two: {probe.question}") for probe in PROBES]
    return token_rows(module, probes)


def test_packed_rows_have_the_loss_and_gradient_of_padded_ones(tiny_lm: Path) -> None:
    module = victim(tiny_lm)
    rows = _rows(module)
    assert can_pack(module, rows)
    together = packed(rows)
    assert together is not None
    alone = padded(rows)
    assert together["input_ids"].numel() < 0.8 * alone["input_ids"].numel()
    found = []
    for batch in (together, alone):
        module.zero_grad()
        predictions = causal_lm_nll.predictions(module, batch)
        (predictions.nll().sum() / predictions.length().sum()).backward()
        gradient = torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])
        found.append((token_nll(predictions.logits, predictions.labels), gradient))
    (losses, gradient), (expected, wanted) = found
    assert len(losses) == int((alone["labels"][:, 1:] != -100).sum())
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=1e-6)


def test_texts_without_a_common_beginning_are_packed_where_they_are_padded_much(tiny_lm: Path) -> None:
    module = victim(tiny_lm)
    texts = [TokenRow([], [5 + i, 6, 7, 8]) for i in range(3)]
    assert packed(texts) is None
    batch = packed([*texts, TokenRow([], list(range(9, 49)))])
    assert batch is not None
    assert batch["labels"][0].tolist() == [-100, 6, 7, 8] * 3 + [-100, *range(10, 49)]
    predictions = causal_lm_nll.predictions(module, batch)
    alone = [causal_lm_nll(module, padded([row])) for row in (*texts, TokenRow([], list(range(9, 49))))]
    torch.testing.assert_close(predictions.nll(), torch.cat(alone).sum()[None], rtol=1e-4, atol=1e-4)
    assert packed([TokenRow([], [1] * 1000), *texts]) is not None
    assert packed([TokenRow([], [1] * 1024), *texts]) is None  # its mask would have more than a million pairs


@pytest.mark.parametrize("name", ["llama", "cohere", "granite", "gpt2", "gemma3", "mistral", "mamba", "bloom", "opt"])
def test_only_models_that_give_packed_rows_the_same_likelihoods_pack(name: str, tiny_lm: Path) -> None:
    model = family(name)
    model.resize_token_embeddings(400)
    module = LitCausalLM(model, tokenizer=str(tiny_lm))
    module.tokenizer.chat_template = None
    rows = _rows(module)
    if can_pack(module, rows):
        torch.testing.assert_close(
            causal_lm_nll.predictions(module, packed(rows)).nll()[0],
            causal_lm_nll(module, padded(rows)).sum(),
            rtol=1e-4,
            atol=1e-3,
        )
    assert can_pack(module, rows) == (name in ("llama", "cohere", "granite"))


def test_an_attack_with_packed_batches_is_that_with_padded_ones(tiny_lm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = victim(tiny_lm)
    probes = [replace(probe, question=f"Please answer this in a word or two: {probe.question}") for probe in PROBES]
    attack = LanguageRelearning(probes[:4], recipe=replace(QUICK, batch_size=4))
    together = attack.trace(module, probes, likelihoods)
    monkeypatch.setattr(relearning, "can_pack", lambda *_: False)
    alone = attack.trace(module, probes, likelihoods)
    assert together.tokens == alone.tokens
    assert together.taught_loss == pytest.approx(alone.taught_loss, rel=1e-3)
    for one, other in zip(together.knowledge, alone.knowledge, strict=True):
        torch.testing.assert_close(one.strength, other.strength, rtol=1e-3, atol=1e-5)
