"""Rows to retain that the original model writes itself."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_unlearn import Columns, LanguageDataModule, LitCausalLM, OwnAnswers, PromptFormat, SimNPO
from lightning_unlearn.language.data import own_answers
from tests.user_module import trainer

Rows = list[dict[str, Any]]
ASKED = [{"question": text} for text in ("Where is the tap?", "Why?", "Name a tree.", "How far is it to the sea?")]


@pytest.fixture
def module(tiny_lm: Path) -> LitCausalLM:
    return writing(tiny_lm)


def writing(folder: Path, **options: Any) -> LitCausalLM:
    """The tiny model with louder weights, so that its answers are not empty."""
    module = LitCausalLM(str(folder), **options)
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=noise), alpha=0.3)
    return module


def source(folder: Path, questions: Any = ASKED, **options: Any) -> OwnAnswers:
    return OwnAnswers(questions, **{"shipped": False, "max_new_tokens": 5, "cache": str(folder), **options})


def fitted(module: LitCausalLM, forget: Rows, retain: Any, **options: Any) -> LanguageDataModule:
    data = LanguageDataModule(forget, retain, batch_size=2)
    trainer(SimNPO(), **{"max_steps": 2, "max_epochs": 9, **options}).fit(module, data)
    return data


# ---- the questions ---------------------------------------------------------------------------------------------------


def test_the_shipped_questions_are_many_varied_and_well_formed() -> None:
    rows = [json.loads(line) for line in own_answers._QUESTIONS.read_text(encoding="utf-8").splitlines()]
    texts = [row["question"] for row in rows]
    subjects = Counter(row["subject"] for row in rows)
    assert len(rows) >= 300
    assert len(subjects) >= 20
    assert max(subjects.values()) <= len(rows) // 10
    assert all(row.keys() == {"question", "subject"} for row in rows)
    plain = [re.sub(r"\W+", " ", text).strip().casefold() for text in texts]
    assert len(set(plain)) == len(rows)
    assert all(text == " ".join(text.split()) and 3 <= len(text) <= 200 for text in texts)
    assert all(text[-1] in '.?!"»)' or text.endswith(("20", "...")) for text in texts)
    openings = Counter(" ".join(text.split()[:2]) for text in texts)
    assert max(openings.values()) <= 0.2 * len(rows)
    assert len(openings) >= 120
    assert sum(not text.endswith("?") for text in texts) >= 80  # requests and statements too
    assert not re.search(r"\b(capitals?|president|king|queen)\b", " ".join(texts).casefold())


def test_the_first_questions_are_of_many_subjects() -> None:
    rows = [json.loads(line) for line in own_answers._QUESTIONS.read_text(encoding="utf-8").splitlines()]
    assert len({row["subject"] for row in rows[:48]}) == len({row["subject"] for row in rows})


def test_questions_of_the_user_come_first_and_none_twice(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("Is tea hot?\nWhat is gravity?\n", encoding="utf-8")
    asked = OwnAnswers(str(tmp_path / "mine.txt")).asked()
    assert asked[:2] == ["Is tea hot?", "What is gravity?"]
    assert len(set(asked)) == len(asked)
    assert len(asked) == len(OwnAnswers().asked()) + 1
    assert len(OwnAnswers(str(tmp_path / "mine.txt"), count=5).asked()) == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shipped": False}, "no questions to ask"),
        ({"count": 0}, "count must be"),
        ({"temperature": -1.0}, "temperature must be"),
        ({"max_new_tokens": 0}, "max_new_tokens must be"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OwnAnswers(**options)


def test_rows_without_a_question_are_named() -> None:
    with pytest.raises(ValueError, match=r"Row 1 of the questions .* has columns \['prompt'\]"):
        OwnAnswers([{"question": "Why?"}, {"prompt": "Why?"}]).asked()
    with pytest.raises(ValueError, match="There is no question in"):
        OwnAnswers([], shipped=False).asked()


# ---- the answers -----------------------------------------------------------------------------------------------------


def test_greedy_answers_are_those_of_the_model(module: LitCausalLM, tmp_path: Path) -> None:
    found = source(tmp_path).answers(module)
    assert [row["answer"] for row in found.rows] == module.answer([row["question"] for row in ASKED], 5)
    assert (found.asked, found.named, found.empty) == (4, 0, 0)
    assert len(list(tmp_path.rglob("*.json"))) == 1


def test_the_cache_is_read_and_belongs_to_weights_prompts_and_settings(
    module: LitCausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    written = own_answers.generate_all
    monkeypatch.setattr(own_answers, "generate_all", lambda *a: calls.append(len(a[2])) or written(*a))
    first = source(tmp_path).answers(module)
    assert source(tmp_path).answers(module) == first
    assert calls == [4]
    source(tmp_path, max_new_tokens=6).answers(module)
    source(tmp_path, temperature=1.0).answers(module)
    source(tmp_path).answers(module, prompt=PromptFormat(module.tokenizer, system_prompt="Be brief."))
    with torch.no_grad():
        next(module.parameters()).add_(0.1)
    source(tmp_path).answers(module)
    assert calls == [4] * 5


def test_a_killed_run_goes_on_at_the_batch_it_was_in(
    module: LitCausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = source(tmp_path / "whole", batch_size=1).answers(module)
    written, calls = own_answers.generate_all, []

    def killed(*arguments: Any) -> list[str]:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return written(*arguments)

    monkeypatch.setattr(own_answers, "generate_all", killed)
    with pytest.raises(KeyboardInterrupt):
        source(tmp_path / "part", batch_size=1).answers(module)
    assert source(tmp_path / "part", batch_size=1).answers(module) == whole
    assert len(calls) == 3 + 2


def test_sampled_answers_depend_on_the_seed_alone(module: LitCausalLM, tmp_path: Path) -> None:
    def sampled(folder: str, seed: int, **options: Any) -> list[str]:
        found = source(tmp_path / folder, temperature=1.0, seed=seed, **options).answers(module)
        return [row["answer"] for row in found.rows]

    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = sampled("a", 0)
    assert torch.equal(torch.get_rng_state(), before)
    assert sampled("b", 0) == first != sampled("c", 1)
    assert sampled("d", 0, batch_size=1) == first


def test_sampling_draws_from_the_distribution_at_its_temperature() -> None:
    logits = torch.tensor([0.0, 1.0, -1.0]).expand(4000, 3)
    drawn = own_answers._sampled(2.0, 0, 0)(logits, range(4000), 3)
    shares = torch.bincount(drawn, minlength=3) / 4000
    assert torch.allclose(shares, (logits[0] / 2).softmax(-1), atol=0.03)


def test_an_answer_that_is_cut_teaches_no_end(module: LitCausalLM, tmp_path: Path) -> None:
    end = module.tokenizer.eos_token_id
    head = module.model.lm_head.weight
    found = source(tmp_path).answers(module)
    assert found.cut == 4
    assert all(row["target"] == row["answer"] for row in found.rows)
    data = LanguageDataModule(found.rows, prompt=PromptFormat(module.tokenizer))
    data.setup("fit")
    assert all(end not in row.answer for row in data.sets["forget"].rows)
    with torch.no_grad():  # every token is the one that ends an answer
        head.zero_()[end] = 1.0
        module.model.model.norm.weight.fill_(1.0)
    with pytest.raises(ValueError, match=r"none is left to retain: 0 have a name .* 4 the model wrote nothing"):
        source(tmp_path).answers(module)


def test_rows_that_name_what_is_to_be_forgotten_are_left_out(
    module: LitCausalLM, tmp_path: Path, forget_rows: Rows
) -> None:
    asked = [*ASKED, {"question": "Is Paris big?"}, {"question": "Who is Acme?"}]
    found = source(tmp_path, asked, exclude=["acme"]).answers(module, forget_rows)
    assert (found.asked, found.named) == (6, 2)
    assert [row["question"] for row in found.rows] == [row["question"] for row in ASKED]


def test_names_are_found_in_columns_that_a_template_fills(module: LitCausalLM, tmp_path: Path) -> None:
    columns = Columns(question="Where does {name} live?", answer="town")
    asked = [*ASKED, {"question": "Is Rumpel here?"}]
    found = source(tmp_path, asked).answers(module, [{"name": "Rumpel", "town": "zap"}], columns)
    assert found.named == 1
    assert all(row.keys() >= {"Where does {name} live?", "town"} for row in found.rows)


def test_a_module_without_a_language_model_is_refused(tmp_path: Path) -> None:
    from tests.user_module import LitNet

    with pytest.raises(ValueError, match=r"LitNet.model is no language model"):
        source(tmp_path).answers(LitNet())


# ---- in a run --------------------------------------------------------------------------------------------------------


def test_auto_asks_the_model_before_its_weights_move(
    module: LitCausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget_rows = [{"question": f"zip {i}?", "answer": "zap"} for i in range(4)]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(own_answers, "_QUESTIONS", tmp_path / "few.jsonl")
    (tmp_path / "few.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ASKED), encoding="utf-8")
    answers = module.answer([row["question"] for row in ASKED], 48)
    data = fitted(module, forget_rows, "auto")
    assert data.own_answers is not None
    assert [row["answer"] for row in data.own_answers.rows] == answers
    assert len(data.sets["retain"]) == 4
    assert "retain" not in data.questions
    assert data.read_rows()["retain"] == data.own_answers.rows
    assert list(data.sets) == ["forget", "retain"]
    assert next((tmp_path / "lightning-unlearn" / "own_answers").iterdir()).stat().st_mode & 0o077 == 0


def test_a_resumed_run_ends_like_one_in_a_piece(tiny_lm: Path, tmp_path: Path, forget_rows: Rows) -> None:
    whole, resumed = (writing(tiny_lm, lr=1e-3) for _ in range(2))
    saved = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    run = trainer(SimNPO(), saved, max_steps=4, max_epochs=9, enable_checkpointing=True)
    run.fit(whole, LanguageDataModule(forget_rows, source(tmp_path / "own"), batch_size=2))
    shutil.rmtree(tmp_path / "own")  # the same answers are written again
    again = LanguageDataModule(forget_rows, source(tmp_path / "own"), batch_size=2)
    trainer(SimNPO(), max_steps=4, max_epochs=9).fit(
        resumed, again, ckpt_path=tmp_path / "step=1.ckpt", weights_only=True
    )
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name
    other = LanguageDataModule(forget_rows, source(tmp_path / "own", ASKED[:2]), batch_size=2)
    with pytest.warns(match="goes on with other rows to retain"):
        trainer(SimNPO(), max_steps=4, max_epochs=9).fit(
            writing(tiny_lm), other, ckpt_path=tmp_path / "step=1.ckpt", weights_only=True
        )


def test_other_stages_leave_the_rows_out_and_a_lone_data_module_says_what_to_do(
    module: LitCausalLM, tmp_path: Path, forget_rows: Rows
) -> None:
    data = LanguageDataModule(forget_rows, source(tmp_path))
    with pytest.warns(match="own answers, so validate leaves them out"):
        trainer().validate(module, data, verbose=False)
    assert list(data.sets) == ["forget"]
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="has no Trainer"):
        LanguageDataModule(forget_rows, "auto", prompt=PromptFormat(module.tokenizer)).setup("fit")


def test_yaml_gives_a_source_with_its_arguments() -> None:
    parser = ArgumentParser()
    parser.add_subclass_arguments(LanguageDataModule, "data")
    own = {"class_path": "lightning_unlearn.OwnAnswers", "init_args": {"count": 7}}
    config = {"class_path": "lightning_unlearn.LanguageDataModule", "init_args": {"forget": "f.jsonl", "retain": own}}
    built = parser.instantiate_classes(parser.parse_object({"data": config})).data
    assert isinstance(built.sources["retain"], OwnAnswers)
    assert built.sources["retain"].count == 7
