"""Pointwise mutual information of replies and their context, under a causal language model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lightning_unlearn.core.logit_chunks import ChunkedLogits
from lightning_unlearn.core.modes import evaluating
from lightning_unlearn.dialogue.dialogue import Dialogue, Turn
from lightning_unlearn.language.causal_lm import LitCausalLM
from lightning_unlearn.language.chat import Span, Written
from lightning_unlearn.language.tokens import beginning, encode

__all__ = ["reply_information"]


def reply_information(module: LitCausalLM, dialogues: Sequence[Dialogue], max_tokens: int = 8192) -> list[list[float]]:
    r"""Pointwise mutual information (PMI) of each reply of the assistant and the messages before it.

    With $y$ a reply and $c$ the messages before it, in a plain transcript of ``User:`` and ``Assistant:`` lines,

    $$\mathrm{PMI}(y; c) = \log p(y \mid c) - \log p(y)$$

    where $p(y)$ is its probability as the first line. PMI is high if the reply follows from what was said, near 0 if it
    could stand anywhere, and below 0 if the context speaks against it. A rated response counts as a last reply.

    Args:
        module: The model.
        dialogues: Dialogues that fit into the model.
        max_tokens: Largest batch in tokens, with padding.

    Returns:
        For each dialogue the PMI of each of its replies, in nats.

    References:
        Li et al., "A Diversity-Promoting Objective Function for Neural Conversation Models", 2016, arXiv:1510.03055.
    """
    spoken = [_up_to_last_reply(dialogue) for dialogue in dialogues]
    replies = list(dict.fromkeys(turn.text for turns in spoken for turn in turns if turn.role == "assistant"))
    alone = [[Turn("assistant", text)] for text in replies]
    found = iter(_log_probs(module, [*alone, *filter(None, spoken)], max_tokens))
    first = {text: next(found)[0] for text in replies}
    return [
        [
            log_prob - first[turn.text]
            for log_prob, turn in zip(next(found), (t for t in turns if t.role == "assistant"), strict=True)
        ]
        if turns
        else []
        for turns in spoken
    ]


def _up_to_last_reply(dialogue: Dialogue) -> list[Turn]:
    response = [Turn("assistant", dialogue.response)] if dialogue.response is not None else []
    turns = [Turn(turn.role, " ".join(turn.text.split())) for turn in [*dialogue.turns, *response]]
    while turns and turns[-1].role != "assistant":
        turns.pop()
    return turns


class _Transcript(NamedTuple):
    """Tokens of a transcript, and which of them are replies."""

    ids: list[int]
    replies: list[range]


def _log_probs(module: LitCausalLM, spoken: Sequence[Sequence[Turn]], max_tokens: int) -> list[list[float]]:
    """Log-probability of each reply, its line break included."""
    rows = _transcripts(module.tokenizer, spoken)
    order = sorted(range(len(rows)), key=lambda row: len(rows[row].ids))
    found: dict[int, list[float]] = {}
    read = ChunkedLogits(module)
    # A compiled model would not see the hooks, or be compiled anew for every number of tokens.
    with evaluating(module), torch.compiler.set_stance("force_eager"):
        while order:
            count = max(1, max_tokens // len(rows[order[-1]].ids))
            batch, order = order[-count:], order[:-count]
            found |= zip(batch, _batch(module, read, [rows[row] for row in batch]), strict=True)
    return [found[row] for row in range(len(rows))]


def _transcripts(tokenizer: Any, spoken: Sequence[Sequence[Turn]]) -> list[_Transcript]:
    """Lines that are tokenized one by one, so that a reply has the same tokens in any transcript."""
    turns = list(dict.fromkeys(turn for row in spoken for turn in row))
    lines = dict(zip(turns, encode(tokenizer, list(map(_line, turns)), [], None), strict=True))
    special = beginning(tokenizer)
    found = []
    for row in spoken:
        ids, replies = list(special), []
        for turn in row:
            ids += lines[turn].prompt
            if turn.role == "assistant":
                replies.append(range(len(ids), len(ids) + len(lines[turn].answer)))
            ids += lines[turn].answer
        found.append(_Transcript(ids, replies))
    return found


def _line(turn: Turn) -> Written:
    name = f"{turn.role.title()}:"
    line = f"{name} {turn.text}\n" if turn.text else f"{name}\n"
    return Written(line, [Span(len(name), len(name) + bool(turn.text), len(line))], open=False)


def _batch(module: LitCausalLM, read: ChunkedLogits, rows: Sequence[_Transcript]) -> list[list[float]]:
    width = max(len(row.ids) for row in rows) - 1
    device = next(module.parameters()).device
    ids = torch.tensor([row.ids[:-1] + [0] * (width + 1 - len(row.ids)) for row in rows], device=device)
    mask = torch.tensor([[1] * (len(row.ids) - 1) + [0] * (width + 1 - len(row.ids)) for row in rows], device=device)
    places = [(number, place) for number, row in enumerate(rows) for place in chain.from_iterable(row.replies)]
    if not places:  # empty replies, and a tokenizer without line breaks
        return [[0.0] * len(row.replies) for row in rows]
    labels = torch.tensor([rows[number].ids[place] for number, place in places], device=device)
    # Counted from the end, as some adapters put virtual tokens before a sequence.
    before = torch.tensor([(number, place - 1 - width) for number, place in places], device=device)
    log_probs = torch.empty(len(places))

    def keep(logits: Tensor, part: slice) -> None:
        with torch.autocast(logits.device.type, enabled=False):
            loss = cross_entropy(logits.float(), labels[part].to(logits.device), reduction="none")
        log_probs[part] = -loss.cpu()

    read(partial(module, input_ids=ids, attention_mask=mask), (before[:, 0], before[:, 1]), keep)
    lengths = [len(reply) for row in rows for reply in row.replies]
    sums = iter(part.double().sum().item() for part in log_probs.split(lengths))
    return [[next(sums) for _ in row.replies] for row in rows]
