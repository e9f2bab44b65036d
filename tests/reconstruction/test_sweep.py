from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from torch import Tensor

from lightning_unlearn import (
    ColumnSampling,
    LitReconstruction,
    MeasurementPGD,
    MultiCoilMRI,
    RobustnessSweep,
    SweepCondition,
    SweepResults,
)
from lightning_unlearn.core.lightning import LightningModule
from lightning_unlearn.functional import complex_psnr, magnitude_psnr, magnitude_ssim, nmse
from tests.helpers import trainer
from tests.reconstruction.scans import ZeroFilled, loader, scan
from tests.reconstruction.tiny import ista_net, reconstruction

GRID: dict[str, Any] = {"eps": [0.05], "noise": [0.1, 0.02], "rates": [2, 4], "steps": [1, 3]}
KINDS = ("attack", "noise", "acceleration", "steps")


@pytest.fixture(autouse=True)
def _elsewhere(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files go to a folder of the test, and only tests of figures draw them, which takes a second."""
    monkeypatch.chdir(tmp_path)
    if not any(word in request.node.name for word in ("figures", "images")):
        monkeypatch.setattr(SweepResults, "figures", lambda _: {})


def sweep(folder: Path | None = None, **settings: Any) -> RobustnessSweep:
    given = {**GRID, "attack": MeasurementPGD(steps=2), **settings}
    return RobustnessSweep(dirpath=None if folder is None else str(folder), **given)


def swept(module: Any, callback: RobustnessSweep, loaders: Any = None, **options: Any) -> SweepResults:
    trainer(callback, **options).test(module, loader(scan(5)) if loaders is None else loaders, verbose=False)
    return callback.results


@pytest.fixture(scope="module")
def smug(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, RobustnessSweep, Trainer, LitReconstruction]:
    folder, module = tmp_path_factory.mktemp("sweep"), reconstruction("smug")
    callback = sweep(folder)
    run = trainer(callback)
    run.test(module, loader(scan(5)), verbose=False)
    return folder, callback, run, module


def test_each_image_is_measured_once_under_each_condition(smug: Any) -> None:
    folder, callback, _, _ = smug
    with (folder / "robustness.csv").open() as file:
        rows = list(csv.DictReader(file))
    conditions = [("clean", 0.0), ("attack", 0.05), ("noise", 0.02), ("noise", 0.1)]
    conditions += [("acceleration", 2.0), ("acceleration", 4.0), ("steps", 1.0), ("steps", 3.0)]
    expected = [(kind, strength, i) for kind, strength in conditions for i in range(5)]
    assert [(row["kind"], float(row["strength"]), int(row["index"])) for row in rows] == expected
    assert SweepResults.read(folder / "robustness.csv").rows == callback.results.rows
    assert callback.results.notes == []


def test_numbers_are_those_of_the_metrics(smug: Any) -> None:
    _, callback, run, module = smug
    batch = scan(5)
    with torch.no_grad():
        image = module.eval().reconstruct(batch)
    for name, metric in (
        ("psnr", magnitude_psnr),
        ("complex_psnr", complex_psnr),
        ("ssim", magnitude_ssim),
        ("nmse", nmse),
    ):
        values = callback.results.values(SweepCondition("clean", 0), name)
        assert list(values.values()) == pytest.approx(metric(image, batch["target"]).tolist(), rel=1e-4)
        mean = sum(values.values()) / 5
        summary = callback.results.summary(SweepCondition("clean", 0), name)
        error = torch.tensor([*values.values()]).std().item() / 5**0.5
        assert summary == pytest.approx((mean, error, 5), rel=1e-4)
        assert run.callback_metrics[f"robustness/clean_{name}"].item() == pytest.approx(mean, rel=1e-5)
    assert run.callback_metrics["robustness/attack_0.05_psnr"].isfinite()


def test_conditions_do_what_they_say(smug: Any) -> None:
    results = smug[1].results

    def psnr(kind: str, strength: float) -> Tensor:
        return torch.tensor([*results.values(SweepCondition(kind, strength), "complex_psnr").values()])

    clean = psnr("clean", 0)
    assert (psnr("attack", 0.05) <= clean + 1e-4).all()
    assert psnr("attack", 0.05).mean() < clean.mean()
    assert psnr("noise", 0.1).mean() < psnr("noise", 0.02).mean()
    assert psnr("acceleration", 4).mean() < psnr("acceleration", 2).mean()
    torch.testing.assert_close(psnr("steps", 3), clean)  # the network's own number
    assert not torch.allclose(psnr("steps", 1), clean)


def test_other_masks_measure_all_of_kspace_or_else_the_reference() -> None:
    batch = scan(4)
    batch["full_kspace"] = 0.5 * batch["full_kspace"]
    callback = sweep(eps=[], noise=[], steps=[], rates=[4], sampling=ColumnSampling(seed=7))
    own = swept(ZeroFilled(), callback, loader(batch)).values(SweepCondition("acceleration", 4), "complex_psnr")
    del batch["full_kspace"]
    other = swept(ZeroFilled(), callback, loader(batch)).values(SweepCondition("acceleration", 4), "complex_psnr")
    mask = torch.stack([ColumnSampling(4, seed=7)(16, i) for i in range(4)])[:, None, None]
    operator = MultiCoilMRI(batch["maps"], mask)
    image = operator.normal(batch["target"])
    assert list(other.values()) == pytest.approx(complex_psnr(image, batch["target"]).tolist(), rel=1e-4)
    assert list(own.values()) == pytest.approx(complex_psnr(image / 2, batch["target"]).tolist(), rel=1e-4)


def test_a_second_sweep_finds_the_same() -> None:
    first, again = (swept(reconstruction("smug"), sweep()).rows for _ in range(2))
    assert first == again


def test_what_a_module_cannot_do_is_left_out_with_a_note() -> None:
    with pytest.warns(UserWarning, match="leaves out steps 1, steps 3: ZeroFilled.reconstruct takes no steps="):
        results = swept(ZeroFilled(), sweep())
    assert {row.kind for row in results.rows} == {"clean", "attack", "noise", "acceleration"}
    assert len(results.notes) == 1
    with pytest.warns(UserWarning, match="leaves out attack 0.05: ZeroFilled.reconstruct takes no mode="):
        results = swept(ZeroFilled(), sweep(steps=[], attack=MeasurementPGD(steps=2, surrogate="adaptive")))
    assert "attack" not in {row.kind for row in results.rows}


def test_steps_that_a_network_does_not_have_are_left_out() -> None:
    module = LitReconstruction(ista_net(steps=3), "vanilla")
    with pytest.warns(UserWarning, match="leaves out steps 8: .*3 phases"):
        results = swept(module, sweep(eps=[], noise=[], rates=[], steps=[2, 3, 8]))
    assert [c.strength for c in results.conditions if c.kind == "steps"] == [2, 3]
    assert len(results.notes) == 1


def test_several_sets_are_told_apart() -> None:
    callback = sweep(noise=[], rates=[], steps=[])
    with pytest.warns(UserWarning, match="leaves out"):
        results = swept(ZeroFilled(), sweep(noise=[], rates=[]), [loader(scan(3)), loader(scan(2, first=0))])
    assert sorted({(row.set, row.index) for row in results.rows}) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    results = swept(ZeroFilled(), callback, [loader(scan(3)), loader(scan(2))])
    assert callback.results.notes == []


def test_it_runs_in_validate_and_not_in_the_validations_of_a_training(tmp_path: Path) -> None:
    callback, module = sweep(tmp_path, eps=[]), reconstruction("vanilla")
    trainer(callback).fit(module, loader(scan(2)), loader(scan(2)))
    assert not callback.results.rows
    assert not list(tmp_path.iterdir())
    trainer(callback).validate(module, loader(scan(2)), verbose=False)
    assert {row.kind for row in callback.results.rows} == {"clean", "noise", "acceleration", "steps"}
    assert (tmp_path / "robustness.csv").is_file()


def test_an_interrupted_sweep_leaves_the_files_of_the_last_one(tmp_path: Path) -> None:
    swept(reconstruction("vanilla"), sweep(tmp_path, eps=[]))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    class Interrupted(LitReconstruction):
        def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            if batch_idx == 1:
                raise RuntimeError("killed")

    module = Interrupted(reconstruction("vanilla").network, "vanilla")
    with pytest.raises(RuntimeError, match="killed"):
        swept(module, sweep(tmp_path, eps=[]))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_module_is_as_it_was() -> None:
    module = reconstruction("smug")
    before = {name: value.clone() for name, value in module.state_dict().items()}
    swept(module, sweep())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in module.parameters())


def test_figures_are_drawn(smug: Any) -> None:
    pytest.importorskip("matplotlib")
    folder, callback, _, _ = smug
    assert {path.name for path in folder.iterdir()} == {"robustness.csv", "robustness.svg", "reconstructions.png"}
    assert (folder / "reconstructions.png").read_bytes()[:4] == b"\x89PNG"
    figure = callback.results.figures()["robustness"]
    labels = [axes.get_xlabel() for axes in figure.axes]
    assert len(labels) == 12
    assert labels[:4] == ["radius of the attack", "standard deviation of the noise", "acceleration", "unrolled steps"]
    (line,) = figure.axes[1].lines
    summary = [
        callback.results.summary(SweepCondition(*c), "psnr").mean
        for c in (("clean", 0), ("noise", 0.02), ("noise", 0.1))
    ]
    assert list(line.get_xdata()) == [0, 0.02, 0.1]
    assert list(line.get_ydata()) == pytest.approx(summary)
    shown = [image.condition for image in callback.results.shown]
    assert shown == [("clean", 0), ("attack", 0.05), ("noise", 0.1), ("acceleration", 4), ("steps", 3)]
    image = callback.results.shown[0]
    torch.testing.assert_close(image.target, scan(5)["target"][0].abs())
    assert ((image.image - image.target).abs() <= image.error + 1e-6).all()


def test_a_csv_logger_has_a_table_and_tensorboard_figures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    loggers = [CSVLogger(tmp_path / "csv"), TensorBoardLogger(tmp_path / "board")]
    results = swept(reconstruction("vanilla"), sweep(eps=[], rates=[]), logger=loggers)
    (table,) = (tmp_path / "csv").rglob("robustness-table.csv")
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["condition"] for row in rows] == ["clean", "noise", "noise", "steps", "steps"]
    assert rows[0]["psnr"].startswith(f"{results.summary(SweepCondition('clean', 0), 'psnr').mean:.5g} ± ")
    board = EventAccumulator(str(next((tmp_path / "board").rglob("events*")).parent))
    board.Reload()
    assert {"robustness/robustness", "robustness/reconstructions"} <= set(board.Tags()["images"])
    assert "robustness/clean_psnr" in board.Tags()["scalars"]
    assert len(list(tmp_path.rglob("robustness/robustness.csv"))) == 1


def test_weights_and_biases_has_tables_and_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(offline=True, save_dir=tmp_path, project="test")
    swept(reconstruction("vanilla"), sweep(tmp_path / "files", eps=[], rates=[], steps=[]), logger=logger)
    wandb.finish()
    media = tmp_path.glob("wandb/offline-run-*/files/media/*/robustness/*")
    assert {path.name.split("_")[0] for path in media} == {"table", "robustness", "reconstructions"}


def test_other_batches_and_modules_are_refused() -> None:
    class Plain(LightningModule):
        def test_step(self, batch: Any, batch_idx: int) -> None:
            pass

    with pytest.raises(TypeError, match="Plain has no method reconstruct"):
        swept(Plain(), sweep())
    batch = scan(2)
    del batch["target"]
    module = ZeroFilled()
    with pytest.raises(TypeError, match="dicts with kspace, target and index, but this one has"):
        swept(module, sweep(steps=[]), loader(batch))


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"eps": [0.0]}, "eps"),
        ({"noise": [-1.0]}, "noise"),
        ({"rates": [0.5]}, "rates"),
        ({"steps": [0]}, "steps"),
        ({"images": -1}, "images"),
        ({"attack": MeasurementPGD(keep="last")}, "keep='worst'"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        RobustnessSweep(**settings)
