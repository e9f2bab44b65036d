"""A judge's scores are those of the whole logits, whatever runs together and whatever is computed once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_unlearn import (
    AnalysisExtractor,
    DenseSelector,
    Dialogue,
    DialogueJudge,
    JudgePrompt,
    LogitExtractor,
    PromptFormat,
    RatesDialogues,
    RatingTask,
    SelfConsistency,
    TextExtractor,
)
from lightning_unlearn.core.modes import evaluating
from lightning_unlearn.dialogue.heads import groups_by_head
from lightning_unlearn.dialogue.label_reader import LabelReader
from lightning_unlearn.dialogue.label_tokens import label_tokens
from lightning_unlearn.dialogue.selectors.state_encoder import StateEncoder
from tests.dialogue.judges import SCALE, dialogues, judge_of, tiny_lm_of
from tests.helpers import trainer


@torch.no_grad()
def chain_rule(judge: DialogueJudge, prompt: list[int], tail: tuple[int, ...]) -> Tensor:
    """Log-probability of tokens after a prompt, one forward pass of the whole text in fp32."""
    ids = torch.tensor([[*prompt, *tail]])
    log_probs = judge.lm.model(input_ids=ids).logits[0].log_softmax(-1)
    return sum(log_probs[len(prompt) + place - 1, token] for place, token in enumerate(tail))  # type: ignore[return-value]


def by_hand(judge: DialogueJudge, rows: list[Dialogue]) -> Tensor:
    """Log-probability of each label, each alone."""
    labels = judge.label_tokens
    judge.eval()
    return torch.stack(
        [
            torch.stack([chain_rule(judge, labels.prompt(prompt.ids), tail) for tail in labels.tails])
            for prompt in judge.prompts(rows)
        ]
    )


@pytest.mark.parametrize("pool", [0, 8], ids=["no examples", "fixed examples"])
def test_scores_are_those_of_whole_logits_one_by_one(tiny_lm: Path, pool: int) -> None:
    judge = judge_of(tiny_lm, pool=dialogues(pool, first=100))
    rows = dialogues(7)
    ratings = judge.rate(rows)
    weights = by_hand(judge, rows).softmax(-1)
    torch.testing.assert_close(torch.tensor([r.probs for r in ratings]), weights, atol=1e-5, rtol=0)
    scores = torch.tensor([r.score for r in ratings])
    torch.testing.assert_close(scores, weights @ torch.arange(1.0, 6.0), atol=1e-4, rtol=0)
    assert scores.unique().numel() == 7
    alone = torch.tensor([judge.rate([row])[0].score for row in rows])
    torch.testing.assert_close(alone, scores, atol=1e-4, rtol=0)
    assert [r.label for r in ratings] == [SCALE.labels[int(row.argmax())] for row in weights]
    assert isinstance(judge, RatesDialogues)


def test_argmax_stays_within_the_labels_though_another_token_is_likelier(tiny_lm: Path) -> None:
    judge = judge_of(tiny_lm, extractor=LogitExtractor("argmax"))
    for rating in judge.rate(dialogues(5)):
        assert rating.score in SCALE.values
        assert rating.vocab_mass is not None
        assert rating.vocab_mass < 0.5  # so another token is likelier than all of them


def test_one_sequence_an_item_and_examples_computed_once(tiny_lm: Path) -> None:
    judge = judge_of(tiny_lm, pool=dialogues(8, first=100))
    prompts = [prompt.ids for prompt in judge.prompts(dialogues(12))]
    apart, together = (LabelReader(judge.lm, 8192, share_prefixes=share) for share in (False, True))
    with evaluating(judge):
        wanted = apart.read(prompts, judge.label_tokens)
        found = together.read(prompts, judge.label_tokens)
        # What a run has shared before is not computed again, not even for one prompt.
        before = together.tokens
        again = together.read(prompts[:1], judge.label_tokens)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)
    torch.testing.assert_close(again, wanted[:1], atol=1e-4, rtol=0)
    assert apart.rows == 12
    assert together.rows == 13
    assert together.tokens < 0.5 * apart.tokens
    assert together.tokens - before < 0.5 * len(prompts[0])


def test_other_weights_are_read_with_their_own_examples(tiny_lm: Path) -> None:
    judge = judge_of(tiny_lm, pool=dialogues(8, first=100))
    rows = dialogues(4)
    judge.rate(rows)
    with torch.no_grad():
        judge.lm.model.model.layers[0].mlp.down_proj.weight.mul_(3)
    found = torch.tensor([rating.probs for rating in judge.rate(rows)])
    torch.testing.assert_close(found, by_hand(judge, rows).softmax(-1), atol=1e-5, rtol=0)


WORDS = RatingTask("words", ("very bad", "bad", "very good"), (1, 2, 3), ("a", "b", "c"), "it", "Judge it.")
NUMBERS = RatingTask("numbers", ("1", "5", "10"), (1, 5, 10), ("a", "b", "c"), "it", "Judge it.")


@pytest.mark.parametrize("share", [True, False])
def test_labels_of_several_tokens_follow_the_chain_rule(tiny_lm: Path, share: bool) -> None:
    judge = judge_of(tiny_lm, JudgePrompt(WORDS))
    assert not judge.label_tokens.first_tokens
    rows = dialogues(5)
    reader = LabelReader(judge.lm, 8192, share_prefixes=share)
    with evaluating(judge):
        found = reader.read([prompt.ids for prompt in judge.prompts(rows)], judge.label_tokens)
    torch.testing.assert_close(found, by_hand(judge, rows), atol=1e-5, rtol=1e-5)


def test_a_label_that_begins_another_one_leaves_it_out(tiny_lm: Path) -> None:
    judge = judge_of(tiny_lm, JudgePrompt(NUMBERS))
    rows = dialogues(3)
    wanted = by_hand(judge, rows).exp()
    wanted[:, 0] -= wanted[:, 2]
    with evaluating(judge):
        found = judge.label_log_probs([prompt.ids for prompt in judge.prompts(rows)]).exp()
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-4)


def test_the_mean_of_a_labels_tokens_where_asked(tiny_lm: Path) -> None:
    judge = judge_of(tiny_lm, JudgePrompt(WORDS), extractor=LogitExtractor(length_norm=True))
    rows = dialogues(3)
    lengths = torch.tensor([len(tail) for tail in judge.label_tokens.tails])
    wanted = (by_hand(judge, rows) / lengths).softmax(-1)
    torch.testing.assert_close(torch.tensor([r.probs for r in judge.rate(rows)]), wanted, atol=1e-5, rtol=0)


class Merging:
    """A tokenizer of whole words that merges the colon of a cue with what follows it, as SentencePiece may."""

    def __call__(self, texts: list[str]) -> list[list[int]]:
        known = {"Rating:": [7, 8], "Rating: 1": [7, 91], "Rating: 2": [7, 92], "Rating: 12": [7, 91, 92]}
        return [known[text] for text in texts]


def test_tokens_of_labels_are_what_differs_from_the_cue(tiny_lm: Path) -> None:
    tokenizer = tiny_lm_of(tiny_lm).tokenizer
    labels = label_tokens(lambda texts: tokenizer(texts)["input_ids"], "Rating:", ["1", "2"])
    cue = tokenizer("Rating:")["input_ids"]
    for label, tail in zip(("1", "2"), labels.tails, strict=True):
        assert tokenizer.decode([*labels.prompt(cue), *tail]) == f"Rating: {label}"
    merged = label_tokens(Merging(), "Rating:", ["1", "2"])
    assert merged.prompt([5, 7, 8]) == [5, 7]
    assert merged.tails == ((91,), (92,))
    assert not label_tokens(Merging(), "Rating:", ["1", "12"]).first_tokens


def test_prompts_are_grouped_by_what_they_share() -> None:
    head, other = list(range(300)), list(range(500, 900))
    prompts = [[*head, 1], [*other, 1], [*head, 2, 3], [*other, 4], [9, 9]]
    assert groups_by_head(prompts) == [([0, 2], 300), ([1, 3], 400), ([4], 0)]
    assert groups_by_head([[1, 2], [1, 3]]) == [([0, 1], 0)]  # too few tokens to be worth a pass
    same = [list(range(400))] * 3
    assert groups_by_head(same) == [([0, 1, 2], 399)]


def test_a_model_without_a_chat_template_is_asked_in_plain_text(tiny_lm: Path) -> None:
    lm = tiny_lm_of(tiny_lm)
    lm.tokenizer.chat_template = None
    judge = DialogueJudge(lm, prompt=JudgePrompt(SCALE), pool=dialogues(3, first=50), shots=2)
    rows = dialogues(3)
    text = lm.tokenizer.decode(judge.prompts(rows)[0].ids)
    assert text.endswith("ASSISTANT: Peru 1\n\n### Answer\nRating:")
    torch.testing.assert_close(
        torch.tensor([r.probs for r in judge.rate(rows)]), by_hand(judge, rows).softmax(-1), atol=1e-5, rtol=0
    )
    with pytest.raises(ValueError, match="icl_format='inline'"):
        DialogueJudge(lm, prompt=JudgePrompt(SCALE, icl_format="chat"))


def writes(judge: DialogueJudge, texts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a judge write these texts."""
    monkeypatch.setattr(judge, "write", lambda prompts, *_: texts)


def test_text_is_parsed_and_what_holds_no_rating_is_what_the_policy_says(
    tiny_lm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = dialogues(5)
    texts = ["4", "3.5", "2, not 5", "7", ""]
    found = {}
    for invalid in ("nan", "mid", "logits"):
        judge = judge_of(tiny_lm, extractor=TextExtractor(invalid=invalid))  # type: ignore[arg-type]
        writes(judge, texts, monkeypatch)
        found[invalid] = judge.rate(rows)
        assert [r.parsed for r in found[invalid]] == [True, True, True, False, False]
        assert [r.score for r in found[invalid]][:3] == [4, 3.5, 2]
    assert all(r.score != r.score for r in found["nan"][3:])
    assert [r.score for r in found["mid"][3:]] == [3, 3]
    read = judge_of(tiny_lm).rate(rows)
    assert [r.score for r in found["logits"][3:]] == pytest.approx([r.score for r in read[3:]], abs=1e-4)


@pytest.mark.parametrize(
    ("mode", "said", "kept"),
    [
        ("score_only", "4\nThe user thanks it.", "4\n"),
        ("score_only", "\nso Rating: 2\nThe user", "\nso Rating: 2\n"),
        ("score_only", "none\nat all", "none\nat all"),
        ("rating_first", "4\nThe user thanks it.", "4\nThe user thanks it."),
    ],
)
def test_a_judge_asked_for_a_rating_alone_stops_after_its_line(tiny_lm: Path, mode: Any, said: str, kept: str) -> None:
    judge = judge_of(tiny_lm, JudgePrompt(SCALE, mode=mode))
    tokenizer = judge.prompt_format.tokenizer
    tokens = [*tokenizer(said, add_special_tokens=False)["input_ids"], judge.prompt_format.ends[0]]
    steps = []

    def script(logits: Tensor, rows: Sequence[int], step: int) -> Tensor:
        steps.append(step)
        return torch.tensor([tokens[step]] * len(rows))

    extractor = TextExtractor(max_new_tokens=len(tokens))
    ratings = extractor.ratings(judge, judge.prompts(dialogues(2)), script, 1)
    whole = extractor.read(judge.prompt, f"Rating: {said}")
    for rating in ratings:
        assert rating.text == f"Rating: {tokenizer.decode(tokenizer(kept)['input_ids']).strip()}"
        assert rating.score == pytest.approx(whole.score, nan_ok=True)
    assert (len(steps) < len(tokens)) == (kept != said)


def test_the_probabilities_after_an_analysis_are_those_of_the_text_it_has_written(
    tiny_lm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = JudgePrompt(SCALE, mode="analysis_first")
    judge = judge_of(tiny_lm, prompt)
    assert isinstance(judge.extractor, AnalysisExtractor)
    rows = dialogues(2)
    writes(judge, ["It is in Peru.\nRating:", "No end"], monkeypatch)
    ratings = judge.rate(rows)
    for row, rating, analysis in zip(rows, ratings, ("It is in Peru.", "No end"), strict=True):
        *asked, cue = prompt.messages(row)
        whole = [*asked, {**cue, "content": f"Analysis: {analysis}\nRating:"}]
        ids = judge.label_tokens.prompt(judge.prompt_format.prompt(whole))
        wanted = torch.stack([chain_rule(judge, ids, tail) for tail in judge.label_tokens.tails]).softmax(-1)
        torch.testing.assert_close(torch.tensor(rating.probs), wanted, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="AnalysisExtractor"):
        judge_of(tiny_lm, prompt, extractor=LogitExtractor()).rate(rows)
    with pytest.raises(ValueError, match="analysis_first"):
        judge_of(tiny_lm, extractor=AnalysisExtractor()).rate(rows)


def test_samples_do_not_depend_on_what_runs_beside_them(tiny_lm: Path) -> None:
    prompt = JudgePrompt(SCALE, mode="analysis_first")
    judge = judge_of(tiny_lm, prompt, extractor=SelfConsistency(AnalysisExtractor(max_new_tokens=4), n=3))
    rows = dialogues(3)
    together = judge.rate(rows)
    alone = [judge.rate([row])[0] for row in rows]
    assert [r.text for r in together] == [r.text for r in alone]
    assert [r.score for r in together] == pytest.approx([r.score for r in alone], abs=1e-4)
    single = judge_of(tiny_lm, prompt, extractor=AnalysisExtractor(max_new_tokens=4)).rate(rows)
    assert [r.score for r in together] != pytest.approx([r.score for r in single], abs=1e-6)


def test_a_trainer_predicts_what_the_judge_rates_and_tests_its_agreement(tiny_lm: Path) -> None:
    judge = judge_of(tiny_lm, pool=dialogues(6, first=60), shots=3)
    rows = dialogues(10)
    loader = DataLoader(rows, batch_size=4, collate_fn=list)  # type: ignore[arg-type]
    wanted = [rating.score for rating in judge.rate(rows)]
    run = trainer()
    batches = run.predict(judge, loader)
    assert batches is not None
    assert [r.score for batch in batches for r in batch] == pytest.approx(wanted, abs=1e-4)  # type: ignore[union-attr]
    (logged,) = run.test(judge, loader, verbose=False)
    assert {
        f"test/{n}" for n in ("spearman", "pearson", "kendall", "f1_macro", "accuracy", "mae", "parse_rate")
    } <= set(logged)
    means = torch.tensor([row.mean for row in rows])
    assert logged["test/mae"] == pytest.approx((torch.tensor(wanted) - means).abs().mean().item(), abs=1e-4)
    assert logged["test/parse_rate"] == 1


def test_arguments_that_contradict_one_another_are_refused(tiny_lm: Path) -> None:
    lm = tiny_lm_of(tiny_lm)
    with pytest.raises(ValueError, match="Leave task out"):
        DialogueJudge(lm, task="fed_overall", prompt=JudgePrompt(SCALE))
    with pytest.raises(ValueError, match="no effect"):
        LogitExtractor("argmax", top_k=2)
    lm.tokenizer = None
    with pytest.raises(ValueError, match="without a tokenizer"):
        DialogueJudge(lm)
    assert DialogueJudge(lm, prompt_format=PromptFormat(tiny_lm_of(tiny_lm).tokenizer)).task.name == "satisfaction"


def test_a_dense_selector_without_an_encoder_compares_the_judges_own_states(tiny_lm: Path) -> None:
    selector = DenseSelector()
    judge = judge_of(tiny_lm, selector=selector, shots=2, pool=dialogues(8, first=100))
    assert isinstance(selector.encoder, StateEncoder)
    assert selector.encoder.module is judge.lm
    assert len(judge.examples(dialogues(1)[0])) == 2
