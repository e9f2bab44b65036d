"""Content hashes of weights and rows."""

from __future__ import annotations

import json
import struct
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lightning_unlearn import content_hash, rows_root
from lightning_unlearn.audit.entries import model_entry
from lightning_unlearn.audit.hashes import row_leaf
from lightning_unlearn.audit.model_check import compare_model

A, B = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([0.5, -0.5])
ROOT = "a32d760df32ba2d6d2e86cfba136b66cdba1621ad4e4aae72298bfaf4a3332a7"


def saved(path: Path, tensors: dict[str, torch.Tensor] | None = None, **metadata: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors or {"a.weight": A, "b.bias": B}, path, metadata or None)
    return path


def test_the_hash_of_two_tensors(tmp_path: Path) -> None:
    content = content_hash(saved(tmp_path / "model.safetensors"))
    assert content.root == ROOT
    assert [tensor.leaf for tensor in content.tensors] == [
        "3c37af2532db7701384a1fcb496aaa9a50c75b2d589cc35ee9f8650e924b9047",
        "22db18341c3c644fc093905531955d2c240df90808c73c0eddeb9290e89ff999",
    ]


def test_shards_order_and_metadata_make_no_difference(tmp_path: Path) -> None:
    assert content_hash(saved(tmp_path / "a.safetensors", format="pt", note="another")).root == ROOT
    saved(tmp_path / "two" / "model-00001-of-00002.safetensors", {"b.bias": B})
    saved(tmp_path / "two" / "model-00002-of-00002.safetensors", {"a.weight": A})
    assert content_hash(tmp_path / "two").root == ROOT


def test_one_bit_and_the_shape_make_a_difference(tmp_path: Path) -> None:
    file = saved(tmp_path / "model.safetensors")
    content = bytearray(file.read_bytes())
    start = content.index(A.numpy().tobytes())
    content[start] ^= 1
    file.write_bytes(content)
    assert content_hash(file).root == "bbf74f1308a3d443ad4fcb95689a6e354cfc20002d3483589024cbd5fa33ae48"
    flat = saved(tmp_path / "flat.safetensors", {"a.weight": A.flatten(), "b.bias": B})
    assert content_hash(flat).root == "ec0175df9abfbd62d54a794c0202d4c6d99c3892693f177a29c77d65bd0beff2"
    half = saved(tmp_path / "half.safetensors", {"a.weight": A.bfloat16(), "b.bias": B})
    negative = saved(tmp_path / "zero.safetensors", {"a.weight": A * -0.0, "b.bias": B})
    positive = saved(tmp_path / "plus.safetensors", {"a.weight": A * 0.0, "b.bias": B})
    assert len({content_hash(file).root for file in (half, negative, positive)} | {ROOT}) == 4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bool, torch.int64, torch.float8_e4m3fn, torch.complex64])
def test_types_of_torch_are_known(dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = {"empty": torch.zeros(0, 3).to(dtype), "number": torch.tensor(1.0).to(dtype)}
    assert len(content_hash(saved(tmp_path / "model.safetensors", tensors)).tensors) == 2


def test_the_hash_of_a_real_family_does_not_depend_on_its_shards(tiny_lm: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_lm)
    for name, size in (("one", "1GB"), ("many", "20KB")):
        model.save_pretrained(tmp_path / name, max_shard_size=size)
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 1
    assert content_hash(tmp_path / "one") == content_hash(tmp_path / "many")
    recorded = model_entry(tmp_path / "one")
    assert list(compare_model(recorded, tmp_path / "many")) == []


def header_of(file: Path) -> tuple[dict[str, Any], bytes]:
    content = file.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def written(file: Path, header: dict[str, Any] | str, data: bytes) -> Path:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return file


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h, d: (h, d + b"hidden"), "its header tells of"),
        (lambda h, d: (h, d[:-1]), "its header tells of"),
        (lambda h, d: ({**h, "b.bias": {**h["b.bias"], "data_offsets": [8, 16]}}, d), "overlaps|unused"),
        (lambda h, d: ({**h, "b.bias": {**h["b.bias"], "shape": [3]}}, d), "takes 8 bytes, not 12"),
        (lambda h, d: ({**h, "b.bias": {"dtype": "F32"}}, d), "is damaged: 'b.bias'"),
        (lambda h, d: (json.dumps(h)[:-1] + f', "b.bias": {json.dumps(h["b.bias"])}}}', d), "a name is there twice"),
        (lambda h, d: ("[1]", d), "no JSON object"),
        (lambda h, d: ("{", d), "no safetensors file|is damaged"),
    ],
)
def test_damaged_files_are_named(change: Any, message: str, tmp_path: Path) -> None:
    file = written(tmp_path / "model.safetensors", *change(*header_of(saved(tmp_path / "sound.safetensors"))))
    with pytest.raises(ValueError, match=message):
        content_hash(file)


def test_a_header_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", 1 << 40) + b"{}")
    with pytest.raises(ValueError, match="no safetensors file"):
        content_hash(tmp_path / "a.safetensors")


def test_two_models_in_a_folder_and_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="has no weights"):
        content_hash(tmp_path)
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        content_hash(tmp_path / "none")
    saved(tmp_path / "model.safetensors")
    saved(tmp_path / "model-00001-of-00001.safetensors")
    with pytest.raises(ValueError, match=r"'a.weight' is both in model-00001-of-00001.safetensors and in model"):
        content_hash(tmp_path)


class Explosive:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("a pickle was loaded",))


def test_a_pickle_is_hashed_and_never_loaded(tmp_path: Path) -> None:
    torch.save({"a": Explosive()}, tmp_path / "model.ckpt")
    content = content_hash(tmp_path / "model.ckpt")
    assert (content.kind, content.tensors) == ("files", ())
    assert content == content_hash(tmp_path)
    torch.save({"a": Explosive()}, tmp_path / "more.ckpt")
    assert content != content_hash(tmp_path)


def test_differences_of_models_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    file = saved(folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    (folder / "README.md").write_text("a page")
    recorded = model_entry(folder)

    def found() -> list[tuple[str, str]]:
        return list(compare_model(recorded, folder))

    (folder / "README.md").write_text("another page")
    assert found() == []
    saved(file, note="added")
    assert found() == [("file changed", "model.safetensors: header only, all tensors are the same")]
    saved(file, {"a.weight": A, "b.bias": B + 1})
    assert found() == [("tensor changed", "b.bias: different numbers")]
    saved(file, {"a.weight": A.flatten(), "b.bias": B})
    assert found()[0] == ("tensor changed", "a.weight was F32 [2, 2], and is F32 [4]")
    saved(file, {"a.weight": A, "c": B + 1})
    assert found()[:2] == [("tensor missing", "b.bias"), ("tensor added", "c")]
    saved(file)
    (folder / "config.json").write_text("{ }")
    (folder / "modeling.py").write_text("")
    assert found() == [("file changed", "config.json"), ("file added", "modeling.py")]
    (folder / "config.json").unlink()
    assert found()[0] == ("file missing", "config.json")
    file.write_bytes(file.read_bytes()[:-1])
    assert found()[0][0] == "file damaged"


@pytest.mark.parametrize("recorded_with", [True, False], ids=["recorded with both names", "recorded with one"])
def test_a_tied_copy_is_said_to_be_one(recorded_with: bool, tmp_path: Path) -> None:
    one, both = {"embed": A, "b": B}, {"embed": A, "b": B, "lm_head": A.clone()}
    file = saved(tmp_path / "m" / "model.safetensors", both if recorded_with else one)
    recorded = model_entry(tmp_path / "m")
    saved(file, one if recorded_with else both)
    (difference,) = compare_model(recorded, tmp_path / "m")
    assert difference == (
        "equal up to a tied copy",
        "lm_head is in only one of the two, and embed holds the same numbers",
    )
    assert set(load_file(file)) == set(one if recorded_with else both)


def test_rows_are_hashed_under_a_secret_in_any_order() -> None:
    rows = [{"question": "Who?", "score": 0.5}, {"question": "Where?", "score": 1.0}, "a text"]
    one, other = bytes(range(32)), bytes(32)
    assert rows_root(rows, one) == rows_root(rows[::-1], one)
    assert rows_root(rows, one) != rows_root(rows, other)
    assert rows_root(rows, one) != rows_root([*rows, rows[0]], one)
    assert row_leaf({"b": 1, "a": 2}, one) == row_leaf({"a": 2, "b": 1}, one)
    odd = {"Größe": 1.5, "day": date(2026, 1, 31), "missing": float("nan"), "number": 2**60}
    assert row_leaf(odd, one) == row_leaf(dict(reversed(odd.items())), one)
    assert row_leaf(odd, one) != row_leaf(odd | {"day": date(2026, 1, 30)}, one)
    with pytest.raises(ValueError, match="must have 32 bytes"):
        rows_root(rows, b"short")
    with pytest.raises(ValueError, match="no rows"):
        rows_root([], one)
