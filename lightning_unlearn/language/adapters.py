"""PEFT adapters: opening from a folder, merging into the weights, and settings for training."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lightning_unlearn.core.distributed import full_tensor
from lightning_unlearn.language.tying import state_tying, untie_adapted

if TYPE_CHECKING:
    from peft import LoraConfig

__all__ = [
    "check_kind",
    "is_peft_model",
    "is_quantised",
    "lora_config",
    "merge",
    "merged_copy",
    "merged_lora",
    "open_adapter",
    "plain_fields",
]

# Other kinds of adapters can't be merged one by one, or the model without them is not the original model.
_LORA_FIELDS = {
    *("r", "lora_alpha", "lora_dropout", "use_rslora", "rank_pattern", "alpha_pattern", "init_lora_weights"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "fan_in_fan_out", "task_type"),
}
_EXTRA = 'pip install "lightning-unlearn[llm]"'


def lora_config(lora: LoraConfig | dict[str, Any]) -> LoraConfig:
    """Settings of adapters that start at zero and can be merged.

    Raises:
        ValueError: If a field asks for another kind of adapter.
        ImportError: If ``peft`` is missing.
    """
    try:
        from peft import LoraConfig
    except ImportError:
        raise ImportError(f"LoRA needs peft: {_EXTRA}") from None
    config = LoraConfig(**lora) if isinstance(lora, dict) else copy.copy(lora)
    config.task_type = "CAUSAL_LM"
    other = {name: value for name, value in plain_fields(config).items() if name not in _LORA_FIELDS}
    if config.init_lora_weights not in (True, "gaussian"):
        other["init_lora_weights"] = config.init_lora_weights
    if other:
        raise ValueError(
            f"LitCausalLM trains plain adapters that start at zero, but lora has {other}: without the adapters it "
            "would not be the original model, or they could not be merged. Leave these fields at their defaults."
        )
    return config


def plain_fields(config: LoraConfig) -> dict[str, Any]:
    """The fields that differ from their defaults, in types that ``weights_only=True`` loads."""
    default = type(config)().to_dict()
    fields = {name: value for name, value in config.to_dict().items() if value != default[name]}
    return {name: sorted(value) if isinstance(value, set) else value for name, value in fields.items()}


def is_peft_model(model: Any) -> bool:
    """Whether a model is one that PEFT has wrapped."""
    return any(kind.__module__.startswith("peft.") for kind in type(model).__mro__)


def open_adapter(name: str, revision: str | None, open_base: Callable[[str, str | None], Any]) -> Any:
    """The base model of an adapter with the adapter merged into its weights.

    Args:
        name: Folder or hub id of the adapter.
        revision: Branch, tag or commit on the hub.
        open_base: Opens the base model by its name and revision.

    Raises:
        ValueError: If the adapter is of a kind that can't be merged, its base can't be opened, or it does not fit the
            base.
        ImportError: If ``peft`` is missing.
    """
    try:
        from peft import PeftConfig, PeftModel, set_peft_model_state_dict
        from peft.utils import load_peft_weights
    except ImportError:
        raise ImportError(f"{name} is an adapter, and adapters need peft: {_EXTRA}") from None
    config = PeftConfig.from_pretrained(name, revision=revision)
    check_kind(name, config)
    base_name = config.base_model_name_or_path
    if not base_name:
        raise ValueError(
            f"The adapter {name} does not say which model it belongs to: base_model_name_or_path in its "
            "adapter_config.json is empty. Write the folder or hub id of its base model there."
        )
    try:
        base = open_base(base_name, config.revision)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"The adapter {name} belongs to the base model {base_name!r}, which can't be opened: {error} If the base "
            f"was moved, write its new place into base_model_name_or_path in {name}/adapter_config.json."
        ) from error
    weights = load_peft_weights(name, device="cpu", revision=revision)
    _resize(base, weights, name, base_name)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            tuned = PeftModel.from_pretrained(base, name, revision=revision)
        except (RuntimeError, ValueError) as error:
            raise ValueError(_misfit(name, base_name, str(error).splitlines()[-1].strip())) from error
    missing = [str(warning.message) for warning in caught if "missing adapter keys" in str(warning.message)]
    if missing:
        raise ValueError(_misfit(name, base_name, missing[0]))
    # Loaded once more, for what PEFT does not say: names of other releases are those of layers too.
    loaded: Any = set_peft_model_state_dict(tuned, weights)
    unused = [key for key in loaded.unexpected_keys if not any(part in key for part in _tables(base))]
    if unused:
        raise ValueError(_misfit(name, base_name, f"it has no layer for {unused[0]!r}"))
    return merge(tuned, name)


def merge(model: Any, name: str = "the model") -> Any:
    """Merge adapters into the base model in place; its logits are those of the adapted one.

    Args:
        model: A ``PeftModel``, which is taken apart.
        name: What messages call it.

    Raises:
        ValueError: If its adapters can't be merged.
    """
    check_kind(name, model.active_peft_config)
    untie_adapted(model.get_base_model())
    was_training = model.training
    model.eval()
    before = _probe(model)
    try:
        merged = model.merge_and_unload(safe_merge=True)
    except (NotImplementedError, AttributeError, RuntimeError, ValueError) as error:
        kind = _kind(model.active_peft_config)
        raise ValueError(
            f"{name} has an adapter of kind {kind}, which PEFT can't merge into the weights: {error}. LitCausalLM "
            "starts from adapters that can be merged, such as LoRA."
        ) from error
    after = _probe(merged)
    if before is not None and after is not None:
        gap, scale = (before - after).abs().max().item(), before.abs().max().item()
        # Merged weights of half precision are rounded once more.
        if not gap <= (1e-3 if next(merged.parameters()).dtype == torch.float32 else 0.1) * scale:
            raise ValueError(
                f"{name}: merging its adapter ({_kind(model.active_peft_config)}) changes the logits by up to "
                f"{gap:.2g}. Merge it with the library that made it, and give the folder of the result."
            )
    state_tying(merged)
    for parameter in merged.parameters():
        parameter.requires_grad_(True)
    return merged.train(was_training)


def merged_copy(model: Any) -> Any:
    """A copy of the model with its adapters merged, with the same logits."""
    return merge(copy.deepcopy(model))


def merged_lora(model: Any) -> dict[str, Tensor]:
    """The base model's state dict with each adapter added to its layer, leaving the live layers as they are.

    Quantised weights are given in floating point.
    """
    from peft.utils.integrations import dequantize_module_weight

    quantised = {name for name, child in model.named_modules() if is_quantised(child)}
    state: dict[str, Tensor] = {}
    copies: dict[tuple[Any, ...], Tensor] = {}
    for name, value in model.state_dict().items():
        # Beside a quantised weight its layer has scales, below the name of the weight.
        if ".lora_" in name or any(name.startswith(f"{owner}.") and name != f"{owner}.bias" for owner in quantised):
            continue
        # Tied weights are copied once, so that a file holds them once.
        local = value.to_local() if isinstance(value, DTensor) else value
        place = (local.data_ptr(), local.shape) if local.numel() else (name,)
        if place not in copies:
            copies[place] = full_tensor(value)
        state[_base_name(name)] = copies[place]
    for name in quantised:
        weight = dequantize_module_weight(model.get_submodule(name)).detach()
        state[_base_name(f"{name}.weight")] = weight
    for name, layer in _adapted_weights(model):
        delta = full_tensor(layer.get_delta_weight("default"))
        state[name] = state[name] + delta.to(state[name].device)
    return state


def _adapted_weights(model: Any) -> Iterator[tuple[str, Any]]:
    """The name of each adapted weight in the base model, with its adapter."""
    from peft.tuners.lora import LoraLayer

    for name, layer in model.named_modules():
        if isinstance(layer, LoraLayer) and hasattr(layer, "get_delta_weight"):
            # Stacked experts are parameters of one module, whose adapters are nested.
            yield _base_name(f"{name}.{getattr(layer, 'parameter_name', 'weight')}"), layer


def _base_name(name: str) -> str:
    """A name in the base model, from one below PEFT's wrappers."""
    return ".".join(part for part in name.removeprefix("base_model.model.").split(".") if part != "base_layer")


def is_quantised(layer: nn.Module) -> bool:
    """Whether the weight of a layer is quantised by bitsandbytes."""
    # Its own weight: an adapter shows that of the layer below it.
    return type(layer._parameters.get("weight")).__name__ in ("Params4bit", "Int8Params")


def _kind(config: Any) -> str:
    return getattr(config.peft_type, "value", str(config.peft_type))


def check_kind(name: str, config: Any) -> None:
    """Refuse adapters that do not change weights, by the name of their type.

    Raises:
        ValueError: If they are none.
    """
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

    tuner = PEFT_TYPE_TO_TUNER_MAPPING.get(config.peft_type)
    if config.is_prompt_learning or not hasattr(tuner, "merge_and_unload"):
        raise ValueError(
            f"{name} has an adapter of kind {_kind(config)}, which is not a change of weights and can't be merged into "
            "them. LitCausalLM starts from adapters that can be merged, such as LoRA."
        )


def _misfit(name: str, base: str, reason: str) -> str:
    return (
        f"The adapter {name} does not fit its base model {base!r}: {reason}. Is it the model that the adapter was "
        f"trained on? Write the right one into base_model_name_or_path in {name}/adapter_config.json."
    )


def _tables(model: Any) -> list[str]:
    """Names of the input embeddings and of the output head."""
    tables = (model.get_input_embeddings(), model.get_output_embeddings())
    return [f".{name}." for name, child in model.named_modules() if any(child is table for table in tables)]


def _resize(base: Any, weights: Mapping[str, Tensor], name: str, base_name: str) -> None:
    """Resize the base model to the adapter's vocabulary, where the adapter brings its own embeddings."""
    rows = base.get_input_embeddings().weight.shape[0]
    own = {
        part: weight.shape[0]
        for key, weight in weights.items()
        for part in _tables(base)
        if part in key and key.endswith("weight") and ".lora_" not in key and weight.dim() == 2
    }
    wanted = next((size for size in own.values() if size != rows), rows)
    if wanted == rows:
        return
    tied = base.get_output_embeddings() is None or base.config.get_text_config().tie_word_embeddings
    if len(own) < 2 and not tied:
        raise ValueError(
            _misfit(name, base_name, f"it has {wanted} rows of one of the two vocabulary tables, and the base {rows}")
        )
    base.resize_token_embeddings(wanted, mean_resizing=False)


@torch.no_grad()
def _probe(model: Any) -> Tensor | None:
    """Logits of a few tokens; none where the model does not run where it is now."""
    table = model.get_input_embeddings()
    weight = next(table.parameters())
    if weight.device.type == "meta":
        return None
    ids = torch.arange(1, 9, device=weight.device)[None] % weight.shape[0]
    return model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits.float()
