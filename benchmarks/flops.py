"""What a forward needs at the least, and what the device can do: so how near to it a contender is.

Needed is each distinct token of a pair once through the layers, its attention to all before it, and
the head once for each row that predicts a response token. A contender that computes more (padding,
prompts twice, the head on prompts) is not credited with it.
"""

import math
import time
from typing import Any

import torch

from benchmarks.pairs import Pairs, shared

_SIZE = {"cuda": 8192, "cpu": 1024}
_TRIES = 10


def flops_a_token(config: Any) -> dict[str, int]:
    """Operations of one token, a multiplication and an addition each counting as one.

    Returns:
        `layers`: all matrix products of the layers; `attention`: for each token that it attends to,
        over all layers; `head`: the head.
    """
    hidden, heads = config.hidden_size, config.num_attention_heads
    width = getattr(config, "head_dim", None) or hidden // heads
    attention = 2 * hidden * width * (heads + config.num_key_value_heads)  # q and o, k and v
    layer = attention + 3 * hidden * config.intermediate_size
    return {
        "layers": 2 * config.num_hidden_layers * layer,
        "attention": 4 * config.num_hidden_layers * heads * width,
        "head": 2 * hidden * config.vocab_size,
    }


def needed_flops(pairs: Pairs, cost: dict[str, int]) -> int:
    """What all pairs need at the least, with `cost` from flops_a_token."""
    total = 0
    for pair in pairs:
        prompt, alike = len(pair["prompt_ids"]), shared(pair)
        chosen, rejected = (prompt + len(pair[f"{side}_ids"]) for side in ("chosen", "rejected"))
        distinct = chosen + rejected - prompt - alike
        # of 1, 2, ... tokens up to the end, less what the rejected response has from the chosen
        attended = _sum_to(chosen) + _sum_to(rejected) - _sum_to(prompt + alike)
        # where the responses part, one row predicts the next token of both
        rows = distinct - prompt
        rows -= alike < min(chosen, rejected) - prompt
        total += cost["layers"] * distinct + cost["attention"] * attended + cost["head"] * rows
    return total


def matmul_peak() -> float:
    """Operations a second of the best of some large bfloat16 products on this device."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = _SIZE[device]
    left = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    right = torch.randn_like(left)
    best = math.inf
    for _ in range(_TRIES):
        begin = time.perf_counter()
        (left @ right)[0, 0].item()  # waits for the device
        best = min(best, time.perf_counter() - begin)
    return 2 * size**3 / best


def _sum_to(number: int) -> int:
    return number * (number + 1) // 2
