"""Cases on classifiers, one of which shards itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Trainer
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import lightning_unlearn as lu
from lightning_unlearn.classification.metrics.accuracy import RA, UA
from lightning_unlearn.classification.metrics.divergence import ZRF, JSDivergence
from lightning_unlearn.classification.metrics.gap import AverageGap
from lightning_unlearn.classification.metrics.mia import MIAEfficacy
from lightning_unlearn.classification.metrics.runtime import RTE
from lightning_unlearn.classification.metrics.ulira import ULiRA
from tests.distributed.layouts import GLOBAL_BATCH, Training, callback, grouped, whole_state
from tests.helpers import Recorder, weights
from tests.user_module import DictNet, indexed

CLASS = 2  # that no retain row has, for a method that forgets a class


class Faster(DictNet):
    """A larger learning rate shows a larger difference."""

    def __init__(self, lr: float = 0.1) -> None:
        super().__init__(lr=lr)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None: ...


def classifier(
    make: Callable[[], Any],
    kind: type[DictNet] = Faster,
    forget: int = 12,
    size: int | None = None,
    epoch: Any = "forget",
    **settings: Any,
) -> Training:
    """A method for classifiers. An edit reads all rows on every process, so that ``size`` is that of each."""
    rows = indexed(forget, 1), [row for row in indexed(24, 2) if row["labels"] != CLASS]
    return Training(
        lambda _: [make()],
        lambda _: kind(),
        lambda replicas: lu.ForgetRetainDataModule(
            *rows, batch_size=size or GLOBAL_BATCH // replicas, epoch=epoch, seed=3
        ),
        **{"layouts": ("ddp",), "resumes": False, "atol": 2e-5, **settings},
    )


CLASSIFIERS = {
    "UGradSL": classifier(lu.UGradSL),
    "UGradSL-sum": classifier(lambda: lu.UGradSL(reduction="sum", p=0.9)),
    "UGradSL-isolation": classifier(lambda: lu.UGradSL(alpha=None, beta=0.3)),
    "UGradSL-euclid": classifier(lambda: lu.UGradSL(alpha=None, distance="euclid", rule="density")),
    "FineTune": classifier(lu.FineTune, epoch="retain"),
    "NegGradPlus": classifier(lambda: lu.NegGradPlus(p=0.5), epoch="retain"),
    "UGradSLPlus": classifier(lambda: lu.UGradSLPlus(p=0.7), epoch="retain"),
    "L1Sparse": classifier(lambda: lu.L1Sparse(gamma=1e-3), epoch="retain"),
    "RandomLabels": classifier(lu.RandomLabels),
    "RandomLabels-once": classifier(lambda: lu.RandomLabels("once")),
    "SCRUB": classifier(lambda: lu.SCRUB(alpha=0.1), epoch="retain"),
    "BadTeacher": classifier(lu.BadTeacher),
    "BoundaryShrink": classifier(lambda: lu.BoundaryShrink(epsilon=1.0, clip=None)),
    "BoundaryExpand": classifier(lu.BoundaryExpand),
    "DUCK": classifier(lambda: lu.DUCK(target_accuracy=None)),
    "DUCK-stops": classifier(lambda: lu.DUCK(target_accuracy=1.0)),
    "CFk": classifier(lambda: lu.CFk(1), epoch="retain"),
    "EUk": classifier(lambda: lu.EUk(1), epoch="retain"),
    "Retrain": classifier(lambda: lu.Retrain(score=lu.classifier_nll), epoch="retain"),
    "UNSIR": classifier(lambda: lu.UNSIR(CLASS, noise_rows=8, noise_steps=5, noise_ratio=1.0), epoch="retain"),
    "FisherForgetting": classifier(lu.FisherForgetting),
    "SSD": classifier(lambda: lu.SSD(alpha=1.2), size=4),  # its importance is of batches of one size
}


def classifier_numbers(run: Trainer, path: Path) -> dict[str, Any]:
    """What the monitor measured in the run, and in a validation after it."""
    monitor = callback(run, lu.ClassifierMonitor)
    (validated, *_) = run.validate(run.lightning_module, run.datamodule, verbose=False)  # type: ignore[attr-defined]
    metrics = [evaluation.metrics for evaluation in monitor.history]
    return {"history": metrics, "reference": monitor.reference, "validated": validated}


# Sets that two processes can't share evenly, and one that has a row for the first alone. The net stands still.
MONITOR = Training(
    lambda models: [
        lu.NegGradPlus(),
        lu.ClassifierMonitor(retrained=models / "retrained.pt", shadow="first", features=["confidence", "prob"]),
    ],
    lambda _: Faster(lr=0.0),
    lambda _: lu.ForgetRetainDataModule(
        indexed(13, 1), indexed(19, 2), {"test": indexed(9, 3), "few": indexed(1, 4)}, batch_size=4
    ),
    layouts=("ddp",),
    epochs=1,
    resumes=False,
    record=classifier_numbers,
    options={"limit_val_batches": None},
)


def rewound(layout: str, models: Path, path: Path) -> dict[str, Any]:
    """The errors of each epoch, of sets that two processes can't share evenly, and the weights of the chosen one."""
    rewind = lu.Rewind("unseen", dirpath=str(path.with_suffix(".epochs")))
    training = Training(
        lambda _: [lu.GradientAscent(score=lu.classifier_nll), rewind],
        lambda _: DictNet(lr=0.01),
        lambda replicas: lu.ForgetRetainDataModule(
            indexed(24, 1), indexed(8, 2), {"unseen": indexed(41, 3)}, batch_size=8 // replicas
        ),
        epochs=5,
    )
    run = training.fit(layout, models)
    return {"errors": rewind.errors, "chosen": rewind.chosen, "weights": whole_state(run)}


METRIC_ROWS, METRIC_MODELS = 41, 8


def metrics(layout: str, models: Path, path: Path) -> dict[str, Any]:
    """Each metric of the same outputs, whose rows the processes share."""
    rank, processes = grouped(layout)
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(METRIC_MODELS, METRIC_ROWS, 3, generator=generator)
    labels = torch.randint(3, (METRIC_ROWS,), generator=generator)
    unlearned = torch.rand(METRIC_MODELS, METRIC_ROWS, generator=generator).argsort(0) < METRIC_MODELS // 2
    found: dict[str, Any] = {"ra": RA(), "ua": UA(), "js": JSDivergence(), "zrf": ZRF(), "ulira": ULiRA(METRIC_MODELS)}
    for rows in torch.arange(rank, METRIC_ROWS, processes).split(7):
        for name in ("ra", "ua"):
            found[name].update(logits[0, rows], labels[rows])
        for name in ("js", "zrf"):
            found[name].update(logits[0, rows], logits[1, rows])
        found["ulira"].update(logits[:, rows], labels[rows], unlearned[:, rows])
    found["gap"] = AverageGap()
    if rank == 0:  # the other process has seen no row
        found["gap"].update({"ua": 3.0}, {"ua": 5.0})
    found["rte"] = RTE()
    found["rte"].update(
        3.0 / (1 + rank), steps=4, samples=METRIC_ROWS if processes == 1 else METRIC_ROWS // 2 + 1 - rank
    )
    found["mia"] = MIAEfficacy(shadow="stratified", max_shadow=10)
    for model, role in enumerate(("member", "nonmember")):
        rows = torch.arange(rank, METRIC_ROWS, processes)
        found["mia"].update(logits[model, rows], labels[rows], role)
    if rank == processes - 1:
        found["mia"].update(logits[2], labels, "forget")
    return {name: metric.compute() for name, metric in found.items()}


class ShardedNet(DictNet):
    """Applies what the strategy asks for, as Lightning's documentation says."""

    def configure_model(self) -> None:
        if self.device_mesh is None:
            return
        if self.device_mesh["tensor_parallel"].size() > 1:
            plan = {"0": ColwiseParallel(), "3": RowwiseParallel()}
            parallelize_module(self.net, self.device_mesh["tensor_parallel"], plan)
        else:
            fully_shard(self.net, mesh=self.device_mesh["data_parallel"])


class WholeNet(DictNet):
    """Has the hook that the strategy demands, and leaves the model whole in it."""

    def configure_model(self) -> None: ...


def users(make: Callable[[], Any], kind: type[DictNet] = ShardedNet, **settings: Any) -> Training:
    """A method on the user's net."""
    wanted = {"forget": 14, "layouts": ("ddp", "fsdp2", "tp"), "resumes": True, "atol": 1e-6}
    return classifier(make, kind, **(wanted | settings))


def npo_on_users_net() -> lu.NPO:
    return lu.NPO(score=lu.classifier_nll)


def duals(layout: str, models: Path, path: Path) -> dict[str, Any]:
    """PDU's dual variable after each batch; each process sees other retain rows."""
    method = lu.PDU(epsilon=0.5, initial_dual=2.0, dual_step_size=0.5, warmup_epochs=0, score=lu.classifier_nll)
    values = Recorder(on_train_batch_end=lambda *_: method.dual)
    training = users(lambda: method, epochs=1, options={"accumulate_grad_batches": 2})
    replace(training, callbacks=lambda _: [method, values]).fit(layout, models)
    return {"duals": values.values}


def odd(layout: str, models: Path, path: Path) -> dict[str, Any]:
    """The rows and the weights after each of the four steps on 15 rows, one of them with three rows."""
    steps = Recorder(
        on_train_batch_end=lambda _, module, __, batch, ___: (batch["forget"]["index"].tolist(), weights(module))
    )
    training = users(npo_on_users_net, forget=15, epochs=1)
    replace(training, callbacks=lambda _: [npo_on_users_net(), steps]).fit(layout, models)
    return {"steps": steps.values}


def reductions(layout: str, models: Path, path: Path) -> dict[str, Any]:
    """How often each step of NPO calls all_reduce; DDP's own averaging of gradients is not in it."""
    calls: list[int] = []
    real = dist.all_reduce

    def counted(*arguments: Any, **options: Any) -> Any:
        if calls:
            calls[-1] += 1
        return real(*arguments, **options)

    count = Recorder(on_train_batch_start=lambda *_: calls.append(0), on_train_epoch_end=lambda *_: calls.append(0))
    dist.all_reduce = counted
    try:
        training = users(npo_on_users_net, epochs=1)
        replace(training, callbacks=lambda _: [npo_on_users_net(), count]).fit(layout, models)
    finally:
        dist.all_reduce = real
    return {"calls": calls[:-1]}
