"""Attacks by prompts: what is asked, what counts, and that the model stays as it is."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_unlearn import Columns, LitCausalLM, Probe, PromptFormat, probes_of
from lightning_unlearn.language.attacks import (
    GCG,
    FewShotAttack,
    Framing,
    GuardrailBaseline,
    InContextAttack,
    JailbreakAttack,
    LanguageAttack,
    MultiTurnAttack,
    ParaphraseAttack,
    PrefixAttack,
    ReversedQuestion,
    SamplingAttack,
    TranslatedQuestion,
)
from lightning_unlearn.language.attacks.attempts import after_turns, with_system
from lightning_unlearn.language.knowledge import Knowledge
from tests.conftest import CAPITALS, CHAT_TEMPLATE
from tests.language.attacks.tiny import capitals, scorer, snapshot, unchanged
from tests.zoo.families import ANSWER, FAMILIES, QUESTION

TOFU = {  # row 3600 of TOFU (MIT)
    "question": "What is the full name of the author born in Taipei, Taiwan on 05/11/1991 who writes in the genre of "
    "leadership?",
    "answer": "The author's full name is Hsiao Yun-Hwa.",
}
ROWS = [
    {
        "reversed_question": f"{city} is the capital of which country?",
        "reversed_answer": f"Of {country}.",
        "reversed_accept": country,
        "question_de": f"Was ist die Hauptstadt von {country}?",
        "question_fr": f"Quelle est la capitale de {country} ?",
        "answer_fr": f"C'est {city}.",
    }
    for country, city in CAPITALS.items()
]
ATTACKS: dict[str, Callable[[], LanguageAttack]] = {
    "prefix": PrefixAttack,
    "jailbreak": lambda: JailbreakAttack({"plain": "Tell me: {question}"}),
    "guardrail": GuardrailBaseline,
    "multi_turn": lambda: MultiTurnAttack(max_new_tokens=4),
    "few_shot": lambda: FewShotAttack(capitals("Japan", "Peru", "Cuba"), k=2),
    "in_context": lambda: InContextAttack(k=1, facts=[_fact("France"), _fact("Italy")]),
    "paraphrase": ParaphraseAttack,
    "reversed": lambda: ReversedQuestion(ROWS),
    "translated": lambda: TranslatedQuestion(ROWS, ["de", "fr"]),
    "samples": lambda: SamplingAttack(n=3, k=2, max_new_tokens=3),
    "gcg": lambda: GCG(steps=1, candidates=4, length=3, rows=2),
}


def _fact(country: str) -> Probe:
    return Probe(9, f"Which language do they speak in {country}?", "Their own.", entity=country)


@pytest.fixture(scope="module")
def module(tiny_lm: Path) -> LitCausalLM:
    return LitCausalLM(str(tiny_lm))


class Asked:
    """A scorer that keeps what it is asked, and knows every other probe."""

    def __init__(self, strengths: Sequence[float] | None = None) -> None:
        self.probes: list[Probe] = []
        self.strengths = strengths

    def __call__(self, _: LitCausalLM, probes: Sequence[Probe]) -> Knowledge:
        self.probes = list(probes)
        values = torch.tensor(self.strengths or [0.5] * len(probes))
        return Knowledge(values, values.round(), [[f"answer {i}"] for i in range(len(probes))])


@pytest.mark.parametrize("name", ATTACKS)
def test_the_attacked_model_is_left_as_it_was(name: str, module: LitCausalLM) -> None:
    attack = ATTACKS[name]()
    probes = capitals("France", "Italy")
    next(module.model.parameters()).requires_grad_(False)
    module.train()
    module.model.lm_head.eval()
    before = snapshot(module)
    found = attack.knowledge(module, probes, scorer)
    assert unchanged(before, module)
    assert attack.name == name
    assert found.matched is not None
    assert found.matched.shape == (2,)
    assert (found.strength is None) == (name == "samples")
    assert len(found.answers) == 2
    json.dumps(attack.settings())
    cost = attack.cost(2)
    assert cost.generations >= 1
    assert cost.steps == 0
    next(module.model.parameters()).requires_grad_(True)


@pytest.mark.parametrize("name", ["gcg", "multi_turn", "prefix"])
def test_the_attacked_model_is_left_as_it_was_when_the_scorer_fails(name: str, module: LitCausalLM) -> None:
    def failing(_: LitCausalLM, __: Sequence[Probe]) -> Knowledge:
        raise RuntimeError("no disk")

    before = snapshot(module)
    with pytest.raises(RuntimeError, match="no disk"):
        ATTACKS[name]().knowledge(module, capitals("France", "Italy"), failing)
    assert unchanged(before, module)


def test_a_prefix_is_the_beginning_of_the_answer(module: LitCausalLM) -> None:
    prompt_format, tokenizer = module._prompt_format(), module.tokenizer
    asked = Asked()
    PrefixAttack(["Sure, it is"]).knowledge(module, [probes_of([TOFU])[0]], asked)
    (probe,) = asked.probes
    prompt = prompt_format.prompt(probe.question)
    assert tokenizer.decode(prompt) == prompt_format.text(TOFU["question"]) + "Sure, it is"
    assert tokenizer.decode(prompt).count("<|im_start|>assistant") == 1
    row = prompt_format.rows([prompt_format.conversation(prompt_format.messages(probe.question), probe.answer)])[0]
    assert row.prompt == prompt
    assert tokenizer.decode(row.answer) == f" {TOFU['answer']}<|im_end|>"
    short = prompt_format.conversation(prompt_format.messages(probe.question), probe.answer, "Hsiao Yun-Hwa")
    (part,) = prompt_format.rows([short])
    assert tokenizer.decode(part.prompt).endswith("Sure, it is " + TOFU["answer"].partition(" Hsiao")[0])
    assert tokenizer.decode(part.answer) == " Hsiao Yun-Hwa"


def test_a_prefix_in_a_plain_format_stands_where_the_answer_does(module: LitCausalLM) -> None:
    plain = PromptFormat(module.tokenizer, prompt_format="[INST] {question} [/INST]")
    begun = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "Well:", "prefix": True}]
    assert plain.text(begun) == "[INST] Where? [/INST]Well:"
    assert plain.text("Where?") == "[INST] Where? [/INST]"
    both = plain.prompts(["Where?", begun, "Who?"])
    assert [module.tokenizer.decode(ids) for ids in both] == [
        "[INST] Where? [/INST]",
        "[INST] Where? [/INST]Well:",
        "[INST] Who? [/INST]",
    ]
    assert begun[1]["prefix"] is True
    # Without the mark, a last message of the assistant is an answer that was given before.
    assert module._prompt_format().text([{**m, "prefix": False} for m in begun]).count("assistant") == 2


@pytest.mark.parametrize("name", FAMILIES)
def test_a_prefix_is_what_training_on_such_an_answer_would_read(name: str) -> None:
    prompt_format = PromptFormat(FAMILIES[name].make_tokenizer(), chat_template_kwargs=FAMILIES[name].arguments)
    begun = [*prompt_format.messages(QUESTION), {"role": "assistant", "content": "I do know:", "prefix": True}]
    (row,) = prompt_format.rows([prompt_format.conversation(begun, ANSWER)])
    trained = prompt_format.row(QUESTION, f"I do know: {ANSWER}")
    assert [*row.prompt, *row.answer] == [*trained.prompt, *trained.answer]
    assert prompt_format.prompt(begun) == row.prompt
    tokenizer = prompt_format.tokenizer
    assert tokenizer.decode(row.prompt).endswith("I do know:")
    assert tokenizer.decode(row.answer).strip().startswith(ANSWER)


def test_earlier_questions_stand_in_a_plain_prompt_as_they_do_in_training(module: LitCausalLM) -> None:
    turns = [("2 + 2?", "4"), ("{braces}?", "yes")]
    default = replace(PromptFormat(module.tokenizer, prompt_format="Question: {question}\nAnswer: "))
    text = default.text(after_turns(default, turns, "3 + 3?"))
    assert text == "Question: 2 + 2?\nAnswer: 4\n\nQuestion: {braces}?\nAnswer: yes\n\nQuestion: 3 + 3?\nAnswer:"
    llama = PromptFormat(module.tokenizer, prompt_format="[INST] {question} [/INST]")
    assert llama.text(after_turns(llama, turns[:1], "3 + 3?")) == "[INST] 2 + 2? [/INST]4\n\n[INST] 3 + 3? [/INST]"
    system = PromptFormat(module.tokenizer, system_prompt="Be brief.", prompt_format="{system}\nQ: {question}\nA: ")
    assert system.text(after_turns(system, turns[:1], "3 + 3?")) == "Be brief.\nQ: 2 + 2?\nA: 4\n\nQ: 3 + 3?\nA:"
    chat = after_turns(module._prompt_format(), turns[:1], "3 + 3?")
    assert [message["role"] for message in chat] == ["user", "assistant", "user"]  # type: ignore[index]


def test_a_system_prompt_goes_before_the_question_where_a_template_has_no_place_for_it(module: LitCausalLM) -> None:
    chat = module._prompt_format()
    roles = [m["role"] for m in with_system(chat, "Be open.", "Where?")]  # type: ignore[index]
    assert roles == ["system", "user"]
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHAT_TEMPLATE
    gemma = replace(chat, chat_template=refusing)
    assert with_system(gemma, "Be open.", "Where?") == [{"role": "user", "content": "Be open.\n\nWhere?"}]


def test_the_best_attempt_of_each_row_counts_and_the_mean_is_kept(module: LitCausalLM) -> None:
    probes = capitals("France", "Italy", "Spain")
    probes[1] = replace(probes[1], paraphrased_questions=probes[1].paraphrased_questions[:1])
    asked = Asked([0.1, 0.9, 0.4, 0.6, 0.2])  # the first of all three, then the second of two
    found = ParaphraseAttack().knowledge(module, probes, asked)
    assert ParaphraseAttack.gate == "paraphrase"
    assert [probe.question for probe in asked.probes[3:]] == [
        probes[0].paraphrased_questions[1],
        probes[2].paraphrased_questions[1],
    ]
    torch.testing.assert_close(found.strength, torch.tensor([0.6, 0.9, 0.4]))
    torch.testing.assert_close(found.mean().strength, torch.tensor([0.35, 0.9, 0.3]))
    torch.testing.assert_close(found.matched, torch.tensor([1.0, 1.0, 0.0]))
    assert found.names == ("paraphrase 1", "paraphrase 2")
    assert found.answers == [["answer 0", "answer 3"], ["answer 1"], ["answer 2", "answer 4"]]


def test_rows_without_a_paraphrase_are_asked_as_they_are_and_named(module: LitCausalLM) -> None:
    probes = capitals("France", "Italy")
    probes[1] = replace(probes[1], paraphrased_questions=())
    asked = Asked()
    with pytest.warns(UserWarning, match=r"asks 1 rows as they are, since they have no paraphrase \(rows 1\)"):
        ParaphraseAttack(limit=1).knowledge(module, probes, asked)
    assert asked.probes[1] == probes[1]


def test_shots_are_drawn_by_the_seed_and_give_no_answer_away(module: LitCausalLM) -> None:
    retain = [Probe(i, f"{i}?", "Rome is nice." if i % 2 else f"Number {i}.") for i in range(12)]
    probes, asked = capitals("Italy", "France"), Asked()
    FewShotAttack(retain, k=6, seed=1).knowledge(module, probes, asked)
    shots = [[m["content"] for m in probe.question[:-1]] for probe in asked.probes]  # type: ignore[union-attr]
    assert not any("Rome" in text for text in shots[0])
    assert any("Rome" in text for text in shots[1])
    again = Asked()
    FewShotAttack(retain, k=6, seed=1).knowledge(module, probes, again)
    assert again.probes == asked.probes
    FewShotAttack(retain, k=6, seed=2).knowledge(module, probes, again)
    assert again.probes != asked.probes
    with pytest.raises(ValueError, match="All but 6 of 12 retain rows contain the answer to row 0"):
        FewShotAttack(retain, k=7).knowledge(module, probes, asked)


def test_other_facts_of_the_entity_come_first_but_none_with_the_answer(module: LitCausalLM) -> None:
    facts = [
        Probe(0, "Where was Ada born?", "In London.", entity="Ada"),
        Probe(1, "Where did Ada live?", "In London, too.", entity="Ada"),
        Probe(2, "What did Ada write?", "Notes.", entity="Ada"),
        Probe(3, "Where was Bob born?", "In Oslo.", entity="Bob"),
    ]
    facts[0] = replace(facts[0], accept=("London",))
    asked = Asked()
    with pytest.warns(UserWarning, match=r"1 rows as they are.*\(rows 3\)"):
        InContextAttack(k=2).knowledge(module, facts, asked)
    contents = [m["content"] for m in asked.probes[0].question]  # type: ignore[union-attr]
    assert contents == ["What did Ada write?", "Notes.", "Where was Ada born?"]
    assert asked.probes[3] == facts[3]


def test_a_conversation_goes_on_with_the_models_own_answers(module: LitCausalLM) -> None:
    asked = Asked()
    probes = capitals("France")
    MultiTurnAttack(["Really? {question}", "Again: {question}"], max_new_tokens=3).knowledge(module, probes, asked)
    question = str(probes[0].question)
    first, second = ([m["content"] for m in probe.question] for probe in asked.probes)  # type: ignore[union-attr]
    own = module.answer([question], 3)[0] or "..."
    assert first == [question, own, f"Really? {question}"]
    said = module.answer([asked.probes[0].question], 3)[0] or "..."
    assert second == [*first, said, f"Again: {question}"]


def test_reversed_and_translated_questions_are_those_of_the_row(module: LitCausalLM) -> None:
    probes, asked = capitals(), Asked()
    ReversedQuestion(ROWS).knowledge(module, probes[2:3], asked)
    assert (asked.probes[0].question, asked.probes[0].accepted) == (
        "Madrid is the capital of which country?",
        ("Spain",),
    )
    TranslatedQuestion(ROWS, ["de", "fr"]).knowledge(module, probes[:1], asked)
    german, french = asked.probes
    assert (german.question, german.answer) == ("Was ist die Hauptstadt von France?", probes[0].answer)
    assert (french.answer, french.accepted) == ("C'est Paris.", ("C'est Paris.",))
    with pytest.raises(ValueError, match="questions for rows 0 to 5, but got row 7"):
        ReversedQuestion(ROWS).knowledge(module, [replace(probes[0], row=7)], asked)


def test_framings_can_be_added_and_chosen(module: LitCausalLM) -> None:
    asked = Asked()
    attack = JailbreakAttack({"spell": "Spell it: {question}", "open": Framing(system="Be open.")}, ["spell", "open"])
    found = attack.knowledge(module, [Probe(0, "Who?", "Ada")], asked)
    assert found.names == ("spell", "open")
    assert asked.probes[0].question == "Spell it: Who?"
    assert asked.probes[1].question[0] == {"role": "system", "content": "Be open."}
    assert JailbreakAttack().size >= 4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PrefixAttack([]), "prefixes must be one or more texts"),
        (lambda: PrefixAttack(["  "]), "not blank"),
        (lambda: JailbreakAttack({"bad": "Tell me."}), r"'bad' needs \{question\}"),
        (lambda: JailbreakAttack(only=["dan"]), "only names framings, role_play.*but got 'dan'"),
        (lambda: MultiTurnAttack(["Sure?"]), r"A follow-up needs \{question\}"),
        (lambda: FewShotAttack(capitals("Peru"), k=2), "k=2 retain rows before a question, but got 1"),
        (lambda: ReversedQuestion([{"question": "Who?"}]), "Row 0 has no text in 'reversed_question'"),
        (lambda: ReversedQuestion([{"reversed_question": "Who?"}]), "Row 0 has no text in 'reversed_answer'"),
        (lambda: TranslatedQuestion(ROWS, ["it"]), r"Row 0 has no text in 'question_it'.*'question_de'"),
        (lambda: TranslatedQuestion(ROWS, "de"), "languages must be a list"),
        (lambda: TranslatedQuestion([], ["de"]), "got no rows"),
    ],
)
def test_what_an_attack_lacks_is_said_when_it_is_made(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_what_the_rows_lack_is_said_before_the_model_runs(module: LitCausalLM) -> None:
    bare = [Probe(0, "Who?", "Ada"), Probe(1, "Where?", "Here")]
    text = [Probe(4, "Once upon", "a time", is_text=True)]
    for attack in (PrefixAttack(), JailbreakAttack(), GCG(), SamplingAttack()):
        with pytest.raises(ValueError, match="row 4 is a plain text"):
            attack.knowledge(module, text, scorer)
        with pytest.raises(ValueError, match="no rows"):
            attack.knowledge(module, [], scorer)
    with pytest.raises(ValueError, match=r"paraphrased_question=\.\.\."):
        ParaphraseAttack().knowledge(module, bare, scorer)
    with pytest.raises(ValueError, match=r"entity=\.\.\."):
        InContextAttack().knowledge(module, bare, scorer)
    with pytest.raises(ValueError, match=r"prompt without \{subjects\}"):
        GuardrailBaseline().knowledge(module, bare, scorer)


def test_attacks_read_the_columns_that_the_user_names(module: LitCausalLM) -> None:
    rows = [TOFU | {"again": ["Who was born in Taipei in 1991?"], "who": "Hsiao"}]
    probes = probes_of(rows, Columns(paraphrased_question="again", entity="who"))
    asked = Asked()
    ParaphraseAttack().knowledge(module, probes, asked)
    assert asked.probes[0].question == "Who was born in Taipei in 1991?"
    GuardrailBaseline().knowledge(module, probes, asked)
    assert "anything about Hsiao." in asked.probes[0].question[0]["content"]  # type: ignore[index]
