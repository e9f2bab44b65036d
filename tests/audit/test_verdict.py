"""Verdicts of the worked result sets, and the order of the rules."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from lightning_unlearn.audit import GateResult, Verdict, decide, degeneration, gate
from lightning_unlearn.audit.evidence import Membership, Thresholds
from lightning_unlearn.audit.gates import GATES
from tests.audit.sets import RETAINED, RUINED, SOUND, SOUND_OF_20, SUPPRESSED, UNTOUCHED, WRECK, Counts, kept, result_of


def gates(**differing: Counts) -> list[GateResult]:
    """All gates, sound but for some."""
    return [result_of(differing.get(name, SOUND), name, comparisons=len(GATES)) for name in GATES]


def judged(gates: list[GateResult], **changes: Any) -> Verdict:
    return decide(gates, [kept(RETAINED)], **changes)


def test_a_sound_model_has_forgotten() -> None:
    verdict = judged(gates())
    assert verdict.name == "forgotten"
    assert verdict.headline.startswith(
        "Forgotten: in 8 tests the model is shown to know at most 10% of what the original"
    )
    assert "a model retrained without the rows" in verdict.headline
    assert verdict.not_run == {}
    assert (verdict.thresholds.d, verdict.thresholds.D, verdict.rule) == (0.10, 0.25, "lu-verdict/3")


def test_twenty_rows_are_undecided_and_85_are_needed() -> None:
    verdict = judged([result_of(SOUND_OF_20)])
    assert (verdict.name, verdict.needed) == ("undecided", 85)
    assert "About 85 probes would decide" in verdict.headline


def test_a_model_that_answers_at_four_bits_is_suppressed_but_recoverable() -> None:
    verdict = judged(gates(int4=SUPPRESSED))
    assert verdict.name == "suppressed but recoverable"
    assert "comes back under weights rounded to 4 bits (kappa 0.68 [" in verdict.headline
    assert (
        "share of the original's knowledge of the rows that is left, beyond what the control knows" in verdict.headline
    )
    assert "Do not record the request as carried out" in verdict.action


def test_an_untouched_model_has_not_forgotten() -> None:
    assert judged(gates(**dict.fromkeys(GATES, UNTOUCHED))).name == "not forgotten"
    assert judged(gates(base=UNTOUCHED)).name == "not forgotten"


def test_a_wreck_is_damaged_though_it_passes_every_gate() -> None:
    wrecked = gates(**dict.fromkeys(GATES, WRECK))
    assert all(gate.passed for gate in wrecked)
    verdict = decide(wrecked, [kept(RUINED)])
    assert verdict.name == "damaged"
    assert "retain is at 0.02, the control at 0.90" in verdict.headline
    assert "is left" not in verdict.headline
    left = decide(gates(int8=UNTOUCHED), [kept(RUINED)]).headline
    assert "knowledge of the rows is left, as shown by weights rounded to 8 bits (kappa" in left


@pytest.mark.parametrize(
    ("control", "reference"), [("retrained", "control"), ("base", "original"), ("matched rows", "original")]
)
def test_damage_is_told_against_the_model_that_abilities_are_compared_with(control: Any, reference: str) -> None:
    empty = degeneration("empty", [0.0] * 100, [1.0] * 30 + [0.0] * 70)
    verdict = decide(gates(), [kept(RUINED)], [empty], control=control, perplexity=2.0)
    assert f"retain is at 0.02, the {reference} at 0.90" in verdict.headline
    assert f"30% of the answers are empty, against 0% of the {reference}'s" in verdict.headline
    assert f"2.0 times the {reference}'s" in verdict.headline


def test_a_model_is_not_called_forgotten_without_a_look_at_what_it_was_to_keep() -> None:
    verdict = decide(gates(**dict.fromkeys(GATES, WRECK)))
    assert verdict.name == "undecided"
    assert "what the model was to keep was not measured" in verdict.headline


def test_degenerate_answers_and_perplexity_are_damage() -> None:
    empty = degeneration("empty", [0.0] * 100, [1.0] * 30 + [0.0] * 70)
    some = degeneration("empty", [0.0] * 100, [1.0] * 12 + [0.0] * 88)
    assert judged(gates(), quality=[empty]).name == "damaged"
    assert "30% of the answers are empty" in judged(gates(), quality=[empty]).headline
    assert judged(gates(), quality=[some]).name == "forgotten"  # 12 of 100 do not establish more than 10 %
    assert judged(gates(), perplexity=1.6).name == "damaged"
    assert judged(gates(), perplexity=1.5).name == "forgotten"


def test_plain_questions_between_the_thresholds_are_partly_forgotten() -> None:
    partly: Counts = {(1, 0, 0): 76, (1, 0, 1): 20, (0, 0, 0): 4}
    verdict = judged([result_of(partly)])
    assert verdict.evidence.gates[0].kappa == pytest.approx(20 / 96)
    assert verdict.name == "partly forgotten"
    both = judged([result_of(partly, comparisons=2), result_of(SUPPRESSED, "int4", comparisons=2)])
    assert both.name == "partly forgotten"
    assert "More comes back under weights rounded to 4 bits" in both.headline


def test_nothing_to_forget_or_files_that_do_not_match_give_no_verdict() -> None:
    ignorant: Counts = {(1, 1, 1): 40, (1, 0, 0): 15, (0, 0, 0): 45}
    verdict = judged([result_of(ignorant)])
    assert verdict.name == "no verdict"
    assert "score 0.15; at least 0.20 is needed" in verdict.headline
    alone = judged([gate([0.0] * 95 + [1.0] * 5, None, [0.0] * 100)], control="none")
    assert "the original model knows hardly anything of these rows" in alone.headline
    assert alone.not_run["base (score)"] == "inconclusive: here the original scores 0.05, which is too low to tell"
    assert judged(gates(), faults=["the tokenizers differ"]).headline.startswith("No verdict: the tokenizers differ.")


def test_a_stress_under_which_the_original_fails_too_is_named_and_does_not_count() -> None:
    unusable: Counts = {(0, 0, 0): 95, (1, 0, 0): 5}
    verdict = judged(gates(int4=unusable))
    assert verdict.name == "forgotten"
    assert "in 7 tests" in verdict.headline
    assert "too close to tell apart" in verdict.not_run["int4 (score)"]


def test_both_scores_must_hold() -> None:
    def scored(strength: Counts, matched: Counts) -> Verdict:
        both = {"extraction_strength": strength, "matched": matched}
        return judged([result_of(counts, comparisons=2, score=score) for score, counts in both.items()])

    blind: Counts = {(0, 0, 0): 95, (1, 0, 0): 5}
    assert scored(SOUND, SOUND).name == "forgotten"
    assert scored(SOUND, UNTOUCHED).name == "not forgotten"
    verdict = scored(SOUND, blind)
    assert verdict.name == "undecided"
    assert "by matched, the original itself hardly shows" in verdict.headline
    assert scored(UNTOUCHED, blind).name == "not forgotten"
    assert scored(blind, blind).name == "no verdict"


def test_without_a_control_the_best_is_no_trace() -> None:
    o, u = [1.0] * 96 + [0.0] * 4, [1.0] * 2 + [0.0] * 98
    verdict = judged([gate(o, None, u)], control="none")
    assert verdict.name == "no trace found, no control"
    assert verdict.headline.endswith("Control: none.")
    assert judged([gate(o, None, o)], control="none").name == "not forgotten"


def test_the_gates_that_were_not_run_are_listed_with_their_reasons() -> None:
    verdict = judged([result_of(SOUND)], not_run={"relearning": "too little memory"})
    assert verdict.not_run == {name: "not run" for name in GATES if name != "base"} | {
        "relearning": "too little memory"
    }
    assert "One score alone" in verdict.notes[0]


def test_a_model_that_knows_less_than_a_control_is_traceable() -> None:
    less: Counts = {(1, 1, 0): 40, (1, 0, 0): 60}
    verdict = judged([result_of(less)])
    assert verdict.name == "forgotten"
    assert verdict.headline.startswith("Forgotten (traceable)")
    assert "knows less than one that never saw the rows" in " ".join(verdict.notes)
    told = judged(gates(), membership=Membership(0.2, 0.4, 0.6))
    assert told.headline.startswith("Forgotten (traceable)")
    assert "AUC of 0.200, outside the control's 0.400 to 0.600" in told.notes[-1]
    assert "traceable" not in judged(gates(), membership=Membership(0.5, 0.4, 0.6)).headline


def test_a_small_request_is_labelled() -> None:
    verdict = judged(gates(), rows=2)
    assert verdict.headline.startswith("Forgotten, for these rows and phrasings")
    assert "A small request" in verdict.notes[-1]


def test_gates_of_other_thresholds_or_another_number_of_tests_are_refused() -> None:
    with pytest.raises(ValueError, match=r"1 comparisons, but the verdict has 2 tests. Give gate\(.*comparisons=2"):
        decide([result_of(SOUND), result_of(SOUND, "int4")])
    with pytest.raises(ValueError, match=r"but the verdict has d=0\.2"):
        decide([result_of(SOUND)], thresholds=Thresholds(d=0.2))
    with pytest.raises(ValueError, match="needs the gate 'base'"):
        decide([result_of(SOUND, "int4")])
    with pytest.raises(ValueError, match=r"base \(score\) is there twice"):
        decide([result_of(SOUND, comparisons=2)] * 2)
    with pytest.raises(ValueError, match="control must be"):
        decide([result_of(SOUND)], control="gold")  # type: ignore[arg-type]


def test_a_headline_names_what_was_tried_in_words_once_each() -> None:
    both = [replace(result_of(SUPPRESSED, "int4", comparisons=4), score=score) for score in ("strength", "answers")]
    relearned = replace(result_of(SUPPRESSED, "relearning_out_of_domain", comparisons=4), variant="form_5e-05")
    headline = judged([result_of(SOUND, "base", comparisons=4), *both, relearned]).headline
    assert headline.count("weights rounded to 4 bits") == headline.count("training on unrelated rows") == 1
    assert "int4" not in headline
    assert "form_5e-05" not in headline
    everything = judged([gates()[0], *(result_of(SUPPRESSED, name, comparisons=8) for name in GATES if name != "base")])
    assert "and 3 more" in everything.headline


def test_kappa_is_explained_without_a_control_too() -> None:
    known = gate([1.0] * 40, None, [1.0] * 40)
    headline = decide([known], [kept(RETAINED)], control="none").headline
    assert "left, beyond what the control" not in headline
    assert "share of the original's knowledge of the rows that is left." in headline
    assert "Kappa" not in judged(gates()).headline
