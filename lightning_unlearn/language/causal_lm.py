"""A Hugging Face causal language model as a LightningModule."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lightning_unlearn.core.callback import UnlearnCallback
from lightning_unlearn.core.checks import above, one_of, tensor_parallel
from lightning_unlearn.core.distributed import full_tensor, rank
from lightning_unlearn.core.files import give_usual_mode
from lightning_unlearn.core.layers import decoder_layers
from lightning_unlearn.core.lightning import LightningModule, MisconfigurationException
from lightning_unlearn.core.modes import evaluating
from lightning_unlearn.core.monitor import Monitor
from lightning_unlearn.core.resolution import warn_below_resolution
from lightning_unlearn.core.resume import callbacks_of, record_class, recorded_class, refuse_fine_tuning
from lightning_unlearn.core.scores import causal_lm_nll
from lightning_unlearn.functional.likelihood import token_mean
from lightning_unlearn.language.adapters import (
    is_peft_model,
    is_quantised,
    lora_config,
    merge,
    merged_copy,
    merged_lora,
    plain_fields,
)
from lightning_unlearn.language.chat import Messages
from lightning_unlearn.language.data.language import LanguageDataModule
from lightning_unlearn.language.exports import check_target, remove_old_index
from lightning_unlearn.language.generation import generate_all
from lightning_unlearn.language.limits import check_ids, check_rows, learned_positions
from lightning_unlearn.language.precision import fp32_tensors, put_back
from lightning_unlearn.language.prompt_format import PromptFormat
from lightning_unlearn.language.starts import (
    Loading,
    open_model,
    open_module,
    set_rates,
    tokenizer_of,
    without_dropout,
    without_quantization,
)
from lightning_unlearn.language.tying import state_tying

if TYPE_CHECKING:
    from peft import LoraConfig

__all__ = ["LitCausalLM", "kept_prompt"]

DType = Literal["float32", "bfloat16", "float16"]
Schedule = Literal["constant", "linear", "cosine"]

_PROMPT_KEY = "lightning_unlearn_prompt"


class LitCausalLM(LightningModule):
    r"""A causal language model from a hub id, a local folder, an adapter, a GGUF file, a checkpoint or an object.

    On its own it fine-tunes: ``training_step`` is the mean NLL per token. With an unlearning callback it unlearns.

    The adapter of a PEFT folder is merged into its base model; the merged model is trained and exported, and is the
    reference. A ``PeftModel`` object keeps training its adapter, with the adapted model as the reference; with ``lora``
    or ``trainable`` it is merged too.

    Args:
        model: Hub id, folder written by ``save_pretrained`` of transformers or PEFT, path of a ``.gguf`` file or of a
            Lightning checkpoint of this class (``.ckpt``), or a model of transformers or PEFT. A checkpoint does not
            hold such an object: ``load_from_checkpoint(path, model=...)``.
        revision: Branch, tag or commit on the hub.
        dtype: Type of the weights, where ``model`` is no object. Keep ``float32`` and train with
            ``precision="bf16-mixed"``: at learning rates of unlearning, most updates of bf16 weights round to nothing.
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
        tokenizer: The tokenizer, or the folder or hub id of one, where the model comes without. Otherwise that of
            [`LanguageDataModule`][lightning_unlearn.LanguageDataModule] is taken.
        quantization: Load weights quantised by bitsandbytes, beside which ``lora`` trains: fields of
            ``BitsAndBytesConfig`` such as ``{"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}``. An export is in
            floating point.
        dropout: Whether the model's own dropout is on while training. Off by default, as the reference is read without
            dropout; that of ``lora`` is a field of its own.

    Raises:
        FileNotFoundError: If there is no such folder or file.
        TypeError: If ``model`` is another object.
        ValueError: If it is no causal language model or can't be opened, or an argument is out of range.
    """

    score = causal_lm_nll
    """Likelihood whose mean per token is the loss of `training_step`."""

    def __init__(
        self,
        model: str | os.PathLike[str] | nn.Module | None,
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
        tokenizer: Any = None,
        quantization: dict[str, Any] | None = None,
        dropout: bool = False,
    ) -> None:
        super().__init__()
        above("lr", lr, 0)
        if warmup < 0 or (warmup > 1 and warmup != int(warmup)):
            raise ValueError(f"warmup must be a share in [0, 1] or a whole number of steps, but got {warmup}.")
        one_of("schedule", schedule, Schedule)
        one_of("dtype", dtype, DType)
        if lora is not None and trainable is not None:
            raise ValueError("lora trains adapters only, so trainable has nothing to choose from. Give one of the two.")
        adapters = lora_config(lora) if lora is not None else None
        loading = Loading(
            revision, getattr(torch, dtype), attn_implementation, trust_remote_code, quantization, adapters is not None
        )
        self.model: Any
        self.model, self.tokenizer = self._opened(model, tokenizer, loading, trainable)
        # In types that checkpoints load with weights_only=True; objects are given again.
        self.save_hyperparameters(ignore=["model", "tokenizer", "lora", "quantization"])
        self.save_hyperparameters(
            {
                "model": None if isinstance(model, nn.Module) else str(model),
                "tokenizer": str(tokenizer) if isinstance(tokenizer, (str, Path)) else None,
                "lora": plain_fields(adapters) if adapters is not None else None,
                "quantization": quantization if isinstance(quantization, dict) else None,
            }
        )
        self._positions = learned_positions(self.model)
        self.lr, self.weight_decay, self.warmup, self.schedule = lr, weight_decay, warmup, schedule
        self.prompt = kept_prompt(model)
        """How the run that the weights are from asked questions; a data module without a prompt takes it over."""
        self.model.train()  # loaded for evaluation, in which gradient checkpointing would do nothing
        self._rates = {} if dropout else without_dropout(self.model)
        if gradient_checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        if adapters is not None:
            from peft import get_peft_model

            self.model = get_peft_model(self.model, adapters)
        if trainable is not None:
            _freeze_all_but(self.model, trainable)

    @staticmethod
    def _opened(model: Any, tokenizer: Any, loading: Loading, trainable: str | None) -> tuple[Any, Any]:
        """The original model and its tokenizer."""
        if model is None:
            raise ValueError(
                "The checkpoint is of a LitCausalLM that was made of a model object, which it does not hold. Give one "
                "of the same form: LitCausalLM.load_from_checkpoint(path, model=...), an object or a folder."
            )
        if isinstance(model, LightningModule):
            raise TypeError(f"model must be a model of transformers or a path, but got a {type(model).__name__}.")
        if isinstance(model, nn.Module):
            if loading.quantization is not None:
                raise ValueError(
                    "quantization is for a model that is loaded from a folder or hub id, not for an object."
                )
            merged = loading.trains_adapters or trainable is not None
            opened = open_module(model, merged, loading.trains_adapters)
            return opened, tokenizer_of(tokenizer, opened, None, loading)
        name = str(model)
        if Path(name).suffix.lower() == ".ckpt":
            start = _of_checkpoint(Path(name).expanduser())
            return start.model.to(loading.dtype), start.tokenizer if tokenizer is None else tokenizer_of(
                tokenizer, start.model, None, loading
            )
        opened = open_model(name, loading)
        return opened, tokenizer_of(tokenizer, opened, name, loading)

    def setup(self, stage: str) -> None:
        """Take the tokenizer of the data module where the model has none, and check that rows fit the model."""
        data = getattr(self._trainer, "datamodule", None)
        if not isinstance(data, LanguageDataModule):
            return
        if self.tokenizer is None:
            self.tokenizer = data.prompt.tokenizer
        check_rows(self.model, self.tokenizer, data)

    def on_fit_start(self) -> None:
        """Keep the prompt format of the data module."""
        self.prompt = self._kept_format()

    def on_train_start(self) -> None:
        """Warn of a learning rate that half precision can't resolve, as unlearning callbacks do."""
        if not callbacks_of(self.trainer, UnlearnCallback):
            warn_below_resolution(self.trainer)

    def _apply(self, fn: Any, recurse: bool = True) -> LitCausalLM:
        # Lightning casts the whole module for precision="bf16-true", but angles of rotary positions need fp32.
        model = self._modules.get("model")
        kept = fp32_tensors(model) if model is not None else {}
        super()._apply(fn, recurse)
        if model is not None:
            put_back(model, kept)
        return self

    def configure_model(self) -> None:
        """Shard the weights where the strategy asks for it (FSDP2)."""
        if self.device_mesh is None or getattr(self, "_sharded", False):
            return
        tensor_parallel(self, self.device_mesh)
        mesh = self.device_mesh["data_parallel"]
        if mesh.size() == 1:
            return
        from torch.distributed.fsdp import fully_shard

        for layer in decoder_layers(self.model)[1]:
            fully_shard(layer, mesh=mesh)
        fully_shard(self.model, mesh=mesh)
        self._sharded = True

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **inputs: Tensor) -> Any:
        """Logits at every position: the Hugging Face output object."""
        check_ids(self.model, input_ids, self._positions)
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
        texts = self.answer([row.get("messages") or row["question"] for row in batch])
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
    def answer(self, questions: Sequence[str | Messages], max_new_tokens: int = 24, batch_size: int = 64) -> list[str]:
        """Greedy answers to questions, asked in the prompt format of the data module, or of the run before.

        Each token is the most likely one, whatever the model's ``generation_config`` says, up to the token that ends an
        answer. Checkpoints and exports keep the prompt format of their run, as ``prompt``.

        Args:
            questions: Questions as a user would ask them, or the messages of a conversation before the answer.
            max_new_tokens: Longest answer in tokens.
            batch_size: Questions generated together.

        Returns:
            The answers without special tokens.
        """
        prompt_format = self._prompt_format()
        prompts = prompt_format.prompts(questions)
        with evaluating(self):
            return generate_all(self.model, prompt_format, prompts, max_new_tokens, batch_size)

    def _prompt_format(self) -> PromptFormat:
        """The prompt format of the data module, or of the run that the weights are from."""
        data = getattr(self._trainer, "datamodule", None)
        if isinstance(data, LanguageDataModule) and data.prompt.tokenizer is not None:
            return data.prompt
        return replace(self.prompt or PromptFormat(), tokenizer=self.tokenizer)

    def _kept_format(self) -> PromptFormat:
        kept = self._prompt_format()
        return replace(kept.for_tokenizer(self.tokenizer) if self.tokenizer is not None else kept, tokenizer=None)

    @contextmanager
    def _adapter_disabled(self) -> Iterator[None]:
        with self.model.disable_adapter():
            yield

    def reference_weights(self) -> Any:
        """A context in which the model is the original model, or ``None`` where the weights themselves train."""
        return self._adapter_disabled() if self.hparams["lora"] is not None else None

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder that plain ``AutoModelForCausalLM.from_pretrained`` and ``AutoTokenizer`` open.

        Adapters are merged into the weights of the copy that is written; the live model is not touched. Sharded
        weights are gathered, so every process has to call it; the first one writes.

        Args:
            folder: Where to; made if missing.

        Raises:
            FileExistsError: If it has an adapter or weights of another format, which would stay beside the export.
        """
        check_target(folder)
        # torch.compile puts _orig_mod before the names of a state dict.
        model, state = getattr(self.model, "_orig_mod", self.model), None
        sharded = any(isinstance(parameter, DTensor) for parameter in model.parameters())
        if self.hparams["lora"] is not None:
            model, state = model.get_base_model(), merged_lora(model)
            if any(map(is_quantised, model.modules())):
                model, state = without_quantization(model, state), None
        elif is_peft_model(model):
            if sharded:
                raise ValueError("A PeftModel that FSDP2 has sharded can't be merged. Save it from one process.")
            model = merged_copy(model)
        elif sharded:
            tied = model.state_dict().keys() - dict([*model.named_parameters(), *model.named_buffers()]).keys()
            state = {name: full_tensor(value) for name, value in model.state_dict().items() if name not in tied}
        if not sharded:
            state_tying(model, state)
        if rank() == 0:
            set_rates(model, self._rates)
            model.save_pretrained(folder, state_dict=state)
            remove_old_index(folder)
            set_rates(model, dict.fromkeys(self._rates, 0.0))
            if self.tokenizer is not None:
                self.tokenizer.save_pretrained(folder)
            self._kept_format().save(folder)
            give_usual_mode(folder)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Record the class, for ``lightning-unlearn export``, and the prompt format."""
        record_class(self, checkpoint)
        checkpoint[_PROMPT_KEY] = self._kept_format().state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to continue an unlearning run as fine-tuning, and take over the prompt format."""
        refuse_fine_tuning(self, checkpoint, UnlearnCallback)
        if _PROMPT_KEY in checkpoint:
            self.prompt = PromptFormat(**checkpoint[_PROMPT_KEY])

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


def _of_checkpoint(path: Path) -> LitCausalLM:
    """The module of a Lightning checkpoint, with adapters merged."""
    if path.is_dir():
        raise ValueError(
            f"{path} is a sharded checkpoint. Make one file of it first: "
            f"python -m lightning.pytorch.utilities.consolidate_checkpoint {path}"
        )
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path} (looked in {Path.cwd()}).")
    name = recorded_class(torch.load(path, "meta", weights_only=True))
    if name != f"{LitCausalLM.__module__}.{LitCausalLM.__qualname__}":
        raise ValueError(
            f"{path} is a checkpoint of {name or 'a class that it does not name'}, and only one of LitCausalLM can be "
            "opened by its path. Load it with its own class, and give the model in it as an object or a folder."
        )
    start = LitCausalLM.load_from_checkpoint(path, "cpu", weights_only=True)
    if start.hparams["quantization"] is not None:
        raise ValueError(f"{path} has quantised weights. Write it with lightning-unlearn export, and give that folder.")
    if is_peft_model(start.model):
        start.model = merge(start.model)
    for parameter in start.model.parameters():
        parameter.requires_grad_(True)
    return start


def kept_prompt(model: Any) -> PromptFormat | None:
    """The prompt format that comes with a folder or a checkpoint."""
    if not isinstance(model, (str, os.PathLike)):
        return None
    path = Path(model).expanduser()
    if path.suffix.lower() != ".ckpt":
        return PromptFormat.load(path)
    state = torch.load(path, "meta", weights_only=True).get(_PROMPT_KEY)
    return PromptFormat(**state) if state is not None else None


def _freeze_all_but(model: nn.Module, pattern: str) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(re.search(pattern, name) is not None)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        example = next(iter(model.state_dict()))
        raise ValueError(f"trainable={pattern!r} is found in no parameter name. Names look like {example!r}.")
