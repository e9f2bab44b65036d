"""Command ``callbacks``: every shipped file is listed, printed and copied."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_unlearn.cli.configs import shipped_configs
from lightning_unlearn.cli.main import main


def test_it_lists_every_file_with_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    main(["callbacks"])
    lines = capsys.readouterr().out.splitlines()
    listed, room = {}, ""
    for line in lines:
        if line.endswith("/"):
            room = line
        elif line.startswith("  "):
            name, _, text = line.strip().partition(" ")
            listed[room + name] = text.strip()
    assert listed.keys() == {f"{path.parent.name}/{path.stem}" for path in shipped_configs()}
    assert listed["objectives/npo"].startswith("NPO: Negative preference optimization")
    assert listed["weights/salun"].startswith("SalUn: ")
    assert all(len(text) > 20 and "`" not in text and "][" not in text for text in listed.values())


def test_it_prints_a_file_to_the_letter(capsys: pytest.CaptureFixture[str]) -> None:
    main(["callbacks", "print", "objectives/npo"])
    (path,) = [path for path in shipped_configs() if path.name == "npo.yaml"]
    assert capsys.readouterr().out == path.read_text(encoding="utf-8")


def test_copies_lie_where_the_documentation_names_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["callbacks", "copy", "npo", "language/monitor", "--to", str(tmp_path / "callbacks")])
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.yaml")} == {
        *("callbacks/objectives/npo.yaml", "callbacks/language/monitor.yaml")
    }
    assert "class_path: lightning_unlearn.NPO" in (tmp_path / "callbacks" / "objectives" / "npo.yaml").read_text()
    (tmp_path / "callbacks" / "objectives" / "npo.yaml").write_text("mine")
    with pytest.raises(FileExistsError, match=r"npo\.yaml exist.*does not write over"):
        main(["callbacks", "copy", "simnpo", "npo", "--to", str(tmp_path / "callbacks")])
    assert (tmp_path / "callbacks" / "objectives" / "npo.yaml").read_text() == "mine"
    assert not (tmp_path / "callbacks" / "objectives" / "simnpo.yaml").exists()


def test_all_are_copied_where_none_is_named(tmp_path: Path) -> None:
    main(["callbacks", "copy", "--to", str(tmp_path)])
    assert len(list(tmp_path.rglob("*.yaml"))) == len(shipped_configs())


def test_a_file_of_ones_own_is_not_taken_for_a_shipped_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("trainer: {}")
    with pytest.raises(FileNotFoundError, match="none of that name comes with"):
        main(["callbacks", "print", "mine"])
