"""The command ``lightning-unlearn``."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningCLI

import lightning_unlearn.callbacks
import lightning_unlearn.data
import lightning_unlearn.modules

__all__ = ["UnlearnCLI", "export", "main"]

_USAGE = """usage: lightning-unlearn <command> [options]

commands:
  fit        unlearn:  --config run.yaml --config callbacks/language/npo.yaml
  validate   measure the named sets
  test       measure the named test sets
  predict    generate an answer to every question
  demo       let a small chat model forget some capitals, and write a report
  export     write the model of a checkpoint as a Hugging Face folder

`lightning-unlearn <command> --help` lists the options of each."""


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
        """Write the predictions as a JSON object a line."""
        if not self.trainer.is_global_zero:
            return
        path = Path(self.trainer.default_root_dir) / "predictions.jsonl"
        batches = self.trainer.predict_loop.predictions
        lines = [json.dumps(row, ensure_ascii=False) for batch in batches for row in batch]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"Wrote {path}")


def export(ckpt_path: str, output_dir: str) -> None:
    """Write the model of a checkpoint as a folder for ``AutoModelForCausalLM.from_pretrained``, adapters merged.

    Args:
        ckpt_path: Checkpoint of a run with LitCausalLM.
        output_dir: Folder to write.

    Raises:
        ValueError: If the checkpoint is a folder of shards, as FSDP2 writes it.
    """
    if Path(ckpt_path).is_dir():
        raise ValueError(
            f"{ckpt_path} is a sharded checkpoint. Make one file of it first: "
            f"python -m lightning.pytorch.utilities.consolidate_checkpoint {ckpt_path}"
        )
    module = lightning_unlearn.modules.LitCausalLM.load_from_checkpoint(ckpt_path, map_location="cpu")
    module.save_pretrained(output_dir)
    print(f"Wrote {output_dir}")


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
    own: dict[str, Callable[..., Any]] = {"demo": _demo(), "export": export}
    if command in own:
        from jsonargparse import auto_cli

        auto_cli(own[command], args=rest, as_positional=False)
        return
    UnlearnCLI(args)


def _demo() -> Callable[..., Any]:
    from lightning_unlearn.demo import demo

    return demo
