from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_unlearn import Calibration, DialogueJudge, LitCausalLM, UnlearningReport, run_audit
from lightning_unlearn.audit.collect import Conditions
from lightning_unlearn.audit.conversation_section import conversation_section
from lightning_unlearn.audit.conversations import ConversationJudge, Conversations, open_judge, rated_conversations
from lightning_unlearn.audit.data import AuditData, read_audit_data
from lightning_unlearn.audit.models import AuditedModel
from lightning_unlearn.audit.parts import Parts
from lightning_unlearn.report.sections import Examples, Measurement, Section
from tests.conftest import question
from tests.dialogue.echo import Contrary, EchoJudge, collapsed, echo, trusted

CONDITIONS = Conditions("quick", False, 0, "32", torch.device("cpu"), False)


@pytest.fixture(scope="module")
def data() -> AuditData:
    forget, retain = ([question(c) for c in part] for part in (("France", "Italy", "Spain", "Cuba"), ("Japan", "Peru")))
    return read_audit_data({"forget": forget, "retain": retain})


@pytest.fixture
def folders(tiny_lm: Path, tmp_path: Path) -> list[AuditedModel]:
    """Two models of other weights."""
    module = LitCausalLM(tiny_lm)
    with torch.no_grad():
        next(module.parameters()).mul_(1.5)
    module.save_pretrained(tmp_path / "other")
    return [AuditedModel("original", str(tiny_lm)), AuditedModel("unlearned", str(tmp_path / "other"))]


@pytest.fixture
def _talks(monkeypatch: pytest.MonkeyPatch, tiny_lm: Path) -> None:
    """The original says what it is asked, and the other model has collapsed."""

    def answer(self: LitCausalLM, asked: Any, **_: Any) -> list[str]:
        return echo(asked) if str(self.hparams["model"]) == str(tiny_lm) else collapsed(asked)

    monkeypatch.setattr(LitCausalLM, "answer", answer)


def measurements(section: Section) -> dict[str, Measurement]:
    return {part.key: part for part in section.parts if isinstance(part, Measurement)}


def talk(judge: EchoJudge, folders: list[AuditedModel], data: AuditData, folder: Path) -> Conversations:
    asked = ConversationJudge(judge, trusted())
    return rated_conversations(asked, folders, data, CONDITIONS, Parts(folder), None, lambda line: None)


@pytest.mark.usefixtures("_talks")
def test_a_collapsed_model_beside_the_original(folders: list[AuditedModel], data: AuditData, tmp_path: Path) -> None:
    judge = EchoJudge()
    found = talk(judge, folders, data, tmp_path)
    assert found.controls.valid
    parts = measurements(section := conversation_section(found))
    assert {parts[f"AUC of originals over known-bad controls ({kind})"].outcome for kind in found.controls.auc} == {
        "pass"
    }
    neutral = parts["rating, neutral"]
    assert neutral.value is not None
    assert neutral.anchors.original is not None
    assert neutral.value < neutral.anchors.original - 1
    lost = parts["rating lost on retain and neutral requests"]
    assert lost.interval is not None
    assert lost.interval.low is not None
    assert lost.interval.low > 1
    (texts,) = [part for part in section.parts if isinstance(part, Examples)]
    assert [row.set for row in texts.rows].count("forget") == 3
    assert all(output is None for row in texts.rows if row.set == "forget" for output in row.outputs)
    kept = [json.loads(path.read_text()) for path in (tmp_path / "parts").iterdir()]
    assert len(kept) == 2
    assert "France" not in json.dumps(kept)
    rated = judge.rated
    talk(judge, folders, data, tmp_path)  # goes on where it was
    assert judge.rated == rated
    assert measurements(conversation_section(talk(judge, folders, data, tmp_path))) == parts


@pytest.mark.usefixtures("_talks")
def test_ratings_that_are_not_valid_are_not_shown_as_results(
    folders: list[AuditedModel], data: AuditData, tmp_path: Path
) -> None:
    section = conversation_section(talk(EchoJudge(deaf_to="empty"), folders, data, tmp_path))
    parts = measurements(section)
    assert parts["AUC of originals over known-bad controls (empty)"].outcome == "fail"
    for name in ("retain", "neutral", "forget"):
        assert (parts[f"rating, {name}"].value, parts[f"rating, {name}"].outcome) == (None, "not run")
        assert "empty" in parts[f"rating, {name}"].reason
    assert section.note.startswith("Invalid: the judge does not tell known-bad controls")


def test_an_audit_has_the_section(tiny_lm: Path, folders: list[AuditedModel], data: AuditData, tmp_path: Path) -> None:
    models = [model.source for model in folders]
    result = run_audit(
        *models, data, tmp_path / "audit", depth="quick", precision="32", judge=EchoJudge(), calibration=trusted()
    )
    section = result.report.section("dialogue-quality")
    assert "rating, retain" in measurements(section)  # type: ignore[arg-type]
    assert "Dialogue quality" in (tmp_path / "audit" / "report.html").read_text()
    read = UnlearningReport.read(tmp_path / "audit").section("dialogue-quality")  # its conversations are hidden
    assert measurements(read) == measurements(section)  # type: ignore[arg-type]
    without = run_audit(*models, data, tmp_path / "audit", depth="quick", precision="32").report
    (reason,) = without.section("dialogue-quality").parts  # type: ignore[union-attr]
    assert "needs a judge" in reason.reason  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="judge is the original model itself"):
        run_audit(
            *models, data, tmp_path / "audit", depth="quick", precision="32", judge=tiny_lm, calibration=trusted()
        )


def test_a_judge_needs_a_calibration(tiny_lm: Path, tmp_path: Path) -> None:
    assert open_judge(None, None) is None
    for judge, calibration, error, match in (
        (EchoJudge(), None, ValueError, "no calibration"),
        (None, trusted(), ValueError, "there is no judge"),
        (EchoJudge(), tmp_path / "missing.json", FileNotFoundError, "There is no calibration"),
    ):
        with pytest.raises(error, match=match):
            open_judge(judge, calibration)
    rows = [
        {
            "turns": [{"role": "user", "text": "one two"}, {"role": "assistant", "text": "one " * (i % 4) + "two"}],
            "ratings": [5 - i % 4, 5 - i % 4],
        }
        for i in range(40)
    ]
    path = tmp_path / "rated.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    opened = open_judge(EchoJudge(), path)
    assert opened is not None
    assert opened.calibration.trusted
    opened.calibration.save(tmp_path / "calibration.json")
    again = open_judge(EchoJudge(), tmp_path / "calibration.json")
    assert again is not None
    assert again.calibration.spearman == opened.calibration.spearman
    for path in (tmp_path / "calibration.json", again.calibration):
        with pytest.raises(ValueError, match="calibration belongs to another judge"):
            open_judge(Contrary(), path)
    with pytest.raises(ValueError, match="do not agree with people"):
        open_judge(EchoJudge(), Calibration().fit(torch.arange(20.0), 3 + torch.arange(20) % 2))


def test_a_judge_that_an_audit_opens_has_the_precision_of_the_audit(long_lm: Path) -> None:
    calibration = Calibration().fit(torch.arange(20.0), 1 + torch.arange(20) // 5)
    assert calibration.trusted
    for dtype, expected in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        opened = open_judge(str(long_lm), calibration, dtype=dtype)  # type: ignore[arg-type]
        assert opened is not None
        assert {parameter.dtype for parameter in opened.judge.lm.parameters()} == {expected}  # type: ignore[attr-defined]


def test_what_a_rating_depends_on(tiny_lm: Path) -> None:
    judge = DialogueJudge(str(tiny_lm))
    first = ConversationJudge(judge, trusted()).settings()
    assert first == ConversationJudge(DialogueJudge(str(tiny_lm)), trusted()).settings()
    for changed in (
        DialogueJudge(str(tiny_lm), task="usr_overall"),
        DialogueJudge(str(tiny_lm), shots=2),
        DialogueJudge(LitCausalLM(tiny_lm, dtype="bfloat16")),
    ):
        assert ConversationJudge(changed, trusted()).settings() != first
    json.dumps(first)  # a key of a part
