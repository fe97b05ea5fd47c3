"""Which stage runs again, and which does not."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from typer.testing import CliRunner

from reflogp.data_schemas import manifest as manifests
from reflogp.data_schemas.cache_shard import SHARD_SCHEMA, read_shard
from reflogp.data_schemas.errors import InputError
from reflogp.pipeline.cli import app
from reflogp.pipeline.fingerprint import model_inputs, precompute_inputs
from reflogp.pipeline.resolve import checkpoint_dtype
from reflogp.pipeline.run import run_precompute, run_train
from reflogp.stages.model.checkpoint import Checkpoint
from reflogp.stages.precompute.config import PrecomputeConfig
from reflogp.stages.precompute.score import worker
from reflogp.stages.precompute.score.engines.choose import Choice
from reflogp.stages.train.config import TrainConfig
from tests.caches import file_names
from tests.checkpoints import make_checkpoint


@pytest.fixture
def settings(checkpoint, few_preferences, tmp_path) -> PrecomputeConfig:
    """Stage one over own copies of checkpoint and data, which a test may change."""
    return PrecomputeConfig(
        reference=str(shutil.copytree(checkpoint, tmp_path / "checkpoint")),
        data=str(shutil.copy(few_preferences, tmp_path / "data.jsonl")),
        cache=tmp_path / "cache",
        engine="transformers",
        max_length=192,
    )


def append(path: str, text: str) -> None:
    Path(path).write_text(Path(path).read_text() + text)


def edit_json(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_stage_one_does_not_run_again_when_nothing_changed(settings, console):
    first = run_precompute(settings, console)
    files = {path: path.stat().st_mtime_ns for path in settings.cache.iterdir()}
    assert run_precompute(settings, console) == first
    assert "stage one: up to date" in console.said[-1]
    assert {path: path.stat().st_mtime_ns for path in settings.cache.iterdir()} == files


@pytest.mark.parametrize(
    ("changed", "change"),
    [
        ("data", lambda s: append(s.data, "\n\n")),
        ("weights", lambda s: make_checkpoint(Path(s.reference), seed=3)),
        ("chat_template", lambda s: append(f"{s.reference}/chat_template.jinja", " ")),
        ("architecture", lambda s: edit_json(Path(s.reference) / "config.json", rms_norm_eps=1e-5)),
        (
            "tokenizer",
            lambda s: edit_json(Path(s.reference) / "generation_config.json", eos_token_id=[3, 4]),
        ),
        ("rules", lambda s: s.model_copy(update={"max_length": 150})),
        ("engine", lambda s: s.model_copy(update={"dtype": "bfloat16"})),
    ],
)
def test_stage_one_runs_again_and_names_what_changed(settings, console, changed, change):
    before = run_precompute(settings, console)
    after_change = change(settings)
    again = after_change if isinstance(after_change, PrecomputeConfig) else settings
    after = run_precompute(again, console)
    assert any(line.endswith(f": {changed}") for line in console.said), console.said
    assert before.inputs.differences(after.inputs) == [changed]
    # only the new cache's files are left
    assert sorted(path.name for path in settings.cache.iterdir()) == file_names(after)


def test_another_template_or_argument_of_it_is_another_fingerprint(settings, tmp_path):
    reference = Checkpoint(Path(settings.reference), None, "float32")
    engine = Choice("transformers", "5", "asked for")
    before = precompute_inputs(reference, settings, engine)

    def changed(**options: object) -> str:
        config = PrecomputeConfig.model_validate(settings.model_dump() | options)
        inputs = precompute_inputs(reference, config, engine)
        assert set(before.differences(inputs)) <= {"rules"}
        return inputs.rules

    file, found = tmp_path / "own.jinja", [before.rules, changed(chat_template="own")]
    for source in ("{{ 1 }}", "{{ 2 }}"):
        file.write_text(source)
        found.append(changed(chat_template=str(file)))
    found += [changed(template_kwargs={"thinks": thinks}) for thinks in (True, False)]
    assert len(set(found)) == len(found)
    assert changed(chat_template=None, template_kwargs={}) == before.rules
    copy = Path(shutil.copy(file, tmp_path / "copy.jinja"))
    assert changed(chat_template=str(copy)) == found[3]


def test_what_changes_no_number_does_not_run_stage_one_again(settings, console):
    first = run_precompute(settings, console)
    edit_json(Path(settings.reference) / "config.json", transformers_version="0", use_cache=False)
    other = settings.model_copy(update={"shard_tokens": 1000, "batch_tokens": 100})
    assert run_precompute(other, console) == first


def test_no_setting_of_stage_two_makes_stage_one_run_again(settings, tmp_path):
    def run(**train: object) -> str:
        path = tmp_path / "run.yaml"
        first = settings.model_dump(mode="json", include=settings.model_fields_set)
        second = {"output": str(tmp_path / "model"), "max_steps": 1, "accumulation": 1} | train
        path.write_text(yaml.safe_dump({"precompute": first, "train": second}))
        done = CliRunner().invoke(app, ["run", "--config", str(path)])
        assert done.exit_code == 0, done.output
        return " ".join(done.output.split())

    assert "stage one: up to date" not in run()
    files = {path: path.stat().st_mtime_ns for path in settings.cache.iterdir()}
    for train in (
        {"beta": 0.3, "learning_rate": 1e-4, "loss": "ld_dpo"},
        {"output": str(tmp_path / "other"), "seed": 1, "lora_r": 0, "weighting": "wpo"},
    ):
        said = run(**train)
        assert "stage one: up to date" in said
        assert "stage two: up to date" not in said
    assert {path: path.stat().st_mtime_ns for path in settings.cache.iterdir()} == files


@pytest.mark.parametrize(
    ("named", "change"),
    [
        ("weights", lambda folder: make_checkpoint(folder, seed=3)),
        ("chat_template", lambda folder: append(f"{folder}/chat_template.jinja", " ")),
        ("tokenizer", lambda folder: append(f"{folder}/tokenizer.json", " ")),
    ],
)
def test_a_cache_is_refused_once_the_policy_is_not_what_it_was_made_from(
    cache, checkpoint, console, tmp_path, named, change
):
    policy = Path(shutil.copytree(checkpoint, tmp_path / "policy"))
    change(policy)
    settings = TrainConfig(cache=cache, output=tmp_path / "model", policy=str(policy))
    with pytest.raises(InputError, match=rf": {named} differ"):
        run_train(settings, console)


def test_the_sealed_cache_stays_whole_when_the_next_one_fails(settings, console, monkeypatch):
    first = run_precompute(settings, console)

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(worker, "write_shard", fail)
    with pytest.raises(KeyboardInterrupt):
        run_precompute(settings.model_copy(update={"max_length": 150}), console)
    assert manifests.read(settings.cache) == first
    for shard in first.shards:
        assert read_shard(settings.cache / shard.file).num_rows == shard.rows


def test_a_damaged_manifest_is_refused_and_made_anew_with_overwrite(settings, console):
    first = run_precompute(settings, console)
    (settings.cache / manifests.FILE_NAME).write_text("{")
    with pytest.raises(InputError, match=r"manifest.json: damaged: not valid JSON.*--overwrite"):
        run_precompute(settings, console)
    again = run_precompute(settings.model_copy(update={"overwrite": True}), console)
    assert again.shards == first.shards
    assert manifests.read(settings.cache) == again


def test_stage_two_runs_again_only_when_cache_or_settings_changed(cache, console, tmp_path):
    settings = TrainConfig(cache=cache, output=tmp_path / "model", max_steps=1, accumulation=1)
    first = run_train(settings, console)
    assert run_train(settings, console) == first
    assert "stage two: up to date" in console.said[-1]
    assert run_train(settings.model_copy(update={"beta": 0.2}), console) != first


def test_a_cache_holds_every_row_once_with_sums_that_add_up(cache):
    manifest = manifests.read(cache)
    tables = [read_shard(cache / shard.file) for shard in manifest.shards]
    rows = pa.concat_tables(tables).to_pylist()
    assert len({row["row_id"] for row in rows}) == len(rows) == manifest.counts.rows
    quarantined = pq.read_table(cache / manifest.quarantine.file).column("source_row").to_pylist()
    assert sorted([r["source_row"] for r in rows] + quarantined) == list(range(24))
    for row in rows:
        for side in ("chosen", "rejected"):
            logps = row[f"ref_{side}_logps"]
            assert len(logps) == len(row[f"{side}_ids"])
            assert max(logps) <= 0
            assert row[f"ref_{side}_logp_sum"] == pytest.approx(sum(logps), rel=1e-12)
    assert tables[0].schema.equals(SHARD_SCHEMA, check_metadata=True)
    assert manifest.counts.chosen_tokens == sum(len(row["chosen_ids"]) for row in rows)
    assert manifest.counts.truncated == sum(
        row["chosen_truncated"] or row["rejected_truncated"] for row in rows
    )


def test_the_transformers_engine_gives_the_same_bytes_twice(settings, console):
    first = run_precompute(settings, console)
    (settings.cache / manifests.FILE_NAME).unlink()
    again = run_precompute(settings, console)
    assert [shard.sha256 for shard in again.shards] == [shard.sha256 for shard in first.shards]


def test_a_limit_over_the_models_positions_is_refused(settings, console):
    with pytest.raises(InputError, match=r"--max-length 1000 is more than the 512 positions"):
        run_precompute(settings.model_copy(update={"max_length": 1000}), console)


def test_a_model_folder_that_is_not_there_is_refused(settings, console, tmp_path):
    for name, message in [
        ("./nowhere", "no such folder"),
        (str(tmp_path / "no" / "where"), "no such folder"),
        (str(tmp_path), r"no config\.json"),
    ]:
        with pytest.raises(InputError, match=f"--reference.*{message}"):
            run_precompute(settings.model_copy(update={"reference": name}), console)


def test_a_checkpoint_without_weights_is_refused(settings, console):
    next(Path(settings.reference).glob("*.safetensors")).unlink()
    with pytest.raises(InputError, match=r"no weights \(\*\.safetensors"):
        run_precompute(settings, console)


def test_a_checkpoint_that_cannot_be_loaded_is_refused(settings, console):
    weights = next(Path(settings.reference).glob("*.safetensors"))
    whole = weights.read_bytes()
    weights.write_bytes(whole[:1000])
    with pytest.raises(InputError, match="the weights cannot be loaded"):
        run_precompute(settings, console)
    weights.write_bytes(whole)
    (Path(settings.reference) / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match="the tokenizer cannot be loaded"):
        run_precompute(settings, console)
    (Path(settings.reference) / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json: not valid JSON"):
        run_precompute(settings, console)


def test_a_shard_that_is_gone_is_scored_again(settings, console):
    first = run_precompute(settings, console)
    (settings.cache / first.shards[0].file).unlink()
    again = run_precompute(settings, console)
    assert f"{first.shards[0].file} (damaged)" in " ".join(console.said)
    assert [shard.sha256 for shard in again.shards] == [shard.sha256 for shard in first.shards]


def test_a_shard_with_altered_numbers_is_never_trained_against(settings, console, tmp_path):
    first = run_precompute(settings, console)
    path = settings.cache / first.shards[0].file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"damaged: its SHA-256"):
        run_train(TrainConfig(cache=settings.cache, output=tmp_path / "model"), console)


def test_a_cache_whose_reference_has_moved_is_found_by_its_name(settings, console, tmp_path):
    manifest = run_precompute(settings, console)
    gone = manifest.reference.model_copy(update={"path": "/nowhere"})
    manifests.write(settings.cache, manifest.model_copy(update={"reference": gone}))
    config = TrainConfig(cache=settings.cache, output=tmp_path / "model", max_steps=1)
    run_train(config, console)


def test_data_of_which_no_row_can_be_used_is_refused_with_the_reasons(settings, console):
    Path(settings.data).write_text('{"prompt": "a", "chosen": "b", "rejected": "b"}\n' * 3)
    with pytest.raises(InputError, match=r"none of the 3 rows.*identical_responses 3.*line 1"):
        run_precompute(settings, console)
    assert not manifests.is_sealed(settings.cache)


def test_an_unpaired_data_set_makes_a_cache_that_pair_losses_refuse(settings, console, tmp_path):
    rows = [{"prompt": f"Say {n}.", "completion": f"{n}!", "label": n % 2 == 0} for n in range(4)]
    Path(settings.data).write_text("\n".join(map(json.dumps, rows)))
    manifest = run_precompute(settings, console)
    assert manifest.kind == "unpaired"
    table = read_shard(settings.cache / manifest.shards[0].file)
    assert table.column("chosen_ids").null_count == table.column("rejected_ids").null_count == 2
    with pytest.raises(InputError, match=r"unpaired.*need chosen and rejected"):
        run_train(TrainConfig(cache=settings.cache, output=tmp_path / "model"), console)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_dtype_of_a_checkpoint_is_read_from_its_config_or_its_weights(tmp_path, dtype):
    folder = make_checkpoint(tmp_path, dtype=dtype)
    name = str(dtype).removeprefix("torch.")
    assert checkpoint_dtype(folder) == name
    edit_json(folder / "config.json", dtype=None, torch_dtype=None)
    assert checkpoint_dtype(folder) == name


def test_model_digests_do_not_depend_on_the_folder(checkpoint, tmp_path):
    copy = shutil.copytree(checkpoint, tmp_path / "copy")
    assert model_inputs(Checkpoint(copy, None, "float32")) == model_inputs(
        Checkpoint(checkpoint, None, "float32")
    )
