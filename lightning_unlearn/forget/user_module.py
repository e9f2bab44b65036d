"""Modules of users, opened from their checkpoints by their own classes."""

from __future__ import annotations

import inspect
import pickle
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextvars import Context
from importlib import import_module
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import torch

from lightning_unlearn.core.checks import above
from lightning_unlearn.core.files import sha256
from lightning_unlearn.core.lightning import MODULES, LightningModule

_LINES, _LONGEST = 4, 200  # lines of a message, and characters of each
_NEEDED = ("state_dict", "pytorch-lightning_version")

__all__ = ["base_rates", "built", "import_class", "open_module", "read_checkpoint", "recorded_rates"]


def import_class(path: str, kinds: tuple[type, ...], kind: str) -> type[Any]:
    """The class of a user by its import path.

    Args:
        path: ``package.module:Class`` or ``package.module.Class``, of what can be imported from the current folder, or
            a file, ``folder/net.py:Class``, whose folder is added to the import path.
        kinds: Classes that it must be derived from.
        kind: Their name, for messages.

    Raises:
        ValueError: If there is no such class, or it is another kind of class.
        FileNotFoundError: If there is no such file.
    """
    found = _from_file(path) if ".py:" in path or path.endswith(".py") else _from_module(path)
    if not (isinstance(found, type) and issubclass(found, kinds)):
        raise ValueError(
            f"{path} is {found!r}, and no {kind} of lightning.pytorch or pytorch_lightning. Give the class itself, "
            f"such as my_package.my_module:My{kind.removeprefix('Lightning')}."
        )
    return found


def _from_module(path: str) -> Any:
    module, _, name = path.partition(":") if ":" in path else path.rpartition(".")
    if not module or not name:
        raise ValueError(f"{path!r} names no class. Give module and class, such as my_package.my_module:LitNet.")
    try:
        return resolve_name(path)
    except ModuleNotFoundError as error:
        missing = error.name or module
        if module.split(".")[0] != missing.split(".")[0]:
            raise ValueError(f"{module} needs the module {missing}, which is not installed: {error}.") from error
        raise ValueError(
            f"There is no module {missing} (looked in {Path.cwd()} and the installed packages). Start the command in "
            f"the folder that it is in, or give the file: path/to/file.py:{name}."
        ) from None
    except AttributeError:
        raise ValueError(f"{module} has no class {name}. It has {_classes(import_module(module))}.") from None


def _from_file(path: str) -> Any:
    file, colon, name = path.rpartition(":")
    if not colon or not name:
        raise ValueError(f"{path!r} names a file, but no class in it. Give both, such as {path}:LitNet.")
    source = Path(file).expanduser().resolve()
    if not source.is_file():
        raise FileNotFoundError(f"There is no file {source} (looked in {Path.cwd()}).")
    if str(source.parent) not in sys.path:
        sys.path.insert(0, str(source.parent))
    module = import_module(source.stem)
    if Path(str(module.__file__)).resolve() != source:
        raise ValueError(
            f"{source} can't be imported as {source.stem}: {module.__file__} has that name already. Rename the file, "
            "or give the import path of the module, such as my_package.my_module:LitNet."
        )
    if not hasattr(module, name):
        raise ValueError(f"{source} has no class {name}. It has {_classes(module)}.")
    return getattr(module, name)


def _classes(module: Any) -> list[str]:
    return sorted(n for n, value in vars(module).items() if isinstance(value, type) and not n.startswith("_"))


def read_checkpoint(path: str, trusted: bool = False) -> dict[str, Any]:
    """What a Trainer's checkpoint holds, on the CPU.

    Args:
        path: The file.
        trusted: Whether objects of any class are loaded, by which a file can run code.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no checkpoint of a Trainer, has objects of classes and is not trusted, or has those of a
            class that is not found.
    """
    file = Path(path)
    if file.is_dir():
        raise ValueError(
            f"{path} is a folder, as sharded strategies write it. Make one file of it first: "
            f"python -m lightning.pytorch.utilities.consolidate_checkpoint {path}"
        )
    if not file.is_file():
        raise FileNotFoundError(f"There is no file {path} (looked in {Path.cwd()}).")
    try:
        checkpoint = torch.load(file, map_location="cpu", weights_only=not trusted)
    except pickle.UnpicklingError as error:
        named = re.findall(r"GLOBAL ([\w.]+)", str(error))
        if not named:
            raise ValueError(f"{path} is no PyTorch file, or a part of one.") from None
        raise ValueError(
            f"{path} holds objects of {', '.join(dict.fromkeys(named))}, and loading objects of such classes can run "
            "code of whoever wrote the file. If it is yours, add --trust_checkpoint; better, save it anew with "
            "plain hyperparameters (numbers, texts, lists, dicts)."
        ) from None
    except (ImportError, AttributeError) as error:  # of a trusted file
        raise ValueError(
            f"{path} holds objects of a class that is not found here: {error}. Start the command where it can be "
            "imported. A class of a notebook or script, __main__, can't be: save the checkpoint anew with plain "
            "hyperparameters (numbers, texts, lists, dicts)."
        ) from None
    except (RuntimeError, EOFError, OSError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is no PyTorch file, or a part of one: {error}") from None
    missing = [name for name in _NEEDED if not isinstance(checkpoint, dict) or name not in checkpoint]
    if missing:
        raise ValueError(
            f"{path} is no checkpoint of a Trainer: it has no {missing[0]!r}. Save one with "
            "trainer.save_checkpoint(path), from which the module's own load_from_checkpoint can make it again."
        )
    return checkpoint


def open_module(
    checkpoint: str,
    module: str,
    arguments: dict[str, Any] | None = None,
    trusted: bool = False,
    sha256: str | None = None,
    rate: float = 1.0,
) -> LightningModule:
    """A user's module with the weights of a checkpoint, made by the ``load_from_checkpoint`` of its class.

    In a configuration of LightningCLI it stands in place of the module's class. The module keeps its own optimizer,
    with learning rates that are multiplied by ``rate`` and then constant: schedules are those of the training, and end
    with it.

    Args:
        checkpoint: File that ``Trainer.save_checkpoint`` or ``ModelCheckpoint`` wrote.
        module: Import path of the class, ``package.module:Class`` or ``file.py:Class``.
        arguments: Arguments of its constructor, in place of those in the checkpoint or beside them. A dict with
            ``class_path`` and ``init_args`` is an object of that class.
        trusted: Whether the checkpoint may hold objects of any class, by which a file can run code.
        sha256: Hash of the file, which is refused if it has another.
        rate: Factor of the learning rates of the training.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If file, class and arguments do not fit together.
    """
    above("rate", rate, 0)
    kind = import_class(module, MODULES, "LightningModule")
    _check_hash(checkpoint, sha256)
    read_checkpoint(checkpoint, trusted)
    given = _constructor_arguments(kind, arguments or {})
    options = {"weights_only": not trusted} if _takes_weights_only(kind) else {}
    try:
        # Hyperparameters are the checkpoint's: in a run of LightningCLI the module would take the arguments that stand
        # in its configuration, which are those of this function.
        opened = Context().run(kind.load_from_checkpoint, checkpoint, map_location="cpu", **options, **given)
    except TypeError as error:
        raise ValueError(
            f"{kind.__name__} can't be made from {checkpoint}: {error}. Hyperparameters are in a checkpoint where the "
            "constructor calls self.save_hyperparameters(); give those that are missing as --module.<name> <value>."
        ) from error
    except RuntimeError as error:
        raise ValueError(
            f"{kind.__name__} does not take the weights of {checkpoint}. Give the class that was trained, with the "
            f"same arguments (--module.<name> <value>): {_brief(error)}"
        ) from error
    if rate != 1.0:
        _scale_rates(opened, rate)
    return opened


def _brief(error: Exception) -> str:
    """A message of torch without most of the names of a large network."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    shown = [line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..." for line in lines[:_LINES]]
    return " ".join([*shown, *([f"({len(lines) - _LINES} more lines)"] if len(lines) > _LINES else [])])


def _check_hash(checkpoint: str, wanted: str | None) -> None:
    if wanted is None or not Path(checkpoint).is_file():
        return
    if (found := sha256(checkpoint)) != wanted:
        raise ValueError(
            f"{checkpoint} is not the file that this run began with: its SHA-256 is {found}, and not {wanted}. Give "
            "the checkpoint of before, or make the request anew."
        )


def _takes_weights_only(kind: type[Any]) -> bool:
    return "weights_only" in inspect.signature(kind.load_from_checkpoint).parameters


def _constructor_arguments(kind: type[Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments, built; those that the constructor does not have would be passed over in silence."""
    parameters = inspect.signature(kind.__init__).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        known = [name for name in parameters if name != "self"]
        if unknown := sorted(arguments.keys() - set(known)):
            raise ValueError(f"{kind.__name__} has no arguments {unknown}. It has {known}.")
    return {name: built(value) for name, value in arguments.items()}


def built(value: Any) -> Any:
    """A value of a configuration, with an object in place of each dict of ``class_path`` and ``init_args``."""
    if isinstance(value, list):
        return [built(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    if "class_path" in value and value.keys() <= {"class_path", "init_args"}:
        return resolve_name(value["class_path"])(**built(value.get("init_args") or {}))
    return {key: built(entry) for key, entry in value.items()}


# ---- learning rates --------------------------------------------------------------------------------------------------


def _scale_rates(module: LightningModule, rate: float) -> None:
    configure: Callable[[], Any] = module.configure_optimizers

    def configure_optimizers() -> Any:
        """The module's own optimizer, with smaller rates and without a schedule."""
        optimizer = _one_optimizer(module, configure())
        for group in optimizer.param_groups:
            group["lr"] = _group_rate(group) * rate
        return optimizer

    module.configure_optimizers = configure_optimizers  # type: ignore[method-assign]


def base_rates(module: LightningModule) -> list[float] | None:
    """Learning rates of the training, one a parameter group; ``None`` where they are known in a run alone.

    Raises:
        ValueError: If the module has several optimizers, or none.
    """
    try:
        configured = module.configure_optimizers()
    except Exception:  # it asks its trainer, or its data
        return None
    return [float(_group_rate(group)) for group in _one_optimizer(module, configured).param_groups]


def recorded_rates(checkpoint: Mapping[str, Any]) -> list[float] | None:
    """Learning rates that a checkpoint has of its training, one a parameter group; ``None`` where it has none."""
    states = checkpoint.get("optimizer_states") or []
    return [float(_group_rate(group)) for group in states[0]["param_groups"]] if len(states) == 1 else None


def _group_rate(group: Mapping[str, Any]) -> Any:
    """The rate of the training: a schedule that is made has set its own first rate already."""
    return group.get("max_lr", group.get("initial_lr", group["lr"]))


def _one_optimizer(module: LightningModule, configured: Any) -> torch.optim.Optimizer:
    found = list(_optimizers(configured))
    if len(found) != 1:
        raise ValueError(
            f"{type(module).__name__}.configure_optimizers gives {len(found)} optimizers, but unlearning trains with "
            "one. Return one optimizer of all weights that may change, in a class derived from yours."
        )
    return found[0]


def _optimizers(configured: Any) -> Iterator[torch.optim.Optimizer]:
    if isinstance(configured, torch.optim.Optimizer):
        yield configured
    elif isinstance(configured, Mapping):
        yield from _optimizers(configured.get("optimizer"))
    elif isinstance(configured, (list, tuple)):
        for part in configured:
            yield from _optimizers(part)
