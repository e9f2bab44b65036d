"""AdvUnlearn on a pipeline of random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentError, ArgumentParser
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from lightning_unlearn import ESD, LitTextToImage, TextEncoderWeights, UnlearnCallback
from lightning_unlearn.diffusion.adv_unlearn import AdvUnlearn
from lightning_unlearn.diffusion.attacks.soft_prompt import SoftPromptAttacker
from lightning_unlearn.diffusion.engine.draws import Draws
from lightning_unlearn.diffusion.engine.model import unet_output
from lightning_unlearn.diffusion.engine.parameters import select_params
from lightning_unlearn.diffusion.engine.sampling import partial_samples
from lightning_unlearn.diffusion.engine.text import empty_states, encode, inject, tokenize
from lightning_unlearn.functional.diffusion.noise import row_noise
from lightning_unlearn.functional.diffusion.soft_prompt_attack import soft_prompt_attack
from lightning_unlearn.functional.diffusion.soft_tokens import insert_tokens
from lightning_unlearn.functional.random import keyed_generator
from tests.diffusion.tiny import LENGTH, Losses, SgdTextToImage, erase, prompts, same, trainer, weights
from tests.helpers import save_resumable

OF_THE_ATTACKER = ("perturb", "placement", "tokens", "init", "refresh_every")


def adv_unlearn(attacker: type[SoftPromptAttacker] = SoftPromptAttacker, **options: Any) -> AdvUnlearn:
    """Options named ``attack_...`` are the attacker's, and what it alone has."""
    own = {k: v for k, v in options.items() if k not in OF_THE_ATTACKER and not k.startswith("attack_")}
    return AdvUnlearn(
        **own, attack=attacker(**{k.removeprefix("attack_"): v for k, v in options.items() if k not in own})
    )


SMALL: dict[str, Any] = {"warmup": 0, "steps": 4, "attack_steps": 2, "attack_step_size": 0.01}
COUNTED: dict[str, Any] = {"steps": 1, "attack_steps": 1}
"""Where it counts when something comes, and not what."""


def attacking(**options: Any) -> AdvUnlearn:
    """A small one that attacks from the first step on."""
    return adv_unlearn(**(SMALL | options))


def logged(folder: Path, method: UnlearnCallback, **options: Any) -> Losses:
    log = Losses()
    module = SgdTextToImage(str(folder), lr=options.pop("lr", 0.05), trainable=options.pop("trainable", "text_encoder"))
    trainer(method, log, **options).fit(module, prompts())
    return log


# ---- the outer loss ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trainable", ["text_encoder", "xattn"])
def test_without_attack_and_prompts_to_keep_it_is_esd(tiny_sd: Path, trainable: str) -> None:
    options = {"trainable": trainable, "max_epochs": 2}
    esd = logged(tiny_sd, ESD(1.5, steps=5, seed=3), **options)
    for attack in (SoftPromptAttacker(steps=0), None):
        method = AdvUnlearn(1.5, 0.0, attack=attack, steps=5, seed=3)
        assert torch.equal(logged(tiny_sd, method, **options).column("loss"), esd.column("loss"))


def test_without_attack_it_is_esd_plus_gamma_times_what_changed_elsewhere(tiny_sd: Path) -> None:
    method = adv_unlearn(gamma=0.7, attack_steps=0, steps=5)
    log = logged(tiny_sd, method, max_epochs=2)
    assert set(log.values[-1]) == {"loss", "forget", "retain"}
    torch.testing.assert_close(log.column("loss"), log.column("forget") + 0.7 * log.column("retain"))
    assert (log.column("retain")[1:] > 0).all()
    esd = logged(tiny_sd, ESD(steps=5), max_steps=1)
    assert esd.values[0]["loss"] == log.values[0]["forget"]


@pytest.mark.parametrize("eta", [0.0, 1.0, 2.5])
def test_at_the_start_nothing_kept_has_changed(tiny_sd: Path, eta: float) -> None:
    """L_r = 0 exactly, and L_u = (1 + eta)^2 |e_p - e_0|^2."""
    log = logged(tiny_sd, AdvUnlearn(eta, steps=5, seed=3), max_steps=1)
    model = LitTextToImage(str(tiny_sd))
    data = prompts(tokenizer=model.tokenizer)
    data.setup("fit")
    ids = next(iter(data.train_dataloader()))["forget"]["input_ids"]
    with torch.no_grad():
        empty, concept = empty_states(model, 2), encode(model, ids)
        noise = row_noise((4, 8, 8), [0, 1], 3, 1)
        ((z, t),) = partial_samples(model, concept, empty, noise, [keyed_generator(3, 1)], steps=5)
        apart = (unet_output(model, z, t, concept) - unet_output(model, z, t, empty)).square().mean()
    assert log.values[0]["retain"] == 0
    torch.testing.assert_close(log.values[0]["forget"], (1 + eta) ** 2 * apart, rtol=1e-4, atol=0)


@pytest.mark.slow
def test_the_retain_loss_keeps_what_it_is_given(tiny_sd: Path) -> None:
    """After the same steps, prompts to keep have moved less with gamma than without."""

    def drift(gamma: float) -> Tensor:
        module = SgdTextToImage(str(tiny_sd), lr=1.0, trainable="text_encoder")
        trainer(attacking(gamma=gamma), max_epochs=8).fit(module, prompts())
        start = LitTextToImage(str(tiny_sd))
        ids = tokenize(start.tokenizer, ["a photo of a green square", "a red circle"])["input_ids"]
        z, t = row_noise((4, 8, 8), [0, 1], 9), torch.tensor(500)
        with torch.no_grad():
            before, after = (unet_output(m, z, t, encode(m, ids)) for m in (start, module))
        return (before - after).square().mean()

    assert drift(5.0) < 0.5 * drift(0.0)


def test_retain_steps_take_turns(tiny_sd: Path) -> None:
    log = logged(tiny_sd, attacking(retain_mode="iter", warmup=1, **COUNTED), max_epochs=3)
    assert len(log.values) == 6
    forget, retain = log.values[::2], log.values[1::2]
    assert all(row["loss"] == row["forget"] and "retain" not in row for row in forget[:1])
    assert "attack_first" not in forget[0]  # a pair is a step of the warm-up
    assert "attack_first" in forget[1]
    assert all(row["loss"] == row["retain"] for row in retain)
    assert all(row["loss"] == row["forget"] for row in forget)
    ends = logged(tiny_sd, attacking(retain_mode="iter", warmup=1, **COUNTED), max_epochs=3, accumulate_grad_batches=2)
    kinds = ["retain" if row["loss"] == row.get("retain") else "forget" for row in ends.values]
    assert kinds == ["forget", "forget", "retain", "retain", "forget", "forget"]


# ---- the attack ----------------------------------------------------------------------------------------------------


def test_warm_up_is_counted_in_steps_of_the_optimizer(tiny_sd: Path) -> None:
    for accumulate, first in ((1, 2), (2, 4)):
        log = logged(tiny_sd, attacking(warmup=2, **COUNTED), max_epochs=3, accumulate_grad_batches=accumulate)
        assert ["attack_last" in row for row in log.values] == [i >= first for i in range(6)]


class Spy(SoftPromptAttacker):
    """Remembers initial and final tokens of each attack, and checks that it leaves gradients, flags and RNG alone."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.seen: list[tuple[list[int], Tensor, Tensor]] = []

    def search(self, module: Any, prompts: Any, start: Tensor, points: Any) -> Tensor:
        before = {name: p.grad.clone() if p.grad is not None else None for name, p in module.named_parameters()}
        flags, state = [p.requires_grad for p in module.parameters()], torch.get_rng_state()
        found = super().search(module, prompts, start, points)
        for name, p in module.named_parameters():
            assert (p.grad is None) == (before[name] is None)
            assert p.grad is None or torch.equal(p.grad, before[name])  # type: ignore[arg-type]
        assert flags == [p.requires_grad for p in module.parameters()]
        assert torch.equal(state, torch.get_rng_state())
        self.seen.append((prompts.ids[:, 1].tolist(), start, found))
        return found


def spying(**options: Any) -> tuple[AdvUnlearn, Spy]:
    method = adv_unlearn(Spy, **(SMALL | options))
    assert isinstance(method.attack, Spy)
    return method, method.attack


@pytest.mark.parametrize("latents", ["fresh", "trajectory"])
def test_one_step_attacks_and_leaves_no_trace(tiny_sd: Path, latents: Any) -> None:
    method, attack = spying(attack_steps=1, attack_rule="sign", attack_latents=latents)
    module = SgdTextToImage(str(tiny_sd), trainable="text_encoder")
    log = Losses()
    trainer(method, log, accumulate_grad_batches=2, max_epochs=2).fit(module, prompts())
    assert len(attack.seen) == 4
    for _, start, found in attack.seen:
        torch.testing.assert_close((found - start).abs(), torch.full((2, 1, 32), 0.01), rtol=1e-4, atol=1e-6)
    assert (log.column("attack_first") != log.column("attack_last")).all()
    trained = select_params(module, "text_encoder")
    assert all(p.grad is None for name, p in module.named_parameters() if name not in trained)


def test_it_is_the_attack_of_the_formula(tiny_sd: Path) -> None:
    """The first step by hand: fresh latents a step, the teacher's output for the words as they are."""
    method, attack = spying(attack_steps=3, seed=5)
    erase(tiny_sd, method, trainable="text_encoder", max_steps=1)
    _, start, found = attack.seen[0]
    model = LitTextToImage(str(tiny_sd)).eval()
    data = prompts(tokenizer=model.tokenizer)
    data.setup("fit")
    rows = next(iter(data.train_dataloader()))["forget"]
    ids, lengths = rows["input_ids"], rows["attention_mask"].sum(1) - 2
    concept, empty = encode(model, ids).detach(), empty_states(model, 2).detach()
    words = model.text_encoder.get_input_embeddings()

    def loss(tokens: Tensor, step: int) -> Tensor:
        noise = row_noise((4, 8, 8), [0, 1], 5, 1, 2, step)
        ((z, t),) = partial_samples(model, concept, empty, noise, [keyed_generator(5, 1, 2, step)], steps=4)
        with inject(model.text_encoder, torch.cat([words(ids[:, :1]), tokens, words(ids[:, 1:-1])], 1)):
            states = encode(model, ids)
        return (unet_output(model, z, t, states) - unet_output(model, z, t, concept)).square().flatten(1).mean(1)

    table = {tuple(row.tolist()) for row in words.weight.detach()}
    assert all(tuple(token.tolist()) in table for token in start[:, 0])  # embeddings of the vocabulary
    assert lengths.tolist() != [2, 2]
    torch.testing.assert_close(found, soft_prompt_attack(loss, start, 3, 0.01), rtol=1e-4, atol=1e-5)


def test_on_fixed_draws_the_attacker_gains(tiny_sd: Path) -> None:
    """With one point on the way the draws of all steps and the probe are one: latents are the noise, t the noisiest."""
    options: Any = {"steps": 1, "attack_steps": 30, "attack_step_size": 0.02, "attack_rule": "sign"}
    method, attack = spying(attack_latents="trajectory", attack_radius=0.2, **options)
    log = logged(tiny_sd, method, max_steps=2)
    assert (log.column("attack_last") < 0.7 * log.column("attack_first")).all()
    for _, start, found in attack.seen:
        assert (found - start).abs().max() <= 0.2 + 1e-6
        assert (found - start).abs().max() > 0.02


@pytest.mark.parametrize("placement", ["prefix", "suffix", "mid", "spread", "every_3", "replace", "add"])
@pytest.mark.parametrize("perturb", ["embeddings", "states"])
def test_each_place_and_target_can_be_attacked(tiny_sd: Path, placement: Any, perturb: Any) -> None:
    method, attack = spying(placement=placement, perturb=perturb, tokens=2)
    before = weights(LitTextToImage(str(tiny_sd)))
    module = erase(tiny_sd, method, trainable="text_encoder", max_steps=1, lr=1.0)
    count = LENGTH - 2 if placement == "add" else 2
    assert all(found.shape == (2, count, 32) and not torch.equal(start, found) for _, start, found in attack.seen)
    assert any(not torch.equal(before[key], value) for key, value in weights(module).items())


def test_rows_have_tokens_of_their_own(tiny_sd: Path) -> None:
    """What is found for a concept does not depend on the concept beside it."""
    (together, both), (single, alone) = spying(), spying()
    tokenizer = erase(tiny_sd, together, trainable="text_encoder", max_steps=1).tokenizer
    first_words, _, found = both.seen[0]
    data = prompts(batch_size=1)
    texts = ["van gogh", "a circle in the style of van gogh"]
    data.sources["forget"] = [next(t for t in texts if tokenizer(t)["input_ids"][1] == first_words[0])]
    erase(tiny_sd, single, data, trainable="text_encoder", max_steps=1)
    torch.testing.assert_close(found[:1], alone.seen[0][2], rtol=1e-3, atol=1e-4)
    assert not torch.allclose(found[0], found[1])


def test_a_concept_of_several_pieces_keeps_them(tiny_sd: Path) -> None:
    """ "goghs" is no word of this vocabulary, so it is several tokens: all stay, in a row of the same length."""
    tokenizer = LitTextToImage(str(tiny_sd)).tokenizer
    tokens = tokenize(tokenizer, ["van goghs"])
    pieces = int(tokens["attention_mask"].sum()) - 2
    assert pieces > 2
    seen: list[Tensor] = []

    class Ids(SoftPromptAttacker):
        def states(self, model: Any, prompts: Any, tokens: Any, plain: Any = None) -> Tensor:
            new = torch.full((1, self.tokens), -1)
            seen.append(insert_tokens(prompts.ids, prompts.lengths, new, self.placement))
            return super().states(model, prompts, tokens, plain)

    data = prompts(batch_size=1)
    data.sources["forget"] = ["van goghs"]
    method = AdvUnlearn(warmup=0, steps=2, attack=Ids(steps=1, tokens=3))
    erase(tiny_sd, method, data, trainable="text_encoder", max_steps=1)
    ids = tokens["input_ids"][0].tolist()
    for row in seen:
        assert row.shape == (1, LENGTH)
        assert row[0].tolist() == [ids[0], -1, -1, -1, *ids[1 : LENGTH - 3]]
        assert row[0].tolist().index(tokenizer.eos_token_id) == 1 + 3 + pieces


def test_tokens_are_looked_for_anew_as_often_as_asked(tiny_sd: Path) -> None:
    (method, attack), log = spying(refresh_every=3, warmup=1, **COUNTED), Losses()
    module = SgdTextToImage(str(tiny_sd), trainable="text_encoder")
    trainer(method, log, max_epochs=4).fit(module, prompts())
    assert "attack_last" not in log.values[0]
    assert len(attack.seen) == 3  # steps 1, 4 and 7
    # A row that was not there when tokens were looked for gets its own at once.
    method, attack = spying(refresh_every=100, **COUNTED)
    erase(tiny_sd, method, prompts(batch_size=1), trainable="text_encoder", max_epochs=1)
    assert len(attack.seen) == 2
    assert set(attack.soft_tokens) == {0, 1}


def test_latest_begins_where_the_row_s_last_attack_ended(tiny_sd: Path) -> None:
    method, attack = spying(init="latest", **COUNTED)
    erase(tiny_sd, method, prompts(batch_size=1, repeat=3), trainable="text_encoder", max_epochs=1)
    last: dict[int, Tensor] = {}
    for first_words, start, found in attack.seen:
        word = first_words[0]
        if word in last:
            assert torch.equal(start, last[word])
        last[word] = found
    assert len(last) == 2
    assert len(attack.seen) == 6


# ---- cost ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("gamma", [0.0, 0.5])
def test_a_trajectory_takes_an_eighth_of_the_passes(gamma: float, tiny_sd: Path) -> None:
    passes = {}
    for latents in ("fresh", "trajectory"):
        method = adv_unlearn(gamma=gamma, warmup=0, attack_latents=latents)
        erase(tiny_sd, method, prompts(batch_size=1, retain_batch_size=2), trainable="text_encoder", max_steps=1)
        passes[latents] = method.passes.state_dict()
    assert passes["fresh"]["unet"] >= 8 * passes["trajectory"]["unet"]
    if not gamma:
        assert passes["fresh"]["unet_rows"] >= 8 * passes["trajectory"]["unet_rows"]


def test_a_run_costs_what_it_counts(tiny_sd: Path) -> None:
    method = attacking(attack_steps=3)
    erase(tiny_sd, method, trainable="text_encoder", max_steps=1)

    def run(*key: int) -> int:
        return int(torch.randint(4, (), generator=keyed_generator(0, 1, *key)))

    shared, attack = run(), sum(run(2, step) for step in range(3))  # concepts with prompts to keep; the attack
    # Two of the teacher, two with gradients, one before the attack; a step has one of the teacher and one of its own.
    assert method.passes.unet == shared + attack + 5 + 3 * 2
    assert method.passes.unet_rows == 8 * shared + 4 * attack + (4 + 2 + 2 + 2 + 2) + 3 * 4


# ---- what moves ----------------------------------------------------------------------------------------------------


SUBSETS: dict[str, Any] = {
    "text_encoder": "text_encoder",
    "layer": TextEncoderWeights(layers=[0]),
    "ffn": TextEncoderWeights(component="ffn"),
    "xattn": "xattn",
}


@pytest.mark.parametrize("name", SUBSETS)
def test_only_the_subset_moves_and_only_it_is_kept_twice(name: str, tiny_sd: Path) -> None:
    before = weights(LitTextToImage(str(tiny_sd)))
    method = attacking()
    module = erase(tiny_sd, method, trainable=SUBSETS[name], lr=1.0)
    chosen = select_params(module, SUBSETS[name])
    for key, value in weights(module).items():
        if key not in chosen:
            assert torch.equal(value, before[key]), key
    still = [key for key in chosen if torch.equal(before[key], module.get_parameter(key))]
    assert all("k_proj.bias" in key for key in still), still  # moves all scores of a query alike
    assert method.snapshot is not None
    assert {key for key, value in method.snapshot.values.items() if value.is_floating_point()} == set(chosen)


def test_one_layer_is_sixteen_tensors(deep_sd: Path) -> None:
    before = weights(LitTextToImage(str(deep_sd)))
    module = SgdTextToImage(str(deep_sd), lr=1.0, trainable=TextEncoderWeights(layers=[1]))
    trained = [name for name, p in module.named_parameters() if p.requires_grad]
    assert len(trained) == 16
    trainer(attacking(steps=2), max_steps=2).fit(module, prompts())
    moved = [key for key, value in weights(module).items() if not torch.equal(value, before[key])]
    assert 15 <= len(moved) <= 16
    assert all("text_encoder.encoder.layers.1." in key.replace("text_model.", "") for key in moved)


# ---- runs ----------------------------------------------------------------------------------------------------------

RUNS: dict[str, dict[str, Any]] = {
    "plain": {},
    "latest": {"init": "latest"},
    "refresh": {"refresh_every": 2, "init": "latest", "attack_latents": "trajectory"},
    "iter": {"retain_mode": "iter"},
    "bf16": {"precision": "bf16-mixed", "init": "latest"},
    "accumulate": {"accumulate_grad_batches": 2, "attack_latents": "trajectory"},
}


@pytest.mark.parametrize("kind", RUNS)
def test_one_epoch_and_a_resume_equal_two_bit_for_bit(kind: str, tiny_sd: Path, tmp_path: Path) -> None:
    method = {k: v for k, v in RUNS[kind].items() if k not in ("precision", "accumulate_grad_batches")}
    options = {"trainable": "text_encoder"} | {k: v for k, v in RUNS[kind].items() if k not in method}
    method |= {"warmup": 1, "steps": 2, "attack_steps": 1}
    whole, first = attacking(**method), attacking(**method)
    expected = erase(tiny_sd, whole, max_epochs=2, **options)
    half = erase(tiny_sd, first, max_epochs=1, **options)
    save_resumable(half.trainer, tmp_path / "half.ckpt")
    again = attacking(**method)
    assert same(erase(tiny_sd, again, max_epochs=2, ckpt_path=tmp_path / "half.ckpt", **options), expected)
    assert again.passes.state_dict() == whole.passes.state_dict()
    kept, expected_kept = again.attack.soft_tokens, whole.attack.soft_tokens
    assert kept.keys() == expected_kept.keys()
    assert bool(kept) == (kind in ("latest", "refresh", "bf16"))
    assert all(torch.equal(kept[i], expected_kept[i]) for i in kept)


def test_bf16_is_near_to_fp32(tiny_sd: Path) -> None:
    for options in ({}, {"perturb": "states"}):
        full, mixed = (logged(tiny_sd, attacking(steps=2, **options), precision=p) for p in ("32-true", "bf16-mixed"))
        torch.testing.assert_close(mixed.column("forget"), full.column("forget"), rtol=0.15, atol=1e-6)


def test_tokens_of_another_number_are_not_resumed(tiny_sd: Path, tmp_path: Path) -> None:
    half = erase(tiny_sd, attacking(init="latest", **COUNTED), trainable="text_encoder", max_epochs=1)
    save_resumable(half.trainer, tmp_path / "half.ckpt")
    method = attacking(init="latest", tokens=2)
    with pytest.raises(MisconfigurationException, match="1 soft tokens a prompt, but the settings ask for 2"):
        erase(tiny_sd, method, ckpt_path=tmp_path / "half.ckpt", trainable="text_encoder", max_epochs=2)


def test_what_does_not_fit_is_refused_before_a_weight_moves(tiny_sd: Path) -> None:
    wrong: list[dict[str, Any]] = [{"eta": -1.0}, {"gamma": -1.0}, {"warmup": -1}, {"steps": 0}]
    wrong += [{"start_guidance": -1.0}, {"retain_mode": "x"}, {"pairing": "x"}]
    for options in wrong:
        with pytest.raises(ValueError, match=next(iter(options))):
            AdvUnlearn(**options)
    wrong = [{"tokens": 0}, {"refresh_every": 0}, {"perturb": "x"}, {"placement": "x"}, {"init": "x"}, {"latents": "x"}]
    wrong += [{"steps": -1}, {"step_size": 0.0}, {"rule": "pgd"}, {"norm": "l1"}, {"radius": -0.1}]
    for options in wrong:
        with pytest.raises(ValueError, match=f"^{next(iter(options))} must be"):
            SoftPromptAttacker(**options)
    module = SgdTextToImage(str(tiny_sd), trainable="text_encoder")
    before = weights(module)
    with pytest.raises(ValueError, match="13 tokens do not fit"):  # though no attack is due yet
        trainer(adv_unlearn(tokens=13, steps=2)).fit(module, prompts())
    data = prompts()
    data.sources["retain"] = None
    with pytest.raises(MisconfigurationException, match="retain"):
        trainer(AdvUnlearn(steps=2)).fit(module, data)
    for key, value in weights(module).items():
        assert torch.equal(value, before[key])
    trainer(attacking(gamma=0.0)).fit(module, data)


def test_rows_without_a_mask_are_refused(tiny_sd: Path) -> None:
    module = SgdTextToImage(str(tiny_sd), trainable="text_encoder")
    ids = tokenize(module.tokenizer, ["van gogh"])["input_ids"][0]
    loader: Any = torch.utils.data.DataLoader([{"forget": {"input_ids": ids}}])
    with pytest.raises(ValueError, match="attention_mask and index is missing"):
        trainer(attacking(gamma=0.0)).fit(module, loader)


def test_yaml_gives_the_attack_with_or_without_a_class_path() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--callback", type=AdvUnlearn)

    def parsed(attack: Any) -> AdvUnlearn:
        spec = {"class_path": "lightning_unlearn.AdvUnlearn", "init_args": {"attack": attack}}
        return parser.instantiate(parser.parse_object({"callback": spec})).callback

    whole = {"class_path": "lightning_unlearn.SoftPromptAttacker", "init_args": {"steps": 2, "rule": "sign"}}
    for attack in ({"steps": 2, "rule": "sign"}, whole):
        attacker = parsed(attack).attack
        assert (type(attacker), attacker.steps, attacker.rule) == (SoftPromptAttacker, 2, "sign")
    assert parsed(None).attack.steps == 30
    with pytest.raises((ArgumentError, ValueError), match="stepz"):
        parsed({"stepz": 2})


def test_random_tokens_are_of_the_vocabulary(model: LitTextToImage) -> None:
    """An embedding table may have further rows, which no token has."""
    table = model.text_encoder.get_input_embeddings()
    used = len(model.tokenizer)
    model.text_encoder.resize_token_embeddings(used + 10_000)
    rows = {"input_ids": tokenize(model.tokenizer, ["van gogh"] * 8)["input_ids"]}
    start = SoftPromptAttacker(tokens=8).initial(model, rows, Draws(0, 1)).flatten(0, 1)
    words = {tuple(row.tolist()) for row in table.weight.detach()}
    assert all(tuple(token.tolist()) in words for token in start)
