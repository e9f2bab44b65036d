"""Adapters of PEFT as the original model: start, reference and export are those of the adapted model."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from peft import (
    AdaLoraConfig,
    IA3Config,
    LoHaConfig,
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
    get_peft_model,
)
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_unlearn import NPO, GradDiff, LanguageDataModule, LitCausalLM
from lightning_unlearn.language import starts
from tests.user_module import trainer

IDS = torch.tensor([[5, 9, 40, 7, 300, 12]])
TARGETS = ["q_proj", "down_proj"]


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def adapted(base: Path, config: Any, words: list[str] | None = None) -> tuple[Any, Any]:
    """A model with an adapter of random weights, and its tokenizer."""
    tokenizer, model = AutoTokenizer.from_pretrained(base), AutoModelForCausalLM.from_pretrained(base)
    if words:
        tokenizer.add_tokens(words)
        model.resize_token_embeddings(len(tokenizer))
    torch.manual_seed(1)
    tuned = get_peft_model(model, config)
    for name, parameter in tuned.named_parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, mean=1.0 if "ia3" in name else 0.0, std=0.2)
    return tuned, tokenizer


def folder(base: Path, path: Path, config: Any, words: list[str] | None = None) -> tuple[str, Tensor]:
    tuned, tokenizer = adapted(base, config, words)
    tuned.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path), logits(tuned)


def fit(module: LitCausalLM, rows: list[Any], method: Any = None) -> None:
    trainer(method or GradDiff(), max_epochs=1, limit_val_batches=0).fit(module, LanguageDataModule(rows, rows[:1]))


KINDS: dict[str, Any] = {
    "LoRA": LoraConfig(r=4, target_modules=TARGETS),
    "DoRA, rank-stabilized": LoraConfig(r=4, target_modules=TARGETS, use_dora=True, use_rslora=True),
    "biases": LoraConfig(r=4, target_modules=TARGETS, bias="all"),
    "a head of its own": LoraConfig(r=4, target_modules=TARGETS, modules_to_save=["lm_head"]),
    "the table of a tied head": LoraConfig(r=4, target_modules=[*TARGETS, "embed_tokens"]),
    "LoHa": LoHaConfig(r=4, target_modules=TARGETS),
    "IA3": IA3Config(target_modules=TARGETS, feedforward_modules=["down_proj"]),
    "AdaLoRA": AdaLoraConfig(init_r=4, target_r=2, total_step=10, target_modules=TARGETS),
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_folder_is_merged_and_its_export_is_what_was_trained(
    kind: str, tiny_lm: Path, tmp_path: Path, forget_rows: list[Any]
) -> None:
    config = KINDS[kind]
    config.task_type = "CAUSAL_LM"
    path, tuned = folder(tiny_lm, tmp_path / "adapter", config)
    base = logits(AutoModelForCausalLM.from_pretrained(tiny_lm))
    assert (tuned - base).abs().max() > 2e-3
    module = LitCausalLM(path, lr=1e-2)
    torch.testing.assert_close(logits(module.model), tuned, atol=1e-5, rtol=1e-4)
    assert all(parameter.requires_grad for parameter in module.model.parameters())
    module.save_pretrained(tmp_path / "start")
    start = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "start"))
    torch.testing.assert_close(start, tuned, atol=1e-5, rtol=1e-4)


def test_with_lora_the_reference_and_with_trainable_the_export_start_at_the_adapted_model(
    tiny_lm: Path, tmp_path: Path, forget_rows: list[Any]
) -> None:
    path, tuned = folder(tiny_lm, tmp_path / "adapter", LoraConfig(r=4, target_modules=TARGETS, task_type="CAUSAL_LM"))
    for number, options in enumerate(({"lora": {"r": 4, "target_modules": TARGETS}}, {"trainable": "mlp"})):
        module, method = LitCausalLM(path, lr=1e-2, **options), NPO(reference="snapshot")  # type: ignore[arg-type]
        torch.testing.assert_close(logits(module.model), tuned, atol=1e-5, rtol=1e-4)
        fit(module, forget_rows, method)
        assert method.snapshot is not None
        with method.snapshot.active(module):
            torch.testing.assert_close(logits(module.model), tuned, atol=1e-5, rtol=1e-4)
        after = logits(module.model)
        assert (after - tuned).abs().max() > 2e-3
        module.save_pretrained(tmp_path / str(number))
        torch.testing.assert_close(
            logits(AutoModelForCausalLM.from_pretrained(tmp_path / str(number))), after, atol=1e-5, rtol=1e-4
        )


@pytest.mark.parametrize("kind", ["Mixtral", "Qwen3Moe"])
def test_adapters_of_stacked_experts_are_in_the_export(kind: str, tmp_path: Path) -> None:
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    widths = {"intermediate_size": 48, "moe_intermediate_size": 16}
    experts = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2}
    config = getattr(transformers, f"{kind}Config")(vocab_size=400, initializer_range=0.3, **size, **widths, **experts)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    module = LitCausalLM(tmp_path / "base", lora={"r": 4, "target_modules": "all-linear"})
    adapters = [name for name, _ in module.named_parameters() if "experts" in name and "lora_B" in name]
    assert len(adapters) == 4  # of two stacks in each layer
    start = logits(module.model)
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2 if "experts" in name else 0.0)
    assert (logits(module.model) - start).abs().max() > 0.1
    module.save_pretrained(tmp_path / "out")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(plain), logits(module.model), atol=1e-4, rtol=1e-4)


def test_an_adapter_of_single_experts_is_that_of_the_stack(tmp_path: Path) -> None:
    """PEFT with transformers 4 wrote one adapter for each matrix of each expert."""
    size = {"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 48}
    config = transformers.MixtralConfig(vocab_size=400, num_hidden_layers=1, num_local_experts=3, **size)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    weights, stacks = {}, dict(base.named_parameters())
    for expert in range(3):
        delta = {}
        for name, (rows, columns) in {"w1": (48, 32), "w2": (32, 48), "w3": (48, 32)}.items():
            layer = f"base_model.model.model.layers.0.block_sparse_moe.experts.{expert}.{name}"
            a, b = 0.3 * torch.randn(4, columns), 0.3 * torch.randn(rows, 4)
            weights |= {f"{layer}.lora_A.weight": a, f"{layer}.lora_B.weight": b}
            delta[name] = 2 * b @ a
        with torch.no_grad():
            stacks["model.layers.0.mlp.experts.gate_up_proj"][expert] += torch.cat([delta["w1"], delta["w3"]])
            stacks["model.layers.0.mlp.experts.down_proj"][expert] += delta["w2"]
    fields = {"target_modules": ["w1", "w2", "w3"], "base_model_name_or_path": str(tmp_path / "base")}
    LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **fields).save_pretrained(tmp_path / "adapter")
    save_file(weights, tmp_path / "adapter" / "adapter_model.safetensors")
    torch.testing.assert_close(logits(LitCausalLM(tmp_path / "adapter").model), logits(base), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("trained", [False, True])
def test_a_peft_model_goes_on_with_its_adapter_from_where_it_is(
    trained: bool, tiny_lm: Path, tmp_path: Path, forget_rows: list[Any]
) -> None:
    config = LoraConfig(r=4, target_modules=TARGETS, task_type="CAUSAL_LM")
    if trained:
        path, _ = folder(tiny_lm, tmp_path / "adapter", config)
        base = AutoModelForCausalLM.from_pretrained(tiny_lm)
        frozen = PeftModel.from_pretrained(base, path)
        with pytest.raises(ValueError, match=r"No parameter of the PeftModel trains.*is_trainable=True"):
            LitCausalLM(frozen)
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_lm), path, is_trainable=True)
    else:
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_lm), config)
    start = logits(model)
    module, method = LitCausalLM(model, lr=1e-2, tokenizer=str(tiny_lm)), NPO(reference="snapshot")
    fit(module, forget_rows, method)
    assert method.snapshot is not None
    assert {name.split(".")[-3] for name in method.snapshot.values if "lora" in name} == {"lora_A", "lora_B"}
    with method.snapshot.active(module):
        torch.testing.assert_close(logits(module.model), start)
    after = logits(module.model)
    assert (after - start).abs().max() > 2e-3
    module.save_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(module.model), after)
    torch.testing.assert_close(
        logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), after, atol=1e-5, rtol=1e-4
    )


def test_an_adapter_with_words_of_its_own_brings_its_tokenizer_and_tables(tiny_lm: Path, tmp_path: Path) -> None:
    words = ["<first>", "<second>"]
    for name, config in {
        "tables": LoraConfig(r=4, target_modules=TARGETS, task_type="CAUSAL_LM"),
        "saved": LoraConfig(r=4, target_modules=TARGETS, modules_to_save=["embed_tokens"], task_type="CAUSAL_LM"),
    }.items():
        path, tuned = folder(tiny_lm, tmp_path / name, config, words)
        module = LitCausalLM(path)
        assert len(module.tokenizer) == tuned.shape[-1]
        torch.testing.assert_close(logits(module.model), tuned, atol=1e-5, rtol=1e-4)


def test_an_export_is_not_written_beside_an_adapter_or_other_weights(tiny_lm: Path, tmp_path: Path) -> None:
    lora = LoraConfig(r=4, target_modules=TARGETS, task_type="CAUSAL_LM")
    path, _ = folder(tiny_lm, tmp_path / "adapter", lora)
    module = LitCausalLM(path)
    with pytest.raises(FileExistsError, match=r"has adapter_config.json, adapter_model.safetensors, which would stay"):
        module.save_pretrained(path)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "pytorch_model.bin").touch()
    with pytest.raises(FileExistsError, match=r"has pytorch_model.bin, which would stay"):
        module.save_pretrained(tmp_path / "old")
    AutoModelForCausalLM.from_pretrained(tiny_lm).save_pretrained(tmp_path / "new", max_shard_size="40KB")
    assert (tmp_path / "new" / "model.safetensors.index.json").is_file()
    for _ in range(2):
        module.save_pretrained(tmp_path / "new")
        assert [file.name for file in (tmp_path / "new").glob("*model*")] == ["model.safetensors"]


def test_an_adapter_on_an_adapter(tiny_lm: Path, tmp_path: Path) -> None:
    config = LoraConfig(r=4, target_modules=TARGETS, task_type="CAUSAL_LM")
    first, _ = folder(tiny_lm, tmp_path / "first", config)
    merged = tmp_path / "merged"
    LitCausalLM(first).save_pretrained(merged)
    second, tuned = folder(merged, tmp_path / "second", config)
    _rewrite(second, base_model_name_or_path=first)
    torch.testing.assert_close(logits(LitCausalLM(second).model), tuned, atol=1e-5, rtol=1e-4)


def _rewrite(path: str, **fields: Any) -> None:
    file = Path(path) / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def test_what_can_not_be_merged_or_does_not_fit_is_refused(tiny_lm: Path, tmp_path: Path) -> None:
    lora = LoraConfig(r=4, target_modules=TARGETS, task_type="CAUSAL_LM")
    for kind, config in {
        "PROMPT_TUNING": PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"),
        "PREFIX_TUNING": PrefixTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"),
    }.items():
        tuned, _ = adapted(tiny_lm, config)
        tuned.save_pretrained(tmp_path / kind)
        for start in (str(tmp_path / kind), tuned):
            with pytest.raises(ValueError, match=f"adapter of kind {kind}, which .* can't be merged"):
                LitCausalLM(start)

    path, _ = folder(tiny_lm, tmp_path / "biased", LoraConfig(target_modules=TARGETS, lora_bias=True))
    with pytest.raises(ValueError, match=r"adapter of kind LORA, which PEFT can't merge .* no bias"):
        LitCausalLM(path)

    path, _ = folder(tiny_lm, tmp_path / "adapter", lora)
    moved = tmp_path / "elsewhere" / "base"
    _rewrite(path, base_model_name_or_path=str(moved))
    with pytest.raises(
        ValueError, match=r"adapter .* base model '.*base', which can't be opened.*base_model_name_or_path"
    ):
        LitCausalLM(path)
    _rewrite(path, base_model_name_or_path=None)
    with pytest.raises(ValueError, match="does not say which model it belongs to"):
        LitCausalLM(path)

    model = AutoModelForCausalLM.from_pretrained(tiny_lm)
    for size, change in {"narrow": {"hidden_size": 16}, "short": {"num_hidden_layers": 1}}.items():
        other = type(model)(type(model.config)(**model.config.to_dict() | change))
        other.save_pretrained(tmp_path / size)
        _rewrite(path, base_model_name_or_path=str(tmp_path / size))
        with pytest.raises(ValueError, match=f"does not fit its base model '.*{size}'"):
            LitCausalLM(path)

    _rewrite(path, base_model_name_or_path=str(tiny_lm))
    with pytest.raises(ValueError, match="is an adapter, and quantised weights"):
        LitCausalLM(path, quantization={"load_in_4bit": True}, lora={"r": 4, "target_modules": TARGETS})
    for file in ("config.json", "model.safetensors"):
        shutil.copy(tiny_lm / file, path)
    with pytest.raises(ValueError, match="both the weights of a model and an adapter"):
        LitCausalLM(path)


class Params4bit(torch.nn.Parameter):
    """A weight as bitsandbytes keeps it: bytes that do not train, and a state that says how to read them."""

    quant_state: Tensor


class Linear4bit(torch.nn.Linear):
    def __init__(self, layer: torch.nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None)
        scale = layer.weight.detach().abs().max() / 7
        self.weight = Params4bit((layer.weight.detach() / scale).round().to(torch.int8), requires_grad=False)
        self.weight.quant_state = scale  # type: ignore[attr-defined]

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight.quant_state.bitsandbytes__nf4"] = self.weight.quant_state

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.linear(x, dequantize_4bit(self.weight, self.weight.quant_state), self.bias)  # type: ignore[arg-type]


def dequantize_4bit(weight: Tensor, state: Tensor) -> Tensor:
    return weight.float() * state


def test_quantised_weights_train_with_lora_and_are_exported_in_floating_point(
    tiny_lm: Path, tmp_path: Path, forget_rows: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"quantization": {"load_in_4bit": True}, "lr": 1e-2}
    lora = {"r": 4, "target_modules": TARGETS}
    with pytest.raises(ValueError, match=r"quantised weights do not train. Train adapters beside them: lora="):
        LitCausalLM(str(tiny_lm), **options)
    monkeypatch.setattr(starts, "_has_bitsandbytes", lambda: False)
    with pytest.raises(ImportError, match="pip install bitsandbytes"):
        LitCausalLM(str(tiny_lm), **options, lora=lora)

    real = AutoModelForCausalLM.from_pretrained

    def quantising(name: str, quantization_config: Any, **others: Any) -> Any:
        model, report = real(name, **others)
        for path, layer in list(model.named_modules()):
            if isinstance(layer, torch.nn.Linear) and path != "lm_head":
                model.set_submodule(path, Linear4bit(layer))
        model.config.quantization_config = quantization_config
        return model, report

    with monkeypatch.context() as patch:
        patch.setattr(starts, "_has_bitsandbytes", lambda: True)
        patch.setattr(transformers, "BitsAndBytesConfig", lambda **fields: {"quant_method": "bitsandbytes", **fields})
        patch.setattr(AutoModelForCausalLM, "from_pretrained", quantising)
        module = LitCausalLM(str(tiny_lm), **options, lora=lora)
    start = logits(module.model)
    fit(module, forget_rows)
    after = logits(module.model)
    assert (after - start).abs().max() > 2e-3
    library = SimpleNamespace(functional=SimpleNamespace(dequantize_4bit=dequantize_4bit))
    monkeypatch.setitem(sys.modules, "bitsandbytes", library)  # type: ignore[arg-type]
    module.save_pretrained(tmp_path / "out")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert {parameter.dtype for parameter in plain.parameters()} == {torch.float32}
    assert not hasattr(plain.config, "quantization_config")
    torch.testing.assert_close(logits(plain), after, atol=1e-5, rtol=1e-4)
