"""A disk that is full, fails or refuses, at every write: one message, and nothing is lost."""

import errno
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from reflogp.pipeline import cli
from reflogp.stages.precompute.config import PrecomputeConfig
from tests.faults import processes
from tests.faults.boundaries import Boundary, watch
from tests.faults.conftest import THOROUGH, Make, Record, names, require_equal

CODES = (errno.ENOSPC, errno.EIO, errno.EACCES)
STEP = 1 if THOROUGH else 11
# what the system names in its error; of a write and of fsync it names nothing
_NAMED = {"replace", "link", "mkdir", "unlink", "rmdir"}


def arguments(config: PrecomputeConfig) -> list[str]:
    return [
        "reflogp", "precompute", "--reference", config.reference, "--data", config.data,
        "--cache", str(config.cache), "--engine", "transformers", "--max-length", "192",
        "--shard-tokens", str(config.shard_tokens), "--verify-sample", "0",
    ]  # fmt: skip


def fail(code: int, boundary: Boundary) -> None:
    if boundary.call in _NAMED:
        raise OSError(code, os.strerror(code), boundary.path)
    raise OSError(code, os.strerror(code))


@pytest.fixture
def reflogp(configured: Make, one_thread: None, monkeypatch, capsys):
    """Run the command in this process; gives its exit code and its last line."""

    def run(cache: Path) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", arguments(configured(cache)))
        code: object = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code
        assert isinstance(code, int | None)
        said = capsys.readouterr().err
        assert "Traceback" not in said
        assert said.count("error: ") == bool(code), said
        return code or 0, said.strip().splitlines()[-1]

    return run


def finished(cache: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in cache.glob("shard-*")}


@pytest.mark.parametrize(
    "stays",
    [
        pytest.param(True, id="from then on"),
        pytest.param(False, id="once", marks=pytest.mark.slow),
    ],
)
def test_every_write_that_fails_is_named_and_the_same_command_goes_on(
    reflogp, sound: Path, tmp_path: Path, stays: bool, record_fault: Record
):
    writes: list[Boundary] = []
    with pytest.MonkeyPatch.context() as patch:
        watch(tmp_path / "counted", writes.append, _ignore, patch.setattr)
        assert reflogp(tmp_path / "counted")[0] == 0
    failures = 0
    for number in range(0 if stays else 3, len(writes), STEP):
        code, cache = CODES[number % len(CODES)], tmp_path / f"cache-{number}"

        def failing(boundary: Boundary, code=code, number=number) -> None:
            if boundary.number == number or (stays and boundary.number > number):
                fail(code, boundary)

        with pytest.MonkeyPatch.context() as patch:
            watch(cache, failing, _ignore, patch.setattr)
            exit_code, message = reflogp(cache)
        kept = finished(cache) if cache.is_dir() else {}
        if exit_code:  # what is only cleared up need not succeed
            assert exit_code == 1
            assert str(cache) in message, (writes[number], message)
            assert os.strerror(code) in message, (writes[number], message)
            assert ".tmp" not in message
            assert "run the same command again" in message
            failures += 1
        else:
            assert writes[number].call in {"unlink", "rmdir", "link", "mkdir"}, writes[number]
        assert reflogp(cache)[0] == 0
        require_equal(cache, sound)
        after = finished(cache)
        assert {name: after[name] for name in kept} == kept
    record_fault(f"writes failed, {'from then on' if stays else 'once'}", failures, "of one run")


def _ignore(_: Boundary) -> None: ...


def command(config: PrecomputeConfig, limit: int = resource.RLIM_INFINITY) -> tuple[int, str]:
    """Run the command in a fresh process whose files may grow to `limit`; code and last line."""
    remarks = config.cache.parents[1] / "remarks"
    process = processes.start(_command, arguments(config), remarks, limit)
    process.join(300)
    said = remarks.read_text()
    assert "Traceback" not in said
    return process.exitcode, said.strip().splitlines()[-1]


def _command(argv: list[str], remarks: Path, limit: int) -> None:
    with remarks.open("w") as file:
        sys.argv, sys.stderr = argv, file
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        cli.main()


def test_a_file_that_may_not_grow_is_named_and_the_same_command_goes_on(
    configured: Make, sound: Path, tmp_path: Path
):
    """EFBIG, by the system itself, from inside Arrow's writer."""
    config = configured(tmp_path / "limited" / "cache")
    code, last = command(config, min(path.stat().st_size for path in sound.glob("shard-*")) // 2)
    assert code == 1
    assert str(config.cache) in last
    assert os.strerror(errno.EFBIG) in last
    assert command(config)[0] == 0
    require_equal(config.cache, sound)


def test_a_disk_that_is_really_full_is_named_and_the_same_command_goes_on(
    configured: Make, sound: Path, tmp_path: Path
):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount, umount = shutil.which("mount"), shutil.which("umount")
    options = ["-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    if not (mount and umount) or subprocess.run([mount, *options], check=False).returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        config = configured(disk / "cache")
        ballast = disk / "ballast"
        # room for the plan and a shard or two
        room = sum(path.stat().st_size for path in sound.iterdir()) * 3 // 2
        ballast.write_bytes(bytes((4 << 20) - room))
        code, last = command(config)
        assert code == 1
        assert str(config.cache) in last
        assert os.strerror(errno.ENOSPC) in last
        kept = finished(config.cache)
        assert kept
        assert not [name for name in names(config.cache) if name.endswith(".tmp")]
        ballast.unlink()
        assert command(config)[0] == 0
        require_equal(config.cache, sound)
        assert {name: time for name, time in finished(config.cache).items() if name in kept} == kept
    finally:
        subprocess.run([umount, str(disk)], check=True)
