"""Commands ``attack`` and ``attack-inversion``: prompts or a learned word that bring an erased concept back."""

from __future__ import annotations

from typing import Any

import torch

from lightning_unlearn.diffusion.attacks.concept_inversion import ConceptInversion
from lightning_unlearn.diffusion.attacks.prompt_attack import PromptAttack
from lightning_unlearn.diffusion.attacks.result import AttackResult
from lightning_unlearn.diffusion.attacks.victim import read_images
from lightning_unlearn.diffusion.engine.pipeline import load_frozen
from lightning_unlearn.diffusion.text_to_image import LitTextToImage

__all__ = ["attack", "attack_inversion"]


def attack(
    attack: PromptAttack,
    prompts: Any,
    model: str | None = None,
    ckpt_path: str | None = None,
    base: str | None = None,
    targets: str | None = None,
    output_dir: str = "runs/attack",
    overwrite: bool = False,
    device: str | None = None,
) -> AttackResult:
    """Search for prompts that make an erased model draw its concept again (UnlearnDiffAtk, P4D and controls).

    Finished prompts are kept in ``prompts.jsonl`` and are not attacked again when the command is run again; the rates
    and their cost are in ``summary.json``.

    Args:
        attack: The attack. Its judge is ``miniature-style``, ``miniature-object``, ``nudenet``,
            ``nudenet:eval_unlearn``, ``clip:<folder or hub id>:<class>,<class>``, or the folder or hub id of an image
            classifier of transformers.
        prompts: File of prompts with ``prompt``, and optionally ``seed`` and ``guidance`` (``.csv``, ``.json``,
            ``.jsonl``, ``.parquet``), or a list of prompts.
        model: Folder or hub id of the erased pipeline.
        ckpt_path: Checkpoint of a run with LitTextToImage, instead of the folder.
        base: Folder or hub id of the pipeline before erasure, which draws the target images.
        targets: Folder with a target image for each prompt, in the order of the numbers in their names.
        output_dir: Folder for the results.
        overwrite: Whether to replace results of another attack in that folder.
        device: Device, such as ``cuda:1``; by default a GPU if there is one.

    Returns:
        The outcomes, and their rates.

    Raises:
        ValueError: If both or neither of ``model`` and ``ckpt_path`` are given, or an argument is out of range.
    """
    return _run(attack, prompts, model, ckpt_path, base, targets, output_dir, overwrite, device)


def attack_inversion(
    attack: ConceptInversion,
    prompts: Any,
    model: str | None = None,
    ckpt_path: str | None = None,
    base: str | None = None,
    targets: str | None = None,
    output_dir: str = "runs/attack-inversion",
    overwrite: bool = False,
    device: str | None = None,
) -> AttackResult:
    """Learn a word that makes an erased model draw its concept again (concept inversion), and prompt with it.

    The word is kept in ``learned.safetensors`` and finished prompts in ``prompts.jsonl``; neither is learned or drawn
    again when the command is run again.

    Args:
        attack: The attack. Its judge is given as for ``attack``.
        prompts: File of prompts that name the concept, with ``prompt``, and optionally ``seed`` and ``guidance``, or a
            list of prompts.
        model: Folder or hub id of the erased pipeline.
        ckpt_path: Checkpoint of a run with LitTextToImage, instead of the folder.
        base: Folder or hub id of the pipeline before erasure, which draws the images to learn from.
        targets: Folder with any number of images of the concept to learn from, instead of the base.
        output_dir: Folder for the results.
        overwrite: Whether to replace results of another attack in that folder.
        device: Device, such as ``cuda:1``; by default a GPU if there is one.

    Returns:
        The outcomes, and their rates.

    Raises:
        ValueError: If both or neither of ``model`` and ``ckpt_path`` are given, or an argument is out of range.
    """
    return _run(attack, prompts, model, ckpt_path, base, targets, output_dir, overwrite, device)


def _run(
    attack: PromptAttack | ConceptInversion,
    prompts: Any,
    model: str | None,
    ckpt_path: str | None,
    base: str | None,
    targets: str | None,
    output_dir: str,
    overwrite: bool,
    device: str | None,
) -> AttackResult:
    if (model is None) == (ckpt_path is None):
        raise ValueError(f"Give one of model and ckpt_path, but got model={model!r} and ckpt_path={ckpt_path!r}.")
    attack.load_judge()
    images = read_images(targets) if targets is not None else None
    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    victim: Any = (
        load_frozen(model)
        if model is not None
        else LitTextToImage.load_from_checkpoint(str(ckpt_path), "cpu", weights_only=True)
    ).to(where)
    before = load_frozen(base).to(where) if base is not None else None
    result = attack.run(victim, prompts, images, before, output_dir, overwrite)
    _print(result, output_dir)
    return result


def _print(result: AttackResult, output_dir: str) -> None:
    summary = result.summary()
    print(f"{summary['prompts']} prompts, {summary['skipped']} skipped")
    for name in ("pre_asr", "post_asr", "asr"):
        if summary[name] is not None:
            low, high = summary["interval"][name]
            print(f"{name:>9} {summary[name]:7.2%}  [{low:.2%}, {high:.2%}]")
    for row in result.counted:
        if row.success:
            print(f"{row.adversarial!r} (seed {row.image_seed}), round {row.rounds}")
    print(f"Wrote {output_dir}/prompts.jsonl and {output_dir}/summary.json")
