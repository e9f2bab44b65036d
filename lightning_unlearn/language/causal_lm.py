"""A Hugging Face causal language model as a LightningModule."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lightning_unlearn.core.callback import UnlearnCallback
from lightning_unlearn.core.checks import above, one_of, tensor_parallel
from lightning_unlearn.core.distributed import full_tensor, rank
from lightning_unlearn.core.lightning import LightningModule, MisconfigurationException
from lightning_unlearn.core.modes import evaluating
from lightning_unlearn.core.monitor import Monitor
from lightning_unlearn.core.resume import callbacks_of, record_class, refuse_fine_tuning
from lightning_unlearn.core.scores import causal_lm_nll
from lightning_unlearn.functional.likelihood import token_mean
from lightning_unlearn.language.data.language import LanguageDataModule
from lightning_unlearn.language.prompt_format import PromptFormat

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["LitCausalLM"]

DType = Literal["float32", "bfloat16", "float16"]
Schedule = Literal["constant", "linear", "cosine"]

# Other kinds of adapters can't be merged one by one, or the model without them is not the starting model.
_LORA_FIELDS = {
    *("r", "lora_alpha", "lora_dropout", "use_rslora", "rank_pattern", "alpha_pattern", "init_lora_weights"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "fan_in_fan_out", "task_type"),
}


class LitCausalLM(LightningModule):
    r"""A causal language model from a hub id, a local folder or a GGUF file.

    On its own it fine-tunes: ``training_step`` is the mean NLL per token. With an unlearning callback it unlearns.

    Args:
        model: Hub id, folder written by ``save_pretrained``, or path of a ``.gguf`` file.
        revision: Branch, tag or commit on the hub.
        dtype: Type of the weights. Keep ``float32`` and train with ``precision="bf16-mixed"``: at learning rates of
            unlearning, most updates of bf16 weights round to nothing.
        attn_implementation: ``"sdpa"``, ``"eager"``, ``"flash_attention_2"``; by default the library's choice.
        gradient_checkpointing: Recompute activations in the backward pass, for memory.
        trainable: Regular expression; only parameters in whose name it occurs train. ``r"mlp\.down_proj"`` restricts
            the change to where facts are stored, and saves the optimizer's memory for all others.
        lora: Train low-rank adapters (arXiv:2106.09685) in place of the weights: a ``peft.LoraConfig``, or a dict of
            its fields such as ``{"r": 8, "target_modules": "all-linear"}``. The reference is the model without them.
        lr: Learning rate of AdamW.
        weight_decay: Decoupled weight decay.
        warmup: Share of the steps over which the learning rate rises from 0, or a number of steps if above 1.
        schedule: Course of the learning rate after the warm-up, per step.
        trust_remote_code: Let the hub repository run its own code. Off by default.
    """

    def __init__(
        self,
        model: str,
        revision: str | None = None,
        dtype: DType = "float32",
        attn_implementation: str | None = None,
        gradient_checkpointing: bool = False,
        trainable: str | None = None,
        lora: LoraConfig | dict[str, Any] | None = None,
        lr: float = 1e-5,
        weight_decay: float = 0.01,
        warmup: float = 0.0,
        schedule: Schedule = "constant",
        trust_remote_code: bool = False,
    ) -> None:
        super().__init__()
        above("lr", lr, 0)
        if warmup < 0 or (warmup > 1 and warmup != int(warmup)):
            raise ValueError(f"warmup must be a share in [0, 1] or a whole number of steps, but got {warmup}.")
        one_of("schedule", schedule, Schedule)
        one_of("dtype", dtype, DType)
        if lora is not None and trainable is not None:
            raise ValueError("lora trains adapters only, so trainable has nothing to choose from. Give one of the two.")
        adapters = _lora_config(lora) if lora is not None else None
        self.save_hyperparameters(ignore="lora")
        # As a dict, so that checkpoints load with weights_only=True.
        self.save_hyperparameters({"lora": _plain(adapters) if adapters is not None else None})
        self.lr, self.weight_decay, self.warmup, self.schedule = lr, weight_decay, warmup, schedule
        self.model: Any
        self.model, self.tokenizer = _load(
            model, revision, getattr(torch, dtype), attn_implementation, trust_remote_code
        )
        self.model.train()  # loaded for evaluation, in which gradient checkpointing would do nothing
        if gradient_checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        if adapters is not None:
            from peft import get_peft_model

            self.model = get_peft_model(self.model, adapters)
        if trainable is not None:
            _freeze_all_but(self.model, trainable)

    def configure_model(self) -> None:
        """Shard the weights where the strategy asks for it (FSDP2)."""
        if self.device_mesh is None or getattr(self, "_sharded", False):
            return
        tensor_parallel(self, self.device_mesh)
        mesh = self.device_mesh["data_parallel"]
        if mesh.size() == 1:
            return
        from torch.distributed.fsdp import fully_shard

        for layer in _decoder_layers(self.model):
            fully_shard(layer, mesh=mesh)
        fully_shard(self.model, mesh=mesh)
        self._sharded = True

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **inputs: Tensor) -> Any:
        """Logits at every position: the Hugging Face output object."""
        return self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **inputs)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Plain fine-tuning on a batch of rows."""
        if "forget" in batch:
            raise MisconfigurationException(
                "The batch has rows to forget, but the Trainer has no unlearning callback: it would fine-tune on them. "
                "Add one, such as Trainer(callbacks=[SimNPO()])."
            )
        loss = self._token_nll(batch)
        self.log("train/nll", loss, batch_size=len(batch["input_ids"]), prog_bar=True)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Mean NLL per token of each named set, logged as ``val/<set>_nll``; nothing in ``fit`` beside a monitor."""
        if self.trainer.state.fn == "fit" and callbacks_of(self.trainer, Monitor):
            return  # it measures the same sets
        self._evaluate(batch, self.trainer.val_dataloaders, "val", dataloader_idx)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """The same on the test sets."""
        self._evaluate(batch, self.trainer.test_dataloaders, "test", dataloader_idx)

    def predict_step(self, batch: list[dict[str, Any]], batch_idx: int) -> list[dict[str, Any]]:
        """Each question with the model's ``text``."""
        texts = self.answer([row["question"] for row in batch])
        return [{**row, "text": text} for row, text in zip(batch, texts, strict=True)]

    def configure_optimizers(self) -> Any:
        """AdamW over what trains, and a schedule per step."""
        parameters = [p for p in self.parameters() if p.requires_grad]
        scaled = self.trainer.precision == "16-mixed"
        fused = not (scaled and self.trainer.gradient_clip_val)  # it would clip gradients that are still scaled
        optimizer = torch.optim.AdamW(parameters, lr=self.lr, weight_decay=self.weight_decay, fused=fused)
        if not scaled:
            # Lightning refuses to clip for an optimizer that says it unscales gradients; without a scaler, none are.
            optimizer._step_supports_amp_scaling = False
        if self.warmup == 0 and self.schedule == "constant":
            return optimizer
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self._factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    @torch.no_grad()
    def answer(self, questions: list[str], max_new_tokens: int = 24, batch_size: int = 64) -> list[str]:
        """Greedy answers to questions, asked in the prompt format of the data module.

        Args:
            questions: Questions as a user would ask them.
            max_new_tokens: Longest answer in tokens.
            batch_size: Questions generated together.

        Returns:
            The answers without special tokens.
        """
        data = getattr(self._trainer, "datamodule", None)
        prompt_format = data.prompt if isinstance(data, LanguageDataModule) else PromptFormat(self.tokenizer)
        prompts = [prompt_format.prompt(question) for question in questions]
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.tokenizer.eos_token_id
        answers: list[str] = []
        with evaluating(self), _casts_kept(self.device.type):
            for i in range(0, len(prompts), batch_size):
                chunk = prompts[i : i + batch_size]
                width = max(map(len, chunk))
                ids = torch.tensor([[pad] * (width - len(p)) + p for p in chunk], device=self.device)
                mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in chunk], device=self.device)
                output = self.model.generate(
                    input_ids=ids,
                    attention_mask=mask,
                    max_new_tokens=max_new_tokens,
                    do_sample=False,
                    pad_token_id=pad,
                )
                texts = self.tokenizer.batch_decode(output[:, width:], skip_special_tokens=True)
                answers.extend(text.strip() for text in texts)
        return answers

    @contextmanager
    def _adapter_disabled(self) -> Iterator[None]:
        with self.model.disable_adapter():
            yield

    def reference_weights(self) -> Any:
        """A context in which the model is the starting model, or ``None`` where the weights themselves train."""
        return self._adapter_disabled() if self.hparams["lora"] is not None else None

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder that plain ``AutoModelForCausalLM.from_pretrained`` and ``AutoTokenizer`` open.

        Adapters are merged into the weights of the copy that is written; the live model is not touched. Sharded
        weights are gathered, so every process has to call it; the first one writes.

        Args:
            folder: Where to; made if missing.
        """
        # torch.compile puts _orig_mod before the names of a state dict.
        model, state = getattr(self.model, "_orig_mod", self.model), None
        if self.hparams["lora"] is not None:
            model, state = model.get_base_model(), _merged(model)
        elif any(isinstance(p, DTensor) for p in model.parameters()):
            tied = model.state_dict().keys() - dict([*model.named_parameters(), *model.named_buffers()]).keys()
            state = {name: full_tensor(value) for name, value in model.state_dict().items() if name not in tied}
        if rank() == 0:
            model.save_pretrained(folder, state_dict=state)
            self.tokenizer.save_pretrained(folder)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Record the class, for ``lightning-unlearn export``."""
        record_class(self, checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to continue an unlearning run as fine-tuning."""
        refuse_fine_tuning(self, checkpoint, UnlearnCallback)

    def _token_nll(self, batch: dict[str, Tensor]) -> Tensor:
        predictions = causal_lm_nll.predictions(self, batch)
        return token_mean(predictions.nll(), predictions.length())

    def _evaluate(self, batch: dict[str, Tensor], loaders: Any, stage: str, dataloader_idx: int) -> None:
        name = list(loaders)[dataloader_idx] if isinstance(loaders, dict) else str(dataloader_idx)
        tokens = int((batch["labels"][:, 1:] >= 0).sum())
        self.log(
            f"{stage}/{name}_nll", self._token_nll(batch), batch_size=tokens, add_dataloader_idx=False, sync_dist=True
        )

    def _factor(self, step: int) -> float:
        total = max(1, int(self.trainer.estimated_stepping_batches))
        warmup = int(self.warmup) if self.warmup > 1 else math.floor(self.warmup * total)
        if step < warmup:
            return step / max(1, warmup)
        share = min(1.0, (step - warmup) / max(1, total - warmup))
        return {"constant": 1.0, "linear": 1 - share, "cosine": 0.5 * (1 + math.cos(math.pi * share))}[self.schedule]


@contextmanager
def _casts_kept(device: str) -> Iterator[None]:
    """Cast each weight once and not for every token: Lightning's mixed precision keeps no casts."""
    if not torch.is_autocast_enabled(device):
        yield
        return
    with torch.autocast(device, dtype=torch.get_autocast_dtype(device), cache_enabled=True):
        yield


def _load(
    name: str, revision: str | None, dtype: torch.dtype, attention: str | None, trust_remote_code: bool
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError:
        raise ImportError('LitCausalLM needs transformers: pip install "lightning-unlearn[llm]"') from None
    source: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    path = Path(name)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise FileNotFoundError(f"There is no file {path} (looked in {Path.cwd()}).")
        name, source = str(path.parent), {"gguf_file": path.name}
    options: dict[str, Any] = {"attn_implementation": attention} if attention else {}
    model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, **options, **source)
    tokenizer = AutoTokenizer.from_pretrained(name, **source)
    return (_unquantized(model) if "gguf_file" in source else model), tokenizer


def _unquantized(model: PreTrainedModel) -> PreTrainedModel:
    """The same weights in a model without a quantization config, which ``save_pretrained`` would refuse."""
    config = copy.deepcopy(model.config)
    del config.quantization_config
    with torch.device("meta"):
        clean = type(model)(config)
    clean.load_state_dict(model.state_dict(), assign=True)
    clean.tie_weights()
    # Buffers that are computed and not saved, such as rotary frequencies, don't come with the state dict.
    for name, buffer in model.named_buffers():
        owner, _, attribute = name.rpartition(".")
        clean.get_submodule(owner)._buffers[attribute] = buffer
    return clean.eval()


def _freeze_all_but(model: nn.Module, pattern: str) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(re.search(pattern, name) is not None)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        example = next(iter(model.state_dict()))
        raise ValueError(f"trainable={pattern!r} is found in no parameter name. Names look like {example!r}.")


def _decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The list of the decoder layers, which may themselves hold a longer one of experts."""
    outer: dict[str, nn.ModuleList] = {}
    for name, child in model.named_modules():
        if isinstance(child, nn.ModuleList) and not any(name.startswith(f"{parent}.") for parent in outer):
            outer[name] = child
    config: Any = getattr(model, "config", None)
    text_config = getattr(config, "get_text_config", lambda: config)()
    depth = getattr(text_config, "num_hidden_layers", None)
    return max(outer.values(), key=lambda layers: (len(layers) == depth, len(layers)), default=nn.ModuleList())


def _lora_config(lora: LoraConfig | dict[str, Any]) -> LoraConfig:
    try:
        from peft import LoraConfig
    except ImportError:
        raise ImportError('LoRA needs peft: pip install "lightning-unlearn[llm]"') from None
    config = LoraConfig(**lora) if isinstance(lora, dict) else copy.copy(lora)
    config.task_type = "CAUSAL_LM"
    other = {name: value for name, value in _plain(config).items() if name not in _LORA_FIELDS}
    if config.init_lora_weights not in (True, "gaussian"):
        other["init_lora_weights"] = config.init_lora_weights
    if other:
        raise ValueError(
            f"LitCausalLM trains plain adapters that start at zero, but lora has {other}: without the adapters it "
            "would not be the starting model, or they could not be merged. Leave these fields at their defaults."
        )
    return config


def _plain(config: LoraConfig) -> dict[str, Any]:
    """The fields that differ from their defaults, in types that ``weights_only=True`` loads."""
    default = type(config)().to_dict()
    fields = {name: value for name, value in config.to_dict().items() if value != default[name]}
    return {name: sorted(value) if isinstance(value, set) else value for name, value in fields.items()}


def _merged(model: Any) -> dict[str, Tensor]:
    """The base model's state dict with each adapter added to its layer, leaving the live layers as they are."""
    from peft.tuners.lora import LoraLayer

    prefix = "base_model.model."
    state = {}
    for name, value in model.state_dict().items():
        if ".lora_" not in name:
            state[name.removeprefix(prefix).replace(".base_layer.", ".")] = full_tensor(value)
    for name, layer in model.named_modules():
        if isinstance(layer, LoraLayer) and hasattr(layer, "get_delta_weight"):
            weight = f"{name.removeprefix(prefix)}.weight"
            state[weight] = state[weight] + full_tensor(layer.get_delta_weight("default"))
    return state
