"""Model cards: written, read again, and merged into what is there."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from lightning_unlearn import Head, decide, gate, model_card
from lightning_unlearn.audit.verdict import Verdict
from tests.audit.sets import RETAINED, SOUND, SUPPRESSED, kept, result_of

HEAD = Head(3, "ab" * 32)


@pytest.fixture
def verdict() -> Verdict:
    gates = [result_of(SOUND, comparisons=2), result_of(SUPPRESSED, "int4", comparisons=2, variant="nf4")]
    return decide(gates, [kept(RETAINED)])


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        pytest.fail("the network was called")

    monkeypatch.setattr("socket.socket.connect", refuse)


def test_a_card_is_read_again_with_the_same_results(verdict: Verdict, tmp_path: Path) -> None:
    card = model_card(verdict, "a model", HEAD, "56475aa75463474c", "cd" * 32, base_model="org/base", license="mit")
    card.save(tmp_path / "README.md")
    again = ModelCard.load(tmp_path / "README.md")
    assert again.data.to_dict() == card.data.to_dict()
    first, second = again.data.eval_results
    assert (first.metric_type, first.dataset_type, first.dataset_config) == ("kappa", "private", "base")
    assert second.metric_value == verdict.evidence.gates[1].kappa
    assert second.metric_args["lower"] == verdict.evidence.gates[1].kappa_lower
    assert (second.metric_config, second.metric_args["n"], second.verified) == ("nf4", 100, None)
    assert again.data.to_dict()["unlearning"] == {
        "verdict": "suppressed but recoverable",
        "rule": "lu-verdict/3",
        "record_head": f"3:{'ab' * 32}",
        "key_id": "56475aa75463474c",
        "content_hash": "cd" * 32,
    }
    assert again.data.tags == ["unlearning", "machine-unlearning"]
    assert (again.data.license, again.data.base_model) == ("mit", "org/base")
    assert "| int4 (nf4) | score | 0.682 [0.600, 0.764] | 100 | not established |" in again.text
    assert f"--expect_head 3:{'ab' * 32}" in again.text


OLD = """---
license: apache-2.0
tags:
- chat
pipeline_tag: text-generation
my_key: kept
---

# My model

A text with --- and `code`.
"""


def test_a_page_that_is_there_is_kept_and_written_to_twice(verdict: Verdict, tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text(OLD)
    model_card(verdict, "a", HEAD, existing=page).save(page)
    model_card(verdict, "a", Head(4, "ef" * 32), existing=page).save(page)
    card = ModelCard.load(page)
    data = card.data.to_dict()
    assert (data["license"], data["pipeline_tag"], data["my_key"]) == ("apache-2.0", "text-generation", "kept")
    assert data["tags"] == ["chat", "unlearning", "machine-unlearning"]
    assert data["unlearning"]["record_head"].startswith("4:")
    assert card.text.startswith("\n# My model\n\nA text with --- and `code`.\n")
    assert card.text.count("## Unlearning") == 1
    assert "ab" * 32 not in page.read_text()
    assert len(card.data.eval_results) == 2
    page.write_text(page.read_text() + "\nAdded below.\n")
    model_card(verdict, "a", HEAD, existing=page).save(page)
    assert page.read_text().endswith("Added below.\n")


def test_results_of_others_are_kept(verdict: Verdict, tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    other = EvalResult("text-generation", "mmlu", "MMLU", "accuracy", 0.5, verified=True)
    data = ModelCardData(model_name="theirs", eval_results=[other])
    page.write_text(f"---\n{data.to_yaml()}\n---\n")
    card = model_card(verdict, "ours", existing=page)
    assert card.data.model_name == "theirs"
    assert card.data.eval_results[0] == other
    assert len(card.data.eval_results) == 3


def test_a_page_without_metadata_gets_some(verdict: Verdict, tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text("# Only a text\n")
    card = model_card(verdict, "a", existing=page)
    assert card.text.startswith("\n# Only a text\n\n<!-- lightning-unlearn: begin -->")
    assert card.data.tags == ["unlearning", "machine-unlearning"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("---\n[\n---\n", "metadata of .* can't be read"),
        ("---\nmodel-index:\n- results: 1\n---\n", "metadata of .* can't be read"),
        ("---\n{}\n---\n<!-- lightning-unlearn: begin -->\n", "once each, or neither"),
    ],
)
def test_a_damaged_page_is_refused(verdict: Verdict, text: str, message: str, tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text(text)
    with pytest.raises(ValueError, match=message):
        model_card(verdict, "a", existing=page)


def test_a_gate_that_says_nothing_has_no_result(tmp_path: Path) -> None:
    blind = gate([0.0] * 40, [0.0] * 40, [0.0] * 40, name="int8", comparisons=2)
    card = model_card(decide([result_of(SOUND, comparisons=2), blind], [kept(RETAINED)]), "a")
    assert [result.dataset_config for result in card.data.eval_results] == ["base"]
    assert "| int8 | score | undefined | 40 | inconclusive |" in card.text
