"""Half precision: rotary tables stay in fp32, dropout is off, and rates that round to nothing are warned of."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from lightning.pytorch import LightningModule
from transformers import AutoModelForCausalLM

from lightning_unlearn import NPO, GradDiff, LanguageDataModule, LitCausalLM, classifier_nll
from lightning_unlearn.core.resolution import half_spacing
from tests.user_module import LitNet, loaders, trainer

SMALL: dict[str, Any] = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
GPT: dict[str, Any] = {"vocab_size": 60, "n_embd": 32, "n_layer": 2, "n_head": 2}
FAMILIES: dict[str, Any] = {
    "Llama": {**SMALL, "intermediate_size": 64, "num_key_value_heads": 2},
    "Gemma3Text": {**SMALL, "intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 16},
    "GPTNeoX": {**SMALL, "intermediate_size": 64},
    "Falcon": SMALL,
    "GPTJ": {**GPT, "rotary_dim": 8, "n_positions": 64},
    "DeepseekV3": {
        **{**SMALL, "intermediate_size": 64, "num_key_value_heads": 2, "n_routed_experts": 4, "n_group": 2},
        **{"topk_group": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "q_lora_rank": 8, "kv_lora_rank": 8},
        **{"qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16, "first_k_dense_replace": 1},
    },
    "GPT2": GPT,
    "XGLM": {"vocab_size": 60, "d_model": 32, "num_layers": 2, "attention_heads": 2, "ffn_dim": 64},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cast_leaves_what_from_pretrained_leaves(family: str, tmp_path: Path) -> None:
    config = getattr(transformers, f"{family}Config")(**FAMILIES[family])
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    right = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    for dtype in ("float32", "bfloat16"):
        module = LitCausalLM(str(tmp_path), dtype=dtype)  # type: ignore[arg-type]
        module.to(torch.bfloat16)  # as Trainer(precision="bf16-true") does
        given = {**dict(module.model.named_parameters()), **dict(module.model.named_buffers())}
        expected = {**dict(right.named_parameters()), **dict(right.named_buffers())}
        assert {name: value.dtype for name, value in given.items()} == {n: v.dtype for n, v in expected.items()}
        ids = torch.arange(40)[None]
        assert torch.equal(module.model.eval()(ids).logits, right(ids).logits)


def test_a_run_in_bf16_true_warns_of_a_rate_that_moves_nothing(
    tiny_lm: Path, forget_rows: list[Any], retain_rows: list[Any]
) -> None:
    def told(module: LightningModule, data: Any, *callbacks: Any) -> list[str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer(*callbacks, max_epochs=1, limit_val_batches=0, precision="bf16-true").fit(module, data)
        return [str(w.message) for w in caught if "lost in rounding" in str(w.message)]

    def data() -> LanguageDataModule:
        return LanguageDataModule(forget_rows, retain_rows)

    module = LitCausalLM(str(tiny_lm), lr=1e-5, warmup=0.5, schedule="linear")
    before = [parameter.detach().bfloat16().clone() for parameter in module.parameters()]
    (message,) = told(module, data(), GradDiff())
    assert "learning rate of 1e-05" in message
    assert "bf16-mixed" in message
    moved = sum(int((p != q).sum()) for p, q in zip(module.parameters(), before, strict=True))
    assert moved < 0.5 * sum(parameter.numel() for parameter in module.parameters())
    assert module.model.model.rotary_emb.inv_freq.dtype == torch.float32
    assert told(LitCausalLM(str(tiny_lm), lr=1e-2), data(), GradDiff()) == []
    lora = {"r": 4, "target_modules": "all-linear"}
    assert told(LitCausalLM(str(tiny_lm), lr=1e-3, lora=lora), data(), GradDiff()) == []


def test_half_the_spacing_is_where_a_step_begins_to_move_a_weight() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        weights = torch.randn(1000).to(dtype)
        step = half_spacing(weights)
        up = torch.where(weights > 0, 1.0, -1.0)  # away from zero, where the spacing does not shrink
        assert torch.equal((weights.float() + up * step * 0.99).to(dtype), weights)
        assert torch.all((weights.float() + up * step * 1.01).to(dtype) != weights)


@pytest.mark.parametrize("family", ["GPT2", "OPT", "Falcon", "Bloom"])
def test_dropout_is_off_unless_asked_for(family: str, tmp_path: Path) -> None:
    configs: dict[str, Any] = {
        "GPT2": lambda: transformers.GPT2Config(**GPT),
        "OPT": lambda: transformers.OPTConfig(**SMALL, ffn_dim=64, word_embed_proj_dim=32),
        "Falcon": lambda: transformers.FalconConfig(**SMALL, hidden_dropout=0.2, attention_dropout=0.2),
        "Bloom": lambda: transformers.BloomConfig(
            vocab_size=60, hidden_size=32, n_layer=2, n_head=2, hidden_dropout=0.2
        ),
    }
    ids = torch.arange(30)[None]
    for dropout in (False, True):
        module = LitCausalLM(AutoModelForCausalLM.from_config(configs[family]()), dropout=dropout)
        assert module.model.training
        first, second = (module.model(ids).logits for _ in range(2))
        assert torch.equal(first, second) is not dropout
        module.save_pretrained(tmp_path)
        exported = transformers.AutoConfig.from_pretrained(tmp_path).to_dict()
        rates = {name: value for name, value in configs[family]().to_dict().items() if "drop" in name}
        assert {name: exported[name] for name in rates} == rates


def test_without_dropout_the_reference_does_not_drift(tiny_lm: Path, forget_rows: list[Any]) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_lm)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**{**GPT, "vocab_size": len(tokenizer)}))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*reference.*")
        run = trainer(NPO(), max_epochs=1, limit_val_batches=0)
        run.fit(LitCausalLM(model, tokenizer=tokenizer), LanguageDataModule(forget_rows, forget_rows[:1]))


def test_other_modules_are_warned_of_too() -> None:
    module = LitNet()
    module.configure_optimizers = lambda: torch.optim.AdamW(module.parameters(), lr=1e-6)  # type: ignore[method-assign]
    with pytest.warns(UserWarning, match="lost in rounding at .* of the bfloat16 weights"):
        trainer(GradDiff(score=classifier_nll), max_epochs=1, precision="bf16-true").fit(module, loaders())
