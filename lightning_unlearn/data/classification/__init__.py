"""Labelled rows, and which of them are to be forgotten."""

from lightning_unlearn.data.classification.arrays import CIFAR, SVHN, CoarseLabels, LabelledRows, MNIST5k, Tabular
from lightning_unlearn.data.classification.disk import DiskRows
from lightning_unlearn.data.classification.files import CelebA, ImageFolder, Newsgroups
from lightning_unlearn.data.classification.module import ClassificationDataModule
from lightning_unlearn.data.classification.split import Split, groups_of, split_rows, targets_of
from lightning_unlearn.data.classification.synthetic import SyntheticImages, SyntheticText

__all__ = [
    "CIFAR",
    "SVHN",
    "CelebA",
    "ClassificationDataModule",
    "CoarseLabels",
    "DiskRows",
    "ImageFolder",
    "LabelledRows",
    "MNIST5k",
    "Newsgroups",
    "Split",
    "SyntheticImages",
    "SyntheticText",
    "Tabular",
    "groups_of",
    "split_rows",
    "targets_of",
]
