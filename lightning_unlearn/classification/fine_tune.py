"""Fine-tuning on the retain rows."""

from __future__ import annotations

from torch import Tensor

from lightning_unlearn.classification.objective import ClassifierObjective, batch_accuracy
from lightning_unlearn.core.callback import Needs
from lightning_unlearn.core.lightning import LightningModule
from lightning_unlearn.core.scores import Batch, PredictionScore, Score, classifier_nll
from lightning_unlearn.functional.likelihood import token_nll

__all__ = ["FineTune"]


class FineTune(ClassifierObjective):
    r"""Fine-tuning on the retain rows alone: the baseline for every other method.

    $$\mathcal{L} = \frac{1}{|B_r|} \sum_r \ell_r$$

    Forget rows are not read. Released codes use SGD with a learning rate of 0.01 and 10 epochs of retain rows; larger
    learning rates and smaller batches forget more.

    Args:
        score: Reads likelihoods from the module; ``training_step_loss`` uses the module's own loss.
        keep_reference: Whether checkpoints keep state of the original model after the run, so that it can be resumed.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[FineTune()], logger=False, accelerator="cpu")

    References:
        Golatkar et al., *Eternal Sunshine of the Spotless Net*, arXiv:1911.04933.
        Warnecke et al., *Machine Unlearning of Features and Labels*, arXiv:2108.11577.
    """

    driver = "retain"
    reads_logits = False

    needs = Needs(roles=("retain",))
    inseparable = "reads no forget rows"

    def __init__(self, score: Score = classifier_nll, keep_reference: bool = False) -> None:
        super().__init__("train", score)
        self.keep_reference = keep_reference

    def step(self, module: LightningModule, batch: dict[str, Batch]) -> dict[str, Tensor]:
        """Cross-entropy of the retain rows."""
        if not isinstance(self.score, PredictionScore):
            (reading,) = self.read(module, [batch["retain"]])
            loss = self.row_mean(reading.nll)
            return {"loss": loss, "retain": loss}
        (retain,) = self.predictions(module, batch, ("retain",))
        loss = self.row_mean(token_nll(retain.logits, retain.labels))
        return {"loss": loss, "retain": loss, "retain_accuracy": batch_accuracy(retain)}
