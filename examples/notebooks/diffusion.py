# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A diffusion model forgets a style
#
# A pipeline draws five objects in six styles. It has to forget one style, "mosaic", and keep the others. Then we search
# for a prompt that brings the style back.
#
# The pipeline is the miniature that comes with the package: a real `StableDiffusionPipeline` of 3 MB. To run the same
# code on Stable Diffusion 1.x or 2.x, set `MODEL` to its folder or hub id, change the prompts, and use a GPU.
#
# The notebook needs `pip install "lightning-unlearn[diffusion,report]"` and takes a minute on a CPU.

# %%
import copy

import lightning as L
import matplotlib.pyplot as plt

from lightning_unlearn import UCE, LitTextToImage, MiniatureJudge, PromptAttack, PromptDataModule, PromptSearch
from lightning_unlearn.diffusion.data.miniature import OBJECTS, STYLES, miniature_pipeline, prompt

# %% tags=["parameters"]
MODEL = str(miniature_pipeline())
STYLE = "mosaic"
SAMPLER_STEPS = 20
SEARCHES = 5  # rounds of the attack

# %% [markdown]
# ## What the pipeline draws

# %%
L.seed_everything(0, verbose=False)
module = LitTextToImage(MODEL, trainable="kv", steps=SAMPLER_STEPS, guidance=4.0)
original = copy.deepcopy(module)
styles = [STYLE, "photo", "sketch"]


def draw(model: LitTextToImage, title: str) -> None:
    texts = [prompt(thing, style) for style in styles for thing in OBJECTS]
    pictures = model.eval().generate(texts, list(range(len(texts))))
    figure, axes = plt.subplots(len(styles), len(OBJECTS), figsize=(5.5, 3.5))
    for place, picture in zip(axes.flat, pictures):
        place.imshow(picture.permute(1, 2, 0).clamp(0, 1))
        place.set(xticks=[], yticks=[])
    for line, style in zip(axes, styles):
        line[0].set_ylabel(style)
    figure.suptitle(title)
    figure.tight_layout()
    plt.show()


draw(original, "before")

# %% [markdown]
# ## Forgetting
#
# `UCE` changes the weights so that the words of the style get the keys and values of an *anchor*, here a photo, and
# those of the prompts to keep stay as they were. The edit has a closed form, so it takes a second and needs no image.
# `ESD()`, which trains the model, could take its place and needs no anchors.
#
# A style has several names, and all of them are erased.

# %%
forget = [
    {"prompt": f"a {thing} image in {name} style", "anchor": f"a {thing} image in photo style"}
    for thing in OBJECTS
    for name in STYLES[STYLE]
]
keep = [prompt(thing, style) for thing in OBJECTS for style in STYLES if style != STYLE]
data = PromptDataModule(forget, keep, batch_size=5, seed=0)
trainer = L.Trainer(
    max_epochs=1,
    accelerator="cpu",
    devices=1,
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
    limit_val_batches=0,
    callbacks=[UCE(states="rest")],
)
trainer.fit(module, data)
draw(module, "after")

# %% [markdown]
# ## Attacking the result
#
# UnlearnDiffAtk, which `PromptAttack` runs by default, searches for three tokens in front of each prompt that bring the
# style back. The judge, a small classifier of styles, decides whether they do.

# %%
attack = PromptAttack(
    MiniatureJudge("style"),
    STYLE,
    PromptSearch(tokens=3, levels=10, iterations=SEARCHES, lr=0.05),
    sampler_steps=SAMPLER_STEPS,
    guidance=4.0,
    batch_size=10,
)
rows = [{"prompt": prompt(thing, STYLE), "seed": number} for number, thing in enumerate(OBJECTS)]
result = attack.run(module, rows, base=original)
print(f"The style is seen in {result.pre_asr:.0%} of the images without an attack, and in {result.asr:.0%} with it.")

# %% [markdown]
# [Erasure methods under attack](../erased.md) compares fourteen variants of methods on two styles and two objects.
# Read [the how-to](../howto/style.md) before you erase from a pipeline of your own.
