"""A request to erase a concept, from the pipeline to the record, and what it says where there is nothing to erase."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lightning_unlearn.audit.keys import load_public_key
from lightning_unlearn.audit.verify import verify_record
from lightning_unlearn.cli.forget import fit, forget
from lightning_unlearn.diffusion.data.miniature import miniature_pipeline
from lightning_unlearn.forget.diffusion import ConceptRequest
from lightning_unlearn.forget.erasure_images import Drawing
from lightning_unlearn.forget.pipeline import RequestResult, run_request
from lightning_unlearn.forget.request import RequestOptions
from lightning_unlearn.report.findings import doctor

QUICK = Drawing(images=2, steps=2, guidance=2.0, batch_size=8)
KEEP = ["a photo of a dog", "a photo of a cat"]


@pytest.fixture(scope="module")
def erased(tiny_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, RequestResult]]:
    """The output folder of a request with two steps of ESD, and its result."""
    folder = tmp_path_factory.mktemp("erased")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(folder / "configuration"))
        options = RequestOptions(str(folder / "out"), max_steps=2, accelerator="cpu")
        result = run_request(ConceptRequest(str(tiny_sd), "van gogh", options, keep=KEEP, drawing=QUICK), fit)
        assert isinstance(result, RequestResult)
        yield folder / "out", result


def weights(folder: Path) -> dict[str, torch.Tensor]:
    files = {file.parent.name: load_file(file) for file in folder.glob("*/*.safetensors")}
    # Released models have the prefix, and transformers 5 writes none.
    return {f"{part}/{n.removeprefix('text_model.')}": value for part, of in files.items() for n, value in of.items()}


def test_only_the_weights_that_train_have_moved(erased: tuple[Path, RequestResult], tiny_sd: Path) -> None:
    from diffusers import StableDiffusionPipeline

    StableDiffusionPipeline.from_pretrained(erased[0] / "model", safety_checker=None)
    before, after = weights(tiny_sd), weights(erased[0] / "model")
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all(name.startswith("unet/") and ".attn2." in name for name in moved)


def test_the_run_repeats_bit_for_bit(erased: tuple[Path, RequestResult], tmp_path: Path) -> None:
    fit(["fit", "--config", str(erased[0] / "run.yaml"), f"--trainer.default_root_dir={tmp_path}"])
    state = torch.load(tmp_path / "unlearned.ckpt", weights_only=True)["state_dict"]
    after = weights(erased[0] / "model")
    again = {name.replace(".", "/", 1): value for name, value in state.items() if name.startswith("unet.")}
    assert len(again) > 100
    assert all(torch.equal(value, after[name]) for name, value in again.items())


def test_nothing_that_is_handed_out_names_the_concept(erased: tuple[Path, RequestResult]) -> None:
    out = erased[0]
    assert not [finding for finding in doctor(out) if finding.serious]
    named = [path.name for path in out.rglob("*") if path.is_file() and b"van gogh" in path.read_bytes().lower()]
    assert named == ["run.yaml"]
    assert not (out / "work").exists()


def test_the_record_holds_until_a_byte_of_the_model_changes(erased: tuple[Path, RequestResult], tmp_path: Path) -> None:
    out, result = erased
    key = load_public_key(out / "public_key.pem")

    def faults() -> list[Any]:
        return verify_record(out / "record.jsonl", key, {"after": out / "model"}, out / "report.json", result.head)

    assert faults() == []
    file = out / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        assert any(fault.level == "tampered" for fault in faults())
    finally:
        file.write_bytes(whole)


def test_without_a_judge_there_is_no_verdict(erased: tuple[Path, RequestResult]) -> None:
    report = erased[1].report
    assert report.headline is not None
    assert report.headline.word in ("no verdict", "nothing to erase")  # it was never trained
    change = report.measurement("outcome", "pixel change", "to keep").value
    assert change is not None
    assert 0 < change < 0.5
    assert json.loads((erased[0] / "record.jsonl").read_text().splitlines()[-1])["record"]["body"]["verdict"]


def test_a_concept_that_is_not_drawn_is_said_before_and_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "configuration"))
    words = [f"--pipeline={miniature_pipeline()}", "--concept=van gogh", "--keep=[disk, box]", "--method=uce"]
    words += ["--drawing.images=1", "--drawing.steps=1", f"--output_dir={tmp_path / 'out'}", "--accelerator=cpu"]
    with pytest.warns(UserWarning, match="1 of 1 prompts to forget hardly change what the model draws"):
        result = forget(words)
    assert result is not None
    assert result.report.headline is not None
    assert result.report.headline.word == "nothing to erase"
    assert "NOTHING TO ERASE." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"concept": ["ember", " "]}, "has no word or a blank one"),
        ({"concept": "a ${b}"}, "has a meaning in run.yaml"),
        ({"method": "mace"}, "learns from images"),
        ({"method": "esdd"}, "method must be 'esd'"),
        ({"keep": ["a van gogh painting"], "concept": "Van Gogh"}, "'Van Gogh' in it, which is to be forgotten"),
        ({"keep": ["disk"], "judge": [], "attack": True}, "there is none: give --judge"),
        ({"judge": "miniature-style", "judge_class": "negatif"}, "nearest names are .'negative'"),
        ({"method": "uce", "options": RequestOptions(max_steps=3)}, "an edit without steps"),
    ],
)
def test_what_would_fail_later_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message) if "." not in message else message):
        ConceptRequest(**{"pipeline": "miniature", "concept": "negative", **wrong}).check()


def test_a_pipeline_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        ConceptRequest(str(tmp_path / "none"), "art").check()


def test_judges_want_the_size_of_the_images(tiny_sd: Path) -> None:
    with pytest.raises(ValueError, match=r"wants images of shape \(B, 3, 32, 32\)"):
        ConceptRequest(str(tiny_sd), "negative", judge="miniature-style", keep=KEEP).check()


def test_a_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    words = ["--pipeline=miniature", "--concept=inverted", "--dry_run=true", f"--output_dir={out}", "--key=none"]
    assert forget(words) is None
    printed = capsys.readouterr().out
    assert "'negative', 'inverted', 'xray', by 18 prompts" in printed
    assert "150 steps are done" in printed
    effect = re.search(r"known so far: .*'negative' (\d\.\d\d)", printed)
    assert effect is not None
    assert float(effect[1]) > 0.5
    assert "nothing to erase" not in printed
    assert forget([*words, "--concept=van gogh", "--keep=[disk, box]"]) is None
    assert "There may be nothing to erase. Check the spelling" in capsys.readouterr().out
    assert not out.exists()
