"""A run's output: what is not its own stays bit for bit, an old result until the new is whole."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from peft import AutoPeftModelForCausalLM
from pydantic import ValidationError

from reflogp.data_schemas import manifest as manifests
from reflogp.data_schemas import run_record
from reflogp.data_schemas.errors import InputError, ReflogpError
from reflogp.data_schemas.files.ownership import Mark, read_mark, write_mark
from reflogp.pipeline.fingerprint import model_inputs
from reflogp.pipeline.resolve import resolve_start
from reflogp.pipeline.run import require_output_of_both, run_train
from reflogp.pipeline.standing_run import Fingerprint, standing_run
from reflogp.stages.precompute.config import PrecomputeConfig
from reflogp.stages.train.config import TrainConfig
from tests.conftest import Silent
from tests.train.test_resume import killed_at

FOREIGN = {
    "notes.md": "mine", "checkpoint-best/model.safetensors": "mine", "checkpoint-3/x.txt": "mine",
    "job-12345678.out": "mine", "unfinished-20230101/plan.md": "mine", "runs/plot.png": "mine",
    "pytorch_model_backup.bin": "mine", "last_good/readme": "mine", "model-old/config.json": "mine",
}  # fmt: skip


def settings(cache: Path, output: Path, **options: Any) -> TrainConfig:
    given = {"batch_size": 2, "accumulation": 1, "max_steps": 2, "warmup": 0}
    return TrainConfig(cache=cache, output=output, **(given | options))


def files(folder: Path) -> dict[str, bytes | str]:
    """Every file, and of a link what it names."""
    return {
        path.relative_to(folder).as_posix(): (
            str(path.readlink()) if path.is_symlink() else path.read_bytes()
        )
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


@pytest.fixture(scope="module")
def finished(cache, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    run_train(settings(cache, folder), Silent())
    return folder


@pytest.fixture
def output(finished, tmp_path) -> Path:
    """A finished run, with other people's files in and beside it."""
    folder = Path(shutil.copytree(finished, tmp_path / "output"))
    for place in (folder, tmp_path):
        for name, content in FOREIGN.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_text(content)
    return folder


def damaged(cache: Path, folder: Path) -> Path:
    copy = Path(shutil.copytree(cache, folder / "damaged"))
    shard = copy / manifests.read(copy).shards[0].file
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    return copy


@pytest.mark.parametrize(
    "failing",
    [
        {"lora_targets": "no_such_module"},
        {"eval_fraction": 0.999},
        {"damaged": True},
        {"report_to": "comet_ml"},
        {"lora_r": 0, "learning_rate": 1e18, "max_steps": -1, "checkpoint_steps": 2},
    ],
    ids=["targets", "fraction", "shard", "tracker", "divergence"],
)
def test_a_run_that_fails_leaves_the_earlier_one_as_it_was(
    cache, output, console, tmp_path, failing
):
    before = files(tmp_path)
    if failing.pop("damaged", False):
        cache = damaged(cache, tmp_path)
        before = files(tmp_path)
    with pytest.raises(ReflogpError) as found:
        run_train(settings(cache, output, beta=0.3, **failing), console)
    after = files(tmp_path)
    kept = {name: content for name, content in after.items() if name in before}
    assert kept == before
    ours = [name for name in after if name not in before]
    if "learning_rate" in failing:  # what it could be gone on from, in its own folder
        assert all("/unfinished-" in name for name in ours)
        assert "has diverged" in str(found.value)
    else:
        assert ours == []
    assert AutoPeftModelForCausalLM.from_pretrained(output)


def test_a_run_that_is_killed_leaves_the_earlier_one_and_the_next_one_replaces_it(
    cache, output, console, tmp_path
):
    before = files(tmp_path)
    config = settings(cache, output, beta=0.3, max_steps=4, checkpoint_steps=2)
    killed_at(4, config)
    after = files(tmp_path)
    assert {name: after[name] for name in before} == before
    assert all("/unfinished-" in name for name in after if name not in before)
    notes = unfinished_of_ours(output) / "notes.txt"
    notes.write_text("mine")
    record = run_train(config, console)
    assert record.resumed_from == 2
    assert run_record.read(output) == record
    assert AutoPeftModelForCausalLM.from_pretrained(output)
    last = files(output)
    for name, content in FOREIGN.items():
        assert last[name] == content.encode()
    assert notes.read_text() == "mine"
    ours = {name for name in last if not name.startswith("unfinished-")} - FOREIGN.keys()
    mark = read_mark(output)
    assert mark is not None
    assert ours == {*mark.files, "reflogp.json"}


def unfinished_of_ours(output: Path) -> Path:
    [folder] = {path.parent for path in output.glob("unfinished-*/reflogp.json")}
    return folder


def test_nothing_is_trained_again_when_only_the_last_step_was_killed(
    cache, output, console, monkeypatch
):
    config = settings(cache, output, beta=0.3)
    before = run_record.read(output)
    with monkeypatch.context() as patch:
        patch.setattr("reflogp.stages.train.stage.switch", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_train(config, console)
    assert run_record.read(output) == before
    with monkeypatch.context() as patch:
        patch.setattr("reflogp.stages.train.stage.train", _interrupted)
        record = run_train(config, console)
    assert record.settings["beta"] == 0.3
    assert any("moved the result of a finished run into place" in line for line in console.said)
    assert not list(output.glob("unfinished-*/reflogp.json"))


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_no_output_is_an_input_or_lies_beside_one_in_the_same_folder(
    cache, checkpoint, console, tmp_path
):
    model = tmp_path / "sft"
    policy = Path(shutil.copytree(checkpoint, model / "checkpoint-500"))
    (tmp_path / "link").symlink_to(policy)
    before = files(tmp_path)
    for output, message in (
        (policy, "this is the policy"),
        (tmp_path / "link", "this is the policy"),
        (policy / "dpo", "lies inside the policy"),
        (model, "lies inside it"),
        (model / "other" / "..", "lies inside it"),
    ):
        config = settings(cache, output, policy=str(policy))
        with pytest.raises(InputError, match=message):
            run_train(config, console)
    with pytest.raises(InputError, match="this is the cache"):
        run_train(settings(cache, cache), console)
    with pytest.raises(InputError, match="lies inside the cache"):
        run_train(settings(cache, cache / "model"), console)
    assert files(tmp_path) == before


def test_a_folder_that_reflogp_did_not_write_is_refused_as_it_is(
    cache, checkpoint, console, tmp_path
):
    shutil.copytree(checkpoint, tmp_path / "model")
    (tmp_path / "snapshot").mkdir()
    for path in (tmp_path / "model").iterdir():
        (tmp_path / "snapshot" / path.name).symlink_to(path)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    before = files(tmp_path)
    for name, message in {
        "model": "did not write", "snapshot": "did not write", "": "did not write",
        "file": "this is a file", "file/model": "the path is not writable",
        "dangling": "the path is not writable",
    }.items():  # fmt: skip
        for overwrite in (False, True):
            with pytest.raises(InputError, match=message):
                run_train(settings(cache, tmp_path / name, overwrite=overwrite), console)
    assert files(tmp_path) == before


@pytest.mark.parametrize("output", ["", " ", "s3://bucket/model", "s3:/bucket/model"])
def test_what_names_no_folder_on_disk_is_refused(cache, output):
    with pytest.raises(ValidationError, match="output"):
        TrainConfig(cache=cache, output=output)


def test_stage_two_refuses_its_output_before_stage_one_begins(checkpoint, tmp_path):
    data = tmp_path / "data" / "pairs.jsonl"
    data.parent.mkdir()
    data.write_text("{}")
    first = PrecomputeConfig(reference=str(checkpoint), data=str(data), cache=tmp_path / "cache")
    for output, message in (
        (data.parent, "did not write"), (checkpoint, "is the policy"), (data, "this is a file"),
        (checkpoint / "dpo", "lies inside the policy"), (tmp_path / "cache", "this is the cache"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            require_output_of_both(first, TrainConfig(cache=first.cache, output=output))


def edit_record(output: Path, **changes: Any) -> None:
    path = output / run_record.FILE_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_record_of_another_release_is_a_record(cache, output, console, monkeypatch):
    monkeypatch.setattr("reflogp.stages.train.stage.train", _interrupted)
    edit_record(output, schema_version=7, a_later_field={"x": [1]})
    before = files(output)
    assert run_train(settings(cache, output), console).schema_version == 7
    assert "stage two: up to date" in console.said[-1]
    with pytest.raises(InputError, match=r"cannot read all of its record.*--overwrite"):
        run_train(settings(cache, output, beta=0.3), console)
    with pytest.raises(KeyboardInterrupt):  # it would be trained
        run_train(settings(cache, output, beta=0.3, overwrite=True), console)
    assert files(output) == before


@pytest.mark.parametrize("content", ["{", "", "[]", '{"fingerprint": 1}', "\0"])
def test_a_record_that_cannot_be_read_is_not_taken_for_none(
    cache, output, console, monkeypatch, content
):
    monkeypatch.setattr("reflogp.stages.train.stage.train", _interrupted)
    (output / run_record.FILE_NAME).write_text(content)
    before = files(output)
    with pytest.raises(
        InputError, match=r"reflogp_run\.json: this run record is damaged.*--overwrite"
    ):
        run_train(settings(cache, output), console)
    assert files(output) == before
    with pytest.raises(KeyboardInterrupt):
        run_train(settings(cache, output, overwrite=True), console)


def test_a_run_that_an_earlier_release_left_unmarked(cache, output, console):
    (output / "reflogp.json").unlink()
    # releases that left no mark wrote their tags in one line
    (output / "README.md").write_text("---\nbase_model: m\ntags: [dpo, reflogp]\n---\n")
    before = files(output)
    run_train(settings(cache, output), console)
    assert "stage two: up to date" in console.said[-1]
    with pytest.raises(InputError, match=r"without a list of its files.*--overwrite"):
        run_train(settings(cache, output, beta=0.3), console)
    assert files(output) == before
    (output / "README.md").write_text("mine")
    with pytest.raises(InputError, match=r"did not write README\.md"):
        run_train(settings(cache, output, beta=0.3, overwrite=True), console)
    (output / "README.md").write_bytes(before["README.md"])
    record = run_train(settings(cache, output, beta=0.3, overwrite=True), console)
    assert run_record.read(output) == record
    assert {name: files(output)[name] for name in FOREIGN} == {
        name: content.encode() for name, content in FOREIGN.items()
    }


def test_an_option_that_came_later_does_not_make_an_old_run_stale(cache, output, console):
    """It is left out of the fingerprint at its default, which does what was done before."""
    config, manifest, mark = settings(cache, output), manifests.read(cache), read_mark(output)
    record = run_record.read(output)
    assert record is not None
    inputs = model_inputs(resolve_start(None, None, manifest, "policy"))
    older = {name: value for name, value in record.settings.items() if name != "layout"}
    now = Fingerprint(config, inputs, manifest, None)
    edit_record(output, settings=older, fingerprint=now.of(older))
    assert now.of(older) != now.of() == record.fingerprint
    for rate, same in ((config.peak_rate, True), (1e-3, False)):  # said or by default
        given = settings(cache, output, learning_rate=rate)
        assert (Fingerprint(given, inputs, manifest, None).of() == now.of()) is same
    assert standing_run(config, now, mark, console)
    chosen = config.model_copy(update={"layout": "separate"})
    other = Fingerprint(chosen, inputs, manifest, None)
    assert standing_run(chosen, other, mark, console) is None
    assert "runs again: layout changed since" in console.said[-1]
    (output / "adapter_config.json").unlink()
    assert standing_run(config, now, mark, console) is None
    assert "files of the model are missing" in console.said[-1]


def test_another_kind_of_result_is_replaced_only_when_that_is_asked_for(cache, tmp_path, console):
    for name in ("old.md", "notes.md"):
        (tmp_path / name).write_text("text")
    for kind in ("export", "charts", "sweep"):
        write_mark(tmp_path, Mark(kind=kind, files=["old.md"]))
        with pytest.raises(InputError, match="--overwrite"):
            run_train(settings(cache, tmp_path), console)
    run_train(settings(cache, tmp_path, overwrite=True), console)
    assert (tmp_path / "notes.md").is_file()
    assert not (tmp_path / "old.md").exists()
    mark = read_mark(tmp_path)
    assert mark is not None
    assert mark.kind == "run"


def test_a_cache_is_never_replaced(cache, tmp_path, console):
    write_mark(tmp_path, Mark(kind="cache"))
    for overwrite in (False, True):
        with pytest.raises(InputError, match="holds a cache"):
            run_train(settings(cache, tmp_path, overwrite=overwrite), console)


def test_a_disk_without_room_for_the_run_is_refused(cache, output, console, monkeypatch):
    before = files(output)
    full = shutil.disk_usage(output)._replace(free=10_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    with pytest.raises(InputError, match=r"--output .*1e-05 GB left.*and 2 checkpoints"):
        run_train(settings(cache, output, beta=0.3), console)
    assert files(output) == before


def test_the_logs_of_a_tracker_move_with_the_run(cache, tmp_path, console):
    pytest.importorskip("tensorboard")
    run_train(settings(cache, tmp_path, report_to="tensorboard"), console)
    mark = read_mark(tmp_path)
    assert mark is not None
    assert [name for name in mark.files if name.startswith("runs/")]
    assert list(tmp_path.glob("runs/*/events.out.tfevents.*"))
