"""What the rows of a shard must hold, whoever wrote them.

A checksum only says that nobody changed a file since it was sealed. But a cache can come from
somebody else, or from a broken program. So every row is checked when its shard is read, in whole
columns at a time; more than half of that time goes into the hash that a row's id must be.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from reflogp.data_schemas import row_id
from reflogp.data_schemas.cache_shard import RESPONSES
from reflogp.data_schemas.manifest import Manifest

ROUNDING = 1e-4
"""Nats by which a log-prob may exceed 0 through the rounding of a log-sum-exp."""
_SUM_TOLERANCE = 1e-6  # of a sum in float64, relative
_WEIGHT_TOLERANCE = 1e-6  # of the largest weight, relative

Mask = NDArray[np.bool_]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Limits:
    """What the rows of one cache must keep to; each default allows what any cache may hold.

    Attributes:
        kind: of the rows.
        vocabulary: every token id is below it.
        max_length: most tokens of a prompt and one response.
        source_rows: every source row is below it.
        keep: names of the kept columns, in order; None: unknown.
        kl: whether rows have a KL completion; None: unknown.
        most_weight: the largest weight; None: no row has one.
    """

    kind: Literal["paired", "unpaired"] | None = None
    vocabulary: int = 2**31
    max_length: int = 2**31
    source_rows: int = 2**63
    keep: tuple[str, ...] | None = None
    kl: bool | None = None
    most_weight: float | None = float("inf")


ANY = Limits()
"""What every cache keeps to."""


class Fault(NamedTuple):
    """Rows whose value in one field cannot be right.

    Attributes:
        field: the column.
        rows: which rows, bool [rows].
        what: is wrong with them.
    """

    field: str
    rows: Mask
    what: str

    def __str__(self) -> str:
        """For people: the first row, 0-based in its file, and how many more there are."""
        more = int(self.rows.sum()) - 1
        others = f" (and {more:,} more row{'s' * (more > 1)})" if more else ""
        return f"row {int(self.rows.argmax())}: {self.field} {self.what}{others}"


def limits_of(manifest: Manifest) -> Limits:
    """What a manifest says of the rows of its cache."""
    weights = manifest.row_weights
    return Limits(
        kind=manifest.kind,
        vocabulary=manifest.reference.vocabulary or Limits.vocabulary,
        max_length=manifest.rules.get("max_length", Limits.max_length),
        source_rows=manifest.source.rows,
        keep=tuple(manifest.rules.get("keep", ())),
        kl=manifest.counts.kl_tokens > 0,
        most_weight=None if weights is None else weights.most,
    )


def faults(table: pa.Table, limits: Limits) -> Iterator[Fault]:
    """What is wrong with rows of a shard, field by field; nothing if all of them are sound.

    Args:
        table: all columns of SHARD_SCHEMA, whose texts are valid UTF-8.
        limits: of the cache.
    """
    for fault in _checked(table, limits):
        if fault.rows.any():
            yield fault


def _checked(table: pa.Table, limits: Limits) -> Iterator[Fault]:
    column = {name: table.column(name).combine_chunks() for name in table.column_names}
    prompts = _lengths(column["prompt_ids"])
    yield Fault("prompt_ids", prompts < 1, "is empty")
    yield _outside("prompt_ids", column["prompt_ids"], limits.vocabulary)
    for side in RESPONSES:
        yield from _response(side, column, prompts, limits)
    yield from _presence(column, limits)
    yield from _numbers(column, limits)
    yield from _kept(column["kept"], limits.keep)
    yield from _ids(column)


def _response(
    side: str, column: dict[str, pa.Array], prompts: Ints, limits: Limits
) -> Iterator[Fault]:
    """Checks of one response of each row, and of its log-probs."""
    name, logps_name, sum_name = f"{side}_ids", f"ref_{side}_logps", f"ref_{side}_logp_sum"
    lengths, scored = _lengths(column[name]), _lengths(column[logps_name])
    there = lengths >= 0
    yield Fault(name, lengths == 0, "is empty")
    yield _outside(name, column[name], limits.vocabulary)
    yield Fault(
        name,
        there & (prompts + lengths > limits.max_length),
        f"is too long: prompt and response have more than max_length {limits.max_length} tokens",
    )
    if side != "kl":
        flags = column[f"{side}_truncated"].to_numpy(zero_copy_only=False)
        yield Fault(f"{side}_truncated", flags & ~there, "is set, but there is no such response")
    yield Fault(logps_name, lengths != scored, f"has not one log-prob for each token of {name}")
    values = column[logps_name].flatten().to_numpy()
    yield Fault(logps_name, _owners(scored, ~np.isfinite(values)), "is not finite")
    yield Fault(logps_name, _owners(scored, values > ROUNDING), "holds a log-prob above 0")
    sums = column[sum_name]
    given = sums.is_valid().to_numpy(zero_copy_only=False)
    yield Fault(sum_name, given != there, f"is there without {name}, or missing beside it")
    totals = np.zeros(len(lengths))
    full = scored > 0
    if full.any():
        starts = (np.cumsum(scored[full]) - scored[full]).astype(np.intp)
        totals[full] = np.add.reduceat(values, starts, dtype=np.float64)
    stored = pc.fill_null(sums, 0.0).to_numpy()
    near = np.abs(stored - totals) <= _SUM_TOLERANCE * np.maximum(1, np.abs(totals))
    yield Fault(sum_name, given & ~near, f"is wrong: a sum is not that of {logps_name}")


def _presence(column: dict[str, pa.Array], limits: Limits) -> Iterator[Fault]:
    """Which responses a row has, by the kind of the cache."""
    chosen, rejected, kl = (
        column[f"{side}_ids"].is_valid().to_numpy(zero_copy_only=False) for side in RESPONSES
    )
    if limits.kind == "paired":
        yield Fault("chosen_ids", ~chosen, "is null, but the cache is paired")
        yield Fault("rejected_ids", ~rejected, "is null, but the cache is paired")
        yield Fault("kl_ids", kl, "is there, but the cache is paired")
    else:
        yield Fault("chosen_ids", ~chosen & ~rejected, "is null, and so is rejected_ids")
    if limits.kind == "unpaired":
        both = "is there beside chosen_ids, but the cache is unpaired"
        yield Fault("rejected_ids", chosen & rejected, both)
        if limits.kl is not None:
            state = "is null" if limits.kl else "is there"
            yield Fault("kl_ids", kl != limits.kl, f"{state}, unlike the manifest says")


def _numbers(column: dict[str, pa.Array], limits: Limits) -> Iterator[Fault]:
    sources = column["source_row"].to_numpy()
    yield Fault("source_row", sources < 0, "is under 0")
    yield Fault(
        "source_row",
        sources.astype(np.uint64) >= np.uint64(limits.source_rows),
        f"is over the {limits.source_rows:,} rows that were read",
    )
    confidence = pc.fill_null(column["confidence"], 0.0).to_numpy()
    yield Fault("confidence", ~np.isfinite(confidence), "is not finite")
    weights = column["weight"]
    if limits.most_weight is None:
        given = weights.is_valid().to_numpy(zero_copy_only=False)
        yield Fault("weight", given, "is there, but by the manifest no row has one")
        return
    values = pc.fill_null(weights, 1.0).to_numpy()
    yield Fault("weight", ~np.isfinite(values), "is not finite")
    yield Fault("weight", values < 0, "is under 0")
    most = limits.most_weight * (1 + _WEIGHT_TOLERANCE)
    what = f"is over {limits.most_weight:.6g}, the largest that the manifest says"
    yield Fault("weight", values > most, what)


def _kept(kept: pa.Array, keep: tuple[str, ...] | None) -> Iterator[Fault]:
    if keep is None:
        return
    lengths = _lengths(kept)
    expected = len(keep) or -1  # null in a cache that keeps nothing
    wrong = lengths != expected
    yield Fault("kept", wrong, f"has not the {len(keep)} columns that the manifest says")
    if keep and not wrong.any():
        names = pc.struct_field(kept.flatten(), "name")
        other = pc.not_equal(names, pa.array(list(keep) * len(kept), pa.string()))
        yield Fault(
            "kept",
            _owners(lengths, other.to_numpy(zero_copy_only=False)),
            f"has not the names that the manifest says ({', '.join(keep)})",
        )


def _ids(column: dict[str, pa.Array]) -> Iterator[Fault]:
    ids = column["row_id"]
    odd = pc.invert(pc.match_substring_regex(ids, row_id.PATTERN)).to_numpy(zero_copy_only=False)
    yield Fault("row_id", odd, "is no row id")
    if odd.any():
        return
    parts = [column[name] for name in ("prompt_ids", *(f"{side}_ids" for side in RESPONSES))]
    other = row_id.stored_hashes(ids) != row_id.content_hashes(parts)
    yield Fault("row_id", np.asarray(other), "is not the hash of the row's token ids")


def _outside(name: str, ids: pa.Array, vocabulary: int) -> Fault:
    values = ids.flatten().to_numpy()
    # negative ids become the largest ones
    wrong = values.view(np.uint32) >= np.uint32(min(vocabulary, 2**31))
    what = f"holds a token id that is not in the vocabulary (0 to {vocabulary - 1:,})"
    return Fault(name, _owners(_lengths(ids), wrong), what)


def _lengths(lists: pa.Array) -> Ints:
    """Items in each list, int64 [rows]; -1 where it is null."""
    return np.asarray(pc.fill_null(pc.list_value_length(lists), -1).to_numpy(), np.int64)


def _owners(lengths: Ints, wrong: Mask) -> Mask:
    """Which rows hold a value that is wrong, bool [rows], of lists with these lengths."""
    found = np.zeros(len(lengths), bool)
    places = np.flatnonzero(wrong)
    if len(places):
        ends = np.cumsum(np.maximum(lengths, 0))
        found[np.searchsorted(ends, places, side="right")] = True
    return found
