"""A checkpoint is scored or trained with the weights of its architecture, or it is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from reflogp.data_schemas.errors import InputError
from reflogp.pipeline.run import run_precompute, run_train
from reflogp.stages.model.causal_lm import causal_config, load_causal_lm
from reflogp.stages.model.loading import load_saved_tokenizer
from reflogp.stages.precompute.config import PrecomputeConfig
from reflogp.stages.train.config import TrainConfig
from tests.checkpoints import make_random_model
from tests.quantized import quantize

SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
         "num_attention_heads": 2, "num_key_value_heads": 1}  # fmt: skip
LLAMA = transformers.LlamaConfig(**SIZES)
TIED = transformers.LlamaConfig(**SIZES, tie_word_embeddings=True)
MIXTRAL = transformers.MixtralConfig(**SIZES, num_local_experts=4)
TINY = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
        "num_attention_heads": 2}  # fmt: skip
BERT = transformers.BertConfig(**TINY)


def load(folder: Path) -> Any:
    return load_causal_lm(folder, torch.float32)


def edited(folder: Path, edit: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Path:
    """The checkpoint with its weights changed."""
    path = folder / "model.safetensors"
    save_file(edit(load_file(path)), path, metadata={"format": "pt"})
    return folder


def without(part: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda weights: {name: w for name, w in weights.items() if part not in name}


def of_config(folder: Path, **fields: object) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return folder


@pytest.mark.parametrize(
    ("config", "edit", "message"),
    [
        (LLAMA, without("layers.1.mlp"), r"3 missing: model\.layers\.1\.mlp\.down_proj\.weight"),
        (LLAMA, without("lm_head"), r"1 missing: lm_head\.weight"),
        (TIED, without("embed_tokens"), r"2 missing: lm_head\.weight, model\.embed_tokens"),
        (MIXTRAL, without("experts.1.w"), r"4 of another shape.*experts"),
        (MIXTRAL, without("layers.1.block_sparse_moe.experts"), r"2 missing: .*layers\.1.*experts"),
        (
            LLAMA,
            lambda weights: weights | {"model.norm.weight": torch.ones(7)},
            r"1 of another shape: model\.norm\.weight \(stored as \[7\], expected as \[32\]\)",
        ),
        (
            LLAMA,
            lambda weights: weights | {"model.layers.0.self_attn.q_proj.bias": torch.ones(32)},
            r"1 unexpected: model\.layers\.0\.self_attn\.q_proj\.bias",
        ),
        (
            LLAMA,
            lambda weights: {f"base.{name}": weight for name, weight in weights.items()},
            r"21 missing: .* and 18 more; 21 unexpected: .* and 18 more",
        ),
    ],
)  # fmt: skip
def test_weights_of_another_architecture_are_refused_by_name(config, edit, message, tmp_path):
    make_random_model(tmp_path, config)
    load(tmp_path)
    with pytest.raises(InputError, match=message):
        load(edited(tmp_path, edit))


def test_a_stored_head_is_the_one_that_it_is_tied_to_or_refused(tmp_path):
    def headed(change: float) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
        return lambda weights: (
            weights | {"lm_head.weight": weights["model.embed_tokens.weight"] + change}
        )

    make_random_model(tmp_path, TIED)
    load(edited(tmp_path, headed(0)))
    edited(tmp_path, headed(0.1))
    refused = r"lm_head\.weight and model\.embed_tokens\.weight differ, and config\.json ties them"
    with pytest.raises(InputError, match=refused):
        load(tmp_path)
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(InputError, match=refused):
        load(tmp_path)
    load(of_config(tmp_path, tie_word_embeddings=False))


def test_layers_that_predict_further_tokens_are_no_fault_and_others_are(tmp_path):
    def with_layer(number: int) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
        name = f"model.layers.{number}.eh_proj.weight"
        return lambda weights: weights | {name: torch.ones(2, 32)}

    make_random_model(tmp_path, LLAMA)
    of_config(tmp_path, num_nextn_predict_layers=1)
    load(edited(tmp_path, with_layer(2)))
    with pytest.raises(InputError, match=r"1 unexpected: model\.layers\.3\.eh_proj\.weight"):
        load(edited(tmp_path, with_layer(3)))


@pytest.mark.parametrize("name", ["rotary_emb.inv_freq", "attn.bias", "masked_bias"])
def test_buffers_that_older_versions_saved_are_no_fault(name, tmp_path):
    config = transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=2)
    make_random_model(tmp_path, config)
    load(edited(tmp_path, lambda weights: weights | {f"h.0.attn.{name}": torch.zeros(4)}))


@pytest.mark.parametrize("kind", ["int8", "fp8", "int4"])
def test_packed_weights_are_no_fault_and_missing_ones_are(kind, checkpoint, tmp_path):
    folder, _ = quantize(checkpoint, tmp_path, kind, torch.float32)
    load(folder)
    with pytest.raises(InputError, match=r"3 missing: model\.layers\.0\.mlp"):
        load(edited(folder, without("layers.0.mlp")))


def test_a_missing_file_of_weights_is_named(checkpoint, tmp_path):
    load(checkpoint).save_pretrained(tmp_path, max_shard_size="300KB")
    load(tmp_path)
    lost = sorted(tmp_path.glob("*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(InputError, match=f"1 of the .* weight files .*missing: {lost.name}"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("LlamaModel", LLAMA, "a model without a head: config.json names LlamaModel"),
        ("LlamaForSequenceClassification", LLAMA, "a classifier or reward model"),
        ("BertForMaskedLM", BERT, "a masked language model"),
        (
            "ModernBertForMaskedLM",
            transformers.ModernBertConfig(**TINY, pad_token_id=0),
            "a masked language model",
        ),
        (
            "BartForConditionalGeneration",
            transformers.BartConfig(
                vocab_size=64,
                d_model=32,
                encoder_layers=1,
                decoder_layers=1,
                encoder_ffn_dim=48,
                decoder_ffn_dim=48,
                encoder_attention_heads=2,
                decoder_attention_heads=2,
            ),
            "an encoder-decoder",
        ),
        ("BertModel", BERT, "a model without a head"),
        ("BertLMHeadModel", BERT, "depends on the tokens after it"),  # is_decoder is false
        (
            "T5ForConditionalGeneration",
            transformers.T5Config(
                vocab_size=64, d_model=32, d_ff=48, num_layers=1, num_heads=2, d_kv=16
            ),
            "an encoder-decoder",
        ),
    ],
)
@pytest.mark.parametrize("named", [True, False])
def test_what_is_no_causal_language_model_is_refused(name, config, message, named, tmp_path):
    getattr(transformers, name)(config).save_pretrained(tmp_path)
    if not named:  # as of a config.json that was written by hand
        of_config(tmp_path, architectures=None)
        message = r"missing|depends on the tokens after|encoder-decoder|no causal head"
    with pytest.raises(InputError, match=message) as caught:
        load(tmp_path)
    assert str(tmp_path) in str(caught.value)
    if (
        named and "depends" not in message
    ):  # an estimate and a dry run do not read the weights, and say so too
        with pytest.raises(InputError, match=message):
            causal_config(tmp_path)


def test_an_embedding_model_is_refused(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "m")
    (folder / "modules.json").write_text("[]")
    with pytest.raises(InputError, match="an embedding model"):
        load(folder)


def test_code_that_comes_with_a_checkpoint_does_not_run_and_nobody_is_asked(
    checkpoint, tmp_path, monkeypatch
):
    ran = tmp_path / "ran"
    folder = shutil.copytree(checkpoint, tmp_path / "m")
    (folder / "own.py").write_text(f"open({str(ran)!r}, 'w')\n")
    own = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    load(of_config(folder, auto_map=own))  # transformers has this architecture itself
    with pytest.raises(InputError, match="needs Python code from its folder"):
        load(of_config(folder, model_type="own"))
    assert not ran.exists()


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("model.safetensors", "pointer", r"model\.safetensors: a pointer of Git LFS.*git lfs pull"),
        ("tokenizer.json", "pointer", r"tokenizer\.json: a pointer of Git LFS"),
        ("config.json", "pointer", r"config\.json: a pointer of Git LFS"),
        ("model.safetensors", "cut", r"model\.safetensors: the weights cannot be loaded"),
        ("pytorch_model.bin", "pointer", r"pytorch_model\.bin: a pointer of Git LFS"),
        ("pytorch_model.bin", "cut", r"pytorch_model\.bin: the weights cannot be loaded"),
    ],
)
def test_a_file_that_is_not_whole_is_named(name, damage, message, checkpoint, tmp_path):
    path = shutil.copytree(checkpoint, tmp_path / "m") / name
    if name == "pytorch_model.bin":
        torch.save(load_file(path.with_name("model.safetensors")), path)
        path.with_name("model.safetensors").unlink()
    read = load_saved_tokenizer if name == "tokenizer.json" else load
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    path.write_bytes(pointer if damage == "pointer" else path.read_bytes()[:-1000])
    with pytest.raises(InputError, match=message):
        read(path.parent)


class Code:
    """Something that runs when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_pickled_weights_are_read_and_pickled_code_is_not_run(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "m")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    load(folder)
    torch.save(weights | {"x": Code(tmp_path / "ran")}, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"pytorch_model\.bin.*more than tensors.*safetensors"):
        load(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("engine", ["transformers", pytest.param("vllm", marks=pytest.mark.vllm)])
def test_neither_stage_begins_with_weights_that_are_missing(
    engine, checkpoint, cache, few_preferences, tmp_path, console, monkeypatch
):
    folder = shutil.copytree(checkpoint, tmp_path / "m")
    edited(folder, without("layers.1.mlp"))
    monkeypatch.setattr(
        "reflogp.stages.precompute.score.worker.start",
        lambda *_: pytest.fail("an engine was started"),
    )
    config = PrecomputeConfig(
        reference=str(folder), data=str(few_preferences), cache=tmp_path / "c", engine=engine
    )
    with pytest.raises(InputError, match="3 missing"):
        run_precompute(config, console)
    assert not list(tmp_path.glob("c/**/*.parquet"))
    train = TrainConfig(
        cache=cache, policy=str(folder), output=tmp_path / "o", allow_mismatch=True, max_steps=1
    )
    with pytest.raises(InputError, match="3 missing"):
        run_train(train, console)
