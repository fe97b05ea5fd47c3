"""Which pairs of a cache are held out of training, to measure it on."""

from hashlib import blake2b

from stages.train.cached_rows import Rows


def held_out(pairs: Rows, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Part a cache's rows into those to train on and those to evaluate on.

    All pairs of one prompt are on one side: a prompt that was trained on tells nothing of others.
    Which prompts are held out depends on their token ids and the seed, and not on where they stand.

    Args:
        pairs: of the cache.
        share: of the rows to hold out; the prompt that reaches it is the last one.
        seed: of the draw.

    Returns:
        The positions of both, in ascending order.
    """
    if not share:
        return list(range(len(pairs))), []
    by_prompt: dict[bytes, list[int]] = {}
    for row in range(len(pairs)):
        prompt = pairs[row].prompt_ids.tobytes()
        digest = blake2b(prompt, digest_size=16, salt=seed.to_bytes(8, "big")).digest()
        by_prompt.setdefault(digest, []).append(row)
    evaluated: list[int] = []
    for digest in sorted(by_prompt):
        if len(evaluated) >= share * len(pairs):
            break
        evaluated += by_prompt[digest]
    others = set(evaluated)
    return [row for row in range(len(pairs)) if row not in others], sorted(evaluated)
