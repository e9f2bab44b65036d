"""Names of Lightning, taken from the package that the program uses: ``lightning`` or ``pytorch_lightning``.

The two packages hold the same code, but a class of one is no class of the other, and a Trainer takes modules and data
modules of its own package alone. So the classes that this package derives from are derived from both where both are
installed, and instances are checked against the classes of both. No other file imports either of them.
"""

from __future__ import annotations

import sys
from importlib import import_module
from inspect import getattr_static
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

from lightning_utilities.core import rank_zero
from torch import nn

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer, seed_everything
    from lightning.pytorch.callbacks import ProgressBar, WeightAveraging
    from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
    from lightning.pytorch.utilities import CombinedLoader, move_data_to_device, rank_zero_info, rank_zero_warn
    from lightning.pytorch.utilities.exceptions import MisconfigurationException
    from lightning.pytorch.utilities.seed import isolate_rng

__all__ = [
    "AVERAGING",
    "COMBINED_LOADERS",
    "CSV_LOGGERS",
    "FINETUNING",
    "MODEL_PARALLEL",
    "MODULES",
    "PACKAGES",
    "PRUNING",
    "TENSORBOARD_LOGGERS",
    "WANDB_LOGGERS",
    "CSVLogger",
    "Callback",
    "LightningDataModule",
    "LightningModule",
    "Logger",
    "MisconfigurationException",
    "ProgressBar",
    "Trainer",
    "WeightAveraging",
    "classes",
    "isolate_rng",
    "move_data_to_device",
    "overrides",
    "rank_zero_info",
    "rank_zero_warn",
    "resolve",
    "seed_everything",
]

_NAMES = ("lightning.pytorch", "pytorch_lightning")
_OLDEST = (2, 4)  # the first with ModelParallelStrategy


def _import_packages() -> list[ModuleType]:
    """The packages that are installed; the one that the program has imported already, or ``lightning``, comes first."""
    packages: list[ModuleType] = []
    for name in sorted(_NAMES, key=lambda name: name not in sys.modules):
        log = rank_zero.log
        try:
            package = import_module(name)
        except ModuleNotFoundError as error:
            if error.name not in ("lightning", *_NAMES):
                raise
            continue
        except Exception:
            if not packages:
                raise
            continue  # the second one is installed, but broken: nobody can use its classes
        if packages:
            rank_zero.log = log  # importing either package turns the messages of both to its own logger
        if tuple(map(int, package.__version__.split(".")[:2])) >= _OLDEST:
            packages.append(package)
    if not packages:
        raise ModuleNotFoundError(
            f"lightning-unlearn needs Lightning {'.'.join(map(str, _OLDEST))} or later: pip install lightning, or "
            "pip install pytorch-lightning."
        )
    return packages


PACKAGES = _import_packages()


def resolve(path: str, package: ModuleType = PACKAGES[0]) -> Any:
    """An object of Lightning.

    Args:
        path: Its path in the package, such as ``"loggers.CSVLogger"``.
        package: The package to look in; by default the one that is preferred.
    """
    module, _, name = path.rpartition(".")
    owner = import_module(f"{package.__name__}.{module}") if module else package
    return getattr(owner, name)


def classes(*paths: str) -> tuple[type, ...]:
    """The classes at some paths in every installed package, for ``isinstance``.

    Args:
        paths: Such as ``"strategies.DDPStrategy"``.
    """
    return tuple(resolve(path, package) for package in PACKAGES for path in paths)


COMBINED_LOADERS: tuple[type[CombinedLoader], ...] = classes("utilities.combined_loader.CombinedLoader")
MODULES: tuple[type[LightningModule], ...] = classes("LightningModule")
FINETUNING: Any = classes("callbacks.BaseFinetuning")
PRUNING: Any = classes("callbacks.ModelPruning")
AVERAGING: Any = tuple(
    getattr(import_module(f"{package.__name__}.callbacks"), name)
    for package in PACKAGES
    for name in ("StochasticWeightAveraging", "WeightAveraging")
    if hasattr(import_module(f"{package.__name__}.callbacks"), name)
)
MODEL_PARALLEL = classes("strategies.ModelParallelStrategy")
CSV_LOGGERS: tuple[type[CSVLogger], ...] = classes("loggers.CSVLogger")
TENSORBOARD_LOGGERS: tuple[type[TensorBoardLogger], ...] = classes("loggers.TensorBoardLogger")
WANDB_LOGGERS: tuple[type[WandbLogger], ...] = classes("loggers.WandbLogger")


def overrides(owner: object, hook: str, path: str) -> bool:
    """Whether an object has a hook of its own.

    Args:
        owner: A module, data module or callback.
        hook: Name of the method.
        path: The class of Lightning that declares it, such as ``"LightningModule"``.
    """
    if getattr(owner, hook, None) is None:  # set to None, a step is passed over by Lightning
        return False
    declared = [getattr(kind, hook) for kind in classes(path)]
    return hook in vars(owner) or getattr(type(owner), hook) not in declared


if not TYPE_CHECKING:
    Trainer = resolve("Trainer")
    Logger, CSVLogger = resolve("loggers.Logger"), resolve("loggers.CSVLogger")
    seed_everything = resolve("seed_everything")
    isolate_rng = resolve("utilities.seed.isolate_rng")
    move_data_to_device = resolve("utilities.move_data_to_device")
    rank_zero_info, rank_zero_warn = resolve("utilities.rank_zero_info"), resolve("utilities.rank_zero_warn")

    class _OfTrainer:
        """A method that both packages declare; calls go to the package of the attached Trainer.

        Lightning treats a hook as overridden if its code is not that of Lightning's class.
        """

        def __init__(self, functions: list[FunctionType]) -> None:
            self.functions = functions

        def __get__(self, owner: Any, kind: type) -> Any:
            function = self.functions[0]
            try:
                if owner is not None and isinstance(_trainer(owner), PACKAGES[1].Trainer):
                    function = self.functions[1]
            except ReferenceError:  # a module holds its Trainer weakly, and that of its last run may be gone
                pass
            return function.__get__(owner, kind)

    def _trainer(owner: Any) -> Any:
        return vars(owner).get("_trainer" if isinstance(owner, nn.Module) else "trainer")

    def _for_both(path: str) -> type:
        """A class for the Trainers of both packages."""
        bases = classes(path)
        namespace: dict[str, Any] = {"__module__": __name__, "__doc__": bases[0].__doc__}
        for name in dir(bases[0]) if len(bases) == 2 else ():
            functions = [getattr_static(base, name, None) for base in bases]
            both = all(isinstance(function, FunctionType) for function in functions)
            if both and functions[0] is not functions[1] and not name.startswith("__"):
                namespace[name] = _OfTrainer(functions)
        return type(bases[0].__name__, bases, namespace)

    Callback = _for_both("Callback")
    LightningModule, LightningDataModule = _for_both("LightningModule"), _for_both("LightningDataModule")
    ProgressBar = _for_both("callbacks.ProgressBar")
    MisconfigurationException = _for_both("utilities.exceptions.MisconfigurationException")
    if all(hasattr(resolve("callbacks", package), "WeightAveraging") for package in PACKAGES):
        WeightAveraging = _for_both("callbacks.WeightAveraging")
    else:

        class WeightAveraging(Callback):
            """Stands for the callback that Lightning has since 2.6."""

            def __init__(self, *_: Any, **__: Any) -> None:
                raise MisconfigurationException(
                    "Averages of weights need Lightning 2.6 or later: pip install -U lightning."
                )
