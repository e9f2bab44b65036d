"""Command ``doctor``: check of a file for remains of the original model, and of an installation."""

from __future__ import annotations

import sys

from lightning_unlearn.cli import environment

__all__ = ["doctor"]


def doctor(file: str | None = None) -> None:
    """Check what a file or folder still holds of the model before unlearning or, without one, what is installed here.

    For a file, the exit code is 0 if it holds nothing, 1 if it gives away the model before unlearning or its rows, and
    2 if it can't be read. For the installation, which is described by versions, devices and extras, it is 1 if
    something that every run needs would be refused.

    Args:
        file: Checkpoint, weights, delta, report, table of answers, or a folder of such files.
    """
    if file is None:
        _installation()
    else:
        _file(file)


def _installation() -> None:
    refusals = environment.refusals()
    parts = {
        "": environment.versions(),
        "devices": environment.devices(),
        "extras": environment.extra_lines(),
        "refused": [*refusals, *environment.notes()]
        or ["nothing that is installed; DeepSpeed, FSDPStrategy and manual optimization are, in any run"],
    }
    for title, lines in parts.items():
        print(*([f"\n{title}"] if title else []), *(f"  {line}" if title else line for line in lines), sep="\n")
    if refusals:
        sys.exit(1)


def _file(file: str) -> None:
    from lightning_unlearn.report.findings import doctor as examine

    try:
        findings = examine(file)
    except (OSError, ValueError, ImportError) as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    for finding in findings:
        mark = "" if finding.serious else " (a note)"
        place = f": {finding.place}" if finding.place else ""
        print(f"{finding.file}{place}: {finding.kind}: {finding.what}{mark}")
    if not any(finding.serious for finding in findings):
        beside = " beside that" if findings else ""
        print(f"{file} holds nothing of the time before unlearning{beside} that doctor knows of.")
        return
    print(
        "Of the folder of `lightning-unlearn forget`, hand out model/ alone. Other models are written for that with "
        "`lightning-unlearn export`, or with trainer.save_checkpoint after fit has ended; "
        "trainer.save_checkpoint(path, weights_only=True) writes the weights alone."
    )
    sys.exit(1)
