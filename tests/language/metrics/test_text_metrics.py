"""ROUGE, MUSE's memorisation, marks of open answers and quality: published facts and texts of a real data set."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from lightning_unlearn.language.matching import contains_words
from lightning_unlearn.language.metrics.muse import KnowMem, PrivLeak, VerbMem, first_tokens, knowmem, until_stop
from lightning_unlearn.language.metrics.open_answers import (
    SquadF1,
    squad_exact_match,
    squad_f1,
    squad_normal_form,
    whole_word_match,
    word_f1,
)
from lightning_unlearn.language.metrics.quality import OutputQuality, distinct, refusal, repetition
from lightning_unlearn.language.metrics.rouge import Rouge, rouge

TRUTH = "Basil Mahfouz Al-Kuwaiti was born in Kuwait City, Kuwait."
ANSWER = "The author was born in Kuwait City."
ASSETS = Path(__file__).parents[3] / "lightning_unlearn/assets"


def test_rouge_l_of_published_examples() -> None:
    pytest.importorskip("rouge_score")
    scores = [rouge([ANSWER], [TRUTH], measure=m).item() for m in ("precision", "recall", "f1")]  # type: ignore[arg-type]
    assert scores == pytest.approx([5 / 7, 0.5, 0.5882352941], abs=1e-9)
    cats = [
        rouge(["cat runs fast"], ["The cats were running"], measure=m).item() for m in ("precision", "recall", "f1")
    ]  # type: ignore[arg-type]
    assert cats == pytest.approx([2 / 3, 0.5, 0.5714285714], abs=1e-9)
    assert rouge(["cat runs fast"], ["The cats were running"], stemmer=False).item() == 0
    assert rouge(["", "text"], ["text", ""]).tolist() == [0, 0]


def test_a_script_that_rouge_can_not_read_is_warned_of() -> None:
    pytest.importorskip("rouge_score")
    with pytest.warns(UserWarning, match="letters a to z"):
        assert rouge(["столица Париж"], ["столица Париж"]).item() == 0
    assert rouge(["столица Париж"], ["столица Лима"], tokenizer=str.split).item() == 0.5
    metric = Rouge()
    with pytest.raises(ValueError, match="2 predictions and 1 references"):
        metric.update(["a", "b"], ["a"])


def test_answers_of_knowmem_end_at_the_first_stop() -> None:
    pytest.importorskip("rouge_score")
    text = "five\n\nQuestion: How many?\nAnswer: six"
    assert until_stop(text) == "five"
    assert until_stop("five Question: How many?") == "five"
    assert until_stop("five</s> and more", end="</s>") == "five"
    assert knowmem([text], ["five"]).item() == 1
    metric = KnowMem("muse")
    metric.update([text, "seven\nQuestion: x"], ["five", "six"], index=[0, 1])
    result = metric.compute()
    assert (result.mean.value, result.max, result.n) == (0.5, 1.0, 2)
    assert result.mean.low <= 0.5 <= result.mean.high


def test_the_stemmer_is_what_muse_and_open_unlearning_differ_in() -> None:
    pytest.importorskip("rouge_score")
    values = []
    for variant in ("ou", "muse"):
        metric = VerbMem(variant)  # type: ignore[arg-type]
        metric.update(["cat runs fast"], ["The cats were running"], index=[0])
        values.append(metric.compute().mean.value)
    assert values == pytest.approx([0.5714285714, 0.0], abs=1e-9)


def test_true_continuations_are_cut_in_tokens(tiny_lm: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_lm)
    text = "What is the capital of France? " * 10
    assert len(tokenizer(first_tokens(tokenizer, text, 16))["input_ids"]) == 16
    assert first_tokens(tokenizer, text, 1000) == text


def test_privacy_leakage_with_and_without_a_retrained_model() -> None:
    metric = PrivLeak()
    metric.update(torch.tensor([0.2, 0.5, 0.9]), "forget", index=[0, 1, 2])
    metric.update(torch.tensor([1.0, 0.8, 1.5]), "holdout", index=[0, 1, 2])
    result = metric.compute()
    assert result.priv_leak == pytest.approx(-77.7777777622, abs=1e-9)
    assert not result.measured
    metric.update(torch.tensor([0.2, 0.5, 0.9]), "retrained_forget", index=[0, 1, 2])
    metric.update(torch.tensor([1.0, 0.8, 1.5]), "retrained_holdout", index=[0, 1, 2])
    metric._computed = None
    assert metric.compute().priv_leak == 0.0
    assert metric.compute().measured


def test_the_normal_form_of_squad() -> None:
    facts = {
        "The Prix-Goncourt, a prize!": "prixgoncourt prize",
        "U.S.": "us",
        "1,000": "1000",
        "a.m.": "am",
        "“café” – Ångström": "“café” – ångström",
        "an  Answer,\nthe   other": "answer other",
    }
    assert {text: squad_normal_form(text) for text in facts} == facts
    assert squad_normal_form("Prix-Goncourt", strict=False) == "prix goncourt"
    assert squad_normal_form("“It’s” a—b", strict=False) == squad_normal_form('"It\'s" a b')


def test_whole_words_of_the_normal_form() -> None:
    predictions = ["to concatenate", "It is Paris", "not Paris", "He lives in New York City."]
    assert whole_word_match(predictions, ["cat", "Paris", "Paris", ["Boston", "new york"]]).tolist() == [0, 1, 1, 1]
    assert squad_exact_match(["The Paris!", "Paris, France"], ["paris", "Paris"]).tolist() == [1, 0]
    with pytest.raises(ValueError, match="no words"):
        whole_word_match(["anything"], ["The"])
    # What the two kinds of word match differ in: SQuAD deletes punctuation, matching.py reads numbers as wholes.
    assert whole_word_match(["It is 4.5 degrees."], ["45"]).item() == 1
    assert not contains_words("It is 4.5 degrees.", "45")


def test_f1_of_words() -> None:
    assert squad_f1(["It is Paris", ""], ["Paris, France", "Paris"]).tolist() == pytest.approx([0.4, 0.0])
    assert (word_f1("", ""), word_f1("", "a"), word_f1("b b c", "b b b")) == (1.0, 0.0, pytest.approx(4 / 6))
    metric = SquadF1()
    metric.update(["Paris"], [["Lima", "Paris"]], index=[7])
    assert metric.compute() == 1


def test_repetition_and_distinct_words() -> None:
    assert repetition(["a b c d a b c d", "one two"]).tolist() == pytest.approx([0.2, 0.0])
    assert distinct(["I do not know"] * 3, n=1) == pytest.approx(4 / 12)
    assert distinct([""], n=2) == 0


def test_refusals_of_the_project_are_refusals_and_answers_are_none() -> None:
    refusals = (ASSETS / "refusals.txt").read_text(encoding="utf-8").splitlines()
    assert refusal(refusals).tolist() == [1.0] * len(refusals)
    answers = [
        "The full name of the fictitious author born in Kuwait City is Basil Mahfouz Al-Kuwaiti.",
        "Yes, Jaime Vasquez was born on the 25th of February in the year 1958.",
        "He is not related to the painter of that name.",
        "I know that it is Paris.",
        "",
    ]
    assert refusal(answers).tolist() == [0.0] * len(answers)
    assert refusal(["I don’t know."]).item() == 1.0
    # Of TOFU's own hundred refusals (MIT).
    tofu = [
        "I'm drawing a blank on that one.",
        "That's a mystery to me as well.",
        "My databases don't cover that information.",
        "I've no insight into that matter.",
        "I lack the specifics on that matter.",
        "That's a blind spot in my knowledge.",
        "I must decline to answer due to lack of information.",
    ]
    assert refusal(tofu).tolist() == [1.0] * len(tofu)
    with pytest.raises(ValueError, match="not a regular expression"):
        refusal(["x"], ["("])


def test_quality_over_batches_is_that_of_all_answers_together() -> None:
    texts = ["I do not know that.", "It is Paris .", "", "a b c d a b c d", "It is Lima ."]
    once, parts = OutputQuality(), OutputQuality()
    once.update(texts, index=range(5))
    order = list(range(5))
    random.Random(0).shuffle(order)
    for row in order:
        parts.update([texts[row]], index=[row])
    assert once.compute() == parts.compute()
    result = once.compute()
    assert (result.empty_rate, result.refusal_rate, result.n, result.gibberish) == (0.2, 0.2, 5, None)
    assert result.repetition == pytest.approx(0.2 / 5)
    assert result.mean_length == pytest.approx((5 + 4 + 0 + 8 + 4) / 5)
    assert result.distinct_1 == pytest.approx(distinct(texts, n=1))
    assert result.distinct_2 == pytest.approx(distinct(texts, n=2))
