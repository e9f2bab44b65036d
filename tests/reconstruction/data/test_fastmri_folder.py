from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_unlearn import BrainSlices, ColumnSampling, FastMRIFolder, MultiCoilMRI
from lightning_unlearn.functional import birdcage_maps, centre_crop, centred_fft2, centred_ifft2, column_mask

h5py = pytest.importorskip("h5py")

HEADER = """<?xml version="1.0"?><ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"><encoding>
<encodedSpace><matrixSize><x>64</x><y>40</y><z>1</z></matrixSize></encodedSpace>
<reconSpace><matrixSize><x>32</x><y>32</y><z>1</z></matrixSize></reconSpace></encoding></ismrmrdHeader>"""


def volume(slices: int = 4, coils: int = 3, rows: int = 64, columns: int = 40, seed: int = 0) -> torch.Tensor:
    """K-space of smooth blobs as coils see them, twice as many rows as the image, as the readout is oversampled."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.linspace(-2, 2, rows)[:, None], torch.linspace(-1.25, 1.25, columns)
    centres = torch.rand(slices, 5, 2, generator=generator) - 0.5
    blobs = [[torch.exp(-30 * ((x - a) ** 2 + (y - b) ** 2)) for a, b in slice_] for slice_ in centres.tolist()]
    images = torch.stack([torch.stack(slice_).sum(0) for slice_ in blobs]) * torch.polar(torch.ones(()), 0.5 * x + y)
    maps = torch.ones(coils, rows, columns, dtype=torch.complex64)
    maps[:, rows // 4 : 3 * rows // 4] = birdcage_maps(coils, rows // 2, columns)
    return 3e-5 * centred_fft2(maps * images[:, None])


def write(path: Path, kspace: torch.Tensor, mask: torch.Tensor | None = None, **attributes: Any) -> Path:
    """A file in fastMRI's layout."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = centre_crop(centred_ifft2(kspace), 32, 32)
    with h5py.File(path, "w") as file:
        file["kspace"] = (kspace if mask is None else kspace * mask).numpy()
        file["ismrmrd_header"] = HEADER
        if mask is None:
            rss = images.abs().square().sum(1).sqrt()
            file["reconstruction_rss"] = rss.numpy()
            file.attrs["max"], file.attrs["norm"] = float(rss.max()), float(rss.norm())
        else:
            file["mask"] = mask.float().numpy()
            file.attrs["acceleration"], file.attrs["num_low_frequency"] = 4, int(0.08 * len(mask))
        file.attrs["acquisition"], file.attrs["patient_id"] = "CORPD_FBK", path.stem
        file.attrs.update(attributes)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split, seeds in (("train", (0, 1)), ("val", (2, 3, 4)), ("test", (5,))):
        for seed in seeds:
            mask = column_mask(40, 4, seed=seed) if split == "test" else None
            write(tmp_path / f"multicoil_{split}" / f"file{seed}.h5", volume(seed=seed), mask)
    return tmp_path


def names(data: FastMRIFolder, split: Any) -> set[str]:
    return {v.path.name for v in data.volumes[split]}


def test_a_batch_is_what_the_operator_measures(folder: Path) -> None:
    data = FastMRIFolder(str(folder), batch_size=4, calibration_lines=12)
    batch = next(iter(data.test_dataloader()))
    assert batch["kspace"].shape == batch["maps"].shape == (4, 3, 32, 32)
    assert batch["target"].abs().amax((1, 2)).tolist() == pytest.approx([1.0] * 4)
    assert batch["mask"].sum((1, 2, 3)).tolist() == [8] * 4
    operator = MultiCoilMRI(batch["maps"], batch["mask"])
    measured = operator.A(batch["target"])
    assert (measured - batch["kspace"]).norm() < 0.1 * batch["kspace"].norm()  # maps are estimated
    full = MultiCoilMRI(batch["maps"], torch.ones_like(batch["mask"]))
    torch.testing.assert_close(full.A_adjoint(batch["full_kspace"]), batch["target"], atol=1e-6, rtol=1e-5)
    assert (batch["kspace"][~batch["mask"].expand_as(batch["kspace"])] == 0).all()


def test_the_target_has_the_magnitude_of_the_scanners_image(folder: Path) -> None:
    data = FastMRIFolder(str(folder), calibration_lines=12)
    rows = data.rows("test")
    volume_, number = rows.slices[1]
    with h5py.File(volume_.path) as file:
        rss = torch.from_numpy(file["reconstruction_rss"][number])
    image = rows[1]["target"].abs() * rows[1]["scale"]
    assert (image - rss).norm() < 0.06 * rss.norm()
    assert rows[1]["scale"].item() == pytest.approx(rss.max().item(), rel=0.02)


def test_maps_come_from_files(folder: Path, tmp_path: Path) -> None:
    true = birdcage_maps(3, 32, 40).expand(4, -1, -1, -1)
    for seed in range(5):
        with h5py.File(folder / f"file{seed}.h5", "w") as file:
            file["maps" if seed % 2 else "sens_maps"] = 2 * true.numpy()
    rows = FastMRIFolder(str(folder), maps=str(folder)).rows("train")
    torch.testing.assert_close(rows[0]["maps"], centre_crop(true[0], 32, 32))
    torch.testing.assert_close(rows[0]["maps"].abs().square().sum(0), torch.ones(32, 32))
    estimated = FastMRIFolder(str(folder), calibration_lines=12).rows("train")[0]["maps"]
    inside = rows[0]["target"].abs() > 0.3
    ratio = (estimated.conj() * rows[0]["maps"]).sum(0)[inside].abs()
    assert ratio.min() > 0.97  # of two unit vectors: the same but for a phase
    with pytest.raises(FileNotFoundError, match="There are no maps"):
        FastMRIFolder(str(folder), maps=str(tmp_path / "nowhere")).rows("train")[0]
    with h5py.File(folder / "file0.h5", "w") as file:
        file["maps"] = true[:, :2].numpy()
    with pytest.raises(ValueError, match="has 3 coils, but there are maps of 2"):
        FastMRIFolder(str(folder), maps=str(folder)).rows("train")[0]


def test_sigpy_estimates_maps(folder: Path) -> None:
    pytest.importorskip("sigpy")
    row = FastMRIFolder(str(folder), maps="espirit", calibration_lines=16).rows("train")[0]
    center = FastMRIFolder(str(folder), calibration_lines=16).rows("train")[0]
    inside = (row["target"].abs() > 0.3) & (row["maps"].abs().sum(0) > 0)
    assert inside.sum() > 20
    assert (row["maps"].conj() * center["maps"]).sum(0)[inside].abs().min() > 0.95


def test_fastmris_folders_are_the_splits_and_masked_scans_are_predicted(folder: Path) -> None:
    data = FastMRIFolder(str(folder), calibration_lines=12)
    assert names(data, "train") == {"file0.h5", "file1.h5"}
    assert names(data, "val") | names(data, "test") == {"file2.h5", "file3.h5", "file4.h5"}
    assert not names(data, "val") & names(data, "test")
    assert names(data, "predict") == {"file5.h5"}
    (batch, *_) = data.predict_dataloader()
    assert "target" not in batch
    assert batch["kspace"].shape == (1, 3, 32, 40)  # its columns stay as they are
    assert batch["mask"].sum() == 10
    image = MultiCoilMRI(batch["maps"], batch["mask"]).A_adjoint(batch["kspace"])
    assert image.abs().max().item() == pytest.approx(1, abs=1e-5)


def test_a_sampled_test_folder_is_the_test(folder: Path) -> None:
    (folder / "multicoil_test" / "file5.h5").unlink()
    write(folder / "multicoil_test" / "file6.h5", volume(seed=6))
    data = FastMRIFolder(str(folder))
    assert names(data, "test") == names(data, "predict") == {"file6.h5"}
    assert len(names(data, "val")) == 3


def test_folders_have_the_names_of_fastmris_archives(folder: Path) -> None:
    (folder / "multicoil_train").rename(folder / "knee_multicoil_train_batch_0")
    (folder / "multicoil_test").rename(folder / "multicoil_test_v2")
    write(folder / "multicoil_test_full" / "file7.h5", volume(seed=7))
    write(folder / "multicoil_challenge" / "file8.h5", volume(seed=8))
    (folder / "multicoil_val" / "._file2.h5").write_bytes(b"what macOS leaves beside a file")
    data = FastMRIFolder(str(folder))
    assert names(data, "train") == {"file0.h5", "file1.h5"}
    assert len(names(data, "val")) == 3
    assert names(data, "test") == {"file7.h5"}
    assert names(data, "predict") == {"file5.h5", "file7.h5"}


def test_a_masked_scan_is_no_training_data(folder: Path) -> None:
    write(folder / "multicoil_train" / "masked.h5", volume(), column_mask(40, 4))
    with pytest.raises(ValueError, match=r"masked\.h5 is an accelerated scan without a reference"):
        FastMRIFolder(str(folder)).train_dataloader()


def test_patients_are_split_and_never_slices(tmp_path: Path) -> None:
    for seed in range(12):
        write(tmp_path / f"file{seed}.h5", volume(2, seed=seed), patient_id=f"p{seed // 2}")
    splits = []
    for seed in (0, 0, 1):
        data = FastMRIFolder(str(tmp_path), seed=seed, val_share=0.2, test_share=0.3)
        found = {s: {v.patient for v in data.volumes[s]} for s in ("train", "val", "test")}
        assert [len(found[s]) for s in ("train", "val", "test")] == [3, 1, 2]
        assert len(set.union(*found.values())) == 6
        assert len(data.rows("train")) == 12
        splits.append(found)
    assert splits[0] == splits[1] != splits[2]


def test_a_slice_has_the_same_mask_in_whatever_split(folder: Path) -> None:
    all_masks: list[dict[Any, Any]] = []
    for seed in (0, 3):
        data = FastMRIFolder(str(folder), seed=seed, sampling=ColumnSampling(4))
        all_masks.append({})
        for rows in (data.rows("val"), data.rows("test")):
            for i, (volume_, number) in enumerate(rows.slices):
                all_masks[-1][volume_.path.name, number] = tuple(rows[i]["mask"].flatten().tolist())
    assert all_masks[0] == all_masks[1]
    assert len(set(all_masks[0].values())) == 12


def test_slices_around_the_middle_and_kinds_of_scans_are_chosen(folder: Path) -> None:
    data = FastMRIFolder(str(folder), middle=0.5)
    assert [number for _, number in data.rows("train").slices] == [1, 2, 1, 2]
    write(folder / "multicoil_train" / "other.h5", volume(), acquisition="CORPDFS_FBK")
    assert names(FastMRIFolder(str(folder), acquisition="CORPDFS_FBK"), "train") == {"other.h5"}


def test_unlike_numbers_of_coils_share_a_batch(tmp_path: Path) -> None:
    for seed, coils in enumerate((2, 4, 3, 3)):
        write(tmp_path / f"file{seed}.h5", volume(1, coils, seed=seed))
    data = FastMRIFolder(str(tmp_path), batch_size=2, calibration_lines=12)
    batch = next(iter(data.train_dataloader()))
    widest = max(len(data.rows("train")[i]["maps"]) for i in range(2))
    assert batch["maps"].shape[1] == widest
    for place, i in enumerate(batch["index"].tolist()):
        row = data.rows("train")[i]
        alone = MultiCoilMRI(row["maps"][None], row["mask"][None]).A_adjoint(row["kspace"][None])
        together = MultiCoilMRI(batch["maps"], batch["mask"]).A_adjoint(batch["kspace"])[place]
        torch.testing.assert_close(alone[0], together)


def test_a_size_may_be_given_and_is_the_scanners_otherwise(folder: Path) -> None:
    assert FastMRIFolder(str(folder), size=24).rows("train")[0]["target"].shape == (24, 24)
    assert FastMRIFolder(str(folder), size=80, calibration_lines=12).rows("train")[0]["target"].shape == (80, 80)
    path = folder / "multicoil_train" / "file0.h5"
    with h5py.File(path, "a") as file:
        del file["reconstruction_rss"]
    assert FastMRIFolder(str(folder)).rows("train")[0]["target"].shape == (32, 32)  # of the header
    with h5py.File(path, "a") as file:
        del file["ismrmrd_header"]
    assert FastMRIFolder(str(folder)).rows("train")[0]["target"].shape == (64, 40)


def test_files_that_are_something_else_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", volume(1))
    whole = path.read_bytes()

    def error(kind: type[Exception] = ValueError) -> str:
        with pytest.raises(kind) as raised:
            FastMRIFolder(str(tmp_path)).volumes  # noqa: B018
        return str(raised.value)

    path.write_bytes(whole[: len(whole) // 2])
    assert "a.h5 is no HDF5 file, or not a whole one" in error()
    path.write_bytes(b"<html>Sign in</html>")
    assert "a.h5 is no HDF5 file" in error()
    for name, value, message in (
        ("kspace", volume(1)[:, 0].numpy(), "a.h5 is of a single coil"),
        ("kspace", np.zeros((1, 2, 4, 4)), "must be complex of the shape"),
        ("image", np.zeros((1, 4, 4)), "has no 'kspace', but ['image']"),
    ):
        with h5py.File(path, "w") as file:
            file[name] = value
        assert message in error()
    with h5py.File(path, "w") as file:
        file["kspace"], file["mask"] = volume(1).numpy(), np.zeros(39)
    assert "mask of" in error()
    path.unlink()
    assert "has neither .h5 or .hdf5 files nor folders" in error(FileNotFoundError)


def change(path: Path, kspace: torch.Tensor) -> None:
    with h5py.File(path, "a") as file:
        del file["kspace"]
        file["kspace"] = kspace.numpy()


def first_row(folder: Path) -> Any:
    return FastMRIFolder(str(folder), calibration_lines=12).rows("train")[0]


def test_a_slice_that_is_not_finite_is_refused(folder: Path) -> None:
    kspace = volume()
    kspace[0, 1, 5, 7] = torch.nan
    change(folder / "multicoil_train" / "file0.h5", kspace)
    with pytest.raises(ValueError, match=r"kspace of slice 0 of .*file0\.h5 have values that are not finite"):
        first_row(folder)


@pytest.mark.parametrize("columns", [40, 41])
def test_kspace_with_the_zero_frequency_in_its_corner_is_refused(folder: Path, columns: int) -> None:
    path, kspace = folder / "multicoil_train" / "file0.h5", volume(columns=columns)
    change(path, torch.fft.ifftshift(kspace, dim=(-2, -1)))
    with pytest.raises(ValueError, match=r"slice 0 of .*file0\.h5 has the zero frequency in its corner"):
        first_row(folder)
    change(path, torch.randn(kspace.shape, dtype=kspace.dtype))  # a slice of noise, as outer ones are
    assert first_row(folder)["target"].isfinite().all()


def test_an_accelerated_scan_without_a_mask_is_refused(folder: Path) -> None:
    path, kspace = folder / "multicoil_train" / "file0.h5", volume()
    for measured in (column_mask(40, 4), torch.rand(64, 40, generator=torch.Generator().manual_seed(0)) < 0.3):
        change(path, kspace * measured)
        with pytest.raises(ValueError, match=r"slice 0 of .*file0\.h5 is 0 between points that were measured"):
            first_row(folder)
    partial = kspace * (torch.arange(40) < 34) * (torch.arange(64) > 3)[:, None]  # partial Fourier and padding
    change(path, partial)
    assert first_row(folder)["target"].abs().max() == 1
    change(path, torch.zeros_like(kspace))
    assert (first_row(folder)["target"] == 0).all()


def test_coils_in_the_last_dimension_are_refused(folder: Path) -> None:
    change(folder / "multicoil_train" / "file0.h5", volume().permute(0, 2, 3, 1).contiguous())
    with pytest.raises(ValueError, match="64 coils of 40 rows and 3 columns, so its coils seem to come last"):
        first_row(folder)


def test_the_order_of_an_epoch_is_that_of_seed_and_epoch(folder: Path) -> None:
    def order(epoch: int) -> list[int]:
        loader = FastMRIFolder(str(folder)).train_dataloader()
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        return [int(batch["index"]) for batch in loader]

    assert order(1) == order(1) != order(2)


@pytest.mark.parametrize(
    ("settings", "error"),
    [({"size": 2}, "size"), ({"middle": 2.0}, "middle"), ({"val_share": 0.6, "test_share": 0.5}, "left to train on")],
)
def test_settings_are_checked(settings: dict[str, Any], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        FastMRIFolder("folder", **settings)


def test_both_data_modules_make_batches_of_the_same_form(folder: Path) -> None:
    pytest.importorskip("nilearn")
    scans, slices = FastMRIFolder(str(folder)).rows("val")[0], BrainSlices(voxel=3).rows("val")[0]
    assert scans.keys() == slices.keys()
    assert all(scans[name].dtype == slices[name].dtype and scans[name].ndim == slices[name].ndim for name in scans)
