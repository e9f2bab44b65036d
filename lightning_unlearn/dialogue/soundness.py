"""Classifier of sound dialogues and known-bad ones on the hidden states and likelihoods of a judge."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_unlearn.dialogue.controls import control_dialogues
from lightning_unlearn.dialogue.data.splitting import conversation_of
from lightning_unlearn.dialogue.dialogue import Dialogue
from lightning_unlearn.dialogue.hidden_states import mean_states
from lightning_unlearn.dialogue.reply_information import reply_information

if TYPE_CHECKING:
    from lightning_unlearn.dialogue.judge import DialogueJudge

__all__ = ["Soundness", "fit_soundness", "known_bad"]

_PENALTIES = (1e-3, 1e-2, 1e-1)  # values of scikit-learn's C
_FOLDS = 4
_INFORMED = 100  # dialogues that two parameters are fitted to
_CLIP = 8.0  # standard deviations, beyond which a state says no more


@dataclass(frozen=True)
class Soundness:
    r"""Probability that a dialogue is no known-bad one, from two classifiers of equal weight.

    One reads the standardized mean state $h$, the other the least pointwise mutual information $m$ of a reply and the
    messages before it. Their logits are averaged (a logarithmic opinion pool):

    $$p = \sigma\left(\tfrac12 (w^\top h + c) + \tfrac12 (a\, \mathrm{sign}(m) \log(1 + |m|) + b)\right)$$

    A dialogue without a reply has the first logit alone.

    Args:
        layer: Number of the hidden state.
        weight: One weight a dimension, $w$.
        bias: $c$.
        center: Mean of each dimension over sound dialogues.
        scale: Standard deviation of each dimension over them.
        information_weight: $a$.
        information_bias: $b$.
    """

    layer: int
    weight: tuple[float, ...]
    bias: float
    center: tuple[float, ...]
    scale: tuple[float, ...]
    information_weight: float
    information_bias: float

    def probability(self, states: Tensor, information: Sequence[Sequence[float]]) -> Tensor:
        """Probability of each dialogue.

        Args:
            states: Mean states, shape ``(N, D)``, fp64.
            information: Information of each reply of each dialogue, in nats.

        Returns:
            Shape ``(N,)``, fp64.
        """
        center, scale, weight = (_vector(values) for values in (self.center, self.scale, self.weight))
        by_state = _standardized(states, center, scale) @ weight + self.bias
        by_reply = self.information_weight * _least(information) + self.information_bias
        return torch.where(by_reply.isnan(), by_state, (by_state + by_reply) / 2).sigmoid()


def known_bad(dialogues: Sequence[Dialogue]) -> tuple[list[Dialogue], list[Dialogue]]:
    """Sound dialogues, and known-bad versions of them, to tell apart.

    Conversations are of many lengths, so that the sound ones are the dialogues and a beginning of each, of two, four or
    six messages. The known-bad ones are all kinds of [controls][lightning_unlearn.control_dialogues] of the beginnings,
    and one kind, in turn, of the whole dialogues.

    Args:
        dialogues: Dialogues; those without a reply of the assistant are left out.
    """
    dialogues = [part for part in dialogues if _answered(part)]
    heads = [_head(dialogue) for dialogue in dialogues]
    bad = [control for controls in control_dialogues(heads).values() for control in controls]
    whole = control_dialogues(dialogues)
    kinds = list(whole)
    turn = {dialogue.id: kinds[number % len(kinds)] for number, dialogue in enumerate(dialogues)}
    bad += [control for kind, controls in whole.items() for control in controls if turn[control.id] == kind]
    return [*dialogues, *heads], bad


def fit_soundness(judge: DialogueJudge, dialogues: Sequence[Dialogue], states: Tensor) -> Soundness:
    """Fit both classifiers by logistic regression with balanced classes.

    The layer of the first one is that whose linear regression on the classes has the least leave-one-out error; the
    strength of its penalty is chosen by cross-validation over conversations. The second one has two parameters, and is
    fitted to 100 of the dialogues.

    Args:
        judge: The judge, whose prompts, hidden states and likelihoods are read.
        dialogues: Sound dialogues.
        states: Their mean states at all layers, shape ``(N, L, D)``.

    Raises:
        ValueError: If no known-bad version can be made of them.
    """
    answered = [number for number, dialogue in enumerate(dialogues) if _answered(dialogue)]
    rows = [dialogues[number] for number in answered]
    conversations = {conversation_of(dialogue) for dialogue in rows}
    if len(conversations) < _FOLDS:
        raise ValueError(
            f"known_bad=True needs at least {_FOLDS} conversations with replies of the assistant, but "
            f"{len(conversations)} of the {len(dialogues)} dialogues have any."
        )
    sound, bad = known_bad(rows)
    others = [built.ids for built in judge.prompts([*sound[len(rows) :], *bad])]
    states = torch.cat([states[answered], mean_states(judge.lm, others, None, judge.max_tokens)])
    weight, bias = _fit_information(judge, rows[:: -(-len(rows) // _INFORMED)])
    return Soundness(*_fit_states(states, sound, bad), information_weight=weight, information_bias=bias)


def _fit_states(
    states: Tensor, sound: Sequence[Dialogue], bad: Sequence[Dialogue]
) -> tuple[int, tuple[float, ...], float, tuple[float, ...], tuple[float, ...]]:
    """Layer, weight, bias, center and scale of the classifier of mean states."""
    from sklearn.linear_model import LogisticRegression, RidgeCV
    from sklearn.metrics import log_loss
    from sklearn.model_selection import GroupKFold

    groups = [conversation_of(dialogue) for dialogue in [*sound, *bad]]
    label, balance = _classes(sound, bad)

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
    weight = tuple(float(value) for value in fit.coef_[0])
    return layer, weight, float(fit.intercept_[0]), tuple(center.tolist()), tuple(scale.tolist())


def _fit_information(judge: DialogueJudge, dialogues: Sequence[Dialogue]) -> tuple[float, float]:
    """Weight and bias of the classifier of the least information."""
    from sklearn.linear_model import LogisticRegression

    sound, bad = known_bad(dialogues)
    shown = [built.dialogue for built in judge.prompts([*sound, *bad])]
    x = _least(reply_information(judge.lm, shown, judge.max_tokens))[:, None].numpy()
    label, balance = _classes(sound, bad)
    fit = LogisticRegression(max_iter=1000).fit(x, label.numpy(), balance)
    return float(fit.coef_[0, 0]), float(fit.intercept_[0])


def _classes(sound: Sequence[Dialogue], bad: Sequence[Dialogue]) -> tuple[Tensor, Any]:
    """Labels, and weights by which both classes count the same."""
    label = torch.tensor([1] * len(sound) + [0] * len(bad))
    return label, torch.where(label == 1, len(label) / (2 * len(sound)), len(label) / (2 * len(bad))).numpy()


def _least(information: Sequence[Sequence[float]]) -> Tensor:
    """The least information of each dialogue on a symmetric logarithmic scale; NaN without a reply."""
    least = torch.tensor([min(replies, default=math.nan) for replies in information], dtype=torch.float64)
    return least.sign() * least.abs().log1p()


def _answered(dialogue: Dialogue) -> bool:
    return any(turn.role == "assistant" for turn in dialogue.turns)


def _head(dialogue: Dialogue) -> Dialogue:
    """A beginning of a dialogue, up to the reply to one of the first three messages of the user."""
    replies = [place for place, turn in enumerate(dialogue.turns) if turn.role == "assistant"]
    chosen = Random(f"head {dialogue.id}").choice(replies[:3])
    return replace(dialogue, turns=dialogue.turns[: chosen + 1])


def _standardized(states: Tensor, center: Tensor, scale: Tensor) -> Tensor:
    return ((states - center) / scale).clamp(-_CLIP, _CLIP)


def _vector(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
