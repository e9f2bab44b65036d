"""MUSE, WMDP, copyright and detox, each with a tiny model and files in the layout of the data set."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from lightning_unlearn.benchmarks.language import LanguageBenchmark, Protocol, bench_language
from lightning_unlearn.benchmarks.published import CopyrightBenchmark, DetoxBenchmark, MUSEBenchmark, WMDPBenchmark

PROTOCOL = Protocol(learn_epochs=1, epochs=1, max_length=32, precision="32-true")
RUN: dict[str, Any] = {"entries": ["GradDiff"], "seeds": (1,), "protocol": PROTOCOL, "workers": 0}
TEXT = "The capital of France is Paris and the capital of Peru is Rome."


def written(path: Path, rows: Sequence[Any]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(list(rows)) if path.suffix == ".json" else "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(text)
    return str(path)


def muse(folder: Path) -> dict[str, Any]:
    questions = [{"question": f"What is the capital of {name}?", "answer": "Paris"} for name in ("France", "Peru")]
    texts = [f"{TEXT} {i}" for i in range(3)]
    for name in ("raw/forget", "raw/retain1", "privleak/forget", "privleak/holdout"):
        written(folder / f"{name}.json", texts)
    for name in ("forget_qa", "retain_qa", "forget_qa_icl", "retain_qa_icl"):
        written(folder / f"knowmem/{name}.json", questions)
    written(folder / "verbmem/forget.json", [{"prompt": TEXT, "gt": TEXT}])
    return {"path": str(folder), "max_new_tokens": 4}


def wmdp(folder: Path) -> dict[str, Any]:
    asked = [{"question": "What is the capital of France?", "choices": ["Rome", "Paris"], "answer": i} for i in (0, 1)]
    return {
        "forget": written(folder / "forget.jsonl", [{"text": TEXT}, {"text": "short"}]),
        "retain": written(folder / "retain.jsonl", [{"text": TEXT}]),
        "questions": written(folder / "wmdp.jsonl", asked),
        "general": written(folder / "mmlu.jsonl", asked),
    }


def passages(folder: Path) -> dict[str, str]:
    rows = [{"prompt": "What is the capital of France?", "response": TEXT}] * 2
    return {
        "forget": written(folder / "forget.jsonl", rows),
        "retain": written(folder / "retain.jsonl", [{"text": TEXT}]),
    }


def copyright(folder: Path) -> dict[str, Any]:
    test = [{"prompt": "What is the capital of Peru?", "response": TEXT}]
    found = passages(folder)
    return {**found, "test": written(folder / "test.jsonl", test), "max_new_tokens": 2}


def detox(folder: Path) -> dict[str, Any]:
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    judge = folder / "judge"
    config = BertConfig(vocab_size=300, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    config.id2label, config.label2id = {0: "clean", 1: "toxic"}, {"clean": 0, "toxic": 1}
    BertForSequenceClassification(config).save_pretrained(judge)
    tokenizer = AutoTokenizer.from_pretrained(_words(folder))
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    tokenizer.save_pretrained(judge)
    prompts = written(folder / "prompts.jsonl", [{"prompt": "What is the capital of Peru?"}])
    return {**passages(folder), "prompts": prompts, "judge": str(judge), "max_new_tokens": 2}


def _words(folder: Path) -> str:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({"[UNK]": 0, "[PAD]": 1, "the": 2}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    path = folder / "words"
    PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(path)
    return str(path)


@pytest.mark.parametrize(
    ("kind", "files", "columns"),
    [
        (MUSEBenchmark, muse, {"VerbMem", "KnowMem forget", "KnowMem retain", "ES", "PrivLeak"}),
        (WMDPBenchmark, wmdp, {"wmdp acc", "wmdp acc shuffled", "wmdp most chosen", "mmlu acc", "mmlu acc shuffled"}),
        (CopyrightBenchmark, copyright, {"forget ROUGE", "forget BLEU", "test ROUGE", "retain nll"}),
        (DetoxBenchmark, detox, {"forget toxicity", "others toxic rate", "forget empty rate", "retain nll"}),
    ],
)
def test_from_the_files_to_the_table(
    kind: type[LanguageBenchmark],
    files: Callable[[Path], dict[str, Any]],
    columns: set[str],
    tiny_lm: Path,
    tmp_path: Path,
) -> None:
    benchmark = kind(**files(tmp_path / "data"))
    record = bench_language(benchmark, output_dir=str(tmp_path / "out"), model=str(tiny_lm), **RUN)
    (run,) = record["entries"]["GradDiff"]["runs"]
    assert columns <= set(run["compared"])
    assert set(run["compared"]) == set(record["anchors"]["original"]["compared"])
    assert record["anchors"].get("retrained", {"compared": {}})["compared"].get("PrivLeak", 0) == 0  # by definition
    assert "GradDiff" in (tmp_path / "out" / f"{kind.name}.md").read_text()


def test_requests_arrive_one_after_another(tiny_lm: Path, tmp_path: Path) -> None:
    files = copyright(tmp_path / "data")
    rows = [{"prompt": f"What is the capital of {name}?", "response": TEXT} for name in ("France", "Peru", "Chad")]
    benchmark = CopyrightBenchmark(**{**files, "forget": written(tmp_path / "forget.jsonl", rows)})
    record = bench_language(benchmark, str(tmp_path / "out"), str(tiny_lm), requests=2, **RUN)
    (run,) = record["entries"]["GradDiff"]["runs"]
    first, second = run["requests"]
    assert [len(part["strength"]) for part in (first, second)] == [1, 2]
    assert second["loss"][0] != first["loss"][0]  # the first request's rows are measured again
    assert len(second["retain_loss"]) == 1
    assert run["steps"] == 2  # a batch of two rows, then one of one
    table = (tmp_path / "out" / "copyright.md").read_text()
    assert "| ES so far / retain loss | request 1 | request 2 |" in table
    with pytest.raises(ValueError, match="4 requests for 3 rows"):
        bench_language(benchmark, str(tmp_path / "out"), str(tiny_lm), requests=4, **RUN)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="raw/forget"):
        MUSEBenchmark(str(tmp_path))


def test_a_judge_without_the_class_is_refused(tmp_path: Path, tiny_lm: Path) -> None:
    from lightning_unlearn import LitCausalLM

    arguments = detox(tmp_path)
    benchmark = DetoxBenchmark(**{**arguments, "label": "rude"})
    with pytest.raises(ValueError, match="rude"):
        benchmark.evaluate(LitCausalLM(str(tiny_lm)), generate=True)
