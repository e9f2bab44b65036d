"""The module's own ``training_step``, and the hooks, schedulers and callbacks that depend on its outputs."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from types import FunctionType, MethodType
from typing import Any

from torch import Tensor
from torchmetrics import Metric

from lightning_unlearn.core.batch_norm import running_statistics
from lightning_unlearn.core.idle_trainer import with_idle_trainer
from lightning_unlearn.core.lightning import LightningModule, Trainer, classes, isolate_rng, overrides, rank_zero_info
from lightning_unlearn.core.modes import kept_attributes, without_gradients
from lightning_unlearn.core.transfer import Patches, attached_trainer

__all__ = ["OwnTraining", "SkippedBatch", "call_training_step", "own_loss", "own_step"]

_FILLS = {"add", "append", "appendleft", "extend", "insert", "setdefault", "update"}
_ENTRIES = ("items", "keys", "values")
_LIBRARIES = ("lightning", "lightning_unlearn", "pytorch_lightning", "torch", "torchmetrics")
_ROLES = {"forget", "retain", "idk", "alternate"}
_BATCH_ARGUMENT = {
    "LightningModule": {"on_train_batch_start": 0, "on_train_batch_end": 1},
    "Callback": {"on_train_batch_start": 2, "on_train_batch_end": 3},
}
"""Place of the batch among the arguments of a hook; the outputs come before it, where there are any."""

_THROUGHPUT = classes("callbacks.ThroughputMonitor")


class SkippedBatch(Exception):
    """Raised where the module's ``training_step`` returns ``None``, which tells Lightning to skip the batch."""


def own_step(module: LightningModule) -> Callable[..., Any]:
    """The module's own ``training_step``, also while an objective is in its place."""
    patch = vars(module).get("training_step")
    own = getattr(patch, "replaced", patch)
    return MethodType(type(module).training_step, module) if own is None else own


def call_training_step(module: LightningModule, batch: Any) -> Any:
    """Call the module's own ``training_step``, also while an objective is in its place, whatever its arguments.

    Outside of a run, ``self.trainer`` and ``self.logger`` are ones that do nothing, and ``self.log`` keeps nothing.

    Args:
        module: Any LightningModule.
        batch: Whatever that method takes.

    Returns:
        What it returns.
    """
    step, trainer = own_step(module), attached_trainer(module)
    if trainer is None:
        with with_idle_trainer(module):
            return _with_its_arguments(step, batch, 0)
    index = max(0, trainer.fit_loop.epoch_loop.batch_idx) if trainer.training else 0
    return _with_its_arguments(step, batch, index)


def _with_its_arguments(step: Callable[..., Any], batch: Any, index: int) -> Any:
    """Call a step with those of a batch, its index, and a ``dataloader_iter`` that it takes."""
    parameters = inspect.signature(step).parameters
    if "dataloader_iter" in parameters:
        return step(iter([(batch, index, 0)]))
    by_name = parameters.get("batch_idx")
    if by_name is not None and by_name.kind is by_name.KEYWORD_ONLY:
        return step(batch, batch_idx=index)
    positional = [p for p in parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(positional) > 1 or any(p.kind is p.VAR_POSITIONAL for p in parameters.values()):
        return step(batch, index)
    return step(batch)


def own_loss(module: LightningModule, batch: Any) -> Tensor:
    """The loss that the module's own ``training_step`` gives.

    Raises:
        SkippedBatch: If it returns None.
        TypeError: If it returns something else that is no loss.
    """
    output = call_training_step(module, batch)
    loss = output.get("loss") if isinstance(output, Mapping) else output
    if loss is None:
        raise SkippedBatch(f"{type(module).__name__}.training_step returned None in place of a loss.")
    if not isinstance(loss, Tensor):
        raise TypeError(f"{type(module).__name__}.training_step returned {type(output).__name__} in place of a loss.")
    return loss


class OwnTraining:
    """Maintains the outputs of a module's own ``training_step`` while an objective trains the module.

    If hooks read what ``training_step`` collects, or a scheduler or callback monitors what it logs, it also runs on the
    retain rows, without gradients. Batch hooks get these rows as their batch.

    Args:
        method: Name of the objective, for messages.
        trainer: Trainer of the run.
        module: The user's module.
        calls: For the rows of how many roles the objective's score calls ``training_step``.
    """

    def __init__(self, method: str, trainer: Trainer, module: LightningModule, calls: int = 0) -> None:
        self.module, self._calls = module, calls
        self.output: Any = None
        self._needed_by = _output_reader(module)
        if calls != 1:
            self._needed_by = self._needed_by or _reader(module) or _monitor(module, trainer)
        if self._needed_by:
            rank_zero_info(
                f"{method} replaces {type(module).__name__}.training_step, but {self._needed_by}. So training_step "
                "also runs, without gradients, on the retain rows of each batch, or on the forget rows without any."
            )

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Run the objective's step; what ``training_step`` logs and collects of several roles is left out, if needed.

        Else a monitored loss would be a mean over the rows to keep and those whose loss is to rise.
        """
        if not self._needed_by or self._calls < 2:
            yield
            return
        with kept_attributes(self.module):
            self.module.log = lambda *_, **__: None  # type: ignore[method-assign]
            yield

    def step(self, batch: Mapping[str, Any]) -> None:
        """Run the module's own training step, if something needs it; weights, statistics and random state stay."""
        if not self._needed_by:
            return
        statistics = [(b, b.clone()) for b in running_statistics(self.module.modules())]
        with isolate_rng(), without_gradients():
            self.output = call_training_step(self.module, kept_rows(batch))
        for buffer, value in statistics:
            buffer.copy_(value)

    def patch(self, patches: Patches, trainer: Trainer) -> None:
        """Let batch hooks that look into the batch see rows, not the dict of roles."""
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        for owner, kind in [(self.module, "LightningModule"), *((callback, "Callback") for callback in callbacks)]:
            for hook, at in _BATCH_ARGUMENT[kind].items():
                if overrides(owner, hook, kind) and _reads(owner, hook, at):
                    patches.set(owner, hook, self._with_rows(getattr(owner, hook), at, at - 1 if at % 2 else None))
            if isinstance(owner, _THROUGHPUT):
                for name in ("batch_size_fn", "length_fn"):
                    if callable(count := getattr(owner, name, None)):
                        patches.set(owner, name, _sum_over_roles(count))

    def _with_rows(self, hook: Callable[..., Any], at: int, outputs: int | None) -> Callable[..., Any]:
        @wraps(hook)
        def with_rows(*arguments: Any) -> Any:
            given = list(arguments)
            given[at] = kept_rows(given[at])
            if outputs is not None and isinstance(self.output, Mapping):
                given[outputs] = self.output
            return hook(*given)

        return with_rows


def kept_rows(batch: Any) -> Any:
    """The retain rows of a training batch, or its forget rows if there are no others."""
    if not (isinstance(batch, Mapping) and {"forget", "retain"} & batch.keys()):
        return batch
    return batch["retain"] if batch.get("retain") is not None else batch["forget"]


def _sum_over_roles(count: Callable[[Any], int]) -> Callable[[Any], int]:
    def summed(batch: Any) -> int:
        if not (isinstance(batch, Mapping) and {"forget", "retain"} & batch.keys()):
            return count(batch)
        return sum(count(rows) for rows in batch.values() if rows is not None)

    return count if _names_a_role(count) else summed


# ---- what the source of a module tells ------------------------------------------------------------------------------


def _functions(kind: type, name: str, seen: set[str]) -> Iterator[tuple[ast.AST, str]]:
    """The method of a class and its own methods that it calls, as syntax trees, each with the name of ``self``."""
    function = inspect.unwrap(getattr(kind, name, None) or (lambda: None))
    seen.add(name)
    if not isinstance(function, FunctionType) or (function.__module__ or "").partition(".")[0] in _LIBRARIES:
        return
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    except (OSError, TypeError, SyntaxError, IndexError):  # no source, as in a compiled module
        return
    first = next(iter(inspect.signature(function).parameters), None)
    if first is None:
        return
    yield tree, first
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (called := _attribute(node.func, first)) and called not in seen:
            yield from _functions(kind, called, seen)


def _attribute(node: ast.AST, owner: str) -> str | None:
    """``x`` of an expression ``self.x``."""
    found = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == owner
    return node.attr if found else None  # type: ignore[attr-defined]


def _filled(module: LightningModule) -> set[str]:
    """Attributes that ``training_step`` sets, adds to, or updates."""
    found: set[str | None] = set()
    for tree, me in _functions(type(module), "training_step", set()):
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _FILLS:
                found.add(_attribute(node.func.value, me))
            if isinstance(node, ast.Call) and (called := _attribute(node.func, me)):
                found |= {called} if isinstance(getattr(module, called, None), Metric) else set()
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            for target in targets:
                inner = target.value if isinstance(target, ast.Subscript) else target
                found |= {_attribute(inner, me)} if inner is not None else set()
    return {name for name in found if name}


def _reader(module: LightningModule) -> str | None:
    """The first hook that reads what ``training_step`` leaves in the module, in words."""
    kind, filled = type(module), _filled(module)
    hooks = [
        name for name in dir(LightningModule) if name.startswith("on_") and overrides(module, name, "LightningModule")
    ]
    for hook in hooks:
        for tree, me in _functions(kind, hook, set()):
            for node in ast.walk(tree):
                read = _attribute(node, me)
                if read in filled and isinstance(node.ctx, ast.Load):  # type: ignore[attr-defined]
                    return f"{hook} reads {read}, which training_step fills"
    return None


def _output_reader(module: LightningModule) -> str | None:
    """Whether ``on_train_batch_end`` reads more of the outputs of ``training_step`` than the loss, in words."""
    outputs = _argument(type(module), "on_train_batch_end", 0)
    for tree, _ in _functions(type(module), "on_train_batch_end", set()):
        for node in ast.walk(tree):
            if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == outputs:
                key = node.slice.value if isinstance(node.slice, ast.Constant) else None
                if key != "loss":
                    return f"on_train_batch_end reads outputs[{key!r}]"
    return None


def _monitor(module: LightningModule, trainer: Trainer) -> str | None:
    """The first scheduler or callback that monitors what ``training_step`` logs, in words."""
    logged = _logged(module)
    monitored = [
        (type(config.scheduler).__name__, config.monitor)
        for config in trainer.lr_scheduler_configs
        if config.reduce_on_plateau
    ]
    monitored += [(type(c).__name__, getattr(c, "monitor", None)) for c in trainer.callbacks]  # type: ignore[attr-defined]
    for name, key in monitored:
        if not isinstance(key, str) or key.startswith(("unlearn/", "eval/", "mask/")):
            continue
        names = {key, key.removesuffix("_epoch"), key.removesuffix("_step")}
        exact = any(text in names for text in logged)
        if exact or (not key.startswith(("val", "test")) and any(re.fullmatch(p, n) for p in logged for n in names)):
            return f"{name} monitors {key!r}, which training_step logs"
    return None


def _logged(module: LightningModule) -> set[str]:
    """Names that ``training_step`` logs, as patterns: what is known only when it runs is ``.*``."""
    found = set()
    for tree, me in _functions(type(module), "training_step", set()):
        for node in ast.walk(tree):
            called = _attribute(node.func, me) if isinstance(node, ast.Call) else None
            if called not in ("log", "log_dict") or not node.args:  # type: ignore[attr-defined]
                continue
            first = node.args[0]  # type: ignore[attr-defined]
            names = first.keys if isinstance(first, ast.Dict) else [first]
            found |= {_pattern(name) for name in names}
    return found


def _pattern(name: ast.AST | None) -> str:
    if isinstance(name, ast.Constant):
        return str(name.value)
    if isinstance(name, ast.JoinedStr):
        return "".join(re.escape(str(p.value)) if isinstance(p, ast.Constant) else ".*" for p in name.values)
    return ".*"


def _reads(owner: Any, hook: str, at: int) -> bool:
    """Whether a hook of a user's class looks into an argument, without knowing of roles.

    A hook that goes through all entries of a batch, whatever their names, also works with a dict of roles.
    """
    tree = next((tree for tree, _ in _functions(type(owner), hook, set())), None)
    argument = _argument(type(owner), hook, at)
    if tree is None or argument is None or _names_a_role(getattr(type(owner), hook)):
        return False
    passed_on = {
        id(leaf)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == hook
        for leaf in ast.walk(node)
    } | {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr in _ENTRIES}
    return any(
        isinstance(node, ast.Name)
        and node.id == argument
        and isinstance(node.ctx, ast.Load)
        and id(node) not in passed_on
        for node in ast.walk(tree)
    )


def _argument(kind: type, hook: str, at: int) -> str | None:
    """The name of an argument of a hook after ``self``, if it has one."""
    arguments = inspect.getfullargspec(inspect.unwrap(getattr(kind, hook))).args[1:]
    return arguments[at] if len(arguments) > at else None


def _names_a_role(function: Any) -> bool:
    code = getattr(inspect.unwrap(function), "__code__", None)
    constants = list(code.co_consts) if code is not None else []
    while constants:
        constant = constants.pop()
        if isinstance(constant, str) and constant in _ROLES:
            return True
        constants += getattr(constant, "co_consts", ())
        constants += constant if isinstance(constant, (tuple, frozenset)) else ()
    return False
