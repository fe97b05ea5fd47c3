"""Planned shard + scorer -> finished rows. Every number is checked."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from reflogp.data_schemas.cache_shard import RESPONSES, SHARD_SCHEMA, unweighted
from reflogp.data_schemas.errors import ReflogpError
from reflogp.data_schemas.shard_origin import Problem
from reflogp.stages.cache.columns import View, list_column, views
from reflogp.stages.cache.shard_content import ROUNDING
from reflogp.stages.precompute.score.engines.protocol import Logps, Request, Scorer
from reflogp.stages.precompute.score.engines.shared_beginnings import Requests

# Up to this many responses of a shard, or a quarter of them, are rescored one by one. If more are
# wrong, the engine is at fault.
_FEW = 16

Place = tuple[int, str]
"""The row of a request, and the side of its response."""


class ScoredTable(NamedTuple):
    """A scored shard.

    Attributes:
        table: the finished rows, as SHARD_SCHEMA.
        problems: rows with impossible scores, and the reason; they are not in `table`.
        rescued: number of responses in `table` whose log-probs were impossible until rescored.
    """

    table: pa.Table
    problems: list[Problem]
    rescued: int


class Scores(NamedTuple):
    """The checked log-probs of a shard's requests.

    Attributes:
        logps: float32 [request.scored] for each request, in nats.
        sums: their sums, accumulated in float64.
        wrong: why the log-probs of a request are impossible, by its position.
        rescued: number of requests whose log-probs were impossible until rescored.
    """

    logps: list[Logps]
    sums: list[float]
    wrong: dict[int, str]
    rescued: int


def score_requests(
    requests: Sequence[Request], scorer: Scorer, advance: Callable[[float], None]
) -> Scores:
    """Score the requests of a shard, and rescore those with impossible log-probs.

    Args:
        requests: what to score.
        scorer: the engine.
        advance: called with the number of sequence tokens while the engine scores them.
    """
    found = scorer.score(requests, advance)
    sums, wrong = check(requests, found)
    rescued = _rescue(scorer, requests, wrong)
    for position, (values, total) in rescued.items():
        found[position], sums[position] = values, total
        del wrong[position]
    return Scores(found, sums, wrong, len(rescued))


def scored_table(
    table: pa.Table, places: Sequence[Place], requests: Sequence[Request], scores: Scores
) -> ScoredTable:
    """Add the scores of its requests to a planned shard.

    Args:
        table: rows of PLAN_SCHEMA.
        places: the row and side of each request.
        requests: the requests of all rows.
        scores: what the engine found.
    """
    problems: dict[int, Problem] = {}
    for position, problem in scores.wrong.items():
        row, side = places[position]
        about = {name: table.column(name)[row].as_py() for name in ("row_id", "source_row")}
        detail = f"{side}: {problem}"
        problems.setdefault(row, Problem(**about, field=f"{side}_ids", detail=detail))
    spread = list(map(_spread, requests, scores.logps))
    for side in RESPONSES:
        logps: list[View | None] = [None] * table.num_rows
        totals: list[float | None] = [None] * table.num_rows
        for (row, its_side), values, total in zip(places, spread, scores.sums, strict=True):
            if its_side == side:
                logps[row], totals[row] = values, total
        tokens, whole = (SHARD_SCHEMA.field(f"ref_{side}_{n}") for n in ("logps", "logp_sum"))
        table = table.append_column(tokens, list_column(logps, tokens.type))
        table = table.append_column(whole, pa.array(totals, whole.type))
    if problems:
        table = table.filter(pa.array([row not in problems for row in range(table.num_rows)]))
    listed = [problems[row] for row in sorted(problems)]
    return ScoredTable(unweighted(table), listed, scores.rescued)


def check(
    requests: Sequence[Request], found: Sequence[Logps]
) -> tuple[list[float], dict[int, str]]:
    """Sum the log-probs of each response, and find impossible ones.

    Args:
        requests: the requests that were scored.
        found: float32 [request.scored] for each, in nats.

    Returns:
        The sums in nats, accumulated in float64; and problems by position.
    """
    if not requests:
        return [], {}
    got = np.array([len(values) for values in found])
    wanted = np.array([request.scored for request in requests])
    problems = {
        int(i): f"{got[i]} log-probs for {wanted[i]} tokens" for i in np.flatnonzero(got != wanted)
    }
    # A zero ends each response, which makes one without scored tokens a segment too.
    zero = np.zeros(1, np.float32)
    joined = np.concatenate([part for values in found for part in (values, zero)])
    starts = np.concatenate([[0], np.cumsum(got + 1)[:-1]])
    sums = np.add.reduceat(joined, starts, dtype=np.float64)
    # a single NaN or infinity makes the sum non-finite
    for i in np.flatnonzero(~np.isfinite(sums)):
        problems.setdefault(int(i), "a log-prob is not finite")
    highest = np.maximum.reduceat(joined, starts)
    for i in np.flatnonzero(highest > ROUNDING):
        problems.setdefault(int(i), f"a log-prob is {highest[i]:.4f}, above 0")
    return sums.tolist(), problems


def _rescue(
    scorer: Scorer, requests: Sequence[Request], wrong: dict[int, str]
) -> dict[int, tuple[Logps, float]]:
    """Rescore the `wrong` responses, and return log-probs and sums of those that are now valid.

    For the others, the reason is appended to their problem in `wrong`.
    """
    places = sorted(wrong)
    asked = [requests[place] for place in places]
    try:
        if len(places) > max(_FEW, len(requests) // 4):
            raise ReflogpError(f"{len(places)} of the shard's {len(requests)} responses are wrong")
        again = scorer.rescore(asked) if asked else []
    except ReflogpError as error:
        wrong.update({place: f"{wrong[place]}; not rescored: {error}" for place in places})
        return {}
    sums, still = check(asked, again)
    for i, problem in still.items():
        wrong[places[i]] += f"; when rescored: {problem}"
    return {places[i]: (again[i], sums[i]) for i in range(len(asked)) if i not in still}


def requests_of(table: pa.Table) -> tuple[list[Place], Requests]:
    """Return the requests of a shard, row by row, and the row and side of each.

    Args:
        table: rows of PLAN_SCHEMA, or those columns of a finished shard.
    """
    prompts = views(table.column("prompt_ids"))
    responses = [
        (side, views(table.column(f"{side}_ids")), views(table.column(f"{side}_mask")))
        for side in RESPONSES
    ]
    places, requests = list[Place](), Requests()
    for row, prompt in enumerate(prompts):
        for side, ids, masks in responses:
            response = ids[row]
            if prompt is not None and response is not None:
                places.append((row, side))
                requests.append(Request(prompt, response, masks[row]))
    return places, requests


def _spread(request: Request, values: Logps) -> Logps:
    """Return log-probs as long as the response, with 0 for tokens that are not scored.

    Values of a wrong length stay as they are: their row does not become part of a shard.
    """
    if request.mask is None or len(values) != request.scored:
        return values
    whole = np.zeros(len(request.response_ids), np.float32)
    whole[request.mask] = values
    return whole
