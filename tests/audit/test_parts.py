from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lightning_unlearn.audit.data import with_phrasings
from lightning_unlearn.audit.parts import PartKey, Parts, code_hash
from lightning_unlearn.language.probes import Probe, probes_of

KEY = PartKey("weights", "rows", "int4", {"bits": 4}, "code")


def test_a_part_is_found_again_by_all_that_it_depends_on(tmp_path: Path) -> None:
    parts = Parts(tmp_path)
    assert parts.get(KEY) is None
    parts.put(KEY, {"strength": [0.5, 0.25]})
    assert Parts(tmp_path).get(KEY) == {"strength": [0.5, 0.25]}
    others = [
        replace(KEY, model="other weights"),
        replace(KEY, rows="other rows"),
        replace(KEY, name="int8"),
        replace(KEY, settings={"bits": 3}),
        replace(KEY, code="other code"),
    ]
    assert [parts.get(other) for other in others] == [None] * 5
    assert len({KEY.digest, *(other.digest for other in others)}) == 6


def test_a_folder_belongs_to_one_audit(tmp_path: Path) -> None:
    Parts(tmp_path).claim({"original": "a", "unlearned": "b"})
    Parts(tmp_path).claim({"unlearned": "b", "original": "a"})
    with pytest.raises(FileExistsError, match="differs in unlearned"):
        Parts(tmp_path).claim({"original": "a", "unlearned": "c"})


def test_the_code_of_a_part_is_that_which_it_uses() -> None:
    assert code_hash(probes_of, (Probe,)) == code_hash(probes_of, (Probe,))
    assert code_hash(probes_of, (Probe,)) != code_hash(with_phrasings, ())


def test_a_folder_keeps_the_key_of_its_rows(tmp_path: Path) -> None:
    secret = Parts(tmp_path).secret
    assert len(secret) == 32
    assert Parts(tmp_path).secret == secret != Parts(tmp_path / "other").secret
    assert (tmp_path / "rows.secret").stat().st_mode & 0o777 == 0o600
    Parts(tmp_path).claim({"rows": "a"})
    (tmp_path / "rows.secret").unlink()
    with pytest.raises(FileNotFoundError, match=r"has an audit, but not rows\.secret"):
        _ = Parts(tmp_path).secret


def test_parts_of_another_audit_are_taken_over(tmp_path: Path) -> None:
    first = Parts(tmp_path / "first")
    secret = first.secret
    first.put(KEY, {"strength": [0.5]})
    second = Parts(tmp_path / "second", tmp_path / "first")
    assert second.secret == secret
    assert second.only("int4", "bits") == 4
    assert second.get(KEY) == {"strength": [0.5]}
    assert second.get(replace(KEY, model="other weights")) is None
    assert Parts(tmp_path / "second").get(KEY) == {"strength": [0.5]}  # it has them itself
    second.put(replace(KEY, model="other weights"), {"strength": [0.25]})
    assert len(list((tmp_path / "first" / "parts").iterdir())) == 1
    with pytest.raises(FileNotFoundError, match=r"anchors=.*has no rows\.secret"):
        Parts(tmp_path / "third", tmp_path / "nowhere")
