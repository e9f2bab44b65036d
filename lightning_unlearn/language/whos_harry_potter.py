"""Who's Harry Potter: training on generic predictions in place of the forget answers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from lightning_unlearn.core.callback import Reference
from lightning_unlearn.core.checks import above
from lightning_unlearn.core.distributed import load_full_tensor
from lightning_unlearn.core.layers import stripped
from lightning_unlearn.core.lightning import LightningModule, MisconfigurationException, Trainer
from lightning_unlearn.core.modes import without_gradients
from lightning_unlearn.core.reading import Reading
from lightning_unlearn.core.reference import CachedReference, exchanged
from lightning_unlearn.core.rows import row_loader
from lightning_unlearn.core.scores import Batch, causal_lm_nll
from lightning_unlearn.functional.language.whos_harry_potter import whp_labels
from lightning_unlearn.functional.likelihood import IGNORE_INDEX
from lightning_unlearn.objectives.objective import ForgetRetainObjective, RetainTerm
from lightning_unlearn.objectives.ramp import Ramp

__all__ = ["WhosHarryPotter"]


class WhosHarryPotter(ForgetRetainObjective):
    r"""Train on generic predictions, derived from a reinforced model, in place of the forget answers.

    $$\mathcal{L} = w_f\, \mathbb{E}_t \left[ -\log p_\theta(\tilde y_t) \right] + w_r \mathcal{L}_{retain}, \qquad
      \tilde y_t = \arg\max_v\; v_{0,t} - \alpha\, \mathrm{ReLU}(v_{reinforced,t} - v_{0,t})$$

    $v_0$ are the logits of the original model, $v_{reinforced}$ those of a reinforced one: the original model trained
    further on the forget rows, by an ordinary run of fine-tuning. The context of each position is the true text.

    The new labels depend on these two models only. They are computed once before the first step, with the reinforced
    weights exchanged in for that pass, and are kept by row and in checkpoints. Training needs no second model. Rows
    need a stable ``index``, as [`LanguageDataModule`][lightning_unlearn.LanguageDataModule] gives them.

    This is the reinforced half of the paper's method. Its other half, a dictionary from names to generic names made by
    a large model, changes the text itself, so it belongs to the data. The code released with MUSE does not train:
    it answers with $v_{generic}$, from both models at once.

    Args:
        reinforced: The reinforced model, of the same architecture: a folder written by ``save_pretrained``
            (safetensors), or a Lightning checkpoint of full weights.
        alpha: Strength of the penalty on what the reinforced model finds more likely; 5 in the paper, as we remember
            it, and 1 in the code released with MUSE.
        forget_weight: Weight of the forget term $w_f$.
        retain_weight: Weight of the retain term $w_r$; 0 leaves it out, as the paper does.
        retain: ``"nll"``, ``"kl"`` or an ``EmbeddingDifference``, see
            [`ForgetRetainObjective`][lightning_unlearn.ForgetRetainObjective].
        refusal_weight: Weight of a refusal to the forget questions.
        reference: How the original model is kept where the retain term needs it.
        keep_reference: Whether checkpoints keep state of the original model after the run, so that it can be resumed.

    Raises:
        FileNotFoundError: If there is no such folder or file.
        ValueError: If ``alpha`` is not positive, a weight is negative, or the reinforced model is not one of this
            architecture.
        MisconfigurationException: If forget rows have no ``index``, or can't be read one by one.

    References:
        Eldan and Russinovich, *Who's Harry Potter? Approximate Unlearning in LLMs*, arXiv:2310.02238.
    """

    def __init__(
        self,
        reinforced: str,
        alpha: float = 5.0,
        forget_weight: float = 1.0,
        retain_weight: float | Ramp = 1.0,
        retain: RetainTerm = "nll",
        refusal_weight: float = 0.0,
        reference: Reference = "auto",
        keep_reference: bool = False,
    ) -> None:
        above("forget_weight", forget_weight, 0)
        super().__init__(forget_weight, retain_weight, retain, refusal_weight, causal_lm_nll, reference)
        self.keep_reference = keep_reference
        self.alpha = above("alpha", alpha, 0)
        self.reinforced = reinforced

    def step(self, module: LightningModule, batch: dict[str, Batch]) -> dict[str, Tensor]:
        """The terms on one batch, with the new labels in its forget rows."""
        parts = super().step(module, {**batch, "forget": self.relabelled(batch["forget"])})
        del parts["forget_nll"]  # of the new labels, where other methods log that of the true ones
        return parts

    def relabelled(self, rows: Batch) -> Batch:
        """Forget rows with the generic prediction as the label of each supervised position.

        Args:
            rows: ``labels (B, T)`` and ``index (B,)`` among others.

        Returns:
            The same rows with other labels.
        """
        generic = self.caches["forget"](rows)
        labels = rows["labels"].clone()
        shifted = labels[:, 1:]  # a view: the first token is no one's prediction
        shifted[shifted != IGNORE_INDEX] = generic[generic != IGNORE_INDEX]
        return {**rows, "labels": labels}

    def forget_loss(self, module: LightningModule, readings: Mapping[str, Reading]) -> Tensor:
        """Mean NLL per token of the new labels."""
        forget = readings["forget"]
        return self.token_mean(forget.nll, forget.length)

    # ---- internals ---------------------------------------------------------------------------------------------

    def begin(self, trainer: Trainer, module: LightningModule) -> None:
        """Read the new labels. In a resumed run they are in the checkpoint."""
        self.caches["forget"] = self._read_labels(trainer, module)

    def _read_labels(self, trainer: Trainer, module: LightningModule) -> CachedReference:
        loader = row_loader(trainer.train_dataloader, "forget")
        first = next(iter(loader), None) if loader is not None else None
        if loader is None or not isinstance(first, Mapping) or not first.keys() >= {"input_ids", "labels", "index"}:
            got = f"a dict with {sorted(first)}" if isinstance(first, dict) else type(first).__name__
            raise MisconfigurationException(
                "WhosHarryPotter keeps new labels by row, so forget rows are dicts with 'input_ids', 'labels' and a "
                f"stable integer 'index' out of a dataset with a length, but got {got}. LanguageDataModule makes such."
            )
        width = max(int((rows["labels"][:, 1:] != IGNORE_INDEX).sum(1).max()) for rows in loader)
        other = _matched(module, _weights(self.reinforced), self.reinforced)

        def labels(module: LightningModule, rows: Batch) -> Tensor:
            start = causal_lm_nll.predictions(module, rows)
            with exchanged(module, other), without_gradients():
                reinforced = causal_lm_nll.predictions(module, rows)
            generic = start.labels.new_full((start.size, width), IGNORE_INDEX)
            length = start.length()
            generic[torch.arange(width, device=length.device) < length[:, None]] = whp_labels(
                start.logits, reinforced.logits, alpha=self.alpha
            )
            return generic

        cache = CachedReference("forget")
        cache.build(trainer, module, labels)
        return cache


def _weights(path: str) -> dict[str, Tensor]:
    # Checked in begin and not in the constructor: a resumed run has the labels in its checkpoint.
    if not (Path(path).is_file() or any(Path(path).glob("*.safetensors"))):
        raise FileNotFoundError(
            f"reinforced={path!r} is neither a Lightning checkpoint nor a folder with *.safetensors. Fine-tune the "
            "original model on the forget rows, and give what save_pretrained or the Trainer wrote."
        )
    if not Path(path).is_dir():
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)["state_dict"]
    from safetensors.torch import load_file

    return {name: value for file in sorted(Path(path).glob("*.safetensors")) for name, value in load_file(file).items()}


def _matched(module: nn.Module, weights: dict[str, Tensor], path: str) -> dict[str, Tensor]:
    """The reinforced value of each of the module's weights, by the module's own names."""
    if any(".lora_" in name for name in weights):
        raise ValueError(
            f"reinforced={path!r} holds adapters. Merge them into full weights: lightning-unlearn export, or "
            "LitCausalLM.save_pretrained."
        )
    matched = {}
    for name, parameter in module.named_parameters():
        if ".lora_" in name:
            continue  # an adapter adds nothing before it is trained
        own = stripped(name).replace("base_model.model.", "").replace(".base_layer.", ".")
        keys = [key for key in weights if f".{own}".endswith(f".{key}") or f".{key}".endswith(f".{own}")]
        if len(keys) != 1 or weights[keys[0]].shape != parameter.shape:
            got = f"shape {tuple(weights[keys[0]].shape)}" if len(keys) == 1 else f"{len(keys)} tensors"
            raise ValueError(
                f"reinforced={path!r} does not fit the module: for {name!r} of shape {tuple(parameter.shape)} it has "
                f"{got}. Fine-tune the original model itself on the forget rows, and save all its weights."
            )
        matched[name] = torch.empty_like(parameter, requires_grad=False)
        load_full_tensor(matched[name], weights[keys[0]])
    return matched
