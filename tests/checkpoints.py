"""Tiny real checkpoints: a trained tokenizer and a randomly initialised model, saved to disk."""

import json
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)

EXAMPLES = Path(__file__).parents[1] / "examples"
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def example_texts() -> list[str]:
    """All texts of the project's own preferences."""
    lines = (EXAMPLES / "preferences.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [m["content"] for row in rows for k in ("prompt", "chosen", "rejected") for m in row[k]]


def make_tokenizer(
    *, chat_template: str | None = CHATML, bos: bool = False, vocabulary: int = 1024
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on the examples; with `bos`, raw text begins with <s>."""
    special = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<end_of_turn>"]
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(example_texts(), trainer)
    if bos:
        core.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", core.token_to_id("<s>"))]
        )
    eos = "</s>" if bos else "<|im_end|>"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token=eos, pad_token=eos
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def make_checkpoint(
    folder: Path,
    *,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    layers: int = 2,
    **tokenizer_options: object,
) -> Path:
    """Save a small Llama with a tokenizer to `folder`."""
    torch.manual_seed(seed)
    tokenizer = make_tokenizer(**tokenizer_options)  # type: ignore[arg-type]
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        # wide enough that log-probs differ from token to token and depend on the context
        initializer_range=0.15,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_adapter(checkpoint: Path, folder: Path, **settings: object) -> Path:
    """Save a random LoRA adapter for `checkpoint` that moves its log-probs, to `folder`."""
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    # init_lora_weights=False: B is random too, where a new adapter's is 0
    plain: dict[str, object] = {"r": 4, "target_modules": "all-linear", "init_lora_weights": False}
    config = LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.5, **plain | settings)
    joined = get_peft_model(model, config)
    with torch.no_grad():
        for name, weight in joined.named_parameters():
            if ".lora_" in name:
                weight.normal_(std=0.1)
    joined.save_pretrained(folder)
    return folder


def make_random_model(folder: Path, config: PretrainedConfig, *, seed: int = 0) -> Path:
    """Save a float32 model of any architecture, without a tokenizer, to `folder`."""
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(config).to(torch.float32).save_pretrained(folder)
    return folder
