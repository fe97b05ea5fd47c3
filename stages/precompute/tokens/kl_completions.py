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

Run = list[TokenizedRow]
_LONGEST_RUN = 1_000  # what is in memory at one time, four times


def with_kl_completions(rows: Iterable[TokenizedRow], max_length: int) -> Iterator[TokenizedRow]:
    """Give each row a KL completion, and an id that it is part of. The order stays.

    Rows of one prompt that stand side by side are a run, of up to 1,000 rows. The first row of a
    run takes the response of the second row of the next run, the second that of the third, and so
    on, counted round: where runs have equal lengths, good and bad responses are all taken once.
    After the last run comes the first, or the second if the first has the same prompt. Where there
    is but one prompt, a row takes the response of the next; where there is but one row, its own.

    The response is the one in the cache, cut at the end to the room that the prompt leaves: a row
    is never set aside, and its prompt never cut, for the response of another.

    Args:
        rows: unpaired, in the order of the source; they fit `max_length`.
        max_length: most tokens of a sequence.
    """
    ids = RowIds()
    run: Run = []
    beginning: list[Run] = []
    for following in _runs(rows):
        yield from _crossed(run, following, max_length, ids)
        run = following
        if len(beginning) < 2:
            beginning.append(run)
    others = (other for other in beginning if other[0].prompt_ids != run[0].prompt_ids)
    yield from _crossed(run, next(others, run), max_length, ids)


def _runs(rows: Iterable[TokenizedRow]) -> Iterator[Run]:
    for _, one_prompt in itertools.groupby(rows, key=lambda row: row.prompt_ids):
        while run := list(itertools.islice(one_prompt, _LONGEST_RUN)):
            yield run


def _crossed(run: Run, following: Run, max_length: int, ids: RowIds) -> Iterator[TokenizedRow]:
    for place, row in enumerate(run, start=1):
        other = following[place % len(following)]
        response = other.chosen_ids or other.rejected_ids or array("i")
        kl_ids = response[: max_length - len(row.prompt_ids)]
        row_id = ids.assign(row.prompt_ids, row.chosen_ids, row.rejected_ids, kl_ids)
        yield replace(row, row_id=row_id, kl_ids=kl_ids)
