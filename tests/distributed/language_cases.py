"""Cases on language models, judges of dialogues included."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import lightning_unlearn as lu
from lightning_unlearn.core.distributed import full_tensor
from tests.conftest import CAPITALS, question
from tests.dialogue.echo import trusted
from tests.dialogue.judges import tiny_lm_of
from tests.dialogue.tuned import SHORT, tiny_judge
from tests.dialogue.tuned import loader as rated_dialogues
from tests.distributed.layouts import GLOBAL_BATCH, LAYOUTS, Training, callback
from tests.helpers import trainer
from tests.tiny_runs import CASES as OBJECTIVES
from tests.tiny_runs import LORA, RAGGED, SgdLM


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
    """What the original model answers, each process to a share of the questions, and the files of the cache."""
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
