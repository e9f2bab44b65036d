"""Judges that the user names: sequence classifiers and sentence embeddings, opened from folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_unlearn.language.metrics.entailment import Entailment, disagreement, entailed
from lightning_unlearn.language.metrics.quality import OutputQuality
from lightning_unlearn.language.metrics.semantic import SemanticAccuracy, SentenceEmbeddings, semantic_accuracy
from lightning_unlearn.language.metrics.text_classifier import TextClassifier


@pytest.fixture(scope="module")
def nli(tiny_lm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of random weights with the classes of an entailment model."""
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    folder = tmp_path_factory.mktemp("nli")
    tokenizer = AutoTokenizer.from_pretrained(tiny_lm)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        initializer_range=0.5,
        id2label={0: "ENTAILMENT", 1: "neutral", 2: "contradiction"},
        label2id={"ENTAILMENT": 0, "neutral": 1, "contradiction": 2},
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


def test_the_class_is_found_by_its_name(nli: Path) -> None:
    judge = TextClassifier(nli, "Entailment")
    assert judge.number == 0
    assert TextClassifier(judge.model, "contradiction", judge.tokenizer).number == 2
    with pytest.raises(ValueError, match=r"classes \['ENTAILMENT', 'neutral', 'contradiction'\]"):
        TextClassifier(nli, "clean")
    with pytest.raises(ValueError, match="tokenizer="):
        TextClassifier(judge.model, "neutral")


def test_batches_do_not_change_a_probability_and_the_model_keeps_its_mode(nli: Path) -> None:
    texts = ["What is the capital of France?", "Rome", "The capital of Peru is Lima.", "Cuba"]
    judge = TextClassifier(nli, "neutral", batch_size=3)
    judge.model.train()
    together = judge(texts, texts[::-1])
    assert judge.model.training
    alone = torch.cat([judge([a], [b]) for a, b in zip(texts, texts[::-1], strict=True)])
    assert torch.allclose(together, alone, atol=1e-5)
    assert judge.probabilities(texts).sum(1).tolist() == pytest.approx([1.0] * 4)
    assert judge([]).shape == (0,)
    with pytest.raises(ValueError, match="Pass one a row"):
        judge(texts, ["one"])


class _Judge:
    """Says that a pair is entailed where the hypothesis is a part of the premise."""

    def __init__(self) -> None:
        self.pairs: list[tuple[str, str]] = []

    def chosen(self, premises: list[str], hypotheses: list[str]) -> torch.Tensor:
        self.pairs = list(zip(premises, hypotheses, strict=True))
        return torch.tensor([hypothesis in premise for premise, hypothesis in self.pairs])


def test_direction_short_answers_and_the_gate_of_rouge() -> None:
    pytest.importorskip("rouge_score")
    judge: Any = _Judge()
    predictions, references = ["It is Paris", "It is Rome"], ["Paris", "It is"]
    assert entailed(judge, predictions, references).tolist() == [1, 1]
    assert judge.pairs[0] == ("It is Paris", "Paris")
    assert entailed(judge, predictions, references, direction="truth_entails_answer").tolist() == [0, 0]
    assert judge.pairs[0] == ("Paris", "It is Paris")
    entailed(judge, predictions, ["Paris", "It is the city of Rome"], ["Which capital?", "Which?"])
    assert [pair[1] for pair in judge.pairs] == ["Which capital? Paris", "It is the city of Rome"]
    judge.chosen = lambda a, b: torch.ones(len(a), dtype=torch.bool)
    assert entailed(judge, ["Lima", "Lima"], ["Paris", "Lima"]).tolist() == [0, 1]  # no word in common
    assert entailed(judge, ["Lima"], ["Paris"], min_rouge=0).tolist() == [1]
    with pytest.raises(ValueError, match="direction"):
        entailed(judge, ["a"], ["b"], direction="forget")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="and 1 questions"):
        entailed(judge, predictions, references, ["one"])


def test_what_word_match_takes_for_right_and_entailment_does_not() -> None:
    assert disagreement(torch.tensor([1.0, 1, 0, 0]), torch.tensor([0.0, 1, 0, 0])) == 0.25
    with pytest.raises(ValueError, match="same rows"):
        disagreement(torch.ones(2), torch.ones(3))


def test_entailment_and_gibberish_of_a_folder(nli: Path) -> None:
    pytest.importorskip("rouge_score")
    metric = Entailment(nli, min_rouge=0)
    metric.update(["Paris", "Lima", "Rome"], ["Paris", "Peru", "Rome"], index=[0, 1, 2])
    judge = TextClassifier(nli, "entailment")
    expected = judge.chosen(["Paris", "Lima", "Rome"], ["Paris", "Peru", "Rome"]).double().mean()
    assert metric.compute() == expected
    quality = OutputQuality(clean=TextClassifier(nli, "neutral"))
    quality.update(["Paris", "Lima"], index=[0, 1])
    value = quality.compute().gibberish
    assert value == pytest.approx(1 - judge.probabilities(["Paris", "Lima"])[:, 1].mean().item(), abs=1e-6)


def test_the_truth_has_to_be_closer_than_every_wrong_answer() -> None:
    vectors = {"Paris": [1.0, 0.0], "It is Paris": [0.9, 0.1], "Lima": [0.0, 1.0], "City": [0.8, 0.6], "": [1.0, 0.0]}

    def embed(texts: Any) -> torch.Tensor:
        return torch.tensor([vectors[text] for text in texts])

    predictions, truths = ["It is Paris", "Lima", ""], ["Paris", "Paris", "Paris"]
    wrong = [["Lima", "City"], ["Lima"], ["City"]]
    assert semantic_accuracy(embed, predictions, truths, wrong).tolist() == [1, 0, 0]
    metric = SemanticAccuracy(embed)
    metric.update(predictions, truths, wrong, index=[0, 1, 2])
    assert metric.compute().item() == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="no wrong answer"):
        semantic_accuracy(embed, ["Lima"], ["Paris"], [[]])


def test_embeddings_are_means_over_tokens_and_do_not_see_padding(nli: Path) -> None:
    embed = SentenceEmbeddings(nli, batch_size=2)
    texts = ["Paris", "The capital of Peru is Lima.", "Rome"]
    vectors = embed(texts)
    assert vectors.shape == (3, 32)
    assert torch.allclose(vectors, torch.cat([embed([text]) for text in texts]), atol=1e-5)
    assert SemanticAccuracy(nli).embed(["Paris"]).shape == (1, 32)
