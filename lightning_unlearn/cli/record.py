"""Commands ``record``, ``verify-record`` and ``export-card``: the signed record of an unlearning request."""

from __future__ import annotations

import json
import os
import secrets
import sys
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_unlearn.audit.canonical import rebuilt
from lightning_unlearn.audit.card import model_card
from lightning_unlearn.audit.entries import model_entry, report_entry, request_entry
from lightning_unlearn.audit.evidence import Evidence
from lightning_unlearn.audit.hashes import rows_root
from lightning_unlearn.audit.keys import (
    load_private_key,
    load_public_key,
    new_key_pair,
    password_for,
    password_of_new_key,
)
from lightning_unlearn.audit.record import AuditRecord, Head
from lightning_unlearn.audit.verdict import conclude
from lightning_unlearn.audit.verify import Fault
from lightning_unlearn.audit.verify import verify_record as check_record
from lightning_unlearn.core.sources import load_rows

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

__all__ = ["append", "create", "export_card", "key", "sign", "verify_record"]


def key(private_key: str, public_key: str, unencrypted: bool = False) -> None:
    """Make the key pair that signs a record.

    The password is asked for, or read from the environment variable LIGHTNING_UNLEARN_KEY_PASSWORD.

    Args:
        private_key: File to write the private key to, in PEM format. Anyone who has it can sign in your name.
        public_key: File to write the public key to. Give it to those who check the record.
        unencrypted: Write the private key without a password.
    """
    name = new_key_pair(private_key, public_key, None if unencrypted else password_of_new_key())
    print(f"Wrote {private_key} (keep it to yourself) and {public_key}. The id of the key is {name}.")


def create(
    record: str,
    received_at: str,
    basis: str = "GDPR Art. 17(1)",
    private_key: str | None = None,
    request_id: str | None = None,
    extended: str | None = None,
    holidays: list[str] | None = None,
    forget: str | None = None,
    secret: str | None = None,
) -> None:
    """Begin a record with a request.

    Args:
        record: File to write, which must not exist.
        received_at: Day on which the request was received, such as 2026-01-31.
        basis: Article or contract that the request is based on.
        private_key: Key that signs the entry.
        request_id: Its number in your files; by default a random one. Don't use a name.
        extended: Reason for an extension by two months.
        holidays: Public holidays that postpone a deadline, such as '[2026-04-06]'.
        forget: File or folder of the rows to forget. Only a hash of them is written.
        secret: File with the secret that the rows are hashed with; it is made if it does not exist.
    """
    if Path(record).exists():
        raise FileExistsError(f"{record} exists. Add to it with `lightning-unlearn record append`, or give a new name.")
    received, free = _day(received_at), [_day(day) for day in holidays or []]
    request = request_entry(received, basis, request_id, extended, free)
    body: dict[str, Any] = {"event": "request", "request": request}
    if forget is not None:
        body["forget"] = _rows_entry(forget, secret)
    head = AuditRecord(record).append(body, _private(private_key))
    print(f"The request is to be answered by {request['extended_to'] or request['due_at']}.")
    if extended is not None:
        print(f"The person is to be told of the extension and its reason by {request['due_at']}.")
    print(f"Its subject is {request['subject_ref']} in the record: note it in the case file, which has the name.")
    _say_head(record, head)


def append(
    record: str,
    event: str | None = None,
    body: str | None = None,
    before: str | None = None,
    after: str | None = None,
    control: str | None = None,
    report: str | None = None,
    private_key: str | None = None,
) -> None:
    """Add an entry to a record.

    Args:
        record: File of the record.
        event: Kind of the entry, such as method, models, audit, approval; by default that of the body.
        body: JSON file with the content of the entry.
        before: Folder of the model before unlearning.
        after: Folder of the unlearned model.
        control: Folder of the control model.
        report: Report of the audit, as JSON.
        private_key: Key that signs the entry.
    """
    content = _content(body) if body is not None else {}
    models = {"before": before, "after": after, "control": control}
    hashed = {role: model_entry(path) for role, path in models.items() if path is not None}
    if hashed:
        content["models"] = hashed
    if report is not None:
        content["report"] = report_entry(report)
    kind = event or content.get("event") or ("models" if hashed else "audit" if report is not None else None)
    if kind is None or not content:
        raise ValueError("There is nothing to add. Give --body, --before, --after, --control or --report.")
    _say_head(record, _existing(record).append({**content, "event": kind}, _private(private_key)))


def sign(record: str, private_key: str) -> None:
    """Sign the unsigned entries of a record.

    Args:
        record: File of the record.
        private_key: The key.
    """
    opened, signer = _existing(record), _private(private_key)
    assert signer is not None
    print(f"Signed {opened.sign(signer)} of {len(opened.entries)} entries.")
    _say_head(record, opened.head)


def verify_record(
    record: str,
    public_key: str | None = None,
    model: str | None = None,
    before: str | None = None,
    control: str | None = None,
    report: str | None = None,
    expect_head: str | None = None,
    forget: str | None = None,
    secret: str | None = None,
) -> None:
    """Check a record, its signatures, and the files that it refers to.

    The exit code is 0 if everything is as recorded, 1 if something was changed, and 2 if something could not be
    checked.

    Args:
        record: File of the record.
        public_key: Public key of the keeper of the record. No key in the record itself is trusted.
        model: Folder of the unlearned model.
        before: Folder of the model before unlearning.
        control: Folder of the control model.
        report: Report of the audit, as JSON.
        expect_head: Number and hash of an entry that was kept elsewhere, SEQ:HASH. Without it, the check can't see
            whether entries were cut off at the end.
        forget: File or folder of the rows to forget.
        secret: File with the secret that the rows are hashed with.
    """
    try:
        models = {"after": model, "before": before, "control": control}
        faults = check_record(
            record,
            load_public_key(public_key) if public_key is not None else None,
            {role: path for role, path in models.items() if path is not None},
            report,
            _head(expect_head) if expect_head is not None else None,
            load_rows(forget) if forget is not None else None,
            _secret(secret) if secret is not None else None,
        )
    except (OSError, ValueError, ImportError) as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    for fault in faults:
        print({"tampered": "", "incomplete": "not checked: ", "note": "note: "}[fault.level] + str(fault))
    _end(record, faults, expect_head is not None)


def export_card(
    record: str,
    model: str,
    model_name: str | None = None,
    base_model: str | None = None,
    license: str | None = None,
    language: str | None = None,
) -> None:
    """Write the verdict of a record into the model card (README.md) of the unlearned model.

    An existing README.md is kept, and a section is added to it. No row and no name is written.

    Args:
        record: File of the record.
        model: Folder of the unlearned model.
        model_name: Name of the model; by default that of the folder.
        base_model: Hub id of the model that it was made from.
        license: License of the model, such as apache-2.0.
        language: Language of the model, such as en.
    """
    opened = _existing(record)
    body = next((entry.body for entry in reversed(opened.entries) if "evidence" in entry.body), None)
    if body is None:
        raise ValueError(f"The record {record} has no verdict yet. `lightning-unlearn audit` writes one.")
    weights = next((e.body["models"]["after"] for e in reversed(opened.entries) if _after(e.body) is not None), None)
    card = model_card(
        conclude(rebuilt(Evidence, body["evidence"])),
        model_name or Path(model).resolve().name,
        opened.head,
        opened.entries[-1].key_id,
        None if weights is None else weights["content_hash"],
        base_model=base_model,
        license=license,
        language=language,
        existing=Path(model) / "README.md",
    )
    card.save(Path(model) / "README.md")
    print(f"Wrote {Path(model) / 'README.md'}")


def _content(path: str) -> dict[str, Any]:
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}.") from None
    if not isinstance(content, dict):
        raise ValueError(f'{path} must hold a JSON object, such as {{"event": "method", "name": "NPO"}}.')
    return content


def _after(body: dict[str, Any]) -> Any:
    models = body.get("models")
    return models.get("after") if isinstance(models, dict) else None


def _end(record: str, faults: list[Fault], anchored: bool) -> None:
    levels = [fault.level for fault in faults]
    if "tampered" in levels:
        print(f"{record} is not intact: {levels.count('tampered')} faults.")
        sys.exit(1)
    if "incomplete" in levels:
        print(f"{record} could not be checked in full: what was checked is intact.")
        sys.exit(2)
    tail = "" if anchored else " Without --expect_head, the check can't see whether entries were cut off at the end."
    print(f"{record} is intact.{tail}")


def _rows_entry(forget: str, secret: str | None) -> dict[str, Any]:
    if secret is None:
        raise ValueError("The rows are hashed under a secret, since short rows can be guessed. Give --secret, a file.")
    if not Path(secret).exists():
        with os.fdopen(os.open(secret, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32) + "\n")
        print(f"Wrote {secret}: keep it beside the case file. Without it, the record can't be linked to the rows.")
    rows = load_rows(forget)
    entry: dict[str, Any] = {"rows": len(rows), "rows_root": rows_root(rows, _secret(secret))}
    return entry


def _secret(path: str) -> bytes:
    text = Path(path).read_text(encoding="utf-8").strip()
    try:
        value = bytes.fromhex(text)
    except ValueError:
        value = b""
    if len(value) != 32:
        raise ValueError(f"{path} does not hold a secret of rows, which is 64 hexadecimal digits.")
    return value


def _existing(record: str) -> AuditRecord:
    if not Path(record).is_file():
        raise FileNotFoundError(f"There is no record {record}. `lightning-unlearn record create` begins one.")
    return AuditRecord(record)


def _private(path: str | None) -> Ed25519PrivateKey | None:
    return None if path is None else load_private_key(path, password_for(path))


def _day(text: str) -> date:
    try:
        return date.fromisoformat(str(text))
    except ValueError:
        raise ValueError(f"{text!r} is not a day such as 2026-01-31.") from None


def _head(text: str) -> Head:
    seq, _, digest = text.partition(":")
    if not seq.isdigit() or len(digest) != 64:
        raise ValueError(f"--expect_head is the number of an entry and its hash, SEQ:HASH, but got {text!r}.")
    return Head(int(seq), digest)


def _say_head(record: str, head: Head) -> None:
    print(f"{record} ends with the entry {head}")
    print("Keep this line somewhere else, such as in the case file: it later shows that nothing was cut off.")
