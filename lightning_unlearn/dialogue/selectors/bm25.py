"""Selection of examples by the words that they share with the query."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from lightning_unlearn.core.checks import above, between, one_of
from lightning_unlearn.dialogue.dialogue import Dialogue
from lightning_unlearn.dialogue.selectors.ranked import RankedSelector

__all__ = ["BM25Selector", "Variant"]

Variant = Literal["lucene", "robertson", "atire", "bm25l", "bm25+"]

_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
"""Thai, Lao, Burmese, Khmer, Japanese and Chinese characters, which are written without spaces between words."""

_WORD = rf"[{_UNSPACED}]|[^\W{_UNSPACED}]{{2,}}"


class BM25Selector(RankedSelector):
    r"""The dialogues with the highest BM25 scores.

    $$s(q, d) = \sum_{t \in q} \ln\Big(1 + \frac{N - n_t + 0.5}{n_t + 0.5}\Big)\,
      \frac{f_{t,d}}{f_{t,d} + k_1 (1 - b + b\, L_d / \bar L)}$$

    Words are lower-cased and have at least two characters, or are single characters of Chinese, Japanese and other
    scripts that write no spaces between words; $n_t$ of $N$ dialogues have the word $t$, and $L_d$ is the
    length of a dialogue in words. Of equal scores the first in the pool is the better.

    Args:
        k1: How late the count of a word saturates, $k_1$.
        b: How much the length counts, in [0, 1].
        method: Variant of the formula; the one above is ``"lucene"``.

    Raises:
        ImportError: If bm25s is missing; raised by ``fit``.
        ValueError: If an option is out of range.

    References:
        Lù, *BM25S: Orders of magnitude faster lexical search via eager sparse scoring*, arXiv:2407.03618.
    """

    def __init__(self, k1: float = 1.5, b: float = 0.75, method: Variant = "lucene") -> None:
        self.k1, self.b = above("k1", k1, 0), between("b", b, 0, 1)
        self.method: Variant = one_of("method", method, Variant)

    def prepare(self) -> None:
        bm25s = _bm25s()
        words = _words([dialogue.text for dialogue in self.pool])
        # Its other backends start threads or compile at the first query, for thousands of dialogues to no avail.
        self._index = bm25s.BM25(k1=self.k1, b=self.b, method=self.method, backend="numpy")
        self._index.index(words, show_progress=False)

    def scores(self, text: str) -> Tensor:
        """Score of each dialogue of the pool for a text, shape ``(N,)``, fp32; 0 where they share no word."""
        words = _words([text], return_ids=False)[0]
        known = [word for word in words if word in self._index.vocab_dict]
        if not known:
            return torch.zeros(len(self.pool))
        return torch.from_numpy(self._index.get_scores(known))

    def ranking(self, query: Dialogue) -> list[int]:
        return self.scores(query.text).argsort(descending=True, stable=True).tolist()


def _words(texts: list[str], return_ids: bool = True) -> Any:
    return _bm25s().tokenize(texts, stopwords=None, token_pattern=_WORD, show_progress=False, return_ids=return_ids)


def _bm25s() -> Any:
    try:
        import bm25s
    except ImportError:
        raise ImportError('BM25Selector needs bm25s: pip install "lightning-unlearn[dialogue]"') from None
    return bm25s
