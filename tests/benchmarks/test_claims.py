"""Claims on runs that several processes or machines share."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from lightning_unlearn.benchmarks import claims as module
from lightning_unlearn.benchmarks import grid
from lightning_unlearn.benchmarks.claims import Claims
from lightning_unlearn.benchmarks.grid import Grid
from tests.benchmarks.test_grid import Square, cells, square


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid, "_POLL", 0.05)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def wait_for(condition: object, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.02)


def of_another_machine(path: Path) -> None:
    """Lets a claim look as if a process of another machine, with a number that is not in use here, had written it."""
    claim = json.loads(path.read_text())
    path.write_text(json.dumps({**claim, "host": "node3", "machine": "node3", "process": 2**22 + 1}))


def killed(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_a_run_has_one_claim_until_it_is_released(tmp_path: Path) -> None:
    one, two = Claims(tmp_path), Claims(tmp_path)
    with one, two:
        assert one.take("a")
        assert not two.take("a")
        assert two.take("b")
        assert two.owner("a") == f"process {os.getpid()} on {socket.gethostname()}"
        two.release(["a"])  # not its own
        assert not two.take("a")
        one.release(["a"])
        assert two.take("a")
        assert files(tmp_path) == ["a.json", "b.json"]
    assert files(tmp_path) == []
    assert one.owner("a") is None


def test_of_many_that_claim_at_once_one_succeeds(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        for key in ("a", "b", "c"):
            taken = list(pool.map(lambda _, key=key: Claims(tmp_path).take(key), range(32)))  # type: ignore[misc]
            assert sum(taken) == 1


def test_a_claim_without_a_heartbeat_is_taken_over_by_one(tmp_path: Path) -> None:
    first = Claims(tmp_path)
    assert first.take("a")
    of_another_machine(tmp_path / "a.json")
    assert not Claims(tmp_path).take("a")  # its heartbeat is fresh
    with ThreadPoolExecutor(16) as pool:
        for _ in range(20):
            os.utime(tmp_path / "a.json", (0, 0))
            assert Claims(tmp_path).owner("a") is None
            assert sum(pool.map(lambda _: Claims(tmp_path).take("a"), range(32))) == 1
    first.release(["a"])  # it has lost the claim, and leaves that of the other
    assert files(tmp_path) == ["a.json"]


def test_while_a_late_process_acts_on_a_claim_that_was_taken_over_no_third_can_take_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, late = Claims(tmp_path), Claims(tmp_path), Claims(tmp_path)
    assert first.take("a")
    stale = (tmp_path / "a.json").read_text()
    first.release(["a"])
    assert second.take("a")
    answers, thirds = [(stale, 0.0)], []  # what the late process read before the release
    read = module._read
    monkeypatch.setattr(module, "_read", lambda path: answers.pop() if answers else read(path))
    inside: list[bool] = []

    def third_after(step: Callable[..., Any]) -> Callable[..., Any]:
        def done(*args: Any, **more: Any) -> Any:
            result = step(*args, **more)
            if not inside:
                inside.append(True)
                thirds.append(Claims(tmp_path).take("a"))
                inside.pop()
            return result

        return done

    for name in ("touch", "rename", "replace", "unlink"):
        monkeypatch.setattr(Path, name, third_after(getattr(Path, name)))
    assert not late.take("a")
    assert not answers
    assert thirds
    assert not any(thirds)
    assert second.owner("a") is not None
    assert files(tmp_path) == ["a.json"]


def test_a_process_that_is_killed_while_it_takes_over_does_not_hold_the_claim_forever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Claims(tmp_path).take("a")
    os.utime(tmp_path / "a.json", (0, 0))
    with monkeypatch.context() as patch:
        unlink = Path.unlink
        patch.setattr(Path, "replace", killed)
        patch.setattr(Path, "unlink", lambda path, **more: path.suffix == ".ending" or unlink(path, **more))
        with pytest.raises(KeyboardInterrupt):
            Claims(tmp_path).take("a")
    (marker,) = tmp_path.glob(".a.json.*.ending")
    assert not Claims(tmp_path).take("a")
    os.utime(marker, (0, 0))
    assert not Claims(tmp_path).take("a")  # removes the marker
    assert Claims(tmp_path).take("a")
    assert not marker.exists()


def test_a_claim_of_a_process_that_is_gone_is_taken_over_at_once(tmp_path: Path) -> None:
    script = "from lightning_unlearn.benchmarks.claims import Claims; import os\nfrom pathlib import Path\n"
    script += f"assert Claims(Path({str(tmp_path)!r})).take('a')\nos._exit(0)"
    subprocess.run([sys.executable, "-c", script], check=True)
    assert files(tmp_path) == ["a.json"]
    assert Claims(tmp_path).owner("a") is None
    assert Claims(tmp_path).take("a")


def test_the_heart_beats_while_the_process_works(tmp_path: Path) -> None:
    with Claims(tmp_path, beat=0.02, stale_after=100.0) as claims:
        assert claims.take("a")
        path = tmp_path / "a.json"
        os.utime(path, (0, 0))
        wait_for(lambda: path.stat().st_mtime > 0)
        of_another_machine(path)  # taken over, so it is not to be kept alive
        time.sleep(0.1)
        os.utime(path, (0, 0))
        time.sleep(0.2)
        assert path.stat().st_mtime == 0


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_a_claim_that_is_half_written_is_fresh_until_it_is_old(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    assert not Claims(tmp_path).take("a")
    assert Claims(tmp_path).owner("a") == "process ? on an unknown host"
    os.utime(tmp_path / "a.json", (0, 0))
    assert Claims(tmp_path).take("a")


def by_thread(cell: Square, folder: Path) -> dict[str, Any]:
    return {**square(cell, folder), "thread": threading.get_ident()}


@pytest.mark.usefixtures("_quick")
def test_two_workers_share_the_runs_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    some = cells(tmp_path / "log", 1, 2, 3, 4, 5, 6, seconds=0.2)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: Grid(tmp_path, workers=0).run(by_thread, some, "squares"), range(2)))
    assert found[0] == found[1]
    assert [result["y"] for result in found[0].values()] == [1, 4, 9, 16, 25, 36]
    assert len({result["thread"] for result in found[0].values()}) == 2
    assert sorted((tmp_path / "log").read_text().split()) == ["1", "2", "3", "4", "5", "6"]
    assert files(tmp_path / "claims") == []
    assert Grid(tmp_path, workers=0).run(by_thread, some, "squares") == found[0]
    assert "6 of 6 runs are finished" in capsys.readouterr().out


@pytest.mark.usefixtures("_quick")
def test_a_failed_run_is_free_for_others(tmp_path: Path) -> None:
    some = cells(Path("/dev/null/log"), 1)
    for _ in range(2):
        with pytest.raises(NotADirectoryError):
            Grid(tmp_path, workers=0).run(square, some, "squares")
        assert files(tmp_path / "claims") == []


def long_at_first(cell: Square, folder: Path) -> dict[str, Any]:
    """Takes a minute in the process that is to be killed."""
    outcome = square(cell, folder)
    time.sleep(60.0 if cell.x == 3 and not (folder / "killed").exists() else 0.0)
    return outcome


SCRIPT = """
import sys
from pathlib import Path
from tests.benchmarks.test_claims import Grid, cells, long_at_first

Grid(sys.argv[1], workers=0).run(long_at_first, cells(Path(sys.argv[1], "log"), 1, 2, 3), "squares")
"""


@pytest.mark.usefixtures("_quick")
def test_runs_of_a_killed_worker_are_taken_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "log"
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.DEVNULL
    )
    wait_for(lambda: log.exists() and "3" in log.read_text().split())
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(Grid(tmp_path, workers=0).run, long_at_first, cells(log, 3, 4), "squares")
        wait_for(lambda: "4" in log.read_text().split())
        time.sleep(0.3)
        assert log.read_text().split() == ["1", "2", "3", "4"]  # 3 is left to the other
        (tmp_path / "killed").touch()
        process.send_signal(signal.SIGKILL)
        assert process.wait(60) == -signal.SIGKILL
        wait_for(lambda: log.read_text().split() == ["1", "2", "3", "4", "3"])
        assert job.result(60)[3]["process"] == os.getpid()
    assert f"waiting for runs of others, 1: process {process.pid} on {socket.gethostname()}" in capsys.readouterr().out
