"""The tests on several Pythons, with the lowest and the newest dependencies that pyproject.toml allows.

    python -m tests.packaging.matrix --pythons 3.10 3.13 --resolutions lowest-direct highest -- -k npo

Each cell has an environment in ``.venv-matrix/``, which is kept: the same command again runs the tests alone. uv makes
them, and can be told of another index as usual (``UV_INDEX_URL``, ``UV_FIND_LINKS``). Only wheels are installed, so the
lowest version is the lowest that has one for this Python.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".venv-matrix"
EXTRAS = ("llm", "diffusion", "cli", "report", "record")
TOOLS = ("pytest>=8.3", "pytest-timeout>=2.3", "scikit-learn>=1.4", "hatchling>=1.27", "jsonschema>=4.18")
SHOWN = ("torch", "lightning", "transformers", "peft", "diffusers", "jsonargparse", "omegaconf", "numpy")
TESTS = (
    "tests/functional/objectives",
    "tests/objectives",
    "tests/configs/test_yaml.py",
    "tests/cli/test_configs.py",
    "tests/report",
    "tests/language/test_causal_lm.py",
    "tests/test_names.py",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pythons", nargs="+", default=["3.10", "3.11", "3.12", "3.13"])
    parser.add_argument("--resolutions", nargs="+", default=["lowest-direct", "highest"])
    parser.add_argument("--install_only", action="store_true")
    parser.add_argument("words", nargs="*", help="arguments of pytest, in place of the default selection")
    given = parser.parse_args()
    wheel = built()
    rows = []
    for version in given.pythons:
        for resolution in given.resolutions:
            print(f"\n== Python {version}, {resolution}", flush=True)
            rows.append((version, resolution, *cell(version, resolution, wheel, given.words, given.install_only)))
    print("\n| Python | dependencies | outcome | versions |\n|---|---|---|---|")
    for version, resolution, outcome, versions in rows:
        print(f"| {version} | {resolution.removesuffix('-direct')} | {outcome} | {versions} |")
    failed = [row for row in rows if not re.match(r"\d+ passed|installed|no Python", row[2]) or "failed" in row[2]]
    sys.exit(1 if failed or all(row[2].startswith("no Python") for row in rows) else 0)


def cell(version: str, resolution: str, wheel: Path, words: list[str], install_only: bool) -> tuple[str, str]:
    """The outcome of one environment, and the versions in it."""
    python = found(version)
    if python is None:
        return "no Python of this version", ""
    folder = FOLDER / f"{version}-{resolution.removesuffix('-direct')}"
    binary = folder / "bin" / "python"
    stamp = folder / wheel.name
    if not stamp.exists():
        uv("venv", "--quiet", "--clear", "--python", python, str(folder))
        options = ["--quiet", "--python", str(binary), "--only-binary", ":all:"]
        wanted = ["-r", "pyproject.toml", *(word for extra in EXTRAS for word in ("--extra", extra)), *TOOLS]
        if uv("pip", "install", *options, "--resolution", resolution, *wanted, check=False):
            return "does not install", ""
        uv("pip", "install", *options, "--no-deps", str(wheel))
        stamp.touch()
    code = f"from importlib.metadata import version as v; print(', '.join(f'{{n}} {{v(n)}}' for n in {SHOWN!r}))"
    versions = subprocess.run([binary, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
    print(versions, flush=True)
    if install_only:
        return "installed", versions
    command = [binary, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore", "--tb=short"]
    log = folder / "tests.log"
    with log.open("w", encoding="utf-8") as file:
        subprocess.run([*command, *(words or TESTS)], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, check=False)
    lines = log.read_text(encoding="utf-8").splitlines()
    print(*[line for line in lines if line.startswith(("FAILED", "ERROR"))], sep="\n", flush=True)
    return next((re.sub(r" in .*|=+", "", line).strip() for line in reversed(lines) if line), "nothing ran"), versions


def found(version: str) -> str | None:
    """A Python of a version: on the PATH, or of pyenv."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    places = [shutil.which(f"python{version}"), *sorted(map(str, pyenv.glob(f"{version}.*/bin/python")), reverse=True)]
    for place in filter(None, places):
        done = subprocess.run(
            [place, "-c", "import sys; print(sys.version)"], capture_output=True, text=True, check=False
        )
        if done.stdout.startswith(f"{version}."):
            return place
    return None


def built() -> Path:
    """The wheel of this clone."""
    folder = FOLDER / "dist"
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def uv(*words: str, check: bool = True) -> int:
    return subprocess.run([sys.executable, "-m", "uv", *words], cwd=ROOT, check=check).returncode


if __name__ == "__main__":
    main()
