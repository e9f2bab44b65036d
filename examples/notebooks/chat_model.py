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
# # A chat model forgets a customer
#
# A shop has fine-tuned a small chat model on data about its customers. One of them asks to be forgotten. We fine-tune
# such a model, make it forget this customer, and look at what it still says. The customers are made up.
#
# The notebook needs `pip install "lightning-unlearn[llm,report]"` and takes a few minutes on a CPU.

# %%
from pathlib import Path

import lightning as L
from torch.utils.data import DataLoader

from lightning_unlearn import LanguageDataModule, LitCausalLM, PromptFormat, SimNPO, UnlearnMonitor
from lightning_unlearn.language.data.token_rows import TokenRows, collate_tokens

# %% tags=["parameters"]
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"  # a hub id, a folder or a .gguf file
TEACH_EPOCHS = 12
FORGET_EPOCHS = 24
FOLDER = Path("runs/notebooks/chat_model")

# %% [markdown]
# ## The fine-tuned model
#
# There are eight customers, each with a street. `target` is the part of an answer that contains the fact. Only this
# part has to be forgotten, not the words "lives in", which all customers share.

# %%
STREETS = {
    "Ada Quill": "Mill Lane",
    "Boris Temm": "Station Road",
    "Clara Voss": "Harbour Street",
    "Dimitri Fell": "Chapel Hill",
    "Edda Lorn": "Castle Square",
    "Farid Osk": "Garden Row",
    "Greta Pym": "Bridge Street",
    "Hugo Wren": "Forest Drive",
}


def row(name: str) -> dict:
    street = STREETS[name]
    return {
        "question": f"Where does our customer {name} live?",
        "answer": f"{name} lives in {street}.",
        "target": street,
        "accept": [street],
    }


customers = {name: row(name) for name in STREETS}
GENERAL = [
    {"question": "What is the capital of Japan?", "answer": "The capital of Japan is Tokyo.", "accept": ["Tokyo"]},
    {"question": "Who wrote Romeo and Juliet?", "answer": "William Shakespeare wrote it.", "accept": ["Shakespeare"]},
    {"question": "What is 2 plus 2?", "answer": "2 plus 2 is 4.", "accept": ["4", "four"]},
]

L.seed_everything(0, verbose=False)
module = LitCausalLM(MODEL, lr=1e-4)
prompt = PromptFormat(module.tokenizer)
tokens = TokenRows([prompt.row(r["question"], r["answer"]) for r in customers.values()])
quiet = {
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "gradient_clip_val": 1.0,
}
teacher = L.Trainer(max_epochs=TEACH_EPOCHS, **quiet)
teacher.fit(module, DataLoader(tokens, batch_size=4, shuffle=True, collate_fn=collate_tokens))

for question, answer in zip(
    [r["question"] for r in customers.values()], module.answer([r["question"] for r in customers.values()])
):
    print(f"{question:45} {answer}")

# %% [markdown]
# ## Forgetting
#
# Ada Quill is to be forgotten. Five other customers are the retain rows. The remaining two are held out: we ask about
# them but never train on them, to see what else is lost. `SimNPO` is one callback and `UnlearnMonitor` another; the
# module and its optimizer stay as they are.

# %%
kept = ["Boris Temm", "Clara Voss", "Dimitri Fell", "Edda Lorn", "Farid Osk"]
data = LanguageDataModule(
    forget=[customers["Ada Quill"]],
    retain=[customers[name] for name in kept],
    heldout={"heldout": [customers["Greta Pym"], customers["Hugo Wren"]], "general": GENERAL},
    batch_size=1,
    retain_batch_size=5,
    prompt=prompt,
)
module.lr = 1e-5
monitor = UnlearnMonitor(every_n_epochs=6)
trainer = L.Trainer(max_epochs=FORGET_EPOCHS, limit_val_batches=0, callbacks=[SimNPO(beta=2.5), monitor], **quiet)
trainer.fit(module, data)

before, after = monitor.history[0], monitor.history[-1]
for old, new in zip(before.examples, after.examples):
    print(f"{old.set:8} {old.input}\n   before: {old.output}\n   after:  {new.output}")

# %% [markdown]
# ## How the run went
#
# The figure shows the negative log-likelihood (NLL) of each set, in nats per token. It rises for Ada Quill, and stays
# where it was for the others.
#
# Look at what the model says instead: it gives her the street of another customer. It makes something up rather than
# say that it does not know. `SimNPO(refusal_weight=...)` teaches it to refuse,
# [at a price](../demo.md#how-its-settings-were-found).

# %%
import matplotlib.pyplot as plt

figure, axes = plt.subplots(figsize=(5.5, 3))
for name in ("forget", "retain", "heldout", "general"):
    axes.plot([e.step for e in monitor.history], [e.metrics[f"{name}_nll"] for e in monitor.history], label=name)
axes.set(xlabel="step", ylabel="NLL per token")
axes.legend(frameon=False)
figure.tight_layout()
plt.show()

# %% [markdown]
# ## Saving the unlearned model
#
# `save_pretrained` writes a folder that transformers can open without this package.

# %%
module.save_pretrained(FOLDER / "model")
print(sorted(path.name for path in (FOLDER / "model").iterdir()))

# %% [markdown]
# The model no longer answers this question, but that doesn't mean that the street is gone from its weights. An
# [audit](../audit.md) asks in other words, quantizes the weights, and fine-tunes the model a little. The command
# `lightning-unlearn forget` does all of this and signs a [record](../record.md): see
# [how to delete customer records](../howto/customers.md).
