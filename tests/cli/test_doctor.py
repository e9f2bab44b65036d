"""Command ``doctor`` without a file: versions, devices, extras, and what would be refused."""

from __future__ import annotations

import sys

import pytest
import torch

import lightning_unlearn
from lightning_unlearn.cli import environment, extras
from lightning_unlearn.cli.main import main

Patch = pytest.MonkeyPatch


def pretend(monkeypatch: Patch, **packages: str | None) -> None:
    """Installed versions, with ``_`` for ``-`` in the names."""
    names = {name.replace("_", "-"): version for name, version in packages.items()}

    def version(name: str) -> str | None:
        return names[name] if name in names else extras.installed(name)

    monkeypatch.setattr(environment, "installed", version)


def test_it_says_what_is_here(capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor"])
    out = capsys.readouterr().out
    assert f"lightning-unlearn {lightning_unlearn.__version__}, Python {sys.version.split()[0]}" in out
    assert f"torch {torch.__version__}, lightning 2.6" in out
    assert "\n  CPU: " in out
    assert "\n  llm        installed\n" in out


def test_every_extra_is_named_with_the_line_that_installs_it(monkeypatch: Patch) -> None:
    monkeypatch.setattr(environment, "installed", lambda name: None)
    lines = {line.split()[0]: line for line in environment.extra_lines()}
    assert lines.keys() >= {"llm", "diffusion", "cli", "report", "record", "wandb", "mri"}
    assert not {"dev", "docs", "all"} & lines.keys()
    assert 'pip install "lightning-unlearn[record]"' in lines["record"]
    assert "cryptography is missing, huggingface-hub is missing" in lines["record"]


def test_a_package_that_is_too_old_is_named(monkeypatch: Patch) -> None:
    pretend(monkeypatch, peft="0.3.0")
    (line,) = [line for line in environment.extra_lines() if line.startswith("llm ")]
    assert "peft 0.3.0 is not >=" in line


def test_a_malicious_release_is_refused_and_not_imported(
    monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend(monkeypatch, lightning="2.6.3")
    with pytest.raises(SystemExit) as done:
        main(["doctor"])
    assert done.value.code == 1
    out = capsys.readouterr().out
    assert "lightning 2.6.3 is a malicious release that steals credentials (GHSA-w37p-236h-pfx3)" in out
    assert "pip uninstall lightning" in out


def test_an_old_lightning_is_refused(monkeypatch: Patch) -> None:
    pretend(monkeypatch, lightning="2.5.0")
    (refused,) = environment.refusals()
    assert refused.startswith("lightning 2.5.0 is not ")
    assert 'pip install "lightning' in refused


def test_deepspeed_and_unequal_lightnings_are_notes(monkeypatch: Patch) -> None:
    pretend(monkeypatch, deepspeed="0.15", lightning="2.6.4", pytorch_lightning="2.6.5")
    first, second = environment.notes()
    assert "deepspeed 0.15" in first
    assert "ModelParallelStrategy" in first
    assert "lightning 2.6.4 and pytorch-lightning 2.6.5 differ" in second
