"""Vectors of texts from the hidden states of a causal language model."""

from __future__ import annotations

from torch import Tensor

from lightning_unlearn.core.checks import at_least
from lightning_unlearn.dialogue.hidden_states import mean_states
from lightning_unlearn.language.causal_lm import LitCausalLM

__all__ = ["StateEncoder"]


class StateEncoder:
    """Means of a model's hidden states over the tokens of a text, as vectors to select examples by.

    Args:
        module: The model, with a tokenizer.
        layer: Number of the hidden state: 0 is the embedding, -1 the last one.
        max_length: Longest text in tokens; of a longer one the last are read.
        max_tokens: Largest batch in tokens, with padding.

    Raises:
        ValueError: If the module has no tokenizer, or an option is out of range.
    """

    def __init__(self, module: LitCausalLM, layer: int = -1, max_length: int = 512, max_tokens: int = 4096) -> None:
        if module.tokenizer is None:
            raise ValueError("The model has no tokenizer to read texts with. Give LitCausalLM(tokenizer=...).")
        self.module, self.layer = module, layer
        self.max_length = at_least("max_length", max_length, 1)
        self.max_tokens = at_least("max_tokens", max_tokens, 1)

    def __call__(self, texts: list[str]) -> Tensor:
        """Vectors, shape ``(N, D)``, fp32, on the CPU."""
        ids = [self.module.tokenizer(text)["input_ids"][-self.max_length :] for text in texts]
        return mean_states(self.module, ids, [self.layer], self.max_tokens)[:, 0]
