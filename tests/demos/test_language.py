"""The demo, whole: a real model forgets twelve capitals, keeps the rest, and the report says what the model does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer


@pytest.mark.slow
@pytest.mark.alone
def test_the_demo_forgets_keeps_and_reports(smollm2: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lightning_unlearn", "demo", "--model", smollm2, "--output_dir", str(tmp_path)]
    subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "2"}, check=True, capture_output=True, timeout=800)
    report = json.loads((tmp_path / "report.json").read_text())
    before, after = report["before"], report["after"]
    old, new = before["metrics"], after["metrics"]
    assert old["forget_accuracy"] >= 8 / 12
    assert new["forget_accuracy"] <= 1 / 12
    assert new["retain_accuracy"] >= 11 / 12
    for name in ("heldout", "general"):
        assert new[f"{name}_accuracy"] >= old[f"{name}_accuracy"] - 2.01 / 12
    assert new["forget_nll"] > old["forget_nll"] + 1
    assert new["retain_nll"] < old["retain_nll"]
    assert {"method", "seed", "model_sha256", "seconds", "peak_memory_bytes"} <= report.keys()
    assert "<svg" in (tmp_path / "report.html").read_text()

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    for example in after["examples"][::6]:
        chat = [{"role": "user", "content": example["input"]}]
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        inputs = tokenizer(text, return_tensors="pt")
        output = model.generate(**inputs, max_new_tokens=24, do_sample=False)
        said = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
        assert said == example["output"]
