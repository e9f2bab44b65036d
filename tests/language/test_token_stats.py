"""One pass over some rows finds of each of their tokens what the whole logits say, for any model and any batches."""

from __future__ import annotations

import random
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_unlearn import LitCausalLM, Probe, PromptFormat, TokenStats, causal_lm_nll, token_stats
from lightning_unlearn.functional import (
    answer_probability,
    exact_memorization,
    extraction_strength,
    loss_score,
    min_k,
    min_k_plus_plus,
)
from lightning_unlearn.language.data.token_rows import collate_tokens
from lightning_unlearn.language.tokens import TokenRow
from tests.language.families import FAMILIES, SHARES_PREFIXES, VOCABULARY, family

Item = tuple[list[int], list[int]]


def items(groups: int = 3, answers: int = 4, seed: int = 0, longest: int = 12) -> list[Item]:
    """Prompts of several lengths, each with several answers of several lengths."""
    draw = random.Random(seed)

    def ids(low: int) -> list[int]:
        return [draw.randrange(3, VOCABULARY) for _ in range(draw.randrange(low, longest))]

    return [(prompt, ids(1)) for prompt in (ids(4) for _ in range(groups)) for _ in range(answers)]


@torch.no_grad()
def expected(model: Any, item: Item) -> list[Tensor]:
    """The statistics of one sequence, from all its logits in fp64."""
    prompt, answer = item
    ids = torch.tensor([[*prompt, *answer]])
    output = model(input_ids=ids, attention_mask=torch.ones_like(ids))
    log_p = getattr(output, "logits", output)[0].double().log_softmax(-1)
    start = max(1, len(prompt))
    log_p, labels = log_p[start - 1 : -1], ids[0, start:]
    mean = (log_p.exp() * log_p).sum(-1)
    variance = (log_p.exp() * (log_p - mean[:, None]) ** 2).sum(-1)
    return [log_p.gather(1, labels[:, None])[:, 0], mean, variance, log_p.argmax(-1) == labels, labels]


def check(found: list[TokenStats], wanted: list[list[Tensor]], atol: float = 1e-5) -> None:
    assert len(found) == len(wanted)
    for part, values in zip(found, wanted, strict=True):
        for own, value in zip((part.log_prob, part.mean, part.variance), values, strict=False):
            torch.testing.assert_close(own.double(), value, atol=atol, rtol=1e-5)
        assert torch.equal(part.hit, values[3])
        assert torch.equal(part.ids, values[4])


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_the_statistics_of_its_whole_logits(name: str) -> None:
    model = family(name)
    rows = items()
    wanted = [expected(model, item) for item in rows]
    apart = token_stats(model, rows, max_tokens=60, share_prefixes=False)
    together = token_stats(model, rows, max_tokens=60)
    check(apart, wanted)
    check(together, wanted)
    assert (together.tokens < apart.tokens) == (name in SHARES_PREFIXES)


HEAD = [5, 6, 7, 8, 9, 10, 11, 12, 13, 14]


def begun(rows: list[Item], longest: int = 10) -> list[Item]:
    """The rows after a system prompt, which the last one is cut within."""
    return [*((HEAD + prompt, answer) for prompt, answer in rows), (HEAD[:longest], [20, 21, 22])]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_beginning_of_all_rows_is_computed_once_by_every_family(name: str) -> None:
    model = family(name)
    rows = begun(items(groups=30, answers=1), longest=9) + begun(items(groups=2, answers=3), longest=9)
    wanted = [expected(model, item) for item in rows]
    apart = token_stats(model, rows, share_prefixes=False)
    atol = 5e-5 if name == "granite" else 1e-5  # its logits are those of the output layer times five
    check(apart, wanted, atol)
    for options in ({}, {"max_tokens": 90}, {"max_tokens": 1}, {"batch_size": 4}):
        check(token_stats(model, rows, **options), wanted, atol)
    together = token_stats(model, rows)
    assert (apart.tokens - together.tokens > 8 * 25) == (name in SHARES_PREFIXES)
    # A label right after the beginning is predicted by its last token, which each row runs itself.
    check(token_stats(model, begun(rows, longest=1)), [expected(model, item) for item in begun(rows, longest=1)], atol)


def test_of_a_beginning_of_all_rows_too_long_a_row_and_an_unknown_token_are_refused(tiny_lm: Path) -> None:
    module = LitCausalLM(family("gpt2"), tokenizer=str(tiny_lm))
    rows = begun(items(groups=30, answers=1))
    check(token_stats(module, rows), [expected(module.model, item) for item in rows])
    with pytest.raises(ValueError, match="learned positions for 64"):
        token_stats(module, [*rows, ([*HEAD, *range(3, 60)], [3, 4, 5])])
    with pytest.raises(ValueError, match=f"the token {VOCABULARY + 5}, but the model has {VOCABULARY} embeddings"):
        token_stats(module, [*rows, (HEAD, [3, VOCABULARY + 5, 5])])


def test_other_weights_are_read_with_their_own_beginning() -> None:
    model, rows = family("llama"), begun(items(groups=30, answers=1))
    before = token_stats(model, rows)
    with torch.no_grad():
        for parameter in model.model.layers[0].parameters():
            parameter.mul_(1.5)
    check(token_stats(model, rows), [expected(model, item) for item in rows])
    assert not torch.allclose(before[0].log_prob, token_stats(model, rows)[0].log_prob, atol=1e-2)


def test_batches_and_order_of_rows_change_nothing() -> None:
    model = family("llama")
    rows = items(groups=4)
    one = token_stats(model, rows, batch_size=1, share_prefixes=False)
    for options in ({"max_tokens": 1}, {"max_tokens": 40}, {"batch_size": 3}, {"max_tokens": 10_000}):
        for part, other in zip(one, token_stats(model, rows, **options), strict=True):
            torch.testing.assert_close(part.log_prob, other.log_prob, atol=1e-5, rtol=1e-5)
            assert part.index == other.index
    shuffled = random.Random(0).sample(range(len(rows)), len(rows))
    for place, part in zip(shuffled, token_stats(model, [rows[i] for i in shuffled]), strict=True):
        for name in ("log_prob", "mean", "variance"):
            torch.testing.assert_close(getattr(part, name), getattr(one[place], name), atol=1e-5, rtol=1e-5)
        for read in (answer_probability, loss_score, min_k):
            torch.testing.assert_close(read(part.log_prob), read(one[place].log_prob), atol=1e-5, rtol=1e-5)
        for mark in (exact_memorization, extraction_strength):
            assert mark(part.hit) == mark(one[place].hit)
        scores = [min_k_plus_plus(p.log_prob, p.mean, p.variance) for p in (part, one[place])]
        torch.testing.assert_close(*scores, atol=1e-4, rtol=1e-4)


class Largest(TorchDispatchMode):
    """Keeps the number of elements of the largest fp32 tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for tensor in output if isinstance(output, (tuple, list)) else [output]:
            if isinstance(tensor, Tensor) and tensor.dtype == torch.float32 and not func.is_view:
                self.elements = max(self.elements, tensor.numel())
        return output


@pytest.mark.parametrize("shared", [True, False])
def test_no_tensor_of_all_positions_and_262144_tokens_exists(shared: bool) -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    size, hidden = 262_144, 4
    config = Gemma2Config(
        vocab_size=size, hidden_size=hidden, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, head_dim=4, final_logit_softcapping=30.0,
    )  # fmt: skip
    model = Gemma2ForCausalLM(config).eval()
    rows = [([5, 6, 7], list(range(first, first + 25))) for first in (100, 200)]
    with Largest() as largest:
        found = token_stats(model, rows, share_prefixes=shared)
    assert largest.elements <= 1 << 22
    assert largest.elements < sum(map(len, found)) * size / 3
    assert largest.elements < 2 * 28 * size / 3
    check(found[:1], [expected(model, rows[0])])


class Headless(nn.Module):
    """A causal model that tells no output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(VOCABULARY, 8), nn.Linear(8, VOCABULARY)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.out(self.embed(input_ids).cumsum(1))


class Tempered(LightningModule):
    """Changes the logits of the model inside."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = family("llama")

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        logits: Tensor = self.inner(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits / 0.7


@pytest.mark.parametrize("make", [Headless, Tempered])
def test_other_modules_are_read_off_what_they_return(make: type[nn.Module]) -> None:
    module, rows = make().eval(), items()
    check(token_stats(module, rows), [expected(module, row) for row in rows])
    with torch.no_grad():
        for handle in [module.register_forward_hook(lambda *a: a[2] * 2)]:
            check(token_stats(module, rows), [expected(module, row) for row in rows])
            handle.remove()


def test_a_hook_in_the_model_sees_whole_sequences_once() -> None:
    model, rows, seen = family("llama"), items(), []
    handle = model.model.layers[1].register_forward_hook(lambda _, __, output: seen.append(output.shape))
    found = token_stats(model, rows)
    handle.remove()
    assert found.tokens == sum(batch * width for batch, width, _ in seen)
    before = token_stats(model, rows)
    for part, other in zip(found, before, strict=True):
        torch.testing.assert_close(part.log_prob, other.log_prob, atol=1e-5, rtol=1e-5)


def test_adapters_and_their_modes_are_left_as_they_were() -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(family("llama"), LoraConfig(target_modules="all-linear", lora_dropout=0.5)).train()
    rows = items()
    found = token_stats(model, rows)
    assert model.training
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
    assert not any("forward" in vars(part) for part in model.modules())
    check(found, [expected(model.eval(), row) for row in rows])
    assert found.tokens < token_stats(model, rows, share_prefixes=False).tokens


@pytest.mark.parametrize("in_place", [True, False])
def test_of_a_compiled_model_the_head_sees_answer_tokens_only(in_place: bool) -> None:
    model, rows, counts = family("llama"), items(answers=1), []
    before = token_stats(model, rows)
    handle = model.lm_head.register_forward_hook(lambda _, __, logits: counts.append(logits.numel() // VOCABULARY))
    if in_place:
        model.compile(backend="eager")
    found = token_stats(model if in_place else torch.compile(model, backend="eager"), rows)
    handle.remove()
    assert sum(counts) == sum(map(len, found)) + len(counts) / 2  # and one position of each batch, to compare
    for part, other in zip(found, before, strict=True):
        torch.testing.assert_close(part.log_prob, other.log_prob, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["prompt", "prefix"])
def test_virtual_tokens_before_a_sequence_are_no_part_of_it(kind: str) -> None:
    from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model

    config = {"prompt": PromptTuningConfig, "prefix": PrefixTuningConfig}[kind]
    model = get_peft_model(family("llama"), config(num_virtual_tokens=3, task_type="CAUSAL_LM")).eval()
    rows = items()
    wanted = []
    for prompt, answer in rows:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + answer])).logits[0, -len(answer) - 1 : -1]
        wanted.append(logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None])[:, 0])
    for part, log_prob in zip(token_stats(model, rows), wanted, strict=True):
        torch.testing.assert_close(part.log_prob, log_prob, atol=1e-5, rtol=1e-5)
    batch = collate_tokens([{"prompt": prompt, "answer": answer, "index": 0} for prompt, answer in rows])
    nll = torch.stack([-log_prob.sum() for log_prob in wanted])
    torch.testing.assert_close(causal_lm_nll(model, batch), nll, atol=1e-4, rtol=1e-5)


def test_rows_without_a_label_are_counted_and_left_out() -> None:
    model = family("llama")
    rows = [([5, 6], [7, 8]), ([5, 6], []), ([], [9]), ([], [9, 10, 11])]
    with pytest.warns(UserWarning, match="2 of 4 sequences have no answer token"):
        found = token_stats(model, rows)
    assert [(part.index, len(part)) for part in found] == [(0, 2), (3, 2)]
    assert found.skipped == 2
    assert all(part.log_prob.isfinite().all() for part in found)
    with pytest.warns(UserWarning, match="1 of 1"):
        assert token_stats(model, [([5], [])]) == []


def test_unlabelled_turns_have_no_statistics() -> None:
    model = family("llama")
    row = TokenRow([5, 6], [7, 8, 9, 10, 11], unlabelled=((1, 3),))
    whole = token_stats(model, [([5, 6], [7, 8, 9, 10, 11])])[0]
    (part,) = token_stats(model, [row])
    assert part.ids.tolist() == [7, 10, 11]
    torch.testing.assert_close(part.log_prob, whole.log_prob[[0, 3, 4]])


# ---- probes ----------------------------------------------------------------------------------------------------------

TOFU = Probe(
    7,
    "What is the full name of the author born in Kuwait City, Kuwait on 08/09/1956?",
    "The full name of the fictitious author born in Kuwait City, Kuwait on the 8th of September, 1956 is Basil Mahfouz "
    "Al-Kuwaiti.",
    paraphrased_answer="The author born in Kuwait City, Kuwait on 08/09/1956 is named Basil Mahfouz Al-Kuwaiti.",
    perturbed_answers=("The full name of the author is Leila Al-Sabah.", "It is Yasmin Al-Ghazali."),
)


@pytest.fixture(scope="module")
def module(tiny_lm: Path) -> LitCausalLM:
    return LitCausalLM(str(tiny_lm))


def test_a_probe_with_all_its_answers(module: LitCausalLM) -> None:
    found = token_stats(module, [TOFU, Probe(9, "Who?", "Ada.")], {"answer", "paraphrased", "perturbed"})
    assert [(part.index, part.kind, part.choice) for part in found] == [
        (7, "answer", 0),
        (7, "paraphrased", 0),
        (7, "perturbed", 0),
        (7, "perturbed", 1),
        (9, "answer", 0),
    ]
    assert [part.text for part in found[:4]] == [TOFU.answer, TOFU.paraphrased_answer, *TOFU.perturbed_answers]
    assert all(part.ended and part.ids[-1] == module.tokenizer.eos_token_id for part in found)
    row = PromptFormat(module.tokenizer).row(TOFU.question, TOFU.answer)
    check(found[:1], [expected(module.model.eval(), (row.prompt, row.answer))])
    assert found.tokens < found.row_tokens


def test_a_target_is_scored_alone_and_does_not_end_the_answer(module: LitCausalLM) -> None:
    probe = Probe(0, "Who?", "It is Basil Mahfouz, of course.", target="Basil Mahfouz")
    (part,) = token_stats(module, [probe])
    assert part.text.strip() == "Basil Mahfouz"
    assert not part.ended
    with pytest.raises(ValueError, match="Row 3 has the target 'Leila', which is not in its answer"):
        token_stats(module, [Probe(3, "Who?", "Basil", target="Leila")])


def test_a_text_is_continued_as_it_is(module: LitCausalLM) -> None:
    tokenizer = module.tokenizer
    probe = Probe(0, "The capital of France", " is Paris.", is_text=True)
    (part,) = token_stats(module, [probe])
    assert tokenizer.decode(part.ids) == " is Paris."
    assert not part.ended
    split = token_stats(module, [Probe(0, "The capital of France", "is Paris.", is_text=True)])[0]
    assert torch.equal(split.ids, part.ids)
    whole = tokenizer("The capital of France is Paris.", add_special_tokens=False)["input_ids"]
    check([part], [expected(module.model.eval(), (whole[: -len(part)], whole[-len(part) :]))])


def test_zlib_lengths_of_the_decoded_labels() -> None:
    def length(text: str) -> int:
        empty = torch.zeros(0)
        return TokenStats(empty, empty, empty, empty, empty, text).zlib_length

    if "ng" not in getattr(zlib, "ZLIB_RUNTIME_VERSION", ""):
        assert length("Author Basil Mahfouz Al-Kuwaiti is male.") == 48
        assert (length(""), length("a" * 100)) == (8, 12)


def test_bad_input_is_refused_before_the_model_runs() -> None:
    model = family("llama")
    with pytest.raises(ValueError, match="There is no row to score"):
        token_stats(model, [])
    with pytest.raises(ValueError, match="answers must be some of"):
        token_stats(model, [TOFU], {"wrong"})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="LlamaForCausalLM does not say how questions are asked"):
        token_stats(model, [TOFU])
    with pytest.raises(ValueError, match="max_tokens must be"):
        token_stats(model, items(), max_tokens=0)
