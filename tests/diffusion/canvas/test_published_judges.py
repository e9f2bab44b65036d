"""The published checkpoints, by the weight names of timm, against a forward pass written out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_unlearn.diffusion.canvas.judges import CanvasJudges
from lightning_unlearn.diffusion.canvas.names import UNLEARN_CANVAS
from lightning_unlearn.diffusion.canvas.published_judges import published_judges

WIDTH, HEADS, BLOCKS, PATCH, SIDE = 128, 2, 3, 8, 32
HEADS_51_20 = {"style": 51, "object": 20}


def checkpoint(classes: int, seed: int) -> dict[str, Tensor]:
    """Random weights of a small ``vit_..._patch8_32``."""
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, WIDTH),
        "pos_embed": (1, 1 + (SIDE // PATCH) ** 2, WIDTH),
        "patch_embed.proj.weight": (WIDTH, 3, PATCH, PATCH),
        "patch_embed.proj.bias": (WIDTH,),
    }
    for b in range(BLOCKS):
        for layer, out, inputs in (("attn.qkv", 3, 1), ("attn.proj", 1, 1), ("mlp.fc1", 4, 1), ("mlp.fc2", 1, 4)):
            shapes[f"blocks.{b}.{layer}.weight"] = (out * WIDTH, inputs * WIDTH)
            shapes[f"blocks.{b}.{layer}.bias"] = (out * WIDTH,)
        for norm in ("norm1", "norm2"):
            shapes |= {f"blocks.{b}.{norm}.{leaf}": (WIDTH,) for leaf in ("weight", "bias")}
    shapes |= {"norm.weight": (WIDTH,), "norm.bias": (WIDTH,)}
    shapes |= {"head.weight": (classes, WIDTH), "head.bias": (classes,)}
    generator = torch.Generator().manual_seed(seed)
    scales = {name: 0.05 if name.endswith("bias") else 1.0 if "norm" in name else 0.1 for name in shapes}
    return {name: scales[name] * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def logits(w: dict[str, Tensor], images: Tensor) -> Tensor:
    """A vision transformer with pre-norm blocks, read out at its class token."""

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (WIDTH,), w[f"{name}.weight"], w[f"{name}.bias"], 1e-6)

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    patches = F.conv2d((images - 0.5) / 0.5, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], PATCH)
    tokens = patches.flatten(2).transpose(1, 2)
    x = torch.cat([w["cls_token"].expand(len(images), -1, -1), tokens], 1) + w["pos_embed"]
    for b in range(BLOCKS):
        q, k, v = (
            part.unflatten(2, (HEADS, -1)).transpose(1, 2)
            for part in linear(norm(x, f"blocks.{b}.norm1"), f"blocks.{b}.attn.qkv").chunk(3, 2)
        )
        weights = (q @ k.transpose(2, 3) / (WIDTH / HEADS) ** 0.5).softmax(3)
        x = x + linear((weights @ v).transpose(1, 2).flatten(2), f"blocks.{b}.attn.proj")
        x = x + linear(F.gelu(linear(norm(x, f"blocks.{b}.norm2"), f"blocks.{b}.mlp.fc1")), f"blocks.{b}.mlp.fc2")
    return linear(norm(x, "norm")[:, 0], "head")


@pytest.fixture
def weights() -> dict[str, dict[str, Tensor]]:
    return {kind: checkpoint(classes, seed) for seed, (kind, classes) in enumerate(HEADS_51_20.items())}


def saved(weights: dict[str, dict[str, Tensor]], folder: Path) -> tuple[Path, Path]:
    files = folder / "style50.pth", folder / "style50_cls.pth"
    torch.save({"model_state_dict": weights["style"], "epoch": 3}, files[0])
    torch.save({f"module.{name}": value for name, value in weights["object"].items()}, files[1])
    return files


def test_the_judges_say_what_the_transformer_written_out_says(
    weights: dict[str, dict[str, Tensor]], tmp_path: Path
) -> None:
    images = torch.rand(16, 3, 2, 2, generator=torch.Generator().manual_seed(9))
    images = images.repeat_interleave(SIDE // 2, 2).repeat_interleave(SIDE // 2, 3)
    judges = published_judges(*saved(weights, tmp_path))
    assert isinstance(judges, CanvasJudges)
    assert judges.size == SIDE
    for kind, judge in (("style", judges.style), ("object", judges.object)):
        expected = logits(weights[kind], images)
        labels, scores = judge(images)
        torch.testing.assert_close(scores, expected.softmax(1), atol=1e-5, rtol=1e-4)
        assert torch.equal(labels, expected.argmax(1))
        assert expected.std(0).mean() > 0.1  # it does look at the images
    alphabetical = sorted(UNLEARN_CANVAS.all_styles)
    named = [alphabetical[label] for label in logits(weights["style"], images).argmax(1)]
    assert [UNLEARN_CANVAS.all_styles[position] for position in judges(images)[0]] == named
    assert judges.features(images).shape == (16, WIDTH)


def test_swapped_and_foreign_checkpoints_are_refused(weights: dict[str, dict[str, Tensor]], tmp_path: Path) -> None:
    style, object = saved(weights, tmp_path)
    with pytest.raises(ValueError, match=r"head of 20 classes, but there are 51 styles.*style50_cls\.pth that of"):
        published_judges(object, style)
    torch.save({"conv1.weight": torch.zeros(3)}, tmp_path / "resnet.pth")
    with pytest.raises(ValueError, match="no weight 'pos_embed'"):
        published_judges(tmp_path / "resnet.pth", object)
    torch.save({**weights["style"], "blocks.0.ls1.gamma": torch.ones(WIDTH)}, tmp_path / "scaled.pth")
    with pytest.raises(ValueError, match=r"has the weight 'blocks\.0\.ls1\.gamma'"):
        published_judges(tmp_path / "scaled.pth", object)
    short = {name: value for name, value in weights["style"].items() if name != "blocks.1.norm2.bias"}
    torch.save(short, tmp_path / "short.pth")
    with pytest.raises(ValueError, match=r"differ at .*layer.*1.*layernorm_after\.bias"):
        published_judges(tmp_path / "short.pth", object)
    torch.save({"model_state_dict": weights["style"], "loss": pytest.approx(1)}, tmp_path / "code.pth")
    with pytest.raises(ValueError, match="code of a file is not run"):
        published_judges(tmp_path / "code.pth", object)
