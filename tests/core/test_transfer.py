"""Transfer hooks of modules and data modules: each role's rows go through them as a batch of training does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_unlearn import (
    NPO,
    SSD,
    WAGLE,
    FisherForgetting,
    ForgetRetainDataModule,
    GradDiff,
    UnlearnMonitor,
    classifier_nll,
)
from lightning_unlearn.classification.metrics.outputs import collect_outputs
from tests.helpers import same
from tests.user_module import DictNet, LitNet, indexed, loaders, pairs, seeded, trainer


class Before:
    """Rows come as integers, which the net can't read."""

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return [batch[0].float() / 10, batch[1]]


class Transfer:
    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return [batch[0].to(device).float() / 10, batch[1].to(device)]


class After:
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return [batch[0].float() / 10, batch[1]]


HOOKS = [Before, Transfer, After]


def whole(seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randint(-9, 9, (8, 8), generator=generator), torch.randint(0, 3, (8,), generator=generator)
    return TensorDataset(x, y)


def converted(rows: TensorDataset) -> TensorDataset:
    return TensorDataset(rows.tensors[0].float() / 10, rows.tensors[1])


def of_roles(convert: Any = lambda rows: rows) -> dict[str, DataLoader]:
    return {role: DataLoader(convert(whole(i)), batch_size=4) for i, role in enumerate(("forget", "retain"))}


METHODS = {
    "NPO": lambda: [NPO(score=classifier_nll)],
    "GradDiff": lambda: [GradDiff(score=classifier_nll)],
    "SSD": lambda: [SSD(alpha=0.5)],
    "Fisher": lambda: [FisherForgetting()],
    "mask": lambda: [GradDiff(score=classifier_nll), WAGLE(density=0.5)],
    "monitor": lambda: [GradDiff(score=classifier_nll), UnlearnMonitor(score=classifier_nll)],
}


@pytest.mark.parametrize("method", METHODS)
def test_a_module_that_converts_its_batches_unlearns_as_with_converted_rows(method: str) -> None:
    expected, plain = seeded(), METHODS[method]()
    trainer(*plain).fit(expected, of_roles(converted))
    for hook in HOOKS:
        module, callbacks = seeded(type("Converts", (hook, LitNet), {})), METHODS[method]()
        trainer(*callbacks).fit(module, of_roles())
        assert same(module, expected)
        if method == "monitor":
            assert callbacks[1].history == plain[1].history


@pytest.mark.parametrize("hook", HOOKS)
def test_so_does_a_data_module_that_converts_them(hook: type) -> None:
    expected, module = seeded(), seeded()
    trainer(NPO(score=classifier_nll)).fit(expected, ForgetRetainDataModule(*map(converted, map(whole, (0, 1)))))
    kind = type("Data", (hook, ForgetRetainDataModule), {})
    trainer(NPO(score=classifier_nll)).fit(module, kind(whole(0), whole(1)))
    assert same(module, expected)


def test_validation_sees_plain_batches_and_hooks_are_given_back() -> None:
    class Sees(LitNet):
        kinds: list[str]

        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            self.kinds.append(f"{type(batch).__name__} of {len(batch)}")
            return batch

        def validation_step(self, batch: Any, batch_idx: int) -> None: ...

    module = seeded(Sees)
    module.kinds = []  # type: ignore[attr-defined]
    trainer(GradDiff(score=classifier_nll)).fit(module, loaders(), pairs(8, seed=3))
    assert set(module.kinds) == {"list of 2"}  # type: ignore[attr-defined]
    assert not {"on_after_batch_transfer", "training_step"} & vars(module).keys()


def test_rows_that_change_from_visit_to_visit_get_the_snapshot() -> None:
    class Normalizes(DictNet):
        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return batch | {"input": (batch["input"] - batch["input"].mean()) / batch["input"].std()}

    method = NPO(score=classifier_nll)
    trainer(method, max_epochs=2).fit(seeded(Normalizes), ForgetRetainDataModule(indexed(8, 1), indexed(8, 2)))
    assert method.snapshot is not None
    assert not method.caches


def test_outputs_of_a_module_without_a_trainer_go_through_its_hooks() -> None:
    module = seeded(type("Converts", (After, LitNet), {}))
    outputs = collect_outputs(module, {"forget": DataLoader(whole(0), batch_size=4)})["forget"]
    with torch.no_grad():
        assert torch.allclose(outputs.logits, seeded()(converted(whole(0)).tensors[0]), atol=1e-6)
    run = trainer(GradDiff(score=classifier_nll))
    run.fit(module, of_roles())
    del run  # the module holds it weakly
    collect_outputs(module, {"forget": DataLoader(whole(0), batch_size=4)})
