"""Batches of any kind: what a collate function makes trains, is counted, joined and fingerprinted, or steps aside."""

from __future__ import annotations

from collections import UserDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import BatchEncoding

from lightning_unlearn import (
    NPO,
    SNIP,
    SSD,
    FisherForgetting,
    GradDiff,
    UnlearnMonitor,
    causal_lm_nll,
    classifier_nll,
    training_step_loss,
)
from lightning_unlearn.core.batches import as_mapping, row_fingerprint, rows_at, rows_in
from lightning_unlearn.core.reading import join
from tests.helpers import same, trainer, weights
from tests.user_module import LitNet, pairs, seeded


@dataclass
class Rows:
    x: Tensor
    labels: Tensor


class Named(NamedTuple):
    labels: Tensor
    x: Tensor


class Graphs:
    """As PyTorch Geometric makes them: nodes of all graphs in one tensor, and the edges between them."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y, self.num_graphs = x.repeat_interleave(2, 0), y, len(y)
        self.edge_index = torch.arange(2 * len(y)).reshape(2, -1)

    def to(self, device: Any, **_: Any) -> Graphs:
        return self


KINDS: dict[str, Any] = {
    "dataclass": Rows,
    "named tuple": lambda x, y: Named(y, x),
    "UserDict": lambda x, y: UserDict(x=x, labels=y),
    "BatchEncoding": lambda x, y: BatchEncoding({"x": x, "labels": y}),
    "nested": lambda x, y: {"points": {"in": x}, "label": y},
    "weighted": lambda x, y: (x, y, torch.rand(len(y))),
    "image and label": lambda x, y: {"image": x, "label": y},
    "graphs": Graphs,
}
OWN = ("nested", "graphs")  # what classifier_nll can't know


def parts(batch: Any) -> tuple[Tensor, Tensor]:
    if isinstance(batch, Graphs):
        return batch.x[::2], batch.y
    if isinstance(batch, (tuple, list)) and not isinstance(batch, Named):
        return batch[0], batch[1]
    named = as_mapping(batch)
    assert named is not None
    x, y = (
        next(named[name] for name in names if name in named)
        for names in (("x", "image", "points"), ("labels", "label"))
    )
    return (x["in"] if isinstance(x, dict) else x), y


def own(module: Any, batch: Any) -> Tensor:
    x, y = parts(batch)
    return torch.nn.functional.cross_entropy(module(x), y, reduction="none")


class Net(LitNet):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return own(self, batch).mean()


def loaders(kind: str) -> dict[str, DataLoader]:
    def collate(rows: list[Any]) -> Any:
        return KINDS[kind](*(torch.stack(column) for column in zip(*rows, strict=True)))

    return {
        role: DataLoader(pairs(16, seed).dataset, batch_size=4, collate_fn=collate)
        for role, seed in (("forget", 1), ("retain", 2))
    }


def fit(kind: str, *callbacks: Any) -> Net:
    module = seeded(Net)
    trainer(*callbacks).fit(module, loaders(kind) if kind else {"forget": pairs(16, 1), "retain": pairs(16, 2)})
    return module


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:.*leaves out the third part")
def test_every_kind_trains_what_pairs_train(kind: str) -> None:
    score = own if kind in OWN else classifier_nll
    assert same(fit(kind, NPO(score=score)), fit("", NPO(score=score)))
    assert same(fit(kind, GradDiff(score=training_step_loss)), fit("", GradDiff(score=training_step_loss)))
    monitor = UnlearnMonitor(score=own)
    fit(kind, GradDiff(score=own), SNIP(density=0.5, score=own), monitor)
    assert monitor.history[-1].metrics["forget_nll"] > 0


@pytest.mark.parametrize("kind", ["dataclass", "UserDict", "named tuple", "image and label"])
def test_edits_take_batches_apart(kind: str) -> None:
    for make in (lambda: FisherForgetting(rows_at_once=3), lambda: SSD(alpha=1.0)):
        for a, b in zip(fit(kind, make()).parameters(), fit("", make()).parameters(), strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_counted_and_taken_or_not(kind: str) -> None:
    x, y = torch.randn(3, 8), torch.tensor([0, 1, 2])
    batch = KINDS[kind](x, y)
    assert rows_in(batch) == 3
    first = rows_at(batch, slice(1))
    if kind == "graphs":
        assert first is None
        assert join([batch, batch]) is None
        return
    assert type(first) is type(batch)
    assert torch.equal(row_fingerprint(first), row_fingerprint(batch)[:1])
    joined = join([first, rows_at(batch, slice(1, 3))])
    assert type(joined) is type(batch)
    assert torch.equal(parts(joined)[0], x)


class Molecules:
    """Graphs in one object: as many rows as its length says, not as it has atoms."""

    def __init__(self, x: Tensor) -> None:
        self.atoms, self.of = x.repeat_interleave(3, 0), torch.arange(len(x)).repeat_interleave(3)

    def __len__(self) -> int:
        return int(self.of.max()) + 1


def test_graphs_are_counted_and_not_their_nodes() -> None:
    x = torch.randn(4, 8)
    assert rows_in((Molecules(x), None, torch.zeros(4))) == rows_in({"graphs": Molecules(x)}) == 4

    def score(module: Any, batch: Any) -> Tensor:
        atoms = module(batch[0].atoms).logsumexp(1)
        return torch.zeros(len(batch[0])).index_add(0, batch[0].of, atoms)

    module = seeded()
    start = weights(module)
    batches = [(Molecules(x), torch.zeros(4))]
    loader = DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
    trainer(NPO(score=score)).fit(module, {"forget": loader, "retain": loader})
    assert not torch.equal(weights(module), start)


def test_what_has_no_rows_goes_without() -> None:
    assert rows_in({"name": "a"}) is None
    assert rows_in(object()) is None
    assert rows_in(["a", "b"]) == 2


def test_weights_are_left_out_and_two_inputs_are_not_taken_for_them() -> None:
    module, x, y = seeded(), torch.randn(3, 8), torch.tensor([0, 1, 2])
    with pytest.warns(UserWarning, match="leaves out the third part"):
        weighted = classifier_nll(module, (x, y, torch.rand(3)))
    assert torch.equal(weighted, classifier_nll(module, (x, y)))
    for batch in ((x, torch.randn(3, 5), y), (torch.arange(3), torch.arange(3), torch.rand(3)), (x, y, y)):
        with pytest.raises(TypeError, match="classifier_nll reads"):
            classifier_nll(module, batch)


def test_causal_lm_nll_takes_what_a_tokenizer_gives() -> None:
    class Model(torch.nn.Module):
        def forward(self, input_ids: Tensor) -> Tensor:
            return torch.nn.functional.one_hot(input_ids, 7).float()

    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    row = {"input_ids": ids, "labels": ids}
    assert torch.equal(causal_lm_nll(Model(), BatchEncoding(row)), causal_lm_nll(Model(), row))  # type: ignore[arg-type]
