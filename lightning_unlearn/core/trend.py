"""Trend of the forget and retain terms over the epochs of a run, with warnings if it goes the wrong way."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from lightning_unlearn.core.lightning import rank_zero_warn

__all__ = ["Trend"]

_UNMOVED = 0.01  # share of the first value
_FELL = 0.9
_COLLAPSED, _NATS = 1.5, 0.3  # a retain loss that is so many times the first one, and so much above it
_OWN_LOSS = 5.0  # of a user's own loss, which has no unit


class Trend:
    """Means of named losses in the first and in the last epoch.

    Both epochs visit the same rows, so that their means can be compared; a run of one epoch gives no warning.

    Args:
        names: The losses to follow: ``forget_nll``, which should rise, and ``retain``, which should not.
        nats: Whether they are negative log-likelihoods, and not losses of a user's own.
    """

    def __init__(self, names: tuple[str, ...], nats: bool = True) -> None:
        self.names, self.nats = names, nats
        self._epochs: dict[int, tuple[dict[str, Tensor], int]] = {}

    def add(self, epoch: int, losses: Mapping[str, Tensor]) -> None:
        """Take in the losses of one batch; nothing is read back from the device."""
        sums, count = self._epochs.pop(epoch, ({}, 0))
        for name in self.names:
            if name in losses:
                sums[name] = sums.get(name, 0.0) + losses[name]
        if len(self._epochs) > 1:  # all but the first one
            self._epochs.popitem()
        self._epochs[epoch] = (sums, count + 1)

    def means(self) -> list[dict[str, float]]:
        """Means of the first and of the last epoch; of one alone where there is no other."""
        return [{name: total.item() / count for name, total in sums.items()} for sums, count in self._epochs.values()]

    def warn(self, method: str) -> None:
        """Warn once if nothing was forgotten, or if the retain rows are lost too."""
        means = self.means()
        if len(means) < 2:
            return
        first, last = means
        shared = first.keys() & last.keys()
        if "forget_nll" in shared:
            self._warn_of_forget(method, first["forget_nll"], last["forget_nll"])
        if "retain" in shared:
            self._warn_of_retain(method, first["retain"], last["retain"])

    def _warn_of_forget(self, method: str, first: float, last: float) -> None:
        said = f"from {first:.4g} in the first epoch to {last:.4g} in the last"
        if last < _FELL * first:
            rank_zero_warn(
                f"{method}: the loss on the rows to forget has fallen, {said}, and should rise: the model has learned "
                "these rows better. Check that the forget and retain loaders are not exchanged and do not share "
                "rows, and give the forget term more weight, or the retain term less."
            )
        elif abs(last - first) < _UNMOVED * abs(first):
            rank_zero_warn(
                f"{method}: the loss on the rows to forget has hardly moved, {said}: little was forgotten. Raise the "
                "learning rate, the number of epochs or the weight of the forget term, and measure before you rely "
                "on it."
            )

    def _warn_of_retain(self, method: str, first: float, last: float) -> None:
        if last > _COLLAPSED * first and last - first > _NATS if self.nats else last > _OWN_LOSS * first > 0:
            rank_zero_warn(
                f"{method}: the loss on the rows to keep has risen from {first:.4g} in the first epoch to {last:.4g} "
                "in the last: the model forgets more than it should. Lower the learning rate, set "
                "gradient_clip_val=1.0, give the retain term more weight, or stop earlier."
            )
