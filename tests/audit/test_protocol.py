from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from transformers import AutoTokenizer

from lightning_unlearn import (
    Audit,
    GradientAscent,
    LanguageDataModule,
    LitCausalLM,
    UnlearningReport,
    doctor,
    load_public_key,
    new_key_pair,
    run_audit,
    verify_record,
)
from lightning_unlearn.audit.collect import Collector, Conditions
from lightning_unlearn.audit.data import AuditData, read_audit_data
from lightning_unlearn.audit.depth import plan_of
from lightning_unlearn.audit.models import AuditedModel, check_tokenizers, tokenizer_facts
from lightning_unlearn.audit.parts import Parts
from lightning_unlearn.language.prompt_format import PromptFormat
from tests.conftest import question
from tests.helpers import trainer

QUESTIONS = ["Name the capital of {}.", "Which city governs {}?", "{}: its capital?", "Capital of {}?", "{} has which?"]


def rows(*countries: str) -> list[dict[str, Any]]:
    return [
        question(country) | {"paraphrased_question": [text.format(country) for text in QUESTIONS]}
        for country in countries
    ]


@pytest.fixture(scope="module")
def data() -> AuditData:
    unseen = [{"question": f"What is the capital of {c}?", "answer": f"{c} has none."} for c in ("Atlantis", "Utopia")]
    return read_audit_data(
        {
            "forget": rows("France", "Italy", "Spain", "Cuba"),
            "retain": [question("Japan"), question("Peru")],
            "never_seen": unseen,
            "neutral": [{"text": "The capital of Japan is Tokyo."}],
        }
    )


@pytest.fixture(scope="module")
def models(tiny_lm: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model that was taught all rows, two that were taught the retain rows alone, and one without any training."""
    folder = tmp_path_factory.mktemp("models")
    taught = [question(c) for c in ("France", "Italy", "Spain", "Cuba", "Japan", "Peru")]
    for name, part in {"original": taught, "retrained": taught[4:], "control": taught[4:]}.items():
        module = LitCausalLM(tiny_lm, lr=2e-3 if name == "control" else 3e-3)
        loader = LanguageDataModule(forget=part, retain=part, batch_size=6)
        loader.prompt = module._prompt_format()
        loader.setup("fit")
        batches = [loader.sets["forget"][i] for i in range(len(part))]
        run = L.Trainer(
            max_epochs=60, logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu",
            enable_model_summary=False, devices=1,
        )  # fmt: skip
        run.fit(module, torch.utils.data.DataLoader(batches, batch_size=6, collate_fn=loader.collate_fn))
        module.save_pretrained(folder / name)
    return {**{name: folder / name for name in ("original", "retrained", "control")}, "random": tiny_lm}


def test_three_models_have_three_verdicts(models: dict[str, Path], data: AuditData, tmp_path: Path) -> None:
    data = replace(data, neutral=[])  # models of six rows have no use for plain text
    verdicts = {
        name: run_audit(
            models["original"], models[name], data, tmp_path / name, models["control"], depth="quick", precision="32"
        ).verdict
        for name in ("original", "retrained", "random")
    }
    assert verdicts["original"].name == "not forgotten"
    assert verdicts["retrained"].name != "not forgotten"
    assert all(
        gate.kappa < 0.1 for gate in verdicts["retrained"].evidence.gates if gate.name in verdicts["retrained"].gates
    )
    assert verdicts["random"].name == "damaged"
    report = UnlearningReport.read(tmp_path / "original")
    assert report.headline is not None
    assert report.headline.word == "not forgotten"
    assert "Paris" not in (tmp_path / "original" / "report.json").read_text()  # hidden by default
    assert "Tokyo" in (tmp_path / "original" / "report.html").read_text()
    parts = [json.loads(file.read_text()) for file in (tmp_path / "original" / "parts").iterdir()]
    assert "Paris" not in json.dumps([part["outcome"] for part in parts])


def test_finished_parts_are_not_computed_again(
    models: dict[str, Path], data: AuditData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    own = AuditedModel.opened

    def counted(self: AuditedModel, *arguments: Any) -> Any:
        opened.append(self.role)
        return own(self, *arguments)

    monkeypatch.setattr(AuditedModel, "opened", counted)
    arguments = (models["original"], models["random"], data, tmp_path)
    first = run_audit(*arguments, depth="quick", precision="32")
    assert opened == ["original", "unlearned"]
    lost = next((tmp_path / "parts").glob("int8-*"))  # as if it had been killed there
    kept = {file: file.stat().st_mtime_ns for file in (tmp_path / "parts").iterdir() if file != lost}
    model = json.loads(lost.read_text())["model"]
    lost.unlink()
    again = run_audit(*arguments, depth="quick", precision="32")
    assert opened[2:] == ["original" if model == AuditedModel("original", models["original"]).identity else "unlearned"]
    assert again.verdict == first.verdict
    assert [finding.file.name for finding in doctor(tmp_path)] == ["rows.secret"]
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    new_key_pair(tmp_path / "key.pem", tmp_path / "pub.pem", None)
    run_audit(*arguments, depth="quick", precision="32", key=tmp_path / "key.pem")
    assert len(opened) == 3
    faults = verify_record(
        tmp_path / "record.jsonl",
        load_public_key(tmp_path / "pub.pem"),
        models={"before": models["original"], "after": models["random"]},
        report=tmp_path / "report.json",
    )
    assert faults == []
    with pytest.raises(FileExistsError, match="another audit: it differs in unlearned"):
        run_audit(models["original"], models["retrained"], data, tmp_path, depth="quick", precision="32")
    # What was found of the original serves the audit of another model, in the precision that it was begun in.
    other = (models["original"], models["retrained"], data, tmp_path / "other")
    assert run_audit(*other, depth="quick", anchors=tmp_path).report.provenance["precision"] == "fp32"
    assert opened[3:] == ["unlearned"]


def test_every_attack_of_the_default_depth_runs(
    models: dict[str, Path], data: AuditData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run_audit(models["original"], models["random"], data, tmp_path, depth="default", precision="32")
    gates = {gate.gate for gate in result.verdict.evidence.gates}
    assert gates >= {"base", "paraphrase", "int8", "int4", "relearning", "relearning_out_of_domain", "sampling"}
    assert "activation_noise" in gates
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.splitlines()[1:5]] == ["depth", "quick", "default", "full"]
    assert "<- this one" in next(line for line in printed.splitlines() if line.startswith("default"))
    sections = {section.id for section in result.report.sections}
    assert sections >= {"request", "privacy", "robustness", "utility", "quality", "efficiency", "scale", "summary"}
    for section in result.report.sections:
        for part in section.measurements:
            assert part.value is not None or part.reason


def test_taught_rows_are_not_scored(data: AuditData) -> None:
    plan = plan_of("default", data, matched=True, parameters=1_000)
    (attack,) = [attack for attack in plan.attacks if attack.name.startswith("relearn_in_domain")]
    taught = {probe.answer for probe in attack.taught}  # type: ignore[attr-defined]
    scored = {probe.answer for probe in attack.held_out([*plan.probes, *plan.never_seen])}  # type: ignore[attr-defined]
    assert taught
    assert not taught & scored
    assert {probe.answer for probe in plan.never_seen} <= scored
    assert len({probe.row for probe in [*plan.probes, *plan.never_seen]}) == plan.rows


def test_never_seen_rows_are_asked_in_as_many_phrasings(data: AuditData) -> None:
    plan = plan_of("quick", data, matched=True, parameters=1_000)
    most = max(len(probe.paraphrased_questions) for probe in plan.probes)
    assert all(len(probe.paraphrased_questions) <= most for probe in plan.never_seen)


def test_tokenizers_that_differ_are_named_before_a_model_is_loaded(
    tiny_lm: Path, data: AuditData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_lm)
    tokenizer.add_tokens(["<new>"])
    other = tmp_path / "other"
    tokenizer.save_pretrained(other)
    for file in tiny_lm.glob("*.safetensors"):
        (other / file.name).write_bytes(file.read_bytes())
    (other / "config.json").write_bytes((tiny_lm / "config.json").read_bytes())
    monkeypatch.setattr(AuditedModel, "opened", lambda *_: pytest.fail("a model was opened"))
    size = len(tokenizer.get_vocab())
    with pytest.raises(ValueError, match=f"original and the unlearned model differ.*{size - 1} and {size} tokens"):
        run_audit(tiny_lm, other, data, tmp_path / "out", depth="quick")
    assert not (tmp_path / "out").exists()


def test_what_differs_in_tokenizers(tiny_lm: Path) -> None:
    facts = tokenizer_facts(AutoTokenizer.from_pretrained(tiny_lm))
    check_tokenizers({"original": facts, "unlearned": copy.deepcopy(facts)})
    for change, message in (
        ({"vocabulary": "x"}, "not the same ones"),
        ({"eos_token": "</s>"}, "eos_token is '<|im_end|>' and '</s>'"),
        ({"chat_template": None}, "one has a chat template and the other none"),
        ({"cuts": [1]}, "cut the same text"),
    ):
        with pytest.raises(ValueError, match=message.replace("|", r"\|")):
            check_tokenizers({"original": facts, "unlearned": facts | change})


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"depth": "deep"}, ValueError, "depth must be 'quick', 'default' or 'full', but got 'deep'"),
        ({"precision": "16"}, ValueError, "precision must be 'auto', '32' or 'bf16'"),
        ({"control": "retrained"}, ValueError, "needs a control model"),
        ({"control": "none", "retrained": "x/y"}, ValueError, "takes no control model"),
        ({"unlearned": "/no/such/model"}, FileNotFoundError, "There is no unlearned model /no/such/model"),
        ({"key": "/no/key.pem"}, FileNotFoundError, "no key"),
        ({"data": "/no/rows"}, FileNotFoundError, "There is no folder or file /no/rows"),
        ({"retrained": "tiny_lm"}, ValueError, "The control model tiny_lm.* has the weights of the original model"),
    ],
)
def test_bad_options_are_refused_first(
    options: dict[str, Any],
    error: type[Exception],
    message: str,
    tiny_lm: Path,
    data: AuditData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(AuditedModel, "opened", lambda *_: pytest.fail("a model was opened"))
    arguments = {"original": tiny_lm, "unlearned": tiny_lm, "data": data, "output_dir": tmp_path / "out"} | options
    if arguments.get("retrained") == "tiny_lm":
        arguments["retrained"] = shutil.copytree(tiny_lm, tmp_path / "tiny_lm")
    with pytest.raises(error, match=message):
        run_audit(**arguments)


def test_an_audit_at_the_end_of_a_run(tiny_lm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places, opened = set(), AuditedModel.opened
    monkeypatch.setattr(AuditedModel, "opened", lambda *given: places.add(given[1]) or opened(*given))
    module = LitCausalLM(tiny_lm, lr=1e-3)
    rows = LanguageDataModule(
        forget=[question(c) for c in ("France", "Italy")],
        retain=[question("Japan")],
        heldout={"never_seen": [question("Peru")], "general": [question("Cuba")]},
        batch_size=2,
    )
    audit = Audit(depth="quick", output_dir=str(tmp_path / "audit"), precision="32")
    device = torch.device("cpu", 0)  # Lightning leaves the module on torch.device("cpu")
    trainer(GradientAscent(), audit, max_steps=1, strategy=SingleDeviceStrategy(device)).fit(module, rows)
    assert places == {device}
    assert audit.result is not None
    assert audit.result.verdict.evidence.control == "matched rows"
    assert audit.result.verdict.name == "no verdict"  # random weights knew nothing that could be forgotten
    assert (tmp_path / "audit" / "report.html").is_file()
    names = {m.name for m in audit.result.report.section("utility").measurements}
    assert names
    with pytest.raises(MisconfigurationException, match="has the audit of another run"):
        trainer(GradientAscent(), Audit(output_dir=audit.output_dir), max_steps=1).fit(module, rows)


def test_a_live_module_is_on_the_device_while_it_is_measured(tiny_lm: Path) -> None:
    module = LitCausalLM(tiny_lm)
    with AuditedModel("unlearned", module).opened(torch.device("cpu", 0), None) as opened:
        assert opened is module
        assert module.device == torch.device("cpu", 0)
    assert module.device == torch.device("cpu")


def test_an_audit_says_what_it_lacks_before_the_first_step(tiny_lm: Path, tmp_path: Path) -> None:
    module = LitCausalLM(LitCausalLM(tiny_lm).model, tokenizer=str(tiny_lm))
    rows = LanguageDataModule(forget=[question("France")], retain=[question("Japan")], batch_size=1)
    with pytest.raises(MisconfigurationException, match=r"Audit\(original=...\)"):
        trainer(GradientAscent(), Audit(output_dir=str(tmp_path)), max_steps=1).fit(module, rows)
    assert not list(tmp_path.iterdir())


def test_the_parts_of_a_greater_depth_go_on_from_a_smaller_one(data: AuditData, tiny_lm: Path, tmp_path: Path) -> None:
    made = []
    for depth in ("quick", "default"):
        conditions = Conditions(depth, True, 0, "32", torch.device("cpu"), False)  # type: ignore[arg-type]
        collector = Collector([AuditedModel("original", tiny_lm)], data, conditions, Parts(tmp_path))
        collector.plan = plan_of(depth, data, True, 1_000)  # type: ignore[arg-type]
        made.append({collector._key(collector.models[0], task).digest for task in collector._tasks()})
    assert made[0] < made[1]


def test_the_day_of_a_run_names_parts_only_where_it_is_written(tiny_lm: Path, data: AuditData, tmp_path: Path) -> None:
    conditions = Conditions("quick", True, 0, "32", torch.device("cpu"), False)
    states = []
    for number, day in enumerate(("2026-01-01", "2026-01-02")):
        folder = tmp_path / str(number)
        shutil.copytree(tiny_lm, folder)
        PromptFormat(AutoTokenizer.from_pretrained(folder), date=day).save(folder)
        assert PromptFormat.load(folder).date == day  # type: ignore[union-attr]
        collector = Collector([AuditedModel("original", folder)], data, conditions, Parts(tmp_path / "audit"))
        states.append(collector._prompt_state())
        collector.dated = True
        assert collector._prompt_state()["date"] == day  # type: ignore[index]
    assert states[0] == states[1]
