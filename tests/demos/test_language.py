"""The demo, whole: a real model forgets twelve capitals, keeps the rest, and the report says what the model does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_unlearn.report.model import UnlearningReport
from lightning_unlearn.report.sections import Examples


@pytest.mark.slow
@pytest.mark.alone
def test_the_demo_forgets_keeps_and_reports(smollm2: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lightning_unlearn", "demo", "--model", smollm2, "--output_dir", str(tmp_path)]
    subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "2"}, check=True, capture_output=True, timeout=800)
    report = UnlearningReport.read(tmp_path)

    def change(name: str, variant: str = "answered correctly") -> tuple[float, float]:
        part = report.measurement("outcome", name, variant)
        assert part.anchors.original is not None
        assert part.value is not None
        return part.anchors.original, part.value

    assert change("forget")[0] >= 8
    assert change("forget")[1] <= 1
    assert change("retain")[1] >= 11
    for name in ("heldout", "general"):
        assert change(name)[1] >= change(name)[0] - 2
    assert change("forget", "NLL")[1] > change("forget", "NLL")[0] + 1
    assert change("retain", "NLL")[1] < change("retain", "NLL")[0]
    assert {"seed", "model_sha256", "data_sha256", "settings"} <= report.provenance.keys()
    assert [part.name for part in report.section("efficiency").measurements] == ["training time", "peak memory"]
    assert "<svg" in (tmp_path / "report.html").read_text()

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    examples = [row for part in report.section("examples").parts if isinstance(part, Examples) for row in part.rows]
    assert len(examples) == 48
    for example in examples[::6]:
        chat = [{"role": "user", "content": example.input}]
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        inputs = tokenizer(text, return_tensors="pt")
        output = model.generate(**inputs, max_new_tokens=24, do_sample=False)
        said = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
        assert said == (example.outputs[1] or "").strip()
