"""Command ``doctor``: what a file or folder holds of the time before unlearning."""

from __future__ import annotations

import sys

from lightning_unlearn.report.findings import doctor as examine

__all__ = ["doctor"]


def doctor(file: str) -> None:
    """Say what a file or folder holds of the time before unlearning, before you hand it out.

    The exit code is 0 where it holds nothing, 1 where it gives away the model or the rows of before, and 2 where it
    can't be read.

    Args:
        file: Checkpoint, weights, delta, report, table of answers, or a folder of such files.
    """
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
        print(f"{file} holds nothing of the time before unlearning that doctor knows of.")
        return
    print(
        "To hand out the model, write it with `lightning-unlearn export`, or with trainer.save_checkpoint after fit "
        "has ended; trainer.save_checkpoint(path, weights_only=True) writes the weights alone."
    )
    sys.exit(1)
