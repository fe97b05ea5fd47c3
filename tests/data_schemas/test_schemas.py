"""What is on disk: documented, versioned, refused when damaged or of another version."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reflogp.data_schemas import manifest as manifests
from reflogp.data_schemas import quarantine, scored_pairs
from reflogp.data_schemas.cache_shard import SHARD_SCHEMA, read_shard
from reflogp.data_schemas.doctor_report import DoctorReport
from reflogp.data_schemas.errors import InputError
from reflogp.data_schemas.export import PARQUET_SCHEMA, TRL_SCHEMA
from reflogp.data_schemas.files.atomic import atomic_path, write_text
from reflogp.data_schemas.files.ownership import Mark
from reflogp.data_schemas.manifest import Manifest
from reflogp.data_schemas.plan_record import PlanRecord
from reflogp.data_schemas.run_record import RunRecord
from reflogp.data_schemas.shard_origin import Origin
from reflogp.data_schemas.sweep_record import SweepRecord

DOCUMENTATION = Path(manifests.__file__).with_name("README.md").read_text(encoding="utf-8")


def model_fields(model, seen=()):
    for name, field in model.model_fields.items():
        yield name
        for inner in [field.annotation, *getattr(field.annotation, "__args__", ())]:
            if hasattr(inner, "model_fields") and inner not in seen:
                yield from model_fields(inner, (*seen, inner))


SCHEMAS = [SHARD_SCHEMA, quarantine.SCHEMA, scored_pairs.SCHEMA, PARQUET_SCHEMA, TRL_SCHEMA]


@pytest.mark.parametrize("schema", SCHEMAS)
def test_every_column_is_documented_in_the_file_itself_and_in_the_readme(schema):
    for field in schema:
        assert len(field.metadata[b"doc"]) > 10, field.name
        assert f"`{field.name}`" in DOCUMENTATION, field.name


def test_every_field_that_is_written_as_json_is_documented():
    models = (Manifest, RunRecord, PlanRecord, Origin, SweepRecord, DoctorReport, Mark)
    names = {name for model in models for name in model_fields(model)} | {*quarantine.Reason}
    assert len(names) > 60
    assert [name for name in sorted(names) if f"`{name}`" not in DOCUMENTATION] == []


def test_a_failed_write_leaves_the_earlier_file_and_no_other(tmp_path):
    path = tmp_path / "file"
    write_text(path, "earlier")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "half a surrogate pair: \ud800")
    with pytest.raises(FileNotFoundError), atomic_path(path):
        pass  # nothing was written under the temporary name
    assert path.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [path]


def test_a_shard_of_another_version_is_refused(tmp_path):
    path = tmp_path / "shard.parquet"
    other = SHARD_SCHEMA.with_metadata({"reflogp.schema_version": "7"})
    pq.write_table(other.empty_table(), path)
    with pytest.raises(InputError, match=r"schema version 7.*reads versions 3 and 4.*precompute"):
        read_shard(path)


def test_a_shard_of_the_version_before_masks_is_read_as_rows_without_masks(cache, tmp_path):
    now = read_shard(next(cache.glob("shard-*.parquet")))
    before = now.drop_columns([name for name in now.column_names if name.endswith("_mask")])
    path = tmp_path / "shard.parquet"
    pq.write_table(before.replace_schema_metadata({"reflogp.schema_version": "3"}), path)
    assert read_shard(path).equals(now, check_metadata=True)
    some = ["row_id", "chosen_mask", "chosen_ids"]
    assert read_shard(path, some).equals(now.select(["row_id", "chosen_ids", "chosen_mask"]))
    pq.write_table(before, path)  # says that it is of the present version
    with pytest.raises(InputError, match="its columns are not those of a shard"):
        read_shard(path)


def test_a_file_that_is_no_shard_is_refused(tmp_path):
    path = tmp_path / "shard.parquet"
    with pytest.raises(InputError, match=r"missing.*precompute"):
        read_shard(path)
    path.write_bytes(b"PAR1 not really PAR1")
    with pytest.raises(InputError, match=r"shard\.parquet: not a readable Parquet file"):
        read_shard(path)
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(InputError, match="schema version none"):
        read_shard(path)


def test_a_shard_that_lacks_a_column_is_refused(tmp_path):
    path = tmp_path / "shard.parquet"
    pq.write_table(SHARD_SCHEMA.empty_table().drop_columns(["ref_chosen_logps"]), path)
    with pytest.raises(InputError, match=r"damaged: its columns are not those of a shard"):
        read_shard(path)


FILE = {"rows": 1, "tokens": 1, "bytes": 1, "sha256": ""}


@pytest.fixture
def manifest_json(cache):
    return json.loads((cache / manifests.FILE_NAME).read_text(encoding="utf-8"))


def test_a_manifest_survives_writing_and_reading(cache, tmp_path):
    manifest = manifests.read(cache)
    assert manifests.write(tmp_path, manifest) == manifest
    assert manifests.read(tmp_path) == manifest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 2}, "schema version 2, but this reflogp reads version 3"),
        ({"schema_version": None}, "schema version None"),
        ({"kind": "triples"}, "damaged: kind"),
        ({"surprise": 1}, "damaged: surprise"),
        ({"quarantine": {**FILE, "file": "../../etc/passwd"}}, "not a plain file name"),
        ({"shards": [{**FILE, "file": "/etc/passwd"}]}, "not a plain file name"),
        ({"shards": [{**FILE, "file": "a\0b"}]}, "not a plain file name"),
        ({"shards": [{**FILE, "file": "é" * 128}]}, "not a plain file name"),
        ({"shards": [{**FILE, "file": "a", "bytes": 10**400}]}, "damaged: shards.0.bytes"),
        ({"counts": {"rows": -1}}, "damaged: counts"),
    ],
)
def test_a_manifest_that_is_not_ours_is_refused(manifest_json, tmp_path, change, message):
    (tmp_path / manifests.FILE_NAME).write_text(json.dumps(manifest_json | change))
    with pytest.raises(InputError, match=message):
        manifests.read(tmp_path)


@pytest.mark.parametrize("content", ["", "[", "[" * 100_000, "[1]", "7", '"text"', "\x00", "NaN"])
def test_a_manifest_that_is_no_manifest_is_refused(tmp_path, content):
    (tmp_path / manifests.FILE_NAME).write_text(content)
    with pytest.raises(InputError, match=r"manifest\.json"):
        manifests.read(tmp_path)


def test_a_folder_without_a_manifest_is_not_sealed(tmp_path):
    with pytest.raises(InputError, match="not sealed"):
        manifests.read(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        manifests.read(tmp_path / "nowhere")
