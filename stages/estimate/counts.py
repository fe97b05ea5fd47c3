"""Preferences -> token counts, of all rows or scaled up from a sample."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reflogp.data_schemas.errors import InputError
from reflogp.stages.cache.quarantine_file import Quarantine
from reflogp.stages.estimate.config import PlanConfig
from reflogp.stages.model.checkpoint import Checkpoint
from reflogp.stages.precompute.plan.make_plan import load_tokenizer, tell
from reflogp.stages.precompute.read.sources import read_source
from reflogp.stages.precompute.score.engines.shared_beginnings import common_length
from reflogp.stages.precompute.tokens.reader import Reader
from reflogp.stages.precompute.tokens.tokenize import TokenizedRow
from reflogp.stages.progress import Console

_COLUMNS = ("prompt", "response", "sequence", "distinct", "attended", "head_rows")
_Measured = NDArray[np.float64]


@dataclass(frozen=True)
class TokenCounts:
    """Token counts of all usable rows, estimated from a sample unless all rows were tokenized.

    Attributes:
        rows: usable rows.
        read: rows of the source.
        sampled: rows that were tokenized.
        prompt, response: tokens; each row's prompt counts once. KL completions of unpaired rows
            count as responses.
        sequence: tokens of prompt + response, summed over all responses.
        distinct: tokens to compute if prompts, and common beginnings of a row's two responses, are
            shared.
        attended: sum over the distinct tokens of the tokens that each attends to.
        head_rows: rows that the head must compute.
        longest_pair, longest_sequence: largest lengths in the sample, in tokens.
        error: relative standard error of `sequence` due to sampling.
    """

    rows: int
    read: int
    sampled: int
    prompt: float
    response: float
    sequence: float
    distinct: float
    attended: float
    head_rows: float
    longest_pair: int
    longest_sequence: int
    error: float


def count(config: PlanConfig, reference: Checkpoint, console: Console) -> TokenCounts:
    """Tokenize the rows of `config`, or every n-th of them, exactly as stage one would.

    Raises:
        InputError: the data or the tokenizer cannot be used, or no sampled row can.
    """
    tokenizer, _ = load_tokenizer(reference, config)
    read = sum(1 for _ in read_source(*config.source())) if config.sample else 0
    every = max(1, read // config.sample) if config.sample else 1
    with (
        tempfile.TemporaryDirectory() as folder,
        Quarantine(Path(folder) / "rows.parquet") as aside,
        console.track("tokenizing", None, "rows") as advance,
    ):
        reader = Reader(config, aside)
        measured = list(_measured(reader.tokenized(tokenizer, advance, every), shared=every == 1))
        if not measured:
            raise InputError(
                f"{config.data}: none of the {reader.read} rows can be used: {aside.summary()}."
            )
    tell(reader.reading(), console)
    if aside.reasons:
        console.warn(aside.summary())
    figures = np.array(measured)
    read = read or reader.read
    scale = read / reader.read
    longest_pair, longest = figures[:, -2:].max(axis=0).astype(int).tolist()
    totals = figures[:, : len(_COLUMNS)].sum(axis=0) * scale
    return TokenCounts(
        rows=round(len(figures) * scale),
        read=read,
        sampled=reader.read,
        longest_pair=longest_pair,
        longest_sequence=longest,
        error=_error(figures[:, _COLUMNS.index("sequence")], reader.read, read),
        **dict(zip(_COLUMNS, totals.tolist(), strict=True)),
    )


def _measured(rows: Iterator[TokenizedRow], *, shared: bool) -> Iterator[tuple[int, ...]]:
    """_COLUMNS of each row, the tokens of the whole pair, and those of its longer sequence.

    Args:
        rows: to measure.
        shared: whether all rows are here, so prompts shared by several rows are counted once.
    """
    known: set[bytes] = set()
    for row in rows:
        prompt = len(row.prompt_ids)
        sides = (
            (row.chosen_ids, row.chosen_mask),
            (row.rejected_ids, row.rejected_mask),
            (row.kl_ids, row.kl_mask),
        )
        responses = [ids for ids, _ in sides if ids is not None]
        masks = [mask or b"" for ids, mask in sides if ids is not None]
        response = sum(map(len, responses))
        alike = 0
        if len(responses) > 1:
            alike = common_length(*(np.array(ids, np.int32) for ids in responses))
        # what the second response has in common with the first is counted once
        context = sum(mask.count(0, start) for mask, start in zip(masks, (0, alike), strict=False))
        key = bytes(row.prompt_ids)
        again = prompt if shared and key in known else 0
        known.add(key)
        ends = [prompt + len(ids) for ids in responses]
        attended = sum(map(_sum_to, ends)) - (len(ends) - 1) * _sum_to(prompt + alike)
        yield (
            prompt, response, sum(ends), prompt + response - alike - again,
            attended - _sum_to(again), response - alike - context, prompt + response, max(ends),
        )  # fmt: skip


def _sum_to(number: int) -> int:
    return number * (number + 1) // 2


def _error(tokens: _Measured, sampled: int, read: int) -> float:
    """Return the relative standard error of the mean, with the finite population correction."""
    if len(tokens) < 2 or sampled == read:
        return 0.0
    spread = float(tokens.std(ddof=1) / tokens.mean())
    return spread / float(np.sqrt(len(tokens))) * float(np.sqrt(1 - sampled / read))
