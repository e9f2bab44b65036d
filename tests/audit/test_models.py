"""Models of an audit: what they are known by, and how they are asked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from lightning_unlearn import LanguageDataModule, LitCausalLM, PromptFormat, SimNPO
from lightning_unlearn.audit.entries import model_entry
from lightning_unlearn.audit.model_check import BASE, compare_model
from lightning_unlearn.audit.models import AuditedModel, common_prompt
from tests.helpers import trainer

FORMAT = "[INST] {question} [/INST]"


def adapter_of(base: Path, folder: Path) -> Path:
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(folder)
    return folder


def with_other_weights(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    torch.nn.init.zeros_(model.model.norm.weight)
    model.save_pretrained(folder)


def test_all_models_are_asked_in_the_format_of_a_checkpoint(
    tiny_lm: Path, tmp_path: Path, forget_rows: list[Any], retain_rows: list[Any]
) -> None:
    module, run = LitCausalLM(tiny_lm), trainer(SimNPO(), max_steps=1, limit_val_batches=0)
    run.fit(module, LanguageDataModule(forget_rows, retain_rows, prompt=PromptFormat(prompt_format=FORMAT)))
    run.save_checkpoint(tmp_path / "unlearned.ckpt", weights_only=True)
    models = [AuditedModel("original", tiny_lm), AuditedModel("unlearned", tmp_path / "unlearned.ckpt")]
    prompt = common_prompt(models)
    for model in models:
        with model.opened("cpu", prompt) as opened:
            assert opened._prompt_format().text("Who?") == "[INST] Who? [/INST]"


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "chat_template.jinja"])
def test_another_configuration_or_tokenizer_is_another_model(name: str, tiny_lm: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_lm, tmp_path / "model")
    before = AuditedModel("original", folder)
    (folder / "README.md").write_text("A note.")
    assert AuditedModel("original", folder).identity == before.identity
    (folder / name).write_text((folder / name).read_text() + " " if (folder / name).exists() else "{}")
    changed = AuditedModel("original", folder)
    assert changed.content == before.content
    assert changed.identity != before.identity


def test_an_adapter_is_known_by_its_base_too(tiny_lm: Path, tmp_path: Path) -> None:
    base = shutil.copytree(tiny_lm, tmp_path / "base")
    adapter = adapter_of(base, tmp_path / "adapter")
    before, entry = AuditedModel("original", adapter).identity, model_entry(adapter)
    assert list(compare_model(entry, adapter)) == []
    with_other_weights(base)
    assert AuditedModel("original", adapter).identity != before
    assert list(compare_model(entry, adapter)) == [("base model changed", "other weights")]
    shutil.rmtree(base)
    assert [kind for kind, _ in compare_model(entry, adapter)] == [BASE]


def test_a_base_that_was_moved_is_the_same(tiny_lm: Path, tmp_path: Path) -> None:
    base = shutil.copytree(tiny_lm, tmp_path / "base")
    adapter = adapter_of(base, tmp_path / "adapter")
    before = AuditedModel("original", adapter).identity
    shutil.move(base, tmp_path / "elsewhere")
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": str(tmp_path / "elsewhere")}))
    assert AuditedModel("original", adapter).identity == before


def test_a_live_module_is_known_by_what_it_reads(tiny_lm: Path) -> None:
    L.seed_everything(0, verbose=False)
    module = LitCausalLM(tiny_lm)
    before = AuditedModel("original", module).identity
    assert AuditedModel("original", LitCausalLM(tiny_lm)).identity == before
    module.tokenizer.chat_template = "{{ messages }}"
    assert AuditedModel("original", module).identity != before
