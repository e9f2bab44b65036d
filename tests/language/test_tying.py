"""Vocabulary tables that are one or two: exports hold them, and say in their configuration which it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_unlearn import LitCausalLM

TABLES = {"model.embed_tokens.weight", "lm_head.weight"}


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(3, 60)[None]).logits


def exported(module: LitCausalLM, folder: Path) -> tuple[bool, set[str]]:
    """Whether the configuration of the export says that the tables are one, and which of them are in its file."""
    module.save_pretrained(folder)
    again = AutoModelForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(logits(again), logits(module.model), atol=1e-5, rtol=1e-4)
    tied = json.loads((folder / "config.json").read_text())["tie_word_embeddings"]
    return tied, TABLES & load_file(folder / "model.safetensors").keys()


@pytest.mark.parametrize(("together", "tables"), [(True, {"model.embed_tokens.weight"}), (False, TABLES)])
def test_an_adapter_that_trains_a_tied_table_for_both_ends_or_for_one(
    together: bool, tables: set[str], tiny_lm: Path, tmp_path: Path
) -> None:
    config = LoraConfig(
        r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens"], ensure_weight_tying=together,
        task_type="CAUSAL_LM",
    )  # fmt: skip
    tuned = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_lm), config)
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    tuned.save_pretrained(tmp_path / "adapter")
    AutoTokenizer.from_pretrained(tiny_lm).save_pretrained(tmp_path / "adapter")
    module = LitCausalLM(tmp_path / "adapter")
    torch.testing.assert_close(logits(module.model), logits(tuned), atol=1e-5, rtol=1e-4)
    assert exported(module, tmp_path / "export") == (together, tables)


def test_a_configuration_that_takes_two_tables_for_one_is_corrected(tiny_lm: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_lm)
    model.save_pretrained(tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    weights["lm_head.weight"] = torch.randn_like(weights["model.embed_tokens.weight"])
    save_file(weights, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    assert exported(LitCausalLM(tmp_path / "model"), tmp_path / "export") == (False, TABLES)


@pytest.mark.parametrize(("target", "tied"), [("lm_head", False), ("q_proj", True)])
def test_adapters_of_the_head_alone_untie_it(target: str, tied: bool, tiny_lm: Path, tmp_path: Path) -> None:
    module = LitCausalLM(tiny_lm, lora={"r": 2, "target_modules": [target]})
    for name, parameter in module.named_parameters():
        if ".lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    assert exported(module, tmp_path / "export") == (tied, {"model.embed_tokens.weight"} if tied else TABLES)
