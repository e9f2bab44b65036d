"""Membership inference attacks on the forget rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor

from lightning_unlearn.classification.metrics.features import FEATURES
from lightning_unlearn.core.checks import one_of
from lightning_unlearn.core.membership import Attack, Shadow, check_attack, check_features, draw_shadow, fit_attack
from lightning_unlearn.core.row_metric import RowMetric

__all__ = ["Attack", "MIAEfficacy", "Shadow", "attack_accuracy", "mia_efficacy", "training_privacy"]

Role = Literal["member", "nonmember", "forget"]


def mia_efficacy(
    members: Tensor,
    nonmembers: Tensor,
    forget: Tensor,
    *,
    member_labels: Tensor | None = None,
    nonmember_labels: Tensor | None = None,
    attack: Attack = "svc",
    shadow: Shadow = "random",
    max_shadow: int | None = None,
    seed: int = 0,
) -> float:
    r"""Share of forget rows that an attacker takes for rows that the model was not trained on.

    $$\frac{100}{|D_f|}\,\big|\{x \in D_f : A(f(x)) = 0\}\big|$$

    The attack $A$ learns to tell members (retain rows, 1) from non-members (test rows, 0) by one feature $f$ of the
    unlearned model; it never sees a forget row. Equal numbers of both are drawn; the draw depends on the seed and the
    values but not on their order. Published tables use the confidence, the SVC, and the *first* retain rows, which all
    belong to one class if the data are sorted by class.

    Args:
        members: The feature on retain rows, shape ``(R,)``, or ``(R, D)`` if it consists of several numbers.
        nonmembers: The feature on test rows, shape ``(T,)`` or ``(T, D)``; without the forgotten class if a whole class
            is forgotten.
        forget: The feature on forget rows, shape ``(F,)`` or ``(F, D)``.
        member_labels: Classes of the members, shape ``(R,)``; for ``shadow="stratified"``.
        nonmember_labels: Classes of the non-members, shape ``(T,)``.
        attack: ``"svc"`` as published: radial kernel, ``C=3``, ``gamma="auto"``, which is 1 / D; ``"logistic"`` for a
            balanced logistic regression.
        shadow: ``"random"`` draws evenly; ``"stratified"`` draws the same number of each class on both sides;
            ``"first"`` takes the first rows, as the published code does.
        max_shadow: Maximum number of rows per side; the cost of the SVC grows with its square.
        seed: Seed of the draw, independent of the global random state.

    Returns:
        In [0, 100]. Ideal is the value of the retrained model: a higher value means that the model differs from one
        that never saw the rows.

    Raises:
        ValueError: If a set is empty, a value is not finite, a shape is wrong or an option unknown.
        ImportError: If scikit-learn is missing.

    References:
        Jia et al., *Model Sparsity Can Simplify Machine Unlearning*, arXiv:2304.04934.
        Song and Mittal, *Systematic Evaluation of Privacy Risks of Machine Learning Models*, arXiv:2003.10595.
    """
    check_features(members=members, nonmembers=nonmembers, forget=forget)
    check_attack(attack, shadow, max_shadow)
    m, n = draw_shadow(members, nonmembers, member_labels, nonmember_labels, shadow, max_shadow, seed)
    return 100 * (1 - float(fit_attack(m, n, attack)(forget).mean()))


def training_privacy(
    members: Tensor,
    nonmembers: Tensor,
    *,
    member_labels: Tensor | None = None,
    nonmember_labels: Tensor | None = None,
    attack: Attack = "svc",
    shadow: Shadow = "random",
    max_shadow: int | None = None,
    seed: int = 0,
) -> float:
    r"""Balanced accuracy of the attack on rows that it was not fitted on, $50\,(\mathrm{TPR} + \mathrm{TNR})$.

    The attack is fitted on one half of the drawn rows and evaluated on the other. The result shows how far an efficacy
    can be trusted: at 50 the attack cannot recognize members at all.

    Args:
        members: The feature on retain rows, shape ``(R,)`` or ``(R, D)``, ``R >= 2``.
        nonmembers: The feature on test rows, shape ``(T,)`` or ``(T, D)``, ``T >= 2``.
        member_labels: As in [`mia_efficacy`][lightning_unlearn.classification.metrics.mia.mia_efficacy].
        nonmember_labels: As in ``mia_efficacy``.
        attack: As in ``mia_efficacy``.
        shadow: As in ``mia_efficacy``.
        max_shadow: Maximum number of rows per side, both halves together; at least 2.
        seed: Seed of the draw.

    Returns:
        In [0, 100]; 50 is chance. Ideal is the value of the retrained model.

    Raises:
        ValueError: If there are fewer than two rows per side, a value is not finite or an option is unknown.
        ImportError: If scikit-learn is missing.

    References:
        Jia et al., *Model Sparsity Can Simplify Machine Unlearning*, arXiv:2304.04934.
    """
    check_features(members=members, nonmembers=nonmembers)
    check_attack(attack, shadow, max_shadow)
    m, n = draw_shadow(members, nonmembers, member_labels, nonmember_labels, shadow, max_shadow, seed)
    half = len(m) // 2
    if half == 0:
        raise ValueError(f"Two rows of each kind are needed, one to fit and one to judge, but got {len(m)}.")
    predict = fit_attack(m[:half], n[:half], attack)
    return 50 * (float(predict(m[half:]).mean()) + 1 - float(predict(n[half:]).mean()))


def attack_accuracy(members: Tensor, nonmembers: Tensor, **options: Any) -> tuple[float, float]:
    """Balanced accuracy of the attack on rows that it was not fitted on, and half the width of its 95 % interval.

    Args:
        members: The feature on retain rows, shape ``(R,)``, ``R >= 2``.
        nonmembers: On test rows, shape ``(T,)``, ``T >= 2``.
        **options: As in [`training_privacy`][lightning_unlearn.classification.metrics.mia.training_privacy].

    Returns:
        Both in percent. If the interval contains 50, the attack can't tell members from non-members, and an efficacy
        says nothing about a row.

    Example:
        >>> import torch
        >>> accuracy, half = attack_accuracy(torch.ones(40), torch.zeros(40))
        >>> accuracy, half
        (100.0, 0.0)
    """
    accuracy = training_privacy(members, nonmembers, **options)
    shadow = min(len(members), len(nonmembers), options.get("max_shadow") or len(members))
    share, judged = accuracy / 100, 2 * (shadow - shadow // 2)
    return accuracy, 196 * (share * (1 - share) / judged) ** 0.5


class MIAEfficacy(RowMetric):
    r"""Efficacy of membership inference on the forget rows, by several features of the model's outputs.

    $$\mathrm{MIA} = \frac{100}{|D_f|}\,\big|\{x \in D_f : A(f(x)) = 0\}\big|$$

    See [`mia_efficacy`][lightning_unlearn.classification.metrics.mia.mia_efficacy] for the attack $A$. In [0, 100];
    ideal is the value of the retrained model, which is 100 if a whole class is forgotten. The published column is
    ``confidence``. The value for ``correctness`` equals UA if the attack takes correctly classified rows for members
    and all others for non-members.

    Args:
        features: Any of ``"confidence"``, ``"correctness"``, ``"entropy"``, ``"modified_entropy"`` and ``"prob"``, all
            K probabilities.
        attack: ``"svc"`` as published, or ``"logistic"``.
        shadow: ``"random"``, ``"stratified"`` by class, or ``"first"`` as published; the last depends on the order of
            rows, and therefore on the number of processes.
        max_shadow: Maximum number of rows per side; the cost of the SVC grows with its square.
        seed: Seed of the draw, independent of the global random state.

    Raises:
        ValueError: If an option is unknown or out of range, a set is empty or a logit is not finite.
        ImportError: If scikit-learn is missing; raised by ``compute``.

    References:
        Jia et al., *Model Sparsity Can Simplify Machine Unlearning*, arXiv:2304.04934.
        Song and Mittal, *Systematic Evaluation of Privacy Risks of Machine Learning Models*, arXiv:2003.10595.
    """

    higher_is_better: bool | None = None

    def __init__(
        self,
        features: Sequence[str] = tuple(FEATURES),
        attack: Attack = "svc",
        shadow: Shadow = "random",
        max_shadow: int | None = None,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        unknown = [name for name in features if name not in FEATURES]
        if unknown or not features or isinstance(features, str):
            raise ValueError(f"features must be a list of names from {sorted(FEATURES)}, but got {features!r}.")
        check_attack(attack, shadow, max_shadow)
        self.features, self.attack, self.shadow = tuple(features), attack, shadow
        self.max_shadow, self.seed = max_shadow, seed
        for role in ("member", "nonmember", "forget"):
            for name in (*self.features, "labels"):
                self.add_rows(f"{role}_{name}")

    def update(self, logits: Tensor, labels: Tensor, role: Role) -> None:
        """Count a batch.

        Args:
            logits: Shape ``(N, K)``.
            labels: Shape ``(N,)``.
            role: ``"member"`` for retain rows, ``"nonmember"`` for test rows, ``"forget"`` for forget rows.
        """
        one_of("role", role, Role)
        for name in self.features:
            self.append(f"{role}_{name}", FEATURES[name](logits, labels))
        self.append(f"{role}_labels", labels)

    def compute(self) -> dict[str, float]:
        """The efficacy in percent by feature."""
        labels = {role: self.values(f"{role}_labels") for role in ("member", "nonmember", "forget")}
        return {
            name: mia_efficacy(
                *(self._feature(role, name) for role in labels),
                member_labels=labels["member"],
                nonmember_labels=labels["nonmember"],
                attack=self.attack,
                shadow=self.shadow,
                max_shadow=self.max_shadow,
                seed=self.seed,
            )
            for name in self.features
        }

    def _feature(self, role: str, name: str) -> Tensor:
        values = self.values(f"{role}_{name}")  # per row: one value, or as many as there are classes
        return values.view(len(self.values(f"{role}_labels")), -1) if len(values) else values
