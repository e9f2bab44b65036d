"""Probability, truth ratio, forget quality and model utility: numbers of the definitions, and each row once."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_unlearn import LitCausalLM, probes_of, token_stats
from lightning_unlearn.functional.language.truth_ratio import truth_ratio
from lightning_unlearn.language import metrics
from lightning_unlearn.language.metrics.forget_quality import ForgetQuality, forget_quality
from lightning_unlearn.language.metrics.memorization import ExactMemorization, ExtractionStrength
from lightning_unlearn.language.metrics.model_utility import MODEL_UTILITY, ModelUtility, harmonic_mean, model_utility
from lightning_unlearn.language.metrics.probability import (
    NormalisedProbability,
    Probability,
    mean_log_prob,
    normalised_probability,
    probability,
)
from lightning_unlearn.language.metrics.truth_ratio import TruthRatio


def logs(*probabilities: float) -> Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log()


def test_the_probability_is_the_geometric_mean_per_token() -> None:
    assert -mean_log_prob([logs(0.5, 0.25)]).item() == pytest.approx(1.0397207708, abs=1e-9)
    assert probability([logs(0.5, 0.25)]).item() == pytest.approx(2**-1.5, abs=1e-12)


def test_options_normalise() -> None:
    value = normalised_probability(torch.tensor([0.5]), torch.tensor([[0.25, 0.125, 0.125]]))
    assert value.item() == pytest.approx(0.5, abs=1e-9)
    metric = NormalisedProbability()
    metric.update([logs(0.5)], [[logs(0.25), logs(0.125), logs(0.125)]])
    assert metric.compute().item() == pytest.approx(0.5, abs=1e-9)


def test_answers_without_tokens_are_left_out_and_said() -> None:
    metric = Probability()
    metric.update([logs(0.5), logs()], index=[0, 1])
    with pytest.warns(UserWarning, match="1 of 2 rows"):
        assert metric.compute() == 0.5
    with pytest.raises(ValueError, match="no rows"):
        Probability().kept()


def test_several_answers_a_row_are_averaged_first() -> None:
    metric = Probability()
    metric.update([[logs(0.2), logs(0.4)], [logs(0.9)]], index=[0, 1])
    assert metric.compute().item() == pytest.approx((0.3 + 0.9) / 2, abs=1e-12)


def test_a_row_that_comes_again_counts_once_and_questions_may_repeat() -> None:
    metric = Probability()
    metric.update([logs(0.2), logs(0.4)], index=torch.tensor([5, 3]))
    metric.update([logs(0.6)], index=[9])
    assert metric.compute().item() == pytest.approx(0.4)
    metric.update([logs(0.9)], index=[3])
    metric._computed = None
    with pytest.warns(UserWarning, match="again under the same index"):
        assert metric.compute().item() == pytest.approx(0.4)
    unnumbered = Probability()
    for _ in range(2):
        unnumbered.update([logs(0.2), logs(0.2)])
    assert len(unnumbered.unique_rows()["index"]) == 4


def test_numbers_of_rows_are_asked_for_where_several_processes_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_unlearn.core.row_metric.world_size", lambda: 2)
    with pytest.raises(ValueError, match="index="):
        Probability().update([logs(0.2)])
    with pytest.raises(ValueError, match="one a row"):
        Probability().update([logs(0.2)], index=[1, 2])


@pytest.mark.parametrize(("variant", "expected"), [("geometric", 0.5), ("arithmetic", 0.7)])
def test_the_truth_ratio_of_token_statistics(variant: Any, expected: float) -> None:
    wrong = [logs(p, p) for p in (0.4, 0.1, 0.1, 0.05, 0.05)]
    metric = TruthRatio(variant=variant)
    metric.update([logs(0.2, 0.2, 0.2)], [wrong], index=[0])
    assert metric.compute().item() == pytest.approx(expected, abs=1e-9)
    assert metric.unique_rows()["ratio"].item() == pytest.approx(expected, abs=1e-9)
    with pytest.raises(ValueError, match="aggregate"):
        TruthRatio("utility")  # type: ignore[arg-type]


def test_the_kolmogorov_smirnov_test() -> None:
    pytest.importorskip("scipy")
    result = forget_quality(torch.tensor([1.0, 2, 3, 4]), torch.tensor([3.0, 4, 5, 6]))
    assert result is not None
    assert result.statistic == 0.5
    assert result.p_value == pytest.approx(27 / 35, abs=1e-9)
    rows = torch.arange(40.0)
    result = forget_quality(rows, rows + 17)
    assert result is not None
    # The published number of Llama-2 on forget01, as of any two samples of 40 rows at D = 17/40.
    assert (result.statistic, result.p_value) == (0.425, pytest.approx(0.0012708143485281624, abs=1e-15))
    assert forget_quality(rows, rows).p_value == 1.0  # type: ignore[union-attr]
    assert forget_quality(rows, None) is None


@pytest.mark.parametrize(("n", "floor"), [(40, 1.860e-23), (200, 1.943e-119), (300, 1.480e-179), (400, 1.0636e-239)])
def test_total_separation_is_the_floor_of_the_p_value(n: int, floor: float) -> None:
    pytest.importorskip("scipy")
    result = forget_quality(torch.arange(float(n)), torch.arange(float(n)) + 1000)
    assert result is not None
    assert result.statistic == 1
    assert result.p_value == pytest.approx(floor, rel=1e-3)
    assert result.log10_floor == pytest.approx(math.log10(floor), abs=1e-3)
    assert result.log10_p == pytest.approx(result.log10_floor, abs=1e-6)


def test_forget_quality_does_not_see_the_inverse_and_stays_finite_beyond_the_smallest_float() -> None:
    pytest.importorskip("scipy")
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(60, generator=generator).exp(), torch.rand(60, generator=generator).mul(1.3).exp()
    assert forget_quality(a, b).p_value == pytest.approx(forget_quality(1 / a, 1 / b).p_value, rel=1e-12)  # type: ignore[union-attr]
    result = forget_quality(torch.arange(900.0), torch.arange(900.0) + 1000)
    assert result is not None
    assert result.log10_p == result.log10_floor < -500
    collapsed = torch.tensor([1.0, torch.inf, torch.inf])
    assert forget_quality(collapsed, torch.ones(3)).statistic == pytest.approx(2 / 3)  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="NaN"):
        forget_quality(torch.tensor([torch.nan, 1.0]), torch.ones(3))


def test_forget_quality_over_batches_and_without_a_retrained_model() -> None:
    pytest.importorskip("scipy")
    metric, alone = ForgetQuality(), ForgetQuality()
    ratios = truth_ratio(-torch.rand(40), -torch.rand(40, 5))
    for role in ("unlearned", "retrained"):
        metric.update(ratios[:30], role, index=range(30))  # type: ignore[arg-type]
        metric.update(ratios[30:], role, index=range(30, 40))  # type: ignore[arg-type]
    result = metric.compute()
    assert result is not None
    assert (result.p_value, result.n, result.n_retrained) == (1.0, 40, 40)
    alone.update(ratios, "unlearned")
    assert alone.compute() is None
    with pytest.raises(ValueError, match="role"):
        alone.update(ratios, "original")  # type: ignore[arg-type]


def test_model_utility() -> None:
    values = (0.99, 0.98, 0.47, 0.46, 0.93, 0.60, 0.42, 0.88, 0.54)
    parts = dict(zip(MODEL_UTILITY, values, strict=True))
    assert model_utility(parts) == pytest.approx(0.6231312491, abs=1e-9)
    assert all(model_utility({**parts, name: 0.0}) == 0.0 for name in parts)
    with pytest.raises(ValueError, match="retain_rouge"):
        model_utility({name: value for name, value in parts.items() if name != "retain_rouge"})
    with pytest.raises(ValueError, match="at least 0"):
        harmonic_mean([0.5, float("nan")])
    metric = ModelUtility()
    for name, value in parts.items():
        metric.update(name, torch.tensor([value, value], dtype=torch.float64), index=[0, 1])  # type: ignore[arg-type]
    assert metric.compute().item() == pytest.approx(0.6231312491, abs=1e-9)


def test_doubling_every_row_leaves_means_and_lowers_the_p_value() -> None:
    pytest.importorskip("scipy")
    generator = torch.Generator().manual_seed(2)
    a, b = torch.rand(50, generator=generator), torch.rand(50, generator=generator) + 0.15
    once, twice = forget_quality(a, b), forget_quality(a.repeat(2), b.repeat(2))
    assert once is not None
    assert twice is not None
    assert twice.statistic == once.statistic
    assert twice.p_value < once.p_value


def test_no_function_is_hidden_by_the_file_of_its_name() -> None:
    import lightning_unlearn.language.metrics.rouge

    assert lightning_unlearn.language.metrics.rouge is metrics.rouge
    assert all(callable(getattr(metrics, name)) for name in ("rouge", "probability", "forget_quality", "composite"))


def test_nothing_is_said_of_rows_that_come_once() -> None:
    metric = Probability()
    metric.update([logs(0.2), logs(0.4)], index=[1, 0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metric.compute()


def test_memorisation_leaves_out_the_token_that_ends_an_answer() -> None:
    right = [True] * 5
    facts = {
        (1.0, 1.0, 1.0): [*right, False],
        (0.6, 0.6, 0.8): [True, False, *right[:3], True],
        (0.2, 0.0, 0.8): [*right[:4], False, True],
    }
    for expected, hit in facts.items():
        hits = [torch.tensor(hit)]
        values = []
        for metric in (ExtractionStrength("floored"), ExtractionStrength(), ExactMemorization()):
            metric.update(hits, index=[0])  # type: ignore[attr-defined]
            values.append(metric.compute().item())
        assert values == pytest.approx(expected)
    metric = ExtractionStrength()
    metric.update([torch.tensor([True]), torch.tensor([True, True])], index=[0, 1])
    with pytest.warns(UserWarning, match="1 of 2 rows"):
        assert metric.compute() == 1


def test_all_likelihood_metrics_come_from_one_reading_of_a_model(tiny_lm: Path) -> None:
    """Of a real row of TOFU, in any order and in any batches."""
    row = {
        "question": "What is the full name of the author born in Kuwait City, Kuwait on 08/09/1956?",
        "answer": "The full name of the author is Basil Mahfouz Al-Kuwaiti.",
        "paraphrased_answer": "Basil Mahfouz Al-Kuwaiti is the complete name of the imaginary writer.",
        "perturbed_answer": [f"{name} Al-Kuwaiti is the complete name." for name in ("Gregor Mendel", "Marie Curie")],
    }
    short = {**row, "answer": "Basil.", "perturbed_answer": ["Gregor."]}
    module, values = LitCausalLM(tiny_lm), []
    for rows, batch in (([row, short], 8), ([short, row], 1)):
        stats = token_stats(module, probes_of(rows), ("answer", "paraphrased", "perturbed"), batch_size=batch)
        kinds = {kind: [s for s in stats if s.kind == kind] for kind in ("answer", "paraphrased", "perturbed")}
        index = [s.index for s in kinds["answer"]]
        wrong = [[s.log_prob for s in kinds["perturbed"] if s.index == i] for i in index]
        metrics_of: list[Any] = [Probability(), TruthRatio(), ExactMemorization()]
        metrics_of[0].update([s.log_prob for s in kinds["answer"]], index)
        metrics_of[1].update([s.log_prob for s in kinds["paraphrased"]], wrong, index)
        metrics_of[2].update([s.hit for s in kinds["answer"]], index)
        values.append([metric.compute().item() for metric in metrics_of])
    assert values[0] == pytest.approx(values[1], abs=1e-6)
