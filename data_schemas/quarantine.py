"""Quarantined rows. No row disappears: each is stored with its reason and its text."""

import enum
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from reflogp.data_schemas.errors import InputError
from reflogp.data_schemas.files.bounded_parquet import UnsoundError, read_batches
from reflogp.data_schemas.files.storage import opened, require_inside
from reflogp.data_schemas.sealed_file import Shard, require_intact

SCHEMA_VERSION = 1
_BATCH_ROWS = 1_000  # in memory at a time; rows can be long


class Reason(enum.StrEnum):
    """Why a row was quarantined. The value appears on disk and in reports."""

    BROKEN_JSON = "broken_json"
    INVALID_UTF8 = "invalid_utf8"
    NOT_AN_OBJECT = "not_an_object"
    MISSING_FIELD = "missing_field"
    NULL_FIELD = "null_field"
    WRONG_TYPE = "wrong_type"
    BAD_MESSAGES = "bad_messages"
    UNSUPPORTED = "unsupported"
    EMPTY_PROMPT = "empty_prompt"
    EMPTY_RESPONSE = "empty_response"
    IDENTICAL_RESPONSES = "identical_responses"
    TIE = "tie"
    PROMPTS_DIFFER = "prompts_differ"
    BAD_CONFIDENCE = "bad_confidence"
    LOW_CONFIDENCE = "low_confidence"
    TEMPLATE_FAILED = "template_failed"
    PROMPT_TOO_LONG = "prompt_too_long"
    TOO_LONG = "too_long"
    BAD_SCORE = "bad_score"
    # used by `reflogp filter`
    CONTRADICTION = "contradiction"
    DUPLICATE = "duplicate"
    TRUNCATED = "truncated"
    REFERENCE_GAP = "reference_gap"
    LENGTH_DIFFERENCE = "length_difference"
    LENGTH_RATIO = "length_ratio"
    LOW_LOGP = "low_logp"
    TOO_SIMILAR = "too_similar"
    OTHER_VALUE = "other_value"


SCHEMA = pa.schema(
    [
        pa.field("source_row", pa.int64(), nullable=False,
                 metadata={"doc": "0-based position of the row in the input, over all files."}),
        pa.field("file", pa.string(), nullable=False,
                 metadata={"doc": "The file, or the hub data set, that the row came from."}),
        pa.field("line", pa.int64(), nullable=False,
                 metadata={"doc": "1-based line of a JSONL file, else 1-based row of the file; "
                 "0 if unknown."}),
        pa.field("reason", pa.string(), nullable=False,
                 metadata={"doc": "One of the reasons listed in data_schemas/quarantine.py."}),
        pa.field("field", pa.string(), nullable=True,
                 metadata={"doc": "The column at fault, if one is."}),
        pa.field("detail", pa.string(), nullable=False,
                 metadata={"doc": "What is wrong with this row, for people."}),
        pa.field("row", pa.string(), nullable=False,
                 metadata={"doc": "The row as JSON, or the raw line if it is not JSON."}),
    ],
    metadata={
        "reflogp.schema": "quarantine",
        "reflogp.schema_version": str(SCHEMA_VERSION),
    },
)  # fmt: skip


def batches(path: Path, record: Shard) -> Iterator[pa.RecordBatch]:
    """Yield the quarantined rows of a sealed cache, whose file can be larger than memory.

    Args:
        path: the file.
        record: its entry in the manifest.

    Raises:
        InputError: the file is missing, damaged, changed since the seal, or would take too much
            memory.
    """
    try:
        require_inside(path)
        require_intact(path, record)
        rows = 0
        with opened(path) as source:
            for batch in read_batches(source, SCHEMA, "quarantine", _BATCH_ROWS):
                for name in ("source_row", "line"):
                    if pc.any(pc.less(batch.column(name), 0)).as_py():
                        raise InputError(f"{path}: damaged: a {name} is negative.")
                rows += batch.num_rows
                yield batch
        if rows != record.rows:
            raise InputError(f"{path}: damaged: it holds {rows} rows, not {record.rows}.")
    except UnsoundError as error:
        raise InputError(f"{path}: damaged: {error}.") from error
    except (OSError, pa.ArrowException, ValueError, MemoryError) as error:
        raise InputError(f"{path}: not a readable Parquet file ({error}).") from error
