"""Commands ``fit``, ``validate``, ``test`` and ``predict``."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from itertools import zip_longest
from pathlib import Path
from pkgutil import resolve_name
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
import yaml
from torch import Tensor

from lightning_unlearn.cli.configs import PACKAGE, with_shipped
from lightning_unlearn.cli.parser import BriefErrors
from lightning_unlearn.core.distributed import gather_objects, rank, world_size
from lightning_unlearn.core.lightning import MODULES, PACKAGES, resolve
from lightning_unlearn.core.trainer_progress import log_progress
from lightning_unlearn.dialogue.data.module import DialogueDataModule
from lightning_unlearn.dialogue.rating import Rating
from lightning_unlearn.dialogue.rating_files import without_nan
from lightning_unlearn.forget.user_module import import_class

__all__ = ["UnlearnCLI", "command_line", "package_for"]

OPENER = "lightning_unlearn.forget.user_module.open_module"
"""Stands in place of a module's class, and names it among its arguments."""


if TYPE_CHECKING:
    from lightning.pytorch.cli import LightningCLI
else:
    LightningCLI = object


class _Commands(LightningCLI):
    """A LightningCLI that merges configuration files, with interpolation across all of them (OmegaConf).

    The model and the data module are chosen by ``class_path``; files append callbacks with ``callbacks+``.
    ``--config`` also takes the name of a file that comes with the package, such as ``objectives/npo``, and
    ``${package:assets/refusals.txt}`` in a file is a path in the package.

    Args:
        args: Command line; by default ``sys.argv``.
        run: Whether to run the subcommand; otherwise only parse and instantiate.
    """

    package: ModuleType
    """The package of Lightning that Trainer, model and data module are of."""

    def __init__(self, args: Sequence[str] | None = None, run: bool = True) -> None:
        from omegaconf import OmegaConf

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # OmegaConf 2.4 has a new name for it, which 2.3 lacks
            OmegaConf.register_new_resolver("package", lambda path: str(PACKAGE / path), replace=True)
        super().__init__(
            model_class=resolve("LightningModule", self.package),
            datamodule_class=resolve("LightningDataModule", self.package),
            subclass_mode_model=True,
            subclass_mode_data=True,
            parser_kwargs={"parser_mode": "omegaconf+"},
            # Some loggers use one folder for all runs, where the second run could not write its config.
            save_config_kwargs={"overwrite": True},
            seed_everything_default=0,
            run=run,
            args=list(args) if args is not None else None,
            parser_class=type("Parser", (BriefErrors, resolve("cli.LightningArgumentParser", self.package)), {}),
        )

    def parse_arguments(self, parser: Any, args: Any) -> None:
        """Parse the command line, with names of shipped configuration files replaced by their paths."""
        self.config = parser.parse_args(with_shipped(sys.argv[1:] if args is None else args))

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """The Trainer of the configuration, which writes lines instead of a bar if there is no terminal."""
        trainer = super().instantiate_trainer(**kwargs)
        log_progress(trainer)
        return trainer

    def _parse_ckpt_path(self) -> None:
        """As in Lightning, unless the module's class is an argument: the checkpoint has arguments of that class."""
        subcommand = self.config.get("subcommand")
        model = self.config[subcommand].get("model") if subcommand else None
        if getattr(model, "class_path", None) != OPENER:
            super()._parse_ckpt_path()

    def before_predict(self) -> None:
        """Refuse to overwrite existing files, before anything is computed.

        Raises:
            FileExistsError: If the folder already contains predictions or images.
        """
        folder = Path(self.trainer.default_root_dir)
        for name in ("predictions.jsonl", "images"):
            taken = folder / name
            if taken.is_file() or (taken.is_dir() and any(taken.iterdir())):
                raise FileExistsError(
                    f"predict writes predictions.jsonl and images/ into {folder.resolve()}, where {name} is already. "
                    "Give a new folder, --trainer.default_root_dir=..., or move it away."
                )

    def after_predict(self) -> None:
        """Write the predictions of all processes as one JSON object per line, and their images as files.

        Ratings of a judge have the ``id`` of their dialogue, and ``null`` where there is no score.
        """
        folder = Path(self.trainer.default_root_dir)
        own = [row for batch in self.trainer.predict_loop.predictions for row in batch]
        rates = bool(own) and isinstance(own[0], Rating)
        if rates:
            own = [without_nan(asdict(row)) for row in own]
        for number, row in enumerate(own):
            if "image" in row:
                row["file_name"] = f"images/{rank() + number * world_size():05d}.png"
                _write_image(row.pop("image"), folder / row["file_name"])
        rows = [row for turn in zip_longest(*gather_objects(own)) for row in turn if row is not None]
        data = self.datamodule
        if rates and isinstance(data, DialogueDataModule):
            rows = [{"id": part.id, **row} for part, row in zip(data.dialogues, rows, strict=False)]
        if not self.trainer.is_global_zero:
            return
        path = folder / "predictions.jsonl"
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        print(f"Wrote {path}")


@cache
def command_line(package: ModuleType) -> type[_Commands]:
    """The command line class for one of Lightning's packages."""
    bases = (_Commands, resolve("cli.LightningCLI", package))
    return type("UnlearnCLI", bases, {"package": package, "__doc__": _Commands.__doc__, "__module__": __name__})


UnlearnCLI = command_line(PACKAGES[0])


def package_for(words: Sequence[str]) -> ModuleType:
    """The Lightning package whose Trainer takes the model that a command line names.

    Args:
        words: A command line.
    """
    for path in reversed(_model_paths(with_shipped(words))):
        try:
            model = import_class(path, MODULES, "LightningModule") if ":" in path else resolve_name(path)
        except (ImportError, AttributeError, ValueError, OSError):
            continue  # the parser reports the error
        if isinstance(model, type):
            return next((p for p in PACKAGES if issubclass(model, p.LightningModule)), PACKAGES[0])
    return PACKAGES[0]


def _model_paths(words: Sequence[str]) -> list[str]:
    """Import paths of the model in a command line and its files, the last one last."""
    paths: list[Any] = []
    for word, following in zip(words, [*words[1:], ""], strict=True):
        option, equals, value = word.partition("=")
        value = value if equals else following
        if option in ("--model", "--model.class_path"):
            paths.append(value)
        elif option in ("--config", "-c") and Path(value).is_file():
            settings = yaml.safe_load(Path(value).read_text(encoding="utf-8"))
            model = settings.get("model") if isinstance(settings, dict) else None
            paths.append(model.get("class_path") if isinstance(model, dict) else model)
            opened = (model.get("init_args") or {}).get("module") if isinstance(model, dict) else None
            paths += [opened] if paths[-1] == OPENER else []
    return [path for path in paths if isinstance(path, str) and ("." in path or ":" in path)]


def _write_image(image: Tensor, path: Path) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()).save(path)
