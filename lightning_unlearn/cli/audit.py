"""Command ``audit``: report, verdict and record on whether a language model has forgotten."""

from __future__ import annotations

from lightning_unlearn.audit.data import read_audit_data
from lightning_unlearn.audit.depth import Depth
from lightning_unlearn.audit.evidence import Control
from lightning_unlearn.audit.precision import Precision
from lightning_unlearn.audit.protocol import run_audit
from lightning_unlearn.benchmarks.runs import quiet_libraries
from lightning_unlearn.language.data.columns import Columns
from lightning_unlearn.language.packaged import FACTS_FOLDER

__all__ = ["audit"]


def audit(
    original: str,
    unlearned: str,
    data: str | None = None,
    output_dir: str = "runs/audit",
    retrained: str | None = None,
    control_kind: Control | None = None,
    depth: Depth = "default",
    split: str | None = None,
    limit: int = 400,
    columns: Columns | None = None,
    seed: int = 0,
    precision: Precision = "auto",
    device: str | None = None,
    show_text: bool = False,
    key: str | None = None,
    anchors: str | None = None,
    judge: str | None = None,
    calibration: str | None = None,
) -> None:
    """Test whether an unlearned language model has forgotten its rows, and write a report with the verdict.

    Writes ``report.json``, ``report.md`` and ``report.html``. Every finished part is kept in ``parts/``: if the
    command was killed, the same command continues where it stopped, and a greater depth reuses a smaller one.

    Args:
        original: The model before unlearning: a folder, hub id, GGUF file, adapter or checkpoint (.ckpt).
        unlearned: The model after unlearning, in one of the same forms.
        data: Folder with forget.jsonl and retain.jsonl and, optionally, never_seen, general, heldout, neutral and
            paraphrases; a folder of TOFU, with --split; or one file whose rows have a column "set". By default
            the capitals of the demo.
        output_dir: Folder to write.
        retrained: The control model, trained without the forget rows.
        control_kind: "retrained"; "base", where the control model is the base model, which was never tuned on the
            rows; "matched rows", where never-seen rows take the place of a control model; or "none".
        depth: "quick": plain and paraphrased questions, weights in 8 and 4 bits. "default": also relearning, samples
            and noise. "full": more of each. What each costs is printed before it starts.
        split: Part of TOFU to forget, such as forget10.
        limit: Largest number of rows of each set other than the forget set.
        columns: Names of the columns of the rows.
        seed: Seed of all draws.
        precision: "32"; "bf16"; or "auto": that of the audit already in the folder, else bf16 if that is fast here.
        device: Device, such as cuda:1; by default a GPU if there is one.
        show_text: Show questions and answers of the forget rows instead of hashes and lengths.
        key: PEM file of a private Ed25519 key; signs a record of the audit, record.jsonl.
        anchors: Output folder of an audit of another unlearned model with the same original, control and rows; its
            measurements of these two models are reused.
        judge: Another language model, which rates conversations of all models: a folder, hub id, GGUF file or adapter.
            Without it, conversations are not rated.
        calibration: The judge's calibration: a file of Calibration.save, or dialogues that people have rated (.jsonl),
            which the judge rates first.
    """
    quiet_libraries("transformers")
    rows = read_audit_data(data or FACTS_FOLDER, split, columns, limit, seed)
    result = run_audit(
        original,
        unlearned,
        rows,
        output_dir,
        retrained,
        control_kind,
        depth,
        seed,
        precision,
        device,
        show_text,
        key,
        anchors,
        judge,
        calibration,
    )
    verdict = result.verdict
    print(f"\n{verdict.headline}\n\n{verdict.action}")
    for note in verdict.notes:
        print(f"- {note}")
    print(f"\nOpen {result.folder / 'report.html'}.")
