"""Deltas of model folders, whole, in shards, and where the copy is interrupted."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import lightning_unlearn.weights.copied_files
from lightning_unlearn import apply_delta, revert_delta, save_delta
from tests.helpers import same
from tests.weights.delta.models import clone, digests


def test_a_patched_folder_is_the_unlearned_model_in_plain_transformers(
    models: tuple[Path, Path], tmp_path: Path, delta: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base, unlearned = models
    before = digests(base)
    info = save_delta(base, unlearned, delta)
    mlp = [v.numel() for k, v in load_file(base / "model.safetensors").items() if "mlp" in k]
    assert info.changed == sum(round(0.1 * n) for n in mlp)
    apply_delta(base, delta, tmp_path / "patched")

    plain, expected = (AutoModelForCausalLM.from_pretrained(folder) for folder in (tmp_path / "patched", unlearned))
    assert same(plain, expected)
    template = AutoTokenizer.from_pretrained(tmp_path / "patched").chat_template
    assert template == AutoTokenizer.from_pretrained(base).chat_template
    ids = torch.arange(8)[None]
    assert torch.equal(plain(ids).logits, expected(ids).logits)

    revert_delta(tmp_path / "patched", delta, tmp_path / "reverted")
    assert digests(tmp_path / "reverted") == digests(base) == before  # whole files, headers and all
    assert delta.stat().st_size < 0.2 * (base / "model.safetensors").stat().st_size


def test_shards_or_one_file_or_a_module_are_the_same_model(
    models: tuple[Path, Path], sharded: Path, tmp_path: Path, delta: Path
) -> None:
    from transformers import AutoModelForCausalLM

    base, unlearned = models
    info = save_delta(base, unlearned, delta)
    module = AutoModelForCausalLM.from_pretrained(base)
    for other in (sharded, module):
        assert save_delta(other, unlearned, tmp_path / "other.safetensors") == info
    assert (tmp_path / "other.safetensors").read_bytes() == delta.read_bytes()

    expected = AutoModelForCausalLM.from_pretrained(unlearned).state_dict()
    apply_delta(sharded, delta, tmp_path / "patched")
    assert same(AutoModelForCausalLM.from_pretrained(tmp_path / "patched").state_dict(), expected)
    assert digests(tmp_path / "patched").keys() == digests(sharded).keys()
    revert_delta(tmp_path / "patched", delta, tmp_path / "reverted")
    assert digests(tmp_path / "reverted") == digests(sharded)
    apply_delta(module, delta)
    assert same(module.state_dict(), expected)


def test_weights_in_other_files_are_not_copied(models: tuple[Path, Path], tmp_path: Path, delta: Path) -> None:
    base, unlearned = models
    save_delta(base, unlearned, delta)
    own = {"LICENSE.txt", "additional_chat_templates/rag.jinja", "merges.txt", "modeling_own.py", "tokenizer.model"}
    other = {
        *("adapter_config.json", "checkpoint-9/model.safetensors", "consolidated.safetensors", "model.onnx_data"),
        *("model.safetensors.bak", "model.tar.gz", "old.npz", "pytorch_model.bin", "pytorch_model.bin.index.json"),
        *("forget.parquet", "train.jsonl", "trainer_state.json"),
    }
    before = {f.name for f in base.iterdir()}
    for name in own | other:
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_text("what was to be forgotten" if name in other else "")
    with pytest.warns(
        UserWarning, match=r"Not copied, .*: adapter_config\.json, checkpoint-9, .*, trainer_state\.json"
    ):
        apply_delta(base, delta, tmp_path / "out")
    names = {f.relative_to(tmp_path / "out").as_posix() for f in (tmp_path / "out").rglob("*") if f.is_file()}
    assert names == before | own


def test_a_folder_of_links_to_read_only_files_as_in_the_hub_cache(
    models: tuple[Path, Path], tmp_path: Path, delta: Path
) -> None:
    base, unlearned = models
    save_delta(base, unlearned, delta)
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for file in base.iterdir():
        file.chmod(0o444)
        (snapshot / file.name).symlink_to(file)
    before = digests(base)
    apply_delta(snapshot, delta, tmp_path / "out")
    assert same(load_file(tmp_path / "out/model.safetensors"), load_file(unlearned / "model.safetensors"))
    assert digests(base) == before


def test_a_folder_that_cannot_be_written_is_refused(models: tuple[Path, Path], tmp_path: Path, delta: Path) -> None:
    base, unlearned = models
    save_delta(base, unlearned, delta)
    with pytest.raises(ValueError, match=r"is a folder, which stays as it is\. Give output"):
        apply_delta(base, delta)
    with pytest.raises(FileExistsError, match=r"exists\. Give a new folder as output"):
        apply_delta(base, delta, unlearned)
    with pytest.raises(ValueError, match="inside the model's own folder"):
        apply_delta(base, delta, base / "out")
    with pytest.raises(ValueError, match="is for folders; a dict is changed in place"):
        apply_delta(load_file(base / "model.safetensors"), delta, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        apply_delta(tmp_path / "nowhere", delta, tmp_path / "out")
    with pytest.raises(ValueError, match="was never applied"):
        revert_delta(base, delta, tmp_path / "out")
    (base / "model.safetensors").rename(base / "weights.safetensors")
    with pytest.raises(FileNotFoundError, match=r"has neither model\.safetensors nor model\.safetensors\.index\.json"):
        apply_delta(base, delta, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["gone.safetensors", "../base/model.safetensors"])
def test_an_index_that_names_no_file_of_the_folder_is_refused(
    name: str, models: tuple[Path, Path], sharded: Path, delta: Path
) -> None:
    index = sharded / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["model.norm.weight"] = name
    index.write_text(json.dumps(content))
    with pytest.raises(FileNotFoundError, match="which is not in the folder"):
        save_delta(sharded, models[1], delta)


KILLED = """
import os, signal, sys
from pathlib import Path
from lightning_unlearn.weights import delta

base, path, output, moment = sys.argv[1:]
calls = 0

def die(*args):
    os.kill(os.getpid(), signal.SIGKILL)

def flipped(self, name, bits, real=delta._Delta.flipped):
    global calls
    calls += 1
    if calls == len(self.changed) + 2:  # after the checks, and with one tensor of the copy flipped
        die()
    return real(self, name, bits)

if moment == "half way":
    delta._Delta.flipped = flipped
else:
    Path.rename = die
delta.apply_delta(base, path, output)
"""


@pytest.mark.parametrize("moment", ["half way", "before the renaming"])
def test_a_kill_leaves_the_original_and_no_half_model(
    moment: str, models: tuple[Path, Path], tmp_path: Path, delta: Path
) -> None:
    base, unlearned = models
    before = digests(base)
    save_delta(base, unlearned, delta)
    output = tmp_path / "out"
    done = subprocess.run([sys.executable, "-c", KILLED, base, delta, output, moment], timeout=900, check=False)
    assert done.returncode == -signal.SIGKILL
    assert digests(base) == before
    assert not output.exists()
    assert len(list(tmp_path.glob(".out-*"))) == 1  # it had begun
    apply_delta(base, delta, output)
    assert same(load_file(output / "model.safetensors"), load_file(unlearned / "model.safetensors"))


def test_a_full_disk_leaves_the_original_and_nothing_else(
    models: tuple[Path, Path], tmp_path: Path, delta: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, unlearned = models
    before = digests(base)
    save_delta(base, unlearned, delta)

    def full(source: str, target: str) -> None:
        Path(target).write_bytes(Path(source).read_bytes()[:100])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), target)

    monkeypatch.setattr(lightning_unlearn.weights.copied_files.shutil, "copyfile", full)
    with pytest.raises(OSError, match="No space left"):
        apply_delta(base, delta, tmp_path / "out")
    assert digests(base) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "delta.safetensors", "unlearned"]


MEMORY = """
import re
from pathlib import Path
from lightning_unlearn.weights import delta

def held():  # kB in memory that are not pages of a file
    return int(re.search(r"RssAnon:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

def digest(kind, bits, real=delta._digest):
    seen.append(held())
    return real(kind, bits)

start, seen, delta._digest = held(), [], digest
delta.save_delta("base", "unlearned", "delta.safetensors")
delta.apply_delta("base", "delta.safetensors", "out")
print(max(seen) - start)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's memory counters")
def test_models_in_folders_are_never_whole_in_memory(tmp_path: Path) -> None:
    state = {f"{i}.weight": torch.zeros(4 << 18) for i in range(24)}  # 24 tensors of 4 MB
    moved = clone(state)
    for weight in moved.values():
        weight[::100] = 1
    for name, tensors in (("base", state), ("unlearned", moved)):
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "model.safetensors")
    done = subprocess.run(
        [sys.executable, "-c", MEMORY], cwd=tmp_path, capture_output=True, text=True, timeout=900, check=True
    )
    assert same(load_file(tmp_path / "out/model.safetensors"), moved)
    assert int(done.stdout) < 8 * 4 << 10
