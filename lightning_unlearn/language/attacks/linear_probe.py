"""Linear probe: logistic regression on the hidden states of a model."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from lightning_unlearn.core.checks import at_least, one_of
from lightning_unlearn.core.lightning import isolate_rng
from lightning_unlearn.core.modes import evaluating
from lightning_unlearn.functional.random import keyed_generator, keyed_seed
from lightning_unlearn.language.attacks.attack import Cost
from lightning_unlearn.language.attacks.attempts import refuse_texts
from lightning_unlearn.language.attacks.latent import (
    blocks_of,
    head_on_last,
    reading_blocks,
)
from lightning_unlearn.language.attacks.latent_evidence import LatentEvidence
from lightning_unlearn.language.attacks.replicas import digest, over_replicas
from lightning_unlearn.language.causal_lm import LitCausalLM
from lightning_unlearn.language.chat import content_text
from lightning_unlearn.language.probes import Probe

__all__ = ["LinearProbe", "ProbeAccuracy", "ProbeResult", "Target"]

Target = Literal["membership", "options"]

Decide: TypeAlias = Callable[[Any], Any]

_PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)
_STREAM = 18  # what the random numbers are for


@dataclass(frozen=True)
class ProbeAccuracy:
    """Accuracies of a probe by layer, on entities that it was not fitted on.

    Args:
        fresh: Of a probe fitted on the model itself, one a layer.
        transfer: Of the probe that was fitted on the original.
        shuffled: Of a probe fitted on the model with shuffled labels, the control task.
    """

    fresh: list[float]
    transfer: list[float]
    shuffled: list[float]

    @property
    def selectivity(self) -> list[float]:
        """Fresh accuracy minus that of the control task, one a layer."""
        return [a - b for a, b in zip(self.fresh, self.shuffled, strict=True)]


@dataclass(frozen=True)
class ProbeResult:
    """Accuracies of linear probes on three models.

    Args:
        layers: Numbers of the blocks.
        chance: Accuracy of a guess.
        n: Examples.
        folds: Folds, of different entities; fewer than asked for where a class has fewer entities.
        original: Of the model before unlearning.
        control: Of the control model.
        unlearned: Of the unlearned model.
        skipped: Why the probe was not fitted; empty where it was.
    """

    layers: list[int]
    chance: float
    n: int
    folds: int
    original: ProbeAccuracy | None = None
    control: ProbeAccuracy | None = None
    unlearned: ProbeAccuracy | None = None
    skipped: str = ""

    @property
    def layer(self) -> int:
        """Place in ``layers`` of the layer where the original's fresh accuracy is highest, the first of several.

        It is chosen without the unlearned model: choosing its best layer would overstate its accuracy.
        """
        return int(np.argmax(self.original.fresh)) if self.original is not None else 0

    @property
    def excess(self) -> float:
        """Fresh accuracy of the unlearned model minus that of the control, at that layer; NaN where it was skipped."""
        if self.unlearned is None or self.control is None:
            return float("nan")
        return self.unlearned.fresh[self.layer] - self.control.fresh[self.layer]


@dataclass
class _Examples:
    """Features and labels of all examples of one model.

    Args:
        features: By layer, each ``(n, d)``.
        labels: Class of each example.
        groups: Entity of each example.
        question: Question of each example, whose options compete; empty for membership.
    """

    features: list[Any]
    labels: Any
    groups: Any
    question: Any = field(default_factory=lambda: np.zeros(0, dtype=int))


class LinearProbe(LatentEvidence):
    """Logistic regression on the states after a block, at the last token of the prompt.

    ``"membership"`` distinguishes questions about forget rows from questions about matched rows that no model ever saw.
    ``"options"`` picks the true answer among it and the perturbed ones, each placed after its question, by features
    relative to the mean over the options of the question.

    A probe is fitted on the original and applied to the other models as it is (transfer), and fitted anew on each
    (fresh). Folds are grouped by entity, so that it can't learn names by heart; features are standardised on the
    training folds, and the penalty is chosen among them by folds of their own. A control task has shuffled labels. A
    fresh probe above chance is no finding, since names alone can achieve that in the control model too; a probe above
    the control model's is.

    Args:
        original: The model before unlearning.
        control: A model that never saw the rows, such as the retrained one.
        never_seen: Matched rows that no model has seen, for ``"membership"``.
        target: What the probe distinguishes.
        layers: Numbers of the blocks; by default a fifth, two fifths and so on up to the last one.
        folds: Folds of the cross-validation, at most.
        seed: Seed of the folds and of the shuffled labels.
        batch_size: Prompts in a pass.

    Raises:
        ValueError: If an argument is out of range, rows are plain texts, or there is nothing to tell apart.
        ImportError: If scikit-learn is missing.

    References:
        Hewitt and Liang, *Designing and Interpreting Probes with Control Tasks*, arXiv:1909.03368.
    """

    name = "linear_probe"

    def __init__(
        self,
        original: LitCausalLM,
        control: LitCausalLM,
        never_seen: Sequence[Probe] | None = None,
        target: Target = "membership",
        layers: Sequence[int] | None = None,
        folds: int = 5,
        seed: int = 0,
        batch_size: int = 16,
    ) -> None:
        super().__init__(original, control)
        self.never_seen = list(never_seen or ())
        self.target, self.folds, self.seed = one_of("target", target, Target), at_least("folds", folds, 2), seed
        self.batch_size = at_least("batch_size", batch_size, 1)
        depth = len(blocks_of(original))
        self.layers = (
            sorted({max(0, round(depth * i / 5) - 1) for i in range(1, 6)}) if layers is None else list(layers)
        )
        wrong = [layer for layer in self.layers if not 0 <= layer < depth]
        if wrong or not self.layers:
            raise ValueError(f"layers are numbers of blocks, 0 to {depth - 1}, but got {wrong or self.layers}.")
        if self.target == "membership":
            if not self.never_seen:
                raise ValueError(
                    "A membership probe tells forget rows from rows that no model has seen: give never_seen, rows "
                    "matched to them. Without such rows, use target='options' (needs perturbed answers)."
                )
            refuse_texts(self.name, self.never_seen)

    def __call__(self, module: LitCausalLM, probes: Sequence[Probe]) -> ProbeResult:
        """What a probe reads from an unlearned model, beside the original and the control.

        Args:
            module: The unlearned model.
            probes: Questions to the forget rows.

        Raises:
            ValueError: If the rows are plain texts, or have no perturbed answers for ``"options"``.
        """
        self._check(module, probes)
        asked, labels, groups, question = self._asked(probes)
        chance = self._chance(labels, question)
        folds = min(self.folds, *(len(set(groups[labels == label])) for label in (0, 1)))
        if reason := _too_few(labels, folds):
            return ProbeResult(self.layers, chance, len(labels), folds, skipped=reason)
        examples = [
            self._centred(_Examples(self._features(model, asked), labels, groups, question))
            for model in (self.original, self.control, module)
        ]
        original, control, unlearned = self._accuracies(examples, folds)
        return ProbeResult(self.layers, chance, len(labels), folds, original, control, unlearned)

    def cost(self, rows: int) -> Cost:
        """One pass of each model over the rows and those that were never seen."""
        return Cost(passes=3 * (1 + len(self.never_seen) / max(rows, 1)))

    def settings(self) -> dict[str, Any]:
        """The task, layers, folds, seed, and a hash of the rows that were never seen."""
        names = ("target", "layers", "folds", "seed")
        rows = digest([[probe.question, probe.entity] for probe in self.never_seen])
        return {name: getattr(self, name) for name in names} | {"never_seen": rows}

    def _asked(self, probes: Sequence[Probe]) -> tuple[list[Probe], Any, Any, Any]:
        """Prompts with their class, entity and question."""
        if self.target == "membership":
            asked = [*probes, *self.never_seen]
            labels = np.array([1] * len(probes) + [0] * len(self.never_seen))
            return asked, labels, _groups(asked), np.zeros(0, dtype=int)
        asked, classes, numbers, owners = [], [], [], []
        for number, probe in enumerate(probes):
            options = (probe.answer, *probe.perturbed_answers)
            if len(options) < 2:
                raise ValueError(
                    f"target='options' chooses between the answer and perturbed ones, but row {probe.row} has none. "
                    "Name their column, Columns(perturbed_answer=...), or use target='membership'."
                )
            # In any order, so that a tie is not always right.
            for place in torch.randperm(len(options), generator=keyed_generator(_STREAM, self.seed, number)).tolist():
                asked.append(_proposed(probe, options[place]))
                owners.append(probe)
                classes.append(int(place == 0))
                numbers.append(number)
        return asked, np.array(classes), _groups(owners), np.array(numbers)

    def _chance(self, labels: Any, question: Any) -> float:
        if len(question):
            return float(np.mean(1 / np.bincount(question)))
        return float(max(np.bincount(labels)) / len(labels))

    @torch.no_grad()
    def _features(self, module: LitCausalLM, asked: Sequence[Probe]) -> list[Any]:
        """States at the last token of each prompt, by layer ``(n, d)``."""
        prompts = self.original._prompt_format().prompts([probe.question for probe in asked])

        def read(part: list[list[int]]) -> list[Tensor]:
            found = []
            with isolate_rng(), evaluating(module):
                for start in range(0, len(part), self.batch_size):
                    found += self._last_states(module, part[start : start + self.batch_size])
            return found

        states = torch.stack(over_replicas(module, prompts, read))
        return list(states.double().numpy().transpose(1, 0, 2))

    def _last_states(self, module: LitCausalLM, prompts: list[list[int]]) -> list[Tensor]:
        width = max(map(len, prompts))
        ids = torch.zeros(len(prompts), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for i, prompt in enumerate(prompts):
            ids[i, : len(prompt)], mask[i, : len(prompt)] = torch.tensor(prompt), 1
        last = mask.sum(1) - 1
        blocks = blocks_of(module)
        # The model without its head would do, but families name it differently; the head costs one position.
        with reading_blocks(blocks) as states, head_on_last(module, 1):
            module.model(input_ids=ids.to(module.device), attention_mask=mask.to(module.device), use_cache=False)
        rows = torch.arange(len(prompts))
        return list(torch.stack([states[i][rows, last].float().cpu() for i in self.layers], 1))

    def _centred(self, examples: _Examples) -> _Examples:
        """Features relative to the mean over the options of their question."""
        if not len(examples.question):
            return examples
        count = np.bincount(examples.question)[:, None]
        centred = []
        for x in examples.features:
            total = np.zeros((len(count), x.shape[1]))
            np.add.at(total, examples.question, x)
            centred.append(x - (total / count)[examples.question])
        return replace(examples, features=centred)

    def _accuracies(self, examples: list[_Examples], folds: int) -> list[ProbeAccuracy]:
        """Accuracies of the original, the control and the unlearned model, in this order."""
        layers = range(len(self.layers))
        fresh = [[self._probes(own, layer, folds) for layer in layers] for own in examples]
        shuffled = [self._shuffled(own) for own in examples]
        return [
            ProbeAccuracy(
                [_accuracy(fresh[number][layer], own, layer) for layer in layers],
                [_accuracy(fresh[0][layer], own, layer) for layer in layers],
                [_accuracy(self._probes(control, layer, folds), control, layer) for layer in layers],
            )
            for number, (own, control) in enumerate(zip(examples, shuffled, strict=True))
        ]

    def _shuffled(self, examples: _Examples) -> _Examples:
        """The examples with labels in another order, among the options of each question where there are some."""
        rng = np.random.default_rng(keyed_seed(_STREAM, self.seed))
        labels = examples.labels.copy()
        for members in _members(examples.question, len(labels)):
            labels[members] = rng.permutation(labels[members])
        return replace(examples, labels=labels)

    def _probes(self, examples: _Examples, layer: int, folds: int) -> list[tuple[Any, Decide]]:
        """The examples of each fold, and a probe that is fitted on the others; entities are in one fold each."""
        splitter = _sklearn()[1](folds, shuffle=True, random_state=self.seed)
        x, y, groups = examples.features[layer], examples.labels, examples.groups
        split = splitter.split(x, y, groups)
        return [(test, self._fit(x[train], y[train], groups[train])) for train, test in split]

    def _fit(self, x: Any, y: Any, groups: Any) -> Decide:
        """The decision function of a regression on training folds, with the penalty that inner folds choose."""
        regression, folds = _sklearn()
        mean, scale = x.mean(0), x.std(0)
        scale[scale == 0] = 1
        standard = (x - mean) / scale
        # With a quadratic penalty the weights lie in the span of the rows, which has few dimensions: the same fit.
        _, sizes, basis = np.linalg.svd(standard, full_matrices=False)
        basis = basis[sizes > 1e-10 * sizes.max()].T
        inner = min(3, len(set(groups)))
        cuts = list(folds(inner, shuffle=True, random_state=self.seed).split(x, y, groups)) if inner > 1 else []
        cuts = [(train, test) for train, test in cuts if len(set(y[train])) == 2]
        if not basis.size or len(set(y)) < 2:
            return lambda other: np.full(len(other), np.mean(y) - 0.5)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the optimiser's iterations, and of names that scikit-learn will change
            model = regression(Cs=list(_PENALTIES if cuts else _PENALTIES[-1:]), cv=cuts or 2, max_iter=200)
            model.fit(standard @ basis, y)
        return lambda other: model.decision_function((other - mean) / scale @ basis)


def _accuracy(probes: list[tuple[Any, Decide]], examples: _Examples, layer: int) -> float:
    """Accuracy of probes, each on its own fold."""
    score = np.zeros(len(examples.labels))
    for test, decide in probes:
        score[test] = decide(examples.features[layer][test])
    if not len(examples.question):
        return float(np.mean((score > 0) == examples.labels))
    chosen = [members[np.argmax(score[members])] for members in _members(examples.question, len(score))]
    return float(np.mean(examples.labels[chosen]))


def _too_few(labels: Any, folds: int) -> str:
    """Why a probe is not fitted; empty where it is."""
    classes = np.bincount(labels, minlength=2)
    if len(labels) < 10 * len(classes):
        return f"{len(labels)} examples are too few for a probe of {len(classes)} classes, which needs 10 a class."
    if folds < 2:
        return "A class has examples of one entity only, so no probe can be tried on another one."
    return ""


def _groups(probes: Sequence[Probe]) -> Any:
    """Numbers of the entities; a row without an entity forms its own group."""
    names = [probe.entity or f"\0{id(probe)}" for probe in probes]
    places = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return np.array([places[name] for name in names])


def _members(question: Any, n: int) -> list[Any]:
    """Examples of each question; all of them where there are no questions."""
    if not len(question):
        return [np.arange(n)]
    return [np.flatnonzero(question == number) for number in np.unique(question)]


def _proposed(probe: Probe, option: str) -> Probe:
    """The probe with an answer that is proposed."""
    text = probe.question if isinstance(probe.question, str) else content_text(probe.question[-1])
    return probe.rephrased(f"{text}\nProposed answer: {option}\nIs this answer right?")


def _sklearn() -> tuple[Any, Any]:
    try:
        from sklearn.linear_model import LogisticRegressionCV
        from sklearn.model_selection import StratifiedGroupKFold
    except ImportError:
        raise ImportError('A linear probe needs scikit-learn: pip install "lightning-unlearn[metrics]"') from None
    return LogisticRegressionCV, StratifiedGroupKFold
