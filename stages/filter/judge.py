"""Rules and a cache -> for each shard, the rows to drop and why; and a trial of the weights."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from reflogp.data_schemas.errors import InputError
from reflogp.data_schemas.manifest import Manifest
from reflogp.data_schemas.sealed_file import Shard
from reflogp.stages.cache.quarantine_file import RowFault
from reflogp.stages.cache.sealed_shards import each_shard
from reflogp.stages.diagnose.keys import Keys, contradictory, repeated
from reflogp.stages.diagnose.measures import MEASURED, Measures, measure
from reflogp.stages.filter.config import FilterRules
from reflogp.stages.filter.row_weights import Weighted, earlier_weights, values_of, weighted
from reflogp.stages.filter.rules import Marks, breaches
from reflogp.stages.progress import Console

_READ = [*MEASURED, "kept", "weight"]


class Judged(NamedTuple):
    """A shard, the faults of the rows to drop, and the positions of the rows that stay."""

    shard: Shard
    table: pa.Table
    measures: Measures
    wrong: dict[int, RowFault]
    stay: NDArray[np.int64]


class Trial(NamedTuple):
    """The result of a dry run: dropped rows by reason, and the weights of the others, if any."""

    dropped: Counter[str]
    weighted: Weighted | None


def weighing(manifest: Manifest, rules: FilterRules) -> bool:
    """Whether the rows that stay get weights, or have them already."""
    return rules.weight_by is not None or manifest.row_weights is not None


def trial(cache: Path, manifest: Manifest, rules: FilterRules, console: Console) -> Trial:
    """Apply the rules without writing anything. Raises the errors of `judged`.

    If there are weights, each row that stays takes 16 bytes of memory.
    """
    gone: Counter[str] = Counter()
    values, before = [np.zeros(0)], [np.zeros(0)]
    weighs = weighing(manifest, rules)
    what = "weighing" if weighs else "filtering"
    for one in judged(cache, manifest, rules, console, _READ, what):
        gone.update(str(fault.reason) for fault in one.wrong.values())
        if weighs:
            table, measures = one.table.take(pa.array(one.stay)), one.measures.take(one.stay)
            before.append(earlier_weights(table))
            by = rules.weight_by
            values.append(values_of(by, table, measures) if by else np.ones(table.num_rows))
    joined = np.concatenate(values), np.concatenate(before)
    if not len(joined[0]):
        return Trial(gone, None)
    return Trial(gone, weighted(rules.weight_by, *joined, manifest.row_weights))


def judged(
    cache: Path,
    manifest: Manifest,
    rules: FilterRules,
    console: Console,
    columns: list[str] | None = None,
    what: str = "filtering",
) -> Iterator[Judged]:
    """Yield each shard with its table and the faults of its rows.

    Args:
        cache: folder of a sealed cache.
        manifest: its manifest.
        rules: with at least one given.
        console: for progress.
        columns: to read from each shard, including measures.MEASURED; None: all.
        what: the label of the progress bar.

    Raises:
        InputError: a rule does not fit the cache, or a file is damaged.
    """
    require_usable(cache, manifest, rules)
    marks = _marks(cache, manifest, rules)
    first = 0
    with console.track(what, manifest.counts.rows, "rows") as advance:
        tables = each_shard(cache, manifest, lambda _, table: table, columns)
        for table, shard in zip(tables, manifest.shards, strict=True):
            inside = slice(first, first + table.num_rows)
            its = Marks(*(mark[inside] for mark in marks))
            measures = measure(table)
            wrong = breaches(rules, table, measures, its)
            stay = np.setdiff1d(np.arange(table.num_rows), np.fromiter(wrong, int, len(wrong)))
            yield Judged(shard, table, measures, wrong, stay)
            first += table.num_rows
            advance(table.num_rows)


def require_usable(cache: Path, manifest: Manifest, rules: FilterRules) -> None:
    """Refuse rules that cannot be applied to the rows of a cache.

    Raises:
        InputError: a rule cannot be applied, or no rule is given.
    """
    if not rules.given():
        raise InputError(
            "no rule is given: nothing would be dropped or weighted. See reflogp filter --help."
        )
    if manifest.kind == "unpaired" and (pairs := rules.of_pairs()):
        options = ", ".join(f"--{name.replace('_', '-')}" for name in pairs)
        raise InputError(f"{cache}: the cache is unpaired; {options} compares two responses.")
    keeps = manifest.rules.get("keep", [])
    if absent := [name for name in rules.only if name not in keeps]:
        raise InputError(
            f"{cache}: --only {absent[0]}: the cache keeps {', '.join(keeps) or 'no columns'}. "
            f"Run `reflogp precompute` again with --keep {','.join([*keeps, absent[0]])}; nothing "
            "is scored again."
        )
    of_confidence = rules.of_confidence
    if of_confidence is not None and not any(
        each_shard(cache, manifest, _has_confidence, ["confidence"])
    ):
        option = of_confidence.replace("_", "-")
        raise InputError(f"{cache}: --{option}: its rows have no confidence and no scores.")


def _has_confidence(shard: Shard, table: pa.Table) -> bool:
    return bool(table.column("confidence").null_count < shard.rows)


def _marks(cache: Path, manifest: Manifest, rules: FilterRules) -> Marks:
    """Marks that need a pass over all rows; 17 bytes of memory per row."""
    none = np.zeros(sum(shard.rows for shard in manifest.shards), bool)
    if not (rules.drop_contradictions or rules.drop_duplicates):
        return Marks(none, none)

    def look(_: Shard, table: pa.Table) -> tuple[Keys, NDArray[np.int64]]:
        found = measure(table)
        return found.key, found.source_row

    parts = list(each_shard(cache, manifest, look, MEASURED))
    keys, rows = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Marks(contradictory(keys), repeated(keys, rows))
