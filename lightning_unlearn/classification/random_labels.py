"""Random relabelling of the forget rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from lightning_unlearn.classification.objective import BatchNormMode, ClassifierObjective
from lightning_unlearn.classification.passes import Passes
from lightning_unlearn.core.batches import row_count
from lightning_unlearn.core.checks import one_of
from lightning_unlearn.core.distributed import rank, world_size
from lightning_unlearn.core.lightning import LightningModule, MisconfigurationException, Trainer
from lightning_unlearn.core.scores import Batch, Predictions, Score, classifier_nll
from lightning_unlearn.functional.classification.random_labels import random_labels
from lightning_unlearn.functional.likelihood import token_nll

__all__ = ["RandomLabels"]

Resample = Literal["batch", "epoch", "once"]
Schedule = Literal["mixed", "forget_then_retain"]


class RandomLabels(ClassifierObjective):
    r"""Random labels: descent on forget rows with labels drawn at random, and on retain rows with their own.

    $$\mathcal{L} = \frac{1}{|B_f| + |B_r|} \Big[\sum_f \ell(z_f, \tilde y_f) + \sum_r \ell(z_r, y_r)\Big]$$

    Every row has the same weight. If the batch sizes are in proportion to the sizes of the two sets, an epoch is one
    pass over both, shuffled together, as in the released code of SalUn; with the mask
    [`SalUn`][lightning_unlearn.SalUn] it is that method. Labels depend only on ``seed`` and on the row or its position,
    so a resumed run draws the same ones.

    With ``schedule="forget_then_retain"``, a pass over forget rows precedes each pass over retain rows, as in that
    code for CIFAR-10, and each step reads only the rows of its pass. A pass consists of the $n_f$ or $n_r$ batches that
    cover the rows of its role, and passes are counted over the run: $E$ of each take $E + \lceil E\,n_f / n_r \rceil$
    epochs of ``ForgetRetainDataModule(epoch="retain")``.

    Args:
        resample: When a forget row gets a new label: ``"batch"``: each time it is read; ``"epoch"``: each epoch;
            ``"once"``: never. The last two need rows that are dicts with a stable ``index``, as
            ``ForgetRetainDataModule`` makes them.
        exclude_true: Whether to draw only wrong labels. Released codes differ in this.
        schedule: ``"mixed"``: each step reads rows of both roles; ``"forget_then_retain"``: whole passes alternate.
        seed: Seed of the labels.
        bn_mode: ``"joint"``, ``"frozen"`` or ``"train"``, see
            [`ClassifierObjective`][lightning_unlearn.ClassifierObjective].
        score: Reads predictions from the module.
        keep_reference: Whether checkpoints keep state of the original model after the run, so that it can be resumed.

    Raises:
        ValueError: If an argument is not one of those above.
        MisconfigurationException: If rows lack an index that is needed, or the length of a pass is unknown.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[RandomLabels()], logger=False, accelerator="cpu")

    References:
        Golatkar et al., *Eternal Sunshine of the Spotless Net*, arXiv:1911.04933.
        Fan et al., *SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency in Both Image
        Classification and Generation*, arXiv:2310.12508.
    """

    separable = True

    def __init__(
        self,
        resample: Resample = "batch",
        exclude_true: bool = True,
        schedule: Schedule = "mixed",
        seed: int = 0,
        bn_mode: BatchNormMode = "joint",
        score: Score = classifier_nll,
        keep_reference: bool = False,
    ) -> None:
        super().__init__(bn_mode, score)
        self.keep_reference = keep_reference
        self.resample, self.schedule = one_of("resample", resample, Resample), one_of("schedule", schedule, Schedule)
        self.exclude_true, self.seed = exclude_true, seed
        self._passes = Passes()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the batches of a pass."""
        super().on_train_start(trainer, pl_module)
        if self.schedule == "forget_then_retain":
            self._passes = Passes.over("RandomLabels", trainer.train_dataloader)

    def step(self, module: LightningModule, batch: dict[str, Batch]) -> dict[str, Tensor]:
        """Cross-entropy of all rows of the batch, or of those of the pass's role."""
        loop = module.trainer.fit_loop.epoch_loop
        number, place = module.trainer.current_epoch, loop.batch_idx
        roles: tuple[str, ...] = ("retain", "forget")
        if self.schedule == "forget_then_retain":
            place = loop.total_batch_idx
            number, forgets = self._passes.at(place)
            roles = ("forget",) if forgets else ("retain",)
        rows = None if self.smoothing is None else sum(row_count(batch[role]) for role in roles)

        def terms(roles: Sequence[str]) -> dict[str, Tensor]:
            read = dict(zip(roles, self.predictions(module, batch, roles), strict=True))
            parts: dict[str, Tensor] = {}
            losses = []
            if "forget" in read:
                forget = read["forget"]
                key = self._key(place, number, batch["forget"], forget)
                labels = random_labels(forget.classes(), forget.logits.shape[1], key, exclude_true=self.exclude_true)
                losses.append(token_nll(forget.logits, labels))
                parts["forget"] = self.row_mean(losses[-1])
                parts["forget_nll"] = self.row_mean(token_nll(forget.logits.detach(), forget.labels))
            if "retain" in read:
                losses.append(token_nll(read["retain"].logits, read["retain"].labels))
                parts["retain"] = self.row_mean(losses[-1])
            values = torch.cat(losses)
            return {"loss": self.row_mean(values) if rows is None else self.share(values, rows), **parts}

        return self.by_term(module, terms, roles)

    def _key(self, batch: int, epoch: int, rows: Batch, forget: Predictions) -> Tensor:
        """A key for each prediction, from its row or from its position in the batch over all processes."""
        place = torch.arange(len(forget.rows), device=forget.rows.device)
        place -= torch.searchsorted(forget.rows, forget.rows)  # index of the prediction within its row
        if self.resample == "batch":
            row = forget.rows * world_size() + rank()
            return self._numbers(row, place, batch, epoch)
        if not isinstance(rows, dict) or "index" not in rows:
            raise MisconfigurationException(
                f"RandomLabels(resample={self.resample!r}) recognizes a forget row by its 'index', but the rows have "
                "none. Let the dataset return dicts with a stable integer 'index', as ForgetRetainDataModule does, or "
                "use resample='batch'."
            )
        return self._numbers(rows["index"][forget.rows], place, 0, epoch if self.resample == "epoch" else 0)

    def _numbers(self, row: Tensor, place: Tensor, batch: int, epoch: int) -> Tensor:
        key = row.long()
        for number in (place, batch, epoch, self.seed):
            key = key * 6_364_136_223_846_793_005 + number + 1  # overflow wraps around
        return key
