from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers")

from transformers import LlamaConfig, LlamaForCausalLM

from lightning_unlearn.dialogue.selectors.dense import DenseSelector
from lightning_unlearn.dialogue.selectors.state_encoder import StateEncoder
from lightning_unlearn.language.causal_lm import LitCausalLM
from tests.dialogue.fixtures import texts


def module() -> LitCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    made = LitCausalLM(LlamaForCausalLM(config))
    made.tokenizer = lambda text: {"input_ids": [ord(letter) % 128 for letter in text]}
    return made


def test_vectors_are_the_means_of_states_and_padding_does_not_count() -> None:
    model = module()
    lines = ["a longer line of text", "short", "middle one"]
    vectors = StateEncoder(model)(lines)
    for line, vector in zip(lines, vectors, strict=True):
        ids = torch.tensor([[ord(letter) for letter in line]])
        with torch.no_grad():
            states = model.model.eval()(input_ids=ids, output_hidden_states=True).hidden_states[-1]
        torch.testing.assert_close(vector, states[0].mean(0), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(StateEncoder(model, max_tokens=1)(lines), vectors, atol=1e-5, rtol=1e-5)
    last = StateEncoder(model, max_length=4)(["a longer line of text", "text"])
    torch.testing.assert_close(last[0], last[1])


def test_a_model_selects_the_same_text_first_and_keeps_its_mode() -> None:
    model = module()
    selector = DenseSelector(StateEncoder(model))
    pool = texts("train to leeds", "room for two", "play jazz")
    selector.fit(pool)
    assert model.training
    assert [int(selector.similarities(row).argmax()) for row in pool] == [0, 1, 2]


def test_a_model_without_a_tokenizer_is_refused() -> None:
    model = module()
    model.tokenizer = None
    with pytest.raises(ValueError, match="has no tokenizer"):
        StateEncoder(model)
