"""The command ``lightning-unlearn``."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningCLI
from torch import Tensor

import lightning_unlearn.callbacks
import lightning_unlearn.data
import lightning_unlearn.modules
from lightning_unlearn.delta import apply_delta, delta_info, revert_delta, save_delta
from lightning_unlearn.distributed import gather_objects, rank, world_size

__all__ = ["UnlearnCLI", "apply", "export", "main", "revert"]

_USAGE = """usage: lightning-unlearn <command> [options]

commands:
  fit          unlearn:  --config run.yaml --config callbacks/language/npo.yaml
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


def export(ckpt_path: str, output_dir: str | None = None, delta: str | None = None, base: str | None = None) -> None:
    """Write the model of a checkpoint as a folder, for ``AutoModelForCausalLM`` or ``StableDiffusionPipeline`` to open.

    Adapters are merged.

    Args:
        ckpt_path: Checkpoint of a run with LitCausalLM or LitTextToImage.
        output_dir: Folder to write.
        delta: File to write what the run changed to, for ``lightning-unlearn delta apply``; of language models.
        base: Folder, hub id or GGUF file of the model before the run; by default the one that the run started from.

    Raises:
        ValueError: If there is nothing to write, the checkpoint is a folder of shards, as FSDP2 writes it, or a delta
            is asked for of a diffusion model.
    """
    if output_dir is None and delta is None:
        raise ValueError("There is nothing to write. Give --output_dir for a folder, --delta for a delta, or both.")
    if base is not None and delta is None:
        raise ValueError(f"base={base!r} is what a delta is made against. Give --delta, the file to write, too.")
    if Path(ckpt_path).is_dir():
        raise ValueError(
            f"{ckpt_path} is a sharded checkpoint. Make one file of it first: "
            f"python -m lightning.pytorch.utilities.consolidate_checkpoint {ckpt_path}"
        )
    if any(key.startswith("unet.") for key in torch.load(ckpt_path, "meta", weights_only=True)["state_dict"]):
        if delta is not None or output_dir is None:
            raise ValueError("A delta is made of language models. Give --output_dir alone, for the whole pipeline.")
        lightning_unlearn.modules.LitTextToImage.load_from_checkpoint(
            ckpt_path, "cpu", weights_only=True
        ).save_pretrained(output_dir)
        print(f"Wrote {output_dir}")
        return
    module = lightning_unlearn.modules.LitCausalLM.load_from_checkpoint(ckpt_path, "cpu", weights_only=True)
    with TemporaryDirectory() as scratch:
        folder = output_dir if output_dir is not None else f"{scratch}/export"
        module.save_pretrained(folder)
        if output_dir is not None:
            print(f"Wrote {output_dir}")
        if delta is None:
            return
        start = {name: module.hparams[name] for name in ("model", "revision", "dtype", "trust_remote_code")}
        after = {**start, "model": folder, "revision": None}
        before = start if base is None else {**start, "model": base, "revision": None}
        del module  # a model at a time in memory
        # Both as they are loaded: merged adapters write tied weights twice, and a base may be of another type.
        for side, options in (("before", before), ("after", after)):
            lightning_unlearn.modules.LitCausalLM(**options).save_pretrained(f"{scratch}/{side}")
        info = save_delta(f"{scratch}/before", f"{scratch}/after", delta)
    print(
        f"Wrote {delta}: {info.changed:,} of {info.weights:,} {info.dtype} weights changed ({info.density:.2%}), "
        f"{Path(delta).stat().st_size:,} bytes"
    )


def apply(model: str, delta: str, output: str) -> None:
    """Write the unlearned model: the base with a delta applied.

    Args:
        model: Folder, hub id or GGUF file of the base model.
        delta: File that ``lightning-unlearn export --delta`` wrote.
        output: Folder to write, which must not exist.
    """
    with _folder(model, delta) as folder:
        apply_delta(folder, delta, output)
    print(f"Wrote {output}")


def revert(model: str, delta: str, output: str) -> None:
    """Write the base model: the unlearned one with a delta taken back.

    Args:
        model: Folder of the unlearned model.
        delta: File that was applied.
        output: Folder to write, which must not exist.
    """
    revert_delta(model, delta, output)
    print(f"Wrote {output}")


@contextmanager
def _folder(model: str, delta: str) -> Iterator[str]:
    """A folder with the model's weights in the type that the delta is made for."""
    if Path(model).is_dir():
        yield model
        return
    with TemporaryDirectory() as scratch:
        dtype: Any = delta_info(delta).dtype
        lightning_unlearn.modules.LitCausalLM(model, dtype=dtype).save_pretrained(scratch)
        yield scratch


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
    own: dict[str, Any] = {
        "demo": _demo(),
        "demo-diffusion": _demo_diffusion(),
        "bench-facts": _bench_facts(),
        "bench-classification": _bench_classification(),
        "bench-erasure": _bench_erasure(),
        "attack": _attack(),
        "export": export,
        "delta": {"apply": apply, "revert": revert},
    }
    if command in own:
        from jsonargparse import auto_cli

        auto_cli(own[command], args=rest, as_positional=False)
        return
    sys.path.insert(0, os.getcwd())  # as `python -m` does: a class_path may name a module of the current folder
    UnlearnCLI(args)


def _demo() -> Callable[..., Any]:
    from lightning_unlearn.demo import demo

    return demo


def _bench_erasure() -> Callable[..., Any]:
    from lightning_unlearn.benchmarks.erasure import bench_erasure

    return bench_erasure


def _attack() -> Callable[..., Any]:
    from lightning_unlearn.attacks.command import attack

    return attack


def _demo_diffusion() -> Callable[..., Any]:
    from lightning_unlearn.demo_diffusion import demo_diffusion

    return demo_diffusion


def _bench_facts() -> Callable[..., Any]:
    from lightning_unlearn.benchmarks import bench_facts

    return bench_facts


def _bench_classification() -> Callable[..., Any]:
    from lightning_unlearn.benchmarks import bench_classification

    return bench_classification
