"""Audit at the end of an unlearning run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, get_args

from lightning_unlearn.audit.data import AuditData, audit_data, read_audit_data
from lightning_unlearn.audit.depth import Depth
from lightning_unlearn.audit.evidence import Control
from lightning_unlearn.audit.parts import Parts
from lightning_unlearn.audit.precision import Precision
from lightning_unlearn.audit.protocol import AuditResult, control_of, run_audit
from lightning_unlearn.core.checks import one_of, strategy
from lightning_unlearn.core.distributed import rank
from lightning_unlearn.core.lightning import (
    Callback,
    LightningModule,
    MisconfigurationException,
    Trainer,
    isolate_rng,
)
from lightning_unlearn.language.causal_lm import LitCausalLM
from lightning_unlearn.language.data.language import LanguageDataModule
from lightning_unlearn.report.loggers import log_report

__all__ = ["Audit"]


class Audit(Callback):
    """Audits the model that came out of a run, writes the report, and logs it to every logger.

    The same as [`run_audit`][lightning_unlearn.run_audit] on folders: all stresses are put on the model before the run
    and on the one after it. What is missing for it is said before the first step. The original is opened when the run
    has ended, so two models are in memory then. Processes of a distributed run share the rows, and each has the result;
    only where Lightning spawns them, as for ``ddp_spawn``, the result is in ``output_dir`` alone. Weights that are
    sharded can't be audited in the run: export the model, and audit the folder.

    Args:
        data: Folder or file of the rows, see [`read_audit_data`][lightning_unlearn.read_audit_data]. By default the
            sets of [`LanguageDataModule`][lightning_unlearn.LanguageDataModule], of which one called ``never_seen`` is
            the control where there is no control model.
        original: The model before the run; by default what ``LitCausalLM`` was opened from.
        retrained: The control model: folder, hub id or file.
        control: Kind of the control, as for the command.
        depth: ``"quick"``, ``"default"`` or ``"full"``.
        output_dir: Folder to write.
        seed: Seed of all draws.
        precision: ``"32"``, ``"bf16"`` or ``"auto"``.
        show_text: Whether report and loggers show the texts of forget rows.
        key: PEM file of a private key that signs a record.

    Raises:
        ValueError: If an option is unknown.
        MisconfigurationException: If the module is no ``LitCausalLM``, was made of an object and there is no
            ``original``, there are no rows, the strategy shards weights, or ``output_dir`` has an audit and the run is
            not resumed.

    Example:
        >>> Audit(depth="quick").depth
        'quick'
    """

    def __init__(
        self,
        data: str | None = None,
        original: str | None = None,
        retrained: str | None = None,
        control: Control | None = None,
        depth: Depth = "default",
        output_dir: str = "runs/audit",
        seed: int = 0,
        precision: Precision = "auto",
        show_text: bool = False,
        key: str | None = None,
    ) -> None:
        self.data, self.original, self.retrained = data, original, retrained
        self.control = control if control is None else one_of("control", control, get_args(Control))
        self.depth, self.precision = one_of("depth", depth, Depth), one_of("precision", precision, Precision)
        self.output_dir, self.seed, self.show_text, self.key = output_dir, seed, show_text, key
        self.result: AuditResult | None = None
        """Verdict and report, after the run."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find out what is missing for the audit before the first step."""
        strategy("Audit", trainer, sharded=False, reason="puts stresses on whole weights")
        self._original(pl_module)
        control_of(self.control, self.retrained, self._rows(trainer))
        if self.key is not None and not os.path.isfile(self.key):
            raise MisconfigurationException(f"Audit(key={self.key!r}): there is no such file.")
        if trainer.ckpt_path is None and Parts(self.output_dir).claimed:
            raise MisconfigurationException(
                f"{self.output_dir} has the audit of another run. Give Audit another output_dir, or remove that folder."
            )

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Audit the model."""
        with isolate_rng():
            self.result = run_audit(
                self._original(pl_module),
                pl_module,
                self._rows(trainer),
                self.output_dir,
                self.retrained,
                self.control,
                self.depth,
                self.seed,
                self.precision,
                str(trainer.strategy.root_device),  # Lightning has moved the module to the CPU by now
                self.show_text,
                self.key,
            )
        if rank() == 0:
            for logger in trainer.loggers:
                log_report(logger, self.result.report, trainer.global_step, "audit/", self.show_text)

    def _original(self, module: LightningModule) -> Any:
        if not isinstance(module, LitCausalLM):
            raise MisconfigurationException(
                f"Audit is for LitCausalLM, but the module is a {type(module).__name__}. Write the models before and "
                "after the run as folders of transformers, and audit these with run_audit."
            )
        original = self.original or module.hparams["model"]
        if original is None:
            raise MisconfigurationException(
                "The module was made of a model object, so Audit does not know the model before the run. Pass "
                "Audit(original=...), a folder or hub id."
            )
        return original

    def _rows(self, trainer: Trainer) -> AuditData:
        if self.data is not None:
            return read_audit_data(self.data, seed=self.seed)
        module = getattr(trainer, "datamodule", None)
        if not isinstance(module, LanguageDataModule):
            raise MisconfigurationException(
                "Audit finds no rows: the run has no LanguageDataModule. Pass Audit(data=...), a folder with "
                "forget.jsonl and retain.jsonl."
            )
        tables: Mapping[str, Any] = module.read_rows()
        return audit_data({name: list(rows) for name, rows in tables.items()}, module.columns, seed=self.seed)
