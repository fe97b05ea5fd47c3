"""Planned shard + scorer -> finished rows. No number gets in unchecked."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from reflogp.data_schemas.cache_shard import RESPONSES, SHARD_SCHEMA, unweighted
from reflogp.data_schemas.errors import ReflogpError
from reflogp.stages.cache.columns import View, list_column, views
from reflogp.stages.cache.shard_content import ROUNDING
from reflogp.stages.precompute.score.engines.protocol import Logps, Request, Scorer

_REQUESTS_AT_ONCE = 256  # in one call of the engine, between two steps of the progress bar
# Up to so many responses of a shard, or a quarter of them, are rescored one by one. Where more are
# wrong the engine is, and not they.
_FEW = 16


class ScoredTable(NamedTuple):
    """A planned shard once scored.

    Attributes:
        table: the finished rows, as SHARD_SCHEMA.
        problems: the source rows whose scores cannot be right, with why; they are not in `table`.
        rescued: responses in `table` whose log-probs were wrong at first and right when rescored.
    """

    table: pa.Table
    problems: list[tuple[int, str]]
    rescued: int


def score_table(table: pa.Table, scorer: Scorer, advance: Callable[[float], None]) -> ScoredTable:
    """Score every response of a planned shard, those that come out wrong a second time.

    Args:
        table: rows of PLAN_SCHEMA.
        scorer: the engine.
        advance: told of each number of sequence tokens done.
    """
    places, requests = _requests(table)
    found: list[Logps] = []
    for start in range(0, len(requests), _REQUESTS_AT_ONCE):
        part = requests[start : start + _REQUESTS_AT_ONCE]
        found += scorer.score(part)
        advance(sum(request.length for request in part))
    sums, wrong = check(requests, found)
    rescued = _rescue(scorer, requests, wrong)
    for position, (values, total) in rescued.items():
        found[position], sums[position] = values, total
        del wrong[position]
    problems: dict[int, str] = {}
    for position, problem in wrong.items():
        row, side = places[position]
        problems.setdefault(row, f"{side}: {problem}")
    for side in RESPONSES:
        logps: list[View | None] = [None] * table.num_rows
        totals: list[float | None] = [None] * table.num_rows
        for (row, its_side), values, total in zip(places, found, sums, strict=True):
            if its_side == side:
                logps[row], totals[row] = values, total
        tokens, whole = (SHARD_SCHEMA.field(f"ref_{side}_{n}") for n in ("logps", "logp_sum"))
        table = table.append_column(tokens, list_column(logps, tokens.type))
        table = table.append_column(whole, pa.array(totals, whole.type))
    return ScoredTable(*_split_off(unweighted(table), problems), len(rescued))


def check(
    requests: Sequence[Request], found: Sequence[Logps]
) -> tuple[list[float], dict[int, str]]:
    """Sums of the log-probs of each response, and which of them cannot be right, with why.

    Args:
        requests: what was asked for.
        found: float32 [tokens of the response] each, in nats.

    Returns:
        The sums in nats, accumulated in float64; and problems by position.
    """
    if not requests:
        return [], {}
    got = np.array([len(values) for values in found])
    wanted = np.array([len(request.response_ids) for request in requests])
    problems = {
        int(i): f"{got[i]} log-probs for {wanted[i]} tokens" for i in np.flatnonzero(got != wanted)
    }
    # A zero ends each response, so that an empty one too is a segment of its own.
    zero = np.zeros(1, np.float32)
    joined = np.concatenate([part for values in found for part in (values, zero)])
    starts = np.concatenate([[0], np.cumsum(got + 1)[:-1]])
    sums = np.add.reduceat(joined, starts, dtype=np.float64)
    # one NaN or infinity makes the sum so
    for i in np.flatnonzero(~np.isfinite(sums)):
        problems.setdefault(int(i), "a log-prob is not finite")
    highest = np.maximum.reduceat(joined, starts)
    for i in np.flatnonzero(highest > ROUNDING):
        problems.setdefault(int(i), f"a log-prob is {highest[i]:.4f}, above 0")
    return sums.tolist(), problems


def _rescue(
    scorer: Scorer, requests: Sequence[Request], wrong: dict[int, str]
) -> dict[int, tuple[Logps, float]]:
    """Log-probs and their sum, by position, of the `wrong` responses that rescoring puts right.

    To the problem of each other is added why it could not.
    """
    places = sorted(wrong)
    asked = [requests[place] for place in places]
    try:
        if len(places) > max(_FEW, len(requests) // 4):
            raise ReflogpError(f"so are {len(places)} of {len(requests)} responses of the shard")
        again = scorer.rescore(asked) if asked else []
    except ReflogpError as error:
        wrong.update({place: f"{wrong[place]}; not rescored: {error}" for place in places})
        return {}
    sums, still = check(asked, again)
    for i, problem in still.items():
        wrong[places[i]] += f"; when rescored: {problem}"
    return {places[i]: (again[i], sums[i]) for i in range(len(asked)) if i not in still}


def _requests(table: pa.Table) -> tuple[list[tuple[int, str]], list[Request]]:
    """What to score of a planned shard, row after row; and the row and side of each."""
    prompts = views(table.column("prompt_ids"))
    responses = [(side, views(table.column(f"{side}_ids"))) for side in RESPONSES]
    places, requests = [], []
    for row, prompt in enumerate(prompts):
        for side, column in responses:
            response = column[row]
            if prompt is not None and response is not None:
                places.append((row, side))
                requests.append(Request(prompt, response))
    return places, requests


def _split_off(table: pa.Table, problems: dict[int, str]) -> tuple[pa.Table, list[tuple[int, str]]]:
    """`table` without the rows that have a problem, and the source rows of those."""
    sources = table.column("source_row")
    faulty = [(sources[row].as_py(), problem) for row, problem in sorted(problems.items())]
    if faulty:
        table = table.filter(pa.array([row not in problems for row in range(table.num_rows)]))
    return table, faulty
