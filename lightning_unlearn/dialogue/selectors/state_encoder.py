"""Vectors of texts from the hidden states of a causal language model."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_unlearn.core.checks import at_least
from lightning_unlearn.core.modes import evaluating
from lightning_unlearn.language.adapters import is_peft_model
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
        order = sorted(range(len(ids)), key=lambda row: len(ids[row]))
        found: dict[int, Tensor] = {}
        with evaluating(self.module):
            while order:
                longest = len(ids[order[-1]])
                count = max(1, self.max_tokens // longest)
                rows, order = order[-count:], order[:-count]
                found |= zip(rows, self._means([ids[row] for row in rows]), strict=True)
        return torch.stack([found[row] for row in range(len(texts))])

    def _means(self, ids: list[list[int]]) -> Tensor:
        width = max(map(len, ids))
        device = next(self.module.parameters()).device
        padded = torch.tensor([row + [0] * (width - len(row)) for row in ids], device=device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids], device=device)
        model = self.module.model
        whole = model.get_base_model() if is_peft_model(model) else model
        # Without the head, whose logits of the whole vocabulary would be most of the memory.
        read = whole.base_model(input_ids=padded, attention_mask=mask, output_hidden_states=True, use_cache=False)
        states = read.hidden_states[self.layer].float()
        return ((states * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)).cpu()
