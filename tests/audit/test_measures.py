"""Parts of an audit find the same whatever they are told of the model, and measure nothing twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lightning_unlearn import KnowledgeScorer, LitCausalLM
from lightning_unlearn.audit.data import AuditData, read_audit_data
from lightning_unlearn.audit.depth import plan_of
from lightning_unlearn.audit.measures import attacked, rows_measured
from lightning_unlearn.language.attacks import LanguageRelearning
from tests.conftest import question


@pytest.fixture(scope="module")
def data() -> AuditData:
    countries = ("France", "Italy", "Spain", "Cuba", "Peru")
    unseen = [{"question": f"What is the capital of {c}?", "answer": f"{c} has none."} for c in ("Atlantis", "Utopia")]
    return read_audit_data(
        {"forget": [question(c) for c in countries], "retain": [question("Japan")], "never_seen": unseen}
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_relearning_begins_where_the_model_was_measured(
    dtype: Any, tiny_lm: Path, data: AuditData, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = LitCausalLM(tiny_lm, dtype=dtype)
    plan = plan_of("default", data, matched=True, parameters=1_000)
    (attack,) = [part for part in plan.attacks if isinstance(part, LanguageRelearning)]
    plain = rows_measured(module, data, plan.probes, plan.scorer)
    asked = (module, attack, plan.probes, plan.never_seen, plan.scorer)
    measured: list[int] = []
    strengths = KnowledgeScorer.strengths
    monkeypatch.setattr(KnowledgeScorer, "strengths", lambda *args: measured.append(len(args[2])) or strengths(*args))
    alone = attacked(*asked)
    assert len(measured) == len(attack.measured) == 4
    told = attacked(*asked, plain)
    # The copy has fp32 weights: of a model in half precision it is another one.
    assert len(measured) == 4 + (3 if dtype == "float32" else 4)
    assert told == alone
    assert told["details"]["strength"][0] == pytest.approx(
        sum(plain["sets"]["forget"]["strength"][row] for row in told["rows"]) / len(told["rows"]), abs=0.01
    )
    told["details"]["strength"][0] = 1.0
    plain["sets"]["forget"]["strength"] = [1.0] * len(plan.probes)
    if dtype == "float32":
        assert attacked(*asked, plain)["details"]["strength"] == told["details"]["strength"]
