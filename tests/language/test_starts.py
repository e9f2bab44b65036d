"""Original models of `LitCausalLM`: objects, checkpoints and folders, and refusals before anything trains."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_unlearn import GradDiff, LanguageDataModule, LitCausalLM, PromptFormat
from lightning_unlearn.core.sources import open_tokenizer
from lightning_unlearn.language.limits import learned_positions
from tests.user_module import LitNet, trainer

PURPOSE = "LitCausalLM is for causal language models"
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def fit(module: LitCausalLM, forget: Any, retain: Any, **options: Any) -> Any:
    run = trainer(GradDiff(), max_epochs=1, limit_val_batches=0)
    run.fit(module, LanguageDataModule(forget, retain, **options))
    return run


def bart(**options: Any) -> Any:
    sizes = {f"{side}_{part}": 2 for side in ("encoder", "decoder") for part in ("layers", "attention_heads")}
    return transformers.BartConfig(
        vocab_size=300, d_model=32, encoder_ffn_dim=32, decoder_ffn_dim=32, **sizes, **options
    )


def small(kind: str, **options: Any) -> Any:
    return getattr(transformers, f"{kind}Config")(vocab_size=300, **SMALL, **options)


NO_CAUSAL_MODELS: dict[str, Callable[[], Any]] = {
    "reads text in both directions": lambda: transformers.BertForMaskedLM(small("Bert")),
    "RobertaForMaskedLM, which reads": lambda: transformers.RobertaForMaskedLM(small("Roberta")),
    "ElectraForPreTraining": lambda: transformers.ElectraForPreTraining(small("Electra")),
    "has an encoder and a decoder": lambda: transformers.BartForConditionalGeneration(bart()),
    "T5ForConditionalGeneration": lambda: transformers.T5ForConditionalGeneration(
        transformers.T5Config(vocab_size=300, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2)
    ),
    "is a classifier": lambda: transformers.LlamaForSequenceClassification(small("Llama", num_key_value_heads=2)),
    "GPT2ForTokenClassification": lambda: transformers.GPT2ForTokenClassification(
        transformers.GPT2Config(vocab_size=300, n_embd=32, n_layer=1, n_head=2)
    ),
    "lacks 1 of the weights of a LlamaForCausalLM, such as 'lm_head.weight'": lambda: transformers.LlamaModel(
        small("Llama", num_key_value_heads=2)
    ),
    "depend on later tokens": lambda: transformers.XLNetLMHeadModel(
        transformers.XLNetConfig(vocab_size=300, d_model=32, n_layer=2, n_head=2, d_inner=64)
    ),
    "images or sound": lambda: transformers.Gemma3ForConditionalGeneration(
        transformers.Gemma3Config(
            text_config={"vocab_size": 300, "head_dim": 16, "num_key_value_heads": 1, **SMALL},
            vision_config={**SMALL, "image_size": 28, "patch_size": 14},
            mm_tokens_per_image=4,
        )
    ),
    "no language model": lambda: transformers.ViTModel(transformers.ViTConfig(image_size=32, **SMALL)),
}


@pytest.mark.parametrize("says", NO_CAUSAL_MODELS)
def test_what_is_no_causal_language_model_is_refused(says: str, tmp_path: Path) -> None:
    model = NO_CAUSAL_MODELS[says]()
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=re.escape(says)) as caught:
        LitCausalLM(str(tmp_path))
    assert PURPOSE in str(caught.value)
    assert len(str(caught.value)) < 500
    if "lacks" not in says:  # of an object all weights are there
        with pytest.raises(ValueError, match=re.escape(says)):
            LitCausalLM(model)


def test_weights_that_the_model_has_no_place_for_are_named(tiny_lm: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_lm, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    bias = {"model.layers.0.self_attn.q_proj.bias": torch.ones(32)}
    save_file(weights | bias, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.warns(UserWarning, match=r"that a LlamaForCausalLM has no place for, such as .*q_proj"):
        LitCausalLM(folder)


def test_objects_without_an_output_layer_or_with_weights_elsewhere_are_refused(tmp_path: Path) -> None:
    model = transformers.LlamaForCausalLM(small("Llama", num_key_value_heads=2))
    with pytest.raises(ValueError, match=r"LlamaModel, which gives hidden states and no logits"):
        LitCausalLM(model.model)
    model.save_pretrained(tmp_path / "model")
    places = {"model.embed_tokens": "cpu", "model.layers": "disk", "model.norm": "cpu", "lm_head": "cpu"}
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", device_map={**places, "model.rotary_emb": "cpu"}, offload_folder=str(tmp_path / "offload")
    )
    with pytest.raises(ValueError, match=r"loaded with device_map, which has put its weights on cpu, disk"):
        LitCausalLM(model)
    LitCausalLM(AutoModelForCausalLM.from_pretrained(tmp_path / "model", device_map="cpu"))


CAUSAL_MODELS: dict[str, Callable[[], Any]] = {
    "RoBERTa decoder": lambda: transformers.RobertaForCausalLM(small("Roberta", is_decoder=True)),
    "BART decoder": lambda: transformers.BartForCausalLM(bart()),
    "GPT-2 without a head of its own": lambda: transformers.GPT2Model(
        transformers.GPT2Config(vocab_size=300, n_embd=32, n_layer=1, n_head=2)
    ),
    "Mamba": lambda: transformers.MambaForCausalLM(
        transformers.MambaConfig(vocab_size=300, hidden_size=32, num_hidden_layers=1, state_size=4)
    ),
    "mixture of experts": lambda: transformers.MixtralForCausalLM(
        small("Mixtral", num_key_value_heads=2, num_local_experts=4)
    ),
}


@pytest.mark.parametrize("kind", CAUSAL_MODELS)
def test_causal_decoders_of_any_family_open(kind: str, tmp_path: Path) -> None:
    CAUSAL_MODELS[kind]().save_pretrained(tmp_path)
    module = LitCausalLM(str(tmp_path))
    assert module.tokenizer is None
    module.save_pretrained(tmp_path / "out")
    assert LitCausalLM(str(tmp_path / "out")).model.config.model_type == module.model.config.model_type


@pytest.mark.parametrize("kind", ["Llama", "Qwen2", "Gemma", "GPT2"])
def test_a_folder_without_tokenizer_takes_that_of_the_data_or_says_so(
    kind: str, tiny_lm: Path, tmp_path: Path, forget_rows: list[Any]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_lm)
    config = getattr(transformers, f"{kind}Config")(vocab_size=len(tokenizer), num_key_value_heads=2, **SMALL)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="the module has none either: its model came without tokenizer files"):
        fit(LitCausalLM(str(tmp_path)), forget_rows, forget_rows)
    with pytest.raises(ValueError, match=r"tokenizer"):
        open_tokenizer(tmp_path)
    module = LitCausalLM(str(tmp_path))
    fit(module, forget_rows, forget_rows, prompt=PromptFormat(tokenizer))
    assert module.tokenizer is tokenizer
    assert len(module.answer(["Where?"])) == 1
    module.save_pretrained(tmp_path / "out")
    text = forget_rows[0]["question"]
    named = LitCausalLM(str(tmp_path), tokenizer=str(tiny_lm)).tokenizer
    for same in (AutoTokenizer.from_pretrained(tmp_path / "out"), named):
        assert same(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_a_model_object_trains_and_its_checkpoint_says_what_it_needs(
    tiny_lm: Path, tmp_path: Path, forget_rows: list[Any]
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_lm)
    module = LitCausalLM(model, lr=1e-2)
    assert module.model is model
    assert module.tokenizer is not None  # that of the folder which the object names
    fit(module, forget_rows, forget_rows[:1]).save_checkpoint(tmp_path / "run.ckpt")
    with pytest.raises(ValueError, match=r"made of a model object.*load_from_checkpoint\(path, model=\.\.\.\)"):
        LitCausalLM.load_from_checkpoint(tmp_path / "run.ckpt", weights_only=True)
    again = LitCausalLM.load_from_checkpoint(tmp_path / "run.ckpt", weights_only=True, model=str(tiny_lm))
    for name, value in module.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    for other in (torch.nn.Linear(2, 2), LitNet()):
        with pytest.raises(TypeError, match=r"model must be .* but got a "):
            LitCausalLM(other)


@pytest.mark.parametrize("lora", [None, {"r": 4, "target_modules": "all-linear"}])
def test_a_checkpoint_is_a_start_and_a_moved_model_is_named(
    lora: Any, tiny_lm: Path, tmp_path: Path, forget_rows: list[Any]
) -> None:
    base = shutil.copytree(tiny_lm, tmp_path / "base")
    module = LitCausalLM(str(base), lr=1e-2, lora=lora)
    fit(module, forget_rows, forget_rows[:1]).save_checkpoint(tmp_path / "run.ckpt")
    ids = torch.tensor([[5, 9, 40]])
    start = LitCausalLM(str(tmp_path / "run.ckpt"))
    assert not hasattr(start.model, "peft_config") or start.hparams["lora"] is None
    assert all(parameter.requires_grad for parameter in start.model.parameters())
    torch.testing.assert_close(start.model.eval()(ids).logits, module.model.eval()(ids).logits, atol=1e-5, rtol=1e-4)
    base.rename(tmp_path / "moved")
    with pytest.raises(FileNotFoundError, match=r"no folder .*base.*load_from_checkpoint\(path, model=\.\.\.\)"):
        LitCausalLM.load_from_checkpoint(tmp_path / "run.ckpt", weights_only=True)
    LitCausalLM.load_from_checkpoint(tmp_path / "run.ckpt", weights_only=True, model=str(tmp_path / "moved"))


def test_folders_and_files_that_hold_no_model_are_named(tiny_lm: Path, tmp_path: Path) -> None:
    def made(name: str, *files: str) -> str:
        for file in files:
            path = tmp_path / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}")
        return str(tmp_path / name)

    (tmp_path / "x.safetensors").touch()
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    cases: list[tuple[str, type[Exception], str]] = [
        (str(tmp_path / "none"), FileNotFoundError, "There is no folder"),
        ("./none", FileNotFoundError, "There is no folder ./none .looked in"),
        ("no/such-model", ValueError, "no folder no/such-model .looked in .*, and the hub gives no model of that id"),
        (str(tmp_path / "x.safetensors"), ValueError, "is a file. LitCausalLM opens a folder"),
        (made("sd", "model_index.json"), ValueError, "pipeline of diffusers.*LitTextToImage"),
        (made("ggufs", "a.gguf"), ValueError, "Give the path of one of these inside it: a.gguf"),
        (made("run", "checkpoint-5/config.json"), ValueError, "one of these inside it: checkpoint-5"),
        (made("empty", "notes.md"), ValueError, f"no config.json, so it is no folder of a model. {PURPOSE}"),
        (made("tf", "config.json", "tf_model.h5"), ValueError, "holds only tf_model.h5, weights of another format"),
        (made("flax", "config.json", "flax_model.msgpack"), ValueError, "holds only flax_model.msgpack"),
        (made("bare", "config.json"), ValueError, "holds no weights"),
        (str(tmp_path / "other.ckpt"), ValueError, "checkpoint of a class that it does not name"),
        (str(tmp_path / "none.ckpt"), FileNotFoundError, "There is no file"),
    ]
    code = shutil.copytree(tiny_lm, tmp_path / "code")
    config = json.loads((code / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine", "AutoModelForCausalLM": "mine.Model"}}
    (code / "config.json").write_text(json.dumps(config))
    cases.append((str(code), ValueError, "Python code of its own.*trust_remote_code=True"))
    for name, kind, message in cases:
        with pytest.raises(kind, match=message) as caught:
            LitCausalLM(name)
        assert "\n" not in str(caught.value)


def test_rows_beyond_the_model_are_refused_before_training(
    tiny_lm: Path, tmp_path: Path, forget_rows: list[Any]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_lm)
    size = len(tokenizer)
    larger = AutoTokenizer.from_pretrained(tiny_lm)
    larger.add_special_tokens({"eos_token": "<extra>"})
    module = LitCausalLM(str(tiny_lm))
    with pytest.raises(ValueError, match=rf"token {size} \('<extra>'\), but the model has {size} embeddings"):
        fit(module, [{"text": "The <extra> end."}], forget_rows, prompt=PromptFormat(larger))
    with pytest.raises(ValueError, match=f"the token {size}, but the model has {size} embeddings"):
        module(torch.tensor([[size]]))

    vocabulary = json.loads((tiny_lm / "tokenizer.json").read_text())
    shutil.copytree(tiny_lm, tmp_path / "other")
    words = vocabulary["model"]["vocab"]
    vocabulary["model"]["vocab"] = {
        word: words[other] for word, other in zip(words, [*list(words)[1:], next(iter(words))], strict=True)
    }
    (tmp_path / "other" / "tokenizer.json").write_text(json.dumps(vocabulary))
    with pytest.raises(ValueError, match=r"is not that of the model: it numbers .* shared tokens differently"):
        fit(module, forget_rows, forget_rows, prompt=PromptFormat(str(tmp_path / "other")))

    text = [{"text": "The capital of France is Paris. " * 40}]
    learned = transformers.GPT2Config(vocab_size=size, n_embd=32, n_layer=1, n_head=2, n_positions=64)
    module = LitCausalLM(transformers.GPT2LMHeadModel(learned), tokenizer=tokenizer)
    with pytest.raises(
        ValueError, match=r"row of 128 tokens, but the model has learned positions for 64.*max_length=64"
    ):
        fit(module, text, text, max_length=128)
    with pytest.raises(ValueError, match="rows have 65 tokens, but the model has learned positions for 64"):
        module(torch.zeros(1, 65, dtype=torch.int64))
    with pytest.warns(UserWarning, match=r"made for 256 \(its max_position_embeddings\)"):
        fit(LitCausalLM(str(tiny_lm)), text, text, max_length=300)


def test_learned_positions_are_those_that_run() -> None:
    options = {"vocab_size": 50, "max_position_embeddings": 20}
    families = [
        transformers.GPT2LMHeadModel(
            transformers.GPT2Config(vocab_size=50, n_embd=32, n_layer=1, n_head=2, n_positions=20)
        ),
        transformers.OPTForCausalLM(
            transformers.OPTConfig(**SMALL, ffn_dim=32, word_embed_proj_dim=32, **options)  # type: ignore[arg-type]
        ),
        transformers.RobertaForCausalLM(transformers.RobertaConfig(**SMALL, is_decoder=True, **options)),  # type: ignore[arg-type]
        transformers.GPTJForCausalLM(
            transformers.GPTJConfig(vocab_size=50, n_embd=32, n_layer=1, n_head=2, n_positions=20, rotary_dim=8)
        ),
        transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL, **options)),  # type: ignore[arg-type]
    ]
    for model in families[:-1]:
        longest = learned_positions(model)
        assert longest is not None
        assert longest > 10
        model(torch.full((1, longest), 7))
        with pytest.raises((IndexError, RuntimeError)):
            model(torch.full((1, longest + 1), 7))
    assert learned_positions(families[-1]) is None
