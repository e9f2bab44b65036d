"""Quieter logs: no carriage returns, advertisements, or warnings that need no action."""

from __future__ import annotations

import logging
import os
import sys
import warnings

__all__ = ["quiet_logs"]

_WARNINGS = (
    ".*LeafSpec",  # a deprecation between Lightning and torch
    ".*`tensorboardX` has been removed",  # the CSV logger replaces it
    ".*does not have many workers",  # forget rows are few and in memory
)


def quiet_logs() -> None:
    """Stop libraries from showing progress bars in a log file, and suppress warnings that nobody can act on.

    Bars of this package and of Lightning become lines, see [`progress`][lightning_unlearn.core.progress.progress];
    those of other libraries, which open files, are omitted. ``TQDM_DISABLE=0`` in the environment keeps them.
    """
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    for name in ("lightning.pytorch.utilities.rank_zero", "pytorch_lightning.utilities.rank_zero"):
        logging.getLogger(name).addFilter(_is_no_advertisement)
    for message in _WARNINGS:
        warnings.filterwarnings("ignore", message=message)


def _is_no_advertisement(record: logging.LogRecord) -> bool:
    return "💡 Tip" not in str(record.msg)
