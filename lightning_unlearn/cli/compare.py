"""Command ``compare``: a leaderboard of reports and of published result files."""

from __future__ import annotations

from pathlib import Path

from lightning_unlearn.audit.compare import compare_reports, write_comparison
from lightning_unlearn.report.render_markdown import render_markdown

__all__ = ["compare"]


def compare(
    reports: list[str],
    output_dir: str | None = None,
    columns: list[str] | None = None,
    forget: str | None = None,
    utility: str | None = None,
) -> None:
    """Compare models by their reports and by published result files.

    Prints a leaderboard as Markdown. With ``output_dir`` it writes ``leaderboard.csv``, ``report.md``, ``report.html``
    with a plot of forgetting against utility, and ``report.json``.

    Args:
        reports: Files or folders, optionally with names: ``[ours=runs/audit, npo=saves/npo/TOFU_EVAL.json]``.
            A file is a ``report.json``, a ``*_SUMMARY.json`` or ``*_EVAL.json`` of open-unlearning, an
            ``eval_log_aggregated.json`` of TOFU's authors, or a ``results_*.json`` of lm-evaluation-harness.
        output_dir: Folder to write.
        columns: Metrics to show. By default, those that at least two files have.
        forget: Metric of the horizontal axis, such as ``"extraction strength (strict)"``.
        utility: Metric of the vertical axis.
    """
    comparison = compare_reports([_named(report) for report in reports], columns, forget, utility)
    print(render_markdown(comparison))
    if output_dir is not None:
        write_comparison(comparison, output_dir)
        print(f"Open {output_dir}/report.html.")


def _named(report: str) -> tuple[str, str]:
    """``(name, path)`` of ``name=path``; ``("", path)`` without a name."""
    name, equals, path = report.partition("=")
    return (name, path) if equals and not Path(report).exists() else ("", report)
