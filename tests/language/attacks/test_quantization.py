"""Quantisation attack: which weights are rounded, and that they come back."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from lightning_unlearn import LitCausalLM
from lightning_unlearn.functional import QUANTIZATION_SCHEMES, round_weight
from lightning_unlearn.language.attacks import QuantizationAttack
from lightning_unlearn.language.attacks.quantizers import rounding
from lightning_unlearn.language.attacks.swapping import linear_weights
from tests.language.attacks.worlds import PROBES, Unchanged, likelihoods, victim


def weights(module: LitCausalLM) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.model.state_dict().items()}


@pytest.mark.parametrize("name", ["int8", "int4", "nf4"])
def test_the_linear_layers_are_rounded_and_nothing_else(tiny_lm: Path, name: str) -> None:
    module = victim(tiny_lm, dtype="bfloat16")
    before, attack = weights(module), QuantizationAttack(name)
    with Unchanged(module):
        plain = likelihoods(module, PROBES)
        attacked = attack.knowledge(module, PROBES, likelihoods)
        with attack.quantized(module):
            after = weights(module)
        again = likelihoods(module, PROBES)
    linear = {f"{weight.name}.weight" for weight in linear_weights(module.model)}
    assert len(linear) == 2 * 7
    for key, value in before.items():
        expected = round_weight(value, QUANTIZATION_SCHEMES[name]) if key in linear else value
        assert torch.equal(after[key], expected), key
        assert after[key].dtype == torch.bfloat16
    assert torch.equal(plain.strength, again.strength)  # type: ignore[arg-type]
    assert not torch.equal(plain.strength, attacked.strength)  # type: ignore[arg-type]
    assert (attack.name, attack.gate) == (name, "int8" if name == "int8" else "int4")


def test_weights_come_back_after_an_exception(tiny_lm: Path) -> None:
    module = victim(tiny_lm)

    def broken(*_: Any) -> Any:
        raise KeyboardInterrupt

    with Unchanged(module), pytest.raises(KeyboardInterrupt):
        QuantizationAttack().knowledge(module, PROBES, broken)
    module.model.model.layers[1].mlp.down_proj.weight.data[0, 0] = float("nan")
    before = module.model.model.layers[0].mlp.down_proj.weight
    with pytest.raises(ValueError, match="NaN or infinite"):
        QuantizationAttack().knowledge(module, PROBES, likelihoods)
    assert module.model.model.layers[0].mlp.down_proj.weight is before


def test_a_tied_head_is_not_rounded_through_its_alias(tiny_lm: Path) -> None:
    module = victim(tiny_lm)
    table = module.model.get_input_embeddings().weight.clone()
    with QuantizationAttack("int4").quantized(module):
        assert torch.equal(module.model.lm_head.weight, table)
    attack = QuantizationAttack("int4", include_head=True)
    with attack.quantized(module):
        assert torch.equal(module.model.lm_head.weight, round_weight(table, QUANTIZATION_SCHEMES["int4"]))
        assert torch.equal(module.model.get_input_embeddings().weight, table)
    assert module.model.lm_head.weight is module.model.get_input_embeddings().weight
    assert attack.name == "int4_head"


def test_layers_of_gpt2_are_grouped_along_the_input(tiny_lm: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=400, n_positions=64, n_embd=24, n_layer=1, n_head=2))
    module = LitCausalLM(model, tokenizer=str(tiny_lm))
    before = weights(module)
    with QuantizationAttack("int4_g32").quantized(module):
        after = weights(module)
    for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"):
        key = f"transformer.h.0.{name}.weight"
        assert torch.equal(after[key], round_weight(before[key].t(), QUANTIZATION_SCHEMES["int4_g32"]).t())
        assert not torch.equal(after[key], round_weight(before[key], QUANTIZATION_SCHEMES["int4_g32"]))
    assert torch.equal(after["transformer.wte.weight"], before["transformer.wte.weight"])


def test_adapters_are_merged_first(tiny_lm: Path) -> None:
    lora = {"r": 2, "target_modules": ["q_proj", "down_proj"]}
    module = victim(tiny_lm, lora=lora, seed=0)
    merged = LitCausalLM(_merged(module), tokenizer=str(tiny_lm))
    attack = QuantizationAttack("int4")
    with Unchanged(module):
        attacked = attack.knowledge(module, PROBES, likelihoods)
    torch.testing.assert_close(attacked.strength, attack.knowledge(merged, PROBES, likelihoods).strength)
    assert attack.overlap(module, merged) == 1.0


def _merged(module: LitCausalLM) -> Any:
    from lightning_unlearn.language.adapters import merged_copy

    return merged_copy(module.model)


def test_the_overlap_of_codes_explains_what_comes_back(tiny_lm: Path) -> None:
    original, unlearned = victim(tiny_lm), victim(tiny_lm)
    with torch.no_grad():
        for parameter in unlearned.model.parameters():
            parameter += 2e-5 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)).sign()
    shares = {name: QuantizationAttack(name).overlap(unlearned, original) for name in ("int4", "int8", "nf4")}
    assert shares["int8"] < shares["int4"] < 1
    assert shares["int4"] > 0.99
    assert shares["nf4"] > 0.99
    assert QuantizationAttack("q8_0", backend="gguf").overlap(original, original) == 1.0
    other = LitCausalLM(_merged(victim(tiny_lm, lora={"r": 2, "target_modules": ["q_proj"]})), tokenizer=str(tiny_lm))
    other.model.model.layers = other.model.model.layers[:1]
    with pytest.raises(ValueError, match="differ in name or shape"):
        QuantizationAttack().overlap(other, original)


def test_weights_that_are_quantised_already_are_refused(tiny_lm: Path) -> None:
    module = victim(tiny_lm)
    layer = module.model.model.layers[0].mlp.up_proj
    layer.weight = nn.Parameter(torch.zeros(layer.weight.shape, dtype=torch.int8), requires_grad=False)
    with pytest.raises(TypeError, match=r"up_proj\.weight is torch\.int8: the model is quantised already"):
        QuantizationAttack().knowledge(module, PROBES, likelihoods)


@pytest.mark.parametrize(("scheme", "bits"), [("q4_0", 4), ("q8_0", 8)])
def test_a_round_trip_through_gguf(tiny_lm: Path, scheme: str, bits: int) -> None:
    """The scale of a block of 32 is its largest weight over -8 (over 127 for 8 bits), in half precision."""
    weight = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    rounded = rounding(scheme, "gguf")(weight)
    blocks = weight.view(-1, 32)
    if bits == 8:
        scale = blocks.abs().amax(1, keepdim=True) / 127
        codes = (blocks / scale).round()
    else:
        scale = blocks.gather(1, blocks.abs().argmax(1, keepdim=True)) / -8
        codes = (blocks / scale + 8.5).floor().clamp(0, 15) - 8
    torch.testing.assert_close(rounded.view(-1, 32), codes * scale.half().float())
    odd = torch.randn(2, 40)
    assert torch.equal(rounding(scheme, "gguf")(odd), odd.half().float()), "no whole block: half precision"
    with Unchanged(module := victim(tiny_lm)):
        attack = QuantizationAttack(scheme, backend="gguf")
        assert torch.isfinite(attack.knowledge(module, PROBES, likelihoods).strength).all()  # type: ignore[arg-type]
    assert attack.gate == ("int8" if bits == 8 else "int4")


def fake_bitsandbytes(calls: list[tuple[Any, ...]]) -> ModuleType:
    """The functions that are called, with the arithmetic of the plain schemes."""

    def quantize_4bit(weight: torch.Tensor, blocksize: int, quant_type: str) -> Any:
        calls.append((weight.dtype, blocksize, quant_type))
        return weight, quant_type

    def int8_vectorwise_quant(weight: torch.Tensor) -> Any:
        calls.append((weight.dtype,))
        return weight, None, None

    library: Any = ModuleType("bitsandbytes")
    library.functional = SimpleNamespace(
        quantize_4bit=quantize_4bit,
        dequantize_4bit=lambda packed, kind: round_weight(packed, QUANTIZATION_SCHEMES[kind]),
        int8_vectorwise_quant=int8_vectorwise_quant,
        int8_vectorwise_dequant=lambda codes, _: round_weight(codes.float(), QUANTIZATION_SCHEMES["int8"]),
    )
    return library


def test_bitsandbytes_is_called_as_its_layers_call_it(tiny_lm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setitem(sys.modules, "bitsandbytes", fake_bitsandbytes(calls))
    module = victim(tiny_lm)
    theirs = QuantizationAttack("nf4", backend="bitsandbytes")
    attacked = theirs.knowledge(module, PROBES, likelihoods)
    assert calls == [(torch.float32, 64, "nf4")] * 14
    ours = QuantizationAttack("nf4").knowledge(module, PROBES, likelihoods)
    assert torch.equal(attacked.strength, ours.strength)  # type: ignore[arg-type]
    assert (theirs.name, theirs.gate) == ("nf4_bitsandbytes", "int4")
    calls.clear()
    QuantizationAttack("int8", backend="bitsandbytes").knowledge(module, PROBES, likelihoods)
    assert calls == [(torch.float16,)] * 14


def test_torchao_is_given_a_layer_and_the_settings_of_the_scheme(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    class Rounded(nn.Parameter):
        def dequantize(self) -> torch.Tensor:
            return self.data.round()

    def quantize_(layer: nn.Module, config: Any) -> None:
        seen.append((layer.weight.shape, config))
        layer.weight = Rounded(layer.weight.data, requires_grad=False)

    quantization: Any = ModuleType("torchao.quantization")
    quantization.quantize_, quantization.Int8WeightOnlyConfig = quantize_, lambda: "int8"
    quantization.IntxWeightOnlyConfig = lambda weight_dtype, granularity: (weight_dtype, granularity)
    granularity: Any = ModuleType("torchao.quantization.granularity")
    granularity.PerGroup = lambda group: f"groups of {group}"
    for name, module in (("torchao", ModuleType("torchao")), (quantization.__name__, quantization)):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, granularity.__name__, granularity)
    weight = torch.randn(3, 64) * 4
    assert torch.equal(rounding("int8", "torchao")(weight), weight.round())
    assert torch.equal(rounding("int4_g32", "torchao")(weight), weight.round())
    assert seen == [((3, 64), "int8"), ((3, 64), (torch.int4, "groups of 32"))]
    with pytest.raises(ValueError, match="whole groups of 64, but a layer has 40 inputs"):
        rounding("int4", "torchao")(torch.randn(3, 40))


def test_what_is_missing_or_unknown_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for backend in ("bitsandbytes", "torchao"):
        monkeypatch.setitem(sys.modules, backend, None)
        with pytest.raises(ImportError, match=f"pip install {backend}"):
            QuantizationAttack("int8", backend=backend)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="schemes of backend='gguf'"):
        QuantizationAttack("int4", backend="gguf")
    with pytest.raises(ValueError, match="'nf4'"):
        QuantizationAttack("nf5")


def test_experts_in_one_tensor_are_warned_of(tiny_lm: Path) -> None:
    module = victim(tiny_lm)
    module.model.model.layers[0].mlp.experts = nn.Parameter(torch.zeros(4, 128, 128))
    with pytest.warns(UserWarning, match="outside its linear layers"):
        QuantizationAttack().knowledge(module, PROBES, likelihoods)
