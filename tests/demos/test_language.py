"""The demo, whole: a real model forgets twelve capitals, keeps the rest, and report and record say so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_unlearn.audit.keys import load_public_key
from lightning_unlearn.audit.verify import verify_record
from lightning_unlearn.report.model import UnlearningReport
from lightning_unlearn.report.sections import Examples


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.long
def test_the_demo_forgets_keeps_and_certifies(smollm2: str, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    command = [sys.executable, "-m", "lightning_unlearn", "demo", "--model", smollm2, "--output_dir", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "2", "XDG_CONFIG_HOME": str(tmp_path / "configuration")}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=850)
    log = done.stdout + done.stderr
    assert "\r" not in log
    assert len(log.splitlines()) < 200
    report = UnlearningReport.read(out)
    forgotten = report.measurement("effectiveness", "right answers", "whole words")
    assert forgotten.anchors.original is not None
    assert forgotten.value is not None
    assert forgotten.anchors.original > 0.5
    assert forgotten.value < forgotten.anchors.original - 0.3  # in several wordings; none of the twelve as they are
    for part in report.section("utility").measurements:
        if part.unit == "share" and part.value is not None and part.anchors.original is not None:
            assert part.value >= part.anchors.original - 0.25
    key = load_public_key(out / "public_key.pem")
    assert verify_record(out / "record.jsonl", key, {"after": out / "model"}, out / "report.json") == []

    rounded = "bf16" in report.provenance["precision"]  # the audit answers in batches, and rounding decides near ties
    model = AutoModelForCausalLM.from_pretrained(out / "model", dtype=torch.bfloat16 if rounded else torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(out / "model")
    examples = [row for part in report.parts() if isinstance(part, Examples) for row in part.rows]
    same = []
    for example in examples[::4]:
        chat = [{"role": "user", "content": example.input}]
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        inputs = tokenizer(text, return_tensors="pt")
        output = model.generate(**inputs, max_new_tokens=24, do_sample=False)
        said = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
        same.append(said == (example.outputs[1] or "").strip())
    assert same.count(False) <= int(rounded)
