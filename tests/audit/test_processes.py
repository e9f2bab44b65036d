from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lightning_unlearn import LitCausalLM, UnlearningReport, run_audit
from tests.audit.processes import ROWS

ROOT = Path(__file__).parents[2]


def outcomes(folder: Path) -> dict[str, Any]:
    """The outcomes of all parts but what depends on the machine."""
    parts = [json.loads(file.read_text()) for file in (folder / "parts").iterdir()]
    return {
        f"{part['name']} of {part['model']}": {
            key: value for key, value in part["outcome"].items() if key not in ("seconds", "timing")
        }
        for part in parts
    }


def assert_near(found: Any, expected: Any, place: str) -> None:
    """The same values, and numbers up to the rounding of another batch."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), place
        for key in expected:
            assert_near(found[key], expected[key], f"{place}/{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), place
        for number, pair in enumerate(zip(found, expected, strict=True)):
            assert_near(*pair, f"{place}/{number}")
    else:
        near = pytest.approx(expected, rel=1e-3, abs=1e-4) if isinstance(expected, float) else expected
        assert found == near, place


@pytest.mark.slow
@pytest.mark.distributed
def test_two_processes_with_uneven_rows_find_what_one_finds(tiny_lm: Path, tmp_path: Path) -> None:
    module = LitCausalLM(tiny_lm)
    for parameter in module.parameters():
        parameter.data.mul_(1.05)
    module.save_pretrained(tmp_path / "changed")
    run_audit(tiny_lm, tmp_path / "changed", ROWS, tmp_path / "one", depth="quick", precision="32")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "tests.audit.processes"]
    command = [sys.executable, *torchrun, str(tiny_lm), str(tmp_path / "changed"), str(tmp_path / "two")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    one, two = outcomes(tmp_path / "one"), outcomes(tmp_path / "two")
    assert one.keys() == two.keys()
    for name, part in one.items():
        assert_near(two[name], part, name)
    words = [UnlearningReport.read(tmp_path / name).headline for name in ("one", "two")]
    assert words[0] == words[1]
