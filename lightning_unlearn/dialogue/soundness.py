"""Classifier of sound dialogues and known-bad ones on the hidden states of a judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_unlearn.dialogue.controls import control_dialogues
from lightning_unlearn.dialogue.data.splitting import conversation_of
from lightning_unlearn.dialogue.dialogue import Dialogue
from lightning_unlearn.dialogue.hidden_states import mean_states

if TYPE_CHECKING:
    from lightning_unlearn.dialogue.judge import DialogueJudge

__all__ = ["Soundness", "fit_soundness", "known_bad"]

_PENALTIES = (1e-3, 1e-2, 1e-1)  # values of scikit-learn's C
_FOLDS = 4
_CLIP = 8.0  # standard deviations, beyond which a state says no more


@dataclass(frozen=True)
class Soundness:
    r"""Probability that a dialogue is no known-bad one, $\sigma(w^\top h + c)$ with $h$ the standardized mean state.

    Args:
        layer: Number of the hidden state.
        weight: One weight a dimension.
        bias: Its logit at the mean state.
        center: Mean of each dimension over sound dialogues.
        scale: Standard deviation of each dimension over them.
    """

    layer: int
    weight: tuple[float, ...]
    bias: float
    center: tuple[float, ...]
    scale: tuple[float, ...]

    def probability(self, states: Tensor) -> Tensor:
        """Probability of each mean state ``(N, D)``, fp64."""
        center, scale, weight = (_vector(values) for values in (self.center, self.scale, self.weight))
        return (_standardized(states, center, scale) @ weight + self.bias).sigmoid()


def known_bad(dialogues: Sequence[Dialogue]) -> tuple[list[Dialogue], list[Dialogue]]:
    """Sound dialogues, and known-bad versions of them, to tell apart.

    Conversations are of many lengths, so that the sound ones are the dialogues and a beginning of each, of two, four or
    six messages. The known-bad ones are all kinds of [controls][lightning_unlearn.control_dialogues] of the beginnings,
    and one kind, in turn, of the whole dialogues.

    Args:
        dialogues: Dialogues; those without a reply of the assistant are left out.
    """
    dialogues = [part for part in dialogues if any(turn.role == "assistant" for turn in part.turns)]
    heads = [_head(dialogue) for dialogue in dialogues]
    bad = [control for controls in control_dialogues(heads).values() for control in controls]
    whole = control_dialogues(dialogues)
    kinds = list(whole)
    turn = {dialogue.id: kinds[number % len(kinds)] for number, dialogue in enumerate(dialogues)}
    bad += [control for kind, controls in whole.items() for control in controls if turn[control.id] == kind]
    return [*dialogues, *heads], bad


def fit_soundness(judge: DialogueJudge, dialogues: Sequence[Dialogue]) -> Soundness:
    """Fit the classifier by logistic regression with balanced classes.

    The layer is the one whose linear regression on the classes has the least leave-one-out error; the strength of the
    penalty is chosen by cross-validation over conversations.

    Args:
        judge: The judge, whose prompts and hidden states are read.
        dialogues: Sound dialogues.

    Raises:
        ValueError: If no known-bad version can be made of them.
    """
    from sklearn.linear_model import LogisticRegression, RidgeCV
    from sklearn.metrics import log_loss
    from sklearn.model_selection import GroupKFold

    sound, bad = known_bad(dialogues)
    groups = [conversation_of(dialogue) for dialogue in [*sound, *bad]]
    if len(set(groups)) < _FOLDS:
        raise ValueError(
            f"known_bad=True needs at least {_FOLDS} conversations with replies of the assistant, but "
            f"{len(set(groups))} of the {len(dialogues)} dialogues have any."
        )
    states = mean_states(judge.lm, [built.ids for built in judge.prompts([*sound, *bad])], None, judge.max_tokens)
    label = torch.tensor([1] * len(sound) + [0] * len(bad))
    balance = torch.where(label == 1, len(label) / (2 * len(sound)), len(label) / (2 * len(bad))).numpy()

    def standardized(layer: int) -> tuple[Tensor, Tensor, Tensor]:
        own = states[: len(sound), layer].double()
        center, scale = own.mean(0), own.std(0).clamp_min(1e-8)
        return _standardized(states[:, layer].double(), center, scale), center, scale

    def error(layer: int) -> float:
        x = standardized(layer)[0].numpy()
        return -float(RidgeCV([1e2, 1e3, 1e4]).fit(x, label.double().numpy(), balance).best_score_)

    layer = min(range(states.shape[1]), key=error)
    values, center, scale = standardized(layer)
    x, y = values.float().numpy(), label.numpy()

    def loss(penalty: float) -> float:
        lost = 0.0
        for fitted, rest in GroupKFold(_FOLDS).split(x, y, groups):
            model = LogisticRegression(C=penalty, max_iter=1000).fit(x[fitted], y[fitted], balance[fitted])
            said = model.predict_proba(x[rest])
            lost += float(log_loss(y[rest], said, sample_weight=balance[rest], labels=[0, 1]))
        return lost

    fit = LogisticRegression(C=min(_PENALTIES, key=loss), max_iter=1000).fit(x, y, balance)
    return Soundness(
        layer,
        tuple(float(value) for value in fit.coef_[0]),
        float(fit.intercept_[0]),
        tuple(center.tolist()),
        tuple(scale.tolist()),
    )


def _head(dialogue: Dialogue) -> Dialogue:
    """A beginning of a dialogue, up to the reply to one of the first three messages of the user."""
    replies = [place for place, turn in enumerate(dialogue.turns) if turn.role == "assistant"]
    chosen = Random(f"head {dialogue.id}").choice(replies[:3])
    return replace(dialogue, turns=dialogue.turns[: chosen + 1])


def _standardized(states: Tensor, center: Tensor, scale: Tensor) -> Tensor:
    return ((states - center) / scale).clamp(-_CLIP, _CLIP)


def _vector(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
