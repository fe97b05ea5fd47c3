"""Random pairs as text, and a tokenizer for which every word of this text is one token."""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

_SPECIAL = ["<unk>", "<s>", "</s>"]

Lengths = tuple[int, int, int]
"""Words of prompt, chosen and rejected."""


def save_tokenizer(folder: Path, vocabulary: int) -> None:
    """Save a tokenizer for the words w3, w4, ... to `folder`."""
    words = [*_SPECIAL, *(f"w{number}" for number in range(len(_SPECIAL), vocabulary))]
    ids = {word: number for number, word in enumerate(words)}
    core = Tokenizer(models.WordLevel(ids, _SPECIAL[0]))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = ("unk_token", "bos_token", "eos_token")
    special = dict(zip(names, _SPECIAL, strict=True)) | {"pad_token": _SPECIAL[0]}
    PreTrainedTokenizerFast(tokenizer_object=core, **special).save_pretrained(folder)


def write_pairs(file: Path, lengths: Iterable[Lengths], vocabulary: int) -> Path:
    """Write pairs of random words to `file`. Prompts of the same length are the same prompt."""
    random = np.random.default_rng(0)
    with file.open("w", encoding="utf-8") as lines:
        for prompt, chosen, rejected in lengths:
            pair = {
                "prompt": _text(np.random.default_rng(prompt), prompt, vocabulary),
                "chosen": " " + _text(random, chosen, vocabulary),
                "rejected": " " + _text(random, rejected, vocabulary),
            }
            lines.write(json.dumps(pair) + "\n")
    return file


def _text(random: np.random.Generator, words: int, vocabulary: int) -> str:
    return " ".join(f"w{number}" for number in random.integers(len(_SPECIAL), vocabulary, words))
