"""Whatever a manifest, a shard, a record, a checkpoint or a config holds, it is read or refused."""

import hashlib
import json
import re
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save as safetensors_bytes

from reflogp.data_schemas import job_record, plan_record, run_record
from reflogp.data_schemas import manifest as manifests
from reflogp.data_schemas.cache_shard import SHARD_SCHEMA, read_shard
from reflogp.data_schemas.manifest import missing_files
from reflogp.data_schemas.plan_record import PlanRecord
from reflogp.data_schemas.sealed_file import require_intact
from reflogp.data_schemas.shard_origin import read_origin
from reflogp.pipeline.config import SECTIONS, build, load_file
from reflogp.pipeline.fingerprint import model_inputs
from reflogp.pipeline.resolve import checkpoint_dtype
from reflogp.pipeline.summary import inspect_rows, train_rows
from reflogp.stages.cache.integrity import examine, integrity
from reflogp.stages.cache.write_shard import describe
from reflogp.stages.model.checkpoint import Checkpoint
from reflogp.stages.model.loading import architecture, quantization
from reflogp.stages.precompute.config import PrecomputeConfig
from reflogp.stages.precompute.plan.make_plan import find_plan
from reflogp.stages.precompute.read.sources import source_files
from reflogp.stages.precompute.seal.rescore import too_large
from reflogp.stages.precompute.stage import merge
from reflogp.stages.precompute.tokens.ends import stop_ids
from tests.conftest import Silent
from tests.mutations import damaged, fuzz, json_file, mutated, outcome
from tests.precompute.conftest import trained_tokenizer

STEP = {"loss": 0.5, "margin": 0.1, "accuracy": 1.0}
RUN = {
    "reflogp_version": "0.1.0", "fingerprint": "0", "cache": "cache", "policy": "model",
    "settings": {"beta": 0.1}, "pairs": 4, "steps": 2, "trained_parameters": 10, "first": STEP,
    "first_margin_noise": None, "last": STEP, "started_at": "2026-01-01T00:00:00Z",
    "seconds": 1.0, "pairs_per_second": 4.0,
}  # fmt: skip
JOB = {
    "started_at": "2026-01-01T00:00:00Z", "seconds": 1.0, "scoring_seconds": 1.0,
    "scored_tokens": 5, "shards": 1, "user": "me", "machine": "here", "device": "1 cpu",
    "versions": {"torch": "2"}, "command": ["reflogp"],
}  # fmt: skip
CONFIG = {
    "precompute": {
        "reference": "model", "data": "pairs.jsonl", "cache": "cache", "max_length": 512,
        "columns": {"prompt": "question"}, "min_confidence": 0.5, "engine": "auto",
        "engine_args": {"block_size": 16, "hf_overrides": {"a": [1, 2]}},
    },
    "train": {
        "cache": "cache", "output": "out", "beta": 0.1, "epochs": 1.0, "seed": 1,
        "lora_targets": "q_proj", "gradient_checkpointing": True,
    },
}  # fmt: skip
CHECKPOINT = {
    "config.json": {"architectures": ["LlamaForCausalLM"], "dtype": "float32", "vocab_size": 9},
    "tokenizer_config.json": {"eos_token": "</s>", "chat_template": "{{ 1 }}"},
    "generation_config.json": {"eos_token_id": [1, 2]},
}
WEIGHTS = safetensors_bytes({"a": torch.zeros(2, 3), "b": torch.ones(4)})


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def sealed(content: bytes) -> bytes:
    """A manifest with the seal that a forger would give it."""
    empty = re.sub(rb'"seal": "[^"]*"', b'"seal": ""', content)
    seal = hashlib.sha256(empty).hexdigest().encode()
    return empty.replace(b'"seal": ""', b'"seal": "' + seal + b'"')


@pytest.fixture(scope="module")
def plan(cache, folder) -> Path:
    """The folder of a valid plan of one shard, as it would be for `cache`."""
    manifest = manifests.read(cache)
    shard, place = manifest.shards[0], folder / "valid"
    record = PlanRecord(
        schema_version=plan_record.SCHEMA_VERSION,
        reflogp_version="0", inputs=manifest.inputs, kind="paired", form="text", rows_read=5,
        template_diverged=0, stop_token_ids=[1], quarantined_by_reason={"too_long": 1},
        shards=[shard.model_copy(update={"file": "plan-00000.arrow"})],
        quarantine=shard.model_copy(update={"file": "quarantine.parquet"}),
        quarantine_summary="1 row quarantined", reference="model", adapter=None, dtype="float32",
        config={"reference": "model", "data": "pairs.jsonl", "cache": "cache"},
        engine={"name": "transformers", "version": "5", "why": "asked for"},
    )  # fmt: skip
    plan_record.write(place, record)
    return place


def test_a_plan_of_another_version_is_made_anew(plan, tmp_path):
    record = plan_record.read(plan)
    assert record is not None
    plan_record.write(tmp_path, record.model_copy(update={"schema_version": 2}))
    assert plan_record.read(tmp_path) is None


@fuzz
@given(data=st.data(), forged=st.booleans())
def test_manifest(data, forged, cache, folder):
    valid = json.loads((cache / manifests.FILE_NAME).read_bytes())
    content = data.draw(json_file(valid))
    (folder / manifests.FILE_NAME).write_bytes(sealed(content) if forged else content)
    manifest = outcome(lambda: manifests.read(folder))
    if manifest is None:
        return
    for record in [*manifest.shards, manifest.quarantine]:
        path = folder / record.file
        assert path.resolve().parent == folder.resolve(), record.file
        outcome(partial(require_intact, path, record))
    assert integrity(folder, manifest, lambda _: None)  # the files are not there
    missing_files(folder, manifest)
    text = "".join(name + value for name, value in inspect_rows(folder, manifest))
    (text + manifest.model_dump_json()).encode()


@fuzz
@given(data=st.data())
def test_shard(data, cache, folder):
    path = folder / "shard.parquet"
    shard = manifests.read(cache).shards[0]
    path.write_bytes(data.draw(damaged((cache / shard.file).read_bytes())))
    table = outcome(lambda: read_shard(path))
    if table is not None:
        assert table.schema.equals(SHARD_SCHEMA)
    outcome(lambda: read_shard(path, ["prompt_ids", "ref_chosen_logp_sum"]))
    read_origin(path)
    # the manifest of a forger has the checksum of the damaged file
    examine(folder, [describe(path, rows=shard.rows, tokens=shard.tokens)])


@fuzz
@given(data=st.data(), forged=st.booleans())
def test_plan(data, forged, plan, folder):
    valid = json.loads((plan / plan_record.FILE_NAME).read_bytes())
    content = data.draw(json_file(valid))
    if forged:
        try:
            content = PlanRecord.model_validate_json(content).sealed_json().encode()
        except ValueError:
            return
    place = folder / "plan-01234567"
    place.mkdir(exist_ok=True)
    (place / plan_record.FILE_NAME).write_bytes(content)
    for name in ("plan-00000.arrow", "quarantine.parquet"):
        (place / name).touch()
    found = find_plan(place)
    assert found is None or all(shard.path.parent == place for shard in found.shards)
    outcome(lambda: merge(folder, Silent()))


@fuzz
@given(content=json_file(JOB))
def test_job(content, folder):
    path = folder / "job.json"
    path.write_bytes(content)
    record = job_record.read(path)
    assert record is None or record.started_at.tzinfo is not None


@fuzz
@given(content=json_file(RUN | {"schema_version": run_record.SCHEMA_VERSION}))
def test_run_record(content, folder):
    (folder / run_record.FILE_NAME).write_bytes(content)
    record = outcome(lambda: run_record.read(folder))
    if record is not None:
        text = "".join(name + value for name, value in train_rows(folder, record))
        (text + record.model_dump_json()).encode()


@fuzz
@given(
    files=st.fixed_dictionaries({name: json_file(value) for name, value in CHECKPOINT.items()}),
    weights=damaged(WEIGHTS),
)
def test_checkpoint(files, weights, folder):
    for name, content in files.items():
        (folder / name).write_bytes(content)
    (folder / "model.safetensors").write_bytes(weights)
    outcome(lambda: model_inputs(Checkpoint(folder, None, "float32")))
    outcome(lambda: checkpoint_dtype(folder))
    outcome(lambda: quantization(folder))
    outcome(lambda: architecture(folder))
    outcome(lambda: too_large(folder))
    outcome(lambda: stop_ids(trained_tokenizer(), folder))


@st.composite
def yaml_files(draw: st.DrawFn) -> bytes:
    """CONFIG mutated, or the whole of it damaged."""
    content = draw(mutated(CONFIG))
    try:
        text = yaml.safe_dump(content, allow_unicode=draw(st.booleans()))
        return draw(damaged(text.encode())) if draw(st.booleans()) else text.encode()
    except (UnicodeEncodeError, RecursionError):
        return draw(damaged(yaml.safe_dump(CONFIG).encode()))


@fuzz
@given(content=yaml_files())
def test_config(content, folder):
    path = folder / "run.yaml"
    path.write_bytes(content)
    sections = outcome(lambda: load_file(path))
    if sections is None:
        return
    for name, model in SECTIONS.items():
        config = outcome(partial(build, model, sections[name], {}))
        if config is not None:
            config.model_dump_json().encode()
            json.dumps(config.model_dump(mode="json"), sort_keys=True)
    first = outcome(lambda: build(PrecomputeConfig, sections["precompute"], {}))
    if first is not None:
        outcome(lambda: source_files(first.data, first.split))
        json.dumps([first.rules(), first.engine_settings()], sort_keys=True, default=str).encode()
