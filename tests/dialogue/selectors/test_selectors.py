from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from lightning_unlearn.dialogue.dialogue import Dialogue, Turn
from lightning_unlearn.dialogue.selectors.balanced import LabelBalanced
from lightning_unlearn.dialogue.selectors.bm25 import BM25Selector
from lightning_unlearn.dialogue.selectors.dense import DenseSelector, MMRSelector, supply_encoder
from lightning_unlearn.dialogue.selectors.random import RandomSelector, StratifiedSelector
from lightning_unlearn.dialogue.selectors.ranked import RankedSelector
from lightning_unlearn.dialogue.selectors.selector import Selector
from tests.dialogue.fixtures import rated, texts


def counts(lines: list[str]) -> list[list[int]]:
    return [[line.count(letter) for letter in "abcdrow0123456789"] for line in lines]


SELECTORS: dict[str, Any] = {
    "random": RandomSelector,
    "stratified": StratifiedSelector,
    "bm25": BM25Selector,
    "dense": lambda: DenseSelector(counts),
    "mmr": lambda: MMRSelector(counts),
    "balanced": lambda: LabelBalanced(BM25Selector()),
}


@pytest.fixture(params=SELECTORS)
def selector(request: pytest.FixtureRequest) -> RankedSelector:
    return SELECTORS[request.param]()


def test_neither_the_query_nor_its_conversation_is_chosen(selector: RankedSelector) -> None:
    pool = rated(3, 3, 3, 2, 4, 3, 5, 3)
    turn = replace(pool[3], id="3-1", meta={"dialogue": "3"})
    selector.fit([*pool, turn])
    assert isinstance(selector, Selector)
    for query in (pool[3], turn):
        assert sorted(selector.select(query, 99)) == [0, 1, 2, 4, 5, 6, 7]  # also: k larger than the pool


def test_a_choice_depends_on_the_query_alone_and_grows_with_k(selector: RankedSelector) -> None:
    pool, queries = rated(3, 3, 3, 2, 4, 3, 5, 3), rated(3, 3, 3, start=20)
    selector.fit(pool)
    first = [selector.select(query, 4) for query in queries]
    assert first == [selector.select(query, 4) for query in reversed(queries)][::-1]
    assert [selector.select(query, 2) for query in queries] == [chosen[:2] for chosen in first]
    assert selector.select(queries[0], 0) == []


def test_a_selector_says_what_is_missing() -> None:
    with pytest.raises(RuntimeError, match="RandomSelector has no pool"):
        RandomSelector().select(rated(3)[0], 1)
    with pytest.raises(ValueError, match="The pool has no dialogues"):
        RandomSelector().fit([])
    with pytest.raises(ValueError, match="'x' of the pool has no ratings"):
        RandomSelector().fit([Dialogue("x", (Turn("user", "Hi"),))])


def test_random_choices_are_those_of_the_seed_and_the_id() -> None:
    pool, queries = rated(*([3] * 60)), rated(3, 3, start=90)
    chosen = {}
    for seed in (0, 1):
        selector = RandomSelector(seed)
        selector.fit(pool)
        chosen |= {(seed, query.id): tuple(selector.select(query, 4)) for query in queries}
    assert len(set(chosen.values())) == 4
    selector = RandomSelector()
    selector.fit(pool)
    assert tuple(selector.select(replace(queries[0], turns=(Turn("user", "else"),)), 4)) == chosen[0, "90"]


def test_stratified_and_balanced_show_each_rating_first() -> None:
    pool = rated(3, 3, 3, 3, 3, 3, 3, 3, 2, 5)
    for selector in (StratifiedSelector(), LabelBalanced(RandomSelector())):
        selector.fit(pool)
        for query in rated(3, 3, 3, start=50):
            assert {pool[number].majority for number in selector.select(query, 3)} == {2, 3, 5}


def test_balanced_keeps_the_order_within_a_rating() -> None:
    low = replace(texts("gamma")[0], id="low", ratings=(1.0,))
    selector = LabelBalanced(BM25Selector())
    selector.fit([low, *texts("alpha beta", "alpha delta", "beta gamma delta")])
    query = Dialogue("q", (Turn("user", "alpha beta"),))
    assert selector.selector.select(query, 4) == [1, 2, 3, 0]
    assert selector.select(query, 4) == [1, 0, 2, 3]


def test_bm25_scores_are_those_of_the_formula() -> None:
    """ln 1.6 f / (f + 1.5 (0.25 + 0.75 L / L_mean)); "a" has one letter, so that lengths are 3, 4 and 3."""
    selector = BM25Selector()
    pool = texts("x")
    selector.fit(pool)
    # As plain texts, without the line of who speaks.
    selector.pool = [_Plain(text) for text in ("the cat sat", "the dog sat down", "a cat and a dog")]  # type: ignore
    selector.prepare()
    scores = selector.scores("cat sat")
    torch.testing.assert_close(scores, torch.tensor([0.39372, 0.17248, 0.19686]), atol=1e-5, rtol=0)
    assert scores.argsort(descending=True).tolist() == [0, 2, 1]
    assert selector.scores("zebra").tolist() == [0, 0, 0]


class _Plain:
    def __init__(self, text: str) -> None:
        self.text = text


def test_bm25_reads_scripts_without_spaces_by_character() -> None:
    selector = BM25Selector()
    selector.fit(texts("今天天气怎么样", "我想预订一家餐厅", "播放爵士乐", "レストランを予約したい", "จองร้านอาหาร"))
    asked = ("我要订餐厅", "来点爵士乐", "予約をお願いします", "ร้านอาหาร", "天气")
    found = [selector.select(Dialogue("q", (Turn("user", text),)), 1) for text in asked]
    assert found == [[1], [2], [3], [4], [0]]


def test_bm25_of_text_without_words() -> None:
    selector = BM25Selector()
    selector.fit(texts("你好", "?!", "hello there"))
    assert selector.select(Dialogue("q", (Turn("user", "hello"),)), 1) == [2]
    assert len(selector.select(Dialogue("q", (Turn("user", "。"),)), 3)) == 3


def test_dense_selection_by_cosine_and_inner_product() -> None:
    pool = texts("ab", "aaaabbbb", "bbb")
    query = Dialogue("q", (Turn("user", "ab"),))
    vectors = {line: vector for line, vector in zip((d.text for d in pool), ([1, 1], [4, 4.5], [0, 3]), strict=True)}
    encode = lambda lines: [vectors.get(line, [1, 1]) for line in lines]  # noqa: E731
    for sim, order in (("cos", [0, 1, 2]), ("dot", [1, 2, 0])):
        selector = DenseSelector(encode, sim=sim)  # type: ignore[arg-type]
        selector.fit(pool)
        assert selector.select(query, 3) == order


def test_mmr_takes_what_is_unlike_the_examples_it_has() -> None:
    vectors = {"q": [1.0, 0.0], "a": [1.0, 0.05], "b": [1.0, 0.06], "c": [0.8, -0.6]}
    encode = lambda lines: [vectors[line.split()[-1]] for line in lines]  # noqa: E731
    pool, query = texts("a", "b", "c"), Dialogue("q", (Turn("user", "q"),))
    orders = {}
    for trade_off in (1.0, 0.5):
        selector = MMRSelector(encode, trade_off)
        selector.fit(pool)
        orders[trade_off] = selector.select(query, 3)
    assert orders == {1.0: [0, 1, 2], 0.5: [0, 2, 1]}


def test_an_encoder_must_give_a_vector_for_each_text() -> None:
    with pytest.raises(ValueError, match=r"shape \(3, D\), but gave the shape \(1, 2\)"):
        DenseSelector(lambda lines: [[1.0, 2.0]]).fit(texts("a", "b", "c"))
    with pytest.raises(ValueError, match="DenseSelector has no encoder"):
        DenseSelector().fit(texts("a"))
    selector = LabelBalanced(DenseSelector())
    supply_encoder(selector, counts)
    selector.fit(texts("a", "b"))
    own = DenseSelector(counts)
    supply_encoder(own, len)  # type: ignore[arg-type]
    assert own.encoder is counts
