"""Every flipped bit is found and named; so is what is missing, cut, or of another shape."""

import os
import random
import shutil
from pathlib import Path

import pytest

from reflogp.data_schemas import manifest as manifests
from reflogp.data_schemas.cache_shard import read_shard
from reflogp.data_schemas.errors import InputError
from reflogp.data_schemas.files import ownership
from reflogp.pipeline.curate import run_filter
from reflogp.pipeline.run import run_integrity
from reflogp.pipeline.summary import cache_rows
from reflogp.stages.cache.integrity import examine
from reflogp.stages.cache.write_shard import describe, write_shard
from reflogp.stages.filter.config import FilterRules
from tests.planted import plant, row

FLIPS = 1000 if "REFLOGP_FAULTS" in os.environ else 300


@pytest.fixture
def copy(cache, tmp_path) -> Path:
    return shutil.copytree(cache, tmp_path / "copy")


def problems(folder: Path, console) -> list[str]:
    try:
        return run_integrity(folder, console)
    except InputError as error:
        return [str(error)]


def test_a_sound_cache_is_whole(cache, console):
    assert run_integrity(cache, console) == []


def test_every_flipped_bit_is_found_and_its_file_is_named(copy, console):
    source = random.Random(0)
    # the mark says whose the folder is, and is no part of what is sealed
    files = sorted(path for path in copy.iterdir() if path.name != ownership.FILE_NAME)
    for number in range(FLIPS):
        path = files[number % len(files)]
        content = path.read_bytes()
        flipped = bytearray(content)
        place = source.randrange(len(content))
        flipped[place] ^= 1 << source.randrange(8)
        path.write_bytes(flipped)
        found = problems(copy, console)
        assert found, f"{path.name}, byte {place}"
        assert all(path.name in text for text in found), found
        path.write_bytes(content)
    assert problems(copy, console) == []


@pytest.mark.parametrize("pattern", ["shard-*-00001.parquet", "quarantine-*", "manifest.json"])
@pytest.mark.parametrize("change", ["missing", "empty", "cut"])
def test_a_file_that_is_gone_or_short_is_named(copy, console, pattern, change):
    path = next(copy.glob(pattern))
    content = path.read_bytes()
    path.unlink()
    if change != "missing":
        path.write_bytes(content[: len(content) // 2] if change == "cut" else b"")
    found = problems(copy, console)
    assert len(found) == 1
    assert path.name in found[0]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda t: t.slice(1), "rows, not"),
        (lambda t: t.drop_columns(["confidence"]), "columns are not those of a shard"),
        (lambda t: _put(t, "ref_chosen_logp_sum", lambda v: v + 0.5), "not the sum of"),
        (lambda t: _put(t, "ref_rejected_logps", lambda v: v[:-1]), "one log-prob per token"),
        (lambda t: _put(t, "ref_rejected_logps", lambda v: [0.5, *v[1:]]), "above 0"),
        (lambda t: _put(t, "ref_chosen_logps", lambda v: [float("nan"), *v[1:]]), "not finite"),
        (lambda t: _put(t, "row_id", lambda v: v[:5] + "x" + v[6:]), "00000"),
        (lambda t: _put(t, "row_id", lambda v: "0" * 32), "row_id is the same as in"),
    ],
)
def test_a_shard_with_a_good_checksum_but_wrong_content_is_found(cache, tmp_path, change, expected):
    shard = manifests.read(cache).shards[0]
    path = tmp_path / shard.file
    write_shard(change(read_shard(cache / shard.file)), path)
    _, found = examine(tmp_path, [describe(path, rows=shard.rows, tokens=shard.tokens)])
    assert found
    assert expected in " ".join(found)


def _put(table, name, change):
    import pyarrow as pa

    field = table.schema.field(name)
    values = [change(value) for value in table.column(name).to_pylist()]
    index = table.schema.get_field_index(name)
    return table.set_column(index, field, pa.array(values, field.type))


def test_tokens_of_context_are_counted_among_the_others(manifest, tmp_path, console):
    rows = [
        row([9], [2, 3, 4], None, kl=[7, 8], masks=([False, True, False], None, None)),
        row([9, 9], None, [3], kl=[4, 5, 6], masks=(None, None, [True, False, True])),
    ]
    cache = plant(tmp_path / "cache", rows, manifest)
    counts = manifests.read(cache).counts
    assert (counts.context_tokens, counts.tokens) == (3, 12)
    assert (counts.chosen_tokens, counts.rejected_tokens, counts.kl_tokens) == (3, 1, 5)
    assert run_integrity(cache, console) == []
    made = run_filter(cache, tmp_path / "out", FilterRules(drop_truncated=True), console)
    assert made.counts == counts
    assert dict(cache_rows(cache, manifests.read(cache)))["context"].startswith("3 of the response")
