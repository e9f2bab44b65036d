"""Representation misdirection for unlearning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_unlearn.core.batches import row_count
from lightning_unlearn.core.callback import Needs, UnlearnCallback
from lightning_unlearn.core.checks import above, at_least, one_of
from lightning_unlearn.core.distributed import mean_over_ranks
from lightning_unlearn.core.lightning import LightningModule, MisconfigurationException, Trainer
from lightning_unlearn.core.modes import without_gradients
from lightning_unlearn.core.reading import join
from lightning_unlearn.core.scores import Batch, causal_lm_nll
from lightning_unlearn.functional.language.rmu import control_vector, mean_norm, rmu_forget, rmu_retain
from lightning_unlearn.functional.likelihood import IGNORE_INDEX
from lightning_unlearn.language.frozen_parameters import FrozenParameters, named_parameters
from lightning_unlearn.language.layer_output import layer_output

__all__ = ["RMU"]


Mask = Literal["attention", "labels", "all"]


class RMU(UnlearnCallback):
    r"""Representation misdirection: steer the activations of one layer to a random vector.

    The activations of retain rows are kept at those of the original model.

    $$\mathcal{L} = \frac{1}{d}\, \mathbb{E}_{b,t} \lVert h_\theta(x_f)_t - c u \rVert_2^2
      + \alpha \frac{1}{d}\, \mathbb{E}_{b,t} \lVert h_\theta(x_r)_t - h_{ref}(x_r)_t \rVert_2^2$$

    $u$ is a random unit vector, drawn once from ``seed`` and kept in checkpoints. The mean over the width $d$ is that
    of the released code; the paper writes a sum. Each row has its own mean over tokens, so long rows don't weigh more.

    With ``adaptive=True`` the length of the target follows the activations, so that one setting serves every layer:
    $c = \beta\, \mathbb{E}_{b,t} \lVert h_{ref}(x_f)_t \rVert_2$ with $\beta$ = ``steering``, measured once, on the
    first forget batch. Two copies of the released code of arXiv:2408.06223 do the same. We could not open the paper; as
    we remember it, its formula takes the norm of each sample.

    Only the layers up to the steered one run, in training and for the reference, which is the model with the starting
    values of the few parameters that train. If weights are sharded (FSDP2), a forward pass can't be left half way, so
    the later layers and the output head run too, without gradients. Reentrant gradient checkpointing is not supported.

    Batches are dicts with ``input_ids (B, T)`` and usually ``attention_mask (B, T)``. While ``fit`` runs, all other
    parameters are frozen. The reference is read without dropout: switch dropout off.

    Args:
        layer: Module whose output is steered: the number of a decoder block, counted from 0, in any family; or the end
            of its dotted name, or a regular expression that fits one name only. The default is that of the paper for 7B
            models. Wrappers (``_orig_mod.`` and the like) don't count as part of a name.
        trainable: Regular expression; of the parameters that would train anyway, those in whose name it occurs do. By
            default the last projection of the MLP in the steered layer and in the two before it, as the families call
            it: ``mlp.down_proj`` in Llama and its like, ``experts.down_proj`` in mixtures of experts, ``mlp.c_proj`` in
            GPT-2, ``dense_4h_to_h`` in NeoX and Falcon, ``fc2`` in OPT and Phi, ``fc_out`` in GPT-J, and
            ``mixer.out_proj`` in Mamba, which has no MLP.
        steering: Length of the control vector $c$, of the order of the activations' own norm. 20 in the released
            script, 6.5 in its recipe for zephyr-7b. With ``adaptive``, a multiple $\beta$ of that norm; 5 there.
        retain_weight: Weight of the retain term $\alpha$; 100 in the released script, 1200 for zephyr-7b; 0 leaves it
            out.
        mask: Positions that count: ``"attention"``: all but padding; ``"labels"``: those with a label; ``"all"``:
            padding too, as in the released code.
        seed: Seed of the control vector.
        adaptive: Whether ``steering`` counts in norms of the activations of the original model.
        keep_reference: Whether checkpoints keep state of the original model after the run, so that it can be resumed.

    Raises:
        ValueError: If ``steering`` is not positive, ``retain_weight`` is negative, or an option has no such value.
        MisconfigurationException: If ``layer`` or ``trainable`` does not fit the module as it is in ``setup``.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[RMU(layer=7)], logger=False, accelerator="cpu")

    References:
        Li et al., *The WMDP Benchmark: Measuring and Reducing Malicious Use With Unlearning*, arXiv:2403.03218.
        Huu-Tien et al., *On Effects of Steering Latent Representation for Large Language Model Unlearning*,
        arXiv:2408.06223.
    """

    needs = Needs(roles=("forget",))
    separable = True

    def __init__(
        self,
        layer: str | int = 7,
        trainable: str | None = None,
        steering: float = 20.0,
        retain_weight: float = 100.0,
        mask: Mask = "attention",
        seed: int = 0,
        adaptive: bool = False,
        keep_reference: bool = False,
    ) -> None:
        super().__init__(causal_lm_nll)
        self.keep_reference = keep_reference
        self.layer, self.trainable, self.seed = layer, trainable, seed
        self.mask = one_of("mask", mask, Mask)
        self.adaptive = adaptive
        self.steering = above("steering", steering, 0)
        self.retain_weight = at_least("retain_weight", retain_weight, 0)
        if retain_weight:
            self.needs = Needs(roles=("forget", "retain"), snapshot=True)
        self.control: Tensor | None = None
        """The control vector, shape ``(d,)``, once a batch was read."""
        self._frozen = FrozenParameters(layer, trainable)

    def step(self, module: LightningModule, batch: dict[str, Batch]) -> dict[str, Tensor]:
        """Both terms on one batch."""
        # The original model goes first: exchanging weights would spoil a graph that already holds them.
        reference = self.reference_hidden(module, batch["retain"]) if self.needs.snapshot else None
        if self.control is None and self.smoothing is not None:
            with without_gradients():  # a smoothed term may never be read at the weights of the original model
                self._draw_control(self._output(module, batch["forget"]), batch["forget"])

        def terms(roles: Sequence[str]) -> dict[str, Tensor]:
            hidden = dict(zip(roles, self.hidden(module, [batch[role] for role in roles]), strict=True))
            parts, losses = {}, []
            if "forget" in hidden:
                control = self._draw_control(hidden["forget"], batch["forget"])
                parts["forget"] = rmu_forget(hidden["forget"], control, self._counts(batch["forget"])).mean()
                losses.append(parts["forget"])
            if "retain" in hidden and reference is not None:
                parts["retain"] = rmu_retain(hidden["retain"], reference, self._counts(batch["retain"])).mean()
                losses.append(self.retain_weight * parts["retain"])
            return {"loss": sum(losses[1:], losses[0]), **parts}

        return self.by_term(module, terms, self.needs.roles)

    def hidden(self, module: LightningModule, batches: list[Batch]) -> list[Tensor]:
        """Outputs of the steered layer on several roles, in one forward pass wherever their rows can be joined.

        Args:
            module: The user's module.
            batches: Rows of each role.

        Returns:
            Activations of each role, shape ``(B, T, d)``.
        """
        joined = join(batches) if len(batches) > 1 else None
        if joined is None:
            return [self._output(module, batch) for batch in batches]
        parts = self._output(module, joined).split([row_count(batch) for batch in batches])
        return [part[:, : batch["input_ids"].shape[1]] for part, batch in zip(parts, batches, strict=True)]

    def reference_hidden(self, module: LightningModule, batch: Batch) -> Tensor:
        """Output of the steered layer under the original model, shape ``(B, T, d)``, without gradient."""
        assert self.snapshot is not None
        with self.snapshot.active(module):
            hidden = self._output(module, batch)
        self._frozen.freeze(module)  # peft lets all adapters train when it enables them again
        return hidden

    # ---- Lightning hooks ---------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Freeze what does not train: optimizers and strategies look at ``requires_grad`` after this."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._frozen.choose(pl_module)
            self._frozen.freeze(pl_module)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Stop before the first step if the loss does not depend on a parameter that is to train."""
        idle = [name for name, p in named_parameters(pl_module).items() if p.requires_grad and p.grad is None]
        if idle:
            raise MisconfigurationException(
                f"trainable={self.trainable!r} takes in {idle[0]!r}, but no gradient reaches it from the output of "
                f"layer={self.layer!r}. Choose parameters of that layer and of those before it."
            )
        super().on_before_optimizer_step(trainer, pl_module, optimizer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Unfreeze what was frozen."""
        super().teardown(trainer, pl_module, stage)
        self._frozen.release(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Unfreeze what was frozen."""
        super().on_exception(trainer, pl_module, exception)
        self._frozen.release(pl_module)

    def state_dict(self) -> dict[str, Any]:
        """The method's name, the starting values of what trains, and the control vector."""
        return {**super().state_dict(), "control": self.control.cpu() if self.control is not None else None}

    def begin(self, trainer: Trainer, module: LightningModule) -> None:
        """Draw the control vector with the first batch."""
        self.control = None

    def restore(self, state: dict[str, Any], trainer: Trainer, module: LightningModule) -> None:
        """Continue with the control vector of the checkpoint."""
        self.control = state["control"]

    # ---- internals ---------------------------------------------------------------------------------------------

    def _output(self, module: LightningModule, batch: Batch) -> Tensor:
        wanted = ["input_ids", "labels"] if self.mask == "labels" else ["input_ids"]
        if not isinstance(batch, dict) or not batch.keys() >= set(wanted):
            got = sorted(map(str, batch)) if isinstance(batch, dict) else type(batch).__name__
            raise TypeError(f"RMU with mask={self.mask!r} reads rows that are a dict with {wanted}, but got {got}.")
        return layer_output(module, self.layer, batch)

    def _draw_control(self, hidden: Tensor, rows: Batch) -> Tensor:
        """The control vector, drawn at the first call."""
        if self.control is None:
            self.control = control_vector(hidden.shape[-1], self._length(hidden, rows), self.seed)
        self.control = self.control.to(hidden.device)
        return self.control

    def _length(self, hidden: Tensor, rows: Batch) -> float:
        if not self.adaptive:
            return self.steering
        # No update was made yet, so these are the activations of the original model.
        norm = mean_norm(hidden.detach(), self._counts(rows)).mean()
        return self.steering * mean_over_ranks(norm).item()

    def _counts(self, batch: Batch) -> Tensor:
        if self.mask == "labels":
            return batch["labels"] != IGNORE_INDEX
        if self.mask == "attention" and "attention_mask" in batch:
            return batch["attention_mask"]
        return torch.ones_like(batch["input_ids"])
