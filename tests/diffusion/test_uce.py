"""UCE on a pipeline of random weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from lightning_unlearn import UCE, LitTextToImage
from lightning_unlearn.diffusion.engine.parameters import kv_layers
from lightning_unlearn.diffusion.engine.text import encode, tokenize
from tests.diffusion.tiny import erase, prompts, trainer


def states(model: LitTextToImage, prompt: str) -> tuple[Tensor, int]:
    tokens = tokenize(model.tokenizer, [prompt])
    with torch.no_grad():
        return encode(model, tokens["input_ids"])[0], int(tokens["attention_mask"].sum()) - 2


def error(model: LitTextToImage, base: LitTextToImage, prompt: str, like: str) -> float:
    """How far the keys and values of a prompt's last word are from those that the base has for another."""
    (c, i), (g, j) = states(base, prompt), states(base, like)
    pairs = zip(kv_layers(model.unet).values(), kv_layers(base.unet).values(), strict=True)
    return sum((new.weight @ c[i] - old.weight @ g[j]).square().sum().item() for new, old in pairs)


@pytest.mark.parametrize("kind", ["last", "rest"])
def test_only_keys_and_values_change_and_they_go_to_the_anchor(tiny_sd: Path, kind: str) -> None:
    base = LitTextToImage(str(tiny_sd))
    method = UCE(states=kind)  # type: ignore[arg-type]
    module = erase(tiny_sd, method)
    changed = {
        n for (n, p), q in zip(module.named_parameters(), base.parameters(), strict=True) if not torch.equal(p, q)
    }
    assert changed == {f"unet.{name}.weight" for name in kv_layers(module.unet)}
    assert module.trainer.global_step == 0
    assert error(module, base, "van gogh", "art") < 0.5 * error(base, base, "van gogh", "art")
    kept, moved = "a red circle", error(base, base, "van gogh", "art")
    assert error(module, base, kept, kept) < 0.05 * moved


def test_repeated_prompts_are_one_edit(tiny_sd: Path) -> None:
    once, often = (erase(tiny_sd, UCE(), prompts(repeat=n)) for n in (1, 7))
    assert all(torch.equal(p, q) for p, q in zip(once.parameters(), often.parameters(), strict=True))


def test_the_last_state_of_the_empty_prompt_is_its_first(tiny_sd: Path) -> None:
    model = LitTextToImage(str(tiny_sd))
    assert states(model, "")[1] == 0
    assert states(model, "a photo of van gogh")[1] == 5


def test_states_are_paired_from_the_last_word_on(tiny_sd: Path) -> None:
    model = LitTextToImage(str(tiny_sd))
    data = prompts(tokenizer=model.tokenizer)
    data.setup("fit")
    loader = data.train_dataloader().rows("forget", [[0, 1]])
    with torch.no_grad():
        concepts, guides = UCE(states="rest").edits(model, loader)
        (c, i), (g, j) = states(model, "van gogh"), states(model, "art")
    assert (i, j) == (2, 1)
    torch.testing.assert_close(concepts[: 16 - i], c[i:])
    torch.testing.assert_close(guides[: 16 - i], g[j : 16 - i + j])
    assert len(concepts) == (16 - 2) + (16 - 8)


def test_retain_prompts_are_asked_for_only_where_they_count(tiny_sd: Path) -> None:
    model = LitTextToImage(str(tiny_sd))
    data = prompts(tokenizer=model.tokenizer)
    data.setup("fit")
    loader = data.train_dataloader()
    with pytest.raises(ValueError, match="preserve_scale=0"):
        UCE().edit(model, loader.rows("forget", [[0, 1]]))
    UCE(preserve_scale=0.0).edit(model, loader.rows("forget", [[0, 1]]))
    for options in ({"erase_scale": 0.0}, {"lamb": 0.0}, {"preserve_scale": -1.0}, {"states": "first"}):
        with pytest.raises(ValueError, match=next(iter(options))):
            UCE(**options)  # type: ignore[arg-type]


def test_the_run_saves_the_edit_and_refuses_a_second(tiny_sd: Path, tmp_path: Path) -> None:
    module = LitTextToImage(str(tiny_sd), trainable="kv")
    options = {"enable_checkpointing": True, "default_root_dir": tmp_path}
    trainer(UCE(), **options).fit(module, prompts())
    (path,) = tmp_path.rglob("edited.ckpt")
    loaded = LitTextToImage.load_from_checkpoint(path)
    assert all(torch.equal(p, q) for p, q in zip(loaded.parameters(), module.parameters(), strict=True))
    with pytest.raises(MisconfigurationException, match="edited by UCE already"):
        trainer(UCE()).fit(loaded, prompts(), ckpt_path=path)


def test_mixed_precision_edits_in_double_precision_all_the_same(tiny_sd: Path) -> None:
    full, mixed = erase(tiny_sd, UCE()), erase(tiny_sd, UCE(), precision="bf16-mixed")
    assert all(torch.equal(p, q) for p, q in zip(full.parameters(), mixed.parameters(), strict=True))
