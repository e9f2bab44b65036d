"""Fine-tuning of judges on rated dialogues."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal
from zlib import crc32

import torch
from torch import Tensor

from lightning_unlearn.core.checks import at_least, one_of
from lightning_unlearn.core.scores import causal_lm_nll, head_only_at
from lightning_unlearn.dialogue.dialogue import Dialogue
from lightning_unlearn.dialogue.label_tokens import LabelTokens
from lightning_unlearn.dialogue.prompt import RATING_CUE, BuiltPrompt
from lightning_unlearn.functional.dialogue.expected_score import label_log_probs
from lightning_unlearn.functional.dialogue.soft_labels import expected_score_loss, soft_label_nll, soft_labels
from lightning_unlearn.functional.random import keyed_generator
from lightning_unlearn.language.data.token_rows import collate_tokens
from lightning_unlearn.language.tokens import TokenRow

if TYPE_CHECKING:
    from lightning_unlearn.dialogue.judge import DialogueJudge

__all__ = ["JudgeTuning", "Target"]

_END = 8  # tokens that a chat template writes after an answer, at most

Target = Literal["majority", "sampled", "soft", "mean"]


class JudgeTuning:
    r"""The loss that a judge is fine-tuned with.

    The targets differ in what they keep of several annotators:

    - ``"majority"``: the answer with the label of the majority, as causal language modelling of the answer's tokens.
    - ``"sampled"``: the same with the label of one annotator, who is drawn anew each epoch.
    - ``"soft"``: cross-entropy of the labels against the shares of the annotators behind each,
      :math:`-\sum_i q_i \log p_i`, with :math:`p` over the vocabulary. It is the mean of ``"sampled"`` over its draws.
    - ``"mean"``: squared error of the expected score, :math:`(\sum_i p_i v_i - \bar r)^2`, with :math:`p` over the
      labels.

    The prompt has no part in any of them. The last two read the logits where the label stands and nowhere else.

    Args:
        target: Which of them.
        shots: Examples in the prompts of training; by default as many as the judge shows when it rates.
        seed: Chooses the annotators of ``"sampled"``.
        frozen_memory: Memory in GiB for the outputs of frozen decoder layers below the trained ones. They are computed
            in the first epoch and reused in the others, which saves time where adapters are in the last layers only.
            Reused outputs are equal up to rounding, so that a resumed run does not end in the same bits. 0 computes
            them in each epoch.

    Raises:
        ValueError: If an argument is out of range.

    References:
        Jia et al., "Leveraging LLMs for Dialogue Quality Measurement", 2024, arXiv:2406.17304, fine-tune on labels;
        targets from several annotators are ours.
    """

    def __init__(
        self, target: Target = "soft", shots: int | None = None, seed: int = 0, frozen_memory: float = 0.0
    ) -> None:
        self.target = one_of("target", target, Target)
        self.shots = shots if shots is None else at_least("shots", shots, 0)
        self.seed = seed
        self.frozen_memory = at_least("frozen_memory", frozen_memory, 0)

    def losses(self, judge: DialogueJudge, dialogues: Sequence[Dialogue], epoch: int = 0) -> Tensor:
        """The loss of each dialogue.

        Args:
            judge: The judge, with gradients on.
            dialogues: Rated dialogues.
            epoch: Number of the epoch, which ``"sampled"`` draws by.

        Returns:
            Shape ``(B,)``, fp32.

        Raises:
            ValueError: If a dialogue has no ratings, or one is outside the scale.
        """
        for dialogue in dialogues:
            judge.task.check_on_scale(dialogue)
        if self.target in ("majority", "sampled"):
            batch = self.rows(judge, dialogues, epoch)
            with judge.frozen.caching(batch["input_ids"], batch["attention_mask"]):
                predictions = causal_lm_nll.predictions(judge.lm, batch)
            return predictions.nll() / predictions.length()
        log_probs = _log_probs(judge, [_asked(judge, *both) for both in self._built(judge, dialogues)])
        values = torch.tensor(judge.task.values, device=log_probs.device)
        if self.target == "soft":
            return soft_label_nll(log_probs, soft_labels(_ratings(dialogues).to(log_probs.device), values))
        means = torch.tensor([dialogue.mean for dialogue in dialogues], device=log_probs.device)
        return expected_score_loss(log_probs, values, means)

    def rows(self, judge: DialogueJudge, dialogues: Sequence[Dialogue], epoch: int = 0) -> dict[str, Tensor]:
        """Prompts with their answers as tokens, of which those of the answers have labels.

        Args:
            judge: The judge.
            dialogues: Rated dialogues.
            epoch: Number of the epoch.

        Returns:
            ``input_ids``, ``attention_mask`` and ``labels`` of shape ``(B, T)``; labels are -100 on the prompt.
        """
        answered = [
            (replace(dialogue, ratings=(self._rating(dialogue, epoch),)), prompt)
            for dialogue, prompt in self._built(judge, dialogues)
        ]
        rows = judge.prompt_format.rows([_conversation(judge, *both) for both in answered])
        collated = collate_tokens([_numbered(number, row) for number, row in enumerate(rows)])
        return {key: value.to(judge.device) for key, value in collated.items()}

    def _built(self, judge: DialogueJudge, dialogues: Sequence[Dialogue]) -> list[tuple[Dialogue, BuiltPrompt]]:
        learns_text = self.target in ("majority", "sampled") or judge.prompt.mode == "analysis_first"
        room = _longest_answer(judge, dialogues) if learns_text else 0
        return list(zip(dialogues, judge.prompts(dialogues, self.shots, room), strict=True))

    def _rating(self, dialogue: Dialogue, epoch: int) -> float:
        """The rating that stands for all."""
        majority = dialogue.majority
        if self.target == "majority":
            return majority
        draw = keyed_generator(self.seed, epoch, crc32(dialogue.id.encode()))
        return dialogue.ratings[int(torch.randint(len(dialogue.ratings), (), generator=draw))]


def _longest_answer(judge: DialogueJudge, dialogues: Sequence[Dialogue]) -> int:
    """Tokens of the longest answer, and of what may end it."""
    answers = [judge.prompt.answer(dialogue) for dialogue in dialogues]
    return max(map(len, judge.prompt_format.tokenizer(answers)["input_ids"])) + _END


def _conversation(judge: DialogueJudge, dialogue: Dialogue, prompt: BuiltPrompt) -> Any:
    """A prompt with the answer to it."""
    *messages, cue = prompt.messages
    answer = judge.prompt.answer(dialogue)
    if not answer.startswith(cue["content"]):  # a rating without the analysis that was asked for
        return judge.prompt_format.conversation(messages, answer)
    return judge.prompt_format.conversation(prompt.messages, answer.removeprefix(cue["content"]).strip())


def _asked(judge: DialogueJudge, dialogue: Dialogue, prompt: BuiltPrompt) -> list[int]:
    """A prompt up to where the label stands, with the analysis before it where there is one."""
    if judge.prompt.mode != "analysis_first":
        return prompt.ids
    *messages, cue = prompt.messages
    before = judge.prompt.answer(dialogue).rpartition(RATING_CUE)[0]
    return judge.prompt_format.prompt([*messages, {**cue, "content": f"{before}{RATING_CUE}"}])


def _numbered(number: int, row: TokenRow) -> dict[str, Any]:
    return {"prompt": row.prompt, "answer": row.answer, "index": number}


def _ratings(dialogues: Sequence[Dialogue]) -> Tensor:
    """Ratings of each dialogue, with NaN after them, shape ``(B, A)``."""
    longest = max(len(dialogue.ratings) for dialogue in dialogues)
    return torch.tensor([[*part.ratings, *[torch.nan] * (longest - len(part.ratings))] for part in dialogues])


def _log_probs(judge: DialogueJudge, prompts: Sequence[Sequence[int]]) -> Tensor:
    """Log-probability of each label after each prompt within the vocabulary, with gradients, shape ``(B, L)``."""
    labels = judge.label_tokens
    nodes = _nodes(labels)
    sequences = [[*labels.prompt(prompt), *node] for prompt in prompts for node in nodes]
    batch = collate_tokens([{"prompt": ids, "answer": [], "index": 0} for ids in sequences])
    batch = {key: value.to(judge.device) for key, value in batch.items()}
    places = torch.arange(len(sequences), device=judge.device)
    last = batch["attention_mask"].sum(1) - 1
    cached = judge.frozen.caching(batch["input_ids"], batch["attention_mask"])
    with head_only_at(judge.lm, places, last), cached:
        output = judge.lm(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    logits = output.logits if output.logits.dim() == 2 else output.logits[places, last]
    read = logits.float().log_softmax(-1).view(len(prompts), len(nodes), -1)
    step = {
        node: {token: read[:, place, token] for token in following}
        for place, (node, following) in enumerate(nodes.items())
    }
    return label_log_probs(_tails(labels), step)


def _tails(labels: LabelTokens) -> list[tuple[int, ...]]:
    """Tokens of each label, as far as they tell it."""
    return [tail[:1] if labels.first_tokens else tail for tail in labels.tails]


def _nodes(labels: LabelTokens) -> dict[tuple[int, ...], list[int]]:
    """Beginnings of labels, with the tokens that go on from each."""
    nodes: dict[tuple[int, ...], list[int]] = {}
    for tail in _tails(labels):
        for place, token in enumerate(tail):
            following = nodes.setdefault(tail[:place], [])
            if token not in following:
                following.append(token)
    return nodes
