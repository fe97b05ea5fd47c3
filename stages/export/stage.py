"""A sealed cache -> a folder that `datasets` and the Hub read as a data set.

One shard at a time is read, converted and written, so memory does not grow with the cache.
"""

from pathlib import Path

import pyarrow.parquet as pq

from reflogp.data_schemas.cache_shard import token_counts
from reflogp.data_schemas.errors import InputError
from reflogp.data_schemas.export import ExportFormat
from reflogp.data_schemas.files.owned_folder import owned_folder
from reflogp.data_schemas.manifest import Manifest
from reflogp.stages.cache.sealed_shards import each_shard
from reflogp.stages.cache.shard_content import Limits
from reflogp.stages.export.card import data_card
from reflogp.stages.export.tables import DecodeAll, export_table
from reflogp.stages.model.checkpoint import Checkpoint
from reflogp.stages.model.loading import load_saved_tokenizer
from reflogp.stages.progress import Console


def export(
    cache: Path,
    manifest: Manifest,
    limits: Limits,
    form: ExportFormat,
    reference: Checkpoint,
    output: Path,
    console: Console,
) -> list[Path]:
    """Write the rows of a cache to `output`, whole or not at all.

    Args:
        cache: folder or URL of the cache.
        manifest: its manifest.
        limits: what its rows must keep to.
        form: `parquet`, all that the cache has; `trl`, what TRL's own precompute makes.
        reference: its tokenizer decodes the ids.
        output: a folder on disk that does not exist, is empty, or holds an earlier export alone.
        console: for progress.

    Returns:
        The Parquet files, one a shard.

    Raises:
        InputError: the cache is damaged, or does not do for the form.
    """
    if form == "trl" and manifest.kind != "paired":
        raise InputError(
            f"{cache}: the cache is unpaired, and TRL's DPOTrainer takes pairs. Give --format "
            "parquet."
        )
    if form == "trl" and manifest.row_weights is not None:
        raise InputError(
            f"{cache}: its rows have weights ({manifest.row_weights}), which TRL does not apply. "
            "Give --format parquet, which has them, or filter without --weight-by."
        )
    decode = _decoder(reference)
    count = len(manifest.shards)
    names = [f"train-{number:05d}-of-{count:05d}.parquet" for number in range(count)]
    files = ["README.md", *(f"data/{name}" for name in names)]
    with (
        owned_folder(output, "export", files) as folder,
        console.track("exporting", count, "shards") as advance,
    ):
        (folder / "data").mkdir()
        tables = each_shard(cache, manifest, lambda _, table: table, limits=limits)
        for table, name in zip(tables, names, strict=True):
            if form == "trl" and token_counts(table)["context_tokens"]:
                raise InputError(
                    f"{cache}: responses have tokens that the policy does not write, and TRL would "
                    "train on them. Give --format parquet, which has the masks, or train with "
                    "CachedDPOTrainer on the cache's own rows."
                )
            rows = export_table(table, form, decode)
            pq.write_table(rows, folder / "data" / name, compression="zstd", row_group_size=4096)
            advance(1)
        (folder / "README.md").write_text(data_card(manifest, form), encoding="utf-8")
    return [output / "data" / name for name in names]


def _decoder(reference: Checkpoint) -> DecodeAll:
    tokenizer = load_saved_tokenizer(reference.tokenizer, trusted=reference.trusted)

    def decode(lists: list[list[int]]) -> list[str]:
        return list(tokenizer.batch_decode(lists, clean_up_tokenization_spaces=False))

    return decode
