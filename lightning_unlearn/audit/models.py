"""Models of an audit: opened one at a time, and asked in the same words."""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from lightning_unlearn.audit.entries import TOKENIZER_FILES, base_hash
from lightning_unlearn.audit.hashes import content_hash
from lightning_unlearn.core.distributed import full_tensor
from lightning_unlearn.core.files import sha256
from lightning_unlearn.core.sources import open_tokenizer
from lightning_unlearn.language.causal_lm import LitCausalLM, kept_prompt
from lightning_unlearn.language.prompt_format import PromptFormat

__all__ = [
    "AuditedModel",
    "Role",
    "check_control",
    "check_tokenizers",
    "common_prompt",
    "model_hash",
    "tokenizer_difference",
    "tokenizer_facts",
]

Role = Literal["original", "control", "unlearned"]

_TEXT = "In 1984 the naïve “Ω-team” paid 3,50 €\n\tfor  it."
_FILES = [
    *("*.safetensors", "*.bin", "*.json", "*.jinja"),
    # Of the tokenizer, too: whether the cache has them is not to decide what the model is known by.
    *("tokenizer*", "vocab*", "merges*", "spiece*", "sentencepiece*", "*.model"),
]
_MOVED = "Audit models that were made of one another, or give the tokenizer that the first was trained with."


@dataclass(frozen=True)
class AuditedModel:
    """A model of an audit.

    Args:
        role: What it is in the audit.
        source: Whatever [`LitCausalLM`][lightning_unlearn.LitCausalLM] opens, or a live module, which stays open.
        dtype: Type of the weights that it is opened with.
    """

    role: Role
    source: Any
    dtype: str = "float32"

    @property
    def name(self) -> str:
        """What the report calls it."""
        if isinstance(self.source, LitCausalLM):
            return str(self.source.hparams.get("model") or type(self.source.model).__name__)
        path = Path(str(self.source)).expanduser()
        return path.name if path.exists() else str(self.source)

    @cached_property
    def content(self) -> str:
        """Hash of the weights."""
        return model_hash(self.source)

    @cached_property
    def identity(self) -> str:
        """Hash of what its answers to a prompt depend on: weights, those below an adapter, configuration, tokenizer."""
        if isinstance(self.source, LitCausalLM):
            tokenizer = self.source.tokenizer
            config = {**self.source.model.config.to_diff_dict(), "_name_or_path": None}
            read: list[Any] = [config, None if tokenizer is None else tokenizer_facts(tokenizer)]
        else:
            path = _folder(self.source)
            read = [base_hash(path), {file.name: sha256(file) for file in _files_read(path)}, _adapter_settings(path)]
        return hashlib.sha256(json.dumps([self.content, read], sort_keys=True, default=str).encode()).hexdigest()

    @contextmanager
    def opened(self, device: torch.device | str, prompt: PromptFormat | None) -> Iterator[LitCausalLM]:
        """The model on a device, asked in a prompt format; afterwards its memory is free, and a live module is back.

        Args:
            device: Where to.
            prompt: The prompt format of the audit, without tokenizer.
        """
        if isinstance(self.source, LitCausalLM):
            kept, self.source.prompt = self.source.prompt, prompt or self.source.prompt
            home = self.source.device
            try:
                yield self.source.to(device)
            finally:
                self.source.prompt = kept
                self.source.to(home)
            return
        module = LitCausalLM(self.source, dtype=self.dtype)  # type: ignore[arg-type]
        module.prompt = prompt or module.prompt
        for parameter in module.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        try:
            yield module.to(device)
        finally:
            del module
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def tokenizer(self) -> Any:
        """Its tokenizer, where that can be had without the weights; ``None`` otherwise."""
        if isinstance(self.source, LitCausalLM):
            return self.source.tokenizer
        path = Path(str(self.source)).expanduser()
        if path.is_file():
            return None  # a GGUF file or a checkpoint
        if path.is_dir() and not (path / "tokenizer_config.json").is_file():
            return None  # an adapter has the tokenizer of its base
        return open_tokenizer(str(path) if path.is_dir() else str(self.source))

    def prompt(self) -> PromptFormat | None:
        """The prompt format that its run asked with, where one is kept."""
        if isinstance(self.source, LitCausalLM):
            return self.source._kept_format()
        return kept_prompt(str(self.source))


def check_control(models: Sequence[AuditedModel]) -> None:
    """Refuse a control model that is one of the models that it is compared with.

    With the unlearned model as its own control, every request would seem to be forgotten; with the original, none can.

    Args:
        models: The models of an audit.

    Raises:
        ValueError: If the control has the weights of another one.
    """
    for control in (model for model in models if model.role == "control"):
        if same := next((m for m in models if m is not control and m.content == control.content), None):
            raise ValueError(
                f"The control model {control.name} has the weights of the {same.role} model {same.name}. A control was "
                "trained without the rows to forget, and is another model than these two: give its folder as "
                "retrained, or leave it out."
            )


def model_hash(source: Any) -> str:
    """Hash of the weights of a model: of its files, of those of a hub id, or of a live module's tensors."""
    if isinstance(source, LitCausalLM):
        digest = hashlib.sha256()
        for name, tensor in sorted(source.model.state_dict().items()):
            digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
            flat = full_tensor(tensor).contiguous().view(-1)
            digest.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
        return digest.hexdigest()
    return content_hash(_folder(source)).root


def _folder(source: Any) -> Path:
    """The folder or file of a model; that of a hub id is in the cache."""
    path = Path(str(source)).expanduser()
    if path.exists():
        return path
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(str(source), allow_patterns=_FILES))


def _files_read(path: Path) -> list[Path]:
    """Files beside the weights that decide how a model reads and answers."""
    if not path.is_dir():
        return []
    files = [file for file in (*path.iterdir(), *path.glob("additional_chat_templates/*")) if file.is_file()]
    return sorted(
        file
        for file in files
        if file.name == "config.json" or file.suffix == ".jinja" or TOKENIZER_FILES.fullmatch(file.name)
    )


def _adapter_settings(path: Path) -> Any:
    """The settings of an adapter, wherever its base model is."""
    file = path / "adapter_config.json"
    if not file.is_file():
        return None
    return {**json.loads(file.read_text(encoding="utf-8")), "base_model_name_or_path": None}


def tokenizer_facts(tokenizer: Any) -> dict[str, Any]:
    """What has to be equal in the tokenizers of models that are compared, as JSON."""
    if tokenizer is None:
        raise ValueError("A model of the audit has no tokenizer. Write it beside its weights with save_pretrained.")
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()), ensure_ascii=False)
    template = getattr(tokenizer, "chat_template", None)
    return {
        "size": len(tokenizer.get_vocab()),
        "vocabulary": hashlib.sha256(vocabulary.encode()).hexdigest(),
        "eos_token": str(tokenizer.eos_token),
        "bos_token": str(tokenizer.bos_token),
        "chat_template": template and hashlib.sha256(str(template).encode()).hexdigest(),
        "cuts": list(tokenizer(_TEXT)["input_ids"]),
    }


def tokenizer_difference(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str | None:
    """How two tokenizers write texts in different ways; ``None`` where they agree.

    Args:
        ours: What `tokenizer_facts` gives.
        theirs: The same of the other.

    Example:
        >>> facts = {
        ...     "size": 2,
        ...     "vocabulary": "a",
        ...     "eos_token": "</s>",
        ...     "bos_token": "",
        ...     "chat_template": "",
        ...     "cuts": [],
        ... }
        >>> tokenizer_difference(facts, facts), tokenizer_difference(facts, facts | {"eos_token": "<end>"})
        (None, "eos_token is '</s>' and '<end>'")
    """
    if ours["size"] != theirs["size"]:
        return f"their vocabularies have {ours['size']} and {theirs['size']} tokens"
    if ours["vocabulary"] != theirs["vocabulary"]:
        return f"both vocabularies have {ours['size']} tokens, but not the same ones"
    for name in ("eos_token", "bos_token"):
        if ours[name] != theirs[name]:
            return f"{name} is {ours[name]!r} and {theirs[name]!r}"
    if ours["chat_template"] != theirs["chat_template"]:
        have = ["a chat template" if facts["chat_template"] else "none" for facts in (ours, theirs)]
        return "their chat templates differ" if "none" not in have else f"one has {have[0]} and the other {have[1]}"
    return "they cut the same text into other tokens" if ours["cuts"] != theirs["cuts"] else None


def check_tokenizers(facts: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse models whose tokenizers differ: the same rows would be other sequences for each.

    Args:
        facts: What `tokenizer_facts` gives, by the role of the model.

    Raises:
        ValueError: If they differ; it says in what.
    """
    if not facts:
        return
    (first, ours), *others = facts.items()
    for role, theirs in others:
        if difference := tokenizer_difference(ours, theirs):
            raise ValueError(f"The tokenizers of the {first} and the {role} model differ: {difference}. {_MOVED}")


def common_prompt(models: list[AuditedModel]) -> PromptFormat | None:
    """The prompt format that all models are asked in: that of the unlearned model's run, or of another one.

    Raises:
        ValueError: If two runs asked in different ways.
    """
    kept = {model.role: prompt for model in models if (prompt := model.prompt()) is not None}
    plain = {role: replace(prompt, date=None) for role, prompt in kept.items()}
    if len({repr(prompt) for prompt in plain.values()}) > 1:
        (first, ours), (second, theirs), *_ = plain.items()
        names = [name for name in ours.state_dict() if getattr(ours, name) != getattr(theirs, name)]
        raise ValueError(
            f"The runs of the {first} and the {second} model asked in different prompt formats: "
            f"{', '.join(names)} differ. Give the one to ask in: prompt=PromptFormat(...)."
        )
    return kept.get("unlearned") or next(iter(kept.values()), None)
