"""Shows rows to people: of a cache, its quarantined rows, or the first rows before a run."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pyarrow.compute as pc

from reflogp.data_schemas import manifest as manifests
from reflogp.data_schemas import plan_record
from reflogp.data_schemas.errors import InputError
from reflogp.data_schemas.files.storage import entries
from reflogp.data_schemas.manifest import Manifest
from reflogp.data_schemas.quarantine import batches
from reflogp.data_schemas.reading import Part, locate, place
from reflogp.data_schemas.sealed_file import Shard
from reflogp.pipeline.console import TerminalConsole, quiet_transformers
from reflogp.pipeline.decoding import decoder_of
from reflogp.pipeline.inputs import find_inputs
from reflogp.pipeline.rows_shown import Row, print_quarantined, print_row
from reflogp.stages.cache.find_rows import first_rows, named_rows
from reflogp.stages.cache.folder import PLAN
from reflogp.stages.model.decoder import Decoder
from reflogp.stages.precompute.config import PrecomputeConfig

ROWS = 3  # shown unless the user says how many
_READ = 100  # rows of a dry run


def show_rows(
    cache: Path, manifest: Manifest, most: int, names: Sequence[str], console: TerminalConsole
) -> None:
    """Print the first rows of a sealed cache shortened, or those that are named in full.

    Raises:
        InputError: the cache is damaged, or has no row of that name.
    """
    rows = named_rows(cache, manifest, names) if names else first_rows(cache, manifest, most)
    decoder = decoder_of(manifest, console)
    reading = manifest.source.reading
    for row in rows:
        where = _where(row, reading.parts if reading else [])
        print_row(row, where, decoder, console, whole=bool(names))


def show_quarantined(cache: Path, most: int, console: TerminalConsole) -> None:
    """Print the first quarantined rows of each reason; of an unsealed cache, those of its plan.

    Raises:
        InputError: the cache has neither a manifest nor one plan, or its quarantine is damaged.
    """
    folder, record, counts = _quarantine(cache)
    if not counts:
        console.say(f"{cache}: no row is quarantined")
        return
    rows: dict[str, list[Row]] = {reason: [] for reason in counts}
    for batch in batches(folder / record.file, record):
        for reason in batch.column("reason").unique().to_pylist():
            found = rows.setdefault(reason, [])
            some = batch.filter(pc.equal(batch.column("reason"), reason))
            found += some.slice(0, most - len(found)).to_pylist()
    print_quarantined(counts, [row for some in rows.values() for row in some], console, most)


def _quarantine(cache: Path) -> tuple[Path, Shard, dict[str, int]]:
    """The folder of the quarantine file, its entry, and the number of rows by reason."""
    if not manifests.is_sealed(cache):
        folders = [cache / name for name in sorted(entries(cache)) if PLAN.fullmatch(name)]
        plans = [(folder, plan) for folder in folders if (plan := plan_record.read(folder))]
        if len(plans) == 1:
            folder, plan = plans[0]
            return folder, plan.quarantine, plan.quarantined_by_reason
    manifest = manifests.read(cache)
    return cache, manifest.quarantine, manifest.counts.quarantined_by_reason


def run_dry(config: PrecomputeConfig, console: TerminalConsole) -> None:
    """Print what stage one makes of the first rows of the data, without scoring or writing.

    Raises:
        InputError: the data, the tokenizer or the options cannot be used, or none of these rows.
    """
    config, reference, _ = find_inputs(config, weights=False)
    with quiet_transformers():
        from reflogp.stages.precompute.dry_run import tokenize_first

        found = tokenize_first(config, reference, _READ, console)
        decoder = Decoder(reference.tokenizer, trusted=reference.trusted)
    counts = Counter(row["reason"] for row in found.quarantined)
    print_quarantined(dict(counts.most_common()), found.quarantined, console, ROWS)
    for row in map(asdict, found.rows[:ROWS]):
        print_row(row, _where(row, found.reading.parts), decoder, console)
    if not found.rows:
        raise InputError(
            f"{config.data}: none of the first {found.read} rows can be used. Fix the data, or the "
            "options that name its columns and limits."
        )
    console.say(
        f"{config.data}: read {found.read} row{'s' * (found.read != 1)} as {found.form}, "
        f"{len(found.rows)} to score. Nothing was scored or written"
    )


def _where(row: Row, parts: Sequence[Part]) -> str:
    """The file and line of a row, or an empty text if they are unknown."""
    file, line = locate(parts, row["source_row"])
    return place(file, line) if file else ""
