"""A flipped bit in a cache that is not sealed yet: right rows in the end, or one clear message."""

import random
import shutil
from pathlib import Path

import pytest

from reflogp.data_schemas.errors import ReflogpError
from reflogp.data_schemas.files import ownership
from reflogp.pipeline.run import run_precompute
from tests.caches import rows
from tests.conftest import Silent
from tests.faults import processes
from tests.faults.conftest import THOROUGH, Make, Record, names

FLIPS = 1000 if THOROUGH else 30


@pytest.fixture(scope="module")
def unsealed(configured: Make, sound: Path, tmp_path_factory) -> Path:
    """All shards are there, and the plan, and the job's account; killed before the manifest."""
    counted = tmp_path_factory.mktemp("counted") / "cache"
    writes = processes.writes(processes.precompute(configured(counted)), counted)
    sealing = next(one.number for one in writes if "/.manifest-" in one.path)
    cache = tmp_path_factory.mktemp("unsealed") / "cache"
    assert processes.kill_at(processes.precompute(configured(cache)), cache, sealing, "before")
    kinds = {name.partition("-")[0] for name in names(cache)}
    assert kinds == {"shard", "plan", "job", "quarantine", ownership.FILE_NAME}
    return cache


def flip(path: Path, source: random.Random) -> str:
    content = bytearray(path.read_bytes())
    # half of them at the end, where Parquet's footer has no checksum
    first = len(content) * 3 // 4 if source.random() < 0.5 else 0
    place, bit = source.randrange(first, len(content)), source.randrange(8)
    content[place] ^= 1 << bit
    path.write_bytes(content)
    return f"{path.name}, byte {place}, bit {bit}"


def test_a_resumed_run_ends_with_the_right_rows_or_says_what_is_damaged(
    configured: Make, one_thread, unsealed: Path, sound: Path, tmp_path: Path, record_fault: Record
):
    source = random.Random(6)
    expected, refused, healed = rows(sound), 0, 0
    files = sorted(path.relative_to(unsealed) for path in unsealed.rglob("*") if path.is_file())
    for number in range(FLIPS):
        cache = shutil.copytree(unsealed, tmp_path / "cache")
        damaged = cache / files[number % len(files)]
        if number % 3 == 0:  # a shard is still to be scored
            next(p for p in sorted(cache.glob("shard-*")) if p != damaged).unlink()
        where = flip(damaged, source)
        message = ""
        try:
            run_precompute(configured(cache), Silent())
        except ReflogpError as error:
            message = str(error)
        if message:
            assert damaged.name in message, (where, message)
            refused += 1
        else:
            assert rows(cache) == expected, where
            assert names(cache) == names(sound), where
            healed += 1
        shutil.rmtree(cache)
    record_fault("bits flipped before the seal", FLIPS, f"{healed} right, {refused} refused")
