"""The chain of a record, its keys and signatures."""

from __future__ import annotations

import os
import stat
from datetime import datetime, timezone
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lightning_unlearn import AuditRecord, load_private_key, load_public_key, new_key_pair
from lightning_unlearn.audit.keys import PASSWORD, key_id, password_for, signature, signed_by
from lightning_unlearn.audit.record import FIRST, SCHEMA, digests, record_hash

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
REQUEST = {"body": {"event": "request", "forget_rows": 2}, "prev": FIRST, "schema": SCHEMA, "seq": 0}
REQUEST_HASH = "74894e6c40f4d7a2764aecfe0816e250f377727fb92202740a31eaf81fac9aea"
VERDICT = {"body": {"event": "verdict", "verdict": "forgotten"}, "prev": REQUEST_HASH, "schema": SCHEMA, "seq": 1}
VERDICT_HASH = "eef30c70ba76c0ef64ea610f63c54a13aec4becc87629982c049abf8fbc8ac46"
SIGNATURE = (
    "8b5f8fef10899b65b823a6b19793d44f3602b259e1530410123c72ff0ae5d44f"
    "5bb6e8b0b2038ad5c191ba82eb9ab4686ea6c341f832afebd92663d23c140802"
)


def test_the_hashes_of_a_chain_of_two() -> None:
    assert record_hash(REQUEST) == REQUEST_HASH
    assert record_hash(VERDICT) == VERDICT_HASH
    changed = {**REQUEST, "body": {"event": "request", "forget_rows": 3}}
    assert record_hash(changed) == "0ccc84583a1ed4b1c26690b541b5c3c6547a531d523d4c55afd0435e87b86194"


def test_the_signature_of_a_known_key() -> None:
    public = KEY.public_key()
    assert public.public_bytes_raw().hex() == "03a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8"
    assert key_id(public) == "56475aa75463474c"
    assert signature(KEY, VERDICT_HASH) == SIGNATURE
    assert signed_by(public, VERDICT_HASH, SIGNATURE)
    assert not signed_by(public, REQUEST_HASH, SIGNATURE)
    assert not signed_by(public, VERDICT_HASH, "no hexadecimal digits")


def test_entries_follow_on_one_another_and_are_read_again(tmp_path: Path) -> None:
    record = AuditRecord(tmp_path / "r.jsonl")
    now = datetime(2026, 1, 31, 12, tzinfo=timezone.utc)
    record.append({"event": "request", "kappa": 0.25}, KEY, now)
    head = record.append({"event": "verdict"}, KEY, now)
    again = AuditRecord(tmp_path / "r.jsonl")
    assert again.entries == record.entries
    assert again.head == head
    assert again.entries[0].body == {"event": "request", "kappa": "0.25", "recorded_at": "2026-01-31T12:00:00Z"}
    assert again.entries[1].prev == again.entries[0].hash
    assert str(head) == f"1:{head.hash}"
    assert again.latest("request") == again.entries[0].body
    assert again.latest("none") is None


def test_an_entry_names_its_kind_and_is_not_earlier_than_the_last(tmp_path: Path) -> None:
    record = AuditRecord(tmp_path / "r.jsonl")
    with pytest.raises(ValueError, match="has no entry yet"):
        _ = record.head
    with pytest.raises(ValueError, match=r"but has the fields \['verdict'\]"):
        record.append({"verdict": "forgotten"})
    record.append({"event": "request"}, now=datetime(2026, 1, 2, tzinfo=timezone.utc))
    with pytest.raises(ValueError, match="and this one of 2026-01-01T00:00:00Z, before it"):
        record.append({"event": "method"}, now=datetime(2026, 1, 1, tzinfo=timezone.utc))
    assert len(record.entries) == len(AuditRecord(tmp_path / "r.jsonl").entries) == 1


def test_nothing_is_appended_to_a_broken_chain(tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    record = AuditRecord(file)
    for event in ("request", "method", "verdict"):
        record.append({"event": event}, KEY)
    lines = file.read_bytes().splitlines(keepends=True)
    for broken in (lines[1:], [lines[0], lines[2]], [lines[0].replace(b"request", b"Request"), *lines[1:]], [b"\n"]):
        file.write_bytes(b"".join(broken))
        with pytest.raises(ValueError, match=r"Line \d of the record .* is damaged"):
            AuditRecord(file)


def test_unsigned_entries_are_signed_later_and_signed_ones_stay(tmp_path: Path) -> None:
    other = Ed25519PrivateKey.from_private_bytes(bytes(32))
    record = AuditRecord(tmp_path / "r.jsonl")
    record.append({"event": "request"}, other)
    record.append({"event": "verdict"})
    before = record.head
    assert record.sign(KEY) == 1
    assert record.head == before  # a signature is no part of what is hashed
    assert [entry.key_id for entry in AuditRecord(record.path).entries] == [
        key_id(other.public_key()),
        key_id(KEY.public_key()),
    ]


def test_digests_have_the_path_of_every_field() -> None:
    assert set(digests({"a": {"b": 1, "c": [True, {"d": None}]}, "e": {}, "long": ["x"] * 65})) == {
        *("a.b", "a.c[0]", "a.c[1].d"),
        *("e", "long"),
    }


def test_keys_are_written_for_their_owner_and_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    private, public = tmp_path / "k" / "key.pem", tmp_path / "pub.pem"
    name = new_key_pair(private, public, "a password")
    assert stat.S_IMODE(os.stat(private).st_mode) == 0o600
    assert b"ENCRYPTED" in private.read_bytes()
    monkeypatch.setenv(PASSWORD, "a password")
    key = load_private_key(private, password_for(private))
    assert key_id(key.public_key()) == key_id(load_public_key(public)) == name
    with pytest.raises(FileExistsError, match="a key that is written over is lost"):
        new_key_pair(private, tmp_path / "other.pem", None)
    with pytest.raises(ValueError, match="or its password is wrong"):
        load_private_key(private, "another")
    with pytest.raises(ValueError, match="has a password: set it"):
        load_private_key(private)
    monkeypatch.delenv(PASSWORD)
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    with pytest.raises(ValueError, match="no terminal"):
        password_for(private)
    private.chmod(0o644)
    with pytest.raises(PermissionError, match="chmod 600"):
        load_private_key(private, "a password")


def test_keys_of_other_kinds_are_refused(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

    key = generate_private_key(SECP256R1())
    file = tmp_path / "ec.pem"
    file.write_bytes(key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption()))
    file.chmod(0o600)
    with pytest.raises(ValueError, match="is no Ed25519 key"):
        load_private_key(file)
    with pytest.raises(ValueError, match="no public key in PEM format"):
        load_public_key(file)
    with pytest.raises(FileNotFoundError, match="There is no key"):
        load_public_key(tmp_path / "none.pem")
