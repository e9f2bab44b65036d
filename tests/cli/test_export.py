"""``lightning-unlearn export``: a checkpoint says which module it is of."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from lightning_unlearn import LitCausalLM, LitClassifier
from lightning_unlearn.cli.export import export
from tests.user_module import LitNet, pairs, trainer


class Derived(LitCausalLM):
    """A user's own, whose checkpoints name it."""


def saved(module: Any, path: Path, loader: DataLoader | None = None) -> str:
    run = trainer(limit_train_batches=1 if loader is not None else 0, barebones=False)
    run.strategy.connect(module)
    if loader is not None:
        run.fit(module, loader)
    run.save_checkpoint(path)
    return str(path)


def test_a_checkpoint_of_another_class_is_named(tmp_path: Path) -> None:
    classifier = LitClassifier("torch.nn.Linear", {"in_features": 8, "out_features": 3})
    path = saved(classifier, tmp_path / "classifier.ckpt", pairs(4, 0))
    with pytest.raises(
        ValueError, match=re.escape("is of lightning_unlearn.classification.lit_classifier.LitClassifier")
    ):
        export(path, str(tmp_path / "out"))
    path = saved(LitNet(), tmp_path / "net.ckpt", pairs(4, 0))
    with pytest.raises(ValueError, match=r"does not name, with weights such as 'net\.0\.weight'"):
        export(path, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_the_class_of_a_users_checkpoint_is_given(tiny_lm: Path, tmp_path: Path) -> None:
    module = Derived(str(tiny_lm))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1.0)
    path = saved(module, tmp_path / "derived.ckpt")
    with pytest.raises(ValueError, match=re.escape("is of tests.cli.test_export.Derived")):
        export(path, str(tmp_path / "out"))
    with pytest.raises(ValueError, match="module must be LitCausalLM, LitTextToImage or derived"):
        export(path, str(tmp_path / "out"), module="tests.user_module.LitNet")
    export(path, str(tmp_path / "out"), module="tests.cli.test_export.Derived")
    exported = LitCausalLM(str(tmp_path / "out"))
    for one, two in zip(exported.parameters(), module.parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("whole", [0, 700])
def test_a_part_of_a_checkpoint_is_said_to_be_one(whole: int, tmp_path: Path) -> None:
    torch.save({"state_dict": {"weight": torch.ones(8)}}, tmp_path / "a.ckpt")
    (tmp_path / "a.ckpt").write_bytes((tmp_path / "a.ckpt").read_bytes()[:whole])
    with pytest.raises(ValueError, match="is not a checkpoint, or a part of one"):
        export(str(tmp_path / "a.ckpt"), output_dir=str(tmp_path / "out"))
