"""A new result takes an old one's place: killed or failing anywhere, one of the two is whole."""

import errno
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from reflogp.data_schemas.errors import InputError, ReflogpError
from reflogp.data_schemas.files.ownership import Mark, read_mark, require_output
from reflogp.stages.train.result.switch import commit, finish, ready, switch
from reflogp.stages.train.result.unfinished import (
    alone,
    new_result,
    require_free_names,
    require_result_output,
    unfinished_folder,
    working,
)
from tests.faults.boundaries import Boundary, watch

Files = dict[str, bytes | None]
OLD = ("config.json", "model.safetensors", "tokenizer.json", "README.md", "reflogp_run.json")
NEW = ("adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "README.md",
       "reflogp_run.json")  # fmt: skip
FOREIGN = {
    "notes.md": b"mine", "checkpoint-best/model.safetensors": b"mine", "runs/today/plot.png": b"x",
    "checkpoint-6/notes.txt": b"mine", "unfinished-20230101/notes.txt": b"mine",
}  # fmt: skip


def make_result(output: Path, fingerprint: str, names: tuple[str, ...], steps=(3, 6)) -> Path:
    """A whole result in its unfinished folder, with a checkpoint that is kept."""
    folder = unfinished_folder(output, fingerprint)
    with working(output, folder):
        for step in steps:
            (folder / f"checkpoint-{step}").mkdir()
            (folder / f"checkpoint-{step}" / "optimizer.pt").write_text(f"{fingerprint} {step}")
        (folder / "metrics.jsonl").write_text(fingerprint)
        result = new_result(folder)
        for name in names:
            if name.endswith(".safetensors"):
                save_file({"weight": torch.full((3,), int(fingerprint[0]))}, result / name)
            else:
                (result / name).write_text(fingerprint)
        commit(folder, result, [f"checkpoint-{step}" for step in steps[-1:]])
    return folder


def files(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file() or path.is_symlink()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def result(output: Path, names: tuple[str, ...]) -> Files:
    found = files(output)
    every = (*names, "metrics.jsonl", "checkpoint-6/optimizer.pt")
    return {name: found.get(name) for name in every}


@pytest.fixture
def stage(tmp_path) -> Path:
    """An output with an old result, a new one that waits, and other people's files."""
    output = tmp_path / "output"
    switch(output, make_result(output, "1" * 64, OLD))
    make_result(output, "2" * 64, NEW)
    make = unfinished_folder(output, "3" * 64)
    with working(output, make):  # of other settings, killed
        (make / "checkpoint-9").mkdir()
        (make / "checkpoint-9" / "optimizer.pt").write_text("3")
        (make / "checkpoint-9" / "notes.txt").write_text("mine")
    for name, content in FOREIGN.items():
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        (output / name).write_bytes(content)
    return output


def marked(output: Path) -> list[str]:
    mark = read_mark(output)
    assert mark is not None
    return mark.files


def require_foreign_kept(output: Path) -> None:
    found = files(output)
    assert {name: found.get(name) for name in FOREIGN} == FOREIGN
    assert found["unfinished-33333333/checkpoint-9/notes.txt"] == b"mine"


def test_the_new_result_replaces_the_old_one_and_nothing_else(stage):
    new = unfinished_folder(stage, "2" * 64)
    expected = {name: files(next(new.glob("result-*")))[name] for name in NEW}
    finish(stage)
    found = files(stage)
    assert {name: found[name] for name in NEW} == expected
    assert found.pop("reflogp.json")
    left = {"unfinished-33333333/checkpoint-9/notes.txt", "unfinished-33333333/reflogp.json"}
    ours = {*NEW, "metrics.jsonl", "checkpoint-6/optimizer.pt"}
    assert found.keys() == ours | FOREIGN.keys() | left
    assert set(marked(stage)) == ours
    require_foreign_kept(stage)
    assert not new.exists()
    assert ready(stage) is None


def killed_at(
    output: Path, number: int, moment: str, command: Callable[[Path], object] = finish
) -> bool:
    """Call `command` in a child that kills itself at a write of its; whether it did."""

    def kill(boundary: Boundary) -> None:
        if boundary.number == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def child() -> None:
        watch(output, *((kill, _ignore) if moment == "before" else (_ignore, kill)))
        command(output)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(60)
    assert process.exitcode in {0, -signal.SIGKILL}
    return process.exitcode != 0


def _ignore(_: Boundary) -> None: ...


def writes(output: Path) -> int:
    found: list[Boundary] = []
    with pytest.MonkeyPatch.context() as patch:
        watch(output, found.append, _ignore, patch.setattr)
        finish(output)
    return len(found)


def require_one_whole(output: Path, old: Files, new: Files) -> None:
    """Never a mix that loads; and the old result or the new one is whole somewhere."""
    found = files(output)
    loads = [name for name in ("config.json", "adapter_config.json") if name in found]
    if not loads:
        [waiting] = (output / "unfinished-22222222").glob("result-*")
        assert {name: files(waiting)[name] for name in NEW} == {name: new[name] for name in NEW}
    elif loads == ["config.json"]:
        assert {name: found.get(name) for name in old} == old
        assert "adapter_model.safetensors" not in found
    else:
        assert {name: found[name] for name in new if name != "reflogp_run.json"} == {
            name: content for name, content in new.items() if name != "reflogp_run.json"
        }
        assert "model.safetensors" not in found


def test_a_kill_at_any_write_leaves_the_old_or_the_new_result_and_is_finished_later(
    stage, tmp_path
):
    old = result(stage, OLD)
    counted = Path(shutil.copytree(stage, tmp_path / "counted"))
    number = writes(counted)
    new = result(counted, NEW)
    assert number > 30
    for at in range(number):
        output = Path(shutil.copytree(stage, tmp_path / f"killed-{at}"))
        assert killed_at(output, at, "before" if at % 2 else "after")
        require_one_whole(output, old, new)
        require_foreign_kept(output)
        finish(output)
        assert result(output, NEW) == new
        assert not set(OLD).difference(NEW) & files(output).keys()
        require_foreign_kept(output)
        shutil.rmtree(output)


@pytest.mark.parametrize("stays", [True, False], ids=["from then on", "once"])
def test_a_write_that_fails_leaves_the_old_or_the_new_result(stage, tmp_path, stays):
    old = result(stage, OLD)
    counted = Path(shutil.copytree(stage, tmp_path / "counted"))
    number = writes(counted)
    new = result(counted, NEW)
    for at in range(0, number, 2):
        output = Path(shutil.copytree(stage, tmp_path / f"failed-{at}"))

        def fail(boundary: Boundary, at=at) -> None:
            if boundary.number == at or (stays and boundary.number > at):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), boundary.path)

        with pytest.MonkeyPatch.context() as patch:
            watch(output, fail, _ignore, patch.setattr)
            with suppress(OSError):  # what is only cleared up need not succeed
                finish(output)
        require_one_whole(output, old, new)
        require_foreign_kept(output)
        finish(output)
        assert result(output, NEW) == new
        shutil.rmtree(output)


def test_a_file_system_without_links_gets_the_new_result_too(stage, tmp_path, monkeypatch):
    counted = Path(shutil.copytree(stage, tmp_path / "counted"))
    finish(counted)

    def no_links(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", no_links)
    for at in range(0, 60, 5):
        output = Path(shutil.copytree(stage, tmp_path / f"killed-{at}"))
        killed_at(output, at, "before")
        finish(output)
        assert result(output, NEW) == result(counted, NEW)
        require_foreign_kept(output)


def test_a_file_that_came_meanwhile_stays_and_the_new_result_waits(stage):
    (stage / "adapter_config.json").write_text("mine")
    before = files(stage)
    with pytest.raises(ReflogpError, match=r"did not write: adapter_config\.json\. Move them away"):
        finish(stage)
    assert files(stage) == before
    (stage / "adapter_config.json").unlink()
    finish(stage)
    assert "adapter_config.json" in marked(stage)


def test_a_link_is_replaced_and_never_written_through(stage, tmp_path):
    target = tmp_path / "blob"
    target.write_text("theirs")
    (stage / "tokenizer.json").unlink()
    (stage / "tokenizer.json").symlink_to(target)
    finish(stage)
    assert target.read_text() == "theirs"
    assert not (stage / "tokenizer.json").is_symlink()


def test_a_folder_that_became_a_link_is_not_written_through(stage, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    shutil.rmtree(stage / "checkpoint-6")
    elsewhere.mkdir()
    (stage / "checkpoint-6").symlink_to(elsewhere)
    with pytest.raises(ReflogpError, match=r"checkpoint-6/optimizer\.pt"):
        finish(stage)
    assert not list(elsewhere.iterdir())


def test_weights_that_cannot_be_read_back_are_no_result(tmp_path):
    folder = unfinished_folder(tmp_path, "1" * 64)
    with working(tmp_path, folder):
        made = new_result(folder)
        (made / "model.safetensors").write_bytes(b"1234")
        with pytest.raises(ReflogpError, match="cannot be read back"):
            commit(folder, made, [])
    assert ready(tmp_path) is None


@pytest.mark.parametrize("name", ["README.md", "config.json", "adapter_model.bin", "checkpoint-3"])
def test_a_name_that_the_result_needs_and_somebody_else_has_is_refused_before_training(
    tmp_path, name
):
    switch(tmp_path, make_result(tmp_path, "1" * 64, ("adapter_config.json",)))
    (tmp_path / name).write_text("mine")
    (tmp_path / "anything else.txt").write_text("mine")
    folder = unfinished_folder(tmp_path, "2" * 64)
    own = marked(tmp_path)
    with pytest.raises(InputError, match=f"did not write {name},"):
        require_free_names(tmp_path, folder, own, kept=True)
    (tmp_path / name).unlink()
    require_free_names(tmp_path, folder, own, kept=True)
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="did not write unfinished-22222222"):
        require_free_names(tmp_path, folder, own, kept=True)


def test_two_commands_do_not_train_into_one_folder(tmp_path):
    with (
        working(tmp_path, unfinished_folder(tmp_path, "1" * 64)),
        pytest.raises(ReflogpError, match="another command is training"),
        alone(tmp_path),
    ):
        pass


def test_a_run_that_fails_before_its_first_step_leaves_nothing(tmp_path):
    output = tmp_path / "new"
    for made in (output, tmp_path):
        with pytest.raises(KeyError), working(made, unfinished_folder(made, "1" * 64)):
            raise KeyError
        assert not any(tmp_path.iterdir())


def test_a_mark_that_a_kill_left_half_written_is_nobodys_file(tmp_path):
    half = tmp_path / f".reflogp.json.{'0' * 12}.tmp"
    half.write_text("{")
    assert require_output(tmp_path, "run", option="--output") is None
    with working(tmp_path, unfinished_folder(tmp_path, "1" * 64)):
        assert not half.exists()


def test_a_kill_while_the_run_makes_its_folders_is_no_obstacle_to_the_next_one(tmp_path):
    def begin(output: Path) -> None:
        with working(output, unfinished_folder(output, "1" * 64)):
            pass

    for number in range(20):
        output = tmp_path / str(number)
        killed = killed_at(output, number, "before", begin)
        assert require_result_output(output, "run") is None or read_mark(output) == Mark(kind="run")
        require_free_names(output, unfinished_folder(output, "1" * 64), [], kept=True)
        switch(output, make_result(output, "1" * 64, OLD))
        assert {name.partition("/")[0] for name in files(output)} == {
            *OLD, "metrics.jsonl", "checkpoint-6", "reflogp.json",
        }  # fmt: skip
        if not killed:
            return
    raise AssertionError("it wrote more often than expected")
