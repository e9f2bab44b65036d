"""Files of a model's folder that belong to any weights of the model, and may be copied beside others."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterable
from fnmatch import fnmatch
from pathlib import Path

__all__ = ["copy_settings", "is_setting"]

# All else may hold what the model was to forget: its weights in other formats, checkpoints, archives, tables of rows.
_SETTINGS = (
    *("*config.json", "prompt_format.json", "chat_template.json", "*.jinja"),
    *("tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges*", "*.tiktoken"),
    *("*.model", "*.bpe", "*.py", "LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*", "README.md"),
)
_NOT = ("adapter_config.json",)
_FOLDERS = ("additional_chat_templates",)


def is_setting(name: str) -> bool:
    """Whether a file with this name is of the configuration, the tokenizer, the code or the licence of a model.

    Example:
        >>> [is_setting(name) for name in ("config.json", "tokenizer.model", "rows.jsonl", "model.onnx_data")]
        [True, True, False, False]
    """
    return name not in _NOT and any(fnmatch(name, pattern) for pattern in _SETTINGS)


def copy_settings(source: Path, target: Path, others: Collection[str] = ()) -> list[str]:
    """Copy the configuration, the tokenizer, the code and the licence of a model.

    Args:
        source: Folder of the model.
        target: New folder.
        others: Names of further files to copy.

    Returns:
        Names of the files and folders that are left out; hidden ones are not listed.
    """
    target.mkdir()
    for file in _files(source, others):
        copy = target / file.relative_to(source)
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, copy)  # without its permissions: files of the hub's cache may be read-only
    kept = {file.relative_to(source).parts[0] for file in _files(source, others)}
    return sorted(path.name for path in source.iterdir() if path.name not in kept and not path.name.startswith("."))


def _files(source: Path, others: Collection[str]) -> Iterable[Path]:
    yield from (file for file in source.iterdir() if file.is_file() and (is_setting(file.name) or file.name in others))
    yield from (file for name in _FOLDERS for file in (source / name).glob("*.jinja"))
