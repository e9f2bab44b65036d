"""A delta turns the base into the unlearned model and back, bit for bit, or refuses and changes nothing."""

from __future__ import annotations

import copy
import errno
import hashlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import lightning_unlearn.weights.delta
from lightning_unlearn import LitCausalLM, apply_delta, delta_info, revert_delta, save_delta
from lightning_unlearn.cli.fit import UnlearnCLI
from lightning_unlearn.cli.main import main
from tests.helpers import bits, same, trainer

FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]


def clone(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def move(tensor: Tensor, density: float, seed: int = 0) -> Tensor:
    """A copy in which this share of the weights has other bits."""
    generator = torch.Generator().manual_seed(seed)
    count = round(density * tensor.numel())
    where = torch.randperm(tensor.numel(), generator=generator)[:count]
    flat = bits(tensor).clone().flatten()
    flat[where] ^= 1
    return flat.view(tensor.dtype).view(tensor.shape)


def digests(folder: Path) -> dict[str, str]:
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(folder.iterdir()) if f.is_file()}


@pytest.fixture
def delta(tmp_path: Path) -> Path:
    return tmp_path / "delta.safetensors"


@pytest.fixture
def models(tiny_lm: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Folders of a base model and of one in which a tenth of the weights of each MLP has moved."""
    from transformers import AutoModelForCausalLM

    base, unlearned = tmp_path / "base", tmp_path / "unlearned"
    shutil.copytree(tiny_lm, base)
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "mlp" in name:
                weight.copy_(move(weight, 0.1))
    model.save_pretrained(unlearned)
    return base, unlearned


@pytest.fixture
def sharded(models: tuple[Path, Path], tmp_path: Path) -> Path:
    """The base model in several files with an index."""
    from transformers import AutoModelForCausalLM

    folder = tmp_path / "sharded"
    AutoModelForCausalLM.from_pretrained(models[0]).save_pretrained(folder, max_shard_size="30KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    return folder


# --- bits


@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS, torch.bool, torch.complex64, torch.float8_e4m3fn])
def test_every_type_comes_back_bit_for_bit(dtype: torch.dtype, delta: Path) -> None:
    size = torch.empty((), dtype=dtype).element_size()
    raw = torch.randint(0, 2 if dtype is torch.bool else 256, (30 * size,), dtype=torch.uint8)
    weight = raw.view(dtype).view(5, 6)  # among the floats NaN of every payload, infinities and subnormal numbers
    base = {"a": weight, "scalar": weight[0, 0].clone(), "empty": weight[:0], "still": weight.clone()}
    unlearned = {**base, "a": move(weight, 0.3), "scalar": move(weight[0, 0], 1.0)}
    state = clone(base)

    info = save_delta(base, unlearned, delta)
    assert (info.weights, info.changed) == (61, 10)
    apply_delta(state, delta)
    assert same(state, unlearned)
    revert_delta(state, delta)
    assert same(state, base)


@pytest.mark.parametrize("dtype", FLOATS)
def test_minus_zero_and_the_payload_of_a_nan_are_changes(dtype: torch.dtype, delta: Path) -> None:
    base = {"w": torch.tensor([0.0, math.nan, 1.0, math.inf], dtype=dtype)}
    unlearned = clone(base)
    unlearned["w"][0] = -0.0
    bits(unlearned["w"])[1] ^= 1
    assert torch.equal(base["w"].nan_to_num(), unlearned["w"].nan_to_num())
    assert save_delta(base, unlearned, delta).changed == 2
    apply_delta(base, delta)
    assert same(base, unlearned)


def test_a_module_of_any_memory_layout_is_changed_in_place(delta: Path) -> None:
    base = nn.Conv2d(3, 4, 5).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    unlearned = copy.deepcopy(base)
    with torch.no_grad():
        unlearned.weight[:, 0].mul_(1.5)
    start, weight = clone(base.state_dict()), base.weight
    save_delta(base, unlearned, delta)
    apply_delta(base, delta)
    assert base.weight is weight
    assert same(base, unlearned)
    revert_delta(base, delta)
    assert same(base.state_dict(), start)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(8, 4), nn.Linear(4, 8, bias=False)
        self.head.weight = self.embedding.weight


def test_tied_weights_are_stored_and_flipped_once(delta: Path, tmp_path: Path) -> None:
    base = Tied()
    unlearned = copy.deepcopy(base)
    with torch.no_grad():
        unlearned.head.weight[0] += 1
    info = save_delta(base, unlearned, delta)
    assert (info.weights, info.changed) == (32, 4)
    with safe_open(delta, "pt") as file:
        assert sorted(file.keys()) == ["mask/embedding.weight", "xor/embedding.weight"]
    apply_delta(base, delta)
    assert same(base, unlearned)

    # A file that kept the other of the two names.
    for name, model in (("one", base), ("two", Tied())):
        (tmp_path / name).mkdir()
        save_file({"head.weight": model.head.weight.detach()}, tmp_path / name / "model.safetensors")
    save_delta(tmp_path / "two", base, delta)
    apply_delta(tmp_path / "two", delta, tmp_path / "out")
    assert same(load_file(tmp_path / "out/model.safetensors"), load_file(tmp_path / "one/model.safetensors"))


# --- size


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("density", "kind"), [(0.01, "index"), (0.1, "mask"), (1.0, "mask")])
def test_the_size_is_that_of_the_formula(dtype: torch.dtype, density: float, kind: str, delta: Path) -> None:
    n = 99_999
    base = {"w": torch.randn(n).to(dtype), "still": torch.randn(1000)}
    info = save_delta(base, {**base, "w": move(base["w"], density)}, delta)
    k = round(density * n)
    assert info.changed == k
    assert info.density == k / (n + 1000)
    with safe_open(delta, "pt") as file:
        assert sorted(file.keys()) == [f"{kind}/w", "xor/w"]
    content = k * dtype.itemsize + min(math.ceil(n / 8), 4 * k)
    header = 8 + int.from_bytes(delta.read_bytes()[:8], "little")
    assert delta.stat().st_size == content + header
    assert header < 2000


def test_the_file_says_what_it_is(delta: Path) -> None:
    base = {"w": torch.zeros(4), "count": torch.zeros(3, dtype=torch.int64)}
    unlearned = {**base, "w": torch.tensor([0.0, 1.0, 0.0, 0.0])}
    info = save_delta(base, unlearned, delta)
    assert info == delta_info(delta)
    assert (info.dtype, info.weights, info.changed, info.density) == ("float32", 7, 1, 1 / 7)

    def digest(kind: str, tensor: Tensor) -> str:
        return hashlib.sha256(kind.encode() + b"\n" + tensor.numpy().tobytes()).hexdigest()

    count = digest("int64 [3]", base["count"])
    for state, fingerprint in ((base, info.base), (unlearned, info.unlearned)):
        lines = f"count {count}\nw {digest('float32 [4]', state['w'])}\n"
        assert fingerprint == hashlib.sha256(lines.encode()).hexdigest()


# --- refusals


def edit(change: Callable[[dict[str, Tensor], dict[str, Any]], None], path: Path) -> None:
    with safe_open(path, "pt") as file:
        said, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    metadata = {key: json.loads(value) for key, value in said.items()}
    change(tensors, metadata)
    save_file(tensors, path, metadata={key: json.dumps(value) for key, value in metadata.items()})


def lose(tensors: dict[str, Tensor], name: str, count: int = 1) -> None:
    tensors[name] = tensors[name][:-count].clone()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda state: state["b"].add_(1),
            r"b has SHA-256 \w{64}, but .* in which it has \w{64}, so this is another mod",
        ),
        (lambda state: state["w"].add_(1), r"w has SHA-256 .* Take the model with the fingerprint \w{64}"),
        (
            lambda state: state.pop("b"),
            r"'b' is in .*delta.safetensors, but not in the model, whose names are like 'v'",
        ),
        (lambda state: state.update(c=torch.ones(1)), r"'c' is in the model, but not in .*delta.safetensors"),
        (
            lambda state: state.update(w=torch.ones(2, 8)),
            r"'w' is float32 \[16\] in .*, but float32 \[2, 8\] in the mod",
        ),
        (
            lambda state: state.update(w=state["w"].half()),
            r"'w' is float32 \[16\] in .*, but float16 \[16\] in the mod",
        ),
        (lambda state: state.update(w=1.0), "w is a float, but a delta is made of whole dense tensors"),
        (lambda state: state.update(w=state["w"].to("meta")), "made of whole dense tensors in memory"),
        (lambda state: state.update(w=state["w"].to_sparse()), "made of whole dense tensors in memory"),
    ],
)
def test_another_model_is_refused_and_not_touched(
    change: Callable[[dict[str, Any]], None], message: str, delta: Path
) -> None:
    base = {"w": torch.arange(16.0), "b": torch.ones(4), "v": torch.ones(4)}
    save_delta(base, {**base, "w": base["w"] * 2, "v": base["v"] * 2}, delta)
    state: dict[str, Any] = clone(base)
    change(state)
    before = {name: copy.deepcopy(value) for name, value in state.items()}
    with pytest.raises((ValueError, TypeError), match=message):
        apply_delta(state, delta)
    for name, value in state.items():
        if isinstance(value, Tensor) and not (value.is_meta or value.is_sparse):
            assert torch.equal(value, before[name])


def test_applying_twice_and_reverting_what_was_never_applied_are_recognised(delta: Path) -> None:
    base = {"w": torch.arange(16.0), "v": torch.ones(4)}
    unlearned = {"w": base["w"] + 1, "v": base["v"] + 1}
    save_delta(base, unlearned, delta)
    state = clone(base)
    with pytest.raises(ValueError, match="was never applied to this model"):
        revert_delta(state, delta)
    assert same(state, base)
    apply_delta(state, delta)
    with pytest.raises(ValueError, match="is applied to this model already; revert_delta takes it back"):
        apply_delta(state, delta)
    assert same(state, unlearned)
    mixed = {"w": base["w"], "v": unlearned["v"]}
    for function in (apply_delta, revert_delta):
        with pytest.raises(ValueError, match="v is that of the unlearned model, but w that of the base"):
            function(mixed, delta)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, m: t["xor/w"].add_(1), "is damaged: it would make of w what was never saved"),
        (lambda t, m: lose(t, "xor/w"), "is damaged"),
        (lambda t, m: t["mask/w"].add_(1), "is damaged"),
        (lambda t, m: t.pop("mask/w"), "is damaged"),
        (lambda t, m: t["index/v"].add_(1000), "is damaged: it would make of v"),
        (lambda t, m: t["index/v"].sub_(1), "is damaged: it would make of v"),
        (lambda t, m: t.update({"xor/v": t["xor/v"].double()}), "is damaged: it would make of v"),
        (lambda t, m: m.clear(), "is a safetensors file, but not a delta. Write one with save_delta"),
        (
            lambda t, m: m["lightning-unlearn-delta"].update(format_version=2),
            "has format version 2, but this library reads version 1",
        ),
    ],
)
def test_a_damaged_delta_changes_nothing(change: Any, message: str, delta: Path) -> None:
    base = {"w": torch.arange(16.0), "v": torch.ones(1000)}
    unlearned = {"w": base["w"] * 2, "v": base["v"].clone()}
    unlearned["v"][0] = 2
    save_delta(base, unlearned, delta)
    edit(change, delta)
    state = clone(base)
    with pytest.raises(ValueError, match=message):
        apply_delta(state, delta)
    assert same(state, base)


def test_a_file_cut_short_or_missing_is_an_error(delta: Path) -> None:
    base = {"w": torch.arange(16.0)}
    with pytest.raises(FileNotFoundError, match="There is no delta"):
        apply_delta(base, delta)
    save_delta(base, {"w": base["w"] + 1}, delta)
    delta.write_bytes(delta.read_bytes()[:-1])
    with pytest.raises(ValueError, match="is not a safetensors file, or a part of one"):
        apply_delta(base, delta)


@pytest.mark.parametrize(
    ("unlearned", "message"),
    [
        ({"w": torch.ones(4)}, "are the same bit for bit, so there is nothing to store"),
        ({"x": torch.ones(4)}, "'w' is in the base, but not in the unlearned model, whose names are like 'x'"),
        ({"w": torch.ones(5)}, r"'w' is float32 \[4\] in the base, but float32 \[5\] in the unlearned model"),
        ({"w": torch.ones(4).bfloat16()}, r"'w' is float32 \[4\] in the base, but bfloat16 \[4\] in the unlearned"),
    ],
)
def test_models_without_a_delta_leave_no_file(unlearned: dict[str, Tensor], message: str, delta: Path) -> None:
    with pytest.raises(ValueError, match=message):
        save_delta({"w": torch.ones(4)}, unlearned, delta)
    assert list(delta.parent.iterdir()) == []


def test_a_type_without_an_integer_of_its_size_is_refused(delta: Path) -> None:
    state = {"w": torch.ones(4, dtype=torch.complex128)}
    with pytest.raises(TypeError, match=r"1, 2, 4 or 8 bytes, but got torch.complex128"):
        save_delta(state, {"w": state["w"] * 2}, delta)


def test_a_sharded_module_is_refused(delta: Path) -> None:
    from torch import distributed
    from torch.distributed.tensor import distribute_tensor, init_device_mesh

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        state = {"w": distribute_tensor(torch.ones(4), init_device_mesh("cpu", (1,)))}
        with pytest.raises(TypeError, match=r"w is a DTensor, .* save_pretrained and give the folder"):
            save_delta(state, state, delta)
    finally:
        distributed.destroy_process_group()


def test_without_safetensors_the_error_names_the_extra(delta: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(ImportError, match=r'pip install "lightning-unlearn\[llm\]"'):
        save_delta({"w": torch.ones(1)}, {"w": torch.zeros(1)}, delta)


# --- folders


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
    for name in ("pytorch_model.bin", "consolidated.safetensors", "notes.txt"):
        (base / name).write_text("what was to be forgotten")
    (base / "original").mkdir()
    for name in ("model.safetensors", "params.json"):
        (base / "original" / name).write_text("what was to be forgotten")
    apply_delta(base, delta, tmp_path / "out")
    names = {f.relative_to(tmp_path / "out").as_posix() for f in (tmp_path / "out").rglob("*") if f.is_file()}
    assert {"model.safetensors", "config.json", "notes.txt", "original/params.json"} <= names
    assert not names & {"pytorch_model.bin", "consolidated.safetensors", "original/model.safetensors"}


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

    monkeypatch.setattr(lightning_unlearn.weights.delta.shutil, "copyfile", full)
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


# --- the command line


@pytest.mark.parametrize("lora", [False, True])
def test_export_apply_and_revert_from_the_command_line(
    lora: bool, tiny_lm: Path, tmp_path: Path, delta: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForCausalLM

    run = ["--config", "examples/capitals.yaml", f"--model.init_args.model={tiny_lm}", "--trainer.accelerator=cpu"]
    run += [f"--trainer.default_root_dir={tmp_path}", "--trainer.enable_progress_bar=false", "--trainer.max_steps=2"]
    run += ["--model.init_args.lora.r=4"] if lora else [r"--model.init_args.trainable=mlp\.down_proj"]
    cli = UnlearnCLI(["fit", *run, "--config", "callbacks/objectives/simnpo.yaml"])
    path = cli.trainer.checkpoint_callback.best_model_path  # type: ignore[union-attr]
    before = digests(tiny_lm)

    capsys.readouterr()
    main(["export", f"--ckpt_path={path}", f"--delta={delta}", f"--output_dir={tmp_path / 'whole'}"])
    assert "weights changed (" in capsys.readouterr().out
    info = delta_info(delta)
    down = 2 * 32 * 64
    assert info.changed > 0
    assert lora or info.changed <= down
    main(["export", f"--ckpt_path={path}", f"--delta={tmp_path / 'again.safetensors'}", f"--base={tiny_lm}"])
    assert (tmp_path / "again.safetensors").read_bytes() == delta.read_bytes()

    patched, reverted = tmp_path / "patched", tmp_path / "reverted"
    main(["delta", "apply", f"--model={tiny_lm}", f"--delta={delta}", f"--output={patched}"])
    plain, expected = (AutoModelForCausalLM.from_pretrained(folder) for folder in (patched, tmp_path / "whole"))
    assert same(plain, expected)
    main(["delta", "revert", f"--model={patched}", f"--delta={delta}", f"--output={reverted}"])
    assert digests(reverted) == digests(tiny_lm) == before


def test_the_command_says_what_it_needs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=r"There is nothing to write\. Give --output_dir"):
        main(["export", "--ckpt_path=run.ckpt"])
    with pytest.raises(SystemExit):
        main(["delta", "--help"])
    text = capsys.readouterr().out
    assert "apply" in text
    assert "revert" in text


def checkpoint(module: LitCausalLM, path: Path) -> Path:
    run = trainer(max_epochs=0)
    run.strategy.connect(module)
    run.save_checkpoint(path)
    return path


def test_a_run_in_fp32_from_a_folder_in_bf16(tiny_lm: Path, tmp_path: Path, delta: Path) -> None:
    half, full = tmp_path / "half", tmp_path / "full"
    LitCausalLM(str(tiny_lm), dtype="bfloat16").save_pretrained(half)
    module = LitCausalLM(str(half))
    with torch.no_grad():
        module.model.model.norm.weight[:3] *= 1 + 2**-20  # too little for bf16
    main(["export", f"--ckpt_path={checkpoint(module, tmp_path / 'run.ckpt')}", f"--delta={delta}"])
    assert (delta_info(delta).dtype, delta_info(delta).changed) == ("float32", 3)
    with pytest.raises(ValueError, match=r"but bfloat16 .* in the model.*save both with the same dtype"):
        apply_delta(half, delta, tmp_path / "out")
    LitCausalLM(str(half)).save_pretrained(full)
    apply_delta(full, delta, tmp_path / "out")
    assert same(LitCausalLM(str(tmp_path / "out")).model, module.model)


@pytest.mark.slow
def test_a_gguf_file_is_a_base(smollm2: str, tmp_path: Path, delta: Path) -> None:
    module = LitCausalLM(smollm2, trainable=r"layers\.3\.mlp\.down_proj")
    weight = module.model.model.layers[3].mlp.down_proj.weight
    with torch.no_grad():
        weight.copy_(move(weight, 0.1))
    main(["export", f"--ckpt_path={checkpoint(module, tmp_path / 'run.ckpt')}", f"--delta={delta}"])
    assert delta_info(delta).changed == round(0.1 * weight.numel())
    main(["delta", "apply", f"--model={smollm2}", f"--delta={delta}", f"--output={tmp_path / 'out'}"])
    assert same(LitCausalLM(str(tmp_path / "out")).model, module.model)


@pytest.mark.slow
@pytest.mark.alone
def test_the_unlearning_of_a_real_model_goes_on_and_off(smollm2: str, tmp_path: Path) -> None:
    example = Path(__file__).parents[2] / "examples" / "delta.py"
    command = [sys.executable, str(example), "--model", smollm2, "--output", str(tmp_path / "delta")]
    subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "2"}, check=True, capture_output=True, timeout=800)
    found = json.loads((tmp_path / "delta" / "delta.json").read_text())
    assert found["applied_is_trained"]
    assert found["reverted_is_base"]
    assert found["changed"] <= found["weights"] // 10
    assert found["delta_bytes"] < 0.135 * found["model_bytes"]  # a tenth of the weights, and a bit for each
    assert found["reverted"] == found["base"]
    assert found["unlearned"]["forget"] <= 1 / 12 < 8 / 12 <= found["base"]["forget"]
    assert found["unlearned"]["retain"] >= 11 / 12
