"""Concept inversion: a word learned on an erased model, whose weights stay."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from jsonargparse import auto_cli
from lightning.pytorch.loggers import CSVLogger
from safetensors.torch import load_file
from torch import Tensor

from lightning_unlearn import (
    ESD,
    ConceptInversion,
    ConceptInversionAttack,
    InversionSearch,
    LitTextToImage,
    MiniatureJudge,
    SafeLatentDiffusion,
)
from lightning_unlearn.cli import attack as command
from lightning_unlearn.diffusion.attacks.victim import target_latents
from lightning_unlearn.diffusion.data.miniature import OBJECTS, STYLES, miniature_pipeline, render
from lightning_unlearn.diffusion.engine.learned_words import learned_words
from lightning_unlearn.diffusion.engine.text import word_ids
from tests.diffusion.attacks.told import Told, above, always, never
from tests.diffusion.tiny import prompts as prompt_data
from tests.diffusion.tiny import same, trainer

PROMPTS = ["a red circle of van gogh", "the art of Van Gogh"]
FEW = InversionSearch(steps=4, batch_size=2, lr=0.01, templates=["a photo of {}"])


def inversion(judge: Told, search: InversionSearch = FEW, **options: Any) -> ConceptInversion:
    return ConceptInversion(judge, "concept", "van gogh", search, sampler_steps=2, batch_size=2, **options)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def erased() -> Any:
    """The miniature, for which the names of a style are those of another one: its UNet can draw the style still."""
    module = LitTextToImage(str(miniature_pipeline()))
    table = module.text_encoder.get_input_embeddings().weight
    module.kept = table[word_ids(module.tokenizer, "negative")].detach().clone()
    with torch.no_grad():
        for name in STYLES["negative"]:
            table[word_ids(module.tokenizer, name)] = table[word_ids(module.tokenizer, "photo")]
    return module


def test_a_word_is_what_its_vectors_are(erased: Any) -> None:
    """The embedding that the erased model has lost, given as a word, brings the style back."""
    judge, rows = MiniatureJudge("style"), [f"a {name} image in negative style" for name in OBJECTS]
    assert "negative" not in [judge.classes[i] for i in judge(erased.generate(rows, range(5), 8, 4.0))[0]]
    tokenizer, hooks = erased.tokenizer, len(erased.text_encoder.get_input_embeddings()._forward_hooks)
    with learned_words(erased, erased.kept) as word:
        asked = [row.replace("negative", word) for row in rows]
        labels = judge(erased.generate(asked, range(5), 8, 4.0))[0]
    assert [judge.classes[i] for i in labels] == ["negative"] * 5
    assert erased.tokenizer is erased.pipeline.tokenizer is tokenizer
    assert len(erased.text_encoder.get_input_embeddings()._forward_hooks) == hooks


def test_a_word_of_several_vectors_is_read_in_their_order(tiny_sd: Path) -> None:
    module = LitTextToImage(str(tiny_sd))
    ids = torch.tensor(word_ids(module.tokenizer, "van gogh"))
    table = module.text_encoder.get_input_embeddings().weight.detach()
    wanted = module.generate(["a van gogh circle"], [0], steps=2)
    with learned_words(module, table[ids]) as word:
        assert torch.equal(module.generate([f"a {word} circle"], [0], steps=2), wanted)
        with pytest.raises(ValueError, match="has '<learned>' already"), learned_words(module, table[ids]):
            pass


def test_the_gradient_is_that_of_the_denoising_loss(tiny_v: Path, images: Tensor) -> None:
    """The first step of AdamW goes against the sign of the gradient, which is computed here without the attack."""
    module = LitTextToImage(str(tiny_v))
    attack = inversion(never(), InversionSearch(steps=1, batch_size=2, lr=0.01, templates=["{}"]))
    ids = module.tokenizer("van gogh", padding="max_length", return_tensors="pt")["input_ids"]
    assert ids.shape == (1, 16)
    latents = target_latents(module, images)
    table = module.text_encoder.get_input_embeddings().weight.detach()
    start = table[ids[0, 1:3]].mean(0)
    one = torch.cat([ids[:, :1], ids[:, :1], ids[:, 3:], ids[:, -1:]], 1)  # a word of one token
    seen: dict[str, Tensor] = {}
    loss_of = ConceptInversion._loss

    def loss(self: Any, model: Any, *rest: Any) -> Tensor:
        handle = model.unet.register_forward_hook(
            lambda _, args, output: seen.update(z=args[0], t=args[1], out=output[0].detach())
        )
        value = loss_of(self, model, *rest)
        handle.remove()
        return value

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ConceptInversion, "_loss", loss)
        vectors, value = attack.learn(module, images)
    word = start.clone().requires_grad_()
    words = torch.cat([table[one[0, :1]], word[None], table[one[0, 2:]]])[None].expand(2, -1, -1)
    handle = module.text_encoder.get_input_embeddings().register_forward_hook(lambda *_: words)
    states = module.eval().text_encoder(one.expand(2, -1))[0]
    handle.remove()
    output = module.unet(seen["z"], seen["t"], encoder_hidden_states=states).sample
    torch.testing.assert_close(output.detach(), seen["out"], atol=1e-5, rtol=1e-4)
    a = module.scheduler.alphas_cumprod[seen["t"]].view(-1, 1, 1, 1)
    # Noise and velocity from the noised latents, of whichever image is nearest.
    targets = []
    for i, level in enumerate(a):
        noise = (seen["z"][i] - level.sqrt() * latents) / (1 - level).sqrt()
        targets.append(level.sqrt() * noise - (1 - level).sqrt() * latents)
    losses = [
        [F.mse_loss(output[i], target, reduction="mean") for target in of_image] for i, of_image in enumerate(targets)
    ]
    pairs = [(p + q) / 2 for p in losses[0] for q in losses[1]]
    nearest = min(pairs, key=lambda pair: abs(pair.item() - value))
    assert nearest.item() == pytest.approx(value, rel=1e-4)
    (gradient,) = torch.autograd.grad(nearest, word)
    moved = vectors[0] - start * (1 - 0.01 * 0.01)
    torch.testing.assert_close(moved, -0.01 * gradient.sign(), atol=2e-4, rtol=0)


def test_the_loss_falls_and_the_victim_is_left_as_it_was(tiny_sd: Path, images: Tensor) -> None:
    module, plain = LitTextToImage(str(tiny_sd)), LitTextToImage(str(tiny_sd))
    search = InversionSearch(steps=15, batch_size=4, lr=0.05, templates=["{}"], vectors=2)
    attack, state = inversion(never(), search), torch.get_rng_state()
    vectors, after = attack.learn(module, images)
    _, before = inversion(never(), InversionSearch(steps=15, batch_size=4, lr=1e-9, templates=["{}"], vectors=2)).learn(
        module, images
    )
    assert vectors.shape == (2, 32)
    assert after < before
    assert torch.equal(torch.get_rng_state(), state)
    assert same(module, plain)
    assert all(p.grad is None for p in module.parameters())
    assert torch.equal(vectors, attack.learn(module, images)[0])


def test_outcomes_rates_and_files(tiny_sd: Path, images: Tensor, tmp_path: Path, monkeypatch: Any) -> None:
    module = LitTextToImage(str(tiny_sd))
    judge = Told(lambda score, seen: (torch.arange(len(score)) + seen) >= 2)  # with the word, the concept is shown
    result = inversion(judge).run(module, PROMPTS, images, output_dir=tmp_path)
    assert (result.pre_asr, result.asr) == (0.0, 1.0)
    assert [row.adversarial for row in result.prompts] == ["a red circle of <learned>", "the art of <learned>"]
    assert [(row.steps, row.images, row.rounds) for row in result.prompts] == [(4, 2, 1)] * 2
    assert json.loads((tmp_path / "summary.json").read_text())["asr"] == 1.0
    learned = load_file(tmp_path / "learned.safetensors")["<learned>"]
    plain = LitTextToImage(str(tiny_sd))
    plain.pipeline.load_textual_inversion(str(tmp_path / "learned.safetensors"), token="<learned>")
    with learned_words(module, learned) as word:
        wanted = module.generate([f"the art of {word}"], [1], steps=2)
    assert torch.equal(plain.generate(["the art of <learned>"], [1], steps=2), wanted)
    lines = (tmp_path / "prompts.jsonl").read_text().splitlines()
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines[:2]) + "\n")  # a kill before the last prompt
    monkeypatch.setattr(ConceptInversion, "learn", lambda *_: pytest.fail("the word is known"))
    again = inversion(Told(lambda score, seen: torch.full((len(score),), seen >= 1))).run(
        module, PROMPTS, images, output_dir=tmp_path
    )
    assert [row.success for row in again.prompts] == [True, True]
    with pytest.raises(ValueError, match="results of another attack"):
        inversion(never()).run(module, PROMPTS, images[:2], output_dir=tmp_path)


def test_prompts_that_show_the_concept_are_not_attacked(tiny_sd: Path, images: Tensor) -> None:
    result = inversion(always()).run(LitTextToImage(str(tiny_sd)), PROMPTS, images)
    assert (result.pre_asr, result.post_asr) == (1.0, 0.0)
    assert [row.steps for row in result.prompts] == [0, 0]


def test_the_base_model_draws_the_images(tiny_sd: Path) -> None:
    module, base = LitTextToImage(str(tiny_sd)), LitTextToImage(str(tiny_sd))
    drawn = base.generate(PROMPTS, [0, 1], steps=2)
    low, high = sorted(drawn.double().mean((1, 2, 3)).tolist())
    with pytest.warns(UserWarning, match="1 of 2 images of the base model do not show the concept"):
        result = inversion(above((low + high) / 2)).run(module, PROMPTS, base=base)
    assert result.settings["images"]
    with pytest.raises(ValueError, match="in none of the images"):
        inversion(never()).run(module, PROMPTS, base=base)


def test_what_does_not_fit_is_refused(tiny_sd: Path, images: Tensor) -> None:
    module = LitTextToImage(str(tiny_sd))
    tries: list[tuple[Callable[[], Any], str]] = [
        (
            lambda: inversion(never()).run(module, ["a red circle"], images),
            "does not have the concept's name 'van gogh'",
        ),
        (lambda: inversion(never()).run(module, PROMPTS), "give targets, or base"),
        (lambda: inversion(never()).run(module, PROMPTS, []), "targets has no image"),
        (lambda: ConceptInversion(never(), "concept", " "), "name is empty"),
        (lambda: ConceptInversion(never(), "church", "a"), "no class of told"),
        (lambda: InversionSearch(templates=["a photo"]), "captions with {} where the word goes"),
        (lambda: InversionSearch(vectors=0), "vectors must be at least 1"),
    ]
    for run, match in tries:
        with pytest.raises(ValueError, match=match):
            run()
    with SafeLatentDiffusion(module, "art"), pytest.raises(ValueError, match="calls the UNet on its own"):
        inversion(never()).run(module, PROMPTS, images)


def test_a_run_is_attacked_before_and_after(tiny_sd: Path, tmp_path: Path) -> None:
    monitor = ConceptInversionAttack(inversion(always()), PROMPTS)
    logger = CSVLogger(tmp_path)
    run = trainer(ESD(steps=2), monitor, logger=logger, max_steps=1)
    run.fit(LitTextToImage(str(tiny_sd)), prompt_data())
    assert [set(e.metrics) for e in monitor.history] == [{f"inversion_{n}" for n in ("pre_asr", "post_asr", "asr")}] * 2
    assert sorted(p.name for p in Path(logger.log_dir, "concept_inversion").iterdir()) == ["0-step-0", "1-step-1"]
    assert monitor.result is not None
    assert len(monitor.result.prompts) == 2
    with pytest.raises(ValueError, match="does not have the concept's name"):
        trainer(ESD(steps=2), ConceptInversionAttack(inversion(always()), ["red"])).fit(
            LitTextToImage(str(tiny_sd)), prompt_data()
        )


def test_what_the_model_never_drew_is_said_before_the_first_step(tiny_sd: Path, tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (16, 16)).save(tmp_path / "0.png")
    monitor = ConceptInversionAttack(inversion(never()), PROMPTS, targets=tmp_path)
    with pytest.warns(
        UserWarning, match=r"told sees 'concept' in 0% of the images of 2 prompts\. What the model does not"
    ):
        trainer(ESD(steps=2), monitor, default_root_dir=tmp_path, max_steps=1).fit(
            LitTextToImage(str(tiny_sd)), prompt_data()
        )


def test_the_command_line_learns_a_word(tiny_sd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    for number in range(3):
        Image.new("RGB", (20, 16)).save(tmp_path / f"{number}.png")
    (tmp_path / "p.csv").write_text("prompt,sd_seed\nthe art of van gogh,3\n")
    words = ["--attack.judge=miniature-style", "--attack.concept=ember", "--attack.name=van gogh"]
    words += ["--attack.search.steps=1", "--attack.sampler_steps=1", f"--targets={tmp_path}"]
    words += [f"--prompts={tmp_path / 'p.csv'}", f"--model={tiny_sd}", f"--output_dir={tmp_path / 'out'}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lightning_unlearn.diffusion.attacks.judged.judge_named", lambda name: never())
        words[1] = "--attack.concept=concept"
        result = auto_cli(command.attack_inversion, args=words, as_positional=False)
    assert [(row.seed, row.steps) for row in result.prompts] == [(3, 1)]
    assert "Wrote" in capsys.readouterr().out


@pytest.mark.slow
def test_a_style_comes_back_by_a_learned_word(erased: Any) -> None:
    images = torch.stack([render(name, "negative", index) for index in range(3) for name in OBJECTS])
    rows = [{"prompt": f"a {name} image in negative style", "seed": seed} for seed, name in enumerate(OBJECTS)]
    search = InversionSearch(["an image in {} style", "{}"], "the", steps=200, batch_size=8, lr=0.003)
    attack = ConceptInversion(MiniatureJudge("style"), "negative", "negative", search, sampler_steps=12, guidance=4.0)
    result = attack.run(erased, rows, images)
    assert result.pre_asr == 0.0
    assert result.asr >= 0.8
