"""Hugging Face sequence classifiers as judges of texts, with the class given by name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_unlearn.core.checks import at_least
from lightning_unlearn.core.modes import evaluating

__all__ = ["TextClassifier"]


class TextClassifier:
    """Probability of one class of a text, or of a pair of texts.

    Args:
        model: Hub id or folder of a sequence classifier, or such a model.
        label: Name of the class, in any case. It is looked up by name, as the numbers of classes differ between models.
        tokenizer: The tokenizer, where the model is an object.
        batch_size: Texts in a pass.
        max_length: Longest input in tokens; the rest is cut.
        device: Where to run it.

    Raises:
        ValueError: If the model has no such class, or an object comes without its tokenizer.
        ImportError: If transformers is missing.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | nn.Module,
        label: str,
        tokenizer: Any = None,
        batch_size: int = 32,
        max_length: int = 512,
        device: str | torch.device = "cpu",
    ) -> None:
        self.batch_size, self.max_length = at_least("batch_size", batch_size, 1), at_least("max_length", max_length, 1)
        self.model, self.tokenizer = _opened(model, tokenizer)
        self.model.to(device)
        self.label, self.number = label, label_number(self.model.config, label)

    def __call__(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Tensor:
        """Probabilities ``(N,)`` of the class, fp64 on the CPU.

        Args:
            texts: Texts; the first of each pair.
            pairs: The second ones, for a model that reads pairs.
        """
        return self.probabilities(texts, pairs)[:, self.number]

    def chosen(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Tensor:
        """Whether the class is the likeliest one, boolean, shape ``(N,)``."""
        return self.probabilities(texts, pairs).argmax(1) == self.number

    def probabilities(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Tensor:
        """Probabilities ``(N, K)`` of all classes, fp64 on the CPU."""
        if pairs is not None and len(pairs) != len(texts):
            raise ValueError(f"There are {len(texts)} texts and {len(pairs)} pairs of them. Pass one a row.")
        parts = [torch.empty(0, len(self.model.config.id2label), dtype=torch.float64)]
        device = next(self.model.parameters()).device
        with evaluating(self.model):
            for start in range(0, len(texts), self.batch_size):
                part = slice(start, start + self.batch_size)
                inputs = self.tokenizer(
                    list(texts[part]),
                    list(pairs[part]) if pairs is not None else None,
                    padding=True,
                    truncation=True,
                    max_length=self.max_length,
                    return_tensors="pt",
                )
                logits = self.model(**{name: values.to(device) for name, values in inputs.items()}).logits
                parts.append(logits.double().softmax(-1).cpu())
        return torch.cat(parts)


def label_number(config: Any, label: str) -> int:
    """Number of a class by its name.

    Args:
        config: The model's config, with ``id2label``.
        label: Name of the class, in any case; ``_``, ``-`` and blanks are alike.

    Raises:
        ValueError: If the model has no such class.
    """
    names = {int(number): str(name) for number, name in config.id2label.items()}
    found = [number for number, name in names.items() if _plain(name) == _plain(label)]
    if len(found) != 1:
        raise ValueError(
            f"The classifier has the classes {list(names.values())}, and none is called {label!r}. Give the name of "
            "the class, label=...; where a model has only names such as LABEL_0, set model.config.id2label by its card."
        )
    return found[0]


def _plain(name: str) -> str:
    return name.strip().lower().replace("_", " ").replace("-", " ")


def _opened(model: Any, tokenizer: Any) -> tuple[Any, Any]:
    if isinstance(model, nn.Module):
        if tokenizer is None:
            raise ValueError(f"A {type(model).__name__} needs its tokenizer: tokenizer=...")
        return model, tokenizer
    try:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer
    except ImportError:
        raise ImportError('Classifiers of texts need transformers: pip install "lightning-unlearn[llm]"') from None
    opened = AutoModelForSequenceClassification.from_pretrained(str(model))
    return opened.eval(), tokenizer or AutoTokenizer.from_pretrained(str(model))
