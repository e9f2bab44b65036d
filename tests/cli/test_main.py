"""The table of commands, and what each imports."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_unlearn.cli import main as module
from lightning_unlearn.cli.main import main

HEAVY = tuple(
    f"lightning_unlearn.{part}"
    for part in ("demos", "benchmarks", "report.html", "diffusion.attacks", "diffusion.judges", "diffusion.metrics")
)


def test_every_command_is_there_and_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    usage = capsys.readouterr().out
    for command, target in module._COMMANDS.items():
        assert f"\n  {command}" in usage
        resolved = module._resolved(target)
        assert all(callable(part) for part in (resolved.values() if isinstance(resolved, dict) else [resolved]))
        with pytest.raises(SystemExit) as done:
            main([command, "--help"])
        assert done.value.code == 0


def test_help_imports_no_demo_benchmark_attack_or_image_metric(tmp_path: Path) -> None:
    """One process asks for the help of one after another; what it has loaded grows."""
    code = """
import json, sys
from lightning_unlearn.cli.main import main

for words in (["--help"], ["export", "--help"], ["fit", "--help"]):
    try:
        main(words)
    except SystemExit:
        pass
    print("\\n" + json.dumps([" ".join(words), sorted(sys.modules)]))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    loaded = dict(json.loads(line) for line in done.stdout.splitlines() if line.startswith('["'))
    assert list(loaded) == ["--help", "export --help", "fit --help"]
    for words, names in loaded.items():
        assert "lightning_unlearn.cli.main" in names
        assert [name for name in names if name.startswith(HEAVY)] == []
        assert ("torch" in names) == (words != "--help")
