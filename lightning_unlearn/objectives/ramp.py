"""Linear schedule of the retain weight."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_unlearn.core.checks import at_least
from lightning_unlearn.core.lightning import MisconfigurationException, Trainer

__all__ = ["Ramp"]


@dataclass(frozen=True)
class Ramp:
    r"""A linear schedule of the retain weight: $w_r = a + (b - a) \min(e / E, 1)$ in epoch $e$, counted from 0.

    Released code has $\gamma\, e / E$, which is ``Ramp(end=gamma)``: the first epoch only forgets, and the last one
    comes up to $\gamma (E - 1) / E$. The weight depends on the epoch alone, so there is nothing to save, and every
    process has the same. It is logged as ``unlearn/retain_weight``. In YAML: ``retain_weight: {end: 2.0}``.

    Args:
        start: Weight in the first epoch $a \ge 0$.
        end: Weight after $E$ epochs $b \ge 0$; it stays there.
        epochs: Length of the ramp $E$. By default the Trainer's ``max_epochs``; give it where a run may be resumed with
            another ``max_epochs``, which would bend the ramp.

    Raises:
        ValueError: If a weight is negative, or ``epochs`` is less than 1.

    Example:
        >>> Ramp(end=2.0, epochs=4).at(1, 4)
        0.5
    """

    start: float = 0.0
    end: float = 1.0
    epochs: int | None = None

    def __post_init__(self) -> None:
        at_least("start", self.start, 0)
        at_least("end", self.end, 0)
        if self.epochs is not None:
            at_least("epochs", self.epochs, 1)

    def at(self, epoch: int, epochs: int) -> float:
        """The weight in an epoch of a ramp over so many of them."""
        return self.start + (self.end - self.start) * min(epoch / epochs, 1.0)

    def length(self, trainer: Trainer) -> int:
        """Number of epochs of the ramp in a run.

        Raises:
            MisconfigurationException: If neither the ramp nor the run has one.
        """
        epochs = self.epochs or trainer.max_epochs
        if epochs is None or epochs < 1:
            raise MisconfigurationException(
                f"A Ramp moves over the epochs of a run, but max_epochs is {trainer.max_epochs}. Set max_epochs of the "
                "Trainer, or epochs of the Ramp."
            )
        return epochs

    def value(self, trainer: Trainer) -> float:
        """The weight in the run's epoch."""
        return self.at(trainer.current_epoch, self.length(trainer))
