"""Command ``callbacks``: listing, printing and copying of the configuration files that come with the package."""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from pkgutil import resolve_name

import yaml

from lightning_unlearn.cli.configs import find_config, shipped_configs

__all__ = ["callbacks"]

_DESCRIPTION = (
    "List, print or copy the files that --config finds by name: callbacks for any LightningCLI, and examples."
)


def callbacks(words: Sequence[str]) -> None:
    """List, print or copy the configuration files that come with the package.

    Args:
        words: Command line after the name of the command: nothing, ``list``, ``print NAME ...`` or
            ``copy [NAME ...] --to FOLDER``.

    Raises:
        FileNotFoundError: If no file has the given name.
        ValueError: If several files have it.
        FileExistsError: If a copy would replace another file.
    """
    parser = argparse.ArgumentParser(prog="lightning-unlearn callbacks", description=_DESCRIPTION)
    commands = parser.add_subparsers(dest="command", metavar="{list,print,copy}")
    commands.add_parser("list", help="list them, with the class of each and what that does (the default)")
    shown = commands.add_parser("print", help="print some of them")
    copied = commands.add_parser("copy", help="copy some of them, or all, into a folder")
    shown.add_argument("names", nargs="+", metavar="NAME", help="end of a path, such as objectives/npo or npo")
    copied.add_argument("names", nargs="*", metavar="NAME", help="end of a path; without any, all files are copied")
    copied.add_argument("--to", required=True, metavar="FOLDER", help="where to copy them, in a folder for each room")
    given = parser.parse_args(list(words))
    if given.command == "print":
        for name in given.names:
            sys.stdout.write(_shipped(name).read_text(encoding="utf-8"))
    elif given.command == "copy":
        _copy([_shipped(name) for name in given.names] or shipped_configs(), Path(given.to))
    else:
        _list()


def _shipped(name: str) -> Path:
    return Path(find_config(name, own=False))


def _list() -> None:
    for room, paths in groupby(shipped_configs(), key=lambda path: path.parent):
        print(f"{room.name}/")
        for path in paths:
            print(f"  {path.stem:<25} {_summary(path)}")
    print(
        "\nlightning-unlearn fit --config run.yaml --config objectives/npo   attaches one"
        "\nlightning-unlearn callbacks print objectives/npo                  shows it"
        "\nlightning-unlearn callbacks copy objectives/npo --to callbacks    copies it, for any other LightningCLI"
    )


def _summary(path: Path) -> str:
    """The first line of the docstring of the callback that a file attaches, or of the model that an example trains."""
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    attached = (settings.get("trainer") or {}).get("callbacks+")
    named = attached[-1] if attached else settings.get("model")
    class_path = named["class_path"] if isinstance(named, dict) else named
    text = (resolve_name(class_path).__doc__ or "").strip().partition("\n")[0]
    text = re.sub(r"\[`(\w+)`\]\[[^]]*\]|`+", r"\1", text)  # links in the documentation
    name = class_path.rpartition(".")[2]
    return text if text.startswith(f"{name}:") else f"{name}: {text}"


def _copy(paths: Sequence[Path], folder: Path) -> None:
    targets = {path: folder / path.parent.name / path.name for path in paths}
    taken = [str(target) for target in targets.values() if target.exists()]
    if taken:
        raise FileExistsError(f"{', '.join(taken)} exist(s), and copy does not write over files. Give another --to.")
    for path, target in targets.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        print(f"Wrote {target}")
