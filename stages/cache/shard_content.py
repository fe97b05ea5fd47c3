"""Checks of the rows of a shard, whoever wrote them.

A checksum only shows that a file has not changed since it was sealed, but a cache can come from
somebody else or from a faulty program. Every row is therefore checked when its shard is read, whole
columns at a time. More than half of the time goes into the hash that verifies a row's id.
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
"""Nats by which a log-prob can exceed 0 due to rounding in a log-sum-exp."""
_SUM_TOLERANCE = 1e-6  # of a sum in float64, relative
_WEIGHT_TOLERANCE = 1e-6  # of the largest weight, relative

Mask = NDArray[np.bool_]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Limits:
    """Limits for the rows of one cache. The defaults allow any cache.

    Attributes:
        kind: kind of the rows; None if unknown.
        vocabulary: bound on token ids, exclusive.
        max_length: largest number of tokens of a prompt and one response together.
        source_rows: bound on source rows, exclusive.
        keep: names of the kept columns, in order; None if unknown.
        kl: whether rows have a KL completion; None if unknown.
        most_weight: the largest weight; None if rows have no weights.
    """

    kind: Literal["paired", "unpaired"] | None = None
    vocabulary: int = 2**31
    max_length: int = 2**31
    source_rows: int = 2**63
    keep: tuple[str, ...] | None = None
    kl: bool | None = None
    most_weight: float | None = float("inf")


ANY = Limits()
"""Limits that every cache satisfies."""


class Fault(NamedTuple):
    """Rows with an invalid value in one field.

    Attributes:
        field: the column.
        rows: mask of the rows at fault, bool [rows].
        what: what is wrong with them.
    """

    field: str
    rows: Mask
    what: str

    def __str__(self) -> str:
        """One line for people: the first row, 0-based in its file, and the number of others."""
        more = int(self.rows.sum()) - 1
        others = f" (and {more:,} more row{'s' * (more > 1)})" if more else ""
        return f"row {int(self.rows.argmax())}: {self.field} {self.what}{others}"


def limits_of(manifest: Manifest) -> Limits:
    """Return the limits that a manifest sets for the rows of its cache."""
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
    """Yield the faults in a shard's rows, field by field.

    Args:
        table: all columns of SHARD_SCHEMA, with texts that are valid UTF-8.
        limits: limits of the cache.
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
    """Check one response of each row, and its log-probs."""
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
    yield from _mask(side, column, lengths)
    if side != "kl":
        flags = column[f"{side}_truncated"].to_numpy(zero_copy_only=False)
        yield Fault(f"{side}_truncated", flags & ~there, "is set, but there is no such response")
    yield Fault(logps_name, lengths != scored, f"does not have one log-prob per token of {name}")
    values = column[logps_name].flatten().to_numpy()
    yield Fault(logps_name, _owners(scored, ~np.isfinite(values)), "is not finite")
    yield Fault(logps_name, _owners(scored, values > ROUNDING), "has a log-prob above 0")
    sums = column[sum_name]
    given = sums.is_valid().to_numpy(zero_copy_only=False)
    yield Fault(sum_name, given != there, f"is set without {name}, or null although {name} is set")
    totals = np.zeros(len(lengths))
    full = scored > 0
    if full.any():
        starts = (np.cumsum(scored[full]) - scored[full]).astype(np.intp)
        totals[full] = np.add.reduceat(values, starts, dtype=np.float64)
    stored = pc.fill_null(sums, 0.0).to_numpy()
    near = np.abs(stored - totals) <= _SUM_TOLERANCE * np.maximum(1, np.abs(totals))
    yield Fault(sum_name, given & ~near, f"is not the sum of {logps_name}")


def _mask(side: str, column: dict[str, pa.Array], lengths: Ints) -> Iterator[Fault]:
    """Check the mask of each response, and that context tokens have no log-prob."""
    name, mask = f"{side}_mask", column[f"{side}_mask"]
    if mask.null_count == len(mask):
        return
    masked = _lengths(mask)
    given = masked >= 0
    wrong = given & (masked != lengths)
    yield Fault(name, wrong, f"does not have one value per token of {side}_ids")
    marks = mask.flatten().to_numpy(zero_copy_only=False)
    if side != "kl":  # of which a cut can leave the context only
        yield Fault(name, given & ~_owners(masked, marks), "marks no token as the policy's own")
    yield Fault(name, given & ~_owners(masked, ~marks), "marks every token, which null means")
    logps = column[f"ref_{side}_logps"]
    if wrong.any() or (_lengths(logps) != lengths).any():
        return
    context = np.zeros(int(np.maximum(lengths, 0).sum()), bool)
    context[np.repeat(given, np.maximum(lengths, 0))] = ~marks
    scored = context & (logps.flatten().to_numpy() != 0)
    yield Fault(f"ref_{side}_logps", _owners(lengths, scored), f"is not 0 where {name} is false")


def _presence(column: dict[str, pa.Array], limits: Limits) -> Iterator[Fault]:
    """Check that each row has the responses of the cache's kind."""
    chosen, rejected, kl = (
        column[f"{side}_ids"].is_valid().to_numpy(zero_copy_only=False) for side in RESPONSES
    )
    if limits.kind == "paired":
        yield Fault("chosen_ids", ~chosen, "is null, but the cache is paired")
        yield Fault("rejected_ids", ~rejected, "is null, but the cache is paired")
        yield Fault("kl_ids", kl, "is set, but the cache is paired")
    else:
        yield Fault("chosen_ids", ~chosen & ~rejected, "is null, and so is rejected_ids")
    if limits.kind == "unpaired":
        both = "is set along with chosen_ids, but the cache is unpaired"
        yield Fault("rejected_ids", chosen & rejected, both)
        if limits.kl is not None:
            state = "is null" if limits.kl else "is set"
            yield Fault("kl_ids", kl != limits.kl, f"{state}, but the manifest says otherwise")


def _numbers(column: dict[str, pa.Array], limits: Limits) -> Iterator[Fault]:
    sources = column["source_row"].to_numpy()
    yield Fault("source_row", sources < 0, "is negative")
    yield Fault(
        "source_row",
        sources.astype(np.uint64) >= np.uint64(limits.source_rows),
        f"is beyond the {limits.source_rows:,} rows that were read",
    )
    confidence = pc.fill_null(column["confidence"], 0.0).to_numpy()
    yield Fault("confidence", ~np.isfinite(confidence), "is not finite")
    weights = column["weight"]
    if limits.most_weight is None:
        given = weights.is_valid().to_numpy(zero_copy_only=False)
        yield Fault("weight", given, "is set, but the manifest has no weights")
        return
    values = pc.fill_null(weights, 1.0).to_numpy()
    yield Fault("weight", ~np.isfinite(values), "is not finite")
    yield Fault("weight", values < 0, "is negative")
    most = limits.most_weight * (1 + _WEIGHT_TOLERANCE)
    what = f"is above {limits.most_weight:.6g}, the largest in the manifest"
    yield Fault("weight", values > most, what)


def _kept(kept: pa.Array, keep: tuple[str, ...] | None) -> Iterator[Fault]:
    if keep is None:
        return
    lengths = _lengths(kept)
    expected = len(keep) or -1  # null in a cache that keeps nothing
    wrong = lengths != expected
    yield Fault("kept", wrong, f"does not have the {len(keep)} columns in the manifest")
    if keep and not wrong.any():
        names = pc.struct_field(kept.flatten(), "name")
        other = pc.not_equal(names, pa.array(list(keep) * len(kept), pa.string()))
        yield Fault(
            "kept",
            _owners(lengths, other.to_numpy(zero_copy_only=False)),
            f"does not have the names in the manifest ({', '.join(keep)})",
        )


def _ids(column: dict[str, pa.Array]) -> Iterator[Fault]:
    ids = column["row_id"]
    odd = pc.invert(pc.match_substring_regex(ids, row_id.PATTERN)).to_numpy(zero_copy_only=False)
    yield Fault("row_id", odd, "is not a row id")
    if odd.any():
        return
    parts = [column[name] for name in ("prompt_ids", *(f"{side}_ids" for side in RESPONSES))]
    masks = [column[f"{side}_mask"] for side in RESPONSES]
    other = row_id.stored_hashes(ids) != row_id.content_hashes(parts, masks)
    yield Fault("row_id", np.asarray(other), "is not the hash of the row's token ids and masks")


def _outside(name: str, ids: pa.Array, vocabulary: int) -> Fault:
    values = ids.flatten().to_numpy()
    # as uint32, negative ids are the largest
    wrong = values.view(np.uint32) >= np.uint32(min(vocabulary, 2**31))
    what = f"has a token id outside the vocabulary (0 to {vocabulary - 1:,})"
    return Fault(name, _owners(_lengths(ids), wrong), what)


def _lengths(lists: pa.Array) -> Ints:
    """Return the length of each list, int64 [rows]; -1 for a null."""
    return np.asarray(pc.fill_null(pc.list_value_length(lists), -1).to_numpy(), np.int64)


def _owners(lengths: Ints, wrong: Mask) -> Mask:
    """Return the mask of rows, bool [rows], whose lists have a wrong value.

    Args:
        lengths: length of each row's list, -1 for a null.
        wrong: mask of the flattened values.
    """
    found = np.zeros(len(lengths), bool)
    places = np.flatnonzero(wrong)
    if len(places):
        ends = np.cumsum(np.maximum(lengths, 0))
        found[np.searchsorted(ends, places, side="right")] = True
    return found
