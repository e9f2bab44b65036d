# python examples/classifiers.py
"""Two classifiers that know nothing of unlearning, on tables and on text: each forgets a class.

Trains both, saves their weights in runs/classifiers/, and lets them forget. From these weights, examples/tabular.yaml
and examples/text.yaml do the second part from the command line, with the same result.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_unlearn import ClassifierMonitor, ForgetRetainDataModule, UGradSL

Rows = list[Any]
OUTPUT = Path("runs/classifiers")


class TabularMLP(L.LightningModule):
    """Reads pairs of features and a label."""

    def __init__(self, features: int = 64, classes: int = 10, lr: float = 0.05, weights: str | None = None) -> None:
        super().__init__()
        self.lr = lr
        self.layers = nn.Sequential(nn.Linear(features, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.head = nn.Linear(64, classes)
        if weights:
            self.load_state_dict(torch.load(weights, weights_only=True))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return F.cross_entropy(self(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


class TextTransformer(L.LightningModule):
    """Reads dicts of token numbers, a mask and a label."""

    def __init__(self, tokens: int = 64, classes: int = 6, lr: float = 2e-3, weights: str | None = None) -> None:
        super().__init__()
        self.lr = lr
        self.embed, self.places = nn.Embedding(tokens, 32), nn.Embedding(16, 32)
        self.encoder = nn.TransformerEncoderLayer(32, nhead=4, dim_feedforward=64, dropout=0.0, batch_first=True)
        self.head = nn.Linear(32, classes)
        if weights:
            self.load_state_dict(torch.load(weights, weights_only=True))

    def forward(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        h = self.embed(input_ids) + self.places.weight[: input_ids.shape[1]]
        h = self.encoder(h, src_key_padding_mask=~mask)
        return self.head((h * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch["input_ids"], batch["mask"]), batch["labels"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.lr)


class TabularData(ForgetRetainDataModule):
    """A table of scikit-learn, standardized; the rows of one class are to be forgotten.

    Args:
        table: ``"digits"``, ``"wine"`` or ``"breast_cancer"``.
        forget_class: The class to forget.
    """

    def __init__(self, table: str = "digits", forget_class: int = 3) -> None:
        from sklearn import datasets

        x, y = getattr(datasets, f"load_{table}")(return_X_y=True)
        x = torch.from_numpy((x - x.mean(0)) / (x.std(0) + 1e-6)).float()
        self.rows = list(zip(x, y.tolist(), strict=True))
        train, test = split(self.rows)
        super().__init__(*class_wise(train, test, [y for _, y in train], [y for _, y in test], forget_class), 32)


class TextData(ForgetRetainDataModule):
    """Sentences of 8 to 16 words. Half of the words are of the sentence's topic, the others are of none.

    Args:
        topics: Number of topics, the classes.
        forget_class: The topic to forget.
        sentences: Sentences of each topic.
    """

    def __init__(self, topics: int = 6, forget_class: int = 2, sentences: int = 150) -> None:
        generator = torch.Generator().manual_seed(0)

        def sentence(topic: int) -> dict[str, Any]:
            length = int(torch.randint(8, 17, (), generator=generator))
            own = 4 + 10 * topic + torch.randint(10, (16,), generator=generator)
            common = torch.randint(4, 4 + 10 * topics, (16,), generator=generator)
            words = torch.where(torch.rand(16, generator=generator) < 0.5, own, common)
            mask = torch.arange(16) < length
            return {"input_ids": words * mask, "mask": mask, "labels": topic}

        self.rows = [sentence(topic) for topic in range(topics) for _ in range(sentences)]
        train, test = split(self.rows)
        labels = ([row["labels"] for row in part] for part in (train, test))
        super().__init__(*class_wise(train, test, *labels, forget_class), 32)


def split(rows: Rows, seed: int = 0) -> tuple[Rows, Rows]:
    """Four fifths of the rows and the others."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    cut = 4 * len(rows) // 5
    return [rows[i] for i in order[:cut]], [rows[i] for i in order[cut:]]


def class_wise(train: Rows, test: Rows, labels: list[int], test_labels: list[int], forget_class: int) -> Any:
    """Rows to forget and to retain, and test rows without and of the class."""
    forget, retain = ([r for r, y in zip(train, labels, strict=True) if (y == forget_class) == gone] for gone in (1, 0))
    kept, gone = ([r for r, y in zip(test, test_labels, strict=True) if (y == forget_class) == g] for g in (0, 1))
    return forget, retain, {"test": kept, "test_forget": gone}


def trainer(epochs: int, *callbacks: L.Callback) -> L.Trainer:
    return L.Trainer(
        max_epochs=epochs, callbacks=list(callbacks), accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, gradient_clip_val=10.0,
    )  # fmt: skip


def train(module: L.LightningModule, data: Any, path: Path, epochs: int = 20) -> None:
    rows = data.sets["forget"].rows + data.sets["retain"].rows
    trainer(epochs).fit(module, DataLoader(rows, batch_size=32, shuffle=True))
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(module.state_dict(), path)


def forget(module: L.LightningModule, data: Any, epochs: int = 5) -> ClassifierMonitor:
    monitor = ClassifierMonitor()
    trainer(epochs, UGradSL(alpha=-0.2, p=0.5), monitor).fit(module, data)
    return monitor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    output = parser.parse_args().output
    for name, kind, data, lr, unlearning_lr in (
        ("tabular", TabularMLP, TabularData(), 0.05, 2.5e-3),
        ("text", TextTransformer, TextData(), 2e-3, 9e-4),
    ):
        print(name)
        L.seed_everything(0, verbose=False)
        train(kind(lr=lr), data, output / f"{name}.pt")
        forget(kind(lr=unlearning_lr, weights=str(output / f"{name}.pt")), data)


if __name__ == "__main__":
    main()
