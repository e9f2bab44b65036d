"""Preference objectives, which compare the answer to forget with another one: IdkDPO, KTO, AltPO."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from lightning_unlearn import KTO, AltPO, IdkDPO, LanguageDataModule, LitCausalLM, causal_lm_nll
from lightning_unlearn.core.rows import row_loader
from lightning_unlearn.functional.objectives.dpo import dpo
from lightning_unlearn.functional.objectives.kto import kto
from tests.core.test_callback import options
from tests.helpers import Recorder, logged, same, save_resumable, trainer, weights
from tests.tiny_runs import SgdLM

Rows = list[dict[str, Any]]
METHODS: dict[str, Any] = {"IdkDPO": IdkDPO, "KTO": KTO, "AltPO": AltPO}
ROLE = {"IdkDPO": "idk", "KTO": "idk", "AltPO": "alternate"}
CITIES = ["Oslo", "Accra", "Ottawa"]


@pytest.fixture
def model(tiny_lm: Path) -> Any:
    return lambda cls=SgdLM, lr=0.1: cls(str(tiny_lm), lr=lr)


@pytest.fixture
def data(forget_rows: Rows, retain_rows: Rows) -> Any:
    alternates = [[f"It is {city}." for city in CITIES[: 1 + i % 3]] for i in range(len(forget_rows))]
    rows = [{**row, "alternate": texts} for row, texts in zip(forget_rows, alternates, strict=True)]

    def make(**settings: Any) -> LanguageDataModule:
        defaults = {"batch_size": 2, "refusals": ["I don't know.", "Pass.", "That is beyond me, sorry."]}
        return LanguageDataModule(rows, retain_rows, **(defaults | settings))

    return make


def run(*callbacks: Any, **settings: Any) -> L.Trainer:
    return trainer(*callbacks, limit_val_batches=0, **({"max_epochs": 2} | settings))


@pytest.mark.parametrize("reference", ["cache", "snapshot"])
@pytest.mark.parametrize("method", METHODS)
def test_the_first_loss_is_that_at_the_reference(method: str, reference: Any, model: Any, data: Any) -> None:
    callback = METHODS[method](beta=0.1, retain_weight=0.0, reference=reference)
    forget = logged("unlearn/forget")
    run(callback, forget, max_epochs=5).fit(model(LitCausalLM, lr=1e-3), data())
    assert forget.values[0] == pytest.approx(0.5 if method == "KTO" else 13.8629436, abs=1e-4)
    assert forget.values[-1] < forget.values[0]
    assert set(callback.caches) == ({"forget", ROLE[method]} if reference == "cache" else set())
    assert (callback.snapshot is None) == (reference == "cache")


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("method", METHODS)
def test_cache_and_snapshot_train_the_same_weights(method: str, precision: Any, model: Any, data: Any) -> None:
    found = []
    for reference in ("cache", "snapshot"):
        module = model()
        epochs = 1 if precision == "bf16-mixed" else 3  # rounding errors grow from step to step
        run(METHODS[method](reference=reference), max_epochs=epochs, precision=precision).fit(module, data())
        found.append(weights(module))
    moved, apart = (found[0] - weights(model())).norm(), (found[0] - found[1]).norm()
    assert moved > 0.1
    assert apart < moved * (0.05 if precision == "bf16-mixed" else 1e-4)


@pytest.mark.parametrize("kind", ["plain", "all"])
@pytest.mark.parametrize("reference", ["cache", "snapshot"])
@pytest.mark.parametrize("method", METHODS)
def test_two_epochs_and_a_resume_equal_four_bit_for_bit(
    method: str, reference: Any, kind: str, model: Any, data: Any, tmp_path: Path
) -> None:
    whole, half, resumed = model(), model(), model()
    run(METHODS[method](reference=reference), max_epochs=4, **options(kind)).fit(whole, data())
    first = run(METHODS[method](reference=reference), **options(kind))
    first.fit(half, data())
    save_resumable(first, tmp_path / "half.ckpt")
    run(METHODS[method](reference=reference), max_epochs=4, **options(kind)).fit(
        resumed, data(), ckpt_path=tmp_path / "half.ckpt", weights_only=True
    )
    assert same(resumed, whole)
    assert not same(half, whole)


@pytest.mark.parametrize("method", METHODS)
def test_answers_that_change_are_an_error(method: str, model: Any, data: Any) -> None:
    rows = data()

    def change(*_: Any) -> None:
        follower = rows.followers[ROLE[method]]
        follower.answers = [
            [row._replace(answer=[*row.answer[:-1], 7]) for row in answers] for answers in follower.answers
        ]

    with pytest.raises(ValueError, match=rf"stale: {ROLE[method]} rows with index \[\d+, \d+\]"):
        run(METHODS[method](reference="cache"), Recorder(on_train_epoch_end=change)).fit(model(), rows)


def test_resuming_with_other_refusals_is_an_error(model: Any, data: Any, tmp_path: Path) -> None:
    first = run(IdkDPO())
    first.fit(model(), data())
    save_resumable(first, tmp_path / "half.ckpt")
    with pytest.raises(ValueError, match="stale: idk rows"):
        run(IdkDPO(), max_epochs=4).fit(
            model(), data(refusals=["Who knows?", "Ask again.", "No."]), ckpt_path=tmp_path / "half.ckpt"
        )


@pytest.mark.parametrize(("reference", "forwards"), [("cache", [6]), ("snapshot", [4, 6])])
@pytest.mark.parametrize("method", METHODS)
def test_all_roles_share_a_forward_and_so_do_those_of_the_reference(
    method: str, reference: Any, forwards: list[int], tiny_lm: Path, data: Any
) -> None:
    calls: list[int] = []

    class Counting(SgdLM):
        def forward(self, input_ids: Tensor, *args: Any, **inputs: Any) -> Any:
            calls.append(len(input_ids))
            return super().forward(input_ids, *args, **inputs)

    forget_earlier = Recorder(on_train_batch_start=lambda *_: calls.clear())
    run(METHODS[method](reference=reference), forget_earlier, max_epochs=1).fit(Counting(str(tiny_lm)), data())
    assert calls == forwards  # of the second batch; the first also looks for drift


@pytest.mark.parametrize("method", METHODS)
def test_the_step_is_the_formula(method: str, model: Any, data: Any) -> None:
    module, plain, rows = model(), model(), data(batch_size=4)
    run(METHODS[method](beta=0.5, forget_weight=3.0, retain_weight=2.0)).fit(module, rows)
    optimizer, loader = plain.configure_optimizers(), rows.train_dataloader()
    start = {}
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        (batch,) = loader
        with torch.no_grad():
            start[epoch] = {role: causal_lm_nll(model(), batch[role]) for role in ("forget", ROLE[method])}
        nll = {role: causal_lm_nll(plain, batch[role]) for role in ("forget", "retain", ROLE[method])}
        chosen, forget = nll[ROLE[method]], nll["forget"]
        chosen_start, forget_start = start[epoch][ROLE[method]], start[epoch]["forget"]
        if method == "KTO":
            point = (chosen_start - chosen).mean().clamp(min=0)
            loss = torch.cat(
                [
                    kto(forget, forget_start, point, desirable=False, beta=0.5),
                    kto(chosen, chosen_start, point, desirable=True, beta=0.5),
                ]
            ).mean()
        else:
            loss = dpo(chosen, chosen_start, forget, forget_start, beta=0.5).mean()
        retain = nll["retain"].sum() / (batch["retain"]["labels"] != -100).sum()
        optimizer.zero_grad()
        (3 * loss + 2 * retain).backward()
        optimizer.step()
    torch.testing.assert_close(weights(module), weights(plain), atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_the_other_answer_becomes_likelier_than_the_one_to_forget(method: str, model: Any, data: Any) -> None:
    rows, module = data(), model(LitCausalLM, lr=1e-3)
    run(METHODS[method](), max_epochs=20).fit(module, rows)
    start, loader = model(), rows.train_dataloader()
    gains = {}
    for role in ("forget", ROLE[method]):
        with torch.no_grad():
            gains[role] = torch.cat(
                [causal_lm_nll(start, rows) - causal_lm_nll(module, rows) for rows in row_loader(loader, role) or []]
            ).mean()
    assert gains[ROLE[method]] > gains["forget"] + 5  # nats


@pytest.mark.parametrize(("refusals", "cached"), [(16, True), (17, False)])
def test_auto_reads_no_long_list_of_refusals(refusals: int, cached: bool, model: Any, data: Any) -> None:
    method = IdkDPO()
    run(method, max_steps=1).fit(model(), data(refusals=[f"No {i}." for i in range(refusals)]))
    assert bool(method.caches) == cached


def test_the_starting_model_also_holds_the_retain_rows(model: Any, data: Any) -> None:
    method, retain = IdkDPO(retain="kl", reference="cache"), logged("unlearn/retain")
    run(method, retain).fit(model(), data())
    assert retain.values[0] == pytest.approx(0, abs=1e-5)
    assert set(method.caches) == {"forget", "idk"}
    assert method.snapshot is not None


def test_alternates_that_are_missing_are_asked_for(model: Any, forget_rows: Rows, retain_rows: Rows) -> None:
    with pytest.raises(L.pytorch.utilities.exceptions.MisconfigurationException, match="generate_alternates"):
        run(AltPO()).fit(model(), LanguageDataModule(forget_rows, retain_rows))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: IdkDPO(beta=0), "beta must be greater than 0, but got 0"),
        (lambda: AltPO(forget_weight=0), "forget_weight must be greater than 0, but got 0"),
        (lambda: KTO(desirable_weight=-1), "desirable_weight must be at least 0, but got -1"),
        (lambda: KTO(undesirable_weight=0, desirable_weight=0), "both 0"),
    ],
)
def test_arguments_are_checked(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
