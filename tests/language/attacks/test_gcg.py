"""Greedy coordinate gradient: the gradient, the losses with shared prompts, and suffixes that are texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from lightning_unlearn import LitCausalLM, Probe, PromptFormat
from lightning_unlearn.core.modes import differentiable
from lightning_unlearn.core.scores import causal_lm_nll
from lightning_unlearn.language.attacks import GCG
from lightning_unlearn.language.attacks.gcg import _gradient, _Prompt, _slot, _surviving, _with_suffix
from lightning_unlearn.language.attacks.latent import span_batches
from tests.language.attacks.families import FAMILIES, family
from tests.language.attacks.tiny import capitals, scorer
from tests.zoo.families import FAMILIES as TOKENIZERS


@pytest.fixture(scope="module")
def module(tiny_lm: Path) -> LitCausalLM:
    return LitCausalLM(str(tiny_lm))


def loss(module: LitCausalLM, prompt_format: PromptFormat, probe: Any) -> float:
    """Loss of the answer a token, from the texts."""
    messages = prompt_format.messages(probe.question)
    (row,) = prompt_format.rows([prompt_format.conversation(messages, probe.answer)])
    (batch,) = span_batches([row], 1, module.device)
    with torch.no_grad():
        return causal_lm_nll(module.eval(), batch.inputs).item() / len(row.answer)


def test_the_gradient_is_that_of_one_hot_vectors(module: LitCausalLM) -> None:
    (probe,) = capitals("France")
    slot = _slot(module._prompt_format(), probe, 3)
    suffix = torch.tensor([40, 90, 300])
    with differentiable(module):
        ours = _gradient(module, slot, suffix)
        table = module.model.get_input_embeddings().weight
        one_hot = F.one_hot(suffix, table.shape[0]).float().requires_grad_(True)
        ids = torch.tensor([*slot.before, *suffix.tolist(), *slot.after, *slot.answer])
        vectors = torch.cat([table[ids[: len(slot.before)]], one_hot @ table, table[ids[len(slot.before) + 3 :]]])
        logits = module.model(inputs_embeds=vectors[None]).logits[0, -len(slot.answer) - 1 : -1]
        (theirs,) = torch.autograd.grad(F.cross_entropy(logits, torch.tensor(slot.answer)), one_hot)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "opt 350m"])
def test_losses_with_a_shared_prompt_are_those_of_whole_prompts(name: str, tiny_lm: Path) -> None:
    module = family(name, tiny_lm)
    (probe,) = capitals("France")
    slot = _slot(module._prompt_format(), probe, 4)
    suffixes = torch.randint(60, 200, (5, 4), generator=torch.Generator().manual_seed(0))
    with differentiable(module):
        prompt = _Prompt(module, slot, 2)
        assert (prompt.model is None) == (name == "gemma 2")  # whose window is shorter than the prompt
        shared = prompt.loss(suffixes)
        whole = _Prompt(module, slot, 2, shared=False).loss(suffixes)
        (batch,) = span_batches([slot.row(row) for row in suffixes.tolist()], 5, module.device)
        plain = causal_lm_nll(module, batch.inputs) / len(slot.answer)
    torch.testing.assert_close(shared, plain, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(whole, plain, rtol=1e-4, atol=1e-4)


def test_the_search_lowers_the_loss_of_the_text_that_it_finds(module: LitCausalLM) -> None:
    probes = capitals()
    attack = GCG(steps=6, candidates=24, length=5, rows=2)
    found = attack.knowledge(module, probes, scorer)
    (suffix,) = found.suffixes
    assert suffix.rows == (0, 1)
    assert found.searched.tolist() == [True, True, False, False, False, False]
    assert len(suffix.losses) == 7
    assert suffix.losses == sorted(suffix.losses, reverse=True)
    assert suffix.losses[-1] < suffix.losses[0] - 1e-3
    # The loss of the tokens that it searched is that of the text as anybody would type it.
    prompt_format = module._prompt_format()
    typed = [loss(module, prompt_format, _with_suffix(probe, suffix.text)) for probe in probes[:2]]
    assert sum(typed) / 2 == pytest.approx(suffix.losses[-1], abs=1e-4)
    assert attack.search(module, probes[:2]) == suffix
    assert GCG(steps=6, candidates=24, length=5, rows=2, seed=1).search(module, probes[:2]).text != suffix.text


def test_no_suffix_says_the_answer(module: LitCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    probes = capitals("France")
    city = module.tokenizer(" Paris", add_special_tokens=False)["input_ids"]
    attack = GCG(steps=1, candidates=2, length=len(city))

    def says_it(current: torch.Tensor, *_: Any) -> torch.Tensor:
        return torch.stack([torch.tensor(city), current])

    monkeypatch.setattr(attack, "_candidates", says_it)
    assert "Paris" not in attack.search(module, probes).text


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_suffix_has_its_place_in_the_prompts_of_every_family(name: str) -> None:
    prompt_format = PromptFormat(TOKENIZERS[name].make_tokenizer(), chat_template_kwargs=TOKENIZERS[name].arguments)
    probe = Probe(0, "Where was Ada Quill born?", "Ada Quill was born in Lima.", accept=("Lima",))
    slot = _slot(prompt_format, probe, 4)
    asked = _with_suffix(probe, "! ! ! !")
    (row,) = prompt_format.rows([prompt_format.conversation(prompt_format.messages(asked.question), probe.answer)])
    assert slot.row(slot.suffix) == row._replace(continues_answer=False)
    kept = _surviving(prompt_format, [probe], [slot], torch.tensor([slot.suffix]))
    assert [suffix.tolist() for suffix in kept] == [slot.suffix]


def test_one_suffix_a_row(module: LitCausalLM) -> None:
    asked: list[Any] = []

    def keep(model: LitCausalLM, probes: Sequence[Any]) -> Any:
        asked.extend(probes)
        return scorer(model, probes)

    probes = capitals("France", "Italy", "Spain")
    found = GCG(steps=1, candidates=4, length=3, rows=2, universal=False).knowledge(module, probes, keep)
    assert [suffix.rows for suffix in found.suffixes] == [(0,), (1,)]
    assert [probe.question for probe in asked] == [
        *(_with_suffix(p, s.text).question for p, s in zip(probes, found.suffixes, strict=False)),
        probes[2].question,
    ]
    assert found.searched.tolist() == [True, True, False]
