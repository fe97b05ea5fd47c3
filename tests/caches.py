"""What is in a sealed cache, for tests to compare."""

from pathlib import Path
from typing import Any

from reflogp.data_schemas import manifest as manifests
from reflogp.data_schemas.cache_shard import read_shard
from reflogp.data_schemas.files import ownership
from reflogp.data_schemas.manifest import Manifest


def rows(cache: Path) -> list[dict[str, Any]]:
    """All rows of a sealed cache, in its order."""
    shards = manifests.read(cache).shards
    return [row for shard in shards for row in read_shard(cache / shard.file).to_pylist()]


def rows_by_id(cache: Path) -> dict[str, dict[str, Any]]:
    """The same by their ids, each of which stands there once."""
    every = rows(cache)
    found = {row["row_id"]: row for row in every}
    assert len(found) == len(every)
    return found


def file_names(manifest: Manifest) -> list[str]:
    """Names of all that is in the folder of a sealed cache, in their order."""
    files = [shard.file for shard in (*manifest.shards, manifest.quarantine)]
    return sorted([manifests.FILE_NAME, ownership.FILE_NAME, *files])
