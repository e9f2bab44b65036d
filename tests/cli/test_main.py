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


@pytest.mark.parametrize("words", [["fit", "--help"], ["export", "--help"], ["--help"]], ids=" ".join)
def test_help_imports_no_demo_benchmark_attack_or_image_metric(words: list[str], tmp_path: Path) -> None:
    code = f"""
import json, sys
from lightning_unlearn.cli.main import main
try:
    main({words})
except SystemExit:
    pass
print(json.dumps(sorted(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    loaded = json.loads(done.stdout.splitlines()[-1])
    assert "lightning_unlearn.cli.main" in loaded
    assert [name for name in loaded if name.startswith(HEAVY)] == []
    assert ("torch" in loaded) == (words != ["--help"])
