"""Files of a report: JSON, Markdown and HTML."""

from __future__ import annotations

import json
import os
from pathlib import Path

from lightning_unlearn.core.files import write_text
from lightning_unlearn.report.html import render_html
from lightning_unlearn.report.model import UnlearningReport
from lightning_unlearn.report.redaction import redacted
from lightning_unlearn.report.render_markdown import render_markdown

__all__ = ["write_report"]


def write_report(report: UnlearningReport, folder: str | os.PathLike[str], show_text: bool = False) -> None:
    """Write ``report.json`` and ``report.md``, then ``report.html``, into a folder.

    Each file is replaced in one step: after a crash or on a full disk the old file is still whole.

    Args:
        report: The report.
        folder: Where to; made if missing.
        show_text: Whether the files show the texts and images of rows to forget. They would be a new copy of what was
            to go, so by default the files have hashes and lengths, see [`redacted`][lightning_unlearn.redacted].

    Raises:
        ImportError: If jinja2 is missing; the other files are written even then.
    """
    report = report if show_text else redacted(report)
    text = json.dumps(report.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)
    write_text(Path(folder, "report.json"), text + "\n")
    write_text(Path(folder, "report.md"), render_markdown(report))
    write_text(Path(folder, "report.html"), render_html(report))
