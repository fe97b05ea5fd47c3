"""Files of somebody else, many of them under names that look like reflogp's, and their content."""

from collections.abc import Iterable, Sequence
from pathlib import Path

_NAMES = (
    "notes.txt", "config.json", "model.safetensors", "manifest.json.bak", "manifest-old.json",
    "sub/manifest.json", "sub/shard-deadbeef-00000.parquet", "plan-20230101/notes.md",
    "plan-20230101/plan-00000.arrow", "plan-20230101/plan.json", "job-12345678.out",
    "job-12345678-notes.json", "shard-deadbeef.txt", "shard-deadbeef-00000.parquet",
    "quarantine-deadbeef.parquet", ".manifest-deadbeef.json.0123456789ab.tmp", "plan-deadbeef",
    "job-deadbeef-0123456789ab.json",
)  # fmt: skip
_NAMED_AFTER = (
    "plan-{}/notes.txt", "plan-{}/plan-00000.arrow.bak", "plan-{}.old/plan.json",
    "plan-{}-copy/plan-00000.arrow", "shard-{}-backup.parquet", "shard-{}-00000.parquet.bak",
    "shard-{}.txt", "shard-{}-0.parquet", "my-shard-{}-00000.parquet", "quarantine-{}.csv",
    "job-{}-notes.json", "job-{}.out", ".shard-{}-00000.parquet.tmp", "manifest-{}.json",
)  # fmt: skip


def plant(folder: Path, digests: Sequence[str]) -> list[Path]:
    """Put foreign files into `folder` and beside it; their paths, relative to the folder.

    Args:
        folder: made if it is not there.
        digests: of inputs, as the names of a cache's files carry them.
    """
    names = [*_NAMES, *(name.format(digest) for name in _NAMED_AFTER for digest in digests)]
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"mine: {name}")
    outside = folder.with_name(f"{folder.name}-outside.txt")
    outside.write_text("mine")
    (folder / "shard-link.parquet").symlink_to(outside)
    return [Path(name) for name in (*names, "shard-link.parquet")]


def remembered(folder: Path, names: Iterable[Path] | None = None) -> dict[Path, tuple[bytes, int]]:
    """Content and time of every file below `folder`, or of those given, by relative path."""
    paths = folder.rglob("*") if names is None else (folder / name for name in names)
    return {
        path.relative_to(folder): (path.read_bytes(), path.lstat().st_mtime_ns)
        for path in paths
        if path.is_file()
    }
