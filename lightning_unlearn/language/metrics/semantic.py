"""Semantic accuracy: whether an answer's sentence embedding is closer to the truth than to wrong answers."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_unlearn.core.checks import at_least
from lightning_unlearn.core.modes import evaluating
from lightning_unlearn.core.row_metric import IndexedMetric

__all__ = ["Embedder", "SemanticAccuracy", "SentenceEmbeddings", "semantic_accuracy"]

Embedder: TypeAlias = Callable[[Sequence[str]], Tensor]
"""Texts to embeddings ``(N, D)``."""


class SentenceEmbeddings:
    """Sentence embeddings: the mean of a model's last hidden states over the tokens of a text.

    Models such as ``sentence-transformers/paraphrase-MiniLM-L6-v2`` are meant to be used in this way.

    Args:
        model: Hub id or folder of an encoder, or such a model.
        tokenizer: The tokenizer, where the model is an object.
        batch_size: Texts in a pass.
        max_length: Longest text in tokens; the rest is cut.
        device: Where to run it.

    Raises:
        ValueError: If an object comes without its tokenizer.
        ImportError: If transformers is missing.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | nn.Module,
        tokenizer: Any = None,
        batch_size: int = 64,
        max_length: int = 128,
        device: str | torch.device = "cpu",
    ) -> None:
        self.batch_size, self.max_length = at_least("batch_size", batch_size, 1), at_least("max_length", max_length, 1)
        if isinstance(model, nn.Module):
            if tokenizer is None:
                raise ValueError(f"A {type(model).__name__} needs its tokenizer: tokenizer=...")
            self.model, self.tokenizer = model, tokenizer
        else:
            try:
                from transformers import AutoModel, AutoTokenizer
            except ImportError:
                raise ImportError(
                    'Sentence embeddings need transformers: pip install "lightning-unlearn[llm]"'
                ) from None
            self.model = AutoModel.from_pretrained(str(model)).eval()
            self.tokenizer = tokenizer or AutoTokenizer.from_pretrained(str(model))
        self.model.to(device)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Embeddings of texts, shape ``(N, D)``, fp32 on the CPU."""
        device, parts = next(self.model.parameters()).device, []
        with evaluating(self.model):
            for start in range(0, len(texts), self.batch_size):
                inputs = self.tokenizer(
                    list(texts[start : start + self.batch_size]),
                    padding=True,
                    truncation=True,
                    max_length=self.max_length,
                    return_tensors="pt",
                ).to(device)
                states = self.model(**inputs).last_hidden_state.float()
                mask = inputs["attention_mask"][..., None].float()
                parts.append(((states * mask).sum(1) / mask.sum(1).clamp_min(1)).cpu())
        return torch.cat(parts)


def semantic_accuracy(
    embed: Embedder, predictions: Sequence[str], truths: Sequence[str], wrong: Sequence[Sequence[str]]
) -> Tensor:
    r"""Whether the true answer is closer to each generated one than all wrong answers, by the cosine of embeddings.

    Args:
        embed: Texts to embeddings, such as `SentenceEmbeddings`, or ``SentenceTransformer(...).encode`` with
            ``convert_to_tensor=True``.
        predictions: Generated answers.
        truths: True answers; in published evaluations the paraphrased ones.
        wrong: Wrong answers of each row, at least one.

    Returns:
        Shape ``(N,)``, fp64, 0 or 1; 0 for an empty prediction, and where a wrong answer is as close.

    Raises:
        ValueError: If the numbers of texts differ, or a row has no wrong answer.

    References:
        Jia et al., *SOUL: Unlocking the Power of Second-Order Optimization for LLM Unlearning*, arXiv:2404.18239.
    """
    if not len(predictions) == len(truths) == len(wrong):
        raise ValueError(
            f"There are {len(predictions)} predictions, {len(truths)} truths and wrong answers of {len(wrong)} rows. "
            "Pass one a row."
        )
    if empty := [row for row, answers in enumerate(wrong) if not answers]:
        raise ValueError(f"Rows {empty[:5]} have no wrong answer, so the truth has nothing to be closer than.")
    texts = [*predictions, *truths, *(answer for answers in wrong for answer in answers)]
    vectors = F.normalize(torch.as_tensor(embed(texts)).double().cpu(), dim=1) if texts else torch.empty(0, 1)
    n = len(predictions)
    others = vectors[2 * n :].split([len(answers) for answers in wrong])
    marks = [
        float(bool(text.strip()) and bool((truth @ vector > (other @ vector)).all()))
        for text, vector, truth, other in zip(predictions, vectors[:n], vectors[n : 2 * n], others, strict=True)
    ]
    return torch.tensor(marks, dtype=torch.float64)


class SemanticAccuracy(IndexedMetric):
    """Share of generated answers that are closer to the truth than to any wrong answer; see `semantic_accuracy`.

    In [0, 1]; good is the retrained model's value on forget rows, and the original's on others.

    Args:
        model: Hub id or folder of a sentence encoder, or a function from texts to embeddings.

    Raises:
        ValueError: If a row has no wrong answer, or no row was seen.
        ImportError: If transformers is missing.
    """

    higher_is_better: bool | None = None

    def __init__(self, model: str | os.PathLike[str] | Embedder, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.embed: Embedder = model if callable(model) else SentenceEmbeddings(model)

    def update(
        self,
        predictions: Sequence[str],
        truths: Sequence[str],
        wrong: Sequence[Sequence[str]],
        index: Tensor | Sequence[int] | None = None,
    ) -> None:
        """Count generated answers beside the true and the wrong ones, with the numbers of their rows."""
        self.record(index, value=semantic_accuracy(self.embed, predictions, truths, wrong))

    def compute(self) -> Tensor:
        """The share over all rows so far."""
        return self.kept().mean()
