"""Representation misdirection on a Llama of two layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_unlearn import RMU, LanguageDataModule, LitCausalLM, PromptFormat
from lightning_unlearn.core.lightning import MisconfigurationException
from lightning_unlearn.core.reference import SnapshotReference
from lightning_unlearn.functional.language.rmu import control_vector
from lightning_unlearn.language.data.token_rows import collate_tokens
from tests.helpers import save_resumable
from tests.user_module import trainer, weights

Rows = list[dict[str, Any]]
DOWN = "mlp.down_proj.weight"


class UserLM(L.LightningModule):
    """A Hugging Face model in a module that is not ours; its optimizer takes all parameters and decays them."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.lm = AutoModelForCausalLM.from_pretrained(folder)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.lm(input_ids=input_ids, attention_mask=attention_mask).logits

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.lm(**batch).loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2, weight_decay=0.1)


def rmu(**options: Any) -> RMU:
    return RMU(**({"layer": "model.layers.1", "steering": 2.0, "retain_weight": 1.0} | options))


def fit(module: L.LightningModule, method: RMU, forget: Rows, retain: Rows, *callbacks: Any, **options: Any) -> Any:
    torch.manual_seed(0)
    fit_options = {k: options.pop(k) for k in ("ckpt_path", "weights_only") if k in options}
    run = trainer(method, *callbacks, **({"max_epochs": 2, "limit_val_batches": 0} | options))
    tokenizer = AutoTokenizer.from_pretrained(module.hparams.get("folder") or module.hparams["model"])
    run.fit(module, LanguageDataModule(forget, retain, prompt=PromptFormat(tokenizer), batch_size=2), **fit_options)
    return run


def batch_of(module: LitCausalLM, rows: Rows) -> dict[str, Tensor]:
    data = LanguageDataModule(rows, prompt=PromptFormat(module.tokenizer))
    data.setup("fit")
    return collate_tokens([data.sets["forget"][i] for i in range(len(rows))])


def padded(batch: dict[str, Tensor], left: int, right: int) -> dict[str, Tensor]:
    return {
        k: nn.functional.pad(v, (left, right), value=-100 if k == "labels" else 0) if v.dim() == 2 else v
        for k, v in batch.items()
    }


def moved(module: nn.Module, before: dict[str, Tensor]) -> list[str]:
    return [name for name, value in module.state_dict().items() if not torch.equal(value, before[name])]


def copy(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_later_layers_and_the_head_never_run(
    tiny_lm: Path, forget_rows: Rows, retain_rows: Rows, checkpointing: bool
) -> None:
    module = LitCausalLM(str(tiny_lm), lr=1e-3, gradient_checkpointing=checkpointing)
    calls: list[str] = []
    for name in ("model.layers.0.mlp", "model.layers.1", "model.norm", "lm_head"):
        module.model.get_submodule(name).register_forward_pre_hook(lambda *_, name=name: calls.append(name))
    fit(module, rmu(layer="model.layers.0"), forget_rows, retain_rows, max_steps=2)
    assert set(calls) == {"model.layers.0.mlp"}
    # A reference and a training forward a step; activation checkpointing recomputes the latter.
    assert len(calls) == 2 * (3 if checkpointing else 2)
    assert torch._C._autograd._top_saved_tensors_default_hooks(False) is None
    assert module.model.model.layers[0]._forward_hooks == {}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_gradient_checkpointing_trains_the_same_weights(
    tiny_lm: Path, forget_rows: Rows, retain_rows: Rows, precision: str
) -> None:
    found = []
    for checkpointing in (False, True):
        module = LitCausalLM(str(tiny_lm), lr=1e-3, gradient_checkpointing=checkpointing)
        fit(module, rmu(), forget_rows, retain_rows, precision=precision)
        found.append(weights(module))
    assert torch.equal(*found)


class Wrapper(nn.Module):
    """What ``torch.compile`` makes of a block, which may also recompute its activations."""

    def __init__(self, block: nn.Module, checkpointing: bool = False) -> None:
        super().__init__()
        self._orig_mod, self.checkpointing = block, checkpointing

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.checkpointing:
            return checkpoint(self._orig_mod, *args, use_reentrant=False, **kwargs)
        return self._orig_mod(*args, **kwargs)


def test_the_forward_pass_may_be_left_inside_of_a_checkpoint(
    tiny_lm: Path, forget_rows: Rows, retain_rows: Rows
) -> None:
    found = []
    for checkpointing in (False, True):
        module = UserLM(str(tiny_lm))
        for i, block in enumerate(module.lm.model.layers):
            module.lm.model.layers[i] = Wrapper(block, checkpointing)
        fit(module, rmu(), forget_rows, retain_rows)
        assert torch._C._autograd._top_saved_tensors_default_hooks(False) is None
        found.append(weights(module))
    assert torch.equal(*found)


def test_only_trainable_parameters_move_and_all_train_again_afterwards(
    tiny_lm: Path, forget_rows: Rows, retain_rows: Rows
) -> None:
    module = UserLM(str(tiny_lm))
    module.lm.model.norm.weight.requires_grad_(False)  # frozen by the user, and stays so
    before = copy(module)
    training: list[set[str]] = []

    class Watch(L.Callback):
        def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
            training.append({name for name, p in module.named_parameters() if p.requires_grad})

    fit(module, rmu(), forget_rows, retain_rows, Watch())
    names = [f"lm.model.layers.{i}.{DOWN}" for i in (0, 1)]
    assert training == [set(names)]
    assert moved(module, before) == names
    assert [name for name, p in module.named_parameters() if not p.requires_grad] == ["lm.model.norm.weight"]


def test_the_first_step_is_the_formula(tiny_lm: Path, forget_rows: Rows, retain_rows: Rows) -> None:
    module = LitCausalLM(str(tiny_lm))
    method = rmu(layer="model.layers.0", retain_weight=3.0)
    method.snapshot = SnapshotReference(module)
    start = LitCausalLM(str(tiny_lm))
    with torch.no_grad():
        module.model.model.layers[0].mlp.down_proj.weight.add_(0.1)
    batch = {"forget": batch_of(module, forget_rows), "retain": batch_of(module, retain_rows)}
    parts = method.step(module, batch)

    def hidden(lm: LitCausalLM, role: str) -> Tensor:
        inputs = {k: batch[role][k] for k in ("input_ids", "attention_mask")}
        return lm.model(**inputs, output_hidden_states=True).hidden_states[1]

    def mean(square: Tensor, role: str) -> Tensor:
        mask = batch[role]["attention_mask"].bool()
        return torch.stack([row[keep].mean() for row, keep in zip(square, mask, strict=True)]).mean()

    assert method.control is not None
    forget = mean((hidden(module, "forget") - method.control).square(), "forget")
    retain = mean((hidden(module, "retain") - hidden(start, "retain")).square(), "retain")
    torch.testing.assert_close(parts["forget"], forget)
    torch.testing.assert_close(parts["retain"], retain)
    torch.testing.assert_close(parts["loss"], forget + 3 * retain)
    assert retain > 1e-5


def test_the_retain_term_has_no_gradient_at_the_start(tiny_lm: Path, forget_rows: Rows, retain_rows: Rows) -> None:
    gradients: list[float] = []

    class Watch(L.Callback):
        def on_before_optimizer_step(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
            gradients.append(max(p.grad.abs().max().item() for p in module.parameters() if p.grad is not None))

    class OnlyRetain(RMU):
        def step(self, module: L.LightningModule, batch: Any) -> dict[str, Tensor]:
            parts = super().step(module, batch)
            return {"loss": parts["retain"] + 0 * parts["forget"]}

    fit(LitCausalLM(str(tiny_lm)), OnlyRetain("model.layers.1"), forget_rows, retain_rows, Watch(), max_steps=1)
    assert gradients[0] < 1e-8


@pytest.mark.parametrize(("left", "right"), [(0, 1), (0, 9), (5, 0)])
@pytest.mark.parametrize("mask", ["attention", "labels"])
def test_padding_does_not_change_the_loss(
    tiny_lm: Path, forget_rows: Rows, retain_rows: Rows, mask: str, left: int, right: int
) -> None:
    module = LitCausalLM(str(tiny_lm))
    method = rmu(mask=mask)
    method.snapshot = SnapshotReference(module)
    with torch.no_grad():
        module.model.model.layers[0].mlp.down_proj.weight.add_(0.1)
    batch = {"forget": batch_of(module, forget_rows), "retain": batch_of(module, retain_rows)}
    expected = method.step(module, batch)
    for role in batch:
        found = method.step(module, batch | {role: padded(batch[role], left, right)})
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-5)


def test_padding_counts_where_asked_for_and_joining_adds_none(
    tiny_lm: Path, forget_rows: Rows, retain_rows: Rows
) -> None:
    module = LitCausalLM(str(tiny_lm))
    method = rmu(mask="all", retain_weight=1e-9)
    method.snapshot = SnapshotReference(module)
    batch = {"forget": batch_of(module, forget_rows), "retain": batch_of(module, retain_rows)}
    expected = method.step(module, batch)["forget"]
    wider = batch | {"retain": padded(batch["retain"], 0, 9)}
    torch.testing.assert_close(method.step(module, wider)["forget"], expected)
    wider = batch | {"forget": padded(batch["forget"], 0, 9)}
    assert not torch.allclose(method.step(module, wider)["forget"], expected, rtol=1e-4)


def test_activations_approach_the_control_vector(tiny_lm: Path, forget_rows: Rows, retain_rows: Rows) -> None:
    module = LitCausalLM(str(tiny_lm), lr=1e-2)
    method = rmu(retain_weight=0.0)
    run = fit(module, method, forget_rows, retain_rows, max_epochs=60)
    hidden = method.hidden(module, [batch_of(module, forget_rows)])[0][:, -1]
    cosine = nn.functional.cosine_similarity(hidden, method.control, dim=-1)
    assert cosine.min() > 0.95
    assert run.callback_metrics["unlearn/forget"] < 0.1 * 2.0**2 / 32  # at the start, with h near 0, c^2 / d


@pytest.mark.parametrize(
    "options", [{}, {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1}, {"precision": "bf16-mixed"}]
)
def test_two_epochs_and_a_resume_equal_four_bit_for_bit(
    tiny_lm: Path, tmp_path: Path, forget_rows: Rows, retain_rows: Rows, options: dict[str, Any]
) -> None:
    whole = UserLM(str(tiny_lm))
    fit(whole, rmu(), forget_rows, retain_rows, max_epochs=4, **options)

    half = UserLM(str(tiny_lm))
    save_resumable(fit(half, rmu(), forget_rows, retain_rows, max_epochs=2, **options), tmp_path / "half.ckpt")
    resumed, method = UserLM(str(tiny_lm)), rmu(seed=5)  # the control vector is that of the checkpoint
    fit(
        resumed,
        method,
        forget_rows,
        retain_rows,
        max_epochs=4,
        ckpt_path=tmp_path / "half.ckpt",
        weights_only=True,
        **options,
    )
    assert torch.equal(weights(resumed), weights(whole))
    assert not torch.equal(weights(half), weights(whole))
    assert method.control is not None
    assert torch.equal(method.control, control_vector(32, 2.0, seed=0))


def test_the_snapshot_is_of_what_trains(tiny_lm: Path, forget_rows: Rows, retain_rows: Rows) -> None:
    method = rmu()
    module = LitCausalLM(str(tiny_lm))
    fit(module, method, forget_rows, retain_rows)
    assert method.snapshot is not None
    buffers = {name for name, _ in module.named_buffers()}
    assert method.snapshot.values.keys() - buffers == {f"model.model.layers.{i}.{DOWN}" for i in (0, 1)}

    method = rmu(retain_weight=0.0)
    fit(LitCausalLM(str(tiny_lm)), method, forget_rows, retain_rows)
    assert method.snapshot is None


def test_adapters_of_the_chosen_layers_train(tiny_lm: Path, forget_rows: Rows, retain_rows: Rows) -> None:
    module = LitCausalLM(str(tiny_lm), lr=1e-2, lora={"r": 2, "target_modules": "all-linear"})
    before = copy(module)
    fit(module, rmu(layer="model.layers.0"), forget_rows, retain_rows)
    found = moved(module, before)
    assert found
    assert all("layers.0.mlp.down_proj.lora_" in name for name in found)
    assert all(p.requires_grad == (".lora_" in name) for name, p in module.named_parameters())


def test_a_crash_leaves_every_parameter_trainable(tiny_lm: Path, forget_rows: Rows, retain_rows: Rows) -> None:
    class Crash(L.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            raise RuntimeError("power cut")

    module = LitCausalLM(str(tiny_lm))
    with pytest.raises(RuntimeError, match="power cut"):
        fit(module, rmu(), forget_rows, retain_rows, Crash())
    assert all(p.requires_grad for p in module.parameters())
    assert "training_step" not in vars(module)
    assert module.model.model.layers[1]._forward_hooks == {}


@pytest.mark.parametrize("layer", ["model.layers.0", r"\.layers\.0$"])
def test_names_do_not_count_wrappers(tiny_lm: Path, forget_rows: Rows, retain_rows: Rows, layer: str) -> None:
    module = UserLM(str(tiny_lm))
    module.lm.model.layers[0] = Wrapper(module.lm.model.layers[0])
    before = copy(module)
    fit(module, rmu(layer=layer), forget_rows, retain_rows)
    assert moved(module, before) == [f"lm.model.layers.0._orig_mod.{DOWN}"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": "model.layers.7"}, r"fits none\. There are lm\.model\.layers\.0, lm\.model\.layers\.1\."),
        ({"layer": 7}, r"layer=7 .* has 2, lm\.model\.layers\.0 to lm\.model\.layers\.1\."),
        ({"layer": r"layers\.\d$"}, r"fits 2\. It fits lm\.model\.layers\.0, lm\.model\.layers\.1\."),
        ({"layer": "lm.model"}, "no default for trainable"),
        ({"layer": "model.layers.1.mlp.gate_proj"}, "no default for trainable"),
        ({"layer": "model.layers", "trainable": "mlp"}, r"was not called"),
        ({"layer": "layers.0.self_attn.rotary_emb", "trainable": "mlp"}, "fits none"),
        ({"layer": "model.rotary_emb", "trainable": "mlp"}, "gave shape"),
        ({"trainable": "nose"}, r"found in the name of no parameter that trains\. There are: lm\.model\.embed_tokens"),
        ({"layer": "model.layers.0", "trainable": r"layers\.1\.mlp"}, "does not depend on a parameter that trains"),
        ({"layer": "model.layers.0", "trainable": "down_proj"}, r"'lm\.model\.layers\.1\.mlp\.down_proj\.weight'"),
    ],
)
def test_what_does_not_fit_is_an_error_before_any_weight_moves(
    tiny_lm: Path, forget_rows: Rows, retain_rows: Rows, options: dict[str, Any], message: str
) -> None:
    module = UserLM(str(tiny_lm))
    before = copy(module)
    with pytest.raises(MisconfigurationException, match=message):
        fit(module, rmu(**options), forget_rows, retain_rows)
    assert moved(module, before) == []
    assert all(p.requires_grad for p in module.parameters())


def test_rows_have_to_hold_tokens() -> None:
    with pytest.raises(TypeError, match=r"'input_ids', 'labels'\], but got \['input_ids'\]"):
        rmu(mask="labels").hidden(L.LightningModule(), [{"input_ids": torch.ones(1, 2)}])
    with pytest.raises(TypeError, match=r"reads rows that are a dict with \['input_ids'\], but got tuple"):
        rmu().hidden(L.LightningModule(), [(torch.ones(1, 2), torch.ones(1))])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steering": 0.0}, "steering must be greater than 0, but got 0.0"),
        ({"retain_weight": -1.0}, "retain_weight must be at least 0, but got -1.0"),
        ({"mask": "some"}, "mask must be 'attention', 'labels' or 'all', but got 'some'"),
    ],
)
def test_arguments_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rmu(**options)


SMALL: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
KV: dict[str, Any] = {**SMALL, "intermediate_size": 64, "num_key_value_heads": 2}
GPT: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 2}
FAMILIES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "GPT2": (GPT, ["mlp.c_proj.weight", "mlp.c_proj.bias"]),
    "GPTNeoX": ({**SMALL, "intermediate_size": 64}, ["mlp.dense_4h_to_h.weight", "mlp.dense_4h_to_h.bias"]),
    "OPT": ({**SMALL, "ffn_dim": 64, "word_embed_proj_dim": 32}, ["fc2.weight", "fc2.bias"]),
    "Phi": (KV, ["mlp.fc2.weight", "mlp.fc2.bias"]),
    "Falcon": (SMALL, ["mlp.dense_4h_to_h.weight"]),
    "GPTJ": ({**GPT, "rotary_dim": 8}, ["mlp.fc_out.weight", "mlp.fc_out.bias"]),
    "Mixtral": ({**KV, "num_local_experts": 4}, ["mlp.experts.down_proj"]),
    "Qwen2Moe": (
        {**KV, "num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
        ["mlp.experts.down_proj", "mlp.shared_expert.down_proj.weight"],
    ),
    "Mamba": ({"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}, ["mixer.out_proj.weight"]),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_block_is_named_by_its_number_in_every_family(
    family: str, tiny_lm: Path, forget_rows: Rows, retain_rows: Rows
) -> None:
    fields, names = FAMILIES[family]
    tokenizer = AutoTokenizer.from_pretrained(tiny_lm)
    config = getattr(transformers, f"{family}Config")(vocab_size=len(tokenizer), **fields)
    torch.manual_seed(0)
    module = LitCausalLM(AutoModelForCausalLM.from_config(config), tokenizer=tokenizer, lr=1e-2)
    before = copy(module)
    trainer(rmu(layer=0), max_epochs=1, limit_val_batches=0).fit(module, LanguageDataModule(forget_rows, retain_rows))
    assert [name.partition(".0.")[2] for name in moved(module, before)] == names
