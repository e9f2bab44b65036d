"""WhosHarryPotter: generic labels from a reinforced model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from lightning_unlearn import LanguageDataModule, WhosHarryPotter
from lightning_unlearn.functional.language.whos_harry_potter import whp_labels
from tests.helpers import Recorder, logged, same, save_resumable, trainer
from tests.tiny_runs import LONG, LORA, Rows, SgdLM, lm
from tests.user_module import loaders, seeded


def data(forget: Rows, retain: Rows | None, **options: Any) -> LanguageDataModule:
    return LanguageDataModule(forget, retain, **({"batch_size": 2} | options))


@pytest.fixture
def reinforced(tiny_lm: Path, tmp_path: Path) -> Path:
    """A model of the same shape with other weights, as a folder and as a checkpoint."""
    module = lm(tiny_lm)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    module.save_pretrained(tmp_path / "reinforced")
    torch.save({"state_dict": module.state_dict()}, tmp_path / "reinforced.ckpt")
    return tmp_path / "reinforced"


def generic_labels(tiny_lm: Path, reinforced: Path, batch: Any, alpha: float) -> Tensor:
    logits = []
    for folder in (tiny_lm, reinforced):
        with torch.no_grad():
            model = lm(folder).eval()
            logits.append(model(batch["input_ids"], batch["attention_mask"]).logits[:, :-1])
    generic = whp_labels(logits[0].flatten(0, 1), logits[1].flatten(0, 1), alpha=alpha).view(len(logits[0]), -1)
    return torch.where(batch["labels"][:, 1:] == -100, -100, generic)


@pytest.mark.parametrize("lora", [None, LORA])
@pytest.mark.parametrize("suffix", ["", ".ckpt"])
def test_forget_rows_get_generic_labels(
    suffix: str, lora: Any, tiny_lm: Path, reinforced: Path, forget_rows: Rows, retain_rows: Rows
) -> None:
    forget_rows[0]["answer"] += LONG
    module = lm(tiny_lm, lora=lora)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    method = WhosHarryPotter(f"{reinforced}{suffix}", alpha=3.0)

    def compare(run: L.Trainer, module: L.LightningModule, batch: Any, *_: Any) -> int:
        rows = batch["forget"]
        new = method.relabelled(rows)["labels"]
        assert torch.equal(new[:, 1:], generic_labels(tiny_lm, reinforced, rows, alpha=3.0))
        assert torch.equal(new[:, 1:] == -100, rows["labels"][:, 1:] == -100)
        return int((new[:, 1:] != rows["labels"][:, 1:]).sum())

    untouched = Recorder(on_train_start=lambda _, module: same(module.state_dict(), before))
    changed, forget = Recorder(on_train_batch_start=compare), logged("unlearn/forget")
    run = trainer(method, untouched, changed, forget, max_epochs=6, limit_val_batches=0)
    run.fit(module, data(forget_rows, retain_rows))
    assert untouched.values == [True]  # the reinforced weights are out again
    assert sum(changed.values) > 0
    if lora is None:  # fresh adapters take longer
        assert sum(forget.values[-2:]) < sum(forget.values[:2])  # the new labels are learned
    assert "unlearn/forget_nll" not in run.callback_metrics


def test_the_labels_are_in_the_checkpoint(
    tiny_lm: Path, reinforced: Path, forget_rows: Rows, retain_rows: Rows, tmp_path: Path
) -> None:
    def fit(epochs: int, path: str = str(reinforced), **options: Any) -> tuple[SgdLM, L.Trainer]:
        module = lm(tiny_lm)
        run = trainer(WhosHarryPotter(path), max_epochs=epochs, limit_val_batches=0)
        run.fit(module, data(forget_rows, retain_rows), **options)
        return module, run

    whole, _ = fit(4)
    _, half = fit(2)
    save_resumable(half, tmp_path / "half.ckpt")
    resumed, _ = fit(4, path="no longer here", ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert same(resumed, whole)


def test_reinforced_models_that_do_not_fit(
    tiny_lm: Path, reinforced: Path, forget_rows: Rows, retain_rows: Rows, tmp_path: Path
) -> None:
    state = torch.load(f"{reinforced}.ckpt")["state_dict"]
    norm = "model.model.norm.weight"
    torch.save({"state_dict": {k: v for k, v in state.items() if k != norm}}, tmp_path / "short.ckpt")
    torch.save({"state_dict": state | {norm: torch.ones(5)}}, tmp_path / "small.ckpt")
    lora = lm(tiny_lm, lora=LORA)
    torch.save({"state_dict": lora.state_dict()}, tmp_path / "lora.ckpt")
    for name, error, message in [
        ("short.ckpt", ValueError, "for 'model.model.norm.weight' of shape .* it has 0 tensors"),
        ("small.ckpt", ValueError, r"it has shape \(5,\)"),
        ("lora.ckpt", ValueError, "holds adapters"),
        ("nowhere", FileNotFoundError, "neither a Lightning checkpoint nor a folder"),
    ]:
        module = lm(tiny_lm)
        run = trainer(WhosHarryPotter(str(tmp_path / name)), limit_val_batches=0)
        with pytest.raises(error, match=message):
            run.fit(module, data(forget_rows, retain_rows))
        assert same(module, lm(tiny_lm))


def test_labels_are_kept_by_index(reinforced: Path) -> None:
    with pytest.raises(MisconfigurationException, match=r"stable integer 'index'.* but got list"):
        trainer(WhosHarryPotter(str(reinforced))).fit(seeded(), loaders())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WhosHarryPotter("here", alpha=-5.0), "alpha must be greater than 0, but got -5.0"),
        (lambda: WhosHarryPotter("here", forget_weight=0.0), "forget_weight must be greater than 0"),
    ],
)
def test_the_constructor_names_what_is_wrong(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
