"""What a run did to a model, as one object that writes JSON for machines and a page for people."""

from lightning_unlearn.report.model import UnlearnReport

__all__ = ["UnlearnReport"]
