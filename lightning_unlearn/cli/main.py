"""Dispatch of the command ``lightning-unlearn``."""

from __future__ import annotations

import difflib
import os
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from lightning_unlearn.cli.quiet import quiet_logs

__all__ = ["foreseen", "main", "run"]

_USAGE = """usage: lightning-unlearn <command> [options]

commands:
  forget       make a model forget on request, and write model, report and signed record
  fit          unlearn:  --config run.yaml --config callbacks/objectives/npo.yaml
  validate     measure the named sets
  test         measure the named test sets
  predict      generate an answer to every question, draw an image for every prompt
  demo         let a small chat model forget some capitals: forget, on rows that come with the package
  demo-diffusion
               let a small diffusion model forget a style, and attack it: forget, on what comes with the package
  demo-mri     train two networks that reconstruct MRI scans, attack both, and write a report
  bench-facts  compare objectives, masks and optimizers on the demo's facts
  bench-retain compare given rows to retain with the original model's own answers
  bench-language
               compare methods on TOFU, MUSE, WMDP, copyright or detox: --benchmark TOFUBenchmark --benchmark.path ...
  bench-classification
               compare the methods on small classifiers with retraining
  bench-smoothing
               let relearning and rounding bring back what smoothed objectives have forgotten
  bench-stopping
               compare runs that end when enough is forgotten with a number of steps set by hand
  bench-erasure
               erase styles and objects from a miniature diffusion model, and attack what is left
  bench-reconstruction
               compare smoothed unrolling (SMUG) with its rivals on simulated MRI scans, clean and under attack
  bench-dialogue
               compare judges of dialogues with the ratings of people: --path <folder of USS>
  canvas       UnlearnCanvas: run it on the miniature; sample, score and report answer sets of any model
  attack       search prompts that bring an erased concept back
  attack-inversion
               learn a word that brings an erased concept back
  export       write the model of a checkpoint as a folder of transformers or diffusers, or what it changed as a delta
  delta        apply such a delta to the base model, or revert it
  audit        say whether a language model has forgotten, with the evidence: --original A --unlearned B --data FOLDER
  judge        rate the dialogues of a file with a language model: --model M --data dialogues.jsonl
  compare      put reports and published result files into one leaderboard: --reports [ours=runs/a, TOFU_EVAL.json]
  record       keep a signed record of an unlearning request: key, create, append, sign
  verify-record
               check such a record, and the files that it is about
  export-card  write the verdict of a record into the README.md of a model
  callbacks    list, print or copy the configuration files that --config finds by name
  doctor       say what a file or folder holds of the time before unlearning, --file x.ckpt; without one, what is
               installed here: versions, devices, extras, and what would be refused
  dashboard    save a view for unlearning runs into a W&B project: --project P

`lightning-unlearn <command> --help` lists the options of each, `lightning-unlearn --version` says the version."""


_COMMANDS: dict[str, str | dict[str, str]] = {
    "demo": "lightning_unlearn.cli.forget:demo",
    "demo-diffusion": "lightning_unlearn.cli.forget:demo_diffusion",
    "demo-mri": "lightning_unlearn.demos.mri:demo_mri",
    "bench-facts": "lightning_unlearn.benchmarks.facts:bench_facts",
    "bench-retain": "lightning_unlearn.benchmarks.retain:bench_retain",
    "bench-language": "lightning_unlearn.benchmarks.published:bench_language",
    "bench-classification": "lightning_unlearn.benchmarks.classification:bench_classification",
    "bench-smoothing": "lightning_unlearn.benchmarks.smoothing:bench_smoothing",
    "bench-stopping": "lightning_unlearn.benchmarks.stopping:bench_stopping",
    "bench-erasure": "lightning_unlearn.benchmarks.erasure:bench_erasure",
    "bench-reconstruction": "lightning_unlearn.benchmarks.reconstruction:bench_reconstruction",
    "bench-dialogue": "lightning_unlearn.benchmarks.dialogue:bench_dialogue",
    "canvas": {
        "run": "lightning_unlearn.benchmarks.unlearncanvas:bench_canvas",
        **{name: f"lightning_unlearn.cli.canvas:{name}" for name in ("sample", "score", "report")},
    },
    "attack": "lightning_unlearn.cli.attack:attack",
    "attack-inversion": "lightning_unlearn.cli.attack:attack_inversion",
    "export": "lightning_unlearn.cli.export:export",
    "audit": "lightning_unlearn.cli.audit:audit",
    "judge": "lightning_unlearn.cli.judge:judge",
    "compare": "lightning_unlearn.cli.compare:compare",
    "record": {name: f"lightning_unlearn.cli.record:{name}" for name in ("key", "create", "append", "sign")},
    "verify-record": "lightning_unlearn.cli.record:verify_record",
    "export-card": "lightning_unlearn.cli.record:export_card",
    "doctor": "lightning_unlearn.cli.doctor:doctor",
    "dashboard": "lightning_unlearn.cli.dashboard:dashboard",
    "delta": {"apply": "lightning_unlearn.cli.delta:apply", "revert": "lightning_unlearn.cli.delta:revert"},
}
"""Import paths of the commands: nothing is imported before it is needed."""

_LIGHTNING = ("fit", "validate", "test", "predict")
_OWN_PARSERS = ("callbacks", "forget")


def run() -> None:
    """Run the command of the shell; an expected error of the library is printed as one last line, without a traceback.

    ``LIGHTNING_UNLEARN_TRACEBACK=1`` in the environment shows the traceback.
    """
    quiet_logs()
    try:
        main()
    except KeyboardInterrupt:
        _interrupted()
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):  # Lightning caught it and cleaned up
            _interrupted()
        raise
    except Exception as error:
        message = foreseen(error)
        if message is None or os.environ.get("LIGHTNING_UNLEARN_TRACEBACK"):
            raise
        sys.exit(f"lightning-unlearn: {message}")


def _interrupted() -> None:
    print("lightning-unlearn: interrupted.", file=sys.stderr)
    sys.exit(130)


def foreseen(error: BaseException) -> str | None:
    """The message of an error that the library itself raised about its input; ``None`` for any other error."""
    while (raiser := _raiser(error)) is not None and "jsonargparse" in raiser.parts:
        inner = error.__cause__ or error.__context__  # it tries several types, and reports all of them
        if inner is None:
            return None
        error = inner
    if isinstance(error, ModuleNotFoundError) and error.name is not None:
        from lightning_unlearn.cli.extras import module_hint

        if (hint := module_hint(error.name)) is not None:
            return hint
    kinds = (ValueError, TypeError, OSError, ImportError, RuntimeError)
    ours = raiser is not None and raiser.is_relative_to(Path(__file__).parents[1])
    known = isinstance(error, kinds) or type(error).__name__ == "MisconfigurationException"
    return str(error) if ours and known and str(error) else None


def _raiser(error: BaseException) -> Path | None:
    """The file in which an error was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    return Path(frames[-1].filename) if frames else None


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        args: Words after the program's name; by default ``sys.argv``.
    """
    words = list(sys.argv[1:] if args is None else args)
    if not words or words[0] in ("-h", "--help"):
        print(_USAGE)
        return
    if words[0] == "--version":
        print(f"lightning-unlearn {version('lightning-unlearn')}")
        return
    command, rest = words[0], words[1:]
    _check(command, rest)
    if command == "callbacks":
        from lightning_unlearn.cli.callbacks import callbacks

        callbacks(rest)
    elif command == "forget":
        from lightning_unlearn.cli.forget import forget

        sys.path.insert(0, os.getcwd())
        forget(rest)
    elif command == "doctor" and not rest:  # without the parser, which would import Lightning
        from lightning_unlearn.cli.doctor import doctor

        doctor()
    elif command in _COMMANDS:
        from jsonargparse import auto_cli

        from lightning_unlearn.cli.parser import BriefErrors

        name = f"lightning-unlearn {command}"
        auto_cli(_resolved(_COMMANDS[command]), args=rest, as_positional=False, parser_class=BriefErrors, prog=name)
    else:
        from lightning_unlearn.cli.fit import command_line, package_for

        sys.path.insert(0, os.getcwd())  # as `python -m` does: a class_path may name a module of the current folder
        command_line(package_for(words))(args)


def _check(command: str, rest: Sequence[str]) -> None:
    """Exit with a message if the command does not exist, or a package that it needs is missing."""
    known = [*_OWN_PARSERS, *_LIGHTNING, *_COMMANDS]
    if command not in known and not command.startswith("-"):
        close = difflib.get_close_matches(command, known)
        print(
            f"lightning-unlearn: there is no command {command!r}. "
            + (f"Did you mean {' or '.join(close)}?" if close else f"There are {', '.join(sorted(known))}."),
            "`lightning-unlearn --help` says what each does.",
            file=sys.stderr,
        )
        sys.exit(2)
    from lightning_unlearn.cli.extras import install_line, missing_packages

    missing = missing_packages(["fit"] if command.startswith("-") else [command, *rest])
    if missing and not {"-h", "--help"}.intersection(rest):
        names = ", ".join(sorted({name for names in missing.values() for name in names}))
        sys.exit(f"lightning-unlearn {command} needs {names}: {install_line(missing)}")


def _resolved(target: str | dict[str, str]) -> Any:
    if isinstance(target, str):
        return resolve_name(target)
    return {name: resolve_name(path) for name, path in target.items()}
