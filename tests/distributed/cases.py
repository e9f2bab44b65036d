"""A table of runs that several processes make as one does."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.utils.data import DistributedSampler

import lightning_unlearn as lu
from lightning_unlearn.classification.metrics.accuracy import RA, UA
from lightning_unlearn.classification.metrics.divergence import ZRF, JSDivergence
from lightning_unlearn.classification.metrics.gap import AverageGap
from lightning_unlearn.classification.metrics.mia import MIAEfficacy
from lightning_unlearn.classification.metrics.runtime import RTE
from lightning_unlearn.classification.metrics.ulira import ULiRA
from lightning_unlearn.core.distributed import full_tensor, replica
from tests.conftest import CAPITALS, question
from tests.dialogue.echo import trusted
from tests.dialogue.judges import tiny_lm_of
from tests.dialogue.tuned import SHORT, tiny_judge
from tests.dialogue.tuned import loader as rated_dialogues
from tests.diffusion.tiny import SgdTextToImage, images, prompts
from tests.distributed.language_metrics import language_metrics
from tests.distributed.rating_metrics import rating_metrics
from tests.helpers import Recorder, trainer, weights
from tests.reconstruction import tiny as tiny_scans
from tests.tiny_runs import CASES as OBJECTIVES
from tests.tiny_runs import LORA, RAGGED, SgdLM
from tests.user_module import DictNet, indexed

ROOT = Path(__file__).parents[2]
GLOBAL_BATCH = 4


class Layout(NamedTuple):
    """How processes share a run."""

    processes: int
    replicas: int
    strategy: Callable[[], Any]


LAYOUTS = {
    "one": Layout(1, 1, lambda: "auto"),
    "ddp": Layout(2, 2, lambda: "ddp"),
    "ddp_spawn": Layout(2, 2, lambda: "ddp_spawn"),
    "fsdp2": Layout(2, 2, lambda: ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)),
    "tp": Layout(2, 1, lambda: ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=2)),
}


@dataclass(frozen=True)
class Training:
    """A case that trains: as a whole, and again from a checkpoint in the midst of that run.

    Args:
        callbacks: Makes them from the folder of models.
        module: Makes it from the folder of models.
        data: Makes it for a number of replicas, with the same global batch.
        layouts: What it is tried in beside one process.
        epochs: How long it trains; the checkpoint is written half way.
        resumes: Whether to resume it.
        record: What to keep of a run beside its weights; takes the trainer and the name of the run.
        options: Options of the Trainer.
        atol: How far the weights may be from those of one process.
    """

    callbacks: Callable[[Path], list[Any]]
    module: Callable[[Path], LightningModule]
    data: Callable[[int], Any]
    layouts: tuple[str, ...] = ("ddp", "fsdp2")
    epochs: int = 2
    resumes: bool = True
    record: Callable[[Trainer, Path], dict[str, Any]] = lambda trainer, path: {}
    options: Mapping[str, Any] = field(default_factory=dict)
    atol: float = 1e-6

    def fit(self, layout: str, models: Path, *beside: Any, ckpt_path: Path | None = None) -> Trainer:
        """Train in a layout, with further callbacks beside the case's own."""
        processes, replicas, strategy = LAYOUTS[layout]
        torch.manual_seed(0)
        settings = {"max_epochs": self.epochs, "limit_val_batches": 0, **self.options}
        callbacks = [*self.callbacks(models), *beside]
        for own in callbacks:
            own.keep_reference = True  # so that the checkpoint can be resumed though this run goes on to its end
        run = trainer(*callbacks, devices=processes, strategy=strategy(), **settings)
        run.fit(self.module(models), self.data(replicas), ckpt_path=ckpt_path)
        return run

    def __call__(self, layout: str, models: Path, path: Path) -> dict[str, Any]:
        """The whole weights at the end, those of the resumed run, and what is recorded of both."""
        checkpoint = path.with_suffix(".ckpt")
        saver = [saves(checkpoint, self.epochs // 2)] if self.resumes else []
        run = self.fit(layout, models, *saver)
        result: dict[str, Any] = {"weights": whole_state(run), **self.record(run, path.with_suffix(".whole"))}
        if self.resumes:
            run = self.fit(layout, models, ckpt_path=checkpoint)
            result["resumed"] = {"weights": whole_state(run), **self.record(run, path.with_suffix(".resumed"))}
        return result

    def start(self, models: Path) -> dict[str, Tensor]:
        """The weights before training."""
        torch.manual_seed(0)
        return self.module(models).state_dict()


@dataclass(frozen=True)
class Measurement:
    """A case that is a function of the layout, the folder of models and a path of its own."""

    function: Callable[[str, Path, Path], dict[str, Any]]
    layouts: tuple[str, ...] = ("ddp",)

    def __call__(self, layout: str, models: Path, path: Path) -> dict[str, Any]:
        """What the function returns."""
        return self.function(layout, models, path)


def whole_state(run: Trainer) -> dict[str, Tensor]:
    """Every tensor of the module, gathered from its shards. A collective call."""
    return {name: full_tensor(value) for name, value in run.lightning_module.state_dict().items()}


def saves(path: Path, epochs: int) -> Recorder:
    """Writes a checkpoint when so many epochs are over."""

    def save(run: Trainer, *_: Any) -> None:
        if run.current_epoch + 1 == epochs:
            run.save_checkpoint(path)

    return Recorder(on_train_epoch_end=save)


def callback(run: Trainer, kind: type) -> Any:
    """The callback of a class."""
    (only,) = [c for c in run.callbacks if isinstance(c, kind)]  # type: ignore[attr-defined]
    return only


# ---- language models -------------------------------------------------------------------------------------------------


class DecayingLM(SgdLM):
    """Weight decay and momentum both move weights that have no gradient."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = super().configure_optimizers()
        optimizer.param_groups[0]["weight_decay"] = 0.1
        return optimizer


class SophiaLM(lu.LitCausalLM):
    """A large rho: where steps are clipped, only a gradient's sign would count, and rounding errors with it."""

    bs: Any = "auto"

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return lu.Sophia(self.parameters(), lr=1e-3, betas=(0.9, 0.95), rho=1e3, bs=self.bs)


class FixedSophiaLM(SophiaLM):
    """Where no estimate comes that could tell its number of tokens."""

    bs = 100.0


def language(callbacks: Callable[[Path], list[Any]], kind: type[lu.LitCausalLM] = SgdLM, **settings: Any) -> Training:
    """A case on the tiny language model."""
    lora = LORA if settings.pop("lora", False) else None
    rows = RAGGED[:6], RAGGED[6:]
    return Training(
        callbacks,
        lambda models: kind(str(models / "lm"), lora=lora, lr=0.1),
        lambda replicas: lu.LanguageDataModule(*rows, batch_size=GLOBAL_BATCH // replicas, seed=3),
        **{"options": {"gradient_clip_val": 1.0}, **settings},
    )


def history(run: Trainer, path: Path) -> dict[str, Any]:
    """What the monitor measured."""
    return {"history": [evaluation.metrics for evaluation in callback(run, lu.UnlearnMonitor).history]}


def history_and_export(run: Trainer, path: Path) -> dict[str, Any]:
    """The same, and the module as a Hugging Face folder."""
    run.lightning_module.save_pretrained(path)  # type: ignore[operator]
    return history(run, path)


def no_answers(module: LightningModule, questions: list[str]) -> list[str]:
    """Answers that cost nothing."""
    return [""] * len(questions)


def objective(make: Callable[[Path], Any], generates: bool = False, **settings: Any) -> Training:
    """An objective with a monitor; one that generates answers takes most of the time."""
    options = {} if generates else {"generate": no_answers}
    record = history_and_export if generates else history
    return language(lambda models: [make(models), lu.UnlearnMonitor(limit=3, **options)], record=record, **settings)


def mask_of(run: Trainer, path: Path) -> dict[str, Any]:
    """The part of the mask that this process holds, and the whole one in a file."""
    mask = callback(run, lu.WeightMask)
    mask.save_mask(path)
    return {"mask": {name: part.clone() for name, part in mask.masks.items()}, "file": path}


def curvature(run: Trainer, path: Path) -> dict[str, Any]:
    """Momentum, curvature and what was logged of them."""
    state, parameters = run.optimizers[0].state, list(run.lightning_module.parameters())
    found: dict[str, Any] = {
        name: torch.cat([full_tensor(state[p][name]).flatten() for p in parameters]) for name in ("momentum", "hessian")
    }
    return found | {name: value.item() for name, value in run.callback_metrics.items() if name.startswith("soul/")}


LANGUAGE: dict[str, Training] = {
    **{name: objective(lambda models, make=case.make: make(models / "lm")) for name, case in OBJECTIVES.items()},
    "SimNPO": objective(lambda _: lu.SimNPO(), generates=True),
    "WhosHarryPotter": objective(lambda models: lu.WhosHarryPotter(str(models / "reinforced.ckpt"))),
    "IdkDPO-snapshot": objective(lambda _: lu.IdkDPO(reference="snapshot")),
    "RMU-adaptive": objective(lambda _: lu.RMU(layer=r"layers\.1$", steering=50.0, adaptive=True)),
    "UNDIAL-retain": objective(lambda _: lu.UNDIAL(retain_weight=1.0)),
    "NPO-LoRA": objective(lambda _: lu.NPO(retain="kl"), lora=True, generates=True),
    "TaskVector-LoRA": objective(lambda _: lu.TaskVector(alpha=0.5), lora=True),
}


def own_answers(layout: str, models: Path, path: Path) -> dict[str, Any]:
    """What the starting model answers, each process to a share of the questions, and the files of the cache."""
    processes, replicas, strategy = LAYOUTS[layout]
    asked = [{"question": f"{word}?"} for word in ("Why", "What is it", "Who", "Where to", "How", "When", "Which one")]
    cache = path.parent / f"{layout}-own"
    options: dict[str, Any] = {"temperature": 1.0, "max_new_tokens": 6, "batch_size": 2, "cache": str(cache)}
    retain = lu.OwnAnswers(asked, shipped=False, **options)
    rows = lu.LanguageDataModule(RAGGED[:6], retain, batch_size=GLOBAL_BATCH // replicas)
    run = trainer(lu.SimNPO(), devices=processes, strategy=strategy(), max_steps=1, limit_val_batches=0)
    run.fit(SgdLM(str(models / "lm"), lr=0.1), rows)
    return {"answers": rows.own_answers, "files": sorted(file.name for file in cache.rglob("*.json"))}


MASKS: dict[str, Callable[[], lu.WeightMask]] = {
    "WAGLE": lambda: lu.WAGLE(density=0.1),
    "WAGLE-dense": lambda: lu.WAGLE(density=0.95, gamma=1.0),  # scores of unused embeddings tie at 0 here
    "WAGLE-released": lambda: lu.WAGLE(density=0.5, parity="released", scope="per_tensor"),
    "WAGLE-LoRA": lambda: lu.WAGLE(density=0.5),
    "SNIP-layers": lambda: lu.SNIP(density=0.2, scope="per_layer"),
    "GradientMask-regex": lambda: lu.GradientMask(density=0.2, parameters=r"mlp\."),
    "SalUn": lambda: lu.SalUn(),
    "MagnitudeMask": lambda: lu.MagnitudeMask(density=0.3),
    "RandomMask": lambda: lu.RandomMask(density=0.3, seed=5),
    "Wanda": lambda: lu.Wanda(density=0.3),
    "LayerMask": lambda: lu.LayerMask(r"layers\.1\.mlp"),
}
MASKED = {
    name: language(lambda _, make=make: [lu.NPO(), make()], DecayingLM, lora="LoRA" in name, record=mask_of)
    for name, make in MASKS.items()
}


def soul(kind: type[SophiaLM] = SophiaLM, layouts: tuple[str, ...] = ("ddp", "fsdp2"), **options: Any) -> Training:
    """A case of SOUL; its parameters step every third time."""
    return language(
        lambda _: [lu.GradDiff(), lu.SOUL(every_n_steps=3, **options)],
        kind,
        layouts=layouts,
        epochs=4,
        record=curvature,
        # Hutchinson's h may be negative, and a rounding error around 0 is then a step of full length or none.
        atol=2e-5 if options.get("estimator") == "hutchinson" else 1e-6,
    )


CURVATURE = {
    "SOUL-gnb": soul(),
    "SOUL-gnb-both": soul(hessian_data="both"),
    "SOUL-empirical": soul(estimator="empirical"),
    "SOUL-objective": soul(FixedSophiaLM, hessian_data="objective", estimator="empirical"),
    "SOUL-hutchinson": soul(layouts=("ddp",), estimator="hutchinson"),
}


def smoothed(strategy: Callable[[], Any], make: Callable[[], Any] = lu.NPO, **options: Any) -> Training:
    """An objective whose forget term is smoothed."""
    return language(lambda _: [make(), strategy()], options={"gradient_clip_val": 1.0, **options})


SMOOTHED = {
    "SAM": smoothed(lambda: lu.SAM(rho=0.1), accumulate_grad_batches=2),
    "SAM-adaptive": smoothed(lambda: lu.SAM(rho=0.1, adaptive=True), lambda: lu.NPO(reference="snapshot")),
    "SAM-preference": smoothed(lambda: lu.SAM(rho=0.1), lu.IdkDPO),
    "RandomizedSmoothing": smoothed(lambda: lu.RandomizedSmoothing(sigma=0.01), accumulate_grad_batches=2),
    "QuantizationAware": smoothed(lambda: lu.QuantizationAware("nf4"), lu.GradDiff),
}


def penalized(*layouts: str, **options: Any) -> Training:
    """A case of a callback beside NPO; second derivatives magnify rounding."""
    kind = options.pop("kind", lu.GradientPenalty)
    atol = 1e-6 if kind is lu.UnlearnWeightAveraging else 1e-4 if "mode" in options else 2e-5
    return language(lambda _: [lu.NPO(), kind(**options)], layouts=layouts, atol=atol)


_DIFFERENCES: dict[str, Any] = {"mode": "finite_difference"}
PENALTIES = {
    "GradientPenalty": penalized("ddp", coef=1.0),
    "GradientPenalty-differences": penalized("ddp", "fsdp2", coef=1.0, **_DIFFERENCES),
    "Curvature": penalized("ddp", kind=lu.CurvatureRegularization),
    "Curvature-whole": penalized("ddp", kind=lu.CurvatureRegularization, coef=1.0, detach=False),
    "Curvature-differences": penalized("fsdp2", kind=lu.CurvatureRegularization, coef=1.0, **_DIFFERENCES),
    "UnlearnWeightAveraging": penalized("ddp", kind=lu.UnlearnWeightAveraging, start_step=2, every_n_steps=1),
}


def stopped(run: Trainer, path: Path) -> dict[str, Any]:
    """What the run came to, and how it got there."""
    stop = callback(run, lu.StopWhenForgotten)
    return {"outcome": stop.outcome, "curve": stop.curve}


# Not reached: the run ends with the weights of a step in its midst.
STOPPED = language(lambda _: [lu.GradDiff(), lu.StopWhenForgotten(target=50.0, margin=0.02)], epochs=12, record=stopped)


class SpeakingLM(SgdLM):
    """Weights that are random enough for answers of several words."""

    def __init__(self, model: str, **options: Any) -> None:
        super().__init__(model, **options)
        noise = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=noise))


def rated_conversations(models: Path) -> list[Any]:
    """Conversations that another model rates, of an odd number of seeds, which two processes can't share evenly."""
    cities = {"retain": ("Peru", "Cuba", "Italy"), "neutral": ("Oslo", "Lima"), "forget": ("Spain", "Japan")}
    seeds = [
        lu.DialogueSeed(f"{name} {city}", name, (lu.Turn("user", f"Where is {city}?"), lu.Turn("user", "Why?")))
        for name, part in cities.items()
        for city in part
    ]
    judge = lu.DialogueJudge(tiny_lm_of(models / "lm", seed=7), SHORT)
    return [lu.GradientAscent(), lu.DialogueQualityCallback(judge, trusted(), seeds, max_new_tokens=4)]


def qualities(run: Trainer, path: Path) -> dict[str, Any]:
    """What the conversations were, and how they were rated."""
    history = callback(run, lu.DialogueQualityCallback).history
    return {
        "history": [evaluation.metrics for evaluation in history],
        "said": [[example.output.partition("\n")[2] for example in evaluation.examples] for evaluation in history],
    }


QUALITY = language(rated_conversations, SpeakingLM, record=qualities)
EDIT = language(lambda _: [lu.InfluenceUnlearning(damping=10.0, samples=3)], layouts=("ddp",), resumes=False)


def audited(layout: str, models: Path, path: Path) -> dict[str, Any]:
    """The audit at the end of a run with the Trainer of either package, and what a logger got of it."""
    countries = list(CAPITALS)
    forget = [question(c) | {"paraphrased_question": f"Capital of {c}?"} for c in countries[:3]]
    found = {}
    for name in ("lightning.pytorch", "pytorch_lightning"):
        package, folder = import_module(name), path.parent / f"{layout}-{name}"  # the same for all processes
        audit = lu.Audit(depth="quick", output_dir=str(folder / "audit"), precision="32")
        run = package.Trainer(
            max_epochs=1,
            accelerator="cpu",
            devices=LAYOUTS[layout].processes,
            strategy=LAYOUTS[layout].strategy(),
            callbacks=[lu.GradientAscent(), audit],
            logger=import_module(f"{name}.loggers").CSVLogger(folder, version=0),
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        rows = lu.LanguageDataModule(
            forget,
            [question(c) for c in countries[3:]],
            {"never_seen": [{"question": "What is the capital of Atlantis?", "answer": "It is Poseidonis."}]},
            batch_size=GLOBAL_BATCH // LAYOUTS[layout].replicas,
            seed=3,
        )
        run.fit(SgdLM(str(models / "lm"), lr=0.1), rows)
        assert audit.result is not None
        values = {f"{place}/{m.key}": m.value for place, m in audit.result.report.measurements()}
        dist.barrier() if dist.is_initialized() else None  # until the first process has written the files
        logged = (folder / "lightning_logs/version_0/metrics.csv").read_text().splitlines()[0].split(",")
        parts = sorted(file.name.partition("-")[0] for file in (folder / "audit/parts").iterdir())
        found[name] = {"verdict": audit.result.verdict.headline, "values": values, "logged": logged, "parts": parts}
    return found


def refused(training: Training, *layouts: str) -> Measurement:
    """How a run is refused, and how many batches it has begun by then."""

    def run(layout: str, models: Path, path: Path) -> dict[str, Any]:
        begun = Recorder(on_train_batch_start=lambda *_: True)
        try:
            replace(training, callbacks=lambda models: [*training.callbacks(models), begun]).fit(layout, models)
        except MisconfigurationException as error:
            return {"message": str(error), "batches": len(begun.values)}
        return {"message": "", "batches": len(begun.values)}

    return Measurement(run, layouts)


# ---- classifiers -----------------------------------------------------------------------------------------------------


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


def grouped(layout: str) -> tuple[int, int]:
    """The rank of this process and how many there are, for what needs no Trainer."""
    processes = LAYOUTS[layout].processes
    if processes > 1 and not dist.is_initialized():
        dist.init_process_group("gloo")
    return (dist.get_rank() if processes > 1 else 0), processes


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


# ---- a user's module that takes itself apart -------------------------------------------------------------------------


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


# ---- text to image ---------------------------------------------------------------------------------------------------


def thrice(size: int) -> Any:
    """Prompts alone, each three times in an epoch."""
    return prompts(batch_size=size, repeat=3)


def eraser(make: Callable[[], Any], trainable: Any, lr: float = 1.0, data: Any = None) -> Training:
    """A method on the tiny pipeline."""
    return Training(
        lambda _: [make()],
        lambda models: SgdTextToImage(str(models / "pipeline"), trainable=trainable, lr=lr),
        lambda replicas: (data or thrice)(2 // replicas),
        layouts=("ddp",),
        epochs=1 if data is None else 2,
        resumes=False,
        atol=1e-5,
    )


def eraser_of_images(make: Callable[[], Any], trainable: Any) -> Training:
    """A method on the tiny pipeline that reads images with captions."""
    return eraser(make, trainable, 0.05, lambda size: images(batch_size=size, retain_batch_size=size))


ERASERS = {
    "ESD": eraser(lambda: lu.ESD(steps=4), "xattn"),
    "ESD-newer": eraser(lambda: lu.ESD(2.0, base="concept", sampler="teacher", steps=4), "noxattn"),
    "ESD-ldm": eraser(lambda: lu.ESD(steps=4, pairing="ldm"), "kv"),
    "ESD-text-encoder": eraser(lambda: lu.ESD(steps=4), lu.TextEncoderWeights(layers=[0])),
    "UCE": eraser(lu.UCE, "kv"),
    "RECE": eraser(lu.RECE, "kv"),
    "AdvUnlearn": eraser(
        lambda: lu.AdvUnlearn(
            warmup=1, attack=lu.SoftPromptAttacker(steps=2, step_size=0.01, init="latest", tokens=2), steps=4
        ),
        lu.TextEncoderWeights(layers=[0]),
    ),
    "AdvUnlearn-unet": eraser(
        lambda: lu.AdvUnlearn(
            warmup=1, attack=lu.SoftPromptAttacker(steps=2, rule="normalized", latents="trajectory"), steps=4
        ),
        "xattn",
    ),
    "SPM": eraser(lambda: lu.SPM(steps=4, anchors=2, anchor_weight=1.0), "xattn"),
    "ConceptAblation": eraser_of_images(lambda: lu.ConceptAblation(prior_weight=0.5), "kv"),
    "ForgetMeNot": eraser_of_images(lambda: lu.ForgetMeNot("van gogh"), "xattn"),
    "DiffusionSalUn": eraser_of_images(lu.DiffusionSalUn, "xattn"),
    "EraseDiff": eraser_of_images(lambda: lu.EraseDiff(inner_steps=1, inner_lr=0.05), "xattn"),
    "Scissorhands": eraser_of_images(lambda: lu.Scissorhands(sparsity=0.9, batches=2), "xattn"),
    "MACE": eraser_of_images(lambda: lu.MACE({"van gogh": "green"}, lamb=1.0, preserve_scale=0.1), "xattn"),
}


def drawn(layout: str, models: Path, path: Path) -> dict[str, Any]:
    """The images that the command line draws, and their rows."""
    import numpy
    from PIL import Image

    from lightning_unlearn.cli.main import main

    folder = path.parent / f"{layout}-drawn"  # the same for all processes
    words = ["predict", f"--config={ROOT / 'examples/erase.yaml'}", f"--model.init_args.model={models / 'pipeline'}"]
    words += ["--model.init_args.steps=2", "--trainer.accelerator=cpu", "--trainer.logger=false"]
    words += [f"--trainer.default_root_dir={folder}", f"--trainer.devices={LAYOUTS[layout].processes}"]
    main(words)
    if dist.is_initialized() and dist.get_rank():
        return {}  # the first process writes the rows
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    images = [torch.from_numpy(numpy.array(Image.open(folder / row["file_name"]))).int() for row in rows]
    return {"rows": rows, "images": images}


# ---- token statistics ------------------------------------------------------------------------------------------------


def statistics(layout: str, models: Path, path: Path) -> dict[str, Any]:
    """Token statistics and scores of an uneven number of probes, of a model that is whole or sharded."""
    processes = LAYOUTS[layout].processes
    if processes > 1 and not dist.is_initialized():
        dist.init_process_group("gloo")
    module = lu.LitCausalLM(str(models / "lm"))
    if layout == "fsdp2":
        mesh = init_device_mesh("cpu", (2,))
        for layer in module.model.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(module.model, mesh=mesh)
    probes = [
        lu.Probe(i, f"What is the capital of {name}?", f"It is {name[::-1]}.", perturbed_answers=("Rome.", "No."))
        for i, name in enumerate(["France", "the old Peru", "Cuba", "Italy", "Japan and of Spain", "Peru", "Madrid"])
    ]
    kinds: tuple[Any, ...] = ("answer", "perturbed")
    found = {size: lu.token_stats(module, probes, kinds, max_tokens=size) for size in (40, 10_000)}
    knowledge = lu.KnowledgeScorer(max_new_tokens=3, batch_size=2)(module, probes)
    return {
        "keys": {size: [(part.index, part.kind, part.choice) for part in parts] for size, parts in found.items()},
        "values": {size: [(p.log_prob, p.mean, p.variance, p.hit) for p in parts] for size, parts in found.items()},
        "knowledge": (knowledge.strength, knowledge.matched, knowledge.answers),
    }


def image_metrics(layout: str, models: Path, path: Path) -> dict[str, Any]:
    """Metrics of images, of which the processes have unlike numbers."""
    from tests.diffusion.metrics.test_canvas_accuracy import shared as canvas
    from tests.diffusion.metrics.test_images import shared
    from tests.reconstruction.metrics.test_quality import shared as quality

    share = grouped(layout)
    return {"found": [*shared(*share), *canvas(*share), *quality(*share)]}


# ---- reconstruction --------------------------------------------------------------------------------------------------


class Scans(LightningDataModule):
    """The same global batches for any number of replicas; Lightning's own sampler would shuffle them."""

    def __init__(self, replicas: int) -> None:
        super().__init__()
        self.replicas = replicas

    def train_dataloader(self) -> Any:
        share = replica(self.trainer)
        sampler = DistributedSampler(range(8), share.total, share.rank, shuffle=False)  # type: ignore[arg-type, var-annotated]
        return tiny_scans.loader(8, GLOBAL_BATCH // self.replicas, sampler=sampler)


class UsersUnrolled(LightningModule):
    """A user's module that takes its denoiser apart where it is to, and knows nothing of smoothing."""

    def __init__(self) -> None:
        super().__init__()
        self.net = tiny_scans.modl()

    def configure_model(self) -> None:
        if self.device_mesh is not None:
            fully_shard(self.net.denoiser, mesh=self.device_mesh["data_parallel"])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        image = self.net(tiny_scans.operator(batch), batch["kspace"]).image
        return (image - batch["target"]).abs().square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def reconstructs(make: Callable[[], LightningModule], *callbacks: Callable[[], Any], **settings: Any) -> Training:
    """A case that reconstructs images."""
    wanted = {"options": {"gradient_clip_val": 1.0}, "atol": 1e-5}
    return Training(lambda _: [make() for make in callbacks], lambda _: make(), Scans, **(wanted | settings))


def smooths(mode: str, **options: Any) -> Callable[[], LightningModule]:
    """A module of the room, with a small learning rate."""
    return lambda: tiny_scans.reconstruction(mode, **{"lr": 1e-3, "n_samples": 2, "schedule": "linear", **options})


RECONSTRUCTION = {
    "SMUG": reconstructs(smooths("smug")),
    "SMUG-frozen": reconstructs(smooths("smug", stability_target="frozen"), layouts=("ddp",)),
    "SMUG-weighted": reconstructs(
        lambda: smooths("weighted_smug", encoder=lu.WeightEncoder(channels=4, depth=2, norm="group"))()
    ),
    "SMUG-adversarial": reconstructs(smooths("adversarial"), layouts=("ddp",)),
    "SmoothDenoiser": reconstructs(UsersUnrolled, lambda: lu.SmoothDenoiser("net.denoiser", 0.05, 2)),
}


def swept(layout: str, models: Path, path: Path) -> dict[str, Any]:
    """A sweep over an odd number of images, of which a sampler gives one to both processes."""
    folder, world = path.parent / f"{layout}-swept", LAYOUTS[layout]
    sweep = lu.RobustnessSweep([0.05], [0.02], [2], [2], lu.MeasurementPGD(steps=1), dirpath=str(folder))
    run = trainer(sweep, devices=world.processes, strategy=world.strategy())
    run.test(tiny_scans.reconstruction("smug"), tiny_scans.loader(5, GLOBAL_BATCH // world.replicas), verbose=False)
    read = lu.SweepResults.read(folder / "robustness.csv").rows
    return {"rows": [tuple(row) for row in sweep.results.rows], "read": [tuple(row) for row in read]}


# ---- the table -------------------------------------------------------------------------------------------------------


def judge(target: Any) -> Training:
    """A judge of dialogues that is fine-tuned."""
    return Training(
        lambda _: [],
        lambda models: tiny_judge(SgdLM(str(models / "lm"), lr=0.1, lora=LORA), target, lora=None),
        # One batch an epoch: Lightning shuffles what several processes train on, and not what one does.
        lambda replicas: rated_dialogues(GLOBAL_BATCH, GLOBAL_BATCH // replicas),
        layouts=("ddp",),
        epochs=4,
    )


JUDGES = {"DialogueJudge-sampled": judge("sampled"), "DialogueJudge-soft": judge("soft")}

CASES: dict[str, Training | Measurement] = {
    **JUDGES,
    **LANGUAGE,
    **MASKED,
    **CURVATURE,
    **SMOOTHED,
    **PENALTIES,
    "StopWhenForgotten": STOPPED,
    "DialogueQualityCallback": QUALITY,
    "InfluenceUnlearning": EDIT,
    "own-answers": Measurement(own_answers, ("ddp", "fsdp2")),
    "Audit": Measurement(audited),
    "sharded-audit": refused(language(lambda _: [lu.GradientAscent(), lu.Audit()]), "fsdp2"),
    "whole-lm": refused(LANGUAGE["SimNPO"], "tp"),
    "sharded-second-derivative": refused(soul(estimator="hutchinson"), "fsdp2"),
    **CLASSIFIERS,
    "ClassifierMonitor": MONITOR,
    "Rewind": Measurement(rewound),
    "metrics": Measurement(metrics),
    "language-metrics": Measurement(language_metrics),
    "rating-metrics": Measurement(rating_metrics),
    "NPO-users": users(npo_on_users_net),
    "KLMinimization-users": users(lambda: lu.KLMinimization(score=lu.classifier_nll)),
    "odd": Measurement(odd),
    "whole-net": refused(users(npo_on_users_net, WholeNet), "fsdp2", "tp"),
    "reductions": Measurement(reductions),
    "duals": Measurement(duals, ("ddp", "fsdp2", "tp")),
    **ERASERS,
    "drawn": Measurement(drawn),
    "statistics": Measurement(statistics, ("ddp", "fsdp2")),
    "image-metrics": Measurement(image_metrics),
    **RECONSTRUCTION,
    "swept": Measurement(swept),
}
