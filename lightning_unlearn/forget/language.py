"""Request to forget rows of a language model."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from lightning_unlearn.audit.data import AuditData
from lightning_unlearn.audit.data import audit_data as sets_of_audit
from lightning_unlearn.audit.depth import Depth, plan_of
from lightning_unlearn.audit.entries import model_entry, verdict_entry
from lightning_unlearn.audit.hashes import rows_root
from lightning_unlearn.audit.measures import timing
from lightning_unlearn.audit.models import AuditedModel, check_control
from lightning_unlearn.audit.protocol import control_of, run_audit
from lightning_unlearn.core.callback import UnlearnCallback
from lightning_unlearn.core.checks import above, at_least, one_of
from lightning_unlearn.forget.folder import PRIVATE
from lightning_unlearn.forget.language_plan import language_plan
from lightning_unlearn.forget.language_run import (
    BATCH,
    OWN_ROWS,
    RETAIN_BATCH,
    data_arguments,
    language_config,
    write_own_answers,
)
from lightning_unlearn.forget.methods import make_method, read_method
from lightning_unlearn.forget.request import Findings, Plan, RequestOptions
from lightning_unlearn.forget.tables import AUTO, absolute, check_columns, columns_of, find_tables, read_tables
from lightning_unlearn.language.causal_lm import LitCausalLM
from lightning_unlearn.language.data.columns import Columns
from lightning_unlearn.language.data.language import LanguageDataModule
from lightning_unlearn.language.data.own_answers import OwnAnswers
from lightning_unlearn.language.limits import check_rows
from lightning_unlearn.language.prompt_format import PromptFormat
from lightning_unlearn.report.model import JSON

__all__ = ["LanguageRequest"]

_EPOCHS, _FEWEST = 10, 40  # passes over the forget rows, and steps where these are few
_AUDITED, _OWN_AUDITED = 400, 96  # rows of each set beside those to forget; answers of the model are long
_SIMNPO = {"class_path": "lightning_unlearn.SimNPO", "init_args": {"beta": 2.5}}


class LanguageRequest:
    """Make a language model forget rows: questions with answers, conversations, or texts.

    Args:
        model: The model: a folder, hub id, GGUF file or adapter. It stays as it is.
        forget: Rows to forget: .jsonl, .json, .csv, .tsv, .txt, .parquet, or a data set of the hub; or a folder with
            such tables named forget, retain, never_seen, heldout, general, paraphrases and neutral.
        retain: Rows to keep, in the same forms; "auto", the default without such rows, lets the model write its own
            answers to neutral questions, and keeps these.
        questions: Questions of yours that it answers too, for "auto".
        never_seen: Rows like those to forget that the model has never seen. They say when enough is forgotten, and are
            the control of the audit.
        heldout: Rows that are measured and never trained on.
        method: "auto", which is SimNPO; the name of a shipped method such as npo; or a YAML file with the callback.
        template: How a row of a table reads as a text, such as "Customer {id}: {name}".
        columns: Names of the columns, or templates such as "Where does customer {id} live?".
        lr: Learning rate.
        lora: Train adapters of these settings in place of the weights, such as '{"r": 8}'; they are merged at the end.
        max_length: Longest row in tokens. Longer answers to forget are refused; longer texts are cut into pieces.
        depth: Depth of the audit: "quick", "default" or "full".
        retrained: A control model for the audit, trained without the rows.
        options: Options that requests of all kinds share.

    Raises:
        ValueError: If an option is out of range.
    """

    kind = "language"

    def __init__(
        self,
        model: str,
        forget: str,
        retain: str | None = None,
        questions: str | None = None,
        never_seen: str | None = None,
        heldout: str | None = None,
        method: str = "auto",
        template: str | None = None,
        columns: Columns | None = None,
        lr: float = 1e-5,
        lora: dict[str, Any] | None = None,
        max_length: int = 512,
        depth: Depth = "default",
        retrained: str | None = None,
        options: RequestOptions | None = None,
    ) -> None:
        self.options = options or RequestOptions()
        self.model, self.retrained = absolute(model), retrained and absolute(retrained)
        self.sources, self.audit_sources = find_tables(forget, retain, never_seen, heldout)
        if questions is not None and self.sources["retain"] != AUTO:
            raise ValueError("questions are for the model to answer where there are no rows to keep: leave out retain.")
        self.questions = questions and absolute(questions)
        self.columns = columns_of(columns, template)
        self.method, self.lr, self.lora = method, above("lr", lr, 0), lora
        self.max_length = at_least("max_length", max_length, 2)
        self.depth = one_of("depth", depth, Depth)
        self.facts: dict[str, Any] = {}
        """What `check` has found of the model."""

    # ---- before --------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Open the model, read and tokenize the rows, and make the method."""
        check_columns(self.tables, self.columns, self.sources)
        rows = self.audit_data()
        control_of(None, self.retrained, rows)
        if self.retrained is not None:
            check_control([AuditedModel("original", self.model), AuditedModel("control", self.retrained)])
        assert self.objective
        module = LitCausalLM(self.model, lr=self.lr, lora=self.lora)
        if module.tokenizer is None:
            raise ValueError(
                f"{self.model} has a model, but no tokenizer. Copy the tokenizer files of the model that it was "
                "trained from, such as tokenizer.json and tokenizer_config.json, into that folder."
            )
        prompt = replace(module.prompt or PromptFormat(), tokenizer=module.tokenizer)
        known = {name: source for name, source in self.sources.items() if source != AUTO}
        data = LanguageDataModule(**data_arguments(known, self.max_length), prompt=prompt, columns=self.columns)
        data.setup("fit")
        self._check_whole(data.cut["forget"])
        if self.auto:
            OwnAnswers(self.questions).asked()
        check_rows(module.model, module.tokenizer, data)
        kept = data.prompt.state_dict()
        self.facts = {
            "parameters": sum(parameter.numel() for parameter in module.model.parameters()),
            "trains": sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad),
            "prompt": {name: value for name, value in kept.items() if value is not None}
            if data.prompt.writes_date
            else None,
        }
        if not self.on_gpu:
            audit = plan_of(self.depth, rows, bool(rows.never_seen), self.facts["parameters"], self.options.seed)
            module.prompt = prompt
            with torch.no_grad():
                self.facts["timing"] = timing(module, audit.probes, audit.scorer)

    def _check_whole(self, cut: dict[int, int]) -> None:
        """Refuse answers to forget of which the run would leave the end as it is."""
        if cut:
            number, length = max(cut.items(), key=lambda row: row[1])
            raise ValueError(
                f"{len(cut)} answers to forget are longer than --max_length {self.max_length} tokens with their "
                f"questions, such as row {number} with {length}, and the end of them would stay as it is. Give "
                f"--max_length {length}, or split these rows."
            )

    def plan(self) -> Plan:
        """What will be done, and what it costs."""
        return language_plan(self)

    def entries(self, secret: bytes) -> dict[str, Any]:
        """What the record says of the request."""
        path, tables = Path(self.model), self.tables
        entry: dict[str, Any] = {
            "kind": self.kind,
            "forget": {"rows": len(tables["forget"]), "rows_root": rows_root(tables["forget"], secret)},
            "other rows": {
                name: {"rows": len(rows), "rows_root": rows_root(rows, secret)}
                for name, rows in tables.items()
                if name != "forget"
            },
            "method": {"name": self.name, "callbacks": self.callbacks, "lr": self.lr, "lora": self.lora},
            "own answers": {"questions": self.questions} if self.auto else None,
            "settings": {
                "seed": self.options.seed,
                "steps": self.steps,
                "precision": self.options.precision,
                "max_length": self.max_length,
            },
            "columns": asdict(self.columns),
            "depth": self.depth,
        }
        if path.exists():
            return {**entry, "models": {"before": model_entry(path)}}
        return {**entry, "base_model": self.model, "content_hash": AuditedModel("original", self.model).content}

    # ---- the run -------------------------------------------------------------------------------------------------

    def config(self, folder: Path) -> dict[str, Any]:
        """The run as a configuration of LightningCLI."""
        if self.auto:
            write_own_answers(self, folder)
        return language_config(self, folder)

    def export(self, ckpt: Path, folder: Path) -> None:
        """Write a folder that transformers opens; adapters are merged."""
        LitCausalLM.load_from_checkpoint(ckpt, "cpu", weights_only=True).save_pretrained(folder)

    def evidence(self, model: Path, work: Path) -> Findings:
        """Audit the model against the one before."""
        result = run_audit(
            self.model,
            str(model),
            self.audit_data(model.parent / PRIVATE),
            work / "audit",
            self.retrained,
            depth=self.depth,
            seed=self.options.seed,
            device="cpu" if not self.on_gpu else None,
            show_text=self.options.show_text,
        )
        outcome = json.loads((work / "outcome.json").read_text(encoding="utf-8")).get("StopWhenForgotten")
        kept = "the model's own answers" if self.auto else "given"
        subject = {**result.report.subject, "method": self.name, "rows to keep": kept}
        if outcome is not None:
            subject["end of the run"] = outcome["text"]
        settings: dict[str, JSON] = {"learning rate": self.lr, "steps": self.steps, "seed": self.options.seed}
        title = f"{Path(self.model).name}: {len(self.tables['forget'])} rows to forget"
        provenance = {**result.report.provenance, "run": settings}
        report = replace(result.report, title=title, subject=subject, provenance=provenance)
        return Findings(report, {**verdict_entry(result.verdict), "run": outcome})

    # ---- parts ---------------------------------------------------------------------------------------------------

    @property
    def steps(self) -> int:
        """The most steps that the run makes."""
        epoch = math.ceil(len(self.tables["forget"]) / BATCH)
        return self.options.max_steps or max(_FEWEST, _EPOCHS * epoch)

    @cached_property
    def tables(self) -> dict[str, list[dict[str, Any]]]:
        """The rows of each set that is given."""
        return read_tables(self.sources)

    @cached_property
    def callbacks(self) -> list[dict[str, Any]]:
        """The method as YAML has it."""
        return [_SIMNPO] if self.method == "auto" else read_method(self.method)

    @cached_property
    def objective(self) -> UnlearnCallback:
        """The callback that unlearns."""
        return make_method(self.callbacks, self.method)

    @property
    def name(self) -> str:
        """Name of the method."""
        return " with ".join(part["class_path"].rpartition(".")[2] for part in self.callbacks)

    @property
    def stops(self) -> bool:
        """Whether the weights in the midst of the run are a model that it may end with."""
        return not self.objective.not_averaged

    @property
    def on_gpu(self) -> bool:
        """Whether the run has a GPU, as far as this process sees."""
        return self.options.accelerator != "cpu" and torch.cuda.is_available()

    @property
    def rows_of_a_step(self) -> int:
        """Rows to forget and rows to keep in a batch."""
        return BATCH + RETAIN_BATCH

    @property
    def auto(self) -> bool:
        """Whether the model writes the rows to keep itself."""
        return self.sources["retain"] == AUTO

    def audit_data(self, folder: Path | None = None) -> AuditData:
        """The rows of the audit; before the model has written its own ones, neutral questions stand for them."""
        tables = {**self.tables, **read_tables(self.audit_sources)}
        if self.auto and folder is not None:
            tables |= read_tables({"retain": str(folder / OWN_ROWS)})
        elif self.auto:
            asked = OwnAnswers(self.questions).asked()
            tables["retain"] = [{self.columns.question: text, self.columns.answer: text} for text in asked]
        limit = _OWN_AUDITED if self.auto else _AUDITED
        return sets_of_audit(tables, self.columns, self.sources["forget"], limit, self.options.seed)
