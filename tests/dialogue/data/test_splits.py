from __future__ import annotations

import random
from typing import Any

import pytest
from lightning.pytorch import LightningModule

from lightning_unlearn.dialogue.data.module import DialogueDataModule
from lightning_unlearn.dialogue.data.splitting import k_folds, split_dialogues
from lightning_unlearn.dialogue.dialogue import Dialogue, Turn
from tests.dialogue.fixtures import rated
from tests.helpers import trainer


def test_a_split_does_not_depend_on_the_order_but_on_the_seed() -> None:
    rows = rated(*([3] * 50))
    mixed = random.Random(0).sample(rows, 50)
    ids = [{dialogue.id for dialogue in part} for part in split_dialogues(rows)]
    assert [len(part) for part in ids] == [40, 5, 5]
    assert ids == [{dialogue.id for dialogue in part} for part in split_dialogues(mixed)]
    assert ids[2] != {dialogue.id for dialogue in split_dialogues(rows, seed=1).test}


def test_folds_have_each_dialogue_once_and_each_conversation_in_one() -> None:
    rows = [Dialogue(str(i), (Turn("user", "Hi"),), (3,), meta={"dialogue": str(i // 3)}) for i in range(30)]
    folds = k_folds(rows, 5)
    assert sorted(number for fold in folds for number in fold) == list(range(30))
    assert all(len({number // 3 for number in fold}) * 3 == len(fold) == 6 for fold in folds)
    for train, test in DialogueDataModule(rows).folds(5):
        assert not {row.meta["dialogue"] for row in train} & {row.meta["dialogue"] for row in test}
    with pytest.raises(ValueError, match="10 conversations for 11 folds"):
        k_folds(rows, 11)


class Listener(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.seen.append(batch)

    predict_step = test_step


def test_a_trainer_passes_dialogues_on_as_they_are() -> None:
    rows = [*rated(*([3] * 20)), Dialogue("new", (Turn("user", "Hi"),), meta={"a": "b"})]
    data, module = DialogueDataModule(rows, batch_size=8), Listener()
    trainer().test(module, data, verbose=False)
    assert [row for batch in module.seen for row in batch] == data.test
    module.seen.clear()
    trainer().predict(module, data)
    assert [len(batch) for batch in module.seen] == [8, 8, 5]
    assert module.seen[-1][-1] is rows[-1]  # the same object: nothing was copied


def test_data_without_ratings_can_be_rated_and_not_tested() -> None:
    data = DialogueDataModule([Dialogue("a", (Turn("user", "Hi"),))])
    assert len(data.predict_dataloader()) == 1
    with pytest.raises(ValueError, match="no rated dialogue to test: 0 of 1 have ratings"):
        data.test_dataloader()
