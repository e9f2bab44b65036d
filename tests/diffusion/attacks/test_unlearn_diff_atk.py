"""UnlearnDiffAtk as a callback, on a pipeline of random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentError, ArgumentParser
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader

from lightning_unlearn import ESD, LitTextToImage
from lightning_unlearn.core.distributed import Replica
from lightning_unlearn.diffusion.unlearn_diff_atk import UnlearnDiffAtk
from tests.diffusion.attacks.told import PROMPTS, Told, attack, never, outcome
from tests.diffusion.tiny import prompts as prompt_data
from tests.diffusion.tiny import trainer
from tests.helpers import save_resumable

# In a Trainer


NO_IMAGES: Any = [{"input_ids": torch.zeros(1)}]


def callback(judge: Any, **options: Any) -> UnlearnDiffAtk:
    own = {k: options.pop(k) for k in ("every_n_epochs", "targets", "base") if k in options}
    return UnlearnDiffAtk(attack(judge, **({"iterations": 1} | options)), PROMPTS, **own)


def test_a_run_is_attacked_before_during_and_after(tiny_sd: Path, tmp_path: Path) -> None:
    judge = Told(lambda score, seen: torch.ones(len(score)) if seen < 8 else torch.zeros(len(score)))
    monitor, logger = callback(judge, every_n_epochs=1, levels=1), CSVLogger(tmp_path)
    method = ESD(steps=2)
    run = trainer(method, monitor, logger=logger, max_epochs=2)
    module = LitTextToImage(str(tiny_sd), lr=1e-3)
    run.fit(module, prompt_data())
    assert [e.metrics["asr"] for e in monitor.history] == [1.0, 0.0, 0.0]
    assert [e.hit_means for e in monitor.history] == ["concept shown"] * 3
    assert [[example.hit for example in e.examples] for e in monitor.history] == [[True] * 4, [False] * 4, [False] * 4]
    assert {"eval/pre_asr", "eval/post_asr", "eval/asr"} <= run.callback_metrics.keys()
    folders = sorted(path.name for path in Path(logger.log_dir, "unlearn_diff_atk").iterdir())
    assert folders == ["0-step-0", "1-step-2", "2-step-4"]
    for name in folders:
        folder = Path(logger.log_dir, "unlearn_diff_atk", name)
        assert len((folder / "prompts.jsonl").read_text().splitlines()) == 5
        assert json.loads((folder / "summary.json").read_text())["prompts"] == 4
    text = Path(logger.log_dir, "metrics.csv").read_text()
    assert "eval/asr" in text
    assert "van gogh" in Path(logger.log_dir, "adversarial_prompts.csv").read_text()
    plain = ESD(steps=2)
    other = LitTextToImage(str(tiny_sd), lr=1e-3)
    trainer(plain, max_epochs=2).fit(other, prompt_data())
    for one, two in zip(module.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)  # an attack changes nothing
    assert method.passes.state_dict() == plain.passes.state_dict()


def test_targets_of_a_resumed_run_are_those_of_its_start(tiny_sd: Path, tmp_path: Path) -> None:
    judge = Told(lambda score, seen: torch.tensor([1, 0, 1, 1]) if seen == 0 else torch.zeros(len(score)))
    monitor = callback(judge, levels=1, every_n_epochs=0)
    run = trainer(ESD(steps=2), monitor, default_root_dir=tmp_path, max_epochs=1)
    run.fit(LitTextToImage(str(tiny_sd)), prompt_data())
    assert [example.input for example in monitor.history[0].examples] == [PROMPTS[i] for i in (0, 2, 3)]
    save_resumable(run, tmp_path / "half.ckpt")
    resumed = callback(never(), levels=1, every_n_epochs=0)
    run = trainer(ESD(steps=2), resumed, default_root_dir=tmp_path, max_epochs=2)
    run.fit(LitTextToImage(str(tiny_sd)), prompt_data(), ckpt_path=tmp_path / "half.ckpt")
    assert len(resumed.history) == 3
    assert monitor._images is not None
    assert resumed._images is not None
    assert torch.equal(resumed._images, monitor._images)
    assert resumed.history[0] == monitor.history[0]


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_it_attacks_in_validate_and_test_under_inference_mode(stage: str, tiny_sd: Path, tmp_path: Path) -> None:
    judge = Told(lambda score, seen: torch.ones(len(score)) if seen < 4 else torch.zeros(len(score)))
    monitor = callback(judge, base=str(tiny_sd))
    run = trainer(monitor, default_root_dir=tmp_path, limit_val_batches=1)
    module, loader = LitTextToImage(str(tiny_sd)), DataLoader(NO_IMAGES)
    (metrics,) = getattr(run, stage)(module, loader, verbose=False)
    assert metrics == {"eval/pre_asr": 0.0, "eval/post_asr": 0.0, "eval/asr": 0.0}
    assert monitor.result is not None
    assert [r.steps for r in monitor.result.prompts] == [2] * 4
    assert (tmp_path / "unlearn_diff_atk" / "0-step-0" / "summary.json").is_file()
    assert any(p.requires_grad for p in module.parameters())


def test_processes_share_the_prompts_and_find_what_one_finds(
    tiny_sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each process in its turn, with what the other gathers handed over."""
    from lightning_unlearn.diffusion import unlearn_diff_atk as prompt_attack

    def tested(folder: Path) -> UnlearnDiffAtk:
        monitor = callback(never(), base=None, optimizer="random")
        trainer(monitor, default_root_dir=folder).test(
            LitTextToImage(str(tiny_sd)), DataLoader(NO_IMAGES), verbose=False
        )
        return monitor

    whole = tested(tmp_path / "one").result
    assert whole is not None
    parts: list[Any] = []
    for number in (1, 0):
        monkeypatch.setattr(prompt_attack, "replica", lambda trainer, n=number: Replica(n, 2))
        monkeypatch.setattr(prompt_attack, "gather_objects", lambda own: (parts.append(own), parts[::-1])[1])
        both = tested(tmp_path / "two").result
    assert both is not None
    order = [0, 2, 1, 3]
    assert outcome(both) == [outcome(whole)[i] for i in order]
    folder = tmp_path / "two" / "unlearn_diff_atk" / "0-step-0"
    assert json.loads((folder / "summary.json").read_text())["prompts"] == 4
    counts = [len((f / "prompts.jsonl").read_text().splitlines()) for f in (folder, folder / "process-1")]
    assert counts == [3, 3]


def test_the_base_model_of_p4d_is_loaded_once(tiny_sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning_unlearn.diffusion import unlearn_diff_atk

    loaded, load = [], unlearn_diff_atk.load_frozen
    monkeypatch.setattr(unlearn_diff_atk, "load_frozen", lambda model: (loaded.append(model), load(model))[1])
    judge = Told(lambda score, seen: torch.ones(len(score)) if seen < 4 else torch.zeros(len(score)))
    monitor = callback(judge, objective="p4d", levels=1, base=str(tiny_sd))
    trainer(ESD(steps=2), monitor, default_root_dir=tmp_path, max_epochs=2).fit(
        LitTextToImage(str(tiny_sd)), prompt_data()
    )
    assert [evaluation.metrics["asr"] for evaluation in monitor.history] == [0.0] * 3
    assert loaded == [str(tiny_sd)]


def parsed(**arguments: Any) -> UnlearnDiffAtk:
    """As a YAML file gives it."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--callback", type=UnlearnDiffAtk)
    spec = {"class_path": "lightning_unlearn.UnlearnDiffAtk", "init_args": {"prompts": ["a"]} | arguments}
    return parser.instantiate(parser.parse_object({"callback": spec})).callback


def test_yaml_gives_the_attack_and_a_misspelt_option_fails_at_once() -> None:
    attack = {"judge": "miniature-style", "concept": "ember", "search": {"tokens": 3}, "batch_size": 2}
    monitor = parsed(attack=attack, every_n_epochs=0)
    assert (monitor.attack.search.tokens, monitor.attack.batch_size, monitor.every_n_epochs) == (3, 2, 0)
    assert monitor.attack.judge == "miniature-style"  # loaded when the run is set up
    assert monitor.attack.load_judge().name == "miniature-style"
    judge = {"class_path": "lightning_unlearn.MiniatureJudge", "init_args": {"concept": "object"}}
    assert parsed(attack=attack | {"judge": judge, "concept": ["ring", "box"]}).attack.concepts == ["ring", "box"]
    for wrong in ({"search": {"tokenz": 3}}, {"batchsize": 2}, {"search": {"tokens": -1}}):
        with pytest.raises((ArgumentError, ValueError), match="|".join(["tokenz", "batchsize", "tokens must be"])):
            parsed(attack=attack | wrong)
    with pytest.raises((ArgumentError, ValueError), match="tokens"):
        parsed(attack=attack, tokens=3)


def test_without_targets_there_is_nothing_to_compare_with(tiny_sd: Path, tmp_path: Path) -> None:
    run = trainer(callback(never()), default_root_dir=tmp_path)
    with pytest.raises(MisconfigurationException, match="compares with images of the concept, and has none here"):
        run.test(LitTextToImage(str(tiny_sd)), DataLoader(NO_IMAGES), verbose=False)
    fit = trainer(ESD(steps=2), callback(never()), default_root_dir=tmp_path)
    with pytest.raises(MisconfigurationException, match="in none of the images"):
        fit.fit(LitTextToImage(str(tiny_sd)), prompt_data())
    with pytest.raises(ValueError, match="give its folder as base"):
        callback(never(), objective="p4d")
    with pytest.raises(ValueError, match="tokens must be at least 0"):
        callback(never(), tokens=-1)
