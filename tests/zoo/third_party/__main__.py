"""Unlearning in modules of other packages, none of their lines changed: a program that writes a table.

    python -m tests.zoo.third_party                      # every package of requirements.txt
    python -m tests.zoo.third_party chemprop darts       # some
    python -m tests.zoo.third_party --page               # and write the page of the documentation

It ends with an error where a method neither works nor is refused as the package's file says.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import logging
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from lightning_unlearn import NPO, SSD, WAGLE, GradDiff, UnlearnMonitor, training_step_loss
from tests.zoo.third_party.case import QUIET, Case

HERE = Path(__file__).parent
PAGE = Path("docs/third_party.md")
PACKAGES = [line.split("==")[0] for line in (HERE / "requirements.txt").read_text().split()]
OPTIONS = {"accelerator": "cpu", "max_epochs": 4, "gradient_clip_val": 0.5}
SETUPS: dict[str, Callable[[Case], list[Any]]] = {
    "GradDiff": lambda case: [GradDiff(score=training_step_loss)],
    "NPO": lambda case: [NPO(score=case.score)],
    "WAGLE": lambda case: [GradDiff(score=case.score), WAGLE(density=0.5)],
    "SSD": lambda case: [SSD(alpha=1.0, score=case.score)],
    "monitor": lambda case: [GradDiff(score=case.score), UnlearnMonitor(score=case.score)],
}


@dataclass
class Outcome:
    """What one setup did to one package's module.

    Args:
        lines: Lines that the user adds: the dict of loaders, the callbacks, and the body of a score of their own.
        text: What the table says.
        failure: Why the program must end with an error, if it must.
    """

    lines: int
    text: str
    failure: str = ""


def nll(case: Case, module: Any) -> dict[str, float]:
    """Mean NLL of each role, in evaluation mode."""
    module.eval()
    with torch.no_grad():
        return {
            role: torch.cat([case.score(module, batch) for batch in loader]).mean().item()
            for role, loader in case.loaders.items()
        }


def run(case: Case, name: str, weights: dict[str, Any]) -> Outcome:
    """Unlearn by one setup, from the trained weights."""
    case.module.load_state_dict(copy.deepcopy(weights))
    callbacks = SETUPS[name](case)
    lines = 1 + len(callbacks) + (0 if name == "GradDiff" else case.score_lines)
    before = nll(case, case.module)
    case.module.train()
    torch.manual_seed(0)
    trainer = case.trainer(callbacks=callbacks, **QUIET | OPTIONS | case.options)
    trainer.fit(case.module, case.loaders, **case.fit)
    after = nll(case, case.module)
    text = (
        f"forget {before['forget']:.2f} → {after['forget']:.2f}, retain {before['retain']:.2f} → {after['retain']:.2f}"
    )
    if not after["forget"] > before["forget"]:
        return Outcome(lines, text, "the forget rows are as likely as before")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "unlearned.ckpt"
        case.save(trainer, path)
        loaded = case.load(path)
    same = all(torch.equal(value, loaded.state_dict()[key]) for key, value in case.module.state_dict().items())
    if not same:
        return Outcome(lines, text, "the checkpoint that its own library loads has other weights")
    if name == "monitor" and not {"forget_nll", "retain_nll"} <= callbacks[1].history[-1].metrics.keys():
        return Outcome(lines, text, "the monitor did not measure both roles")
    return Outcome(lines, text)


def outcomes(package: str) -> dict[str, Outcome]:
    """Every setup on the module of one package."""
    module = importlib.import_module(f"tests.zoo.third_party.{package.replace('-', '_')}")
    refused: dict[str, str] = getattr(module, "REFUSED", {})
    torch.manual_seed(0)
    case: Case = module.make()
    weights = copy.deepcopy(case.module.state_dict())
    results = {}
    for name in SETUPS:
        try:
            results[name] = run(case, name, weights)
            if name in refused:
                results[name].failure = f"it works, but {package} says that it is refused"
        except Exception as error:
            message = f"{type(error).__name__}: {error}"
            expected = name in refused and refused[name] in message
            results[name] = Outcome(0, f"refused: {refused[name]}" if expected else message.split(". ")[0])
            if not expected:
                traceback.print_exc()
                results[name].failure = message
        print(f"{package:22s} {name:9s} {results[name].text}", flush=True)
    return results


def page(results: dict[str, dict[str, Outcome]]) -> str:
    """The table as a page of the documentation."""
    head = (HERE / "page.md").read_text()
    rows = [f"| | {' | '.join(SETUPS)} |", f"|---|{'---|' * len(SETUPS)}"]
    for package, by_setup in results.items():
        cells = [f"{o.lines} lines: {o.text}" if o.lines else o.text for o in by_setup.values()]
        rows.append(f"| `{package}` {version(package)} | {' | '.join(cells)} |")
    return f"{head}\n" + "\n".join(rows) + "\n"


def main() -> int:
    """Run the packages that are named, print what happens, and write the page where one is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", nargs="*", default=PACKAGES)
    parser.add_argument("--page", action="store_true", help=f"write {PAGE}; needs every package")
    arguments = parser.parse_args()
    unknown = set(arguments.packages) - set(PACKAGES)
    if unknown or (arguments.page and set(arguments.packages) != set(PACKAGES)):
        parser.error(f"the packages are {' '.join(PACKAGES)}, and --page needs all of them")
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "pytorch_lightning", "lightning.fabric", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)
    results = {package: outcomes(package) for package in arguments.packages}
    if arguments.page:
        PAGE.write_text(page(results))
    failures = [
        f"{package}, {name}: {outcome.failure}"
        for package, by_setup in results.items()
        for name, outcome in by_setup.items()
        if outcome.failure
    ]
    print(
        "\n".join(failures) or "Every setup works, or is refused as its file says.",
        file=sys.stderr if failures else sys.stdout,
    )
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
