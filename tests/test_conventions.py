"""Promises of the repository around its code: workflows, templates, packaging and the security policy."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
from functools import cache
from importlib import import_module, metadata
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
import yaml

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted(ROOT.glob(".github/workflows/*.yml"))
FORMS = sorted(set(ROOT.glob(".github/ISSUE_TEMPLATE/*.yml")) - {ROOT / ".github/ISSUE_TEMPLATE/config.yml"})
SCHEMAS = {
    **dict.fromkeys(WORKFLOWS, "github-workflows"),
    **dict.fromkeys(FORMS, "github-issue-forms"),
    ROOT / ".github/ISSUE_TEMPLATE/config.yml": "github-issue-config",
    ROOT / ".github/dependabot.yml": "dependabot",
    ROOT / "CITATION.cff": "citation-file-format",
}
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def read(path: Path) -> Any:
    return yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)  # `on` stays a word


def targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def steps(path: Path) -> list[dict[str, Any]]:
    return [step for job in read(path)["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("path", SCHEMAS, ids=lambda path: path.name)
def test_a_file_for_the_host_keeps_to_its_schema(path: Path) -> None:
    from jsonschema import Draft7Validator

    try:
        files = metadata.distribution("check-jsonschema").files or []
    except metadata.PackageNotFoundError:
        pytest.skip("check-jsonschema, which has the schemas, is not installed")
    (schema_file,) = [file.locate() for file in files if file.name == f"{SCHEMAS[path]}.json"]
    schema = json.loads(Path(str(schema_file)).read_text(encoding="utf-8"))
    found = yaml.load(path.read_text(encoding="utf-8"), Loader=_Words)
    assert [f"{'/'.join(map(str, e.path))}: {e.message}" for e in Draft7Validator(schema).iter_errors(found)] == []


class _Words(yaml.SafeLoader):
    """YAML as GitHub reads it: `on` is a word, and a date is one, too."""


_Words.yaml_implicit_resolvers = {
    first: [
        (tag, pattern) for tag, pattern in resolvers if "timestamp" not in tag and not (first in "oO" and "bool" in tag)
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_runs_targets_that_are_there_and_nothing_else(path: Path) -> None:
    commands = [step["run"] for step in steps(path) if "run" in step]
    assert {command.split()[0] for command in commands} <= {"make"}
    assert {command.split()[1] for command in commands} <= targets()
    assert read(path)["permissions"] == {"contents": "read"}
    assert all("timeout-minutes" in job for job in read(path)["jobs"].values())


def test_the_workflows_together_do_what_a_change_has_to_pass() -> None:
    done = {step["run"].split()[1] for path in WORKFLOWS for step in steps(path) if "run" in step}
    assert {"lint", "test", "test-slow", "docs", "build", "check-release"} <= done
    required = re.findall(r"make (?:--\S+ )?([a-z-]+)", (ROOT / ".ci/run").read_text(encoding="utf-8"))
    assert set(required) - {"test-zoo"} <= done


def test_a_release_needs_no_stored_secret_and_only_the_upload_may_sign_in() -> None:
    path = ROOT / ".github/workflows/release.yml"
    jobs = read(path)["jobs"]
    assert "secrets." not in path.read_text(encoding="utf-8")
    assert {name for name, job in jobs.items() if "id-token" in job.get("permissions", {})} == {"publish"}
    assert jobs["publish"]["needs"] == "build"
    assert not any("run" in step for step in jobs["publish"]["steps"])


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "README.md", ".github/PULL_REQUEST_TEMPLATE.md", ".ci/release.py"])
def test_make_targets_that_are_named_exist(name: str) -> None:
    named = re.findall(r"`?(?<!\w)make ((?:[a-z]+-)*[a-z]+)(?=[`\s])", "\n".join(code(ROOT / name)))
    assert named
    assert set(named) <= targets()


def code(path: Path) -> list[str]:
    """What a page has in backticks and blocks of code."""
    text = path.read_text(encoding="utf-8")
    return [*re.findall(r"```.*?```", text, re.DOTALL), *re.findall(r"`[^`\n]+`", text)]


def test_the_classifiers_are_the_versions_that_may_install_it_and_three_are_tested() -> None:
    named = [c.rpartition(" ")[2] for c in PROJECT["classifiers"] if re.fullmatch(r".*Python :: 3\.\d+", c)]
    assert named == ["3.10", "3.11", "3.12", "3.13"]
    assert PROJECT["requires-python"] == f">={named[0]}"
    tested = read(ROOT / ".github/workflows/test.yml")["jobs"]["quick"]["strategy"]["matrix"]["python"]
    assert len(tested) == 3
    assert {named[0], named[-1]} <= set(tested) <= set(named)


def test_the_readme_on_pypi_has_no_link_that_leads_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    hook = import_module("hatch_build")
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?://|#)([^)]+)\)", text)
    assert links
    assert all((ROOT / link.partition("#")[0]).exists() for link in links)
    assert not re.search(r"\]\((?!https?://|#)", hook.pypi_readme(text, None))
    source = "https://host.example/owner/name/blob/v1.2.3"
    absolute = hook.pypi_readme(text, source)
    assert re.findall(r"\]\(" + re.escape(source) + r"/([^)]+)\)", absolute) == links
    assert hook.pypi_readme("![a](x.svg) [`b`](y.md#z) [c](https://d) [e](#f)", None) == " `b` [c](https://d) [e](#f)"


def test_an_image_builds_from_what_it_gets(tmp_path: Path, installed: Path) -> None:
    """The wheel of the files that .dockerignore lets through is the wheel of the repository."""
    first, *allowed = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert first == "*"
    for name in (line[1:] for line in allowed if line.startswith("!")):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", "dist"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("dist/*.whl")
    with ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if "__pycache__" not in name and not name.endswith("/RECORD")}
    here = {path.relative_to(installed).as_posix() for path in installed.rglob("*") if path.is_file()}
    assert names == {name for name in here if "__pycache__" not in name and not name.endswith("/RECORD")}
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    (extras,) = re.findall(r"^ARG EXTRAS=(.+)$", text, re.MULTILINE)
    assert set(extras.split(",")) <= PROJECT["optional-dependencies"].keys()


def test_what_a_release_lacks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / ".ci"))
    lacking = import_module("release").lacking
    version = PROJECT["version"]
    assert (
        lacking("v9.9.9")[0] == f"The tag is v9.9.9, but pyproject.toml has version {version}: the tag is v{version}."
    )
    for name in ("pyproject.toml", "CHANGELOG.md", "CITATION.cff"):
        shutil.copy(ROOT / name, tmp_path / name)
    before = lacking(f"v{version}", tmp_path)
    assert any("no Repository" in line for line in before) == ("urls" not in PROJECT)
    urls = "".join(f'{n} = "https://x.example/"\n' for n in ("Documentation", "Repository", "Issues", "Changelog"))
    for name, text in {
        "pyproject.toml": f"\n[project.urls]\n{urls}",
        "CHANGELOG.md": f"\n## [{version}] - 2030-01-31\n",
        "CITATION.cff": "date-released: 2030-01-31\nrepository-code: https://x.example/\n",
    }.items():
        with (tmp_path / name).open("a", encoding="utf-8") as file:
            file.write(text)
    assert lacking(f"v{version}", tmp_path) == []


# ---- what SECURITY.md says -------------------------------------------------------------------------------------------


NAMES = re.compile(
    r"(?<![\w.])(torch\.load|np\.load|eval|exec|pickle\.loads?|yaml\.load|yaml\.unsafe_load|os\.system)\("
)


@cache
def found_calls() -> dict[str, dict[str, list[ast.Call]]]:
    found: dict[str, dict[str, list[ast.Call]]] = {}
    for path in sorted((ROOT / "lightning_unlearn").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)) if NAMES.search(text) else ():
            if isinstance(node, ast.Call):
                files = found.setdefault(ast.unparse(node.func), {})
                files.setdefault(path.relative_to(ROOT).as_posix(), []).append(node)
    return found


def calls(name: str) -> dict[str, list[ast.Call]]:
    """The calls of a function, by file."""
    return found_calls().get(name, {})


def option(call: ast.Call, name: str) -> str | None:
    return next((ast.unparse(keyword.value) for keyword in call.keywords if keyword.arg == name), None)


def test_checkpoints_are_loaded_without_objects_but_for_those_that_the_run_wrote() -> None:
    found = calls("torch.load")
    assert len(found) >= 10
    unsafe = {file for file, nodes in found.items() for node in nodes if option(node, "weights_only") != "True"}
    trusted = "lightning_unlearn/forget/user_module.py"  # by --trust_checkpoint, which the user gives
    assert unsafe == {"lightning_unlearn/core/retention.py", trusted}
    assert {option(node, "weights_only") for node in found[trusted]} == {"not trusted"}
    assert [option(node, "weights_only") for node in found["lightning_unlearn/core/retention.py"]] == ["True", "False"]


def test_nothing_that_runs_code_of_a_file_is_called() -> None:
    for name in ("eval", "exec", "pickle.load", "pickle.loads", "yaml.load", "yaml.unsafe_load", "os.system"):
        assert calls(name) == {}, name
    assert {option(node, "allow_pickle") for nodes in calls("np.load").values() for node in nodes} == {"False"}


def test_every_file_that_the_policy_rests_on_is_there() -> None:
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    for promise in ("weights_only=True", "trust_remote_code=True", "GHSA-w37p-236h-pfx3", "trusted publishing"):
        assert promise in text
    assert "lightning>=2.6.4,<2.7" in PROJECT["dependencies"]
