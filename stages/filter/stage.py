"""The steps of a filter: cache -> keys -> the rows of each shard that stay -> a sealed cache.

Weights need the mean over all rows that stay, so with weights the shards are read twice.
"""

import functools
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from reflogp.data_schemas import manifest as manifests
from reflogp.data_schemas.cache_shard import SHARD_SCHEMA, token_counts, total_tokens
from reflogp.data_schemas.errors import InputError, ReflogpError
from reflogp.data_schemas.filtered import Filtered, RowWeights
from reflogp.data_schemas.manifest import Counts, Inputs, Manifest, Source, missing_files
from reflogp.data_schemas.quarantine import batches
from reflogp.data_schemas.reading import locate
from reflogp.data_schemas.sealed_file import Shard, require_intact
from reflogp.data_schemas.shard_origin import put_origin, read_origin
from reflogp.stages.cache.folder import claim, short
from reflogp.stages.cache.leftovers import clear_up
from reflogp.stages.cache.quarantine_file import Quarantine, RowFault
from reflogp.stages.cache.write_shard import describe, write_shard
from reflogp.stages.filter.config import FilterRules
from reflogp.stages.filter.judge import judged, require_usable, trial, weighing
from reflogp.stages.progress import Console


def filtered_inputs(manifest: Manifest, rules: FilterRules) -> Inputs:
    """What a filtered cache is made from: equal ones give an equal cache."""
    content = json.dumps([manifest.seal, rules.given()], sort_keys=True)
    digest = hashlib.sha256(content.encode()).hexdigest()
    return manifest.inputs.model_copy(update={"filter": digest})


def filter_cache(
    cache: Path,
    output: Path,
    manifest: Manifest,
    rules: FilterRules,
    console: Console,
    *,
    overwrite: bool = False,
) -> Manifest:
    """Write the rows of `cache` that keep the rules to `output`, with their weights, and seal it.

    Args:
        cache: folder of a sealed cache.
        output: another folder; a filtered cache that is sealed there stays until this one is.
        manifest: of `cache`.
        rules: at least one.
        console: for progress.
        overwrite: whether what the folder's mark does not know may go once this is sealed.

    Raises:
        InputError: a rule does not fit the cache, a file is damaged, or no row is left.
        ReflogpError: another command removed what this one wrote.
    """
    weighs = weighing(manifest, rules)
    require_usable(cache, manifest, rules)
    require_intact(cache / manifest.quarantine.file, manifest.quarantine)
    found = trial(cache, manifest, rules, console).weighted if weighs else None
    inputs = filtered_inputs(manifest, rules)
    stem = short(inputs)
    prepare = functools.partial(claim, output, stem, overwrite=overwrite, lasting=False)
    shards: list[Shard] = []
    counts: Counter[str] = Counter()
    aside = output / f"quarantine-{stem}.parquet"
    record = manifest.quarantine
    with Quarantine(aside, prepare) as quarantine:
        quarantine.take_over(
            batches(cache / record.file, record), manifest.counts.quarantined_by_reason
        )
        for shard, table, _, wrong, stay in judged(cache, manifest, rules, console):
            _set_aside(quarantine, table, wrong, manifest.source)
            kept = table.take(pa.array(stay))
            if found is not None:
                some = slice(counts["rows"], counts["rows"] + len(stay))
                kept = _with_weights(kept, found.values[some])
            if kept.num_rows:
                path = output / f"shard-{stem}-{len(shards):05d}.parquet"
                shards.append(_write(kept, path, cache / shard.file, shard, inputs, len(shards)))
                counts.update(_counted(kept), rows=kept.num_rows)
        if not shards:
            raise InputError(
                f"{cache}: no row keeps these rules ({quarantine.summary()}). Give weaker ones; "
                "--dry-run counts what each drops."
            )
    record = describe(aside, rows=quarantine.reasons.total(), tokens=0)
    made = _manifest(
        cache, manifest, rules, inputs, shards, record, counts, quarantine.reasons,
        None if found is None else found.summary,
    )  # fmt: skip
    if gone := missing_files(output, made):
        raise ReflogpError(
            f"{output}: {gone[0]} is gone; another command wrote to the folder. Run it again."
        )
    made = manifests.write(output, made)
    clear_up(output, console, made)
    return made


def _set_aside(
    quarantine: Quarantine, table: pa.Table, wrong: dict[int, RowFault], source: Source
) -> None:
    parts = source.reading.parts if source.reading else []
    ids, numbers = table.column("row_id"), table.column("source_row")
    for row, fault in sorted(wrong.items()):
        number = numbers[row].as_py()
        file, line = locate(parts, number, source.source)
        quarantine.add(
            fault,
            source_row=number,
            file=file,
            line=line,
            row={"row_id": ids[row].as_py()},
        )


def _write(
    table: pa.Table, path: Path, source: Path, shard: Shard, inputs: Inputs, number: int
) -> Shard:
    """Write one shard, with an origin of its own, so that its rows can be taken over from it."""
    found = read_origin(source)
    if found is not None:
        place = {"inputs": inputs.digest(), "plan": shard.sha256, "number": number}
        update = _counted(table) | place | {"problems": []}
        table = put_origin(table, found[0].model_copy(update=update))
    write_shard(table, path)
    return describe(path, rows=table.num_rows, tokens=total_tokens(table))


def _with_weights(table: pa.Table, weights: NDArray[np.float64]) -> pa.Table:
    place = table.schema.get_field_index("weight")
    return table.set_column(place, SHARD_SCHEMA.field("weight"), pa.array(weights))


def _counted(table: pa.Table) -> dict[str, int]:
    """Tokens and truncated rows, under the names of Counts and Origin."""
    lost = [
        table.column(f"{name}_truncated").combine_chunks().to_numpy(zero_copy_only=False)
        for name in ("prompt", "chosen", "rejected")
    ]
    return token_counts(table) | {"truncated": int(np.logical_or.reduce(lost).sum())}


def _manifest(
    cache: Path,
    manifest: Manifest,
    rules: FilterRules,
    inputs: Inputs,
    shards: Sequence[Shard],
    quarantine: Shard,
    counts: Counter[str],
    aside: Counter[str],
    weights: RowWeights | None,
) -> Manifest:
    earlier = Counter(manifest.counts.quarantined_by_reason)
    totals = Counts(
        **counts,
        rescued=manifest.counts.rescued,
        template_diverged=manifest.counts.template_diverged,
        quarantined_by_reason=dict(aside.most_common()),
    )  # fmt: skip
    filtered = Filtered(
        cache=str(cache),
        cache_seal=manifest.seal,
        cache_rows=manifest.counts.rows,
        filter_rules=rules.given(),
        dropped_by_reason=dict((aside - earlier).most_common()),
        weights=weights,
    )
    return manifest.model_copy(
        update={
            "reflogp_version": version("reflogp"),
            "inputs": inputs,
            "shards": list(shards),
            "quarantine": quarantine,
            "counts": totals,
            "timing": manifest.timing.model_copy(update={"sealed_at": datetime.now(UTC)}),
            "filtered": filtered,
        }
    )
