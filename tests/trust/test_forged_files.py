"""Files that are none, lead elsewhere, or grow beyond measure are refused in one message."""

import json
import os
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reflogp.data_schemas import manifest as manifests
from reflogp.data_schemas import quarantine, run_record, scored_pairs
from reflogp.data_schemas.cache_shard import PLAN_SCHEMA, SHARD_SCHEMA
from reflogp.data_schemas.errors import InputError
from reflogp.stages.cache.write_shard import describe
from reflogp.stages.precompute.score.reuse import ScoredRows
from reflogp.stages.report.gather import read_metrics
from tests.trust.forge import forge, rescore, reseal, with_ids, with_value

BOMB = "y" * 1_000_000


@pytest.fixture
def copy(cache, tmp_path) -> Path:
    return shutil.copytree(cache, tmp_path / "copy")


def _pipe(path: Path, _: Path) -> None:
    os.mkfifo(path)


def _device(path: Path, _: Path) -> None:
    path.symlink_to("/dev/zero")


def _link(path: Path, cache: Path) -> None:
    path.symlink_to(cache / path.name)


def _folder(path: Path, _: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("pattern", ["shard-*-00000.parquet", "quarantine-*.parquet"])
@pytest.mark.parametrize("put", [_pipe, _device, _link, _folder])
def test_what_is_no_file_of_the_cache_is_not_read(cache, copy, reflogp, pattern, put):
    path = next(copy.glob(pattern))
    path.unlink()
    put(path, cache)
    code, said = reflogp("verify", copy)
    assert code == 2
    assert path.name in said


@pytest.mark.parametrize("put", [_pipe, _device, _link, _folder])
def test_a_manifest_that_is_no_file_of_the_cache_is_not_read(cache, copy, reflogp, put):
    path = copy / manifests.FILE_NAME
    path.unlink()
    put(path, cache)
    for command in ("verify", "inspect", "diagnose"):
        code, said = reflogp(command, copy)
        assert code == 2, said
        assert "manifest.json" in said


def test_a_cache_in_the_hubs_own_cache_is_read_through_its_links(cache, tmp_path, reflogp):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0123"
    shutil.copytree(cache, blobs)
    snapshot.mkdir(parents=True)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(Path("../../blobs") / file.name)
    assert reflogp("verify", snapshot)[0] == 0


@pytest.mark.parametrize(
    "name",
    ["../x.parquet", "/etc/passwd", "a/b", "a\\b", "C:x", "..", "", "a\0b", "a\nb", "\x1b[2J"],
)
def test_a_name_that_is_no_plain_one_is_refused(cache, copy, name):
    manifest = manifests.read(cache)
    for field in ("shards", "quarantine"):
        record = manifest.quarantine.model_copy(update={"file": name})
        update = {field: [record] if field == "shards" else record}
        manifests.write(copy, manifest.model_copy(update=update))
        with pytest.raises(InputError, match="not a plain file name"):
            manifests.read(copy)


def _counts(manifest, **update):
    return {"counts": manifest.counts.model_copy(update=update)}


@pytest.mark.parametrize(
    ("update", "message"),
    [
        (lambda m: {"shards": [m.shards[0]] * 2}, "listed twice"),
        (lambda m: {"shards": m.shards[1:]}, "rows, but its files"),
        (lambda m: _counts(m, chosen_tokens=10**12), "tokens, but its files"),
        (lambda m: _counts(m, quarantined_by_reason={"too_long": 7}), "quarantined rows"),
        (lambda m: _counts(m, quarantined_by_reason={"too_long": -7}), "quarantined_by_reason"),
        (lambda m: {"shards": [m.shards[0].model_copy(update={"rows": 10**12})]}, "than bytes"),
        (lambda m: {"rules": m.rules | {"max_length": "many"}}, "max_length"),
        (lambda m: {"rules": m.rules | {"keep": 5}}, "keep"),
    ],
)
def test_a_manifest_that_does_not_add_up_is_refused(cache, copy, update, message):
    manifest = manifests.read(cache)
    manifests.write(copy, manifest.model_copy(update=update(manifest)))
    with pytest.raises(InputError, match=message):
        manifests.read(copy)


def test_a_huge_manifest_is_not_read(copy, reflogp):
    os.truncate(copy / manifests.FILE_NAME, 1 << 40)  # sparse
    code, said = reflogp("inspect", copy)
    assert code == 2
    assert "bytes" in said


@pytest.mark.parametrize("dictionary", [True, False])
def test_pages_that_grow_a_thousandfold_are_not_read(copy, commands, dictionary):
    path = copy / manifests.read(copy).shards[0].file
    table = pq.read_table(path)
    many = [[{"name": "a", "value": BOMB}]] * table.num_rows * 20
    field = SHARD_SCHEMA.field("kept")
    table = pa.concat_tables([table] * 20)
    place = table.schema.get_field_index("kept")
    table = table.set_column(place, field, pa.array(many, field.type))
    pq.write_table(table, path, compression="zstd", use_dictionary=dictionary)
    assert path.stat().st_size < 1_000_000
    shard = describe(path, rows=table.num_rows, tokens=manifests.read(copy).shards[0].tokens * 20)
    manifest = manifests.read(copy)
    counts = manifest.counts
    changed = {
        "shards": [shard],
        "counts": counts.model_copy(
            update={"rows": shard.rows, "prompt_tokens": shard.tokens}
            | dict.fromkeys(("chosen_tokens", "rejected_tokens"), 0)
        ),
    }
    manifests.write(copy, manifest.model_copy(update=changed))
    for name in ("verify", "diagnose", "TRL"):
        code, said = commands[name](copy)
        assert code == 2, said
        assert "bytes of memory" in said
        assert "kept" in said


def test_a_quarantine_that_grows_a_thousandfold_is_not_read(copy, reflogp):
    manifest = manifests.read(copy)
    row = {"source_row": 0, "file": "a", "line": 1, "reason": "too_long", "field": None,
           "detail": "", "row": BOMB}  # fmt: skip
    path = copy / manifest.quarantine.file
    pq.write_table(pa.Table.from_pylist([row] * 900, quarantine.SCHEMA), path, compression="zstd")
    record = describe(path, rows=900, tokens=0)
    counts = manifest.counts.model_copy(update={"quarantined_by_reason": {"too_long": 900}})
    reseal(copy, quarantine=record)
    manifests.write(copy, manifest.model_copy(update={"quarantine": record, "counts": counts}))
    code, said = reflogp("verify", copy)
    assert code == 2
    assert "bytes of memory" in said


def test_rows_that_are_not_sound_are_scored_again(cache, tmp_path):
    folder = forge(cache, tmp_path / "forged", lambda rows: rescore(rows[3], "chosen", 0.5))
    manifest = manifests.read(cache)
    planned = pq.read_table(cache / manifest.shards[0].file).select(PLAN_SCHEMA.names)
    known, unknown = ScoredRows(folder, manifest.inputs.scoring_digest()).split(
        planned.replace_schema_metadata(None)
    )
    assert unknown.column("source_row").to_pylist() == [planned.column("source_row")[3].as_py()]
    assert known.num_rows == planned.num_rows - 1


def test_a_weight_over_the_manifests_is_refused(cache, tmp_path, reflogp):
    from reflogp.pipeline.curate import run_filter
    from reflogp.stages.filter.config import FilterRules
    from tests.conftest import Silent

    weighted = tmp_path / "weighted"
    run_filter(cache, weighted, FilterRules(weight_by="similarity"), Silent())
    assert reflogp("verify", weighted)[0] == 0
    folder = forge(weighted, tmp_path / "forged", with_value("weight", 1e6))
    code, said = reflogp("train", "--cache", folder, "--output", tmp_path / "out")
    assert code == 2
    assert "row 0: weight" in said


def test_an_unpaired_cache_has_one_response_a_row(unpaired, tmp_path, reflogp):
    assert reflogp("verify", unpaired)[0] == 0
    for name, change in (
        ("rejected_ids", with_ids("rejected", [5, 6])),
        ("chosen_ids", with_ids("chosen", None)),
        ("kl_ids", with_ids("kl", None)),
    ):
        folder = forge(unpaired, tmp_path / name, change)
        code, said = reflogp("diagnose", folder)
        assert code == 2, said
        assert f"row 0: {name}" in said


@pytest.mark.parametrize("put", [_pipe, _device, _folder])
def test_the_files_of_a_run_are_files(tmp_path, put):
    for name, read in (
        (run_record.FILE_NAME, run_record.read),
        (scored_pairs.FILE_NAME, scored_pairs.read),
        ("metrics.jsonl", lambda folder: read_metrics(folder / "metrics.jsonl")),
    ):
        put(tmp_path / name, tmp_path)
        with pytest.raises(InputError, match=name):
            read(tmp_path)


@pytest.mark.parametrize("line", [b"x" * (3 << 20), json.dumps({"step": 10**400}).encode(), b"[]"])
def test_a_line_of_metrics_that_is_none_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "loss": 0.5}\n' + line + b"\n")
    with pytest.raises(InputError, match="line 2"):
        read_metrics(path)
