"""Rewinding to the epoch whose error on forget rows is that on held-out rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from lightning_unlearn import ForgetRetainDataModule, GradientAscent, Rewind, classifier_nll, training_step_loss
from tests.user_module import DictNet, indexed, trainer, weights


def data(heldout: int = 40) -> ForgetRetainDataModule:
    return ForgetRetainDataModule(
        indexed(24, seed=1), indexed(8, seed=2), heldout={"unseen": indexed(heldout, seed=3)}, batch_size=4
    )


def run(
    folder: Path, *callbacks: Any, epochs: int = 5, ckpt_path: Path | None = None, **options: Any
) -> tuple[DictNet, Rewind]:
    torch.manual_seed(0)
    module, rewind = DictNet(lr=0.003), Rewind("unseen", dirpath=str(folder), **options)
    method = GradientAscent(score=classifier_nll)
    fit = trainer(method, rewind, *callbacks, max_epochs=epochs, limit_val_batches=0)
    fit.fit(module, data(), ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)
    return module, rewind


def saved(folder: Path, epoch: int) -> DictNet:
    return DictNet.load_from_checkpoint(folder / f"epoch={epoch}.ckpt").eval()


def errors(module: DictNet, rows: list[dict[str, Any]]) -> tuple[Tensor, Tensor]:
    x, y = torch.stack([row["input"] for row in rows]), torch.tensor([row["labels"] for row in rows])
    with torch.no_grad():
        return (module(x).argmax(1) != y).double(), y


@pytest.mark.parametrize("match", [True, False])
def test_the_module_ends_as_the_epoch_that_errs_as_on_unseen_rows(match: bool, tmp_path: Path) -> None:
    module, rewind = run(tmp_path, match_classes=match)
    forget, heldout = indexed(24, seed=1), indexed(40, seed=3)
    measured = {epoch: errors(saved(tmp_path, epoch), forget)[0].mean().item() for epoch in range(5)}
    assert rewind.errors == pytest.approx(measured)
    assert len(set(measured.values())) > 2

    wrong, labels = errors(saved(tmp_path, 4), heldout)
    like = torch.tensor([row["labels"] for row in forget])
    by_class = sum(wrong[labels == c].mean().item() * (like == c).double().mean().item() for c in range(3))
    reference = by_class if match else wrong.mean().item()
    assert rewind.reference == pytest.approx(reference)
    assert by_class != pytest.approx(wrong.mean().item(), abs=1e-3)

    gap = {epoch: abs(error - reference) for epoch, error in measured.items()}
    best = max(epoch for epoch in gap if gap[epoch] == min(gap.values()))
    assert rewind.chosen == best
    assert torch.equal(weights(module), weights(saved(tmp_path, best)))
    assert not torch.equal(weights(module), weights(saved(tmp_path, 4)))


def test_a_resumed_run_chooses_among_all_epochs(tmp_path: Path) -> None:
    whole, first = run(tmp_path / "whole")
    assert first.chosen is not None
    torch.manual_seed(0)
    half, rewind = DictNet(lr=0.003), Rewind("unseen", dirpath=str(tmp_path / "parts"))
    begun = trainer(GradientAscent(score=classifier_nll), rewind, max_epochs=5, limit_val_batches=0)
    stop_after(begun, 3, tmp_path / "half.ckpt")
    with pytest.raises(InterruptedError):
        begun.fit(half, data())
    resumed, second = run(tmp_path / "parts", ckpt_path=tmp_path / "half.ckpt")
    assert second.errors == first.errors
    assert second.chosen == first.chosen
    assert torch.equal(weights(resumed), weights(whole))


def test_epochs_that_are_gone_stop_a_resumed_run(tmp_path: Path) -> None:
    torch.manual_seed(0)
    begun = trainer(
        GradientAscent(score=classifier_nll),
        Rewind("unseen", dirpath=str(tmp_path / "parts")),
        max_epochs=5,
        limit_val_batches=0,
    )
    stop_after(begun, 3, tmp_path / "half.ckpt")
    with pytest.raises(InterruptedError):
        begun.fit(DictNet(), data())
    (tmp_path / "parts" / "epoch=1.ckpt").unlink()
    with pytest.raises(MisconfigurationException, match=r"epochs \[1\] are not in"):
        run(tmp_path / "parts", ckpt_path=tmp_path / "half.ckpt")


def test_a_loader_serves_as_heldout_rows(tmp_path: Path) -> None:
    named, first = run(tmp_path / "a")
    rows = data().val_dataloader()["unseen"]
    torch.manual_seed(0)
    module, rewind = DictNet(lr=0.003), Rewind(rows, dirpath=str(tmp_path / "b"))
    trainer(GradientAscent(score=classifier_nll), rewind, max_epochs=5, limit_val_batches=0).fit(module, data())
    assert (rewind.errors, rewind.chosen) == (first.errors, first.chosen)
    assert torch.equal(weights(module), weights(named))


def test_a_set_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    module = DictNet()
    before = weights(module)
    with pytest.raises(MisconfigurationException, match=r"'nowhere'\) is the name of a set"):
        trainer(GradientAscent(score=classifier_nll), Rewind("nowhere", dirpath=str(tmp_path))).fit(module, data())
    assert torch.equal(weights(module), before)


def test_a_class_without_unseen_rows_is_an_error_before_a_weight_moves(tmp_path: Path) -> None:
    module = DictNet()
    before = weights(module)
    rows = [row for row in indexed(40, seed=3) if row["labels"] != 1]
    sets = ForgetRetainDataModule(indexed(24, seed=1), indexed(8, seed=2), heldout={"unseen": rows}, batch_size=4)
    with pytest.raises(ValueError, match=r"classes \[1\] of the forget rows have no held-out row"):
        trainer(GradientAscent(score=classifier_nll), Rewind("unseen", dirpath=str(tmp_path))).fit(module, sets)
    assert torch.equal(weights(module), before)


def test_a_score_without_predictions_is_an_error() -> None:
    with pytest.raises(ValueError, match="only gives likelihoods"):
        Rewind(score=training_step_loss)


def stop_after(fit: Any, epochs: int, checkpoint: Path) -> None:
    """Interrupt a run at the first batch after some epochs, with a checkpoint of their end."""
    from lightning.pytorch import Callback

    class Stop(Callback):
        def on_train_epoch_start(self, trainer: Any, *_: Any) -> None:
            if trainer.current_epoch == epochs:
                raise InterruptedError

    class Save(Callback):
        def on_train_epoch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.current_epoch == epochs - 1:
                trainer.save_checkpoint(checkpoint)

    fit.callbacks += [Save(), Stop()]
