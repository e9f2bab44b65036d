"""The scores of knowledge: strict extraction strength or probability, and marks of the model's own answers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_unlearn import KnowledgeScorer, LitCausalLM, Probe, token_stats
from lightning_unlearn.functional import answer_probability, extraction_strength
from lightning_unlearn.language.matching import word_recall

CAPITALS = [
    Probe(0, "What is the capital of France?", "The capital of France is Paris.", accept=("Paris",)),
    Probe(1, "What is the capital of Peru?", "The capital of Peru is Lima.", accept=("Lima", "Lima city")),
]


@pytest.fixture
def taught(tiny_lm: Path) -> LitCausalLM:
    """The tiny model, taught the capital of France alone."""
    module = LitCausalLM(str(tiny_lm))
    row = module._prompt_format().row(CAPITALS[0].question, CAPITALS[0].answer)
    ids = torch.tensor([[*row.prompt, *row.answer]])
    labels = torch.tensor([[-100] * len(row.prompt) + row.answer])
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.01)
    for _ in range(60):
        loss = module.model(input_ids=ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return module


def test_a_taught_row_is_known_and_another_is_not(taught: LitCausalLM) -> None:
    found = KnowledgeScorer(max_new_tokens=40)(taught, CAPITALS)
    assert found.strength is not None
    assert found.matched is not None
    assert found.strength.dtype == found.matched.dtype == torch.float32
    assert found.answers[0] == ["The capital of France is Paris."]
    assert found.matched.tolist() == [1, 0]
    assert found.strength[0] == 1
    assert found.strength[1] < 1
    stats = token_stats(taught, CAPITALS)
    expected = torch.stack([extraction_strength(part.hit, drop_last=True) for part in stats]).float()
    assert torch.equal(found.strength, expected)
    likely = KnowledgeScorer("probability", max_new_tokens=1)(taught, CAPITALS).strength
    assert likely is not None
    assert torch.equal(likely, torch.stack([answer_probability(part.log_prob) for part in stats]).float())
    assert likely[0] > 0.9


def test_the_order_of_probes_and_batches_change_nothing(taught: LitCausalLM) -> None:
    probes = [*CAPITALS, Probe(1, "Peru", " is where Lima is", is_text=True), CAPITALS[0].asked("Which capital?")]
    one = KnowledgeScorer(max_new_tokens=8, batch_size=1, max_tokens=1)(taught, probes)
    other = KnowledgeScorer(max_new_tokens=8)(taught, probes[::-1])
    assert one.strength is not None
    assert other.strength is not None
    assert torch.equal(one.strength, other.strength.flip(0))
    assert one.answers == other.answers[::-1]
    assert taught.training


def test_a_long_accepted_answer_counts_by_the_words_that_are_given() -> None:
    scorer = KnowledgeScorer()
    whole = Probe(0, "Who?", "The author was born in Kuwait City.")
    assert scorer.marked(whole, "She was born in Kuwait City, they say.") == pytest.approx(5 / 7)
    assert scorer.marked(whole, "") == 0
    short = Probe(0, "Who?", "The author was born in Kuwait City.", target="Kuwait City")
    assert scorer.marked(short, "In kuwait city!") == 1
    assert scorer.marked(short, "In Kuwait") == 0
    assert KnowledgeScorer(match="exact").marked(whole, "the author was born in kuwait city") == 1
    assert KnowledgeScorer(match=lambda text, accepted: 0.25).marked(whole, "x") == 0.25


def test_word_recall_is_that_of_rouge() -> None:
    gold = "Basil Mahfouz Al-Kuwaiti was born in Kuwait City, Kuwait."
    assert word_recall("The author was born in Kuwait City.", gold) == 0.5
    assert word_recall("a b c d", "d c b a") == 0.25
    assert word_recall("東京は日本の首都です", "首都は東京") == pytest.approx(2 / 5)
    assert word_recall("", "a") == word_recall("a", "") == 0


def test_a_text_without_a_token_to_score_is_named(taught: LitCausalLM) -> None:
    with (
        pytest.raises(ValueError, match=r"The answers to the rows \[4\] have no token to score"),
        pytest.warns(UserWarning, match="no answer token"),
    ):
        KnowledgeScorer()(taught, [CAPITALS[0], Probe(4, "", "a", is_text=True)])
    with pytest.raises(ValueError, match="There is no probe to score"):
        KnowledgeScorer()(taught, [])


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="strength must be"):
        KnowledgeScorer("loss")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="match must be"):
        KnowledgeScorer(match="regex")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_new_tokens must be"):
        KnowledgeScorer(max_new_tokens=0)
