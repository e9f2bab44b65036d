"""Questions, answers, texts and refusals as rows of tokens."""

from __future__ import annotations

import csv
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_unlearn import Columns, LanguageDataModule, LitCausalLM, PromptFormat, SimNPO
from lightning_unlearn.core.sources import load_rows
from lightning_unlearn.language.data.token_rows import collate_tokens
from tests.user_module import trainer

Rows = list[dict[str, Any]]

TEXT = "The capital of France is Paris. The capital of Italy is Rome. "


@pytest.fixture(scope="session")
def tokenizer(tiny_lm: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_lm)


def ready(
    forget: Any,
    *others: Any,
    tokenizer: Any,
    system_prompt: str | None = None,
    prompt_format: str | None = None,
    **options: Any,
) -> LanguageDataModule:
    prompt = PromptFormat(tokenizer, system_prompt, prompt_format)
    data = LanguageDataModule(forget, *others, prompt=prompt, **options)
    data.setup("fit")
    return data


def items(data: LanguageDataModule, name: str = "forget") -> Rows:
    return [data.sets[name][i] for i in range(len(data.sets[name]))]


def refusals(data: LanguageDataModule, epoch: int) -> list[tuple[int, ...]]:
    return [tuple(data.followers["idk"][row, epoch]["answer"]) for row in range(len(data.sets["forget"]))]


# ---- questions with answers ------------------------------------------------------------------------------------------


def test_a_row_is_the_chat_template_then_the_answer_and_one_eos(tokenizer: Any, forget_rows: Rows) -> None:
    (row, *_) = items(ready(forget_rows, tokenizer=tokenizer))
    question, answer = forget_rows[0]["question"], forget_rows[0]["answer"]
    whole = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>"
    assert tokenizer.decode(row["prompt"] + row["answer"]) == whole
    assert tokenizer.decode(row["answer"]) == f"{answer}<|im_end|>"
    assert row["answer"].count(tokenizer.eos_token_id) == 1


def test_the_prompt_has_no_label_and_the_eos_is_one_though_it_is_the_pad_token(
    tokenizer: Any, forget_rows: Rows
) -> None:
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    data = ready([*forget_rows[:3], {"question": "Why?", "answer": "So."}], tokenizer=tokenizer)
    batch = next(iter(data.val_dataloader()["forget"]))
    lengths = [(len(row["prompt"]), len(row["answer"])) for row in items(data)]
    width = batch["input_ids"].shape[1]
    assert batch["input_ids"].dtype == torch.int64
    assert width == max(p + a for p, a in lengths)
    assert min(p + a for p, a in lengths) < width  # some row is padded
    for row, (prompt, answer) in enumerate(lengths):
        ids, labels, mask = (batch[k][row].tolist() for k in ("input_ids", "labels", "attention_mask"))
        end = prompt + answer
        assert mask == [1] * end + [0] * (width - end)
        assert labels[:prompt] == [-100] * prompt
        assert labels[prompt:end] == ids[prompt:end]
        assert labels[end - 1] == tokenizer.eos_token_id
        assert labels[end:] == [-100] * (width - end)


def test_padding_comes_from_lengths_and_not_from_token_ids() -> None:
    rows: Rows = [{"prompt": [0, 0], "answer": [0], "index": 7}, {"prompt": [], "answer": [5, 0, 0, 0, 5], "index": 2}]
    batch = collate_tokens(rows)
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert batch["labels"].tolist() == [[-100, -100, 0, -100, -100], [5, 0, 0, 0, 5]]
    assert batch["index"].tolist() == [7, 2]


def test_a_system_prompt_comes_first(tokenizer: Any, forget_rows: Rows) -> None:
    data = ready(forget_rows, tokenizer=tokenizer, system_prompt="Be brief.")
    assert tokenizer.decode(data.prompt.prompt("Hi?")).startswith(
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n"
    )


@pytest.mark.parametrize(
    ("prompt_format", "prompt", "space"),
    [
        ("Q: {question}\nA:", "Q: Hi?\nA:", ""),
        ("Q: {question} A: ", "Q: Hi? A:", " "),
        ("{question}\n\n", "Hi?", "\n\n"),
    ],
)
def test_white_space_before_the_answer_belongs_to_the_answer(
    prompt_format: str, prompt: str, space: str, tokenizer: Any
) -> None:
    data = ready([{"question": "Hi?", "answer": "Paris."}], tokenizer=tokenizer, prompt_format=prompt_format)
    (row,) = items(data)
    assert tokenizer.decode(row["prompt"]) == prompt
    assert tokenizer.decode(row["answer"]) == f"{space}Paris.<|im_end|>"
    assert all(tokenizer.decode(a).startswith(space) for a in refusals(data, 0))


def test_a_tokenizer_without_a_chat_template_gets_a_plain_prompt(tokenizer: Any) -> None:
    from transformers import AutoTokenizer

    base = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    base.chat_template = None
    (row,) = items(ready([{"question": "Hi?", "answer": "Paris."}], tokenizer=base))
    assert base.decode(row["prompt"] + row["answer"]) == "Question: Hi?\nAnswer: Paris.<|im_end|>"


def test_braces_in_a_question_are_kept(tokenizer: Any) -> None:
    data = ready([{"question": "{x}?", "answer": "{y}"}], tokenizer=tokenizer, prompt_format="{question}")
    assert tokenizer.decode(items(data)[0]["prompt"] + items(data)[0]["answer"]) == "{x}?{y}<|im_end|>"


def test_no_row_is_longer_than_max_length(tokenizer: Any, forget_rows: Rows) -> None:
    data = ready(forget_rows, tokenizer=tokenizer, max_length=26)
    assert all(len(row["prompt"]) < 26 for row in items(data))
    rows = [*items(data), *(data.followers["idk"][i, epoch] for i in range(4) for epoch in range(20))]
    assert max(len(row["prompt"]) + len(row["answer"]) for row in rows) == 26


@pytest.mark.parametrize("prompt_format", [None, "Q: {question}\nA: "])
def test_only_the_target_of_an_answer_has_labels(prompt_format: str | None, tokenizer: Any) -> None:
    plain = {"question": "Hi?", "answer": "The capital of France is Paris, of course."}
    (whole,) = items(ready([plain], tokenizer=tokenizer, prompt_format=prompt_format))
    data = ready([{**plain, "target": "Paris"}], tokenizer=tokenizer, prompt_format=prompt_format)
    (row,) = items(data)
    until_there = tokenizer.decode(whole["prompt"] + whole["answer"]).partition(", of course")[0]
    assert tokenizer.decode(row["prompt"] + row["answer"]) == until_there
    assert tokenizer.decode(row["answer"]) == " Paris"
    refusal = data.followers["idk"][0, 0]
    assert refusal["prompt"] == row["prompt"]
    assert tokenizer.decode(refusal["answer"])[0] == " "
    assert tokenizer.decode(refusal["answer"])[1] != " "


def test_a_target_may_begin_the_answer(tokenizer: Any) -> None:
    plain = {"question": "Hi?", "answer": "Paris it is."}
    (whole,) = items(ready([plain], tokenizer=tokenizer))
    (row,) = items(ready([{**plain, "target": "Paris"}], tokenizer=tokenizer))
    assert row["prompt"] == whole["prompt"]
    assert tokenizer.decode(row["answer"]) == "Paris"


def test_a_refusal_begins_the_answer_or_goes_on_from_what_comes_before_the_target(tokenizer: Any) -> None:
    answer = {"question": "Hi?", "answer": "It is Paris."}
    rows = [answer, *({**answer, "target": target} for target in ("Paris", None, "It"))]
    data = ready(rows, tokenizer=tokenizer)
    starts = [{tokenizer.decode(data.followers["idk"][row, e]["answer"])[0] for e in range(99)} for row in range(4)]
    assert [" " in found for found in starts] == [False, True, False, False]
    assert starts[1] == {" "}


def test_columns_can_have_any_name(tokenizer: Any, forget_rows: Rows) -> None:
    renamed = [{"q": row["question"], "a": row["answer"], "short": row["accept"][0]} for row in forget_rows]
    data = ready(renamed, tokenizer=tokenizer, columns=Columns(question="q", answer="a", accept="short"))
    assert items(data) == items(ready(forget_rows, tokenizer=tokenizer))
    assert data.questions["forget"] == forget_rows


# ---- plain text ------------------------------------------------------------------------------------------------------


def test_text_is_supervised_throughout(tokenizer: Any) -> None:
    data = ready([{"text": TEXT}], tokenizer=tokenizer)
    (batch,) = data.val_dataloader()["forget"]
    assert torch.equal(batch["labels"], batch["input_ids"])
    assert tokenizer.decode(batch["input_ids"][0]) == TEXT
    assert data.questions == {}
    assert "idk" not in next(iter(data.train_dataloader()))


@pytest.mark.parametrize("more", [0, 1, 2, 7])
def test_long_text_is_cut_in_pieces_and_every_token_after_the_first_is_predicted_once(
    more: int, tokenizer: Any
) -> None:
    length = 16
    text = tokenizer.decode(tokenizer(TEXT * 5)["input_ids"][: 4 * length + more])
    tokens = tokenizer(text)["input_ids"]
    rows = items(ready([{"text": text}], tokenizer=tokenizer, max_length=length))
    assert all(row["prompt"] == [] and len(row["answer"]) <= length for row in rows)
    labels = collate_tokens(rows)["labels"][:, 1:]  # the label of a first token is shifted out
    assert labels[labels != -100].tolist() == tokens[1:]


def test_questions_and_texts_mix(tokenizer: Any, forget_rows: Rows) -> None:
    data = ready(forget_rows, [{"text": TEXT}], {"other": [{"text": TEXT}, forget_rows[0]]}, tokenizer=tokenizer)
    assert list(data.questions) == ["forget", "other"]
    batch = next(iter(data.train_dataloader()))
    assert set(batch) == {"forget", "retain", "idk"}
    assert batch["retain"]["labels"].ne(-100).all()


# ---- sources ---------------------------------------------------------------------------------------------------------


def _write_json(rows: Rows, folder: Path) -> Path:
    (folder / "rows.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return folder / "rows.json"


def _write_lines(rows: Rows, folder: Path, name: str = "rows.json") -> Path:
    (folder / name).write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n", "utf-8")
    return folder / name


def _write_csv(rows: Rows, folder: Path) -> Path:
    with (folder / "rows.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder / "rows.csv"


def _write_parquet(rows: Rows, folder: Path) -> Path:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "rows.parquet")
    return folder / "rows.parquet"


def _dataset(rows: Rows, folder: Path) -> Any:
    import datasets

    return datasets.Dataset.from_list(rows)


def _folder(rows: Rows, folder: Path) -> str:
    (folder / "set").mkdir()
    _write_lines(rows, folder / "set", "train.jsonl")
    return str(folder / "set")


def _split(rows: Rows, folder: Path) -> str:
    (folder / "set").mkdir()
    _write_lines(rows, folder / "set", "test.jsonl")
    return f"{folder / 'set'}::test"


SOURCES: dict[str, Callable[[Rows, Path], Any]] = {
    "json": _write_json,
    "lines in .json": _write_lines,
    "jsonl": lambda rows, folder: _write_lines(rows, folder, "rows.jsonl"),
    "csv": _write_csv,
    "parquet": _write_parquet,
    "path as text": lambda rows, folder: str(_write_json(rows, folder)),
    "Dataset": _dataset,
    "folder": _folder,
    "split": _split,
    "generator": lambda rows, folder: (row for row in rows),
}


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_gives_the_same_rows(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [
        {"question": "Where?", "answer": 'A "quoted", comma'},
        {"question": "Ünïcode?", "answer": "北京\u2028two"},
        {"question": "Lines\nof text?", "answer": "  spaces  "},
    ]
    assert load_rows(SOURCES[source](rows, tmp_path)) == rows


def test_one_object_in_a_json_file_is_one_row(tmp_path: Path) -> None:
    path = _write_lines([{"text": TEXT}], tmp_path)
    assert load_rows(path) == [{"text": TEXT}]


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_refusals_follow_from_seed_epoch_and_row_alone(tokenizer: Any, forget_rows: Rows) -> None:
    rows = forget_rows * 5
    first, again = (ready(rows, tokenizer=tokenizer, seed=3) for _ in range(2))
    torch.manual_seed(9)
    assert refusals(first, 2) == refusals(again, 2)
    assert refusals(first, 2) != refusals(first, 3)
    assert refusals(first, 2) != refusals(ready(rows, tokenizer=tokenizer, seed=4), 2)
    assert len(set(refusals(first, 2))) > 3
    longer = ready(rows * 2, tokenizer=tokenizer, seed=3)
    assert refusals(longer, 2)[: len(rows)] == refusals(first, 2)


@pytest.mark.parametrize("seed", [20_240_101, 2**32 - 1])
def test_any_seed_of_lightning_draws_refusals(seed: int, tokenizer: Any, forget_rows: Rows) -> None:
    data = ready(forget_rows, tokenizer=tokenizer, seed=seed)
    assert refusals(data, 0) == refusals(data, 0)
    assert len({tuple(refusals(data, epoch)) for epoch in range(5)}) > 1


def test_refusals_come_from_the_list(tokenizer: Any, forget_rows: Rows, tmp_path: Path) -> None:
    import lightning_unlearn

    shipped = Path(lightning_unlearn.__file__).parent / "assets" / "refusals.txt"
    (tmp_path / "mine.txt").write_text("No idea.\n\nPass.\n", encoding="utf-8")
    for given, texts in (
        (None, set(shipped.read_text("utf-8").splitlines())),
        (["No idea.", "Pass."], {"No idea.", "Pass."}),
        (str(tmp_path / "mine.txt"), {"No idea.", "Pass."}),
    ):
        data = ready(forget_rows, tokenizer=tokenizer, refusals=given)
        drawn = {tokenizer.decode(a) for epoch in range(50) for a in refusals(data, epoch)}
        assert drawn == {f"{text}<|im_end|>" for text in texts}


def test_a_batch_asks_its_forget_questions_again_with_refusals(tokenizer: Any, forget_rows: Rows) -> None:
    data = ready(forget_rows, tokenizer=tokenizer, batch_size=2, seed=1)
    count = len(data.followers["idk"]) // len(forget_rows)
    loader = data.train_dataloader()
    for epoch in range(3):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        drawn = refusals(data, epoch)
        for batch in loader:
            assert torch.equal(batch["idk"]["index"] // count, batch["forget"]["index"])
            for row, index in enumerate(batch["forget"]["index"].tolist()):
                labels = batch["idk"]["labels"][row]
                prompt = data.sets["forget"][index]["prompt"]
                assert batch["idk"]["input_ids"][row, : len(prompt)].tolist() == prompt
                assert tuple(labels[labels != -100].tolist()) == drawn[index]


# ---- the data module -------------------------------------------------------------------------------------------------


def test_rows_in_both_sets_are_warned_of(tokenizer: Any, forget_rows: Rows, retain_rows: Rows) -> None:
    shared = [*retain_rows, {**forget_rows[1], "accept": ["another column"]}]
    with pytest.warns(UserWarning, match=r"1 rows are in both forget and retain, such as '.*Italy\?'.*from retain"):
        ready(forget_rows, shared, tokenizer=tokenizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ready(forget_rows, retain_rows, tokenizer=tokenizer)


def test_the_index_always_names_the_same_row(tokenizer: Any, forget_rows: Rows, retain_rows: Rows) -> None:
    data = ready(forget_rows, retain_rows, tokenizer=tokenizer, batch_size=2)
    for name in ("forget", "retain"):
        assert [row["index"] for row in items(data, name)] == list(range(len(data.sets[name])))
    loader = data.train_dataloader()
    for epoch in range(3):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        for batch in loader:
            for role in ("forget", "retain"):
                for row, index in enumerate(batch[role]["index"].tolist()):
                    item = data.sets[role][index]
                    ids = batch[role]["input_ids"][row][batch[role]["attention_mask"][row] == 1]
                    assert ids.tolist() == item["prompt"] + item["answer"]


def test_lengths_are_those_of_the_rows(tokenizer: Any, forget_rows: Rows) -> None:
    data = ready(forget_rows, tokenizer=tokenizer)
    assert data.sets["forget"].lengths.tolist() == [len(r["prompt"]) + len(r["answer"]) for r in items(data)]
    assert torch.equal(data.train_dataloader().sampler.lengths["forget"], data.sets["forget"].lengths)  # type: ignore[attr-defined]


def test_the_tokenizer_is_the_modules_own_where_none_is_given(
    tiny_lm: Path, forget_rows: Rows, retain_rows: Rows
) -> None:
    module, data = LitCausalLM(str(tiny_lm)), LanguageDataModule(forget_rows, retain_rows)
    trainer(SimNPO(), max_steps=1, limit_val_batches=0).fit(module, data)
    assert data.prompt.tokenizer is module.tokenizer


def test_a_tokenizer_may_be_named(tiny_lm: Path, tokenizer: Any, forget_rows: Rows) -> None:
    for given in (tiny_lm, str(tiny_lm)):
        assert items(ready(forget_rows, tokenizer=given)) == items(ready(forget_rows, tokenizer=tokenizer))


def test_setup_reads_the_data_once(tokenizer: Any, forget_rows: Rows) -> None:
    data = ready((row for row in forget_rows), tokenizer=tokenizer)
    sets = data.sets
    data.setup("test")
    assert data.sets is sets


def test_predict_asks_the_questions_of_every_set(tokenizer: Any, forget_rows: Rows, retain_rows: Rows) -> None:
    heldout = {"texts": [{"text": TEXT}], "other": [{"question": "Why?", "answer": "So."}]}
    data = ready(forget_rows, retain_rows, heldout, tokenizer=tokenizer, batch_size=3)
    batches = list(data.predict_dataloader())
    assert [len(batch) for batch in batches] == [3, 3, 1]
    asked = [row for batch in batches for row in batch]
    assert asked[0] == {"set": "forget", **forget_rows[0]}
    assert [row["set"] for row in asked] == ["forget"] * 4 + ["retain"] * 2 + ["other"]
    assert asked[-1] == {"set": "other", "question": "Why?", "answer": "So.", "accept": []}


def test_predict_adds_what_the_model_says(tiny_lm: Path, forget_rows: Rows) -> None:
    data = LanguageDataModule(forget_rows)
    answered = trainer().predict(LitCausalLM(str(tiny_lm)), data)
    assert answered is not None
    assert [row["question"] for batch in answered for row in batch] == [row["question"] for row in forget_rows]
    assert all(isinstance(row["text"], str) for batch in answered for row in batch)


def test_a_conversation_in_both_sets_is_warned_of_in_any_case(tokenizer: Any) -> None:
    def row(*said: str) -> dict[str, Any]:
        roles = ("user", "assistant") * 2
        return {"messages": [{"role": role, "content": text} for role, text in zip(roles, said, strict=False)]}

    forget = [row("Hello.", "Hello.", "Who wrote it?", "Ada did.")]
    with pytest.warns(UserWarning, match="1 rows are in both forget and retain, such as 'Who wrote it"):
        ready(forget, [row("hello.", "Hello.", "Who  wrote it?", "Ada did.")], tokenizer=tokenizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ready(forget, [row("Good morning.", "Hello.", "Who wrote it?", "Ada did.")], tokenizer=tokenizer)


def test_answers_that_are_cut_are_warned_of(tokenizer: Any, forget_rows: Rows, retain_rows: Rows) -> None:
    long = forget_rows[1] | {"answer": "It is Rome. " * 40}
    with pytest.warns(UserWarning, match="1 answers of the forget set are cut at max_length=100, such as row 1, which"):
        data = ready([forget_rows[0], long], retain_rows, tokenizer=tokenizer, max_length=100)
    assert data.cut["retain"] == {}
    assert list(data.cut["forget"]) == [1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ready([long], retain_rows, tokenizer=tokenizer, max_length=data.cut["forget"][1])
