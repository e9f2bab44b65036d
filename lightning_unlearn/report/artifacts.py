"""W&B artifacts of a run: the unlearned model, the weight delta, and the record."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from lightning_unlearn.core.callback import UnlearnCallback
from lightning_unlearn.core.checks import strategy
from lightning_unlearn.core.lightning import (
    WANDB_LOGGERS,
    Callback,
    LightningModule,
    Logger,
    MisconfigurationException,
    Trainer,
    rank_zero_warn,
)
from lightning_unlearn.report.findings import doctor, is_readable
from lightning_unlearn.weights.delta import NOTE, save_delta

__all__ = ["LogArtifacts", "log_artifacts"]

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

_EVIDENCE = ("report.html", "report.json", "report.md", "record.jsonl", "public_key.pem", "run.yaml")
_SECRETS = ("rows.secret",)


def log_artifacts(logger: Logger, contents: Mapping[str, Paths], metadata: Mapping[str, Any] | None = None) -> None:
    """Log files and folders to a W&B run as artifacts, after a look into what they would give away.

    The artifact of kind ``model`` of a run ``x`` is called ``unlearned-model-x``, any other one ``<kind>-x``. W&B keeps
    a digest of every file, with which a download can be told from an altered one.

    Args:
        logger: A ``WandbLogger``, online or offline.
        contents: For each kind of artifact, such as ``"model"``, ``"delta"`` or ``"record"``, a file, a folder or a
            list of them. Of a folder given as ``"record"``, the report, the record, the public key and the settings of
            the run are taken, and not what an audit keeps beside them.
        metadata: What W&B shows beside each artifact.

    Raises:
        TypeError: If the logger is not one of W&B.
        FileNotFoundError: If there is no such file or folder.
        ValueError: If a file is a private key or the secret of an audit, or gives away the model or the rows of before.

    Example:
        ```python
        log_artifacts(logger, {"model": "out/model", "record": "out"})
        ```
    """
    if not isinstance(logger, WANDB_LOGGERS):
        raise TypeError(
            f"Artifacts are logged to W&B, but the logger is a {type(logger).__name__}. Give a WandbLogger."
        )
    import wandb

    chosen = {kind: list(_files(kind, paths)) for kind, paths in contents.items()}
    for kind, files in chosen.items():
        for file, _ in files:
            _check(kind, file)
    run = logger.experiment
    for kind, files in chosen.items():
        name = f"{'unlearned-model' if kind == 'model' else kind}-{run.id}"
        artifact = wandb.Artifact(name, kind, metadata=dict(metadata or {}))
        for file, place in files:
            artifact.add_file(str(file), place)
        run.log_artifact(artifact)


class LogArtifacts(Callback):
    """Logs what came out of a run to W&B: the unlearned model, what the run changed, and files of other callbacks.

    It acts when ``fit`` has ended without an error and all other callbacks are done, so that it finds what they wrote.
    A module with a method ``save_pretrained`` is logged as the folder that this writes; any other one as a checkpoint
    of its weights and hyperparameters, for ``load_from_checkpoint``. Neither holds anything of the time before. The
    ``log_model="all"`` of ``WandbLogger`` does, since it uploads checkpoints while the run goes on.

    Args:
        model: Whether to log the model.
        delta: Whether to log a weight delta, see [`save_delta`][lightning_unlearn.save_delta]. The starting weights are
            kept in memory for it. Whoever has it and the unlearned model can restore the model of before.
        files: Further artifacts, for each kind a file, a folder, or a list of them, such as
            ``{"record": "runs/audit"}`` for the folder that `Audit` writes. What is not there at the end is left out
            with a warning.

    Raises:
        ValueError: If there is nothing to log.
        MisconfigurationException: If the run has no W&B logger, a strategy shards the weights, or a delta is wanted of
            a run that is resumed or trains adapters.

    Example:
        >>> LogArtifacts(files={"record": "runs/audit"}).model
        True
    """

    def __init__(
        self, model: bool = True, delta: bool = False, files: dict[str, str | list[str]] | None = None
    ) -> None:
        self.model, self.delta, self.files = model, delta, dict(files or {})
        if not (model or delta or self.files):
            raise ValueError("LogArtifacts has nothing to log. Give model=True, delta=True or files={'record': ...}.")
        if taken := {"model", "delta"} & self.files.keys():
            raise ValueError(
                f"LogArtifacts(files=...) names {sorted(taken)}, which it makes itself. Give these another name."
            )
        self._start: dict[str, Tensor] = {}
        self._ended = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the run, and keep the starting weights for a delta."""
        self._ended = False
        if not any(isinstance(logger, WANDB_LOGGERS) for logger in trainer.loggers):
            raise MisconfigurationException(
                "LogArtifacts logs to W&B, but the run has no WandbLogger. Give one: "
                "Trainer(logger=WandbLogger(project=...)), with offline=True where there is no network."
            )
        strategy("LogArtifacts", trainer, sharded=False, reason="logs whole weights")
        if not self.delta:
            return
        if trainer.ckpt_path is not None:
            raise MisconfigurationException(
                "LogArtifacts(delta=True) needs the starting weights, which the checkpoint of a resumed run does not "
                "have. Take delta=False, and write it with `lightning-unlearn export --delta` after the run."
            )
        self._start, weights = {}, _network(pl_module).state_dict()
        if any(".lora_" in name for name in weights):
            raise MisconfigurationException(
                "LogArtifacts(delta=True) is for whole models, but the run trains adapters, which are smaller than a "
                "delta. Take delta=False, and log them with files=."
            )
        copies: dict[tuple[int, torch.Size], Tensor] = {}  # tied weights stay tied
        for name, value in weights.items():
            key = value.data_ptr(), value.shape
            if key not in copies:
                copies[key] = value.detach().cpu().clone()
            self._start[name] = copies[key]

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that the run has ended without an error."""
        self._ended = True

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Log the artifacts, after the other callbacks have written their files and before loggers are closed."""
        start, self._start = self._start, {}
        if stage != "fit" or not self._ended:
            return
        self._ended = False
        with TemporaryDirectory() as scratch:
            contents = self._written(trainer, pl_module, start, Path(scratch))
            for logger in trainer.loggers if trainer.is_global_zero else ():
                for kind, paths in contents.items() if isinstance(logger, WANDB_LOGGERS) else ():
                    try:
                        log_artifacts(logger, {kind: paths}, _metadata(trainer))
                    except ValueError as error:  # the run is over: what is refused is left out
                        rank_zero_warn(f"LogArtifacts leaves {kind!r} out. {error}")

    def _written(
        self, trainer: Trainer, module: LightningModule, start: dict[str, Tensor], scratch: Path
    ) -> dict[str, Paths]:
        contents: dict[str, Paths] = {}
        if self.model:
            save = getattr(module, "save_pretrained", None)
            contents["model"] = path = scratch / ("model" if callable(save) else "model.ckpt")
            if callable(save):
                save(path)
            else:
                trainer.save_checkpoint(path, weights_only=True)  # collective
        if start and trainer.is_global_zero:
            contents["delta"] = path = scratch / "delta.safetensors"
            save_delta(start, _network(module).state_dict(), path)
            if self.model:
                rank_zero_warn(f"LogArtifacts logs the unlearned model and the delta to one project. {NOTE}")
        for kind, paths in self.files.items():
            there = [path for path in _listed(paths) if Path(path).exists()]
            if lacking := sorted(set(map(str, _listed(paths))) - set(map(str, there))):
                rank_zero_warn(f"LogArtifacts did not find {', '.join(lacking)}, and leaves it out of {kind!r}.")
            if there:
                contents[kind] = there
        return contents


def _network(module: LightningModule) -> nn.Module:
    """The network whose tensors have the names that they have in an exported folder."""
    inner = getattr(module, "model", None)
    return inner if hasattr(module, "save_pretrained") and isinstance(inner, nn.Module) else module


def _metadata(trainer: Trainer) -> dict[str, Any]:
    methods = [type(c).__name__ for c in trainer.callbacks if isinstance(c, UnlearnCallback)]  # type: ignore[attr-defined]
    return {"method": ", ".join(methods), "step": trainer.global_step, "epoch": trainer.current_epoch}


def _listed(paths: Paths) -> Iterable[str | os.PathLike[str]]:
    return [paths] if isinstance(paths, (str, os.PathLike)) else paths


def _files(kind: str, paths: Paths) -> Iterator[tuple[Path, str]]:
    """The files of an artifact, and their names in it."""
    for path in map(Path, _listed(paths)):
        if not path.exists():
            raise FileNotFoundError(f"There is no file or folder {path} (looked in {Path.cwd()}).")
        if path.is_file():
            yield path, path.name
        elif kind == "record":
            yield from ((path / name, name) for name in _EVIDENCE if (path / name).is_file())
        else:
            yield from ((f, f.relative_to(path).as_posix()) for f in sorted(path.rglob("*")) if f.is_file())


def _check(kind: str, file: Path) -> None:
    """Refuse what is not to leave the machine."""
    if file.name in _SECRETS or (file.suffix == ".pem" and b"PRIVATE KEY" in file.read_bytes()):
        raise ValueError(f"{file} is a secret, which is not logged. Keep it to yourself, and name the other files.")
    if kind == "delta":
        return
    if not is_readable(file):
        return
    try:
        serious = [finding.what for finding in doctor(file) if finding.serious]
    except ValueError as error:
        rank_zero_warn(f"An artifact is logged without a look into it. {error}")
        return
    if serious:
        raise ValueError(
            f"{file} gives away {' and '.join(dict.fromkeys(serious))}, so it is not logged. "
            "`lightning-unlearn doctor --file` says where. Write the model with `lightning-unlearn export`, and the "
            "report without show_text."
        )
