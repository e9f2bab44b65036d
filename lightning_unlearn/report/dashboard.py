"""Saved view of a W&B project for unlearning runs, as code."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

__all__ = ["dashboard"]

_STEP = "trainer/global_step"
_TABLES = {
    "Answers": ["eval/generations", "eval/conversations"],
    "Evidence": ["audit/measurements", "report/measurements", "eval/outcome"],
    "Masks": ["mask/by_layer"],
    "Attacks": ["eval/adversarial_prompts", "robustness/table"],
}
_IMAGES = ["eval/nll_curves", "eval/accuracy_curves", "robustness/robustness", "robustness/reconstructions"]


def dashboard(
    project: str,
    entity: str = "",
    name: str = "Unlearning",
    heldout: Sequence[str] = ("heldout", "general", "never_seen", "val", "test"),
    images: Sequence[str] = (),
    settings: Sequence[str] = ("lr",),
) -> Workspace:
    """A view of a W&B project: what is forgotten, kept and held out, answers, images, masks, attacks and sweeps.

    It is made without a network, and `save()` of what is returned puts it into the project. The panels look for the
    names under which the monitors, objectives, masks, attacks and audits of this package log; one that finds nothing in
    a project stays empty. What a project logs beside that is shown below, in panels that W&B makes.

    Args:
        project: The project.
        entity: The user or team that it belongs to; needed for saving.
        name: Name of the view.
        heldout: Names of the sets that no step trains on.
        images: Names of further images to show.
        settings: Settings that a sweep varies, by their names in the configuration of the runs.

    Returns:
        The view, an object of the package ``wandb-workspaces``.

    Raises:
        ImportError: If ``wandb-workspaces`` is missing.

    Example:
        ```python
        from lightning_unlearn import dashboard

        dashboard("unlearning", entity="my-team").save()
        ```
    """
    try:
        from wandb_workspaces import workspaces as ws
    except ImportError as error:
        raise ImportError(
            f'The view needs wandb-workspaces ({error}): pip install -U "lightning-unlearn[wandb]"'
        ) from error
    sections = {
        "Forget": _of_sets("Rows to forget", ["forget"]),
        "Retain": _of_sets("Rows to keep", ["retain"]),
        "Held out": _of_sets("Rows that no step trains on", heldout),
        "Training": [_logged("Loss and its parts", "unlearn", "smooth", "soul")],
        "Answers": _tables("Answers"),
        "Images": [_media("Curves and pictures", [*_IMAGES, *images])],
        "Masks": [_logged("Share of the weights that may move", "mask"), *_tables("Masks")],
        "Attacks": [
            _lines("Attack success and membership", "^eval/.*(asr|attack|mia|adversarial).*$"),
            _logged("Robustness", "robustness"),
            *_tables("Attacks"),
        ],
        "Evidence": _tables("Evidence"),
        "Sweep": _sweep(settings),
    }
    return ws.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=[ws.Section(name=title, panels=panels, is_open=True) for title, panels in sections.items()],
        settings=ws.WorkspaceSettings(x_axis=_STEP),
        runset_settings=ws.RunsetSettings(
            pinned_columns=["summary:audit/verdict", "summary:eval/forget_accuracy", "summary:eval/heldout_accuracy"]
        ),
        auto_generate_panels=True,
    )


def _of_sets(title: str, sets: Sequence[str]) -> list[Any]:
    """Likelihoods, and other measures: ``eval/<set>_accuracy`` of language models, ``eval/<set>/ua`` of classifiers."""
    of_a_set = f"^eval/([0-9]+/)?({'|'.join(map(re.escape, sets))})"
    return [
        _lines(f"{title}: negative log-likelihood", f"{of_a_set}_nll$"),
        _lines(f"{title}: answers and other measures", f"{of_a_set}(_accuracy|/.*)$"),
    ]


def _logged(title: str, *prefixes: str) -> Any:
    return _lines(title, f"^({'|'.join(prefixes)})/.*$")


def _lines(title: str, pattern: str) -> Any:
    from wandb_workspaces.reports import v2 as wr

    return wr.LinePlot(title=title, x=_STEP, metric_regex=pattern, layout=wr.Layout(w=12, h=8))


def _tables(section: str) -> list[Any]:
    from wandb_workspaces.reports import v2 as wr

    return [wr.WeavePanelSummaryTable(table_name=key, layout=wr.Layout(w=24, h=8)) for key in _TABLES[section]]


def _media(title: str, keys: Sequence[str]) -> Any:
    from wandb_workspaces.reports import v2 as wr

    return wr.MediaBrowser(title=title, media_keys=list(keys), num_columns=2, layout=wr.Layout(w=24, h=10))


def _sweep(settings: Sequence[str]) -> list[Any]:
    """Forgetting against what is kept, a point a run, and what the settings have to do with it."""
    from wandb_workspaces.reports import v2 as wr

    outcomes = [wr.SummaryMetric(f"eval/{name}_accuracy") for name in ("forget", "retain", "heldout")]
    columns = [wr.ParallelCoordinatesPlotColumn(metric=wr.Config(name)) for name in settings]
    columns += [wr.ParallelCoordinatesPlotColumn(metric=metric) for metric in outcomes]
    return [
        wr.ScatterPlot(title="Forgotten and kept", x=outcomes[0], y=outcomes[2], layout=wr.Layout(w=12, h=8)),
        wr.ParallelCoordinatesPlot(title="Settings and outcomes", columns=columns, layout=wr.Layout(w=12, h=8)),
        wr.ParameterImportancePlot(with_respect_to="eval/heldout_accuracy", layout=wr.Layout(w=12, h=8)),
    ]
