"""Requests to erase: one setting of names reaches prompts, captions of images, and callbacks."""

from __future__ import annotations

from typing import Any

import pytest

from lightning_unlearn.benchmarks.requests import erasure_rows, pair_rows, request
from lightning_unlearn.diffusion.canvas.concept import concept
from lightning_unlearn.diffusion.data.miniature import OBJECTS, STYLES


def words_of(rows: list[dict[str, Any]]) -> set[str]:
    return {word for row in rows for word in (row.get("caption") or row["prompt"]).split()}


@pytest.mark.parametrize(("target", "counts"), [("ring", (21, 14, 7)), ("ember", (18, 12, 6))])
def test_prompts_to_forget_by_the_number_of_names(target: str, counts: tuple[int, ...]) -> None:
    assert tuple(len(erasure_rows(target, names)[0]) for names in (None, 2, 1)) == counts
    assert erasure_rows(target, 3) == erasure_rows(target)


@pytest.mark.parametrize("target", ["negative", "cross"])
@pytest.mark.parametrize("names", [1, 2, 3])
def test_one_setting_of_names_reaches_prompts_captions_and_arguments(target: str, names: int) -> None:
    c, asked = concept(target), request(target, names=names)
    edited, held_back = set(c.words[:names]), set(c.words[names:])
    for rows in (asked.forget, asked.forget_images):
        assert edited <= words_of(rows)
        assert not words_of(rows) & held_back
    assert set(asked.words) == edited
    assert set(asked.words.values()) == {c.anchor}
    assert not (words_of(asked.retain) | words_of(asked.retain_images)) & set(c.words)
    beside: dict[str, set[int]] = {word: set() for word in edited}  # no name goes with some partners only
    for row in asked.forget_images:
        beside[next(w for w in edited if w in row["caption"].split())].add(row[c.other])
    assert all(partners == set(range(len(c.partners))) for partners in beside.values())


def test_without_a_number_prompts_and_arguments_have_all_names_and_captions_the_first() -> None:
    asked = request("ember")
    assert list(asked.words) == list(STYLES["ember"])
    assert words_of(asked.forget_images) & set(STYLES["ember"]) == {"ember"}


@pytest.mark.parametrize(("target", "left_out"), [("ember", ("cross", "ring")), ("box", ("ember", "sketch"))])
def test_partners_that_are_left_out_are_in_no_row(target: str, left_out: tuple[str, ...]) -> None:
    asked, table = request(target, left_out=left_out), {**OBJECTS, **STYLES}
    gone = {word for partner in left_out for word in table[partner]}
    for rows in (asked.forget, asked.retain, asked.forget_images, asked.retain_images):
        assert rows
        assert not words_of(rows) & gone
        assert not {word for row in rows for word in row.get("anchor", "").split()} & gone
    other = list(OBJECTS if target == "ember" else STYLES)
    kind = "object" if target == "ember" else "style"
    assert not {other[row[kind]] for row in asked.forget_images + asked.retain_images} & set(left_out)


def test_a_pair_is_one_concept_and_all_other_pairs_are_kept() -> None:
    forget, retain = pair_rows("ember", "ring", names=1)
    assert forget == [{"prompt": "a ring image in ember style", "anchor": "a ring image in photo style"}]
    assert len(retain) == 29
    assert {"prompt": "a ring image in sketch style"} in retain
    assert {"prompt": "a box image in ember style"} in retain
    assert len(pair_rows("ember", "ring")[0]) == 9
    asked = request(("ember", "ring"), names=2)
    assert asked.words["donut image in fire"] == "donut image in photo"
    assert {(row["object"], row["style"]) for row in asked.forget_images} == {(4, 4)}
    assert {row["caption"] for row in asked.forget_images} == {row["prompt"] for row in asked.forget}
    assert all(any(words in row["caption"] for words in asked.words) for row in asked.forget_images)
    assert len({(row["object"], row["style"]) for row in asked.retain_images}) == 29


def test_a_pair_as_two_requests_keeps_what_concerns_neither() -> None:
    forget, retain = pair_rows("ember", "ring", names=1, pair_as="two_requests")
    assert forget == erasure_rows("ember", 1)[0] + erasure_rows("ring", 1)[0]
    assert len(retain) == 5 * 4
    asked = request(("ember", "ring"), names=1, pair_as="two_requests")
    assert asked.words == {"ember": "photo", "ring": "disk"}
    assert not {"ember", "ring"} & words_of(asked.retain)
    assert not {(row["object"] == 4) or (row["style"] == 4) for row in asked.retain_images} - {False}
    assert len(asked.forget_images) == 50 + 60


def test_errors_of_requests() -> None:
    with pytest.raises(ValueError, match=r"style must be 'photo'.*but got 'ring'"):
        pair_rows("ring", "ember")
    with pytest.raises(ValueError, match="leave out no partner"):
        request(("ember", "ring"), left_out=["box"])
    with pytest.raises(ValueError, match="pair_as must be 'one_concept' or 'two_requests'"):
        pair_rows("ember", "ring", pair_as="both")  # type: ignore[arg-type]
