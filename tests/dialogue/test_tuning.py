"""Fine-tuning of judges: what is learned, from which tokens, and what is saved."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from lightning_unlearn.dialogue.dialogue import Dialogue, Turn
from lightning_unlearn.dialogue.judge import DialogueJudge
from lightning_unlearn.dialogue.prompt import JudgePrompt
from lightning_unlearn.dialogue.task import RatingTask
from lightning_unlearn.dialogue.tuning import JudgeTuning, Target
from lightning_unlearn.functional.likelihood import IGNORE_INDEX
from lightning_unlearn.language.causal_lm import LitCausalLM
from tests.dialogue.tuned import LORA, SHORT, dialogues, loader, tiny_judge
from tests.helpers import Recorder, same, trainer, weights

TARGETS: tuple[Target, ...] = ("majority", "sampled", "soft", "mean")


@pytest.fixture(autouse=True)
def _grad() -> Iterator[None]:
    with torch.enable_grad():
        yield


def label_log_probs(judge: DialogueJudge, rows: list[Dialogue]) -> Tensor:
    """Log-probabilities of the labels from all logits of each prompt alone."""
    found = []
    for prompt in judge.prompts(rows):
        ids = judge.label_tokens.prompt(prompt.ids)
        with torch.no_grad():
            logits = judge.lm.model(torch.tensor([ids])).logits[0, -1].float()
        found.append(logits.log_softmax(-1)[[tail[0] for tail in judge.label_tokens.tails]])
    return torch.stack(found)


def test_labels_are_those_of_the_answer_alone(tiny_lm: Path) -> None:
    judge = tiny_judge(tiny_lm, "majority")
    batch = judge.tuning.rows(judge, dialogues())
    tokenizer = judge.prompt_format.tokenizer
    for ids, labels, rating in zip(batch["input_ids"], batch["labels"], (1, 3, 2, 1), strict=True):
        supervised = labels != IGNORE_INDEX
        assert tokenizer.decode(labels[supervised]) == f" {rating}<|im_end|>"
        assert tokenizer.decode(ids[: int(supervised.nonzero()[0])]).endswith("Rating:")


def test_a_loss_is_the_mean_nll_of_the_answer_tokens_and_none_of_the_prompt(tiny_lm: Path) -> None:
    judge = tiny_judge(tiny_lm, "majority")
    losses = judge.tuning.losses(judge, dialogues())
    batch = judge.tuning.rows(judge, dialogues())
    logits = judge.lm.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    labels = batch["labels"][:, 1:]
    nll = torch.nn.functional.cross_entropy(logits[:, :-1].mT, labels, ignore_index=IGNORE_INDEX, reduction="none")
    torch.testing.assert_close(losses, nll.sum(1) / (labels != IGNORE_INDEX).sum(1))
    # Another token at a position of the prompt, as a label: it is -100 whatever the token is.
    changed = {**batch, "labels": torch.where(batch["labels"] == IGNORE_INDEX, IGNORE_INDEX, batch["labels"])}
    assert torch.equal(changed["labels"], batch["labels"])
    assert int((labels != IGNORE_INDEX).sum()) < int(batch["attention_mask"].sum()) / 10


def test_soft_labels_and_expected_score_by_hand(tiny_lm: Path) -> None:
    soft, mean = tiny_judge(tiny_lm, "soft"), tiny_judge(tiny_lm, "mean")
    log_probs = label_log_probs(soft, dialogues())
    shares = torch.tensor([[2 / 3, 1 / 3, 0], [0, 0, 1], [0.25, 0.5, 0.25], [1, 0, 0]])
    torch.testing.assert_close(
        soft.tuning.losses(soft, dialogues()).detach(), -(shares * log_probs).sum(1), atol=1e-5, rtol=0
    )
    scores = log_probs.softmax(-1) @ torch.tensor([1.0, 2.0, 3.0])
    wanted = (scores - torch.tensor([4 / 3, 3, 2, 1])) ** 2
    torch.testing.assert_close(mean.tuning.losses(mean, dialogues()).detach(), wanted, atol=1e-5, rtol=0)
    rated = torch.tensor([rating.score for rating in soft.rate(dialogues())])
    torch.testing.assert_close(rated, scores, atol=1e-4, rtol=0)


def test_labels_of_several_tokens_follow_the_chain_rule(tiny_lm: Path) -> None:
    """Labels 1, 10 and 2: the loss of a judge whose label begins another one, against what the judge itself reads."""
    task = RatingTask("ten", ("1", "2", "10"), (1.0, 2.0, 10.0), ("a", "b", "c"), "it", "Rate.")
    judge = tiny_judge(tiny_lm, "soft", prompt=JudgePrompt(task))
    assert not judge.label_tokens.first_tokens
    rows = [Dialogue("1", (Turn("user", "Is it Peru?"),), (1.0, 10.0, 10.0, 2.0))]
    with torch.no_grad():
        log_probs = judge.label_log_probs([prompt.ids for prompt in judge.prompts(rows)])
    wanted = -(log_probs @ torch.tensor([0.25, 0.25, 0.5]))
    torch.testing.assert_close(judge.tuning.losses(judge, rows).detach(), wanted, atol=1e-5, rtol=0)


def test_soft_labels_are_the_mean_of_sampled_ones(tiny_lm: Path) -> None:
    """Over all epochs an annotator is drawn in proportion, by seed, epoch and dialogue and nothing else."""
    judge = tiny_judge(tiny_lm, "sampled")
    (row,) = dialogues()[2:3]
    draws = [judge.tuning._rating(row, epoch) for epoch in range(2000)]
    shares = [draws.count(rating) / 2000 for rating in (1.0, 2.0, 3.0)]
    torch.testing.assert_close(torch.tensor(shares), torch.tensor([0.25, 0.5, 0.25]), atol=0.04, rtol=0)
    assert draws[:50] == [JudgeTuning("sampled")._rating(row, epoch) for epoch in range(50)]
    assert draws[:50] != [JudgeTuning("sampled", seed=1)._rating(row, epoch) for epoch in range(50)]


def test_an_analysis_comes_before_its_rating_or_after_it(tiny_lm: Path) -> None:
    row = dialogues()[:1]
    for mode, text in (("analysis_first", " Bad.\nRating: 1"), ("rating_first", " 1\nAnalysis: Bad.")):
        prompt = JudgePrompt(SHORT, mode=mode, rationales={"0": "Bad."})  # type: ignore[arg-type]
        judge = tiny_judge(tiny_lm, "majority", prompt=prompt)
        labels = judge.tuning.rows(judge, row)["labels"][0]
        answer = judge.prompt_format.tokenizer.decode(labels[labels != IGNORE_INDEX])
        assert answer == f"{text}<|im_end|>"
    judge = tiny_judge(tiny_lm, "soft", prompt=JudgePrompt(SHORT, mode="analysis_first", rationales={"0": "Bad."}))
    assert judge.tuning.losses(judge, row).isfinite().all()
    judge = tiny_judge(tiny_lm, "majority", prompt=JudgePrompt(SHORT, mode="analysis_first"))
    labels = judge.tuning.rows(judge, row)["labels"][0]
    assert judge.prompt_format.tokenizer.decode(labels[labels != IGNORE_INDEX]).strip() == "Rating: 1<|im_end|>"


def test_a_dialogue_without_ratings_is_refused(tiny_lm: Path) -> None:
    row = [Dialogue("bare", (Turn("user", "Hi"),))]
    for target in TARGETS:
        judge = tiny_judge(tiny_lm, target)
        with pytest.raises(ValueError, match=r"[Ll]eave"):
            judge.tuning.losses(judge, row)


def test_adapters_at_the_beginning_rate_as_the_base_does(tiny_lm: Path) -> None:
    base, adapted = tiny_judge(tiny_lm, lora=None), tiny_judge(tiny_lm)
    assert torch.equal(label_log_probs(base, dialogues()), label_log_probs(adapted, dialogues()))


@pytest.mark.parametrize("target", TARGETS)
def test_a_judge_learns_its_ratings(tiny_lm: Path, target: Target) -> None:
    judge = tiny_judge(tiny_lm, target, lora=None)
    before = judge.tuning.losses(judge, dialogues()).mean().item()
    trainer(max_epochs=40).fit(judge, loader())
    after = judge.tuning.losses(judge, dialogues()).mean().item()
    assert after < 0.6 * before
    first, second, third, _ = (rating.score for rating in judge.rate(dialogues()))
    assert second > max(first, third)


def test_what_is_saved_are_the_adapters_alone_and_loads_equal(tiny_lm: Path, tmp_path: Path) -> None:
    judge = tiny_judge(tiny_lm)
    run = trainer(max_epochs=2)
    run.fit(judge, loader())
    run.save_checkpoint(tmp_path / "a.ckpt")
    state = torch.load(tmp_path / "a.ckpt", weights_only=True)["state_dict"]
    assert len(state) == 2 * 2 * 2  # layers x modules x factors
    assert all("lora_" in name for name in state)
    loaded = DialogueJudge.load_from_checkpoint(
        tmp_path / "a.ckpt",
        model=tiny_lm,
        prompt=JudgePrompt(SHORT),
        shots=0,
        lora=LORA,
    )
    assert same(loaded, judge)
    unmerged = label_log_probs(judge, dialogues())
    judge.save_adapter(tmp_path / "adapter")
    judge.save_pretrained(tmp_path / "whole")
    for folder in ("adapter", "whole"):
        opened = DialogueJudge(tmp_path / folder, prompt=JudgePrompt(SHORT), shots=0)
        torch.testing.assert_close(label_log_probs(opened, dialogues()), unmerged, atol=1e-5, rtol=0)
    assert not list((tmp_path / "adapter").glob("model*.safetensors"))
    assert torch.equal(label_log_probs(judge, dialogues()), unmerged)  # writing has not touched it
    with pytest.raises(ValueError, match="has no adapters"):
        tiny_judge(tiny_lm, lora=None).save_adapter(tmp_path / "none")


@pytest.mark.parametrize("target", ["sampled", "soft"])
def test_a_resumed_run_ends_in_the_same_bits(tiny_lm: Path, tmp_path: Path, target: Target) -> None:
    half = tmp_path / "half.ckpt"
    saver = Recorder(on_train_epoch_end=lambda run, _: run.save_checkpoint(half) if run.current_epoch == 1 else None)
    whole, resumed = tiny_judge(tiny_lm, target), tiny_judge(tiny_lm, target)
    trainer(saver, max_epochs=4).fit(whole, loader(batch_size=2))
    trainer(max_epochs=4).fit(resumed, loader(batch_size=2), ckpt_path=half)
    assert same(resumed, whole)


def test_accumulated_batches_make_the_step_of_one(tiny_lm: Path) -> None:
    found = []
    for size in (4, 2):
        judge = tiny_judge(tiny_lm)
        trainer(max_epochs=3, accumulate_grad_batches=4 // size).fit(judge, loader(batch_size=size))
        found.append(weights(judge))
    torch.testing.assert_close(found[0], found[1], atol=1e-6, rtol=0)


def test_bf16_mixed_keeps_fp32_adapters_and_learns(tiny_lm: Path) -> None:
    judge = tiny_judge(tiny_lm, lora=None)
    before = judge.tuning.losses(judge, dialogues()).mean().item()
    trainer(max_epochs=30, precision="bf16-mixed").fit(judge, loader())
    assert {p.dtype for p in judge.parameters()} == {torch.float32}
    assert judge.tuning.losses(judge, dialogues()).mean().item() < 0.6 * before


def test_only_adapters_train_with_a_warm_up_and_a_cosine(tiny_lm: Path) -> None:
    judge = tiny_judge(tiny_lm)
    base = {name: value.clone() for name, value in judge.state_dict().items() if "lora_" not in name}
    rates: list[float] = []
    judge.on_train_batch_end = lambda *_: rates.append(judge.trainer.optimizers[0].param_groups[0]["lr"])  # type: ignore[method-assign,assignment]
    trainer(max_epochs=100).fit(judge, loader())
    assert all(torch.equal(judge.state_dict()[name], value) for name, value in base.items())
    assert rates[0] == pytest.approx(1e-2 / 3)  # 3 % of 100 steps
    assert max(rates) == pytest.approx(1e-2)
    assert rates[-1] == pytest.approx(0, abs=1e-5)
    assert judge.lm.hparams["weight_decay"] == 0.01


def test_an_unknown_target_is_refused() -> None:
    with pytest.raises(ValueError, match="target must be"):
        JudgeTuning("median")  # type: ignore[arg-type]


@pytest.mark.parametrize("target", TARGETS)
def test_answers_fit_into_a_model_with_few_positions_and_no_chat_template(tiny_lm: Path, target: Target) -> None:
    """A GPT-2 whose prompts fill all that it holds."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_lm)
    tokenizer.chat_template = None
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_positions=200, n_embd=16, n_layer=1, n_head=2))
    said = Turn("user", "Is it " + "France, " * 100)
    rows = [Dialogue(str(i), (said, Turn("assistant", "No.")), (1.0 + i, 2.0)) for i in range(2)]
    judge = DialogueJudge(
        LitCausalLM(model, tokenizer=tokenizer), prompt=JudgePrompt(SHORT), shots=0, tuning=JudgeTuning(target)
    )
    assert max(len(prompt.ids) for prompt in judge.prompts(rows)) > 180
    trainer(max_steps=2).fit(judge, DataLoader(rows, batch_size=2, collate_fn=list))
    assert all(1 <= rating.score <= 3 for rating in judge.rate(rows))
