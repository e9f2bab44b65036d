"""A linear probe on a judge's hidden states: its fit against scikit-learn's, its folder, what it refuses."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_unlearn import (
    Dialogue,
    DialogueJudge,
    JSONLDialogues,
    JudgePrompt,
    LitCausalLM,
    LogitExtractor,
    Turn,
    control_dialogues,
)
from lightning_unlearn import ProbeExtractor as Probe
from lightning_unlearn.core.layers import decoder_layers
from lightning_unlearn.core.lightning import MisconfigurationException
from lightning_unlearn.dialogue.hidden_states import mean_states
from lightning_unlearn.dialogue.probe import PROBE_FILE
from lightning_unlearn.dialogue.reply_information import reply_information
from lightning_unlearn.dialogue.soundness import Soundness, known_bad
from tests.dialogue.judges import SCALE, dialogues, judge_of, tiny_lm_of
from tests.dialogue.uss_files import write_jsonl
from tests.helpers import trainer


def states_of(judge: DialogueJudge, rows: list[Dialogue]) -> torch.Tensor:
    """Means of all hidden states, each prompt alone, shape (N, L, D)."""
    judge.eval()
    with torch.no_grad():
        read = [
            judge.lm.model(input_ids=torch.tensor([prompt.ids]), output_hidden_states=True).hidden_states
            for prompt in judge.prompts(rows)
        ]
    return torch.stack([torch.stack([state[0].mean(0) for state in states]) for states in read]).double()


def scores(judge: DialogueJudge, rows: list[Dialogue]) -> torch.Tensor:
    return torch.tensor([rating.score for rating in judge.rate(rows)])


def test_ratings_are_those_of_ridge_regression_on_standardized_states(tiny_lm: Path) -> None:
    from sklearn.linear_model import Ridge

    rows, others = dialogues(20), dialogues(7, first=100)
    judge = judge_of(tiny_lm, extractor=Probe(layer=1, alphas=(7.0,)), max_tokens=400).fit_probe(rows)
    fitted, rated = states_of(judge, rows)[:, 1], states_of(judge, others)[:, 1]
    center, scale = fitted.mean(0), fitted.std(0)
    ridge = Ridge(7.0).fit(((fitted - center) / scale).numpy(), [row.mean for row in rows])
    expected = torch.tensor(ridge.predict(((rated - center) / scale).numpy()))
    assert expected.std() > 0.2
    assert torch.all((expected > 1) & (expected < 5))
    torch.testing.assert_close(scores(judge, others).double(), expected, atol=1e-4, rtol=0)
    assert [r.label for r in judge.rate(others)] == [str(round(float(value))) for value in expected]
    assert judge.shots == 0


def test_layer_and_penalty_are_those_with_the_least_leave_one_out_error(tiny_lm: Path) -> None:
    rows = [Dialogue(row.id, row.turns, (1.0 + (3 * number) % 5,)) for number, row in enumerate(dialogues(14, first=3))]
    alphas = (0.1, 10.0, 1000.0)
    judge = judge_of(tiny_lm, extractor=Probe(alphas=alphas)).fit_probe(rows)
    probe = judge.extractor.probe  # type: ignore[attr-defined]
    states = states_of(judge, rows)
    states = (states - states.mean(0)) / states.std(0).clamp_min(1e-8)
    human = torch.tensor([row.mean for row in rows], dtype=torch.float64)
    errors = {
        (layer, alpha): leave_one_out(states[:, layer], human, alpha)
        for layer in range(states.shape[1])
        for alpha in alphas
    }
    best = min(errors, key=lambda setting: errors[setting])
    assert (probe.layer, probe.alpha) == best
    assert probe.loo_mse == pytest.approx(errors[best], rel=1e-3)
    assert probe.dialogues == 14


def leave_one_out(x: torch.Tensor, y: torch.Tensor, alpha: float) -> float:
    """Mean squared error of predictions of each row from a fit to the others."""
    errors = []
    for row in range(len(y)):
        others = torch.arange(len(y)) != row
        center = x[others].mean(0)
        a = x[others] - center
        gram = a.T @ a + alpha * torch.eye(a.shape[1], dtype=a.dtype)
        weight = torch.linalg.solve(gram, a.T @ (y[others] - y[others].mean()))
        errors.append(float(y[row] - y[others].mean() - (x[row] - center) @ weight) ** 2)
    return sum(errors) / len(errors)


@pytest.mark.parametrize("layers", [None, [0], [1], [-1], [1, 2], [1, 1]])
def test_mean_states_are_those_of_whole_passes_and_stop_where_nobody_reads_on(
    tiny_lm: Path, layers: list[int] | None
) -> None:
    judge = judge_of(tiny_lm)
    rows = dialogues(5)
    expected = states_of(judge, rows)
    expected = expected if layers is None else expected[:, layers]
    called: list[int] = []
    blocks = decoder_layers(judge.lm.model)[1]
    for number, block in enumerate(blocks):
        block.register_forward_pre_hook(lambda *_, number=number: called.append(number))
    found = mean_states(judge.lm, [prompt.ids for prompt in judge.prompts(rows)], layers)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-4)
    assert len(blocks) == 2
    assert set(called) == ({0} if layers in ([0], [1], [1, 1]) else {0, 1})


@pytest.mark.parametrize("family", ["Mamba", "GPT2", "Mixtral", "OPT"])
def test_mean_states_are_the_same_alone_and_together_in_other_families(family: str) -> None:
    import transformers

    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 2}
    sizes |= {"intermediate_size": 32, "ffn_dim": 32, "word_embed_proj_dim": 16}
    config = getattr(transformers, f"{family}Config")(vocab_size=100, **sizes)
    torch.manual_seed(0)
    lm = LitCausalLM(transformers.AutoModelForCausalLM.from_config(config))
    rows = [[5, 6, 7, 8, 9], [10, 11], [12, 13, 14]]
    every = mean_states(lm, rows)
    assert every.shape[1] == 4
    for layer in range(4):
        alone = torch.cat([mean_states(lm, [row], [layer]) for row in rows])
        torch.testing.assert_close(alone[:, 0], every[:, layer], atol=1e-6, rtol=1e-5)


def test_a_folder_without_weights_rates_as_the_judge_did(long_lm: Path, tmp_path: Path) -> None:
    judge = DialogueJudge(LitCausalLM(long_lm), prompt=JudgePrompt(SCALE, max_length=300), extractor=Probe())
    judge.fit_probe(dialogues(12)).save_probe(tmp_path / "probe")
    assert sum(file.stat().st_size for file in (tmp_path / "probe").iterdir()) < 20_000
    opened = DialogueJudge(tmp_path / "probe")
    assert opened.prompt.max_length == 300
    assert opened.task == SCALE
    others = dialogues(6, first=50)
    assert torch.equal(scores(opened, others), scores(judge, others))
    assert opened.extractor.digest == judge.extractor.digest  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="fitted with another prompt"):
        DialogueJudge(tmp_path / "probe", prompt=JudgePrompt(SCALE, max_length=200))
    by_logits = DialogueJudge(tmp_path / "probe", task=SCALE, extractor=LogitExtractor())
    assert by_logits.rate(others)[0].probs is not None


def test_a_whole_folder_holds_the_probe_too(tiny_lm: Path, tmp_path: Path) -> None:
    judge = judge_of(tiny_lm, extractor=Probe()).fit_probe(dialogues(12))
    judge.save_pretrained(tmp_path / "whole")
    assert json.loads((tmp_path / "whole" / PROBE_FILE).read_text())["model"] == "."
    others = dialogues(6, first=50)
    (tmp_path / "whole").rename(tmp_path / "moved")
    assert torch.allclose(scores(DialogueJudge(tmp_path / "moved"), others), scores(judge, others), atol=1e-5)
    judge.lm.hparams["model"] = None
    judge.lm.model.config._name_or_path = ""
    with pytest.raises(ValueError, match="object without a name"):
        judge.save_probe(tmp_path / "probe")


@pytest.mark.parametrize("what", ["weights", "fewer layers"])
def test_a_probe_of_other_weights_is_refused(tiny_lm: Path, tmp_path: Path, what: str) -> None:
    judge = judge_of(tiny_lm, extractor=Probe(layer=2 if what == "fewer layers" else None)).fit_probe(dialogues(12))
    lm = tiny_lm_of(tiny_lm, seed=1)
    if what == "fewer layers":
        decoder_layers(lm.model)[1].pop(1)
        lm.model.config.num_hidden_layers = 1
    other = DialogueJudge(lm, prompt=judge.prompt, extractor=Probe.of(judge.extractor.probe))  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="fitted to the hidden states of another model"):
        other.rate(dialogues(2))


def test_ratings_stay_on_the_scale(tiny_lm: Path) -> None:
    rows = [Dialogue(row.id, row.turns, (40.0 if number % 2 else -40.0,)) for number, row in enumerate(dialogues(10))]
    judge = judge_of(tiny_lm, extractor=Probe(alphas=(1e-6,)))
    with pytest.raises(ValueError, match="has the rating -40, but the task 'scale' goes from 1 to 5"):
        judge.fit_probe(rows)
    judge.extractor.fit(judge, rows)  # type: ignore[attr-defined]
    assert set(scores(judge, rows).tolist()) == {1.0, 5.0}


def test_a_trainer_fits_it_to_the_pool_of_its_data(long_lm: Path, tmp_path: Path) -> None:
    data = JSONLDialogues(write_jsonl(tmp_path / "rated.jsonl", range(60)), batch_size=8)
    judge = DialogueJudge(LitCausalLM(long_lm), extractor=Probe())
    (metrics,) = trainer().test(judge, data, verbose=False)
    assert judge.extractor.probe.dialogues == len(data.pool) > 8  # type: ignore[attr-defined]
    assert -1 <= metrics["test/spearman"] <= 1
    by_hand = DialogueJudge(LitCausalLM(long_lm), extractor=Probe()).fit_probe(data.pool)
    held_out = dialogues(4, first=70)
    assert torch.allclose(scores(by_hand, held_out), scores(judge, held_out), atol=1e-5)
    with pytest.raises(MisconfigurationException, match="ProbeExtractor has a closed form"):
        trainer().fit(judge, data)


def test_the_example_of_a_probe_runs_from_the_command_line(
    long_lm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from lightning_unlearn.cli.fit import UnlearnCLI

    rows = [
        {
            "id": row.id,
            "messages": [{"role": turn.role, "content": turn.text} for turn in row.turns],
            "ratings": row.ratings,
        }
        for row in with_replies(60)
    ]
    (tmp_path / "rated.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    example = Path(__file__).parents[2] / "examples" / "judge_probe.yaml"
    options = [f"--model.init_args.model={long_lm}", f"--data.init_args.path={tmp_path / 'rated.jsonl'}"]
    options += ["--trainer.accelerator=cpu", "--trainer.logger=false", f"--trainer.default_root_dir={tmp_path}"]
    cli = UnlearnCLI(["test", "--config", str(example), *options])
    assert "test/spearman" in capsys.readouterr().out
    assert cli.model.extractor.probe.soundness is not None
    assert cli.model.extractor.probe.dialogues == len(cli.datamodule.pool)


def test_what_cannot_be_fitted_says_so(tiny_lm: Path, tmp_path: Path) -> None:
    judge = judge_of(tiny_lm, extractor=Probe())
    with pytest.raises(RuntimeError, match="probe is not fitted"):
        judge.rate(dialogues(2))
    with pytest.raises(RuntimeError, match="probe is not fitted"):
        judge.save_pretrained(tmp_path) or judge._save_probe(judge.extractor, tmp_path, ".")  # type: ignore[arg-type, func-returns-value]
    with pytest.raises(ValueError, match="at least 8 rated dialogues"):
        judge.fit_probe(dialogues(7))
    with pytest.raises(ValueError, match=r"not all the same.*\[3.0\]"):
        judge.fit_probe([Dialogue(row.id, row.turns, (3.0,)) for row in dialogues(9)])
    with pytest.raises(TypeError, match="LogitExtractor, which has nothing to fit"):
        judge_of(tiny_lm).fit_probe(dialogues(9))
    with pytest.raises(ValueError, match="alphas is empty"):
        Probe(alphas=())
    shown = judge_of(tiny_lm, extractor=Probe(), pool=dialogues(9), shots=2).fit_probe(dialogues(9, first=20))
    with pytest.raises(ValueError, match="shows 2 examples"):
        shown.save_pretrained(tmp_path / "shown")


@pytest.mark.parametrize("content", ["{", "[]", '{"model": ".", "prompt": {}, "probe": {}}'])
def test_a_damaged_file_is_named(tiny_lm: Path, tmp_path: Path, content: str) -> None:
    judge = judge_of(tiny_lm, extractor=Probe()).fit_probe(dialogues(12))
    judge.save_pretrained(tmp_path)
    (tmp_path / PROBE_FILE).write_text(content)
    with pytest.raises(ValueError, match=r"probe.json is no probe of this library"):
        DialogueJudge(tmp_path)


def test_the_command_fits_saves_and_opens_it(long_lm: Path, tmp_path: Path) -> None:
    from lightning_unlearn.cli.judge import judge as command

    files: dict[str, Any] = {
        "data": str(write_jsonl(tmp_path / "data.jsonl", range(100, 106))),
        "device": "cpu",
        "max_length": 900,
    }
    pool = str(write_jsonl(tmp_path / "pool.jsonl", range(30)))
    out = tmp_path / "out"
    summary = command(str(long_lm), route="probe", pool=pool, output_dir=str(out), **files)
    assert summary["settings"]["shots"] == 0
    first = (out / "ratings.jsonl").read_text()
    again = tmp_path / "again"
    summary = command(str(out / "probe"), output_dir=str(again), **files)
    assert summary["settings"]["route"] == "probe"
    assert (again / "ratings.jsonl").read_text() == first
    with pytest.raises(ValueError, match="fitted to rated dialogues"):
        command(str(long_lm), route="probe", output_dir=str(tmp_path / "no"), **files)
    with pytest.raises(ValueError, match="folder of a fitted probe"):
        command(str(out / "probe"), pool=pool, output_dir=str(tmp_path / "no"), **files)
    with pytest.raises(ValueError, match="hidden states of a local model"):
        command("judge", route="probe", pool=pool, endpoint="openai", output_dir=str(tmp_path / "no"), **files)


def with_replies(count: int, first: int = 0) -> list[Dialogue]:
    names = ["Peru", "Italy", "Japan and Spain", "Cuba", "Norway, Chile, Nepal"]
    return [
        Dialogue(
            str(i),
            tuple(
                Turn("user" if turn % 2 == 0 else "assistant", f"{names[(i * 3 + turn) % 5]} {i + turn}")
                for turn in range(2 + 2 * (i % 3))
            ),
            (1.0 + i % 5, 2.0),
        )
        for i in range(first, first + count)
    ]


def test_known_bad_versions_are_learned_beside_the_ratings(tiny_lm: Path, tmp_path: Path) -> None:
    rows, others = with_replies(24), with_replies(24, first=60)
    plain = judge_of(tiny_lm, extractor=Probe(layer=1, alphas=(10.0,))).fit_probe(rows)
    judge = judge_of(tiny_lm, extractor=Probe(layer=1, alphas=(10.0,), known_bad=True)).fit_probe(rows)
    sound = judge.extractor.probe.soundness  # type: ignore[attr-defined]
    states = states_of(judge, others)[:, sound.layer]
    values = ((states - torch.tensor(sound.center)) / torch.tensor(sound.scale)).clamp(-8, 8)
    least = torch.tensor([min(nats) for nats in reply_information(judge.lm, others)], dtype=torch.float64)
    by_reply = sound.information_weight * least.sign() * least.abs().log1p() + sound.information_bias
    by_state = values @ torch.tensor(sound.weight, dtype=torch.float64) + sound.bias
    assert by_reply.std() > 0.1
    p = ((by_state + by_reply) / 2).sigmoid()
    expected = 1 + p * (scores(plain, others).double() - 1)
    torch.testing.assert_close(scores(judge, others).double(), expected, atol=1e-4, rtol=0)
    empty = control_dialogues(others)["empty"]
    assert scores(judge, empty).mean() < scores(judge, others).mean() - 0.3
    assert (plain.extractor.knows_bad, judge.extractor.knows_bad) == (False, True)  # type: ignore[attr-defined]
    judge.save_pretrained(tmp_path)
    assert torch.allclose(scores(DialogueJudge(tmp_path), empty), scores(judge, empty), atol=1e-5)


def test_soundness_without_a_reply_comes_from_the_state_alone() -> None:
    sound = Soundness(0, (2.0,), 1.0, (3.0,), (4.0,), information_weight=0.5, information_bias=-1.0)
    found = sound.probability(
        torch.full((3, 1), 7.0, dtype=torch.float64), [[2.0, math.e - 1, 5.0], [-(math.e - 1)], []]
    )
    assert found.tolist() == pytest.approx([1 / (1 + math.exp(-logit)) for logit in (1.25, 0.75, 3.0)])


def test_known_bad_versions_are_of_all_kinds_and_of_short_and_whole_dialogues() -> None:
    rows = [*with_replies(8), *dialogues(1, first=90)]
    rows.append(Dialogue("asked", (Turn("user", "Hi"),), (3.0,)))
    sound, bad = known_bad(rows)
    assert sound[:9] == rows[:9]
    assert [row.id for row in sound[9:]] == [row.id for row in rows[:9]]
    for head, whole in zip(sound[9:], rows, strict=False):
        assert head.turns == whole.turns[: len(head.turns)]
        assert head.turns[-1].role == "assistant"
    assert {2, 4} <= {len(head.turns) for head in sound[9:17]} <= {2, 4, 6}
    assert not {(part.id, part.turns) for part in bad} & {(part.id, part.turns) for part in sound}
    assert len(bad) == 4 * 9 + 9
    assert "asked" not in {part.id for part in [*sound, *bad]}


def test_known_bad_versions_need_replies(tiny_lm: Path, tmp_path: Path) -> None:
    rows = [Dialogue(str(i), (Turn("user", f"{i}?"),), (1.0 + i % 3,)) for i in range(12)]
    with pytest.raises(ValueError, match="at least 4 conversations with replies"):
        judge_of(tiny_lm, extractor=Probe(known_bad=True)).fit_probe(rows)
    from lightning_unlearn.cli.judge import judge as command

    with pytest.raises(ValueError, match="--known_bad is learned by a probe"):
        command(
            str(tiny_lm), str(write_jsonl(tmp_path / "data.jsonl")), known_bad=True, output_dir=str(tmp_path / "out")
        )
