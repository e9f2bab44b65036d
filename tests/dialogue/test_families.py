"""Judges of other families than Llama: tokens of labels, batches, examples in a chat, limits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from lightning_unlearn import Dialogue, DialogueJudge, JudgePrompt, RatingTask, Turn
from lightning_unlearn.dialogue.extractors import AnalysisExtractor, LogitExtractor
from tests.dialogue import families
from tests.dialogue.judges import SCALE

TEN = RatingTask("ten", tuple(map(str, range(1, 11))), tuple(range(1, 11)), ("x",) * 10, "it", "Judge it.")
YES = RatingTask("yes", ("no", "yes"), (0, 1), ("bad", "good"), "it", "Judge it.")
WORDS = RatingTask("w", ("very bad", "very good", "very good indeed"), (0, 1, 2), ("a", "b", "c"), "it", "Judge it.")

JUDGES: dict[str, tuple[str, Callable[[], Any]]] = {
    "gpt2, plain": ("gpt2", families.byte_level),
    "phi, plain with a first token": ("phi", lambda: families.sentence_piece(scheme="always")),
    "neox, padding on the right": (
        "neox",
        lambda: families.byte_level(families.CHATML, pad_token="<|im_end|>", padding_side="right"),
    ),
    "qwen2, single digits": ("qwen2", lambda: families.byte_level(families.CHATML, digits=True)),
    "qwen3, thinking": ("qwen3", lambda: families.byte_level(families.THINKING)),
    "gemma3, alternating": ("gemma3", lambda: families.sentence_piece(families.ALTERNATING)),
    "mistral, words merged with the cue": ("mistral", lambda: families.sentence_piece(families.SPACED, None)),
}


def said(name: int, count: int) -> Dialogue:
    texts = (f"I want a train to Leeds. {name} {i}" * (1 + (name + i) % 3) for i in range(count))
    turns = tuple(Turn("user" if i % 2 == 0 else "assistant", text) for i, text in enumerate(texts))
    return Dialogue(str(name), turns, (1.0 + name % 2,))


ROWS = [said(0, 2), said(1, 5), said(2, 1), said(3, 8)]


def log_probs_of_text(judge: DialogueJudge, dialogue: Dialogue) -> torch.Tensor:
    """Log-probability of each label in a text that holds it, token by token, from whole logits.

    The text is written and tokenized as a whole, with the label in it.
    """
    *asked, cue = judge.prompts([dialogue])[0].messages
    answers = [[*asked, {**cue, "content": f"Rating: {label}"}] for label in judge.task.labels]
    whole = judge.prompt_format.prompts(answers)
    same = next(place for place, column in enumerate(zip(*whole, strict=False)) if len(set(column)) > 1)
    found = []
    for ids in whole:
        with torch.no_grad():
            logits = judge.lm.model.eval()(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)
        found.append(sum(logits[i - 1, ids[i]] for i in range(same, len(ids))))
    return torch.stack(found)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", JUDGES)
def test_ratings_are_those_of_whole_texts_one_by_one(name: str) -> None:
    family, tokenizer = JUDGES[name]
    lm = families.language_model(family, tokenizer())
    for task in (SCALE, YES):
        pool = [replace(said(8, 2), ratings=task.values[:1]), replace(said(9, 3), ratings=task.values[1:2])]
        for shots, icl_format in ((0, "inline"), (2, "chat" if lm.tokenizer.chat_template else "inline")):
            prompt = JudgePrompt(task, icl_format=icl_format)  # type: ignore[arg-type]
            judge = DialogueJudge(lm, prompt=prompt, pool=pool, shots=shots)
            found = torch.tensor([rating.probs for rating in judge.rate(ROWS)])
            one_by_one = torch.tensor([judge.rate([row])[0].probs for row in ROWS])
            torch.testing.assert_close(found, one_by_one, atol=1e-5, rtol=0)
            wanted = torch.stack([log_probs_of_text(judge, row) for row in ROWS]).softmax(-1)
            torch.testing.assert_close(found.log(), wanted.log(), atol=1e-4, rtol=0)
            assert (found[0].log() - found[3].log()).abs().max() > 1e-3  # another dialogue is another rating


@pytest.mark.parametrize("name", ["gpt2, plain", "qwen2, single digits", "gemma3, alternating"])
@pytest.mark.parametrize("task", [TEN, WORDS])
def test_labels_that_begin_others_leave_them_out(name: str, task: RatingTask) -> None:
    family, tokenizer = JUDGES[name]
    judge = DialogueJudge(families.language_model(family, tokenizer()), prompt=JudgePrompt(task))
    ratings = judge.rate(ROWS)
    assert all(sum(rating.probs or ()) == pytest.approx(1) for rating in ratings)
    for row, rating in zip(ROWS, ratings, strict=True):
        shares = log_probs_of_text(judge, row).exp().tolist()
        tails = judge.label_tokens.tails
        if not judge.label_tokens.first_tokens:
            for i, tail in enumerate(tails):
                longer = {other for other in tails if other != tail and other[: len(tail)] == tail}
                assert len(longer) <= 1
                for other in longer:  # its first further token goes off from this label
                    shares[i] -= _share_of(judge, row, other[: len(tail) + 1])
        wanted = [share / sum(shares) for share in shares]
        assert rating.probs == pytest.approx(wanted, abs=1e-4)


def _share_of(judge: DialogueJudge, dialogue: Dialogue, tail: tuple[int, ...]) -> float:
    """Probability of some tokens after a prompt."""
    start = judge.label_tokens.prompt(judge.prompts([dialogue])[0].ids)
    ids = [*start, *tail]
    with torch.no_grad():
        logits = judge.lm.model(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)
    return sum(logits[i - 1, ids[i]] for i in range(len(start), len(ids))).exp().item()  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["gpt2, plain", "qwen3, thinking", "gemma3, alternating"])
def test_analyses_do_not_depend_on_the_batch(name: str) -> None:
    family, tokenizer = JUDGES[name]
    prompt, read = JudgePrompt(SCALE, mode="analysis_first"), AnalysisExtractor(max_new_tokens=6)
    judge = DialogueJudge(families.language_model(family, tokenizer()), prompt=prompt, extractor=read)
    together = judge.rate(ROWS)
    for row, rating in zip(ROWS, together, strict=True):
        (alone,) = judge.rate([row])
        assert alone.text == rating.text
        assert alone.probs == pytest.approx(rating.probs, abs=1e-5)


@pytest.mark.parametrize("max_length", [None, 510, 4000])
@pytest.mark.parametrize("mode", ["score_only", "analysis_first"])
def test_a_model_with_learned_positions_is_never_asked_beyond_them(mode: Any, max_length: int | None) -> None:
    lm = families.language_model("gpt2", families.byte_level(), n_positions=512)
    extractor = AnalysisExtractor(max_new_tokens=24) if mode == "analysis_first" else None
    judge = DialogueJudge(lm, prompt=JudgePrompt(SCALE, mode=mode, max_length=max_length), extractor=extractor)
    many = Dialogue("many", tuple(Turn("user", f"turn {i} x y") for i in range(40)))
    long = Dialogue("long", (Turn("user", "begins " + "x y z " * 300 + "ends"),))
    for row, kept in ((many, ("turn 0", "turn 39")), (long, ("begins", "ends"))):
        text = lm.tokenizer.decode(judge.prompts([row])[0].ids)
        assert all(part in text for part in kept)
        assert text.endswith(judge.prompt.cue)
    assert all(1 <= rating.score <= 5 for rating in judge.rate([many, long]))


def test_an_answer_that_leaves_no_room_for_a_prompt_is_refused() -> None:
    lm = families.language_model("gpt2", families.byte_level(), n_positions=64)
    with pytest.raises(ValueError, match="holds 64 tokens, which leaves none for a prompt"):
        DialogueJudge(lm, prompt=JudgePrompt(SCALE, mode="analysis_first")).rate(ROWS)


def test_a_ratio_is_on_the_scale_of_its_task() -> None:
    lm, ratio = families.language_model("gpt2", families.byte_level()), LogitExtractor("ratio")
    (found,) = DialogueJudge(lm, prompt=JudgePrompt(YES), extractor=ratio).rate(ROWS[:1])
    assert found.probs is not None
    assert found.score == pytest.approx(found.probs[1])
    likes = RatingTask("likes", ("no", "yes"), (1, 5), ("bad", "good"), "it", "Judge it.")
    with pytest.raises(ValueError, match=r"'likes' have the values \(1, 5\). Use reduce='expected'"):
        DialogueJudge(lm, prompt=JudgePrompt(likes), extractor=ratio).rate(ROWS[:1])


def test_other_things_than_dialogues_are_refused() -> None:
    judge = DialogueJudge(families.language_model("gpt2", families.byte_level()), prompt=JudgePrompt(SCALE))
    for wrong in ([{"messages": []}], ROWS[0], "Hi"):
        with pytest.raises(TypeError, match="A judge rates a list of Dialogue, but got"):
            judge.rate(wrong)  # type: ignore[arg-type]
