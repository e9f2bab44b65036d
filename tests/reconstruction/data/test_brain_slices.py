from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
import torch

pytest.importorskip("nibabel")
pytest.importorskip("nilearn")

from lightning_unlearn import MNI_NOTICE, BrainBands, BrainSlices, ColumnSampling, MultiCoilMRI, brain_template
from lightning_unlearn.functional import centred_fft2, magnitude_ssim


def data(**settings: Any) -> BrainSlices:
    return BrainSlices(**{"voxel": 3, "coils": 3, "train_rows": 12, "batch_size": 4, **settings})


def batches(loader: Any) -> list[dict[str, torch.Tensor]]:
    return list(loader)


def test_the_template_holds_the_whole_brain_at_each_resolution() -> None:
    sums = {}
    for voxel, size in ((2, 96), (3, 64)):
        template = brain_template(voxel, size)
        assert template.t1.shape == template.fluid.shape == (190 - voxel, size, size)
        assert 0.9 < template.t1.max() <= 1
        border = torch.cat([template.t1[:, :1].flatten(), template.t1[..., -1:].flatten()])
        assert border.max() < 0.05
        sums[voxel] = template.t1[60].sum().item() * voxel**2
    assert sums[3] == pytest.approx(sums[2], rel=0.02)


def test_the_halves_of_the_brain_are_side_by_side_and_its_front_is_on_top() -> None:
    template = brain_template(3, 64)
    middle, low = template.t1[70], template.t1[20]
    assert (middle - middle.flip(1)).abs().mean() < 0.4 * (middle - middle.flip(0)).abs().mean()
    assert low[32:].sum() > 3 * low[:32].sum()  # the cerebellum is at the back


def test_a_batch_is_what_the_operator_measures() -> None:
    for batch in (next(iter(data().train_dataloader())), next(iter(data().test_dataloader()))):
        operator = MultiCoilMRI(batch["maps"], batch["mask"])
        torch.testing.assert_close(operator.A(batch["target"]), batch["kspace"], atol=2e-6, rtol=1e-4)
        assert batch["kspace"].dtype == batch["maps"].dtype == batch["target"].dtype == torch.complex64
        assert batch["kspace"].shape == batch["maps"].shape == (4, 3, 64, 64)
        assert batch["mask"].shape == (4, 1, 1, 64)
        assert batch["mask"].dtype == torch.bool
        assert batch["target"].abs().amax((1, 2)).tolist() == pytest.approx([1.0] * 4, abs=1e-6)
        assert batch["index"].dtype == torch.int64
        assert (batch["scale"] > 0).all()
        torch.testing.assert_close(batch["maps"].abs().square().sum(1), torch.ones(4, 64, 64))


def test_validation_and_test_have_all_of_kspace_for_other_masks() -> None:
    for loader in (data().val_dataloader(), data().test_dataloader()):
        batch = next(iter(loader))
        torch.testing.assert_close(
            batch["full_kspace"], centred_fft2(batch["maps"] * batch["target"][:, None]), atol=2e-6, rtol=1e-4
        )
    assert "full_kspace" not in next(iter(data().train_dataloader()))


def test_no_slice_is_within_the_gap_of_another_split() -> None:
    for voxel in (1, 2, 3):
        module = BrainSlices(voxel=voxel, train_rows=300)
        covered = {}
        for split in ("train", "val", "test"):
            rows = module.rows(split)
            covered[split] = {rows.place(i) + mm for i in range(len(rows)) for mm in range(voxel)}
        for a, b in combinations(covered.values(), 2):
            assert min(abs(x - y) for x in a for y in b) > 6


def test_the_test_has_each_slice_once_and_none_overlap() -> None:
    for voxel, count in ((1, 36), (2, 18), (3, 12)):
        rows = BrainSlices(voxel=voxel).rows("test")
        places = [rows.place(i) for i in range(len(rows))]
        assert places == list(range(99, 135, voxel))
        assert len(places) == count


def test_rows_are_a_function_of_seed_and_number() -> None:
    for split in ("train", "val", "test"):
        first, again, other = (data(seed=seed).rows(split) for seed in (0, 0, 1))
        assert all(torch.equal(first[2][name], again[2][name]) for name in first[2])
        assert not torch.equal(first[2]["target"], other[2]["target"])
        assert not torch.equal(first[2]["target"], first[1]["target"])
    assert not torch.equal(data().rows("train")[0]["target"], data().rows("test")[0]["target"])


def test_two_processes_read_what_one_reads_and_epochs_differ() -> None:
    def order(module: BrainSlices, epoch: int) -> list[int]:
        loader = module.train_dataloader()
        loader.sampler.set_epoch(epoch)  # as Lightning does
        return [int(i) for batch in loader for i in batch["index"]]

    assert order(data(), 0) == order(data(), 0) != order(data(), 1)
    assert sorted(order(data(), 1)) == list(range(12))
    assert order(data(seed=1), 0) != order(data(), 0)


def test_workers_read_the_same_rows() -> None:
    here, there = (batches(data(num_workers=n).test_dataloader()) for n in (0, 1))
    for a, b in zip(here, there, strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_contrasts_vary_and_the_phase_is_smooth() -> None:
    rows = data(train_rows=60).rows("train")
    targets = torch.stack([rows[i]["target"] for i in range(60)])
    inside = targets.abs() > 0.2
    histograms = {
        tuple((image.abs()[mask] > 0.7).float().mean().mul(10).int().tolist() for _ in "a")
        for image, mask in zip(targets, inside, strict=True)
    }
    assert len(histograms) > 3
    turn = (targets[:, :, 1:] * targets[:, :, :-1].conj()).angle()[inside[:, :, 1:] & inside[:, :, :-1]]
    assert turn.abs().max() < 0.3
    assert targets[inside].angle().std() > 1
    plain = data(variety=False).rows("test")
    template = brain_template(3, 64).t1[plain.place(3)]
    torch.testing.assert_close(plain[3]["target"].abs(), template / template.max())
    assert plain[3]["scale"].item() == pytest.approx(template.max().item())


def test_noise_has_its_standard_deviation_in_both_parts() -> None:
    row, clean = (data(noise=noise).rows("test")[0] for noise in (0.03, 0.0))
    error = row["full_kspace"] - clean["full_kspace"]
    assert error.real.std().item() == pytest.approx(0.03, rel=0.03)
    assert error.imag.std().item() == pytest.approx(0.03, rel=0.03)
    assert (row["kspace"][..., ~row["mask"].flatten()] == 0).all()


def test_masks_are_those_of_the_sampling() -> None:
    batch = next(iter(data(sampling=ColumnSampling(8, fixed=True)).test_dataloader()))
    assert batch["mask"].sum((1, 2, 3)).tolist() == [8] * 4
    assert (batch["mask"] == batch["mask"][:1]).all()
    varied = next(iter(data().test_dataloader()))["mask"]
    assert varied.sum((1, 2, 3)).tolist() == [16] * 4
    assert not (varied == varied[:1]).all()


def test_a_trainer_takes_all_its_loaders() -> None:
    module = data(test_rows=20)
    lengths = [
        sum(len(b["index"]) for b in batches(getattr(module, f"{s}_dataloader")())) for s in ("val", "test", "predict")
    ]
    assert lengths == [3, 20, 20]


def test_the_ssim_is_that_of_scikit_image() -> None:
    metrics = pytest.importorskip("skimage.metrics")
    batch = next(iter(data().test_dataloader()))
    image = batch["target"] + 0.05 * torch.randn(batch["target"].shape, generator=torch.Generator().manual_seed(0))
    for found, x, t in zip(magnitude_ssim(image, batch["target"]), image, batch["target"], strict=True):
        x, t = x.abs().double().numpy(), t.abs().double().numpy()
        expected = metrics.structural_similarity(t, x, data_range=t.max())
        assert found.item() == pytest.approx(expected, abs=1e-6)


def test_the_notice_of_the_template_is_kept() -> None:
    assert "Copyright (C) 1993-2009 Louis Collins, McConnell Brain Imaging Centre" in MNI_NOTICE


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"voxel": 4}, "voxel"),
        ({"size": 4}, "size"),
        ({"coils": 0}, "coils"),
        ({"noise": -1.0}, "noise"),
        ({"train_rows": 0}, "train_rows"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        BrainSlices(**settings)


@pytest.mark.parametrize(
    ("bands", "error"),
    [
        ({"train": (24, 80)}, "at least gap=6 mm apart"),
        ({"test": (20, 40)}, "at least gap=6 mm apart"),
        ({"test": (100, 200)}, r"\[0, 189\]"),
        ({"val": (90, 84)}, "val"),
    ],
)
def test_bands_are_checked(bands: dict[str, Any], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        BrainBands(**bands)
    with pytest.raises(ValueError, match="no slice of 3 mm"):
        BrainSlices(voxel=3, bands=BrainBands(val=(84, 86))).rows("val")
