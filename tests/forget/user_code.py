"""Code of users: a module and a data module in a file of their own, in a folder outside of every package."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

DIGITS = '''
import {package} as pl
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset, random_split


class LitDigits(pl.LightningModule):
    def __init__(self, width: int = 32, lr: float = 0.01, smoothing: float = 0.0):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = nn.functional.cross_entropy(self(x), y, label_smoothing=self.hparams.smoothing)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_acc", (self(x).argmax(1) == y).float().mean())

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=self.hparams.lr)
        steps = self.trainer.estimated_stepping_batches
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.hparams.lr, total_steps=max(steps, 1))
        return [optimizer], [dict(scheduler=schedule, interval="step")]


class Digits(pl.LightningDataModule):
    def __init__(self, batch_size: int = 64, seed: int = 0, classes: int = 10):
        super().__init__()
        self.save_hyperparameters()

    def setup(self, stage):
        x, y = load_digits(n_class=self.hparams.classes, return_X_y=True)
        rows = TensorDataset(torch.tensor(x, dtype=torch.float32) / 16, torch.tensor(y))
        generator = torch.Generator().manual_seed(self.hparams.seed) if self.hparams.seed >= 0 else None
        self.train, self.held_out = random_split(rows, [0.7, 0.3], generator=generator)

    def train_dataloader(self):
        return DataLoader(self.train, batch_size=self.hparams.batch_size, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.held_out, batch_size=256)


class Rows(Dataset):
    """Rows that are dicts, whose labels stand in them alone, and that tell their files."""

    def __init__(self, rows):
        self.rows = rows
        self.files = [f"scans/{{int(i) % 7}}/{{int(i)}}.png" for i in rows.indices]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        x, y = self.rows[i]
        return dict(x=16 * x, label=y)


class DictDigits(LitDigits):
    def training_step(self, batch, batch_idx):
        return super().training_step((batch["x"], batch["label"]), batch_idx)

    def validation_step(self, batch, batch_idx):
        super().validation_step((batch["x"], batch["label"]), batch_idx)


class DictData(Digits):
    def setup(self, stage):
        super().setup(stage)
        self.train, self.held_out = Rows(self.train), Rows(self.held_out)

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return dict(batch, x=batch["x"] / 16)


class LitOther(LitDigits):
    def __init__(self, width: int = 32, lr: float = 0.01, smoothing: float = 0.0):
        super().__init__(width, lr, smoothing)
        self.net = nn.Sequential(*(nn.Linear(64, 64) for _ in range(40)))


class LitRegression(LitDigits):
    """Tells the class as a number."""

    def forward(self, x):
        return self.net(x)[:, 0]

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.mse_loss(self(x), y.float())

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_mse", nn.functional.mse_loss(self(x), y.float()))


class Drawn:
    """Steps that call the loggers that they were written for."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.logger.experiment.add_scalar("loss", loss, self.global_step)
        self.logger.experiment["train/loss"] = float(loss)
        return loss

    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        self.logger.log_image("rows", [batch[0][0]])


class DrawnDigits(Drawn, LitDigits):
    pass


class DrawnRegression(Drawn, LitRegression):
    pass
'''


def write_user_code(folder: Path, name: str, package: str = "lightning.pytorch") -> ModuleType:
    """Write the file into a folder that is on the import path, and import it."""
    (folder / f"{name}.py").write_text(DIGITS.format(package=package))
    importlib.invalidate_caches()
    return importlib.import_module(name)


def train(user: ModuleType, module: str, data: str, path: Path, epochs: int = 6, **arguments: object) -> None:
    """Train a user's module as a user does, and save a checkpoint."""
    lightning = user.pl
    lightning.seed_everything(0, verbose=False)
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = lightning.Trainer(max_epochs=epochs, accelerator="cpu", devices=1, num_sanity_val_steps=0, **quiet)
    trainer.fit(getattr(user, module)(**arguments), getattr(user, data)())
    trainer.save_checkpoint(path)
