"""Fine-tuning of the last layers, with the outputs of the frozen ones computed once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from lightning_unlearn.core.layers import decoder_layers
from lightning_unlearn.dialogue.frozen_layers import FrozenLayers
from lightning_unlearn.dialogue.judge import DialogueJudge
from lightning_unlearn.dialogue.prompt import JudgePrompt
from lightning_unlearn.dialogue.tuning import JudgeTuning, Target
from lightning_unlearn.language.causal_lm import LitCausalLM
from tests.dialogue.tuned import LORA, SHORT, dialogues
from tests.helpers import Recorder, trainer, weights

LAST = {**LORA, "layers_to_transform": [1]}


@pytest.fixture(autouse=True)
def _grad() -> Iterator[None]:
    with torch.enable_grad():
        yield


def tuned(model: Any, frozen_memory: float, target: Target = "soft", epochs: int = 3) -> tuple[DialogueJudge, int]:
    """A judge after fine-tuning of its last layer on shuffled batches, and sequences that were read from the cache."""
    torch.manual_seed(0)
    tuning = JudgeTuning(target, frozen_memory=frozen_memory)
    lm = model if isinstance(model, LitCausalLM) else LitCausalLM(model, lora=LAST, lr=1e-2)
    judge = DialogueJudge(lm, prompt=JudgePrompt(SHORT), shots=0, tuning=tuning)
    order = torch.Generator().manual_seed(1)
    loader: Any = DataLoader(dialogues(), 2, shuffle=True, collate_fn=list, generator=order)  # type: ignore[arg-type]
    reused = Recorder(on_train_epoch_end=lambda _, module: module.frozen.reused)
    trainer(reused, max_epochs=epochs).fit(judge, loader)
    return judge, reused.values[-1]


@pytest.mark.parametrize("target", ["majority", "sampled", "soft", "mean"])
def test_reused_outputs_train_the_same_adapters(tiny_lm: Path, target: Target) -> None:
    (cached, reused), (computed, none) = tuned(tiny_lm, 1.0, target), tuned(tiny_lm, 0.0, target)
    assert none == 0
    # The annotator that "sampled" draws anew makes another sequence, which is computed.
    assert (0 < reused < 8) if target == "sampled" else reused == 8
    torch.testing.assert_close(weights(cached), weights(computed), atol=1e-5, rtol=0)
    assert not any("forward" in vars(layer) for layer in decoder_layers(cached.lm.model)[1])
    assert cached.frozen.layers == []


def test_layers_of_another_family(tiny_lm: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_lm)
    lora = {"r": 4, "target_modules": ["c_attn"], "layers_to_transform": [2], "fan_in_fan_out": True}
    found = []
    for memory in (1.0, 0.0):
        torch.manual_seed(0)
        config = GPT2Config(vocab_size=len(tokenizer), n_positions=200, n_embd=16, n_layer=3, n_head=2)
        lm = LitCausalLM(GPT2LMHeadModel(config), tokenizer=tokenizer, lora=lora, lr=1e-2)
        found.append(tuned(lm, memory))
    assert [reused for _, reused in found] == [8, 0]
    torch.testing.assert_close(weights(found[0][0]), weights(found[1][0]), atol=1e-5, rtol=0)


def test_sequences_beyond_the_budget_are_computed_each_time(tiny_lm: Path) -> None:
    longest = 256 * 32 * 4  # of one sequence, in bytes
    judge, reused = tuned(tiny_lm, longest / 2**30)
    assert reused < 8
    torch.testing.assert_close(weights(judge), weights(tuned(tiny_lm, 0.0)[0]), atol=1e-5, rtol=0)


def test_layers_that_are_not_all_frozen_are_not_skipped(tiny_lm: Path) -> None:
    last = LitCausalLM(tiny_lm, lora=LAST)
    assert len(FrozenLayers(last, 1e9).layers) == 1
    assert FrozenLayers(last, 0).layers == []
    assert len(FrozenLayers(LitCausalLM(tiny_lm, lora={**LAST, "lora_dropout": 0.1}), 1e9).layers) == 1
    drawing = LitCausalLM(tiny_lm, lora=LAST, dropout=True)
    drawing.model.base_model.model.model.layers[0].self_attn.attention_dropout = 0.1
    assert FrozenLayers(drawing, 1e9).layers == []
    assert FrozenLayers(LitCausalLM(tiny_lm, lora=LORA), 1e9).layers == []
    assert FrozenLayers(LitCausalLM(tiny_lm), 1e9).layers == []  # embeddings train
    compiled = LitCausalLM(tiny_lm, lora=LAST)
    compiled.model.compile(backend="eager")
    assert FrozenLayers(compiled, 1e9).layers == []
    decoder_layers(last)[1][0].register_forward_hook(lambda *_: None)
    assert FrozenLayers(last, 1e9).layers == []
