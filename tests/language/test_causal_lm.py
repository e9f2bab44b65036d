from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_unlearn import NPO, LanguageDataModule, LitCausalLM, PromptFormat, SimNPO, causal_lm_nll
from lightning_unlearn.core.layers import decoder_layers
from lightning_unlearn.functional.likelihood import sequence_nll
from lightning_unlearn.functional.objectives.simnpo import simnpo
from lightning_unlearn.language.data.token_rows import collate_tokens
from tests.user_module import trainer

Rows = list[dict[str, Any]]


def batch_of(module: LitCausalLM, rows: Rows) -> dict[str, Tensor]:
    data = LanguageDataModule(rows, prompt=PromptFormat(module.tokenizer))
    data.setup("fit")
    return collate_tokens([data.sets["forget"][i] for i in range(len(rows))])


def predictions(module: LitCausalLM, batch: dict[str, Tensor]) -> Any:
    return causal_lm_nll.predictions(module, batch)  # type: ignore[attr-defined]


def fit(module: LitCausalLM, forget: Rows, retain: Rows, method: Any, **options: Any) -> L.Trainer:
    torch.manual_seed(0)
    run = trainer(method, **({"max_epochs": 3, "limit_val_batches": 0} | options))
    run.fit(module, LanguageDataModule(forget, retain, batch_size=2))
    return run


def test_logits_are_computed_only_where_there_are_labels(tiny_lm: Path, forget_rows: Rows) -> None:
    module = LitCausalLM(str(tiny_lm))
    batch = batch_of(module, forget_rows)
    heads: list[torch.Size] = []
    module.model.lm_head.register_forward_hook(lambda _, args, out: heads.append(out.shape))
    found = predictions(module, batch)
    supervised = int((batch["labels"][:, 1:] >= 0).sum())
    assert heads == [torch.Size([supervised, module.model.config.vocab_size])]
    assert batch["labels"].numel() > 2 * supervised

    nll, length = sequence_nll(module(batch["input_ids"], batch["attention_mask"]).logits, batch["labels"])
    torch.testing.assert_close(found.nll(), nll)
    assert torch.equal(found.length(), length)
    hf = module.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["labels"]).loss
    torch.testing.assert_close(nll.sum() / length.sum(), hf)


def test_the_gradient_is_that_of_full_logits(tiny_lm: Path, forget_rows: Rows) -> None:
    module = LitCausalLM(str(tiny_lm))
    batch = batch_of(module, forget_rows)
    parameters = list(module.parameters())
    sparse = torch.autograd.grad(causal_lm_nll(module, batch).sum(), parameters)
    full = sequence_nll(module(batch["input_ids"], batch["attention_mask"]).logits, batch["labels"])[0].sum()
    for a, b in zip(sparse, torch.autograd.grad(full, parameters), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("side", ["right", "left"])
def test_simnpo_does_not_depend_on_padding(tiny_lm: Path, forget_rows: Rows, side: str) -> None:
    module = LitCausalLM(str(tiny_lm))
    batch = batch_of(module, forget_rows)
    expected = simnpo(predictions(module, batch).nll(), predictions(module, batch).length())
    for width in (1, 7):
        pad = (0, width) if side == "right" else (width, 0)
        padded = {
            k: torch.nn.functional.pad(v, pad, value=-100 if k == "labels" else 0)
            for k, v in batch.items()
            if v.dim() == 2
        }
        found = predictions(module, padded)
        torch.testing.assert_close(simnpo(found.nll(), found.length()), expected, atol=1e-5, rtol=0)


def test_length_does_not_count_the_prompt(tiny_lm: Path, forget_rows: Rows) -> None:
    module = LitCausalLM(str(tiny_lm))
    long = [{**row, "question": row["question"] * 3} for row in forget_rows]
    short_length, long_length = (predictions(module, batch_of(module, rows)).length() for rows in (forget_rows, long))
    assert torch.equal(short_length, long_length)
    answers = [len(module.tokenizer(row["answer"])["input_ids"]) + 1 for row in forget_rows]
    assert short_length.tolist() == answers


@pytest.mark.parametrize("lora", [None, {"r": 4, "target_modules": "all-linear"}])
def test_the_export_opens_in_plain_transformers_with_the_same_logits(
    tiny_lm: Path, tmp_path: Path, forget_rows: Rows, retain_rows: Rows, lora: dict[str, Any] | None
) -> None:
    module = LitCausalLM(str(tiny_lm), lr=1e-2, lora=lora)
    fit(module, forget_rows, retain_rows, SimNPO())
    before = {k: v.clone() for k, v in module.state_dict().items()}
    module.save_pretrained(tmp_path)
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())

    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    batch = batch_of(module, forget_rows)
    inputs = {k: batch[k] for k in ("input_ids", "attention_mask")}
    torch.testing.assert_close(plain(**inputs).logits, module.model(**inputs).logits, atol=1e-5, rtol=1e-4)
    start = AutoModelForCausalLM.from_pretrained(tiny_lm)
    assert not torch.allclose(start(**inputs).logits, plain(**inputs).logits, atol=1e-3)
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == module.tokenizer.chat_template


def test_loras_reference_is_the_disabled_adapter(tiny_lm: Path, forget_rows: Rows, retain_rows: Rows) -> None:
    method = NPO(reference="snapshot")
    module = LitCausalLM(str(tiny_lm), lr=1e-2, lora={"r": 4, "target_modules": "all-linear"})
    fit(module, forget_rows, retain_rows, method)
    assert method.snapshot is not None
    assert method.snapshot.values == {}
    batch = batch_of(module, forget_rows)
    start = causal_lm_nll(LitCausalLM(str(tiny_lm)), batch)
    torch.testing.assert_close(method.reference_nll(module, {"forget": batch})["forget"], start)
    assert not torch.allclose(causal_lm_nll(module, batch), start, atol=1e-2)


@pytest.mark.parametrize("lora", [None, {"r": 4, "target_modules": "all-linear"}])
def test_checkpoints_load_with_weights_only(
    tiny_lm: Path, tmp_path: Path, forget_rows: Rows, retain_rows: Rows, lora: dict[str, Any] | None
) -> None:
    module = LitCausalLM(str(tiny_lm), lr=1e-2, lora=lora)
    fit(module, forget_rows, retain_rows, SimNPO()).save_checkpoint(tmp_path / "run.ckpt")
    loaded = LitCausalLM.load_from_checkpoint(tmp_path / "run.ckpt", weights_only=True)
    assert loaded.lr == 1e-2
    for key, value in module.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)


def test_adapters_are_those_of_peft_and_their_settings_are_saved_as_plain_values(
    tiny_lm: Path, tmp_path: Path, forget_rows: Rows, retain_rows: Rows
) -> None:
    config = LoraConfig(r=4, lora_alpha=32, target_modules=["q_proj", "down_proj"])
    module = LitCausalLM(str(tiny_lm), lr=1e-2, lora=config)
    assert config.task_type is None  # what was given stays as it is
    fit(module, forget_rows, retain_rows, SimNPO()).save_checkpoint(tmp_path / "run.ckpt")
    saved = torch.load(tmp_path / "run.ckpt", weights_only=True)["hyper_parameters"]["lora"]
    plain = {"r": 4, "lora_alpha": 32, "target_modules": ["down_proj", "q_proj"]}
    assert saved == {**plain, "task_type": "CAUSAL_LM"}
    scales = {layer.scaling["default"] for layer in module.modules() if isinstance(layer, LoraLayer)}
    assert scales == {8.0}
    again = LitCausalLM(str(tiny_lm), lora=plain)
    assert again.state_dict().keys() == module.state_dict().keys()


@pytest.mark.parametrize(
    "field", [{"bias": "all"}, {"use_dora": True}, {"modules_to_save": ["lm_head"]}, {"init_lora_weights": "pissa"}]
)
def test_adapters_of_another_kind_are_refused(field: dict[str, Any], tiny_lm: Path) -> None:
    with pytest.raises(ValueError, match=f"plain adapters that start at zero, but lora has .*{next(iter(field))}"):
        LitCausalLM(str(tiny_lm), lora=field)


@pytest.mark.parametrize(
    "given", [{"r": 4}, {"class_path": "peft.LoraConfig", "init_args": {"r": 4}}], ids=["fields", "class_path"]
)
def test_adapters_from_yaml(given: dict[str, Any], tiny_lm: Path) -> None:
    parser = ArgumentParser()
    parser.add_class_arguments(LitCausalLM, "model")
    config = parser.parse_object({"model": {"model": str(tiny_lm), "lora": given}})
    module = parser.instantiate(config).model
    assert module.hparams["lora"] == {"r": 4, "task_type": "CAUSAL_LM"}


class Mesh(dict):
    """A mesh of so many processes a dimension."""

    def __init__(self, **sizes: int) -> None:
        super().__init__({name: SimpleNamespace(size=lambda size=size: size) for name, size in sizes.items()})


def test_a_tensor_parallel_group_is_refused(tiny_lm: Path) -> None:
    module = LitCausalLM(str(tiny_lm))
    module._device_mesh = Mesh(data_parallel=1, tensor_parallel=2)  # type: ignore[assignment]
    with pytest.raises(MisconfigurationException, match=r"groups of 2 processes.*LitCausalLM.*tensor_parallel_size=1"):
        module.configure_model()
    module._device_mesh = Mesh(data_parallel=1, tensor_parallel=1)  # type: ignore[assignment]
    module.configure_model()


class Experts(nn.Module):
    """A decoder of two layers, of four experts each."""

    def __init__(self, depth: int | None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(self.layer() for _ in range(2))
        self.others = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))
        self.config = SimpleNamespace(num_hidden_layers=depth)

    @staticmethod
    def layer() -> nn.Module:
        return nn.ModuleDict({"experts": nn.ModuleList(nn.Linear(2, 2) for _ in range(4))})


def test_the_decoder_layers_are_sharded_and_not_the_experts_in_them() -> None:
    model = Experts(depth=2)
    assert decoder_layers(model)[1] is model.layers
    model = Experts(depth=None)
    assert decoder_layers(model)[1] is model.others  # the longest list that is in no other
    assert len(decoder_layers(nn.Linear(2, 2))[1]) == 0


def test_only_trainable_parameters_move(tiny_lm: Path, forget_rows: Rows, retain_rows: Rows) -> None:
    module = LitCausalLM(str(tiny_lm), lr=1e-2, trainable=r"layers\.1\.mlp\.down_proj")
    before = {k: v.clone() for k, v in module.state_dict().items()}
    fit(module, forget_rows, retain_rows, NPO(reference="snapshot"))
    moved = [k for k, v in module.state_dict().items() if not torch.equal(v, before[k])]
    assert moved == ["model.model.layers.1.mlp.down_proj.weight"]
    with pytest.raises(ValueError, match=r"trainable='nose' is found in no parameter name. Names look like 'model"):
        LitCausalLM(str(tiny_lm), trainable="nose")


def test_gradient_checkpointing_trains_the_same_weights(tiny_lm: Path, forget_rows: Rows, retain_rows: Rows) -> None:
    found = []
    for checkpointing in (False, True):
        module = LitCausalLM(str(tiny_lm), lr=1e-3, gradient_checkpointing=checkpointing)
        fit(module, forget_rows, retain_rows, SimNPO())
        assert module.model.model.gradient_checkpointing is checkpointing
        found.append(module.state_dict())
    for key, value in found[0].items():
        torch.testing.assert_close(found[1][key], value, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("constant", 0, [1, 1, 1, 1, 1, 1]),
        ("constant", 3, [0, 1 / 3, 2 / 3, 1, 1, 1]),
        ("linear", 1 / 3, [0, 1 / 2, 1, 3 / 4, 1 / 2, 1 / 4]),
        ("cosine", 0, [1, 0.933, 0.75, 0.5, 0.25, 0.067]),
    ],
)
def test_the_schedule_goes_by_steps(
    tiny_lm: Path, forget_rows: Rows, retain_rows: Rows, schedule: Any, warmup: float, expected: list[float]
) -> None:
    rates: list[float] = []

    class Watch(L.Callback):
        def on_before_optimizer_step(self, trainer: L.Trainer, module: Any, optimizer: Any) -> None:
            rates.append(optimizer.param_groups[0]["lr"] / module.lr)

    module = LitCausalLM(str(tiny_lm), lr=1e-3, schedule=schedule, warmup=warmup)
    run = trainer(SimNPO(), Watch(), max_epochs=3, limit_val_batches=0)
    run.fit(module, LanguageDataModule(forget_rows, retain_rows, batch_size=2))
    assert rates == pytest.approx(expected, abs=1e-3)


def test_validation_is_the_token_mean_of_each_set(tiny_lm: Path, forget_rows: Rows, retain_rows: Rows) -> None:
    module = LitCausalLM(str(tiny_lm))
    data = LanguageDataModule(forget_rows, retain_rows, heldout={"more": retain_rows[:1]}, batch_size=3)
    found = trainer().validate(module, data, verbose=False)
    metrics = {k: v for part in found for k, v in part.items()}
    assert metrics.keys() == {"val/forget_nll", "val/retain_nll", "val/more_nll"}
    nll = predictions(module, batch_of(module, forget_rows))
    assert metrics["val/forget_nll"] == pytest.approx((nll.nll().sum() / nll.length().sum()).item(), rel=1e-5)


def test_answers_do_not_depend_on_their_batch(tiny_lm: Path) -> None:
    module = LitCausalLM(str(tiny_lm))
    questions = ["What is the capital of France?", "Why?", "What is the capital of the country with the city Lima?"]
    together = module.answer(questions, max_new_tokens=6)
    assert together == [module.answer([question], max_new_tokens=6)[0] for question in questions]


@pytest.mark.slow
@pytest.mark.alone
def test_a_gguf_file_is_a_real_chat_model_and_its_export_opens_in_plain_transformers(
    smollm2: str, tmp_path: Path
) -> None:
    module = LitCausalLM(smollm2)
    answer = module.answer(["What is the capital of France?"])[0]
    assert "Paris" in answer
    module.save_pretrained(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    for key, value in plain.state_dict().items():
        assert torch.equal(module.model.state_dict()[key], value)
    again = LitCausalLM(str(tmp_path))
    assert again.answer(["What is the capital of France?"])[0] == answer


class Casts(TorchDispatchMode):
    """Counts how often fp32 weights of a size are cast to bf16."""

    def __init__(self, size: torch.Size) -> None:
        super().__init__()
        self.size, self.count = size, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._to_copy.default and args[0].shape == self.size:
            self.count += 1
        return func(*args, **(kwargs or {}))


def test_answers_in_mixed_precision_cast_each_weight_once_and_never_an_old_one(tiny_lm: Path) -> None:
    module = LitCausalLM(str(tiny_lm))
    weight = module.model.model.layers[0].mlp.down_proj.weight
    questions = ["What is the capital of France?", "What is the capital of Peru?"]

    def answers() -> list[str]:
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            return module.answer(questions, max_new_tokens=6)

    with Casts(weight.shape) as casts:
        first = answers()
    assert casts.count == len([p for p in module.parameters() if p.shape == weight.shape])

    other = LitCausalLM(str(tiny_lm))
    with torch.no_grad():
        for parameter in (*module.parameters(), *other.parameters()):
            parameter.copy_(torch.sin(torch.arange(parameter.numel()).view_as(parameter).float()))
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        expected = other.answer(questions, max_new_tokens=6)
        assert module.answer(questions, max_new_tokens=6) == expected != first


def test_a_fused_optimizer_is_clipped_in_bf16_mixed(tiny_lm: Path, forget_rows: Rows, retain_rows: Rows) -> None:
    norms: list[float] = []

    class Norms(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
            norms.append(torch.cat([p.grad.flatten() for p in pl_module.parameters() if p.grad is not None]).norm())

    module = LitCausalLM(str(tiny_lm))
    torch.manual_seed(0)
    run = trainer(SimNPO(), Norms(), max_epochs=1, limit_val_batches=0, precision="bf16-mixed", gradient_clip_val=1e-3)
    run.fit(module, LanguageDataModule(forget_rows, retain_rows, batch_size=2))
    assert run.optimizers[0].defaults["fused"]
    assert norms == pytest.approx([1e-3] * len(norms), rel=1e-3)
