"""Parts of requests about users' modules: row numbers, opened modules, split data, scores, verdicts."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
    default_collate,
)

from lightning_unlearn.classification.metrics.outputs import Outputs
from lightning_unlearn.forget import user_data
from lightning_unlearn.forget.chosen_rows import named_rows, numbers_of, parse_ranges, read_row_numbers, write_ranges
from lightning_unlearn.forget.module_evidence import own_metrics_of
from lightning_unlearn.forget.module_measures import RowMeasures, membership
from lightning_unlearn.forget.module_verdict import Thresholds, conclude, criteria, knew
from lightning_unlearn.forget.score_choice import choose_score
from lightning_unlearn.forget.user_data import DataModuleSplit, UserData
from lightning_unlearn.forget.user_module import base_rates, open_module, read_checkpoint, recorded_rates
from lightning_unlearn.relearning import RelearningCurve
from tests.helpers import trainer

# ---- row numbers -----------------------------------------------------------------------------------------------------


def test_row_numbers_are_read_from_all_kinds_of_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\ufeff3\n17\n\n4, 5\n")
    (tmp_path / "a.json").write_text("[3, 17, 4, 5]")
    np.save(tmp_path / "a.npy", np.array([3, 17, 4, 5]))
    for name in ("a.txt", "a.json", "a.npy"):
        assert read_row_numbers(str(tmp_path / name)) == [3, 17, 4, 5]
    assert read_row_numbers("3, 4-5,17") == [3, 4, 5, 17]
    assert read_row_numbers([3, 4]) == [3, 4]
    for text in ("one\n", "", "1.5\n"):
        (tmp_path / "bad.txt").write_text(text)
        with pytest.raises(ValueError, match="has no row numbers"):
            read_row_numbers(str(tmp_path / "bad.txt"))


def test_ranges_hold_any_rows() -> None:
    rows = sorted(np.random.default_rng(0).choice(100, 40, replace=False).tolist())
    assert parse_ranges(write_ranges(rows)) == rows
    assert write_ranges([5]) == "5"


@pytest.mark.parametrize(
    ("rows", "message"), [([3, 3], "twice"), ([-1], "go from -1"), ([10], r"in \[0, 10\)"), (list(range(10)), "none")]
)
def test_rows_that_are_not_there_are_refused(rows: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        numbers_of(TensorDataset(torch.zeros(10, 1)), rows=rows)


def test_a_mask_chooses_its_rows(tmp_path: Path) -> None:
    np.save(tmp_path / "mask.npy", np.array([False, True, False, True]))
    assert numbers_of(TensorDataset(torch.zeros(4, 1)), rows=str(tmp_path / "mask.npy")) == [1, 3]


class Folder(Dataset):
    """As torchvision's ImageFolder."""

    classes = ("cat", "dog")
    targets = (0, 0, 1, 1)
    samples = tuple(
        (f"/data/{c}/{n}.png", y) for c, n, y in (("cat", 1, 0), ("cat", 2, 0), ("dog", 1, 1), ("dog", 3, 1))
    )

    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return torch.zeros(1), self.targets[i]


def test_files_are_found_by_as_much_of_their_path_as_tells_them_apart() -> None:
    assert named_rows(Folder(), ["3.png", "dog/1.png", "/data/cat/1.png"]) == [3, 2, 0]
    assert named_rows(Subset(Folder(), [3, 1]), ["3.png"]) == [0]
    assert named_rows(ConcatDataset([Folder(), Subset(Folder(), [3])]), ["2.png"]) == [1]
    for name, message in (("1.png", "2 rows of a file"), ("at/1.png", "0 rows"), ("9.png", "0 rows")):
        with pytest.raises(ValueError, match=message):
            named_rows(Folder(), [name])
    with pytest.raises(ValueError, match="does not tell the files"):
        named_rows(TensorDataset(torch.zeros(3)), ["a.png"])


def test_classes_are_named_by_number_or_name() -> None:
    part = Subset(Folder(), [3, 0])
    assert numbers_of(part, classes="dog") == numbers_of(part, classes=1) == numbers_of(part, classes=[1]) == [0]


# ---- opened modules --------------------------------------------------------------------------------------------------


class Net(L.LightningModule):
    def __init__(self, width: int = 4, activation: nn.Module | None = None, schedule: str = "none") -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["activation"])
        self.net = nn.Sequential(nn.Linear(3, width), activation or nn.ReLU(), nn.Linear(width, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(
            [{"params": self.net[0].parameters()}, {"params": self.net[2].parameters(), "lr": 0.5}], 2.0
        )
        if self.hparams["schedule"] == "warmup":
            return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 100)]
        if self.hparams["schedule"] == "cycle":
            return {
                "optimizer": optimizer,
                "lr_scheduler": torch.optim.lr_scheduler.OneCycleLR(optimizer, [2.0, 0.5], total_steps=10),
            }
        return optimizer if self.hparams["schedule"] == "none" else [optimizer, optimizer]


NET = f"{__name__}:Net"


def saved(path: Path, **hparams: Any) -> str:
    module = Net(**hparams)
    run = trainer()
    run.strategy.connect(module)
    run.save_checkpoint(path, weights_only=True)
    return str(path)


@pytest.mark.parametrize("schedule", ["none", "warmup", "cycle"])
def test_the_learning_rates_are_a_share_of_those_of_the_training_whatever_its_schedule(
    tmp_path: Path, schedule: str
) -> None:
    opened: Any = open_module(saved(tmp_path / "a.ckpt", schedule=schedule), NET, rate=0.1)
    assert [group["lr"] for group in opened.configure_optimizers().param_groups] == pytest.approx([0.2, 0.05])
    assert base_rates(Net(schedule=schedule)) == [2.0, 0.5]


def test_a_checkpoint_tells_the_rates_of_its_training() -> None:
    groups = [{"lr": 0.01, "initial_lr": 0.1, "params": []}, {"lr": 0.02, "params": []}]
    assert recorded_rates({"optimizer_states": [{"param_groups": groups}]}) == [0.1, 0.02]
    assert recorded_rates({}) is None


def test_arguments_that_no_checkpoint_has_are_given_as_classes(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.ckpt", width=5)
    opened: Any = open_module(path, NET, {"activation": {"class_path": "torch.nn.Tanh"}})
    assert isinstance(opened.net[1], nn.Tanh)
    assert opened.net[0].out_features == 5


def test_several_optimizers_are_refused() -> None:
    with pytest.raises(ValueError, match="2 optimizers"):
        base_rates(Net(schedule="two"))


def test_a_checkpoint_with_objects_is_opened_where_it_is_trusted(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    held = torch.load(saved(path))
    torch.save({**held, "hyper_parameters": {"activation": nn.Tanh()}}, path)
    with pytest.raises(ValueError, match="trust_checkpoint"):
        open_module(str(path), NET)
    opened: Any = open_module(str(path), NET, trusted=True)
    assert isinstance(opened.net[1], nn.Tanh)


def test_classes_of_a_checkpoint_that_are_not_found_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("notebook", "other"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["notebook"].Settings = type("Settings", (), {"__module__": "notebook"})  # type: ignore[attr-defined]
    torch.save({"settings": sys.modules["notebook"].Settings()}, tmp_path / "a.ckpt")
    monkeypatch.setitem(sys.modules, "notebook", sys.modules["other"])  # without that class
    with pytest.raises(ValueError, match=r"class that is not found here: .*'Settings'.* Start the command where"):
        read_checkpoint(str(tmp_path / "a.ckpt"), trusted=True)
    monkeypatch.delitem(sys.modules, "notebook")
    with pytest.raises(ValueError, match="No module named 'notebook'"):
        read_checkpoint(str(tmp_path / "a.ckpt"), trusted=True)


def test_files_that_are_no_checkpoints_are_refused(tmp_path: Path) -> None:
    torch.save(Net().state_dict(), tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="no 'state_dict'"):
        read_checkpoint(str(tmp_path / "weights.pt"))
    with pytest.raises(ValueError, match="is a folder"):
        read_checkpoint(str(tmp_path))
    whole = (tmp_path / "weights.pt").read_bytes()
    (tmp_path / "half.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="no PyTorch file"):
        read_checkpoint(str(tmp_path / "half.pt"))


def test_another_file_than_the_run_began_with_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not the file that this run began with"):
        open_module(saved(tmp_path / "a.ckpt"), NET, sha256="0" * 64)


# ---- data ------------------------------------------------------------------------------------------------------------


class Data(L.LightningDataModule):
    """Rows ``(number, number)``, of which some are trained on."""

    names = "three of a kind"

    def __init__(self, kind: str = "plain") -> None:
        super().__init__()
        self.kind = kind

    def setup(self, stage: str) -> None:
        rows = TensorDataset(torch.arange(10.0), torch.arange(10))
        generator = None if self.kind == "unseeded" else torch.Generator().manual_seed(3)
        self.train, self.rest = torch.utils.data.random_split(rows, [7, 3], generator)

    def train_dataloader(self) -> Any:
        if self.kind == "several":
            return [DataLoader(self.train), DataLoader(self.rest)]
        if self.kind == "stream":
            return DataLoader(Stream())
        if self.kind == "batches":
            return DataLoader(self.train, batch_size=None)
        return DataLoader(self.train, batch_size=4, collate_fn=lambda rows: {"y": torch.stack([y for _, y in rows])})

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return {"y": -batch["y"]}


class Stream(IterableDataset):
    def __iter__(self) -> Any:
        return iter(())


DATA = f"{__name__}:Data"


def test_rows_are_split_and_collated_as_the_user_does() -> None:
    split = DataModuleSplit(DATA, "0-1,5", fingerprint=UserData(DATA).fingerprint())
    split.setup("fit")
    train = split.user.module.train
    batch = next(iter(split.train_dataloader()))
    assert sorted(batch["forget"]["y"].tolist()) == sorted(int(train[i][1]) for i in (0, 1, 5))
    assert {len(batch[role]["y"]) for role in ("forget", "retain")} == {3, 4}
    assert not set(batch["forget"]["y"].tolist()) & {int(train[i][1]) for i in (2, 3, 4, 6)}
    assert split.on_before_batch_transfer({"y": torch.ones(1)}, 0) == {"y": torch.tensor([-1.0])}
    assert split.names == "three of a kind"
    assert split.val_dataloader.__self__ is split


def test_a_split_without_a_seed_shows_in_the_fingerprint() -> None:
    same, other = (UserData(DATA, {"kind": "unseeded"}, seed).fingerprint() for seed in (0, 1))
    assert same == UserData(DATA, {"kind": "unseeded"}, 0).fingerprint()
    assert same != other
    assert UserData(DATA, seed=0).fingerprint() == UserData(DATA, seed=1).fingerprint()


def test_rows_of_other_data_are_refused() -> None:
    with pytest.raises(ValueError, match="not the one that the request was made for"):
        DataModuleSplit(DATA, "0", {"kind": "unseeded"}, fingerprint=UserData(DATA).fingerprint()).setup("fit")
    with pytest.raises(ValueError, match="has 7 rows, but 7 is to be forgotten"):
        DataModuleSplit(DATA, "7").setup("fit")


@pytest.mark.parametrize(
    ("kind", "message"), [("several", "gives a list"), ("stream", "trains on a stream"), ("batches", "whole batches")]
)
def test_loaders_without_row_numbers_are_refused(kind: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UserData(DATA, {"kind": kind}).train_loader()


def test_labels_are_found_in_rows_of_any_kind() -> None:
    x, classes = torch.zeros(3), [2, 0, 2, 1]
    graphs = [SimpleNamespace(x=x, y=torch.tensor([label])) for label in classes]
    kinds: list[tuple[Any, Any]] = [
        ([(x, label) for label in classes], default_collate),
        ([(x, label, number) for number, label in enumerate(classes)], default_collate),
        ([(x, 0.5, label) for label in classes], default_collate),
        ([{"x": x, "target": label} for label in classes], default_collate),
        (graphs, lambda rows: rows[0]),
    ]
    for rows, collate in kinds:
        assert UserData(DATA).labels(rows, collate).tolist() == classes
    with pytest.raises(ValueError, match=r"several whole numbers \(part 1, part 2\).*`targets`.*--rows"):
        UserData(DATA).labels([(x, label, label % 2) for label in classes], default_collate)
    with pytest.raises(ValueError, match="have no class as a whole number"):
        UserData(DATA).labels([(x, 0.5), (x, 1.5)], default_collate)


def test_setting_up_leaves_the_random_numbers_of_the_run() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    UserData(DATA, {"kind": "unseeded"}).train_loader()
    assert torch.equal(torch.rand(1), expected)


def test_arguments_of_a_checkpoint_are_those_that_are_plain() -> None:
    held = {"datamodule_hyper_parameters": {"kind": "plain", "other": 1, "_instantiator": "x"}}
    assert user_data.data_arguments(DATA, held) == {"kind": "plain"}


# ---- the module's own metrics ----------------------------------------------------------------------------------------


class Held(L.LightningDataModule):
    seed = 0

    @property
    def user(self) -> Any:
        return SimpleNamespace(module=self)

    def val_dataloader(self) -> Any:
        return DataLoader(TensorDataset(torch.ones(4)), 2)


class Logs(L.LightningModule):
    """Draws into its logger, which is one of TensorBoard."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__()
        self.fails = fails

    def validation_step(self, batch: Any, _: int) -> None:
        assert self.logger is not None
        self.logger.experiment.add_image("rows", batch[0])
        self.log("val_sum", batch[0].sum())
        if self.fails:
            raise RuntimeError("asks for its callbacks")


class Passed(Logs):
    validation_step = None  # type: ignore[assignment]


def test_own_metrics_are_those_of_modules_that_call_their_logger() -> None:
    found, failure = own_metrics_of({"before": Logs(), "after": Passed()}, Held(), "cpu")  # type: ignore[arg-type]
    assert found == {"before": {"val_sum": 2.0}, "after": {}}
    assert failure == ""
    found, failure = own_metrics_of({"before": Logs(), "after": Logs(True)}, Held(), "cpu")  # type: ignore[arg-type]
    assert found == {"before": {}, "after": {}}
    assert failure == "RuntimeError: asks for its callbacks"


# ---- scores ----------------------------------------------------------------------------------------------------------


class Read(L.LightningModule):
    """Gives its inputs, through a function, and any loss of them."""

    def __init__(self, loss: Any, output: Any = None) -> None:
        super().__init__()
        self.loss, self.output = loss, output or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.output(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(self(batch[0]), batch[1])
        self.log("loss", loss)
        return loss


F = nn.functional
X, Y = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0, 1, 2])
HALF = torch.rand(6, 1, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("module", "batch", "name"),
    [
        (Read(F.cross_entropy), (X, Y), "classifier_nll"),
        (Read(nn.CrossEntropyLoss(label_smoothing=0.1)), (X, Y), "classifier_nll"),
        (Read(lambda p, y: F.nll_loss(p.log(), y), nn.Softmax(1)), (X, Y), "training_step_loss"),
        (Read(F.nll_loss, nn.LogSoftmax(1)), (X, Y), "classifier_nll"),
        (Read(F.binary_cross_entropy_with_logits), (X[:, :1], HALF.round()), "binary_nll"),
        (Read(F.mse_loss), (X[:, :1], HALF), "training_step_loss"),
        (Read(F.mse_loss), (X[:, :1], 3 * HALF), "training_step_loss"),
        (Read(F.cross_entropy), (X[:, :, None].repeat(1, 1, 4), Y[:, None].repeat(1, 4)), "segmentation_nll"),
        (Read(F.cross_entropy), (X, X.softmax(1)), "soft_label_nll"),
        (Read(lambda p, y: -(p * y).mean()), (X, X), "training_step_loss"),
    ],
)
def test_the_score_is_that_of_the_modules_outputs_and_loss(module: Read, batch: Any, name: str) -> None:
    assert choose_score(module, batch).path == f"lightning_unlearn.{name}"


def test_a_module_that_nothing_reads_is_refused() -> None:
    def fails(*_: Any) -> Tensor:
        raise RuntimeError("no trainer")

    with pytest.raises(ValueError, match=r"no trainer\).*Give --score"):
        choose_score(Read(fails), ({"graph": X}, Y))


# ---- verdicts --------------------------------------------------------------------------------------------------------


def rows(accuracy: float, nll: float, n: int = 400, classes: int = 10) -> RowMeasures:
    spread = torch.linspace(0.5, 1.5, n)
    hits = (torch.arange(n) < round(accuracy * n)).float()
    return RowMeasures(nll * spread, hits, Outputs(torch.zeros(n, classes), torch.zeros(n, dtype=torch.long)))


def verdict(after: dict[str, RowMeasures], whole_class: bool = False, curve: Any = None, control: Any = None) -> str:
    before = {"forget": rows(1.0, 0.1), "retain": rows(1.0, 0.1), "test": rows(0.8, 1.0)}
    found = criteria(before, {**before, **after}, control, curve, whole_class, Thresholds())
    return conclude(found, knew(before, whole_class, Thresholds()), control is not None)


def test_verdicts_follow_the_thresholds() -> None:
    like_unseen = rows(0.8, 1.0)
    assert verdict({"forget": like_unseen}) == "no trace found, no control"
    assert verdict({"forget": rows(0.9, 0.3)}) == "not forgotten"
    assert verdict({"forget": rows(0.0, 9.0)}) == "not forgotten"  # and told from rows never seen by that
    assert verdict({"forget": rows(0.8, 1.0, n=20)}) == "undecided"
    assert verdict({"forget": like_unseen, "retain": rows(0.97, 0.1)}) == "damaged"
    assert verdict({"forget": like_unseen, "test": rows(0.77, 1.0)}) == "damaged"
    assert verdict({"forget": rows(0.05, 9.0)}, whole_class=True) == "no trace found, no control"
    assert verdict({"forget": rows(0.11, 9.0)}, whole_class=True) == "not forgotten"


def test_a_retrained_model_decides_between_forgotten_and_hidden() -> None:
    control = {"forget": rows(0.8, 1.0), "retain": rows(1.0, 0.1), "test": rows(0.8, 1.0)}
    steps, slow, fast = [0, 5, 10, 20], [1.0, 0.8, 0.5, 0.1], [1.0, 0.1, 0.1, 0.1]
    original = RelearningCurve(steps, [0.1] * 4)
    curves = {
        "forgotten": RelearningCurve(steps, slow, RelearningCurve(steps, slow), original),
        "suppressed but recoverable": RelearningCurve(steps, fast, RelearningCurve(steps, slow), original),
    }
    for word, curve in curves.items():
        assert verdict({"forget": rows(0.8, 1.0)}, curve=curve, control=control) == word
    far = {**control, "forget": rows(0.7, 1.0)}
    assert verdict({"forget": rows(0.8, 1.0)}, curve=curves["forgotten"], control=far) == "not forgotten"


def test_nothing_is_concluded_about_what_the_model_never_knew() -> None:
    same = {name: rows(0.8, 1.0) for name in ("forget", "retain", "test")}
    assert knew(same, False, Thresholds()) is False
    assert conclude([], False, False) == "no verdict"
    assert knew({"forget": rows(0.12, 2.3)}, True, Thresholds()) is False
    assert knew({"forget": rows(1.0, 0.1)}, False, Thresholds()) is None


def test_the_area_of_membership_is_that_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    generator = torch.Generator().manual_seed(0)
    forget, unseen = (torch.randn(n, generator=generator).mul(3).round() for n in (50, 70))
    labels = [1] * 50 + [0] * 70
    expected = metrics.roc_auc_score(labels, (-torch.cat([forget, unseen])).numpy())
    assert membership(forget, unseen).auc == pytest.approx(expected)
