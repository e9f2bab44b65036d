"""Side effects of erasure: on near and far concepts, on images of other concepts, and on the rest of the prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_unlearn.core.checks import at_least
from lightning_unlearn.core.intervals import Interval
from lightning_unlearn.diffusion.attacks.result import wilson_interval
from lightning_unlearn.diffusion.canvas.names import Kind
from lightning_unlearn.diffusion.canvas.neighbours import Neighbours
from lightning_unlearn.diffusion.canvas.nested_bootstrap import nested_bootstrap
from lightning_unlearn.diffusion.canvas.scores import AnswerScores
from lightning_unlearn.functional.diffusion.canvas_accuracy import redirect_entropy as entropy

__all__ = ["Counts", "SideEffectRates", "SideEffects", "redirect_entropy", "side_effect_rates", "side_effects"]


@dataclass(frozen=True)
class Counts:
    """Hits of the erased model and of the model before erasure, on the same images of ``P`` prompts.

    Args:
        after: Hits of each prompt after erasure.
        base: Hits of each prompt before.
        images: Images of each prompt.
    """

    after: tuple[int, ...]
    base: tuple[int, ...]
    images: tuple[int, ...]

    @property
    def rate(self) -> float:
        """Share of hits after erasure."""
        return sum(self.after) / sum(self.images)

    @property
    def base_rate(self) -> float:
        """Share of hits before."""
        return sum(self.base) / sum(self.images)

    @property
    def changes(self) -> Tensor:
        """Change of the share of hits of each prompt, shape ``(P,)``, fp64."""
        return (torch.tensor(self.after) - torch.tensor(self.base)).double() / torch.tensor(self.images)


@dataclass(frozen=True)
class SideEffects:
    """Side effects of one run.

    Args:
        near: Right answers on near concepts.
        far: Right answers on far concepts.
        anchor: Right answers on the concept that replaces the erased one; ``None`` if no concept of its kind does.
        rest: For prompts of the erased concept, images whose other attribute is right, such as the object of a style.
        leaks: For prompts of other concepts of its kind, images that are judged to show the erased concept.
        redirects: What the judge sees in images of the erased concept's prompts, without the concept itself.
        labels: Number $K$ of classes that the judge of this kind knows.
        anchor_name: The concept that replaces the erased one.
    """

    near: Counts
    far: Counts
    anchor: Counts | None
    rest: Counts
    leaks: Counts
    redirects: dict[str, int]
    labels: int
    anchor_name: str | None

    @property
    def excess_near(self) -> float:
        """How much more accuracy near concepts lost than far ones."""
        return (self.near.base_rate - self.near.rate) - (self.far.base_rate - self.far.rate)

    @property
    def leak_in(self) -> float:
        """How much more often other prompts show the concept than before."""
        return self.leaks.rate - self.leaks.base_rate

    @property
    def anchor_share(self) -> float | None:
        """Share of the anchor among redirects; ``None`` if there is no redirect, or no anchor."""
        total = sum(self.redirects.values())
        return self.redirects.get(self.anchor_name, 0) / total if total and self.anchor_name is not None else None

    @property
    def redirect_entropy(self) -> float | None:
        """See [`redirect_entropy`][lightning_unlearn.diffusion.canvas.side_effects.redirect_entropy]."""
        return redirect_entropy(self.redirects, self.labels)

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> SideEffects:
        """What `to_dict` gave, also out of a JSON file."""
        counts = {
            name: None if record[name] is None else Counts(*(tuple(record[name][part]) for part in _PARTS))
            for name in ("near", "far", "anchor", "rest", "leaks")
        }
        return cls(**counts, **{name: record[name] for name in ("redirects", "labels", "anchor_name")})  # type: ignore[arg-type]


_PARTS = ("after", "base", "images")


def redirect_entropy(redirects: Mapping[str, int], labels: int) -> float | None:
    r"""Entropy of what a concept's prompts show in its place, $-\sum_k p_k \log p_k / \log(K - 1)$.

    It is 0 if all images show one label, and 1 if they are spread evenly over all labels.

    Args:
        redirects: Number of images of each label, without the label of the concept itself.
        labels: Number of labels $K$, including that of the concept; at least 3.

    Returns:
        ``None`` if there is no redirect.

    Example:
        >>> round(redirect_entropy({"photo": 6, "sketch": 2, "ember": 2}, labels=6), 3)
        0.59
    """
    at_least("labels", labels, 3)
    if not sum(redirects.values()):
        return None
    counts = torch.zeros(labels)
    counts[1 : 1 + len(redirects)] = torch.tensor(list(redirects.values()))
    return float(entropy(counts, target=0))


def side_effects(after: AnswerScores, base: AnswerScores, target: str, neighbours: Neighbours) -> SideEffects:
    """Compute side effects from the answer sets of the erased model and of the model before erasure.

    Prompts are those of the answer set, one for each pair of a style and an object; the photos are among the styles
    where both sets have them.

    Args:
        after: Of the erased model.
        base: Of the model before erasure, of the same seeds.
        target: The erased concept.
        neighbours: Its near and far concepts, and its anchor.

    Raises:
        ValueError: If images are missing, the sets are of other names or seeds, or the target has no row.
    """
    if after.names != base.names or after.seeds != base.seeds:
        raise ValueError(
            f"The answers have seeds {after.seeds} and {base.seeds}, or other names: compare like with like."
        )
    for which, scores in (("after erasure", after), ("before erasure", base)):
        if missing := scores.missing():
            raise ValueError(f"Of the answers {which} {len(missing)} are missing, such as {missing[0]}.")
    names = after.names
    kind: Kind = "style" if target == names.photo else names.kind(target)
    known = list(names.all_styles if kind == "style" else names.objects)
    label, rows = known.index(target), torch.arange(len(known))[:, None, None]
    (own, other), (own_base, other_base) = _by_kind(after, kind), _by_kind(base, kind)
    there = (own >= 0).all(2) & (own_base >= 0).all(2)

    def counts(hits: Tensor, base_hits: Tensor, concepts: Sequence[str]) -> Counts:
        chosen = there & torch.isin(rows[:, :, 0], torch.tensor([known.index(name) for name in concepts]))
        if not chosen.any():
            raise ValueError(f"The answers have no image of {list(concepts)}, which {target!r} is compared with.")
        shown, shown_before = (tuple(h[chosen].sum(1).tolist()) for h in (hits, base_hits))
        return Counts(shown, shown_before, images=(len(after.seeds),) * int(chosen.sum()))

    right, partners = (own == rows, own_base == rows), torch.arange(other.shape[1])[None, :, None]
    anchor, redirected = neighbours.anchor, own[label][there[label]].flatten()
    return SideEffects(
        near=counts(*right, neighbours.near),
        far=counts(*right, neighbours.far),
        anchor=None if anchor is None else counts(*right, [anchor]),
        rest=counts(other == partners, other_base == partners, [target]),
        leaks=counts(own == label, own_base == label, [name for name in known if name != target]),
        redirects={n: int((redirected == k).sum()) for k, n in enumerate(known) if k != label and k in redirected},
        labels=len(known),
        anchor_name=anchor,
    )


def _by_kind(scores: AnswerScores, kind: Kind) -> tuple[Tensor, Tensor]:
    """Predictions of the kind and of the other one, with the kind's names along the first axis."""
    if kind == "style":
        return scores.style, scores.object
    return scores.object.transpose(0, 1), scores.style.transpose(0, 1)


@dataclass(frozen=True)
class SideEffectRates:
    """Side effects over runs: rates with Wilson's intervals, changes with bootstrap intervals over runs and prompts.

    Args:
        near: Accuracy on near concepts.
        far: Accuracy on far concepts.
        anchor: Accuracy on the anchor; ``None`` if there is none.
        rest: Accuracy of the other attribute on the erased concept's prompts.
        drop_near: Accuracy on near concepts before erasure minus that after it.
        drop_far: The same for far concepts.
        excess_near: ``drop_near`` minus ``drop_far``.
        leak_in: Rate at which prompts of other concepts show the erased one, minus the rate before erasure.
        anchor_share: Share of the anchor among what the concept's prompts show in its place.
        redirect_entropy: Mean entropy over the runs that have redirects.
    """

    near: Interval
    far: Interval
    anchor: Interval | None
    rest: Interval
    drop_near: Interval
    drop_far: Interval
    excess_near: Interval
    leak_in: Interval
    anchor_share: Interval | None
    redirect_entropy: float | None


def side_effect_rates(runs: Sequence[SideEffects], seed: int = 0) -> SideEffectRates:
    """Side effects over runs; a run is one target and one seed.

    Args:
        runs: Side effects of each run.
        seed: Seed of the bootstrap.

    Raises:
        ValueError: If there is no run.
    """
    at_least("the number of runs", len(runs), 1)
    anchors = [run.anchor for run in runs if run.anchor is not None]
    replaced = [run for run in runs if run.anchor_name is not None]
    redirects = sum(sum(run.redirects.values()) for run in replaced)
    to_anchor = sum(run.redirects.get(str(run.anchor_name), 0) for run in replaced)
    entropies = [run.redirect_entropy for run in runs if run.redirect_entropy is not None]
    return SideEffectRates(
        near=_pooled([run.near for run in runs]),
        far=_pooled([run.far for run in runs]),
        anchor=_pooled(anchors) if anchors else None,
        rest=_pooled([run.rest for run in runs]),
        drop_near=nested_bootstrap([[-run.near.changes] for run in runs], seed=seed),
        drop_far=nested_bootstrap([[-run.far.changes] for run in runs], seed=seed),
        excess_near=nested_bootstrap([[-run.near.changes, -run.far.changes] for run in runs], seed=seed),
        leak_in=nested_bootstrap([[run.leaks.changes] for run in runs], seed=seed),
        anchor_share=_wilson(to_anchor, redirects) if redirects else None,
        redirect_entropy=sum(entropies) / len(entropies) if entropies else None,
    )


def _pooled(counts: Sequence[Counts]) -> Interval:
    return _wilson(sum(sum(c.after) for c in counts), sum(sum(c.images) for c in counts))


def _wilson(hits: int, images: int) -> Interval:
    return Interval(hits / images, *wilson_interval(hits, images))
