"""Unpaired rows -> rows with KL completions: another row's response after each row's prompt.

KTO's reference point is an estimate of KL(pi_theta || pi_ref) from prompts with responses to other
prompts (Ethayarajh et al. 2024, "KTO: Model Alignment as Prospect Theoretic Optimization", section
4.1). The choice of response depends only on the order of the source, so shards, jobs and restarts
do not change it. TRL uses the response of the previous row in a training batch, which can have the
same prompt, and would tie the cache to the batch size and order.
"""

import itertools
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import replace

from reflogp.stages.cache.row_ids import RowIds, cut_mask
from reflogp.stages.precompute.tokens.tokenize import TokenizedRow

Block = list[TokenizedRow]
_LONGEST_BLOCK = 1_000  # rows; up to four blocks are in memory at a time


def with_kl_completions(rows: Iterable[TokenizedRow], max_length: int) -> Iterator[TokenizedRow]:
    """Give each row a KL completion and a new id that covers it. The order of rows stays.

    Adjacent rows with the same prompt form a block of up to 1,000 rows. The first row of a block
    takes the response of the second row of the next block, the second row that of the third, and so
    on, cyclically; if blocks have equal lengths, every response is used once. The last block is
    followed by the first, or by the second if the first has the same prompt. If there is only one
    prompt, each row takes the response of the next row; a single row takes its own.

    The response is the one in the cache, truncated at the end to the room that the prompt leaves.
    No row is quarantined, and no prompt truncated, because of another row's response.

    Args:
        rows: unpaired rows in the order of the source, which fit `max_length`.
        max_length: largest number of tokens of a sequence.
    """
    ids = RowIds()
    block: Block = []
    beginning: list[Block] = []
    for following in _blocks(rows):
        yield from _crossed(block, following, max_length, ids)
        block = following
        if len(beginning) < 2:
            beginning.append(block)
    others = (other for other in beginning if other[0].prompt_ids != block[0].prompt_ids)
    yield from _crossed(block, next(others, block), max_length, ids)


def _blocks(rows: Iterable[TokenizedRow]) -> Iterator[Block]:
    for _, one_prompt in itertools.groupby(rows, key=lambda row: row.prompt_ids):
        while block := list(itertools.islice(one_prompt, _LONGEST_BLOCK)):
            yield block


def _crossed(
    block: Block, following: Block, max_length: int, ids: RowIds
) -> Iterator[TokenizedRow]:
    for place, row in enumerate(block, start=1):
        other = following[place % len(following)]
        response = other.chosen_ids or other.rejected_ids or array("i")
        room = max_length - len(row.prompt_ids)
        kl_ids, kl_mask = response[:room], cut_mask(other.chosen_mask or other.rejected_mask, room)
        masks = (row.chosen_mask, row.rejected_mask, kl_mask)
        row_id = ids.assign(row.prompt_ids, row.chosen_ids, row.rejected_ids, kl_ids, masks=masks)
        yield replace(row, row_id=row_id, kl_ids=kl_ids, kl_mask=kl_mask)
