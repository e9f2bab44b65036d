"""Masks: exactly so many weights move, and no other one by a single bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.strategies import DeepSpeedStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from lightning_unlearn import (
    NPO,
    SNIP,
    WAGLE,
    ForgetRetainDataModule,
    GradDiff,
    GradientMask,
    LanguageDataModule,
    LayerMask,
    LitCausalLM,
    MagnitudeMask,
    RandomMask,
    SalUn,
    Sophia,
    Wanda,
    WeightMask,
    classifier_nll,
    load_mask,
    mask_density_figure,
    mask_density_table,
    training_step_loss,
)
from lightning_unlearn.functional.saliency.overlap import mask_iou
from lightning_unlearn.functional.saliency.wagle import wagle_score
from tests.helpers import Recorder, bits, same, trainer, weights
from tests.tiny_runs import LORA
from tests.user_module import DictNet, LitNet, indexed, loaders, pairs

MASKS: dict[str, Callable[..., WeightMask]] = {
    "WAGLE": WAGLE,
    "SNIP": SNIP,
    "GradientMask": GradientMask,
    "SalUn": SalUn,
    "MagnitudeMask": MagnitudeMask,
    "RandomMask": RandomMask,
    "Wanda": Wanda,
}
D = 8 * 16 + 16 + 16 * 3 + 3


class Net(LitNet):
    """The user's net with a choice of optimizers."""

    def __init__(self, optimizer: str = "sgd", dropout: float = 0.0) -> None:
        super().__init__(dropout=dropout)
        self.optimizer = optimizer

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return OPTIMIZERS[self.optimizer](self.parameters())


class Mixer(torch.optim.Optimizer):
    """Moves each weight by the gradients of all others, as Muon and Shampoo do, and decays through ``.data``."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.01})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        with torch.enable_grad():
            loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                p.data.mul_(0.999)
                if p.grad is not None:
                    p.sub_(group["lr"] * (p.grad + p.grad.mean()))
        return loss


OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "adamw-fused": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, fused=True),
    "mixer": Mixer,
    "sophia": lambda p: Sophia(p, lr=0.01, weight_decay=0.1),
}


def seeded(optimizer: str = "sgd", **options: Any) -> Net:
    torch.manual_seed(0)
    module = Net(optimizer, **options)
    with torch.no_grad():
        module.net[0].weight.view(-1)[:4] = torch.tensor([-0.0, 0.0, 1e-40, -1e-40])
    return module


def objective(**options: Any) -> GradDiff:
    return GradDiff(forget_weight=0.1, score=classifier_nll, **options)


def flat(mask: WeightMask, module: nn.Module) -> Tensor:
    """The mask over all parameters; those that it does not list are frozen."""
    parts = [mask.masks.get(n, torch.zeros(p.shape, dtype=torch.bool)) for n, p in module.named_parameters()]
    return torch.cat([part.flatten() for part in parts])


def gradients(module: nn.Module, rows: list[tuple[Tensor, Tensor]], reduction: str = "mean") -> dict[str, Tensor]:
    """The independent reference: one plain backward pass over all rows."""
    x, y = (torch.cat([row[i] for row in rows]) for i in (0, 1))
    loss = nn.functional.cross_entropy(module(x), y, reduction=reduction)
    return dict(zip(dict(module.named_parameters()), torch.autograd.grad(loss, list(module.parameters())), strict=True))


# ---- the contract --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("optimizer", "kind"),
    [
        # "all" has each of the others, which are slow tests but for one optimizer and where there is no "all".
        pytest.param(o, kind, marks=[] if kind in ("fp32", "all") or o in ("sgd", "adamw-fused") else pytest.mark.slow)
        for o in OPTIMIZERS
        for kind in ("fp32", "bf16", "accumulate", "clip", "all")
        if (o, kind) != ("adamw-fused", "all")  # Lightning refuses to clip it in mixed precision
    ],
)
def test_frozen_weights_are_bit_identical_after_200_steps(optimizer: str, kind: str) -> None:
    options: dict[str, Any] = {
        "fp32": {},
        "bf16": {"precision": "bf16-mixed"},
        "accumulate": {"accumulate_grad_batches": 2},
        "clip": {"gradient_clip_val": 0.1},
        "all": {"precision": "bf16-mixed", "accumulate_grad_batches": 2, "gradient_clip_val": 0.1},
    }[kind]
    module, mask = seeded(optimizer), WAGLE(density=0.5)
    before = bits(weights(module))
    run = trainer(objective(), mask, max_epochs=-1, max_steps=200, **options)
    run.fit(module, loaders())
    assert run.global_step == 200
    live, after = flat(mask, module), bits(weights(module))
    assert int(live.sum()) == int(0.5 * D)
    assert torch.equal(after[~live], before[~live])
    assert (after[live] != before[live]).float().mean() > 0.9
    assert not run.optimizers[0]._optimizer_step_post_hooks


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_run_resumed_in_the_middle_is_the_whole_run_bit_for_bit(optimizer: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"accumulate_grad_batches": 2, "gradient_clip_val": 0.5}
    whole, first = seeded(optimizer), WAGLE(density=0.3)
    before = bits(weights(whole))
    trainer(objective(), first, max_epochs=4, **options).fit(whole, loaders())

    half = trainer(objective(), WAGLE(density=0.3), max_epochs=2, **options)
    half.fit(seeded(optimizer), loaders())
    half.save_checkpoint(tmp_path / "half.ckpt")

    class Restored(WAGLE):
        def scores(self, *_: Any) -> dict[str, Tensor]:
            raise AssertionError("a resumed run must not score the weights of the half-unlearned model")

    Restored.__name__ = Restored.__qualname__ = "WAGLE"
    resumed, second = Net(optimizer), Restored(density=0.3)
    trainer(objective(), second, max_epochs=4, **options).fit(
        resumed, loaders(), ckpt_path=tmp_path / "half.ckpt", weights_only=True
    )
    assert same(resumed, whole)
    live = flat(second, resumed)
    assert torch.equal(live, flat(first, whole))
    assert torch.equal(bits(weights(resumed))[~live], before[~live])
    state = torch.load(tmp_path / "half.ckpt", weights_only=True)["callbacks"]["WAGLE"]
    assert sum(t.numel() for t in state["masks"].values()) == 16 + 2 + 6 + 1
    assert {t.dtype for t in state["masks"].values()} == {torch.uint8}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("kind", [kind for kind in MASKS if kind != "Wanda"])  # it freezes biases
def test_density_1_is_the_unmasked_run_and_0_moves_nothing(kind: str, precision: Any) -> None:
    plain = seeded("adamw", dropout=0.5)
    trainer(objective(), max_epochs=3, precision=precision, gradient_clip_val=0.5).fit(plain, loaders())
    dense = seeded("adamw", dropout=0.5)
    trainer(objective(), MASKS[kind](density=1.0), max_epochs=3, precision=precision, gradient_clip_val=0.5).fit(
        dense, loaders()
    )
    assert same(dense, plain)

    still = seeded("adamw")
    before = bits(weights(still))
    trainer(objective(), MASKS[kind](density=0.0), max_epochs=3, precision=precision).fit(still, loaders())
    assert torch.equal(bits(weights(still)), before)


def test_clipping_sees_live_weights_only() -> None:
    def gradient(run: L.Trainer, module: L.LightningModule, *_: Any) -> Tensor:
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in module.parameters()]
        return torch.cat([g.flatten() for g in grads])

    module, mask, seen = seeded(), RandomMask(density=0.2), Recorder(on_before_optimizer_step=gradient)
    trainer(objective(), mask, seen, max_steps=1).fit(module, loaders())
    live = flat(mask, module)
    assert (seen.values[0][~live] == 0).all()
    assert (seen.values[0][live] != 0).float().mean() > 0.5


def test_a_nan_in_a_frozen_gradient_stays_there() -> None:
    def poison(run: L.Trainer, module: L.LightningModule) -> None:
        for p, m in zip(module.parameters(), mask.masks.values(), strict=True):
            p.grad[~m] = torch.nan  # type: ignore[index]

    module, mask = seeded("adamw"), RandomMask(density=0.5)
    trainer(mask, objective(), Recorder(on_after_backward=poison), max_epochs=2).fit(module, loaders())
    assert weights(module).isfinite().all()


def test_momentum_from_before_the_mask_is_cleared() -> None:
    module = seeded("sgd")
    optimizer = OPTIMIZERS["sgd"](module.parameters())
    for _ in range(3):
        nn.functional.cross_entropy(module(torch.randn(8, 8)), torch.randint(0, 3, (8,))).backward()
        optimizer.step()
        optimizer.zero_grad()
    module.configure_optimizers = lambda: optimizer  # type: ignore[method-assign]
    before, mask = bits(weights(module)), RandomMask(density=0.5)
    momentum = Recorder(
        on_train_batch_start=lambda *_: torch.cat(
            [optimizer.state[p]["momentum_buffer"].flatten() for p in module.parameters()]
        )
    )
    trainer(objective(), mask, momentum, max_epochs=3).fit(module, loaders())
    live = flat(mask, module)
    assert (momentum.values[0][~live] == 0).all()
    assert (momentum.values[0][live] != 0).all()
    assert torch.equal(bits(weights(module))[~live], before[~live])


def test_hooks_are_gone_after_a_crash() -> None:
    def crash(*_: Any) -> None:
        raise RuntimeError("crash")

    run = trainer(objective(), RandomMask(density=0.5), Recorder(on_train_batch_end=crash))
    with pytest.raises(RuntimeError, match="crash"):
        run.fit(seeded(), loaders())
    assert not run.optimizers[0]._optimizer_step_post_hooks


# ---- the scores ----------------------------------------------------------------------------------------------------


def test_wagle_scores_are_those_of_one_plain_backward_pass() -> None:
    module, mask = seeded(), WAGLE(density=0.25, gamma=0.01)
    forget, retain = (gradients(module, list(pairs(16, seed))) for seed in (1, 2))
    scores = torch.cat(
        [wagle_score(p.detach(), forget[n], retain[n], 0.01).flatten() for n, p in module.named_parameters()]
    )
    trainer(objective(), mask, max_steps=1).fit(module, loaders())
    expected = torch.zeros(D, dtype=torch.bool)
    expected[scores.argsort(descending=True, stable=True)[: int(0.25 * D)]] = True
    assert torch.equal(flat(mask, module), expected)


def test_released_parity_is_the_stated_conversion_of_gamma() -> None:
    found = []
    for mask in (WAGLE(0.3, gamma=1e-3, parity="released"), WAGLE(0.3, gamma=1e-3 * 4 / 16)):
        module = seeded()
        trainer(objective(), mask, max_steps=1, accumulate_grad_batches=4).fit(module, loaders())
        found.append(flat(mask, module))
    assert torch.equal(*found)


def test_n_copies_of_the_rows_and_other_batches_give_the_same_mask() -> None:
    found = []
    for copies, size in ((1, 4), (3, 4), (1, 5), (1, 16)):
        rows = {role: [row for batch in pairs(16, seed) for row in zip(*batch, strict=True)] * copies
                for role, seed in (("forget", 1), ("retain", 2))}  # fmt: skip
        module, mask = seeded(), WAGLE(density=0.3, gamma=0.01)
        trainer(objective(), mask, max_steps=1).fit(
            module, {role: DataLoader(part, batch_size=size) for role, part in rows.items()}
        )
        found.append(flat(mask, module))
    assert all(torch.equal(found[0], other) for other in found[1:])


@pytest.mark.parametrize("kind", MASKS)
def test_making_the_mask_leaves_no_trace(kind: str) -> None:
    class Norm(Net):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 3))
            self.net[2].eval()

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return super().forward(x)

    torch.manual_seed(0)
    module = Norm()
    module.register_buffer("calls", torch.zeros(()))

    def state(*_: Any) -> Any:
        assert all(p.grad is None for p in module.parameters())
        assert "log" not in vars(module)
        flags = [child.training for child in module.modules()]
        return ({k: v.clone() for k, v in module.state_dict().items()}, flags, torch.get_rng_state())

    before, after = Recorder(on_train_start=state), Recorder(on_train_start=state)
    trainer(before, objective(), MASKS[kind](density=0.5), after, max_steps=1).fit(module, loaders())
    (first, flags, rng), (second, flags_after, rng_after) = (*before.values, *after.values)
    assert same(first, second)
    assert flags == flags_after
    assert torch.equal(rng, rng_after)


@pytest.mark.parametrize("density", [0.0, 0.013, 0.1, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("kind", MASKS)
def test_exactly_so_many_weights_may_move(kind: str, density: float) -> None:
    module, mask = seeded(), MASKS[kind](density=density)
    trainer(objective(), mask, max_steps=1).fit(module, loaders())
    wanted = 16 * int(density * 8) + 3 * int(density * 16) if kind == "Wanda" else int(density * D)
    assert int(flat(mask, module).sum()) == wanted


@pytest.mark.parametrize(
    ("scope", "wanted"),
    [("per_tensor", [38, 4, 14, 0]), ("per_layer", [38 + 5, 14 + 1])],
)
def test_scopes(scope: Any, wanted: list[int]) -> None:
    module, mask = seeded(), SNIP(density=0.3, scope=scope)
    trainer(objective(), mask, max_steps=1).fit(module, loaders())
    counts = [int(m.sum()) for m in mask.masks.values()]
    if scope == "per_layer":
        counts = [sum(counts[:2]), sum(counts[2:])]
    assert counts == wanted


def test_a_regular_expression_says_what_is_scored_and_the_rest_is_frozen() -> None:
    module, mask = seeded("adamw"), SNIP(density=0.5, parameters=r"net\.0\.weight")
    before = bits(weights(module))
    trainer(objective(), mask, max_epochs=3).fit(module, loaders())
    assert mask.masks.keys() == {"net.0.weight"}
    live = flat(mask, module)
    assert int(live.sum()) == 64
    assert torch.equal(bits(weights(module))[~live], before[~live])

    module = seeded("adamw")
    trainer(objective(), LayerMask(r"net\.3"), max_epochs=3).fit(module, loaders())
    moved = bits(weights(module)) != before
    assert not moved[: 128 + 16].any()
    assert moved[128 + 16 :].any()


def test_wanda_reads_inputs_of_the_linear_layers() -> None:
    module, mask = seeded(), Wanda(density=0.5)
    x = torch.cat([batch[0] for batch in pairs(16, seed=1)])
    first = module.net[0]
    scores = first.weight.detach().abs() * x.norm(dim=0)
    trainer(objective(), mask, max_steps=1).fit(module, loaders())
    assert torch.equal(mask.masks["net.0.weight"], scores >= scores.topk(4, dim=1).values[:, -1:])
    assert mask.masks.keys() == {"net.0.weight", "net.3.weight"}


def test_salun_is_the_gradient_mask_at_one_half() -> None:
    found = []
    for mask in (SalUn(), GradientMask(density=0.5)):
        module = seeded()
        trainer(objective(), mask, max_steps=1).fit(module, loaders())
        found.append(flat(mask, module))
    assert torch.equal(*found)


def test_a_loss_that_cannot_be_read_by_row_will_do_and_logs_nothing() -> None:
    module, mask = seeded(), WAGLE(density=0.3)
    run = trainer(GradDiff(forget_weight=0.1, score=training_step_loss), mask, max_steps=2)
    run.fit(module, loaders())
    assert int(flat(mask, module).sum()) == int(0.3 * D)


# ---- language models -----------------------------------------------------------------------------------------------


def language(tiny_lm: Path, forget: Any, retain: Any, mask: WeightMask, **options: Any) -> tuple[Any, Any]:
    torch.manual_seed(0)
    module = LitCausalLM(str(tiny_lm), lr=1e-2, weight_decay=0.1, **options)
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    trainer(NPO(), mask, max_epochs=3).fit(module, LanguageDataModule(forget, retain, batch_size=2))
    return module, before


@pytest.mark.parametrize("lora", [None, LORA])
def test_a_language_model_with_tied_weights_or_adapters(
    tiny_lm: Path, forget_rows: Any, retain_rows: Any, lora: Any
) -> None:
    mask = WAGLE(density=0.1)
    module, before = language(tiny_lm, forget_rows, retain_rows, mask, lora=lora)
    trained = {n: p for n, p in module.named_parameters() if p.requires_grad}
    assert mask.masks.keys() == trained.keys()
    assert any("embed_tokens" in n for n in trained) != (lora is not None)
    assert not any("lm_head" in n for n in trained)  # tied: one mask, one count
    total = sum(p.numel() for p in trained.values())
    assert sum(int(m.sum()) for m in mask.masks.values()) == int(0.1 * total)
    moved = 0
    for name, p in module.named_parameters():
        live = mask.masks.get(name, torch.zeros(p.shape, dtype=torch.bool))
        assert torch.equal(p.detach()[~live].view(torch.int32), before[name][~live].view(torch.int32))
        moved += int((p.detach()[live] != before[name][live]).sum())
    assert moved > 0.05 * total


def test_padding_does_not_count_for_wanda(tiny_lm: Path, forget_rows: Any, retain_rows: Any) -> None:
    rows = [{**row, "answer": row["answer"] * (1 + i)} for i, row in enumerate(forget_rows)]
    found = []
    for size in (1, 4):
        mask = Wanda(density=0.2)
        module = LitCausalLM(str(tiny_lm))
        trainer(NPO(), mask, max_steps=1).fit(module, LanguageDataModule(rows, retain_rows, batch_size=size))
        found.append(mask.masks)
    assert mask_iou(*found) > 0.999


# ---- files, tables, figures ----------------------------------------------------------------------------------------


def test_a_mask_file_is_used_again_without_scoring(tmp_path: Path) -> None:
    module, mask = seeded(), WAGLE(density=0.3)
    with pytest.raises(RuntimeError, match="no mask yet"):
        mask.save_mask(tmp_path / "early.safetensors")
    trainer(objective(), mask, max_steps=1).fit(module, loaders())
    path = tmp_path / "mask.safetensors"
    mask.save_mask(path)
    saved = load_mask(path)
    assert all(torch.equal(saved[name], m) for name, m in mask.masks.items())

    class NoScores(WAGLE):
        def scores(self, *_: Any) -> dict[str, Tensor]:
            raise AssertionError("scored")

    NoScores.__name__ = "WAGLE"
    again = NoScores(density=0.3, mask_file=str(path))
    trainer(objective(), again, max_steps=1).fit(seeded(), loaders())
    assert mask_iou(again.masks, mask.masks) == 1

    for wrong, message in (
        (WAGLE(density=0.2, mask_file=str(path)), "'density': 0.2"),
        (SNIP(density=0.3, mask_file=str(path)), "'method': 'SNIP'"),
    ):
        with pytest.raises(MisconfigurationException, match=message):
            trainer(objective(), wrong, max_steps=1).fit(seeded(), loaders())
    other = seeded()
    other.net[0] = nn.Linear(8, 16, bias=False)
    with pytest.raises(MisconfigurationException, match="of another module: 1 parameters"):
        trainer(objective(), WAGLE(density=0.3, mask_file=str(path)), max_steps=1).fit(other, loaders())

    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ValueError, match="hash differs"):
        load_mask(path)
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="can't be read as a safetensors file"):
        load_mask(path)
    with pytest.raises(FileNotFoundError, match="no mask file"):
        load_mask(tmp_path / "absent")


def test_the_density_table_and_figure() -> None:
    pytest.importorskip("matplotlib")
    masks = {
        "model.layers.0.mlp.up.weight": torch.tensor([True, False, False, False]),
        "model.layers.0.mlp.up.bias": torch.tensor([True]),
        "model.layers.1.mlp.up.weight": torch.tensor([True, True]),
        "model.embed.weight": torch.tensor([False]),
    }
    table = mask_density_table(masks)
    assert [(row.layer, row.kind, row.density) for row in table] == [
        ("0", "mlp.up", 0.25),
        ("0", "mlp.up.bias", 1.0),
        ("1", "mlp.up", 1.0),
        ("–", "model.embed", 0.0),
    ]
    figure = mask_density_figure(table)
    figure.canvas.draw()
    ticks = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert ticks == ["mlp.up", "mlp.up.bias", "model.embed"]

    module, mask = seeded(), SNIP(density=0.3)
    trainer(objective(), mask, max_steps=1).fit(module, loaders())
    assert mask.density_table() == mask_density_table(mask.masks)


def test_the_density_is_logged(tmp_path: Path) -> None:
    from lightning.pytorch.loggers import CSVLogger

    logger = CSVLogger(tmp_path)
    trainer(objective(), SNIP(density=0.5), max_steps=1, logger=logger).fit(seeded(), loaders())
    logger.save()
    assert f"{int(0.5 * D) / D}" in (Path(logger.log_dir) / "metrics.csv").read_text()


# ---- errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WAGLE(density=1.5), "in \\[0, 1\\], but got 1.5"),
        (lambda: WAGLE(density=float("nan")), "but got nan"),
        (lambda: WAGLE(density=0.5, gamma=0), "gamma must be greater than 0"),
        (lambda: WAGLE(density=0.5, retain_rows=0), "retain_rows must be a number of at least 1"),
        (lambda: WAGLE(density=0.5, retain_rows="some"), "retain_rows must be"),  # type: ignore[arg-type]
        (lambda: WAGLE(density=0.5, parity="own"), "parity must be 'paper' or 'released'"),  # type: ignore[arg-type]
        (lambda: SNIP(density=0.5, scope="row"), "scope must be"),  # type: ignore[arg-type]
        (lambda: SNIP(density=0.5, parameters="("), "is not a regular expression"),
        (lambda: Wanda(density=0.5, rows=0), "rows must be at least 1"),
    ],
)
def test_bad_arguments(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


class Sparse(Net):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(3, 3, sparse=True)


class Stream(IterableDataset):
    def __iter__(self) -> Any:
        yield from zip(*next(iter(pairs(4, 1))), strict=True)


class Anew(Stream):
    """Other rows in each pass."""

    passes = 0

    def __iter__(self) -> Any:
        type(self).passes += 1  # a copy is read before the run
        for input, label in super().__iter__():
            yield input + self.passes, label


def test_rows_of_a_stream_make_the_mask_of_these_rows() -> None:
    masks = []
    for forget in (pairs(4, 1), DataLoader(Stream(), 4)):
        mask = SNIP(0.5)
        trainer(objective(), mask, max_steps=1).fit(seeded(), {"forget": forget, "retain": pairs(4, 2)})
        masks.append(mask)
    assert all(torch.equal(value, masks[1].masks[name]) for name, value in masks[0].masks.items())


@pytest.mark.parametrize(
    ("callbacks", "module", "data", "message"),
    [
        ([SNIP(0.5), RandomMask(0.5)], seeded, loaders, "A run has one mask"),
        ([SNIP(0.5, parameters="attention")], seeded, loaders, "has no weights to choose from"),
        ([SNIP(0.5)], Sparse, loaders, "sparse gradients of table"),
        ([SNIP(0.5)], seeded, lambda: {"forget": DataLoader(Anew(), 2), "retain": pairs(4, 2)}, "gave other rows than"),
    ],
)
def test_bad_runs(callbacks: Any, module: Any, data: Any, message: str) -> None:
    net = module()
    before = bits(weights(net))
    with pytest.raises(MisconfigurationException, match=message):
        trainer(objective(), *callbacks, max_steps=1).fit(net, data())
    assert torch.equal(bits(weights(net)), before)


def test_deepspeed_is_refused() -> None:
    run = SimpleNamespace(strategy=object.__new__(DeepSpeedStrategy), callbacks=[])
    with pytest.raises(MisconfigurationException, match=r"SNIP does not support DeepSpeedStrategy.*Use strategy='ddp'"):
        SNIP(0.5).setup(run, seeded(), "fit")  # type: ignore[arg-type]


def test_a_gradient_that_is_not_finite_is_refused() -> None:
    module = seeded()
    with torch.no_grad():
        module.net[0].bias[0] = torch.inf
    with pytest.raises(FloatingPointError, match=r"forget rows: the gradient with respect to net\.0\.weight is not"):
        trainer(objective(), WAGLE(0.5), max_steps=1).fit(module, loaders())


def test_a_checkpoint_without_the_mask_or_with_another_is_refused(tmp_path: Path) -> None:
    run = trainer(objective(), max_epochs=1)
    run.fit(seeded(), loaders())
    run.save_checkpoint(tmp_path / "dense.ckpt")
    with pytest.raises(MisconfigurationException, match="an unlearning run without SNIP"):
        trainer(objective(), SNIP(0.5), max_epochs=2).fit(seeded(), loaders(), ckpt_path=tmp_path / "dense.ckpt")

    run = trainer(objective(), SNIP(0.5), max_epochs=1)
    run.fit(seeded(), loaders())
    run.save_checkpoint(tmp_path / "half.ckpt")
    with pytest.raises(MisconfigurationException, match=r"'density': 0\.4"):
        trainer(objective(), SNIP(0.4), max_epochs=2).fit(seeded(), loaders(), ckpt_path=tmp_path / "half.ckpt")


def test_rows_that_are_dicts_and_a_data_module() -> None:
    torch.manual_seed(0)
    module, mask = DictNet(), WAGLE(density=0.5, retain_rows="all")
    data = ForgetRetainDataModule(indexed(13, seed=1), indexed(7, seed=2), batch_size=4)
    trainer(NPO(score=classifier_nll), mask, max_epochs=2).fit(module, data)
    assert int(flat(mask, module).sum()) == int(0.5 * D)
