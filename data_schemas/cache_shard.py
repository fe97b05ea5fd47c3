"""A cache shard: one preference per row, with its exact token ids and the reference's log-probs.

Paired rows have both responses. An unpaired row (KTO) has one, `chosen` if its label is good and
`rejected` if it is bad; the columns of the other are null. It can also have a KL completion: the
response of another row, scored after this row's prompt. Each field's documentation is stored in the
file as field metadata.

A response can contain tokens that the policy does not write, such as the results of tools between
two of its messages. A mask marks the others; only they are scored, trained and counted.
"""

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from reflogp.data_schemas.errors import InputError
from reflogp.data_schemas.files.bounded_parquet import UnsoundError, read_table
from reflogp.data_schemas.files.storage import opened

SCHEMA_VERSION = 4

_BEFORE_MASKS = "3"  # the version of shards without masks, which are read as unmasked rows
READABLE_VERSIONS = (_BEFORE_MASKS, str(SCHEMA_VERSION))

RESPONSES = ("chosen", "rejected", "kl")
"""The sequences that a row can have log-probs of, the X in `X_ids` and `ref_X_logps`."""


def _field(name: str, type_: pa.DataType, doc: str, *, nullable: bool = False) -> pa.Field:
    return pa.field(name, type_, nullable=nullable, metadata={"doc": doc})


_IDS = pa.list_(pa.field("element", pa.int32(), nullable=False))
_MASK = pa.list_(pa.field("element", pa.bool_(), nullable=False))
_LOGPS = pa.list_(pa.field("element", pa.float32(), nullable=False))
# not a map type: `datasets` rejects maps, and a list of structs has the same layout on disk
_KEPT = pa.struct([pa.field("name", pa.string(), nullable=False), pa.field("value", pa.string())])

TOKEN_FIELDS: list[pa.Field] = [
    _field("row_id", pa.string(), "Stable id: BLAKE2b-128 of all token ids and masks, in hex; the "
           "second row with the same content gets the suffix -1, the third -2. Unique in a cache."),
    _field("source_row", pa.int64(), "0-based position of the row in the input, over all files."),
    _field("prompt_ids", _IDS, "Token ids of the prompt, as both stages use them."),
    _field("chosen_ids", _IDS, "Token ids of the chosen response, EOS included.", nullable=True),
    _field("rejected_ids", _IDS, "Token ids of the rejected response, EOS included.",
           nullable=True),
    _field("kl_ids", _IDS, "Token ids of the KL completion: the response of another row, cut to "
           "the room that this row's prompt leaves.", nullable=True),
    _field("chosen_mask", _MASK, "One value for each token of chosen_ids: true if the policy "
           "writes the token, false if it is context inside the response, such as the result of a "
           "tool. Null if the policy writes all of them.", nullable=True),
    _field("rejected_mask", _MASK, "The same for rejected_ids.", nullable=True),
    _field("kl_mask", _MASK, "The same for kl_ids.", nullable=True),
    _field("prompt_truncated", pa.bool_(), "The prompt lost its beginning to max_length."),
    _field("chosen_truncated", pa.bool_(), "The chosen response lost its end to max_length."),
    _field("rejected_truncated", pa.bool_(), "The rejected response lost its end to max_length."),
    _field("confidence", pa.float64(), "The annotators' confidence, or chosen score minus "
           "rejected score; null where the data has none.", nullable=True),
    _field("kept", pa.list_(pa.field("element", _KEPT, nullable=False)), "The columns of the input "
           "that --keep names, in that order, each with the row's value as text or null if the "
           "row has no value; null in a cache made without --keep.", nullable=True),
]  # fmt: skip

SCORE_FIELDS: list[pa.Field] = [
    _field("ref_chosen_logps", _LOGPS, "log pi_ref of each token of chosen_ids, in nats, given the "
           "prompt and the tokens before it; same length as chosen_ids, and 0 where chosen_mask is "
           "false.", nullable=True),
    _field("ref_rejected_logps", _LOGPS, "log pi_ref of each token of rejected_ids, in nats.",
           nullable=True),
    _field("ref_kl_logps", _LOGPS, "log pi_ref of each token of kl_ids, in nats, given this row's "
           "prompt and the tokens before it.", nullable=True),
    _field("ref_chosen_logp_sum", pa.float64(), "Sum of ref_chosen_logps in nats, accumulated in "
           "float64: log pi_ref(y_w|x) of the tokens that the policy writes.", nullable=True),
    _field("ref_rejected_logp_sum", pa.float64(), "Sum of ref_rejected_logps in nats: "
           "log pi_ref(y_l|x).", nullable=True),
    _field("ref_kl_logp_sum", pa.float64(), "Sum of ref_kl_logps in nats: log pi_ref(y'|x), where "
           "y' answers another prompt.", nullable=True),
]  # fmt: skip

WEIGHT_FIELDS: list[pa.Field] = [
    _field("weight", pa.float64(), "Factor on the row's loss in training, at least 0 and 1 on "
           "average over the cache; set by reflogp filter --weight-by. Null means 1.",
           nullable=True),
]  # fmt: skip

_METADATA = {"reflogp.schema": "cache_shard", "reflogp.schema_version": str(SCHEMA_VERSION)}

PLAN_SCHEMA = pa.schema(TOKEN_FIELDS)
"""A planned shard: the rows of a cache shard before they are scored. It exists only while stage one
runs; plan.json records its version."""

SHARD_SCHEMA = pa.schema(TOKEN_FIELDS + SCORE_FIELDS + WEIGHT_FIELDS, metadata=_METADATA)
"""A finished shard."""

_PARTS = ("prompt", *RESPONSES)
_MASKS = tuple(f"{side}_mask" for side in RESPONSES)
_SCHEMA_BEFORE_MASKS = pa.schema([field for field in SHARD_SCHEMA if field.name not in _MASKS])


def unweighted(table: pa.Table) -> pa.Table:
    """Convert scored rows, with columns in any order, to SHARD_SCHEMA with null weights."""
    for field in WEIGHT_FIELDS:
        table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    return table.select(SHARD_SCHEMA.names).cast(SHARD_SCHEMA)


def read_shard(
    path: Path, columns: list[str] | None = None, content: bytes | None = None
) -> pa.Table:
    """Read a finished shard, or some of its columns, without checking its rows.

    A shard of the version before masks is returned with masks that are null.

    Stages that use the rows of a sealed cache read them with stages/cache/sealed_shards.py, which
    checks them.

    Args:
        path: the file.
        columns: the columns to read; all by default.
        content: the file's bytes, if the caller has already read them.

    Raises:
        InputError: the file is missing, damaged, not Parquet, of another schema version, or would
            take too much memory.
    """
    try:
        with io.BytesIO(content) if content is not None else opened(path) as source:
            if _version(path, source) == _BEFORE_MASKS:
                table = _with_masks(_read_before_masks(source, columns), columns)
            else:
                table = read_table(source, SHARD_SCHEMA, "shard", columns)
            # drop the origin, which describes this file only
            table = table.replace_schema_metadata(_METADATA)
    except FileNotFoundError as error:
        raise InputError(
            f"{path}: the shard is missing. Run `reflogp precompute` again."
        ) from error
    except UnsoundError as error:
        raise InputError(f"{path}: damaged: {error}. Run `reflogp precompute` again.") from error
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        raise InputError(
            f"{path}: not a readable Parquet file ({error}). Run `reflogp precompute` again."
        ) from error
    if absent := set(columns or ()) - set(table.column_names):
        raise InputError(
            f"{path}: damaged: it has no column {', '.join(sorted(absent))}. Run `reflogp "
            "precompute` again."
        )
    return table


def token_counts(table: pa.Table) -> dict[str, int]:
    """Count the tokens of a shard's rows, under the names of Counts and Origin."""
    marks = [chunk.flatten() for name in _MASKS for chunk in table.column(name).chunks]
    context = sum(len(some) - some.true_count for some in marks)
    return {f"{part}_tokens": _tokens(table, part) for part in _PARTS} | {"context_tokens": context}


def total_tokens(table: pa.Table) -> int:
    """Count the tokens of a shard's rows; each row's prompt counts once."""
    return sum(_tokens(table, part) for part in _PARTS)


def _tokens(table: pa.Table, part: str) -> int:
    return sum(len(chunk.flatten()) for chunk in table.column(f"{part}_ids").chunks)


def _read_before_masks(source: io.BufferedIOBase, columns: list[str] | None) -> pa.Table:
    there = None if columns is None else [name for name in columns if name not in _MASKS]
    return read_table(source, _SCHEMA_BEFORE_MASKS, "shard", there)


def _with_masks(table: pa.Table, columns: list[str] | None) -> pa.Table:
    """Add null masks, if they are among `columns`, in the order of SHARD_SCHEMA."""
    for name in _MASKS:
        if columns is None or name in columns:
            field = SHARD_SCHEMA.field(name)
            table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    return table.select([name for name in SHARD_SCHEMA.names if name in table.column_names])


def _version(path: Path, source: io.BufferedIOBase) -> str:
    """Return the schema version of a shard.

    Raises:
        InputError: this reflogp does not read it.
    """
    metadata = pq.read_metadata(source).metadata or {}
    version: str = metadata.get(b"reflogp.schema_version", b"none").decode()
    if version not in READABLE_VERSIONS:
        raise InputError(
            f"{path}: shard schema version {version[:20]}, but this reflogp reads versions "
            f"{' and '.join(READABLE_VERSIONS)}. Run `reflogp precompute` again, or install the "
            "reflogp that wrote it."
        )
    return version
