"""Stage one, merge and filter touch nothing in a folder but what reflogp wrote there."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from reflogp.data_schemas import manifest as manifests
from reflogp.data_schemas.errors import InputError, ReflogpError
from reflogp.data_schemas.files import ownership
from reflogp.data_schemas.manifest import Manifest
from reflogp.pipeline.curate import run_filter
from reflogp.pipeline.run import (
    require_output_of_both,
    run_integrity,
    run_merge,
    run_precompute,
    run_share,
)
from reflogp.stages.cache.folder import short
from reflogp.stages.cache.write_shard import describe
from reflogp.stages.filter.config import FilterRules
from reflogp.stages.precompute.config import PrecomputeConfig
from reflogp.stages.precompute.score import worker
from reflogp.stages.precompute.score.engines.transformers import TransformersScorer
from reflogp.stages.precompute.seal.seal import seal
from reflogp.stages.train.config import TrainConfig
from tests.caches import file_names, rows_by_id
from tests.foreign import plant, remembered

DROP = FilterRules(drop_truncated=True)


@pytest.fixture
def settings(checkpoint, few_preferences, tmp_path) -> PrecomputeConfig:
    return PrecomputeConfig(
        reference=str(checkpoint), data=str(few_preferences), cache=tmp_path / "cache",
        engine="transformers", max_length=192, shard_tokens=4000, verify_sample=0,
    )  # fmt: skip


@pytest.fixture
def shorter(settings) -> PrecomputeConfig:
    """The same folder, other inputs."""
    return settings.model_copy(update={"max_length": 150})


@pytest.fixture
def sealed(cache, settings) -> Manifest:
    """Of the cache that `settings` would make, which is there."""
    return manifests.read(shutil.copytree(cache, settings.cache))


def overwriting(settings: PrecomputeConfig) -> PrecomputeConfig:
    return settings.model_copy(update={"overwrite": True})


def no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TransformersScorer, "__init__", None)


def killed_before_its_seal(settings: PrecomputeConfig, console, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("reflogp.stages.precompute.stage.seal", lambda *_: None)
        run_share(settings, console)


Commands = dict[str, Callable[[], object]]


@pytest.fixture
def commands(settings, cache, console) -> Commands:
    """Each command that writes a cache, onto one folder."""
    return {
        "precompute": lambda: run_precompute(settings, console),
        "precompute --overwrite": lambda: run_precompute(overwriting(settings), console),
        "merge": lambda: run_merge(settings.cache, console),
        "filter": lambda: run_filter(cache, settings.cache, DROP, console),
        "filter --overwrite": lambda: run_filter(
            cache, settings.cache, DROP, console, overwrite=True
        ),
    }


def test_a_folder_that_is_not_reflogps_is_refused_by_every_command(commands, settings):
    plant(settings.cache, digests=["0123abcd"])
    before = remembered(settings.cache)
    for name, command in commands.items():
        with pytest.raises(InputError, match=r"did not write|one complete plan"):
            command()
        assert remembered(settings.cache) == before, name


@pytest.mark.parametrize("content", ['{"name": "my app", "version": 3}', "", "{", "\0" * 500])
def test_a_foreign_manifest_is_refused_by_every_command(commands, settings, content):
    settings.cache.mkdir()
    (settings.cache / manifests.FILE_NAME).write_text(content)
    before = remembered(settings.cache)
    for name, command in commands.items():
        with pytest.raises(InputError):
            command()
        assert remembered(settings.cache) == before, name


def test_a_foreign_manifest_in_a_marked_folder_is_not_replaced_either(
    settings, console, monkeypatch
):
    killed_before_its_seal(settings, console, monkeypatch)
    (settings.cache / manifests.FILE_NAME).write_text('{"name": "my app"}')
    before = remembered(settings.cache)
    for config in (settings, overwriting(settings)):
        with pytest.raises(InputError, match=r"manifest\.json is not reflogp's"):
            run_precompute(config, console)
    with pytest.raises(InputError, match=r"manifest\.json is not reflogp's"):
        run_merge(settings.cache, console)
    assert remembered(settings.cache) == before


def test_foreign_files_in_a_cache_outlive_every_command(
    sealed, settings, shorter, console, tmp_path
):
    with pytest.MonkeyPatch.context() as patch:
        killed_before_its_seal(shorter, console, patch)
    digests = [short(sealed.inputs)]
    digests += [path.name[5:] for path in settings.cache.glob("plan-*")]
    planted = plant(settings.cache, digests)
    before = remembered(settings.cache, planted)
    second = run_precompute(shorter, console)  # replaces the first
    assert remembered(settings.cache, planted) == before
    assert run_precompute(overwriting(shorter), console) == second
    assert run_merge(settings.cache, console) == second
    run_filter(settings.cache, tmp_path / "less", DROP, console)
    with pytest.raises(InputError):
        run_precompute(shorter.model_copy(update={"columns": {"prompt": "nowhere"}}), console)
    assert remembered(settings.cache, planted) == before
    own = {path.name for path in settings.cache.iterdir()} - {name.parts[0] for name in planted}
    assert own == set(file_names(second))
    assert run_integrity(settings.cache, console) == []


def test_foreign_files_in_a_filtered_cache_outlive_filter(cache, tmp_path, console):
    out = tmp_path / "out"
    first = run_filter(cache, out, DROP, console)
    planted = plant(out, [short(first.inputs)])
    before = remembered(out, planted)
    second = run_filter(cache, out, FilterRules(max_length_ratio=3), console, overwrite=True)
    with pytest.raises(InputError, match="no row keeps"):
        run_filter(cache, out, FilterRules(max_length_difference=0, max_similarity=0), console)
    assert remembered(out, planted) == before
    assert not list(out.glob(f"shard-{short(first.inputs)}-?????.parquet"))
    assert manifests.read(out) == second
    assert run_integrity(out, console) == []


def test_what_is_refused_leaves_no_folder(settings, cache, console):
    for change, message in [
        ({"columns": {"prompt": "nowhere"}}, "no column 'nowhere'"),
        ({"keep": ("nowhere",)}, "no column 'nowhere'"),
        ({"max_length": 1000}, "--max-length"),
        ({"max_length": 2, "truncate": "never"}, "none of the 24 rows"),
        ({"data": "./nowhere.jsonl"}, "no such file"),
    ]:
        with pytest.raises(InputError, match=message):
            run_precompute(settings.model_copy(update=change), console)
        assert not settings.cache.exists(), change
    with pytest.raises(InputError, match="no rule is given"):
        run_filter(cache, settings.cache, FilterRules(), console)
    with pytest.raises(InputError, match="no confidence"):
        run_filter(cache, settings.cache, FilterRules(min_confidence=0.5), console)
    assert not settings.cache.exists()


def test_rows_that_were_never_sealed_stay_unless_the_user_says_otherwise(
    settings, shorter, console, monkeypatch
):
    killed_before_its_seal(settings, console, monkeypatch)
    names = [path.relative_to(settings.cache) for path in settings.cache.glob("shard-*")]
    shards = remembered(settings.cache, names)
    run_precompute(shorter, console)
    assert shards.items() <= remembered(settings.cache).items()
    rows = sum(pq.read_metadata(settings.cache / name).num_rows for name in shards)
    said = f"the folder also has {len(shards)} shards ({rows} rows) of an unsealed cache"
    assert any(said in line for line in console.said), console.said
    with monkeypatch.context() as patch:  # the first command still finds all it made
        no_engine(patch)
        run_precompute(settings, console)
    killed_before_its_seal(shorter, console, monkeypatch)
    manifest = run_precompute(overwriting(settings), console)
    assert sorted(path.name for path in settings.cache.iterdir()) == file_names(manifest)


def test_a_command_that_is_killed_before_it_clears_up_is_finished_by_the_next(
    sealed, settings, shorter, console, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr("reflogp.stages.precompute.seal.seal.clear_up", lambda *_: None)
        run_precompute(shorter, console)
    assert len(list(settings.cache.glob("quarantine-*"))) == 2
    manifest = run_merge(settings.cache, console)
    assert sorted(path.name for path in settings.cache.iterdir()) == file_names(manifest)


def test_a_cache_that_is_wanted_again_is_not_cleared_away(
    sealed, settings, shorter, console, monkeypatch
):
    killed_before_its_seal(shorter, console, monkeypatch)  # names the first as replaced
    assert run_precompute(settings, console) == sealed
    assert run_precompute(overwriting(settings), console) == sealed
    assert run_integrity(settings.cache, console) == []


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(b'"counts"') + 40] ^= 4
    path.write_bytes(content)


def newer(path: Path) -> None:
    found = json.loads(path.read_text())
    path.write_text(json.dumps(found | {"schema_version": 4, "more": {}}))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:900])


@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize("change", [flip, newer, cut])
def test_a_scored_cache_that_cannot_be_read_is_not_taken_for_none(
    commands, sealed, settings, change, marked
):
    change(settings.cache / manifests.FILE_NAME)
    if not marked:  # as earlier releases left it
        (settings.cache / ownership.FILE_NAME).unlink()
    before = remembered(settings.cache)
    for name in ("precompute", "filter", "filter --overwrite", "merge"):
        with pytest.raises(InputError, match=r"--overwrite|cannot be read|a cache that was scored"):
            commands[name]()
        assert remembered(settings.cache) == before, name


@pytest.mark.parametrize("change", [flip, newer, cut])
def test_overwrite_makes_a_manifest_anew_and_scores_nothing_twice(
    sealed, settings, console, monkeypatch, change
):
    names = [path.relative_to(settings.cache) for path in settings.cache.glob("shard-*")]
    shards = remembered(settings.cache, names)
    change(settings.cache / manifests.FILE_NAME)
    with monkeypatch.context() as patch:
        no_engine(patch)
        again = run_precompute(overwriting(settings), console)
    assert (again.shards, again.quarantine) == (sealed.shards, sealed.quarantine)
    assert shards.items() <= remembered(settings.cache).items()


@pytest.mark.parametrize("shard_tokens", [1000, 100_000])
def test_a_cache_that_is_made_anew_in_other_shards_scores_nothing_twice(
    sealed, settings, console, monkeypatch, shard_tokens
):
    before = rows_by_id(settings.cache)
    flip(settings.cache / manifests.FILE_NAME)
    no_engine(monkeypatch)
    others = overwriting(settings).model_copy(update={"shard_tokens": shard_tokens})
    manifest = run_precompute(others, console)
    assert rows_by_id(settings.cache) == before
    assert sorted(path.name for path in settings.cache.iterdir()) == file_names(manifest)
    assert run_integrity(settings.cache, console) == []


def test_a_cache_that_cannot_be_read_stays_until_the_new_one_is_sealed(
    sealed, settings, shorter, console, monkeypatch
):
    newer(settings.cache / manifests.FILE_NAME)
    before = remembered(settings.cache)
    with monkeypatch.context() as patch:
        patch.setattr(worker, "write_shard", None)
        with pytest.raises(TypeError):
            run_precompute(overwriting(shorter), console)
    del before[Path(ownership.FILE_NAME)]
    assert before.items() <= remembered(settings.cache).items()
    manifest = run_precompute(overwriting(shorter), console)
    assert sorted(path.name for path in settings.cache.iterdir()) == file_names(manifest)


def test_a_cache_of_an_earlier_release_has_no_mark_and_goes_on(sealed, settings, shorter, console):
    (settings.cache / ownership.FILE_NAME).unlink()
    assert run_precompute(settings, console) == sealed
    second = run_precompute(shorter, console)
    assert sorted(path.name for path in settings.cache.iterdir()) == file_names(second)


def test_a_damaged_mark_is_refused_and_a_cache_goes_on_without_it(sealed, settings, console):
    mark = settings.cache / ownership.FILE_NAME
    mark.write_text(mark.read_text()[:-20])
    for config in (settings, overwriting(settings)):
        with pytest.raises(InputError, match=r"reflogp\.json: .*the folder's mark: .*delete it"):
            run_precompute(config, console)
    mark.unlink()
    assert run_precompute(settings, console) == sealed


def test_a_run_of_an_earlier_release_that_was_killed_goes_on(settings, console, monkeypatch):
    killed_before_its_seal(settings, console, monkeypatch)
    (settings.cache / ownership.FILE_NAME).unlink()
    no_engine(monkeypatch)
    run_precompute(settings, console)


def test_a_result_of_another_kind_is_replaced_only_with_overwrite_and_by_name(settings, console):
    settings.cache.mkdir()
    for name in ("config.json", "notes.txt", "checkpoint-5/model.bin", "checkpoint-5/mine"):
        path = settings.cache / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(name)
    mark = ownership.Mark(kind="run", files=["config.json", "checkpoint-5/model.bin"])
    ownership.write_mark(settings.cache, mark)
    with pytest.raises(InputError, match="holds a training run, not a cache"):
        run_precompute(settings, console)
    manifest = run_precompute(overwriting(settings), console)
    left = sorted(path.name for path in settings.cache.iterdir())
    assert left == sorted([*file_names(manifest), "notes.txt", "checkpoint-5"])
    assert [path.name for path in (settings.cache / "checkpoint-5").iterdir()] == ["mine"]


def test_a_cache_is_never_written_into_what_it_is_made_from(settings, console, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    shutil.copy(settings.data, data / "train.jsonl")
    model = shutil.copytree(settings.reference, tmp_path / "models" / "sft")
    (tmp_path / "link").symlink_to(model)
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "train.jsonl").symlink_to(data / "train.jsonl")
    before = remembered(tmp_path)
    for change in (
        {"cache": model}, {"cache": model / "cache"}, {"cache": tmp_path / "link" / "cache"},
        {"cache": model.parent}, {"cache": data}, {"cache": data / "cache"}, {"cache": tmp_path},
        {"cache": data / "train.jsonl"}, {"cache": data / "train.jsonl" / "cache"},
    ):  # fmt: skip
        inputs = {"reference": str(model), "data": str(data)}
        with pytest.raises(InputError, match="--cache"):
            run_precompute(settings.model_copy(update=inputs | change), console)
        assert remembered(tmp_path) == before, change
    change = {"cache": data, "reference": str(model), "data": str(linked)}
    with pytest.raises(InputError, match=r"the data file train\.jsonl, .* lies inside it"):
        run_precompute(settings.model_copy(update=change), console)


def test_run_refuses_an_output_of_stage_two_before_stage_one(settings, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    shutil.copy(settings.data, data / "train.jsonl")
    first = settings.model_copy(update={"data": str(data)})
    foreign = tmp_path / "foreign"
    plant(foreign, [])
    before = remembered(tmp_path)
    for output in (settings.cache, settings.cache / "model", data / "model", tmp_path, foreign):
        second = TrainConfig(cache=settings.cache, output=output, policy=settings.reference)
        with pytest.raises(InputError, match="--output"):
            require_output_of_both(first, second)
        assert remembered(tmp_path) == before, output
        assert not settings.cache.exists()


def test_filter_never_writes_to_what_its_cache_was_made_from(cache, console, tmp_path):
    one, two, three = tmp_path / "one", tmp_path / "two", tmp_path / "three"
    run_filter(cache, one, DROP, console)
    run_filter(one, two, FilterRules(max_length_ratio=3), console)
    run_filter(two, three, FilterRules(max_similarity=0.95), console)
    before = remembered(tmp_path)
    for output in (one, two, cache, one / "inside", tmp_path):
        for overwrite in (False, True):
            with pytest.raises(InputError, match="--output"):
                run_filter(three, output, DROP, console, overwrite=overwrite)
    assert remembered(tmp_path) == before
    moved = one.rename(tmp_path / "moved")
    with pytest.raises(InputError, match="made from the one there"):
        run_filter(two, moved, DROP, console)


def test_filter_never_takes_the_place_of_rows_that_were_never_sealed(
    settings, cache, console, monkeypatch
):
    killed_before_its_seal(settings, console, monkeypatch)
    shutil.rmtree(next(settings.cache.glob("plan-*")))
    before = remembered(settings.cache)
    for overwrite in (False, True):
        with pytest.raises(InputError, match="a cache that was scored"):
            run_filter(cache, settings.cache, DROP, console, overwrite=overwrite)
    assert remembered(settings.cache) == before


def test_a_filtered_cache_that_cannot_be_read_is_made_anew_with_overwrite(cache, tmp_path, console):
    out = tmp_path / "out"
    first = run_filter(cache, out, DROP, console)
    newer(out / manifests.FILE_NAME)
    with pytest.raises(InputError, match="cannot be read"):
        run_filter(cache, out, DROP, console)
    assert run_filter(cache, out, DROP, console, overwrite=True).shards == first.shards


def test_what_a_killed_filter_left_is_no_obstacle(cache, tmp_path, console, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(manifests, "write", None)
        with pytest.raises(TypeError):
            run_filter(cache, out, DROP, console)
    assert list(out.glob("shard-*"))
    made = run_filter(cache, out, FilterRules(max_length_ratio=3), console)
    assert sorted(path.name for path in out.iterdir()) == file_names(made)


def test_a_filter_whose_shards_another_command_removed_is_not_sealed(
    cache, tmp_path, console, monkeypatch
):
    out = tmp_path / "out"

    def described(path: Path, **counts: int):
        record = describe(path, **counts)
        if path.name.startswith("shard"):
            path.unlink()
        return record

    monkeypatch.setattr("reflogp.stages.filter.stage.describe", described)
    with pytest.raises(ReflogpError, match="is gone"):
        run_filter(cache, out, DROP, console)
    assert not manifests.is_sealed(out)


@pytest.mark.parametrize("kind", ["a file", "inside a file", "a link to nothing"])
def test_a_cache_needs_a_folder(settings, console, tmp_path, kind):
    path = tmp_path / "here"
    path.symlink_to("nowhere") if "link" in kind else path.write_text("mine")
    cache = path / "cache" if "inside" in kind else path
    with pytest.raises(InputError, match=f"--cache {re.escape(str(cache))}"):
        run_precompute(settings.model_copy(update={"cache": cache}), console)


def test_the_seal_says_what_another_command_sealed_meanwhile(
    settings, shorter, console, monkeypatch
):
    """Two commands of other inputs: the second one to seal replaces the first, whole."""

    def overtaken(job, plan, console):
        monkeypatch.setattr("reflogp.stages.precompute.stage.seal", seal)
        run_precompute(settings, console)
        return seal(job, plan, console)

    monkeypatch.setattr("reflogp.stages.precompute.stage.seal", overtaken)
    manifest = run_precompute(shorter, console)
    assert sorted(path.name for path in settings.cache.iterdir()) == file_names(manifest)
    assert len(rows_by_id(settings.cache)) == manifest.counts.rows
