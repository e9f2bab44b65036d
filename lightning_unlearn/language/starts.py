"""Opening of original models: hub ids, folders, adapters, GGUF files and model objects, with tokenizers."""

from __future__ import annotations

import copy
import importlib.util
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lightning_unlearn.core.lightning import rank_zero_warn
from lightning_unlearn.core.sources import open_tokenizer
from lightning_unlearn.language.adapters import check_kind, is_peft_model, merge, open_adapter

__all__ = [
    "Loading",
    "check_causal",
    "open_model",
    "open_module",
    "set_rates",
    "tokenizer_of",
    "without_dropout",
    "without_quantization",
]

_PURPOSE = (
    "LitCausalLM is for causal language models, which predict each token from those before it (GPT, Llama, Qwen, "
    "Gemma, Mistral and the like)"
)
_MOVED = (
    "If it is the original model of a checkpoint and was moved, give its new place: "
    "LitCausalLM.load_from_checkpoint(path, model=...), or lightning-unlearn export --base."
)
_CLASSIFIERS = ("Classification", "QuestionAnswering", "MultipleChoice", "RewardModel")
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "*.index.json")


@dataclass(frozen=True)
class Loading:
    """How a model is loaded.

    Args:
        revision: Branch, tag or commit on the hub.
        dtype: Type of the weights.
        attention: Implementation of attention; ``None`` for the library's choice.
        trust_remote_code: Whether a repository may run its own code.
        quantization: Fields of ``BitsAndBytesConfig``, or a quantization config of transformers.
        trains_adapters: Whether LoRA is trained on top, as on quantised weights.
    """

    revision: str | None = None
    dtype: torch.dtype = torch.float32
    attention: str | None = None
    trust_remote_code: bool = False
    quantization: Any = None
    trains_adapters: bool = False


def open_model(name: str, loading: Loading) -> Any:
    """The causal language model of a hub id, a folder, a GGUF file or an adapter, which is merged.

    Args:
        name: What to open.
        loading: How.

    Raises:
        FileNotFoundError: If there is no such folder or file.
        ValueError: If it is no causal language model, or can't be opened.
        ImportError: If a package is missing.
    """
    try:
        import transformers
    except ImportError:
        raise ImportError('LitCausalLM needs transformers: pip install "lightning-unlearn[llm]"') from None
    path = Path(name).expanduser()
    if path.suffix.lower() == ".gguf":
        return _open_gguf(path, loading)
    name = str(path) if path.exists() else name
    _check_place(name)
    if _is_adapter(name, loading.revision):
        if loading.quantization is not None:
            raise ValueError(
                f"{name} is an adapter, and quantised weights can't take it in without loss. Write the merged model "
                f"with LitCausalLM({name!r}).save_pretrained(folder), and give that folder with quantization."
            )
        return open_adapter(
            name, loading.revision, lambda base, revision: open_model(base, replace(loading, revision=revision))
        )
    config = _config(name, loading)
    _check_kind(config, name)
    _check_quantized(config, name, loading)
    options: dict[str, Any] = {"attn_implementation": loading.attention} if loading.attention else {}
    if loading.quantization is not None:
        options["quantization_config"] = _quantization(loading.quantization)
    source = {"revision": loading.revision, "trust_remote_code": loading.trust_remote_code}
    loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
        name, dtype=loading.dtype, output_loading_info=True, **options, **source
    )
    model, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise ValueError(
            f"{name} lacks {len(missing)} of the weights of a {type(model).__name__}, such as {missing[0]!r}, which "
            f"would be random numbers. {_PURPOSE}; give a folder with such a model, written whole by save_pretrained."
        )
    _warn_of_unread(report["unexpected_keys"], type(model).__name__, name)
    check_causal(model, name)
    return model


def open_module(model: Any, merged: bool, trains_adapters: bool) -> Any:
    """A model object as an original model.

    Args:
        model: A causal language model of transformers, or a ``PeftModel`` of one.
        merged: Whether adapters are merged into its weights, because others or the weights are to train.
        trains_adapters: Whether LoRA is trained on top.

    Raises:
        TypeError: If it is another object.
        ValueError: If it is no causal language model, or its adapter can't be merged or does not train.
    """
    from transformers import PreTrainedModel

    model = getattr(model, "_orig_mod", model)  # torch.compile
    if is_peft_model(model):
        if merged:
            model = merge(model)
        else:
            _check_trained_adapter(model)
            base = model.get_base_model()
            _check_place_of_weights(base)
            _check_kind(base.config, type(base).__name__)
            check_causal(model, type(base).__name__)
            return model
    if not isinstance(model, PreTrainedModel):
        raise TypeError(
            f"model must be the path of a folder or a .gguf file, a hub id, or a causal language model of transformers "
            f"or PEFT, but got a {type(model).__name__}."
        )
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ValueError(
            f"The {type(model).__name__} has an adapter that transformers has loaded into it, which save_pretrained "
            "would write alone. Give the folder of the adapter, or PeftModel.from_pretrained(model, folder)."
        )
    _check_kind(model.config, type(model).__name__)
    _check_place_of_weights(model)
    _check_quantized(model.config, type(model).__name__, Loading(trains_adapters=trains_adapters))
    check_causal(model, type(model).__name__)
    return model


def tokenizer_of(given: Any, model: Any, name: str | None, loading: Loading) -> Any:
    """The tokenizer that is given, or that comes with the model; ``None`` where none comes with it.

    Args:
        given: A tokenizer, or the folder or hub id of one.
        model: The model.
        name: What it was opened from, if not an object.
        loading: How.
    """
    if given is not None and not isinstance(given, (str, Path)):
        return given
    options: dict[str, Any] = {"trust_remote_code": loading.trust_remote_code}
    if given is not None:
        return open_tokenizer(str(given), **options)
    if name is not None and Path(name).suffix.lower() == ".gguf":
        path = Path(name).expanduser()
        return open_tokenizer(str(path.parent), gguf_file=path.name)
    candidates: list[tuple[Any, str | None]] = [(name, loading.revision)]
    candidates.append((getattr(model.config, "_name_or_path", "") or None, None))  # an adapter's base
    for place, revision in candidates:
        if place is None:
            continue
        try:
            return open_tokenizer(place, revision=revision, **options)
        except (ValueError, OSError, TypeError):
            continue
    return None


@torch.no_grad()
def check_causal(model: Any, name: str) -> None:
    """Refuse a model whose logits depend on later tokens.

    Raises:
        ValueError: If they do.
    """
    weight = next(model.get_input_embeddings().parameters())
    attention = str(getattr(model.config, "_attn_implementation", ""))
    if weight.device.type == "meta" or (weight.device.type == "cpu" and "flash" in attention):
        return  # it does not run here
    size = weight.shape[0]
    ids = torch.arange(size // 2, size // 2 + 6, device=weight.device).repeat(2, 1) % size
    ids[1, -1] = (ids[1, -1] + size // 3 + 1) % size
    was_training = model.training
    output = model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    model.train(was_training)
    if not hasattr(output, "logits"):
        raise ValueError(
            f"{name} is a {type(model).__name__}, which gives hidden states and no logits: it has no output layer. "
            f"{_PURPOSE}; open it with the class that has one, such as AutoModelForCausalLM."
        )
    logits = output.logits.float()
    earlier = logits[:, :-1]
    gap, scale = (earlier[0] - earlier[1]).abs().max().item(), earlier.std().item()
    if gap > (1e-3 if weight.dtype == torch.float32 else 0.05) * scale:
        raise ValueError(
            f"{name} is a {type(model).__name__} whose logits depend on later tokens: they move by {gap:.1e} with the "
            f"last one. {_PURPOSE}."
        )


def without_dropout(model: Any) -> dict[str, float]:
    """Switch off every dropout and noise of a model, wherever its layers read the rate.

    Args:
        model: The model; adapters keep their own dropout.

    Returns:
        The rates of its configuration, which belong into an export.
    """
    for path, child in model.named_modules():
        if "lora_dropout" in path:
            continue
        for name, value in list(vars(child).items()):
            rate = isinstance(value, float) and re.search(r"drop|jitter", name) is not None
            if rate or (name == "p" and "dropout" in type(child).__name__.lower()):
                setattr(child, name, 0.0)
    config = model.config.get_text_config()
    rates = {n: v for n, v in vars(config).items() if isinstance(v, float) and v > 0 and re.search(r"drop|jitter", n)}
    set_rates(model, dict.fromkeys(rates, 0.0))
    return rates


def set_rates(model: Any, rates: dict[str, float]) -> None:
    """Write rates of dropout into a model's configuration."""
    for name, rate in rates.items():
        setattr(model.config.get_text_config(), name, rate)


def without_quantization(model: Any, weights: dict[str, torch.Tensor]) -> Any:
    """A model of the same configuration, without its quantization config, which ``save_pretrained`` would refuse.

    Args:
        model: The model.
        weights: Weights of the new one, by name.
    """
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        clean = type(model)(config)
    clean.load_state_dict(weights, assign=True)
    clean.tie_weights()
    # Buffers that are computed and not saved, such as rotary frequencies, don't come with the state dict.
    wanted = {name for name, _ in clean.named_buffers()}
    for name, buffer in model.named_buffers():
        owner, _, attribute = name.rpartition(".")
        if name in wanted:
            clean.get_submodule(owner)._buffers[attribute] = buffer
    return clean.eval()


def _warn_of_unread(names: Iterable[str], kind: str, folder: str) -> None:
    """Warn of weights in the files of a model that it has no place for."""
    if unread := sorted(names):
        rank_zero_warn(
            f"{folder} has weights ({len(unread)}) that a {kind} has no place for, such as {unread[0]!r}. They are not "
            "read, and will be missing in exports. If they belong to the model, its config.json describes another one, "
            "or it needs the class that has them."
        )


def _open_gguf(path: Path, loading: Loading) -> Any:
    from transformers import AutoModelForCausalLM

    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path} (looked in {Path.cwd()}).")
    if loading.quantization is not None:
        raise ValueError(f"{path} is read in full precision. Write it with save_pretrained, and quantise that folder.")
    options: dict[str, Any] = {"attn_implementation": loading.attention} if loading.attention else {}
    try:
        model = AutoModelForCausalLM.from_pretrained(
            str(path.parent), gguf_file=path.name, dtype=loading.dtype, **options
        )
    except (ValueError, OSError, KeyError) as error:
        raise ValueError(f"{path} can't be opened by transformers: {_first_line(error)} {_PURPOSE}.") from error
    clean = without_quantization(model, model.state_dict())
    check_causal(clean, str(path))
    return clean


def _check_place(name: str) -> None:
    """Explain why no model can be opened from a path."""
    path = Path(name)
    if path.is_file():
        raise ValueError(
            f"{name} is a file. LitCausalLM opens a folder written by save_pretrained, a .gguf file, a checkpoint of "
            "LitCausalLM (.ckpt) or a hub id."
        )
    if not path.is_dir():
        if path.is_absolute() or name.startswith(("./", "../", "~")) or name.count("/") > 1 or "\\" in name:
            raise FileNotFoundError(f"There is no folder {name} (looked in {Path.cwd()}). {_MOVED}")
        return
    if (path / "model_index.json").is_file():
        raise ValueError(
            f"{name} holds a pipeline of diffusers. {_PURPOSE}; for diffusion models there is LitTextToImage."
        )
    if (path / "config.json").is_file() and not (path / "adapter_config.json").is_file():
        if not any(next(path.glob(pattern), None) for pattern in _WEIGHTS):
            foreign = [
                file.name for file in path.iterdir() if re.search(r"\.(h5|msgpack|pth|onnx|ckpt\.index)$", file.name)
            ]
            what = f"only {', '.join(sorted(foreign))}, weights of another format" if foreign else "no weights"
            raise ValueError(
                f"{name} holds {what}. LitCausalLM opens folders with model.safetensors or pytorch_model.bin: convert "
                "it with the library that wrote it, or with transformers 4 (from_pretrained(..., from_tf=True) or "
                "from_flax=True, then save_pretrained)."
            )
        return
    if not (path / "adapter_config.json").is_file():
        inside = sorted(
            file.name
            for pattern in ("*.gguf", "*.ckpt", "*/config.json", "*/adapter_config.json")
            for file in path.glob(pattern)
        )
        folders = sorted({file.parent.name for file in path.glob("*/*config.json")})
        found = [entry for entry in inside if not entry.endswith("config.json")] + folders
        raise ValueError(
            f"{name} has no config.json, so it is no folder of a model. "
            + (
                f"Give the path of one of these inside it: {', '.join(found[:5])}."
                if found
                else f"{_PURPOSE}: give a folder written by save_pretrained, or a hub id."
            )
        )


def _is_adapter(name: str, revision: str | None) -> bool:
    from transformers.utils import find_adapter_config_file

    path = Path(name)
    if not path.is_dir():
        return find_adapter_config_file(name, revision=revision) is not None
    if not (path / "adapter_config.json").is_file():
        return False
    if (path / "config.json").is_file() and any(
        file.name for pattern in _WEIGHTS for file in path.glob(pattern) if not file.name.startswith("adapter_")
    ):
        raise ValueError(
            f"{name} holds both the weights of a model and an adapter (adapter_config.json), so it is not clear which "
            "model is meant. Move the adapter's two files to a folder of their own, or away."
        )
    return True


def _config(name: str, loading: Loading) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(name, revision=loading.revision, trust_remote_code=loading.trust_remote_code)
    except OSError as error:
        raise ValueError(
            f"There is no folder {name} (looked in {Path.cwd()}), and the hub gives no model of that id: "
            f"{_first_line(error)} {_MOVED}"
        ) from error
    except (ValueError, KeyError, ImportError) as error:
        if "trust_remote_code" in str(error):
            raise ValueError(
                f"{name} comes with Python code of its own, which runs on this machine when the model is opened. Read "
                "it, and set trust_remote_code=True if you trust it."
            ) from error
        raise ValueError(f"{name} can't be opened by transformers: {_first_line(error)} {_PURPOSE}.") from error


def _check_kind(config: Any, name: str) -> None:
    """Refuse a model whose configuration is not of a causal language model."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    made_as = next(iter(config.architectures or []), None) or f"model of type {config.model_type!r}"
    own_code = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    parts = [part for part in ("vision_config", "audio_config", "image_config", "speech_config") if _has(config, part)]
    kind = None
    if parts:
        kind = "reads images or sound beside text; give its text model alone, as a folder or an object"
    elif getattr(config, "is_encoder_decoder", False):
        kind = "has an encoder and a decoder"
    elif made_as.endswith(_CLASSIFIERS) or "Classification" in made_as:
        kind = "is a classifier; for these there are LitClassifier and modules of your own"
    elif config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False):
        kind = "reads text in both directions" if not getattr(config, "causal", False) else None
    elif config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not own_code:
        kind = "is no language model that transformers knows"
    if kind is not None:
        raise ValueError(f"{name} holds a {made_as}, which {kind}. {_PURPOSE}.")


def _check_place_of_weights(model: Any) -> None:
    """Refuse a model whose weights accelerate has put on several devices, or keeps elsewhere."""
    places = {str(place) for place in (getattr(model, "hf_device_map", None) or {}).values()}
    if len(places) > 1 or "disk" in places:
        raise ValueError(
            f"The {type(model).__name__} was loaded with device_map, which has put its weights on "
            f"{', '.join(sorted(places))} and moves them for each forward pass, so they can't train. Load it without "
            "device_map: the Trainer moves it to the device. If it is too large for one, use FSDP2 or quantization."
        )


def _has(config: Any, part: str) -> bool:
    return getattr(config, part, None) is not None


def _check_quantized(config: Any, name: str, loading: Loading) -> None:
    given = getattr(config, "quantization_config", None)
    method = given.get("quant_method") if isinstance(given, dict) else getattr(given, "quant_method", None)
    method = getattr(method, "value", method)
    if given is None and loading.quantization is None:
        return
    if given is not None and method != "bitsandbytes":
        raise ValueError(
            f"{name} has weights that are quantised by {method}, which LitCausalLM can neither train nor write. Give "
            "the model in full precision, with quantization={'load_in_4bit': True} if memory is short."
        )
    if not loading.trains_adapters:
        raise ValueError(
            f"The weights of {name} are quantised, and quantised weights do not train. Train adapters beside them: "
            "lora={'r': 8, 'target_modules': 'all-linear'}."
        )


def _quantization(given: Any) -> Any:
    if not isinstance(given, dict):
        return given
    if not _has_bitsandbytes():
        raise ImportError("quantization needs bitsandbytes: pip install bitsandbytes")
    from transformers import BitsAndBytesConfig

    try:
        return BitsAndBytesConfig(**given)
    except (TypeError, ValueError) as error:
        raise ValueError(f"quantization={given} are no fields of transformers.BitsAndBytesConfig: {error}.") from None


def _has_bitsandbytes() -> bool:
    return importlib.util.find_spec("bitsandbytes") is not None


def _check_trained_adapter(model: Any) -> None:
    check_kind("The PeftModel", model.active_peft_config)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            "No parameter of the PeftModel trains. Load it with PeftModel.from_pretrained(..., is_trainable=True) to "
            "go on with its adapter, or give lora= or trainable=, for which the adapter is merged into the weights."
        )


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = lines[0] if lines else type(error).__name__
    return line if len(line) < 300 else f"{line[:300]} ..."
