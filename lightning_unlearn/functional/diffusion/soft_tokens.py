"""Token insertion into prompts."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

__all__ = ["Placement", "insert_tokens"]

Placement = Literal["prefix", "suffix", "mid", "spread", "every_3", "replace", "add"]


def insert_tokens(embeddings: Tensor, lengths: Tensor, tokens: Tensor, placement: Placement = "prefix") -> Tensor:
    """Insert tokens into prompts; the rows keep their length and lose padding at their end.

    A row consists of the start of text, ``n`` words, the end of text, and padding. With ``k`` further tokens ``d``:

    - ``"prefix"``: ``d`` before the words. ``"suffix"``: after them. ``"mid"``: after the first ``n // 2``.
    - ``"spread"``: one after every ``n // (k + 1)`` words. ``"every_3"``: one before every three words; the rest
      comes after the last.
    - ``"replace"``: ``d`` instead of the words. The first ``k`` of their positions get ``d``, the others the end of
      text.
    - ``"add"``: ``d`` is added to the words; ``k`` must be at least the number of words in the longest row.

    It works on ids as well as on embeddings; gradients flow to ``tokens``.

    Args:
        embeddings: Token embeddings ``(B, L, D)``, or ids ``(B, L)``.
        lengths: Number of words of each prompt, in tokens without start and end, shape ``(B,)``.
        tokens: Shape ``(B, k, D)``, or ids ``(B, k)``.
        placement: One of the placements above.

    Returns:
        Shape and type of ``embeddings``.

    Raises:
        ValueError: If the placement is unknown, or the tokens do not fit into the rows.

    Example:
        >>> ids = torch.tensor([[0, 5, 6, 1, 1, 1]])
        >>> insert_tokens(ids, torch.tensor([2]), torch.tensor([[7]]), "suffix")
        tensor([[0, 5, 6, 7, 1, 1]])

    References:
        Zhang et al., *To Generate or Not?*, arXiv:2310.11868; Zhang et al., *Defensive Unlearning with Adversarial
        Training for Robust Concept Erasure in Diffusion Models*, arXiv:2405.15234.
    """
    length, k = embeddings.shape[1], tokens.shape[1]
    room = length - 2 - (0 if placement in ("replace", "add") else int(lengths.max()))
    if k > room:
        raise ValueError(
            f"{k} tokens do not fit: rows have {length} places, of which prompts of up to {int(lengths.max())} tokens "
            f"with beginning and end leave {room}. Take fewer tokens, or leave out the longest prompts."
        )
    if placement == "add":
        if int(lengths.max()) > k:
            raise ValueError(f"placement='add' needs a token for each of {int(lengths.max())} words, but got {k}.")
        places = torch.arange(k, device=tokens.device)
        on = (places < lengths[:, None]).reshape(len(tokens), k, *[1] * (tokens.dim() - 2))
        return torch.cat(
            [embeddings[:, :1], embeddings[:, 1 : k + 1] + tokens * on.to(tokens.dtype), embeddings[:, k + 1 :]], 1
        )
    index = torch.stack([_order(int(n), k, length, placement) for n in lengths]).to(embeddings.device)
    both = torch.cat([embeddings, tokens.to(embeddings)], 1)
    return both.gather(1, index.reshape(*index.shape, *[1] * (both.dim() - 2)).expand(-1, -1, *both.shape[2:]))


def _order(n: int, k: int, length: int, placement: str) -> Tensor:
    """For each position of the new row, the position in ``[old row, new tokens]`` that it is filled from."""
    words, new = list(range(1, n + 1)), list(range(length, length + k))
    middle: list[int]
    if placement == "prefix":
        middle = new + words
    elif placement == "suffix":
        middle = words + new
    elif placement == "mid":
        middle = words[: n // 2] + new + words[n // 2 :]
    elif placement == "spread":
        gap = n // (k + 1)
        middle = [i for j in range(k) for i in [*words[j * gap : (j + 1) * gap], new[j]]] + words[k * gap :]
    elif placement == "every_3":
        middle = [i for j in range(k) for i in [new[j], *words[3 * j : 3 * j + 3]]] + words[3 * k :]
    elif placement == "replace":
        middle = new + [n + 1] * max(n - k, 0)
    else:
        raise ValueError(
            "placement must be 'prefix', 'suffix', 'mid', 'spread', 'every_3', 'replace' or 'add', but got "
            f"{placement!r}."
        )
    rest = list(range(n + 1, length))
    return torch.tensor([0, *middle, *rest][:length])
