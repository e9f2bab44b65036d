"""Command ``dashboard``: a saved view for unlearning runs in a W&B project."""

from __future__ import annotations

from lightning_unlearn.core.files import write_text
from lightning_unlearn.report.workspace import dashboard as view

__all__ = ["dashboard"]


def dashboard(
    project: str,
    entity: str | None = None,
    name: str = "Unlearning",
    heldout: list[str] | None = None,
    images: list[str] | None = None,
    output: str | None = None,
) -> None:
    """Save a view into a W&B project: forgetting, retention, held-out sets, answers, images, masks, attacks, sweeps.

    Args:
        project: The project of your runs.
        entity: The user or team that owns it; by default the one you are logged in as.
        name: Name of the view.
        heldout: Names of the sets that are not trained on, if yours have names of their own, such as
            '[capitals, general]'.
        images: Names of further images to show, such as '[samples]'.
        output: File to write the view to, as JSON, instead of saving it; this needs no network.

    Raises:
        ImportError: If wandb-workspaces is missing.
        RuntimeError: If W&B refuses, for example without a login.
    """
    own = {} if heldout is None else {"heldout": heldout}
    if output is not None:
        made = view(project, entity or "", name, images=images or (), **own)
        write_text(output, made._to_model().model_dump_json(by_alias=True, indent=2) + "\n")
        print(f"Wrote {output}")
        return
    try:
        import wandb
    except ImportError:
        raise ImportError('The view needs wandb: pip install "lightning-unlearn[wandb]"') from None
    try:
        made = view(project, entity or wandb.Api().default_entity or "", name, images=images or (), **own)
        made.save()
    except wandb.errors.Error as error:
        raise RuntimeError(
            f"The view can't be saved: {error} Run `wandb login`, or write the view to a file with --output."
        ) from None
    print(f"The view {name!r} is at {made.url}")
