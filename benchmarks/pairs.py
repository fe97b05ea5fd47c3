"""Pairs of token ids: synthetic ones with lengths as data has them, and what there is to count."""

from typing import Any

import numpy as np

from reflogp.stages.precompute.score.engines.shared_beginnings import common_length

Pairs = list[dict[str, Any]]
"""Each with `prompt_ids`, `chosen_ids` and `rejected_ids`, lists of token ids."""

# Median and sigma of lognormal lengths in tokens; like instruction data of today (UltraFeedback),
# with means of about 180 and 280.
_PROMPT, _RESPONSE = (120, 0.9), (220, 0.7)


def synthetic_pairs(count: int, vocabulary: int, max_length: int, seed: int = 0) -> Pairs:
    """Pairs of random tokens, each within `max_length` as truncation from the end leaves it."""
    rng = np.random.default_rng(seed)

    def ids(median: float, sigma: float, most: int) -> list[int]:
        length = int(np.clip(rng.lognormal(np.log(median), sigma), 1, most))
        found: list[int] = rng.integers(vocabulary, size=length).tolist()
        return found

    pairs: Pairs = []
    for _ in range(count):
        prompt = ids(*_PROMPT, max_length // 2)
        chosen, rejected = (ids(*_RESPONSE, max_length - len(prompt)) for _ in range(2))
        pairs.append({"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected})
    return pairs


def token_counts(pairs: Pairs) -> dict[str, int]:
    """Tokens of all sequences, of the responses, and distinct ones."""
    counts = {"pairs": len(pairs), "sequence_tokens": 0, "response_tokens": 0, "distinct_tokens": 0}
    for pair in pairs:
        responses, prompt = (
            len(pair["chosen_ids"]) + len(pair["rejected_ids"]),
            len(pair["prompt_ids"]),
        )
        counts["sequence_tokens"] += 2 * prompt + responses
        counts["response_tokens"] += responses
        counts["distinct_tokens"] += prompt + responses - shared(pair)
    return counts


def shared(pair: dict[str, Any]) -> int:
    """How many tokens both responses of a pair begin with."""
    return common_length(np.array(pair["chosen_ids"]), np.array(pair["rejected_ids"]))
