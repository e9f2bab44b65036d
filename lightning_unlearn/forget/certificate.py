"""Record and model card of a request: what was asked and measured, chained by hashes and signed."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_unlearn.audit.canonical import rebuilt
from lightning_unlearn.audit.card import model_card, report_card
from lightning_unlearn.audit.entries import model_entry, report_entry
from lightning_unlearn.audit.evidence import Evidence
from lightning_unlearn.audit.keys import key_id, load_private_key, new_key_pair, password_for, public_pem
from lightning_unlearn.audit.record import AuditRecord, Head
from lightning_unlearn.audit.verdict import conclude
from lightning_unlearn.core.files import write_text
from lightning_unlearn.forget.folder import RequestFolder, configuration
from lightning_unlearn.forget.request import Findings

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

__all__ = ["own_key", "signer", "verify_command", "write_card", "write_record"]

UNSIGNED = "none"


def own_key() -> Path:
    """The private key in the user's configuration folder, which need not exist yet."""
    return configuration() / "signing_key.pem"


def signer(key: str | None) -> Ed25519PrivateKey | None:
    """The key that signs a record; the user's own is made where there is none.

    Args:
        key: PEM file, ``"none"``, or ``None`` for the key in the configuration folder.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no key, or its password is missing.
        ImportError: If the package cryptography is missing.
    """
    if key == UNSIGNED:
        return None
    path = own_key() if key is None else Path(key).expanduser()
    if key is None and not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        new_key_pair(path, path.with_name("public_key.pem"), None)
    return load_private_key(path, password_for(path))


def write_record(folder: RequestFolder, request: dict[str, Any], findings: Findings, key: str | None) -> Head:
    """Write the record anew: the request, the two models, and the verdict with the hash of the report.

    Args:
        folder: The output folder, with model and report.
        request: What the record says of the request.
        findings: What was measured.
        key: The key, as for `signer`.

    Returns:
        The last entry.
    """
    private = signer(key)
    public = folder.path / "public_key.pem"
    if private is not None:
        public.write_bytes(public_pem(private))
    folder.record.unlink(missing_ok=True)  # of a kill in the middle of this step
    record = AuditRecord(folder.record)
    record.append({"event": "request", **request}, private)
    record.append({"event": "unlearned", "models": {"after": model_entry(folder.model)}}, private)
    report = report_entry(folder.path / "report.json")
    return record.append({"event": "verdict", **findings.entry, "report": report}, private)


def write_card(folder: RequestFolder, findings: Findings, head: Head, key: str | None, base: str | None) -> None:
    """Write verdict and record into the model card, ``README.md`` of the model.

    Args:
        folder: The output folder.
        findings: What was measured.
        head: Last entry of the record.
        key: The key, as for `signer`.
        base: Hub id of the model before, where it has one.
    """
    private, after = signer(key), model_entry(folder.model)["content_hash"]
    name = None if private is None else key_id(private.public_key())
    existing = folder.model / "README.md"
    if "evidence" in findings.entry:
        verdict = conclude(rebuilt(Evidence, findings.entry["evidence"]))
        card = model_card(verdict, folder.path.name, head, name, after, base_model=base, existing=existing)
    else:
        card = report_card(findings.report, folder.path.name, head, name, after, base_model=base, existing=existing)
    write_text(existing, str(card))


def verify_command(folder: RequestFolder, head: Head) -> str:
    """The command that checks record, signatures, model and report."""
    signed = (folder.path / "public_key.pem").is_file()
    words = ["lightning-unlearn", "verify-record", "--record", _shown(folder.record)]
    words += ["--public_key", _shown(folder.path / "public_key.pem")] if signed else []
    words += ["--model", _shown(folder.model), "--report", _shown(folder.path / "report.json")]
    return shlex.join([*words, "--expect_head", str(head)])


def _shown(path: Path) -> str:
    """A path as the user would type it."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
