"""Unpaired rows -> the same with KL completions: another row's response after each row's prompt.

KTO's reference point is an estimate of KL(pi_theta || pi_ref) from prompts with responses to other
prompts (Ethayarajh et al. 2024, "KTO: Model Alignment as Prospect Theoretic Optimization", section
4.1). Which response that is, the order of the source decides and nothing else, so neither shards
nor jobs nor restarts change it. TRL takes that of the row before, within a batch of training, which
can be one to the same prompt, and binds the cache to the batch size and order.
"""

import itertools
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import replace

from reflogp.stages.cache.row_ids import RowIds
from reflogp.stages.precompute.tokens.tokenize import TokenizedRow

Block = list[TokenizedRow]
_LONGEST_BLOCK = 1_000  # what is in memory at one time, four times


def with_kl_completions(rows: Iterable[TokenizedRow], max_length: int) -> Iterator[TokenizedRow]:
    """Give each row a KL completion, and an id that it is part of. The order stays.

    Rows of one prompt that stand side by side are a block, of up to 1,000 rows. The first row of a
    block takes the response of the second row of the next block, the second that of the third, and
    so on, counted round: where blocks have equal lengths, every response is taken once. After the
    last block comes the first, or the second if the first has the same prompt. Where there is only
    one prompt, a row takes the response of the next; where there is only one row, its own.

    The response is the one in the cache, cut at the end to the room that the prompt leaves: a row
    is never set aside, and its prompt never cut, for the response of another.

    Args:
        rows: unpaired, in the order of the source; they fit `max_length`.
        max_length: most tokens of a sequence.
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
        kl_ids = response[: max_length - len(row.prompt_ids)]
        row_id = ids.assign(row.prompt_ids, row.chosen_ids, row.rejected_ids, kl_ids)
        yield replace(row, row_id=row_id, kl_ids=kl_ids)
