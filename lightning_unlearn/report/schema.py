"""JSON Schema of reports, a file of the package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["report_schema"]


def report_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of ``report.json``, for readers in other languages.

    Its ``$id`` has the version of the layout. Any validator checks a report with it::

        jsonschema.Draft202012Validator(report_schema()).validate(json.load(open("report.json")))

    Example:
        >>> report_schema()["$id"]
        'urn:lightning-unlearn:report:1'
    """
    return json.loads(Path(__file__).with_name("report.schema.json").read_text(encoding="utf-8"))
