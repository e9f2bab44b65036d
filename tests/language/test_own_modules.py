"""Language models in a user's own LightningModule: what `causal_lm_nll` reads, refuses and warns of."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel

from lightning_unlearn import GradDiff, LitCausalLM, causal_lm_nll
from lightning_unlearn.core.lightning import MisconfigurationException
from tests.user_module import trainer

SIZE = {"vocab_size": 120, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}


def batch(highest: int = 119) -> dict[str, Tensor]:
    ids = torch.randint(3, highest + 1, (4, 9), generator=torch.Generator().manual_seed(1))
    ids[0, -1] = highest
    labels = ids.clone()
    labels[:, :3] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


class Own(L.LightningModule):
    """A model of transformers, with its own loss, behind a ``forward`` of the user's."""

    def __init__(self, output: Callable[[Any], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = LlamaForCausalLM(LlamaConfig(**SIZE, initializer_range=0.3))
        self.output = output

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Any:
        return self.output(self.model(input_ids=input_ids, attention_mask=attention_mask))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.model(**batch).loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


class WithoutHead(Own):
    """The same with an output layer that transformers does not know of."""

    def __init__(self, output: Callable[[Any], Any]) -> None:
        super().__init__(output)
        self.model = LlamaModel(LlamaConfig(**SIZE))
        self.head = nn.Linear(32, 120)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Any:
        return self.output(self.head(self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state))


def fit(module: L.LightningModule) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loaders = {role: torch.utils.data.DataLoader([batch()], batch_size=None) for role in ("forget", "retain")}
        trainer(GradDiff(), max_epochs=1, limit_val_batches=0).fit(module, loaders)
    return [str(warning.message) for warning in caught if "trains on" in str(warning.message)]


@pytest.mark.parametrize("kind", [Own, WithoutHead])
def test_logits_may_come_in_an_output_a_tuple_or_alone(kind: type[Own]) -> None:
    rows = batch()
    outputs = (
        lambda out: out,
        lambda out: getattr(out, "logits", out),
        lambda out: (getattr(out, "logits", out), None),
    )
    first, *others = (causal_lm_nll(kind(output), rows) for output in outputs)
    for other in others:
        torch.testing.assert_close(other, first)


REFUSED: dict[str, tuple[type[Own], Callable[[Any], Any]]] = {
    "forward returns (23, 120)": (Own, lambda out: out.logits[..., :-1, :]),
    "forward returns (120, 24)": (Own, lambda out: out.logits.transpose(0, 1)),
    "forward returns ()": (Own, lambda out: out.logits.mean()),
    "forward returns (8, 8, 120)": (WithoutHead, lambda logits: logits[:, :-1]),
    "forward returns (72, 120)": (WithoutHead, lambda logits: logits.flatten(0, 1)),
    "forward returns (9, 8, 120)": (WithoutHead, lambda logits: logits.transpose(0, 1)),
    "to 119, but the module returns 32": (WithoutHead, lambda logits: logits[..., :32]),
    "returns a dict with ['scores']": (Own, lambda out: {"scores": out.logits}),
}


@pytest.mark.parametrize("says", REFUSED)
def test_what_are_no_logits_of_each_position_is_refused(says: str) -> None:
    kind, output = REFUSED[says]
    module = kind(output)
    before = [parameter.clone() for parameter in module.parameters()]
    with pytest.raises((MisconfigurationException, TypeError), match=re.escape(says)):
        fit(module)
    assert all(map(torch.equal, before, module.parameters()))


def test_a_forward_of_other_arguments_is_named() -> None:
    class Takes(Own):
        def forward(self, tokens: Tensor) -> Any:
            return self.model(input_ids=tokens)

    class Fails(Own):
        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
            raise TypeError("an error of the user's")

    with pytest.raises(TypeError, match=r"Takes.forward\(input_ids=..., attention_mask=...\), which it does not take"):
        causal_lm_nll(Takes(lambda out: out), batch())
    with pytest.raises(TypeError, match="an error of the user's"):
        causal_lm_nll(Fails(lambda out: out), batch())


@pytest.mark.parametrize(
    "output",
    [
        lambda out: out.logits.softmax(-1),
        lambda out: out.logits[:, :-1] if out.logits.dim() == 3 else out.logits.roll(1, 0),
    ],
    ids=["probabilities", "other positions"],
)
def test_a_likelihood_that_is_not_the_modules_own_loss_is_warned_of(output: Callable[[Any], Any]) -> None:
    (message,) = fit(Own(output))
    assert "GradDiff trains on causal_lm_nll" in message
    assert "Own.training_step" in message


def test_the_modules_own_loss_is_not_spoken_of() -> None:
    assert fit(Own(lambda out: out)) == []
    assert fit(Own(lambda out: out.logits.log_softmax(-1))) == []
    assert fit(LitCausalLM(Own(lambda out: out).model, lr=1e-4)) == []
