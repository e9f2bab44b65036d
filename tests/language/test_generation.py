"""Answers of the model alone, whatever settings came with its folder, and the prompt that travels with it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from peft import LoraConfig, get_peft_model

from lightning_unlearn import NPO, GradDiff, LanguageDataModule, LitCausalLM, PromptFormat
from lightning_unlearn.language import generation
from lightning_unlearn.language.continuation import continuations
from lightning_unlearn.language.prefixes import prefix_model
from tests.helpers import trainer
from tests.language.families import SHARES_PREFIXES, family

Rows = list[dict[str, Any]]

QUESTIONS = ["What is the capital of France?", "What is the capital of Peru?"]
SETTINGS: dict[str, dict[str, Any]] = {
    "sampling": {"do_sample": True, "temperature": 5.0, "top_k": 3, "min_p": 0.1},
    "penalties": {"repetition_penalty": 1.7, "no_repeat_ngram_size": 1, "encoder_no_repeat_ngram_size": 1},
    "beams": {"num_beams": 3, "num_return_sequences": 2, "length_penalty": -3.0, "early_stopping": True},
    "tokens": {
        "suppress_tokens": list(range(100)),
        "begin_suppress_tokens": [120],
        "bad_words_ids": [[130], [131, 90]],
    },
    "forced": {"forced_bos_token_id": 7, "forced_eos_token_id": 1, "min_length": 90, "min_new_tokens": 5},
    "lengths": {"max_length": 3, "max_time": 1e-9, "exponential_decay_length_penalty": [1, 5.0]},
    "others": {
        "guidance_scale": 3.0,
        "renormalize_logits": True,
        "sequence_bias": [[[140], 9.0]],
        "stop_strings": ["a"],
    },
}


def argmax(model: Any, prompt: list[int], length: int, ends: list[int]) -> list[int]:
    """The most likely token at each step, one forward pass a token."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(length):
            ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
            if ids[-1] in ends:
                break
    return ids[len(prompt) :]


@pytest.fixture(scope="module")
def loud_lm(tiny_lm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with larger weights, so that it says more than one token."""
    folder = tmp_path_factory.mktemp("loud")
    module = LitCausalLM(str(tiny_lm))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    module.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("settings", SETTINGS)
def test_answers_are_greedy_whatever_the_folder_says(settings: str, loud_lm: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(loud_lm, folder)
    plain = LitCausalLM(str(folder))
    prompts = PromptFormat(plain.tokenizer).prompts(QUESTIONS)
    said = [argmax(plain.model.eval(), prompt, 8, [plain.tokenizer.eos_token_id]) for prompt in prompts]
    assert len(set(said[0])) > 1
    (folder / "generation_config.json").write_text(json.dumps(SETTINGS[settings]))
    module = LitCausalLM(str(folder))
    given = module.model.generation_config.to_dict()
    expected = [text.strip() for text in plain.tokenizer.batch_decode(said, skip_special_tokens=True)]
    assert module.answer(QUESTIONS, max_new_tokens=8) == expected
    assert module.model.generation_config.to_dict() == given


def test_a_peft_model_answers_greedily_too(loud_lm: Path) -> None:
    plain = LitCausalLM(str(loud_lm))
    base = LitCausalLM(str(loud_lm))
    base.model.generation_config.repetition_penalty = 1.7
    adapted = get_peft_model(base.model, LoraConfig(r=2, target_modules="all-linear"))
    module = LitCausalLM(adapted, tokenizer=plain.tokenizer)
    assert module.answer(QUESTIONS, max_new_tokens=8) == plain.answer(QUESTIONS, max_new_tokens=8)
    assert module.model.get_base_model().generation_config.repetition_penalty == 1.7


@pytest.mark.parametrize("shared", [True, False])
def test_batches_of_like_lengths_say_what_each_prompt_alone_says(
    shared: bool, loud_lm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = LitCausalLM(str(loud_lm))
    questions = ["Who?", *(f"What is the capital of {'far ' * n}France?" for n in range(9)), "Where?"]
    alone = [module.answer([question], max_new_tokens=12)[0] for question in questions]
    widths: list[tuple[int, ...]] = []
    real = generation.continuations if shared else generation.generate

    def counted(*args: Any, **options: Any) -> Any:
        widths.append(tuple(map(len, args[1 if shared else 2])))
        return real(*args, **options)

    monkeypatch.setattr(generation, real.__name__, counted)
    if not shared:
        monkeypatch.setattr(generation, "prefix_model", lambda *_: None)
    assert module.answer(questions, max_new_tokens=12, batch_size=4) == alone
    assert len(set(alone)) > 3
    assert [len(batch) for batch in widths] == [4, 4, 3]
    assert widths == sorted(widths, reverse=True)
    assert module.answer([]) == []


@pytest.mark.parametrize("name", sorted(SHARES_PREFIXES - {"bloom"}))
def test_greedy_tokens_of_every_family_are_the_most_likely_ones(name: str) -> None:
    model = family(name)
    prompts = [[5, 6, 7, 8], [5, 6, 9], [5, 6, 20, 21, 22, 23, 24], [5, 6, 11, 12]]
    plain = [argmax(model, prompt, 10, []) for prompt in prompts]
    ends = {plain[0][2], plain[2][5]}  # so that some rows end before others
    own = prefix_model(model, 20)
    assert own is not None
    assert own.takes_positions
    with torch.no_grad():
        assert continuations(own, prompts, 10, ()) == plain
        assert continuations(own, prompts, 10, ends) == [argmax(model, prompt, 10, list(ends)) for prompt in prompts]
        head = list(range(30, 60))
        begun = prefix_model(model, 60, head)
        assert begun is not None
        assert begun.head is not None
        assert begun.head.length == 30
        asked = [head + prompt for prompt in prompts]
        twice = [argmax(model, prompt, 8, list(ends)) for prompt in asked for _ in range(2)]
        assert continuations(begun, asked, 8, ends, copies=2) == twice
        assert continuations(own, [[5], [5, 6]], 3, ()) == [argmax(model, prompt, 3, []) for prompt in ([5], [5, 6])]


@pytest.mark.parametrize("name", ["bloom", "mistral", "mamba"])
def test_other_families_write_with_their_own_method(name: str) -> None:
    assert generation._prefix_model(family(name), 20) is None


class Numbers:
    """A tokenizer that writes tokens as numbers, and has none that ends a text."""

    pad_token_id, eos_token_id = 0, None

    def batch_decode(self, ids: list[list[int]], skip_special_tokens: bool) -> list[str]:
        return [" ".join(map(str, row)) for row in ids]


@pytest.mark.parametrize(("name", "batches"), [("mamba", [3]), ("recurrent_gemma", [1, 2]), ("rwkv", [1, 1, 1])])
def test_a_batch_changes_no_answer(name: str, batches: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    model, plain = family(name), PromptFormat(Numbers())
    model.generation_config.eos_token_id = None
    prompts = [[5, 6, 7, 8], [9, 10, 11, 12, 13, 14, 15], [20, 6, 9, 3]]
    widths: list[int] = []
    real = generation.generate

    def counted(*args: Any, **options: Any) -> Any:
        widths.append(len(args[2]))
        return real(*args, **options)

    monkeypatch.setattr(generation, "generate", counted)
    calls: list[int] = []
    handle = model.register_forward_hook(lambda *_: calls.append(1))
    found = generation.generate_all(model, plain, prompts, 6)
    handle.remove()
    assert len(calls) == 6 * len(batches)  # a trial is not seen
    assert found == [" ".join(map(str, argmax(model, prompt, 6, []))) for prompt in prompts]
    assert widths == batches

    def second(logits: torch.Tensor, rows: Any, step: int) -> torch.Tensor:
        return logits.topk(2).indices.gather(1, torch.tensor(rows)[:, None] % 2)[:, 0]

    drawn = generation.generate_all(model, plain, prompts, 1, choose=second, copies=2)
    assert drawn[::2] == [answer.split()[0] for answer in found]
    assert all(a != b for a, b in zip(drawn[::2], drawn[1::2], strict=True))


PROMPTS: dict[str, Callable[[Any], PromptFormat]] = {
    "plain": lambda _: PromptFormat(prompt_format="Q: {question} A:"),
    "system": lambda _: PromptFormat(system_prompt="Be brief."),
    "arguments": lambda _: PromptFormat(
        chat_template="{{ mood }}{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}",
        chat_template_kwargs={"mood": "Calm. "},
    ),
    "tokenizer": lambda tokenizer: PromptFormat(tokenizer),
}


@pytest.mark.parametrize("kind", PROMPTS)
def test_the_prompt_of_a_run_travels_with_its_checkpoint_and_its_export(
    kind: str, tiny_lm: Path, tmp_path: Path, forget_rows: Rows, retain_rows: Rows
) -> None:
    from transformers import AutoTokenizer

    other = AutoTokenizer.from_pretrained(tiny_lm)
    other.chat_template = None
    module = LitCausalLM(str(tiny_lm))
    data = LanguageDataModule(forget_rows, retain_rows, prompt=PROMPTS[kind](other))
    run = trainer(NPO(), max_steps=1, limit_val_batches=0)
    run.fit(module, data)
    asked = data.prompt.prompt("Where?")
    assert asked != PromptFormat(module.tokenizer).prompt("Where?")
    run.save_checkpoint(tmp_path / "run.ckpt")
    module.save_pretrained(tmp_path / "export")
    for again in (
        LitCausalLM.load_from_checkpoint(tmp_path / "run.ckpt", weights_only=True),
        LitCausalLM(tmp_path / "run.ckpt"),
        LitCausalLM(str(tmp_path / "export")),
    ):
        assert again._prompt_format().prompt("Where?") == asked
        later = LanguageDataModule(retain_rows, forget_rows)
        trainer(NPO(), max_steps=1, limit_val_batches=0).fit(again, later)
        assert later.prompt.prompt("Where?") == asked
        given = LanguageDataModule(retain_rows, forget_rows, prompt=PromptFormat(prompt_format="{question}!"))
        trainer(NPO(), max_steps=1, limit_val_batches=0).fit(again, given)
        assert given.prompt.text("Where?") == "Where?!"


DATED = (
    "{% for m in messages %}{% if loop.first %}<|im_start|>{{ strftime_now('%d %b %Y, %-d.%m.') }}<|im_end|>\n"
    "{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class Days:
    """A calendar that tests turn."""

    now = "2025-04-09"

    @classmethod
    def today(cls) -> Any:
        from datetime import date

        return date.fromisoformat(cls.now)


@pytest.fixture
def dated_lm(tiny_lm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("lightning_unlearn.language.data.language.date", Days)
    monkeypatch.setattr(Days, "now", "2025-04-09")
    module = LitCausalLM(str(tiny_lm))
    module.tokenizer.chat_template = DATED
    module.save_pretrained(tmp_path / "dated")
    (tmp_path / "dated" / "prompt_format.json").unlink()
    return tmp_path / "dated"


def test_the_date_of_the_start_stays_with_the_run(
    dated_lm: Path, tmp_path: Path, forget_rows: Rows, retain_rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit(data: Any, epochs: int, **options: Any) -> tuple[Any, LitCausalLM]:
        module = LitCausalLM(str(dated_lm))
        run = trainer(NPO(keep_reference=True), max_epochs=epochs, limit_val_batches=0)
        run.fit(module, data, **options)
        return run, module

    rows = (forget_rows, retain_rows)
    first = LanguageDataModule(*rows)
    run, module = fit(first, 1)
    assert "09 Apr 2025, 9.04." in first.prompt.text("Where?")
    run.save_checkpoint(tmp_path / "run.ckpt")
    module.save_pretrained(tmp_path / "export")

    monkeypatch.setattr(Days, "now", "2025-04-10")
    resumed = LanguageDataModule(*rows)
    fit(resumed, 2, ckpt_path=tmp_path / "run.ckpt")
    for name in ("forget", "retain"):
        assert resumed.sets[name].rows == first.sets[name].rows
    assert resumed.followers["idk"][3] == first.followers["idk"][3]
    assert LitCausalLM(str(tmp_path / "export"))._prompt_format().text("Where?") == first.prompt.text("Where?")
    new = LanguageDataModule(*rows)
    fit(new, 1)
    assert "10 Apr 2025" in new.prompt.text("Where?")
    given = LanguageDataModule(*rows, prompt=PromptFormat(date="2024-12-01"))
    with (
        pytest.warns(UserWarning, match="another prompt format than it was started with: date='2024-12-01' and not"),
        pytest.raises(
            MisconfigurationException, match=r"the date into every prompt: the run was started with 2025-04-09"
        ),
    ):
        fit(given, 2, ckpt_path=tmp_path / "run.ckpt")


def test_loaders_of_another_day_are_refused_by_the_date(
    dated_lm: Path, tmp_path: Path, forget_rows: Rows, retain_rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit(epochs: int, method: Any = GradDiff, **options: Any) -> Any:
        module = LitCausalLM(str(dated_lm))
        data = LanguageDataModule(forget_rows, retain_rows, prompt=PromptFormat(module.tokenizer))
        data.setup("fit")
        run = trainer(method(), max_epochs=epochs, limit_val_batches=0)
        run.fit(module, data.train_dataloader(), **options)
        return run

    fit(1).save_checkpoint(tmp_path / "run.ckpt")
    monkeypatch.setattr(Days, "now", "2025-04-10")
    with pytest.raises(MisconfigurationException, match=r"written with 2025-04-10.*PromptFormat\(date='2025-04-09'\)"):
        fit(2, ckpt_path=tmp_path / "run.ckpt")
