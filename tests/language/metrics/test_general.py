"""General ability: what lm-evaluation-harness is given, and what it leaves behind."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from lightning_unlearn import LitCausalLM
from lightning_unlearn.language.metrics.general import general_ability
from lightning_unlearn.language.metrics.multiple_choice import Choice, choice_scores, choices_of, multiple_choice
from tests.helpers import same


@pytest.fixture
def module(tiny_lm: Path) -> LitCausalLM:
    return LitCausalLM(tiny_lm)


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A stand-in for the harness, which changes what the real one changes."""
    seen: dict[str, Any] = {}

    class HFLM:
        def __init__(self, pretrained: Any, tokenizer: Any, **options: Any) -> None:
            pretrained.eval()
            pretrained.tie_weights()
            pretrained.config.use_cache = not pretrained.config.use_cache
            tokenizer.padding_side, tokenizer.pad_token = "left", "A"
            torch.manual_seed(1234)
            random.seed(0)
            seen.update(model=pretrained, tokenizer=tokenizer, **options)

    def simple_evaluate(model: Any, tasks: list[str], **settings: Any) -> dict[str, Any]:
        seen.update(settings, tasks=tasks)
        if tasks == ["broken"]:
            raise KeyError("broken")
        return {
            "results": {"wmdp_bio": {"alias": "wmdp_bio", "acc,none": 0.25, "acc_stderr,none": "N/A", "f1,strict": 1}},
            "groups": {"wmdp": {"acc,none": 0.3}},
            "n-samples": {"wmdp_bio": {"original": 1273, "effective": 5}},
        }

    package, models, huggingface = (ModuleType(name) for name in ("lm_eval", "models", "huggingface"))
    package.simple_evaluate, huggingface.HFLM = simple_evaluate, HFLM  # type: ignore[attr-defined]
    for name, part in (("", package), (".models", models), (".models.huggingface", huggingface)):
        monkeypatch.setitem(sys.modules, f"lm_eval{name}", part)
    return seen


def test_settings_reach_the_harness_and_nothing_is_left_behind(module: LitCausalLM, harness: dict[str, Any]) -> None:
    module.train()
    module.model.lm_head.eval()
    tokenizer, config = module.tokenizer, module.model.config
    before = (tokenizer.padding_side, tokenizer.pad_token, config.use_cache, random.getstate())
    state, weights = torch.get_rng_state(), {k: v.clone() for k, v in module.state_dict().items()}
    result = general_ability(
        module, ["wmdp"], num_fewshot=3, limit=5, batch_size=4, apply_chat_template=True, system_instruction="Be brief."
    )
    assert harness["model"] is module.model
    assert harness["tokenizer"] is tokenizer
    given = {"num_fewshot": 3, "limit": 5, "batch_size": 4, "apply_chat_template": True, "tasks": ["wmdp"]}
    assert {name: harness[name] for name in given} == given
    assert harness["system_instruction"] == "Be brief."
    assert result.tasks == {"wmdp_bio": {"acc": 0.25, "f1,strict": 1.0}}
    assert result.groups == {"wmdp": {"acc": 0.3}}
    assert result.samples == {"wmdp_bio": 5}
    assert result.settings["num_fewshot"] == 3
    assert (tokenizer.padding_side, tokenizer.pad_token, config.use_cache, random.getstate()) == before
    assert torch.equal(torch.get_rng_state(), state)
    assert module.training
    assert not module.model.lm_head.training
    assert same(module, weights)


def test_after_an_error_everything_is_as_it_was_too(module: LitCausalLM, harness: dict[str, Any]) -> None:
    module.train()
    side = module.tokenizer.padding_side
    with pytest.raises(KeyError, match="broken"):
        general_ability(module, ["broken"])
    assert module.training
    assert module.tokenizer.padding_side == side
    assert "tie_weights" not in vars(module.model)


def test_what_is_missing_is_said(module: LitCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="list of tasks"):
        general_ability(module, "mmlu")
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ImportError, match=r"lightning-unlearn\[lm-eval\]"):
        general_ability(module, ["mmlu"])


def test_a_local_task_of_the_real_harness(module: LitCausalLM, tmp_path: Path) -> None:
    """The same accuracy as our own multiple choice on the same questions."""
    pytest.importorskip("lm_eval")
    questions = [Choice(f"Number {row}?", ("w", "x", "y", "z"), row % 4) for row in range(12)]
    rows = [{"question": q.question, "choices": list(q.choices), "answer": q.answer} for q in questions]
    data = tmp_path / "rows.json"
    data.write_text("\n".join(map(json.dumps, rows)))
    task = {
        "task": "local_choice",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question.strip()}}\nA. {{choices[0]}}\nB. {{choices[1]}}\n"
        "C. {{choices[2]}}\nD. {{choices[3]}}\nAnswer:",
        "doc_to_choice": ["A", "B", "C", "D"],
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    result = general_ability(module, [task], batch_size=4)  # type: ignore[list-item]
    answers = torch.tensor([q.answer for q in questions])
    ours = multiple_choice(choice_scores(module, choices_of(rows)), answers)
    assert result.tasks["local_choice"]["acc"] == pytest.approx(ours.accuracy.value)
    assert result.samples["local_choice"] == 12
