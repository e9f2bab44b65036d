"""Selection of examples by the similarity of their vectors to the query's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_unlearn.core.checks import between, one_of
from lightning_unlearn.dialogue.dialogue import Dialogue
from lightning_unlearn.dialogue.selectors.balanced import LabelBalanced
from lightning_unlearn.dialogue.selectors.ranked import RankedSelector

__all__ = ["DenseSelector", "Encoder", "MMRSelector", "Similarity", "supply_encoder"]

Encoder = Callable[[list[str]], Any]
Similarity = Literal["cos", "dot"]


class DenseSelector(RankedSelector):
    """The dialogues whose vectors are the most similar to the query's.

    Args:
        encoder: Name or folder of a model of sentence-transformers, or a function from ``N`` texts to an array or
            tensor of shape ``(N, D)``, such as a [`StateEncoder`][lightning_unlearn.StateEncoder]. By default the
            hidden states of the judge that it is given to.
        sim: ``"cos"``, cosine, or ``"dot"``, inner product.

    Raises:
        ImportError: If sentence-transformers is missing and ``encoder`` is a name; raised by ``fit``.
        ValueError: If the encoder gives no finite vector for each text; raised by ``fit``.

    Example:
        >>> from lightning_unlearn import Dialogue, Turn
        >>> rows = [Dialogue(text, (Turn("user", text),), (3,)) for text in ("aaaa", "aabb", "bbbb")]
        >>> selector = DenseSelector(lambda texts: [[text.count("a"), text.count("b")] for text in texts])
        >>> selector.fit(rows)
        >>> selector.select(Dialogue("q", (Turn("user", "aaab"),)), 2)
        [0, 1]
    """

    def __init__(self, encoder: str | Encoder | None = None, sim: Similarity = "cos") -> None:
        self.encoder = encoder
        self.sim: Similarity = one_of("sim", sim, Similarity)

    def prepare(self) -> None:
        if self.encoder is None:
            raise ValueError(
                f"{type(self).__name__} has no encoder. Give one, such as StateEncoder(module) or the name of a model "
                "of sentence-transformers, or give the selector to a DialogueJudge, which supplies its own."
            )
        self._encode = _sentence_encoder(self.encoder) if isinstance(self.encoder, str) else self.encoder
        self._vectors = self._embedded([dialogue.text for dialogue in self.pool])
        # Reading a query costs a forward pass, and each is asked for again with each k and seed.
        self._queries: dict[str, Tensor] = {}

    def similarities(self, query: Dialogue) -> Tensor:
        """Similarity of each dialogue of the pool to the query, shape ``(N,)``, fp32."""
        text = query.text
        if text not in self._queries:
            self._queries[text] = self._embedded([text])[0]
        return self._vectors @ self._queries[text]

    def ranking(self, query: Dialogue) -> Any:
        return self.similarities(query).argsort(descending=True, stable=True).tolist()

    def _embedded(self, texts: list[str]) -> Tensor:
        vectors = torch.as_tensor(self._encode(texts)).detach().cpu().float()
        if vectors.ndim != 2 or len(vectors) != len(texts) or not vectors.isfinite().all():
            raise ValueError(
                f"The encoder must give one finite vector a text, shape ({len(texts)}, D), but gave the shape "
                f"{tuple(vectors.shape)} with {int((~vectors.isfinite()).sum())} numbers that are not finite."
            )
        return torch.nn.functional.normalize(vectors, dim=1) if self.sim == "cos" else vectors


class MMRSelector(DenseSelector):
    r"""Maximal marginal relevance: dialogues like the query, and unlike one another.

    $$d_{n+1} = \arg\max_{d \notin S_n} \lambda\, \mathrm{sim}(q, d)
      - (1 - \lambda) \max_{s \in S_n} \mathrm{sim}(d, s)$$

    Args:
        encoder: See [`DenseSelector`][lightning_unlearn.DenseSelector].
        trade_off: $\lambda$, in [0, 1]; 1 is `DenseSelector`.
        sim: ``"cos"``, cosine, or ``"dot"``, inner product.

    Raises:
        ValueError: If ``trade_off`` is out of range.

    References:
        Carbonell and Goldstein, *The use of MMR, diversity-based reranking for reordering documents and producing
        summaries*, SIGIR 1998.
    """

    def __init__(self, encoder: str | Encoder | None = None, trade_off: float = 0.5, sim: Similarity = "cos") -> None:
        super().__init__(encoder, sim)
        self.trade_off = between("trade_off", trade_off, 0, 1)

    def ranking(self, query: Dialogue) -> Any:
        """Numbers one by one, as those that are taken change what comes next."""
        relevance = self.similarities(query)
        # What may not be shown does not count as shown either.
        shown = [number for number in range(len(self.pool)) if self.may_show(query, number)]
        left = torch.zeros(len(self.pool), dtype=torch.bool)
        left[shown] = True
        nearest = torch.zeros(len(self.pool))
        for place in range(len(shown)):
            value = self.trade_off * relevance - (1 - self.trade_off) * nearest
            best = int(value.masked_fill(~left, -torch.inf).argmax())
            left[best] = False
            likeness = self._vectors @ self._vectors[best]
            nearest = likeness if place == 0 else nearest.maximum(likeness)
            yield best


def supply_encoder(selector: object, encoder: Encoder) -> None:
    """Give an encoder to the selectors that have none.

    Args:
        selector: A selector; of a `LabelBalanced` the one that ranks.
        encoder: What a judge has, such as its own states.
    """
    while isinstance(selector, LabelBalanced):
        selector = selector.selector
    if isinstance(selector, DenseSelector) and selector.encoder is None:
        selector.encoder = encoder


def _sentence_encoder(name: str) -> Encoder:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise ImportError(
            f"The encoder {name!r} needs sentence-transformers: pip install sentence-transformers. Or give a function "
            "from texts to vectors, such as StateEncoder(module)."
        ) from None
    model = SentenceTransformer(name)

    def encode(texts: Sequence[str]) -> Any:
        return model.encode(list(texts), convert_to_tensor=True, show_progress_bar=False)

    return encode
