"""Pointwise mutual information of replies and their context, against likelihoods of whole texts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_unlearn import Dialogue, LitCausalLM, Turn
from lightning_unlearn.dialogue.reply_information import reply_information
from tests.dialogue.judges import tiny_lm_of

ROWS = [
    Dialogue(
        "two", (Turn("user", "France?"), Turn("assistant", "Paris."), Turn("user", "Peru?"), Turn("assistant", "Lima"))
    ),
    Dialogue("asks last", (Turn("user", "Cuba"), Turn("assistant", "Havana  is\nthe capital"), Turn("user", "And?"))),
    Dialogue("empty", (Turn("user", "Italy"), Turn("assistant", ""))),
    Dialogue("begins", (Turn("assistant", "Paris."), Turn("assistant", "Lima"))),
    Dialogue("response", (Turn("user", "Norway?"),), response="Oslo"),
    Dialogue("nobody answers", (Turn("user", "Norway?"),)),
]


def log_prob(lm: LitCausalLM, text: str) -> float:
    """Log-probability of a text after its first token."""
    ids = torch.tensor([lm.tokenizer(text, add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        log_probs = lm.model(input_ids=ids).logits.double().log_softmax(-1)
    return float(log_probs[0, :-1].gather(1, ids[0, 1:, None]).sum())


def test_information_is_what_the_context_adds_to_the_likelihood_of_a_reply(tiny_lm: Path) -> None:
    lm = tiny_lm_of(tiny_lm).eval()

    def information(before: str, reply: str) -> float:
        within = log_prob(lm, f"{before}Assistant:{reply}\n") - log_prob(lm, f"{before}Assistant:")
        return within - (log_prob(lm, f"Assistant:{reply}\n") - log_prob(lm, "Assistant:"))

    found = reply_information(lm, ROWS)
    expected = [
        [
            information("User: France?\n", " Paris."),
            information("User: France?\nAssistant: Paris.\nUser: Peru?\n", " Lima"),
        ],
        [information("User: Cuba\n", " Havana is the capital")],
        [information("User: Italy\n", "")],
        [0.0, information("Assistant: Paris.\n", " Lima")],
        [information("User: Norway?\n", " Oslo")],
        [],
    ]
    assert found == [pytest.approx(values, abs=1e-4) for values in expected]
    assert len({round(value, 2) for values in expected for value in values}) == 7


def test_batches_and_copies_change_nothing(tiny_lm: Path) -> None:
    lm = tiny_lm_of(tiny_lm)
    together = reply_information(lm, ROWS)
    assert reply_information(lm, [*ROWS, *ROWS[::-1]], max_tokens=1) == [
        pytest.approx(values, abs=1e-4) for values in [*together, *together[::-1]]
    ]
    assert reply_information(lm, []) == []
    assert reply_information(lm, ROWS[-1:]) == [[]]


@pytest.mark.parametrize("kind", ["joins lines", "drops line breaks"])
def test_replies_have_the_same_tokens_with_and_without_their_context(kind: str) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    joins = kind == "joins lines"
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace() if joins else pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=["<unk>"])
    tokenizer.train_from_iterator(
        ["User: Norway?\nAssistant: Oslo\nUser: Italy\nAssistant:\nUser: Cuba\n"] * 9, trainer
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    assert joins == any("\nUser:" in token for token in fast.get_vocab())
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    torch.manual_seed(0)
    lm = LitCausalLM(LlamaForCausalLM(LlamaConfig(vocab_size=200, **sizes)), tokenizer=fast)
    assert max(abs(nats) for replies in reply_information(lm, ROWS) for nats in replies) > 1e-4
    with torch.no_grad():
        lm.model.lm_head.weight.zero_()  # each token has the same probability everywhere
    assert [nats for replies in reply_information(lm, ROWS) for nats in replies] == pytest.approx([0.0] * 7, abs=1e-5)
    assert reply_information(lm, ROWS[2:3]) == [[pytest.approx(0.0, abs=1e-5)]]


def test_the_model_is_left_as_it_was(tiny_lm: Path) -> None:
    lm = tiny_lm_of(tiny_lm).train()
    reply_information(lm, ROWS)
    assert all(child.training for child in lm.modules())
    assert not any(child._forward_hooks or child._forward_pre_hooks for child in lm.modules())
