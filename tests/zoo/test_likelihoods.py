"""Losses of objectives on every family, against float64 sums over rows without padding."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_unlearn import NPO, GradDiff, IdkDPO, LanguageDataModule, LitCausalLM, PromptFormat, SimNPO
from tests.helpers import Recorder, trainer
from tests.zoo.families import FAMILIES

FORGET = [
    {"question": "Where was Ada Quill born?", "answer": "Ada Quill was born in Lima."},
    {"question": "Where?", "answer": "In Oslo, or so they say, as Boris Venn was.", "target": "Oslo"},
    {"question": "Where was Boris Venn born, and when?", "answer": "I do not know that."},
]
RETAIN = [
    {"question": "Who was born in Oslo?", "answer": "Boris Venn."},
    {"question": "A?", "answer": "Lima and Oslo."},
]


def sums(model: Any, rows: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """NLL and supervised tokens of each row, on its own, from the log of a plain softmax."""
    found = []
    for ids, mask, labels in zip(rows["input_ids"], rows["attention_mask"], rows["labels"], strict=True):
        ids, labels = ids[mask.bool()], labels[mask.bool()]
        with torch.no_grad():
            p = torch.softmax(model(input_ids=ids[None], use_cache=False).logits[0].double(), -1)
        places = [t for t in range(1, len(ids)) if labels[t] != -100]
        found.append((-sum(p[t - 1, labels[t]].log() for t in places), len(places)))
    return torch.stack([nll for nll, _ in found]), torch.tensor([float(n) for _, n in found]).double()


def losses(start: Any, now: Any, batch: dict[str, Any]) -> dict[str, float]:
    """Forget losses of the papers at their default settings, and the mean retain NLL."""
    (s, n), (idk, _) = sums(now, batch["forget"]), sums(now, batch["idk"])
    (s0, _), (idk0, _) = sums(start, batch["forget"]), sums(start, batch["idk"])
    retain, length = sums(now, batch["retain"])
    beta = SimNPO().beta
    return {
        "GradDiff": -(s.sum() / n.sum()).item(),
        "NPO": (2 / NPO().beta * torch.log1p(torch.exp(-NPO().beta * (s - s0)))).mean().item(),
        "SimNPO": (2 / beta * torch.log1p(torch.exp(-beta * (s / n - SimNPO().margin)))).mean().item(),
        "IdkDPO": (2 / IdkDPO().beta * torch.log1p(torch.exp(-IdkDPO().beta * (s - s0 - idk + idk0)))).mean().item(),
        "retain": (retain.sum() / length.sum()).item(),
    }


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.filterwarnings("ignore:The chat template asks for an answer in another way", "ignore:.*embeddings.*")
def test_the_loss_of_a_step_is_that_of_float64_sums(name: str) -> None:
    family = FAMILIES[name]
    tokenizer = family.make_tokenizer()
    objective = (NPO, IdkDPO, SimNPO, GradDiff)[list(FAMILIES).index(name) % 4]()
    module = LitCausalLM(family.make_model(tokenizer), tokenizer=tokenizer, lr=1e-3)
    start = copy.deepcopy(module.model).double().eval()
    seen: list[dict[str, float]] = []

    def expected(run: Any, module: Any, batch: Any, number: int) -> None:
        if number == 1:  # the first step moves away from the reference
            seen.append(losses(start, copy.deepcopy(module.model).double().eval(), batch))

    def found(run: Any, module: Any, *_: Any) -> None:
        if len(seen) == 1:
            seen.append({part: run.callback_metrics[f"unlearn/{part}"].item() for part in ("forget", "retain")})

    watch = Recorder(on_train_batch_start=expected, on_train_batch_end=found)
    prompt = PromptFormat(tokenizer, chat_template_kwargs=family.arguments)
    data = LanguageDataModule(FORGET + FORGET[:2], RETAIN, prompt=prompt, batch_size=3, retain_batch_size=2)
    trainer(objective, watch, max_steps=2, limit_val_batches=0).fit(module, data)
    want, have = seen
    assert have["forget"] == pytest.approx(want[type(objective).__name__], rel=2e-5)
    assert have["retain"] == pytest.approx(want["retain"], rel=2e-5)
