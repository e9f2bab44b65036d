"""A table of runs that several processes make as one does."""

from __future__ import annotations

import lightning_unlearn as lu
from tests.distributed.classifier_cases import (
    CLASSIFIERS,
    MONITOR,
    WholeNet,
    duals,
    metrics,
    npo_on_users_net,
    odd,
    reductions,
    rewound,
    users,
)
from tests.distributed.image_cases import ERASERS, drawn, image_metrics
from tests.distributed.language_cases import (
    CURVATURE,
    EDIT,
    JUDGES,
    LANGUAGE,
    MASKED,
    PENALTIES,
    QUALITY,
    SMOOTHED,
    STOPPED,
    audited,
    language,
    own_answers,
    soul,
    statistics,
)
from tests.distributed.language_metrics import language_metrics
from tests.distributed.layouts import Measurement, Training, refused
from tests.distributed.rating_metrics import rating_metrics
from tests.distributed.reconstruction_cases import RECONSTRUCTION, swept

CASES: dict[str, Training | Measurement] = {
    **JUDGES,
    **LANGUAGE,
    **MASKED,
    **CURVATURE,
    **SMOOTHED,
    **PENALTIES,
    "StopWhenForgotten": STOPPED,
    "DialogueQualityCallback": QUALITY,
    "InfluenceUnlearning": EDIT,
    "own-answers": Measurement(own_answers, ("ddp", "fsdp2")),
    "Audit": Measurement(audited),
    "sharded-audit": refused(language(lambda _: [lu.GradientAscent(), lu.Audit()]), "fsdp2"),
    "whole-lm": refused(LANGUAGE["SimNPO"], "tp"),
    "sharded-second-derivative": refused(soul(estimator="hutchinson"), "fsdp2"),
    **CLASSIFIERS,
    "ClassifierMonitor": MONITOR,
    "Rewind": Measurement(rewound),
    "metrics": Measurement(metrics),
    "language-metrics": Measurement(language_metrics),
    "rating-metrics": Measurement(rating_metrics),
    "NPO-users": users(npo_on_users_net),
    "KLMinimization-users": users(lambda: lu.KLMinimization(score=lu.classifier_nll)),
    "odd": Measurement(odd),
    "whole-net": refused(users(npo_on_users_net, WholeNet), "fsdp2", "tp"),
    "reductions": Measurement(reductions),
    "duals": Measurement(duals, ("ddp", "fsdp2", "tp")),
    **ERASERS,
    "drawn": Measurement(drawn),
    "statistics": Measurement(statistics, ("ddp", "fsdp2")),
    "image-metrics": Measurement(image_metrics),
    **RECONSTRUCTION,
    "swept": Measurement(swept),
}
