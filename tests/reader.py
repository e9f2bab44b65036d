"""Files that the README's reader has: a chat model with rows, and a module of their own with its checkpoint.

``python -m tests.reader FOLDER MODEL`` writes them, for a try of the README's commands by hand.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import lightning as L
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

MY_PROJECT = '''\
import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def rows(count, seed):
    """Ten noisy patterns of eight by eight."""
    patterns = torch.rand(10, 64, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 10, (count,), generator=generator)
    return TensorDataset(patterns[labels] + 0.5 * torch.randn(count, 64, generator=generator), labels)


class Digits(L.LightningDataModule):
    def setup(self, stage):
        self.train, self.val, self.test = rows(600, 1), rows(200, 2), rows(200, 3)

    def train_dataloader(self):
        return DataLoader(self.train, batch_size=20, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.val, batch_size=50)

    def test_dataloader(self):
        return DataLoader(self.test, batch_size=50)


class LitDigits(L.LightningModule):
    def __init__(self, lr=0.1):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.cross_entropy(self(x), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr, momentum=0.9)
'''


def write_reader(folder: Path, model: Path) -> Path:
    """Write the files of the README's reader.

    Args:
        folder: The folder; it is made.
        model: Folder of a chat model, which is linked to as ``my_model``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "my_model").symlink_to(model.resolve())
    facts = Path(__file__).parents[1] / "lightning_unlearn" / "assets" / "capitals" / "forget.jsonl"
    rows = [json.loads(line) for line in facts.read_text(encoding="utf-8").splitlines()]
    wanted = [{name: row[name] for name in ("question", "answer", "target")} for row in rows]
    (folder / "forget.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in wanted), encoding="utf-8")
    (folder / "my_project.py").write_text(MY_PROJECT, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("my_project", folder / "my_project.py")
    assert spec is not None
    assert spec.loader is not None
    project = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(project)
    L.seed_everything(0, verbose=False)
    trainer = L.Trainer(
        accelerator="cpu", devices=1, max_epochs=5, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(project.LitDigits(), project.Digits())
    trainer.save_checkpoint(folder / "trained.ckpt")
    return folder


def talkative(model: Path, folder: Path) -> Path:
    """A copy of a chat model with random weights that says something: no token without a letter is the likeliest."""
    tokenizer, chat_model = AutoTokenizer.from_pretrained(model), AutoModelForCausalLM.from_pretrained(model)
    blank = [i for i in range(len(tokenizer)) if not tokenizer.decode([i], skip_special_tokens=True).strip().isalnum()]
    with torch.no_grad():
        chat_model.get_output_embeddings().weight[blank] = 0
    chat_model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


if __name__ == "__main__":
    write_reader(Path(sys.argv[1]), Path(sys.argv[2]))
