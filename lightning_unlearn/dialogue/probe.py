"""Linear probe: ratings by ridge regression on the hidden states of a judge."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_unlearn.core.checks import above
from lightning_unlearn.core.files import write_text
from lightning_unlearn.dialogue.dialogue import Dialogue, Turn
from lightning_unlearn.dialogue.hidden_states import mean_states
from lightning_unlearn.dialogue.prompt import BuiltPrompt, JudgePrompt
from lightning_unlearn.dialogue.rating import Rating
from lightning_unlearn.dialogue.reply_information import reply_information
from lightning_unlearn.dialogue.soundness import Soundness, fit_soundness
from lightning_unlearn.dialogue.task import RatingTask

if TYPE_CHECKING:
    from lightning_unlearn.dialogue.judge import DialogueJudge

__all__ = ["PROBE_FILE", "ProbeExtractor", "SavedProbe", "saved_probe"]

PROBE_FILE = "probe.json"

_LEAST = 8  # rated dialogues
_REFERENCE = Dialogue("reference", (Turn("user", "Is the museum open today?"), Turn("assistant", "Yes, until six.")))
_TOLERANCE = 0.5  # standard deviations, root mean square over the dimensions; another precision differs by less


@dataclass(frozen=True)
class Probe:
    """A fitted probe: the rating is the product of ``weight`` and a mean state, plus ``bias``.

    Args:
        layer: Number of the hidden state.
        alpha: Strength of the penalty that it was fitted with.
        loo_mse: Mean squared leave-one-out error.
        dialogues: Number of dialogues that it was fitted to.
        weight: One weight a dimension.
        bias: The rating of a state of zeros.
        scale: Standard deviation of each dimension.
        reference: Mean state of a fixed dialogue, by which other weights of the model are noticed.
        soundness: Classifier of known-bad dialogues, where one was fitted.
    """

    layer: int
    alpha: float
    loo_mse: float
    dialogues: int
    weight: tuple[float, ...]
    bias: float
    scale: tuple[float, ...]
    reference: tuple[float, ...]
    soundness: Soundness | None = None


@dataclass(frozen=True)
class SavedProbe:
    """What a folder says about its judge.

    Args:
        probe: The probe.
        model: Where the model is.
        prompt: The prompt that the probe was fitted with.
    """

    probe: Probe
    model: str
    prompt: JudgePrompt


class ProbeExtractor:
    r"""Ratings by ridge regression on the judge's hidden states (a linear probe).

    With $h$ the mean over the tokens of a prompt of one layer's output, standardized, and $y$ the mean rating of the
    annotators, it minimizes

    $$\sum_i (y_i - b - w^\top h_i)^2 + \alpha \lVert w \rVert^2$$

    over $w$ and $b$. Layer and $\alpha$ are those with the least mean squared leave-one-out error, which has a closed
    form. A rating takes one forward pass through the layers up to that one, and nothing of the model trains. Ratings
    are limited to the scale.

    People rate dialogues of working assistants, so that a probe of their ratings alone does not know what a broken
    model writes. With ``known_bad``, two logistic regressions also learn to tell the dialogues from known-bad versions
    of them: messages shuffled, replies swapped, empty or repeated. One reads the states; the other reads how much more
    likely the judge's model finds the worst reply after the messages before it than on its own, which carries over to
    other kinds of dialogues. The score is then the expected rating if a known-bad dialogue has the lowest one. With $p$
    the probability of a sound dialogue by both, $r$ the rating above and $v_1$ the bottom of the scale,

    $$s = p\, r + (1 - p)\, v_1$$

    Such a rating takes whole forward passes, and the logits of the replies. A dialogue that the assistant opens is
    taken for a bad one, because its first message follows from nothing.

    The [controls][lightning_unlearn.Controls] of a quality report are of these kinds. They then test whether the judge
    recognizes them in other conversations, and no longer whether it does so untaught.

    Fit it with [`DialogueJudge.fit_probe`][lightning_unlearn.DialogueJudge], or give the Trainer a data module with a
    ``pool`` of rated dialogues, to which it is fitted before the first rating.

    Args:
        layer: Number of the hidden state: 0 is the embedding, -1 the last one. By default all are tried.
        alphas: Strengths of the penalty that are tried.
        known_bad: Whether known-bad versions of the dialogues are learned too; the fit takes five times as long.

    Attributes:
        probe: The fitted probe; ``None`` before.

    Raises:
        ImportError: If scikit-learn is missing; raised by ``fit``.
        ValueError: If there is no ``alpha``, or one is not above 0.
    """

    max_new_tokens = 0

    def __init__(
        self,
        layer: int | None = None,
        alphas: Sequence[float] = (1e2, 3e2, 1e3, 3e3, 1e4, 3e4, 1e5),
        known_bad: bool = False,
    ) -> None:
        self.known_bad = known_bad
        self.layer, self.alphas = layer, tuple(above("alphas", alpha, 0) for alpha in alphas)
        if not self.alphas:
            raise ValueError("alphas is empty. Give at least one strength of the penalty, such as alphas=(1e3,).")
        self.probe: Probe | None = None
        self.digest = ""
        self._weights_checked = False

    @property
    def knows_bad(self) -> bool:
        """Whether the fitted probe has learned known-bad dialogues, so that the lowest score means such a one."""
        return self.probe is not None and self.probe.soundness is not None

    @classmethod
    def of(cls, probe: Probe) -> ProbeExtractor:
        """An extractor with a probe that was fitted before."""
        made = cls(probe.layer, (probe.alpha,), probe.soundness is not None)
        made._take(probe)
        return made

    def fit(self, judge: DialogueJudge, dialogues: Sequence[Dialogue]) -> None:
        """Fit the probe to rated dialogues.

        Args:
            judge: The judge.
            dialogues: Rated dialogues.

        Raises:
            ImportError: If scikit-learn is missing.
            ValueError: If there are fewer than 8, one has no ratings, or all have the same mean rating.
        """
        try:
            from sklearn.linear_model import RidgeCV
        except ImportError:
            raise ImportError('ProbeExtractor needs scikit-learn: pip install "lightning-unlearn[dialogue]"') from None
        ratings = torch.tensor([dialogue.mean for dialogue in dialogues], dtype=torch.float64)
        if len(ratings) < _LEAST or bool((ratings == ratings[0]).all()):
            found = f"{len(ratings)}, with mean ratings {sorted(set(ratings.tolist()))}"
            raise ValueError(
                f"A probe needs at least {_LEAST} rated dialogues whose mean ratings are not all the same, but got "
                f"{found[:200]}."
            )
        layers = None if self.layer is None else [self.layer]
        read = mean_states(
            judge.lm, _ids(judge.prompts(dialogues)), None if self.known_bad else layers, judge.max_tokens
        )
        states = (read[:, layers] if self.known_bad and layers else read).double()
        best: Any = None
        for place in range(states.shape[1]):
            center, scale = states[:, place].mean(0), states[:, place].std(0).clamp_min(1e-8)
            ridge = RidgeCV(list(self.alphas)).fit(((states[:, place] - center) / scale).numpy(), ratings.numpy())
            if best is None or ridge.best_score_ > best[0].best_score_:
                best = ridge, place, center, scale
        ridge, place, center, scale = best
        layer = place if self.layer is None else self.layer
        weight = torch.as_tensor(ridge.coef_) / scale
        self._take(
            Probe(
                layer=layer,
                alpha=float(ridge.alpha_),
                loo_mse=-float(ridge.best_score_),
                dialogues=len(dialogues),
                weight=tuple(weight.tolist()),
                bias=float(ridge.intercept_ - weight @ center),
                scale=tuple(scale.tolist()),
                reference=tuple(_reference_state(judge, layer).tolist()),
                soundness=fit_soundness(judge, dialogues, read) if self.known_bad else None,
            )
        )
        self._weights_checked = True

    def score(self, judge: DialogueJudge, prompts: Sequence[BuiltPrompt]) -> list[Rating]:
        """One rating a prompt.

        Raises:
            RuntimeError: If the probe is not fitted.
            ValueError: If it was fitted to the states of a model with other weights.
        """
        if self.probe is None:
            raise RuntimeError(
                "The judge's probe is not fitted. Call judge.fit_probe(rated_dialogues), or give the Trainer a data "
                "module with rated dialogues as its pool."
            )
        self._check_weights(judge, self.probe)
        sound, task = self.probe.soundness, judge.task
        layers = [self.probe.layer, *([] if sound is None else [sound.layer])]
        states = mean_states(judge.lm, _ids(prompts), layers, judge.max_tokens).double()
        lowest, highest = task.values[0], task.values[-1]
        scores = (states[:, 0] @ _vector(self.probe.weight) + self.probe.bias).clamp(lowest, highest)
        if sound is not None:
            information = reply_information(judge.lm, [prompt.dialogue for prompt in prompts], judge.max_tokens)
            scores = lowest + sound.probability(states[:, 1], information) * (scores - lowest)
        return [Rating(score, task.labels[task.nearest(score)]) for score in scores.tolist()]

    def save(self, folder: str | os.PathLike[str], model: str, prompt: JudgePrompt) -> None:
        """Write the probe as ``probe.json``.

        Args:
            folder: Where to; made if missing.
            model: Where the judge's model is: a folder, hub id or file, or ``"."`` for the same folder.
            prompt: The judge's prompt.

        Raises:
            RuntimeError: If the probe is not fitted.
        """
        if self.probe is None:
            raise RuntimeError("The judge's probe is not fitted, so there is nothing to save. Call judge.fit_probe.")
        Path(folder).mkdir(parents=True, exist_ok=True)
        record = {"model": model, "prompt": _prompt_state(prompt), "probe": asdict(self.probe)}
        write_text(Path(folder) / PROBE_FILE, json.dumps(record) + "\n")

    def _take(self, probe: Probe) -> None:
        self.probe = probe
        self.digest = hashlib.sha256(repr(probe).encode()).hexdigest()[:16]
        self._weights_checked = False

    def _check_weights(self, judge: DialogueJudge, probe: Probe) -> None:
        if self._weights_checked:
            return
        try:
            away = (_reference_state(judge, probe.layer) - _vector(probe.reference)) / _vector(probe.scale)
            distance = float(away.square().mean().sqrt())
        except (IndexError, RuntimeError):  # fewer layers, another width
            distance = math.inf
        if not distance < _TOLERANCE:
            raise ValueError(
                "The probe was fitted to the hidden states of another model, or of other weights or another prompt: "
                "the state of a reference dialogue differs. Open the judge with the model that the probe belongs to, "
                "or fit it again with judge.fit_probe."
            )
        self._weights_checked = True


def saved_probe(model: Any) -> SavedProbe | None:
    """The probe of a folder; ``None`` if ``model`` is no folder with one.

    Args:
        model: What a judge is opened from.

    Raises:
        ValueError: If the file is not one that this library wrote.
    """
    file = Path(model) / PROBE_FILE if isinstance(model, (str, os.PathLike)) else None
    if file is None or not file.is_file():
        return None
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        values = _tuples(record["probe"])
        if values["soundness"] is not None:
            values["soundness"] = Soundness(**_tuples(values["soundness"]))
        asked = {**record["prompt"], "task": RatingTask(**record["prompt"]["task"])}
        place = os.fspath(model) if record["model"] == "." else record["model"]
        return SavedProbe(Probe(**values), place, JudgePrompt(**asked))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file} is no probe of this library ({type(error).__name__}: {error}). Fit and save it again with "
            "judge.fit_probe and judge.save_probe."
        ) from None


def _tuples(record: dict[str, Any]) -> dict[str, Any]:
    """The fields of a record, whose lists were tuples before they became JSON."""
    return {name: tuple(part) if isinstance(part, list) else part for name, part in record.items()}


def same_prompt(one: JudgePrompt, other: JudgePrompt) -> bool:
    """Whether two prompts without examples are the same text."""
    return _prompt_state(one) == _prompt_state(other)


def _prompt_state(prompt: JudgePrompt) -> dict[str, Any]:
    """The settings that a prompt without examples depends on."""
    return {"task": asdict(prompt.task), "mode": prompt.mode, "max_length": prompt.max_length}


def _reference_state(judge: DialogueJudge, layer: int) -> Tensor:
    (built,) = judge.prompts([_REFERENCE], 0)
    return mean_states(judge.lm, [built.ids], [layer], judge.max_tokens)[0, 0].double()


def _ids(prompts: Sequence[BuiltPrompt]) -> list[list[int]]:
    return [prompt.ids for prompt in prompts]


def _vector(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
