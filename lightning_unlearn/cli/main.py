"""The command ``lightning-unlearn``."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from pkgutil import resolve_name

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningCLI
from torch import Tensor

from lightning_unlearn.core.distributed import gather_objects, rank, world_size

__all__ = ["UnlearnCLI", "main"]

_USAGE = """usage: lightning-unlearn <command> [options]

commands:
  fit          unlearn:  --config run.yaml --config callbacks/objectives/npo.yaml
  validate     measure the named sets
  test         measure the named test sets
  predict      generate an answer to every question, draw an image for every prompt
  demo         let a small chat model forget some capitals, and write a report
  demo-diffusion
               let a small diffusion model forget a style, attack it, and write a page
  bench-facts  compare objectives, masks and optimizers on the demo's facts
  bench-classification
               compare the methods on small classifiers with retraining
  bench-erasure
               erase styles and objects from a miniature diffusion model, and attack what is left
  attack       search prompts that bring an erased concept back
  export       write the model of a checkpoint as a folder of transformers or diffusers, or what it changed as a delta
  delta        apply such a delta to the base model, or revert it

`lightning-unlearn <command> --help` lists the options of each."""


_COMMANDS: dict[str, str | dict[str, str]] = {
    "demo": "lightning_unlearn.demos.language:demo",
    "demo-diffusion": "lightning_unlearn.demos.diffusion:demo_diffusion",
    "bench-facts": "lightning_unlearn.benchmarks.facts:bench_facts",
    "bench-classification": "lightning_unlearn.benchmarks.classification:bench_classification",
    "bench-erasure": "lightning_unlearn.benchmarks.erasure:bench_erasure",
    "attack": "lightning_unlearn.cli.attack:attack",
    "export": "lightning_unlearn.cli.export:export",
    "delta": {"apply": "lightning_unlearn.cli.export:apply", "revert": "lightning_unlearn.cli.export:revert"},
}
"""Import paths of the commands: nothing is imported before it is needed."""


class UnlearnCLI(LightningCLI):
    """A LightningCLI whose configuration files add up, with interpolation over the whole of them (OmegaConf).

    The model and the data module are chosen by ``class_path``; callbacks are appended by files with ``callbacks+``.

    Args:
        args: Command line; ``sys.argv`` where none is given.
        run: Whether to run the subcommand; otherwise only parse and instantiate.
    """

    def __init__(self, args: Sequence[str] | None = None, run: bool = True) -> None:
        super().__init__(
            model_class=LightningModule,
            datamodule_class=LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            parser_kwargs={"parser_mode": "omegaconf+"},
            # Some loggers have one folder for all runs, in which the second run would not find room for its config.
            save_config_kwargs={"overwrite": True},
            seed_everything_default=0,
            run=run,
            args=list(args) if args is not None else None,
        )

    def after_predict(self) -> None:
        """Write the predictions of all processes as a JSON object a line, and their images as files."""
        folder = Path(self.trainer.default_root_dir)
        mine = [row for batch in self.trainer.predict_loop.predictions for row in batch]
        for number, row in enumerate(mine):
            if "image" in row:
                row["file_name"] = f"images/{rank() + number * world_size():05d}.png"
                _write_image(row.pop("image"), folder / row["file_name"])
        rows = [row for turn in zip_longest(*gather_objects(mine)) for row in turn if row is not None]
        if not self.trainer.is_global_zero:
            return
        path = folder / "predictions.jsonl"
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        print(f"Wrote {path}")


def _write_image(image: Tensor, path: Path) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()).save(path)


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        args: Words after the program's name; ``sys.argv`` where none are given.
    """
    words = list(sys.argv[1:] if args is None else args)
    if not words or words[0] in ("-h", "--help"):
        print(_USAGE)
        return
    try:
        import omegaconf  # noqa: F401
    except ImportError:
        sys.exit('The command line needs omegaconf: pip install "lightning-unlearn[cli]"')
    command, rest = words[0], words[1:]
    if command in _COMMANDS:
        from jsonargparse import auto_cli

        target = _COMMANDS[command]
        component = (
            resolve_name(target)
            if isinstance(target, str)
            else {name: resolve_name(path) for name, path in target.items()}
        )
        auto_cli(component, args=rest, as_positional=False)
        return
    sys.path.insert(0, os.getcwd())  # as `python -m` does: a class_path may name a module of the current folder
    UnlearnCLI(args)
