"""Requests about language models: rows of any table, any original model, any method."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from lightning_unlearn.audit.keys import load_public_key
from lightning_unlearn.audit.verify import verify_record
from lightning_unlearn.cli.forget import fit, forget
from lightning_unlearn.forget.certificate import own_key
from lightning_unlearn.forget.folder import RequestFolder
from lightning_unlearn.forget.language import LanguageRequest
from lightning_unlearn.forget.pipeline import run_request
from lightning_unlearn.forget.request import RequestOptions
from lightning_unlearn.language.data.own_answers import Answers, OwnAnswers
from lightning_unlearn.report.findings import doctor
from lightning_unlearn.report.model import UnlearningReport
from tests.conftest import question
from tests.helpers import same

CUSTOMERS = "id,name,city\n1,Ada Stone,Lima\n2,Bo Reed,Cusco\n3,Cy Frost,Rome\n"
TEMPLATE = "Customer {id}: {name} lives in {city}."


@pytest.fixture(autouse=True)
def _own_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "configuration"))
    monkeypatch.chdir(tmp_path)


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def tables(tmp_path: Path, forget_rows: list[dict[str, Any]], retain_rows: list[dict[str, Any]]) -> Path:
    folder = tmp_path / "tables"
    folder.mkdir()
    write(folder / "forget.jsonl", forget_rows)
    write(folder / "retain.jsonl", retain_rows)
    never = [{"question": f"What is the capital of {x}?", "answer": f"The capital of {x} is {x}ville."} for x in "XYZ"]
    write(folder / "never_seen.jsonl", never)
    return folder


def options(**given: Any) -> RequestOptions:
    return RequestOptions(**({"output_dir": "out", "accelerator": "cpu", "max_steps": 3} | given))


def test_a_request_that_was_killed_in_its_audit_ends_with_a_model_and_a_record_that_holds(
    tiny_lm: Path, tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr("lightning_unlearn.audit.collect.Collector.collect", killed)
        with pytest.raises(KeyboardInterrupt):
            run_request(LanguageRequest(str(tiny_lm), str(tables), depth="quick", options=options()), fit)
    assert (out / "work").is_dir()
    again = LanguageRequest(str(tiny_lm), str(tables), depth="quick", options=options())
    result = run_request(again, lambda words: pytest.fail(f"trained again: {words}"))
    assert result is not None
    assert not (out / "work").exists()
    model = AutoModelForCausalLM.from_pretrained(out / "model")
    before = AutoModelForCausalLM.from_pretrained(tiny_lm)
    assert not torch.equal(model.get_input_embeddings().weight, before.get_input_embeddings().weight)
    assert not [finding for finding in doctor(out) if finding.serious]
    key, secret = load_public_key(out / "public_key.pem"), next((own_key().parent / "rows").iterdir())
    rows = [json.loads(line) for line in (tables / "forget.jsonl").read_text().splitlines()]
    faults = verify_record(
        out / "record.jsonl",
        key,
        {"before": tiny_lm, "after": out / "model"},
        out / "report.json",
        result.head,
        rows,
        bytes.fromhex(secret.read_text()),
    )
    assert faults == []
    assert "Paris" not in (out / "report.html").read_text() + (out / "record.jsonl").read_text()
    report = UnlearningReport.read(out)
    assert report.headline is not None
    assert str(report.subject["end of the run"]).startswith(("Reached", "Not reached"))

    again = tmp_path / "again"
    again.mkdir()
    fit(["fit", "--config", str(out / "run.yaml"), f"--trainer.default_root_dir={again}", "--trainer.logger=false"])
    repeated = torch.load(again / "unlearned.ckpt", weights_only=True)["state_dict"]
    assert same({name.removeprefix("model."): value for name, value in repeated.items()}, model.state_dict())


def test_a_table_of_customers_is_read_by_a_template(tiny_lm: Path, tmp_path: Path, tables: Path) -> None:
    Path("customers.csv").write_text(CUSTOMERS)
    command = ["--model", str(tiny_lm), "--forget", "customers.csv", "--retain", str(tables / "retain.jsonl")]
    with pytest.raises(ValueError, match=r"--template \"id: \{id\}, name: \{name\}, city: \{city\}\""):
        forget([*command, "--dry_run=true", "--accelerator=cpu"])
    request = LanguageRequest(
        str(tiny_lm), "customers.csv", str(tables / "retain.jsonl"), template=TEMPLATE, options=options()
    )
    request.check()
    data = request.config(tmp_path)["data"]["init_args"]
    assert data["columns"] == {"text": TEMPLATE}
    assert data["forget"] == str(tmp_path / "customers.csv")
    assert [probe.is_text for probe in request.audit_data().forget] == [True, True, True]
    assert any("has no control" in note for note in request.plan().notes)


def test_the_plan_says_how_long_it_takes_also_on_a_busy_machine(
    tiny_lm: Path, tables: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = LanguageRequest(str(tiny_lm), str(tables), depth="quick", options=options())
    with monkeypatch.context() as shared:  # by others: this thread has a core in a quarter of the time
        shared.setattr("time.thread_time", lambda: time.perf_counter() / 4)
        request.check()
    assert request.facts["timing"]["busy"] > 2  # 4, but for what happens between two looks at the clocks
    rows = 3 * (4 + 6)  # of three steps, each of which takes three passes; measuring when to stop takes as long again
    request.facts["timing"] = {"pass": 2.0, "generation": 0.0, "busy": 4.0}
    cost = request.plan().lines["cost"]
    assert f"at most about {2 * 3 * rows * 2 / 60:.0f} min to train and " in cost
    assert "if it stays as busy as it is now, 2 min and " in cost
    request.facts["timing"]["busy"] = 1.1
    assert "busy" not in request.plan().lines["cost"]
    alone = LanguageRequest(str(tiny_lm), str(tables / "forget.jsonl"), depth="quick", options=options())
    alone.facts = request.facts
    assert " to write the rows to keep, 6 min to train and " in alone.plan().lines["cost"]


def test_methods_are_shipped_files_by_their_names(
    tiny_lm: Path, tables: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--model", str(tiny_lm), "--forget", str(tables), "--dry_run", "--accelerator=cpu"]
    forget([*command, "--method=npo"])
    assert "NPO, lr 1e-05" in capsys.readouterr().out
    forget([*command, "--method=second_order/influence_unlearning"])
    assert "so the run is not ended early" in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match="none of that name comes with"):
        forget([*command, "--method=npoo"])
    with pytest.raises(ValueError, match="0 callbacks that unlearn, among UnlearnMonitor"):
        forget([*command, "--method=language/monitor"])


def test_an_adapter_comes_out_merged(tiny_lm: Path, tables: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    settings = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_lm), settings)
    adapted.save_pretrained(tmp_path / "adapter")
    request = LanguageRequest(str(tmp_path / "adapter"), str(tables), options=options())
    request.check()
    assert any("merged model is written" in note for note in request.plan().notes)
    folder = RequestFolder("out")
    folder.claim(request.entries(folder.secret))
    run = request.config(folder.path)
    run["trainer"]["callbacks"].append({"class_path": "lightning_unlearn.forget.saving.FinalWeights"})
    folder.write_run({**run, "trainer": {**run["trainer"], "accelerator": "cpu", "logger": False}})
    fit(["fit", "--config", "out/run.yaml", "--trainer.enable_progress_bar=false"])
    request.export(Path("unlearned.ckpt"), folder.model)
    merged = AutoModelForCausalLM.from_pretrained(folder.model).state_dict()
    assert not any("lora" in name for name in merged)
    moved = (
        merged["model.layers.0.self_attn.q_proj.weight"]
        - adapted.merge_and_unload().state_dict()["model.layers.0.self_attn.q_proj.weight"]
    )
    assert 0 < moved.abs().max() < 1e-3  # three steps from the adapted weights


def test_without_rows_to_keep_the_model_writes_its_own(
    tiny_lm: Path, tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [question("Japan"), question("Peru")]
    monkeypatch.setattr(
        OwnAnswers, "answers", lambda *_, **__: Answers(rows, 2, 0, 0, 0, "")
    )  # this one writes nothing
    request = LanguageRequest(str(tiny_lm), str(tables / "forget.jsonl"), options=options())
    request.check()
    assert any("no rows to keep" in note for note in request.plan().notes)
    run = yaml.safe_load(yaml.safe_dump(request.config(tmp_path)))
    assert run["data"]["init_args"]["retain"] == str(tmp_path / "retain.jsonl")
    assert [probe.question for probe in request.audit_data(tmp_path).retain] == [row["question"] for row in rows]
    (tmp_path / "model").mkdir()
    (tmp_path / "retain.jsonl").rename(tmp_path / "model" / "taken_along.jsonl")
    found = {finding.file.name: finding for finding in doctor(tmp_path) if finding.serious}
    assert found["taken_along.jsonl"].what == "2 answers that the original model wrote"
    with pytest.raises(ValueError, match="leave out retain"):
        LanguageRequest(str(tiny_lm), str(tables), questions="mine.txt")


def test_what_does_not_fit_is_refused_before_anything_is_written(tiny_lm: Path, tables: Path, tmp_path: Path) -> None:
    overlapping = write(tmp_path / "both.jsonl", [question("France"), question("Japan")])
    shutil.copytree(tiny_lm, tmp_path / "mute", ignore=shutil.ignore_patterns("token*"))
    Path("nothing.jsonl").write_text("{}\n{}\n")
    empty = {"empty.jsonl": "", "empty.csv": "question,answer\n", "empty.json": "[]"}
    for name, text in empty.items():
        Path(name).write_text(text)
    prompts = write(tmp_path / "prompts.jsonl", [{"id": 1, "prompt": "Who?", "completion": "Ada."}])
    long = write(tmp_path / "long.jsonl", [question("France"), question("Italy") | {"answer": "It is Rome. " * 60}])
    cases: list[tuple[type[Exception], str, dict[str, Any]]] = [
        *((ValueError, f"forget rows .*{name}. are empty", {"forget": name}) for name in empty),
        (ValueError, r"Row 0 of the forget rows .*nothing\.jsonl. has no columns", {"forget": "nothing.jsonl"}),
        (ValueError, r"prompts\.jsonl.*question prompt --columns.answer completion", {"forget": prompts}),
        (ValueError, "mute has a model, but no tokenizer. Copy", {"model": str(tmp_path / "mute")}),
        (ValueError, "1 rows of the retain set .* are in the forget set too", {"retain": overlapping}),
        (FileNotFoundError, "There is no file", {"retain": "absent.jsonl"}),
        (ValueError, "config.json|no model|not a", {"model": str(tables)}),
        (ValueError, "depth must be", {"depth": "quickest"}),
        (ValueError, "control model .* has the weights of the original", {"retrained": str(tiny_lm)}),
        (ValueError, r"1 answers to forget .* row 1 with \d+, .*Give --max_length", {"forget": long, "max_length": 99}),
    ]
    for error, message, given in cases:
        with pytest.raises(error, match=message):
            run_request(
                LanguageRequest(**{"model": str(tiny_lm), "forget": str(tables), "options": options()} | given), fit
            )
    assert not Path("out").exists()
    assert not own_key().exists()


def test_columns_of_common_formats_are_known(tiny_lm: Path, tables: Path) -> None:
    said = [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Ada."}]
    messages = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ada."}]
    formats: dict[str, dict[str, Any]] = {
        r'--columns.question "\{instruction\} \{input\}" --columns.answer output\.': {
            "instruction": "Name", "input": "Ada", "output": "Ada."
        },
        r"--columns.messages chat\.$": {"chat": messages},
        r"whose messages have 'from' and 'value'. Rewrite them .*--columns.messages conversations": {
            "conversations": said
        },
        r"'data' is a list of objects: if these are the rows, write them alone": {"data": [question("France")]},
    }  # fmt: skip
    for message, row in formats.items():
        request = LanguageRequest(
            str(tiny_lm), write(Path("rows.jsonl"), [row]), str(tables / "retain.jsonl"), options=options()
        )
        with pytest.raises(ValueError, match=message):
            request.check()


def test_tables_of_a_folder_that_are_not_read_are_named(tiny_lm: Path, tables: Path) -> None:
    shutil.copy(tables / "retain.jsonl", tables / "heldout_cities.jsonl")
    (tables / "keep.csv").write_text("question,answer\n")
    with pytest.warns(UserWarning, match=r"tables that are not read: keep\.csv\. Sets are known by"):
        request = LanguageRequest(str(tiny_lm), str(tables), options=options())
    assert request.sources.keys() == {"forget", "retain", "never_seen", "heldout_cities"}


def test_the_plan_says_that_earlier_answers_of_a_conversation_stay(tiny_lm: Path, tables: Path) -> None:
    said = ["Who is Ada?", "Ada is a clerk.", "Where is she?", "She is in Lima."]
    roles = ("user", "assistant") * 2
    rows = [
        {"messages": [{"role": role, "content": text} for role, text in zip(roles, said[:length], strict=False)]}
        for length in (2, 4)
    ]
    request = LanguageRequest(
        str(tiny_lm), write(Path("rows.jsonl"), rows), str(tables / "retain.jsonl"), options=options()
    )
    request.check()
    notes = [note for note in request.plan().notes if "several answers" in note]
    assert [note.partition(". ")[0] for note in notes] == ["1 rows to forget are conversations with several answers"]
