"""A sample of pairs scored by a run's final policy and the reference: pairs.parquet in its folder.

The sample is for people to look at; no run trains on it. Each column's meaning is stored in the
file as field metadata.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from reflogp.data_schemas.errors import InputError
from reflogp.data_schemas.files.atomic import atomic_path
from reflogp.data_schemas.files.bounded_parquet import UnsoundError, read_table
from reflogp.data_schemas.files.storage import opened

FILE_NAME = "pairs.parquet"
SCHEMA_VERSION = 2

_MASKS = ("chosen_mask", "rejected_mask")


def _field(name: str, type_: pa.DataType, doc: str, *, nullable: bool = False) -> pa.Field:
    return pa.field(name, type_, nullable=nullable, metadata={"doc": doc})


def _list(type_: pa.DataType) -> pa.DataType:
    return pa.list_(pa.field("element", type_, nullable=False))


_IDS, _TEXTS, _LOGPS = _list(pa.int32()), _list(pa.string()), _list(pa.float32())

SCHEMA = pa.schema(
    [
        _field("row_id", pa.string(), "The row's id in its cache."),
        _field("source_row", pa.int64(), "0-based position of the row in the cache's input."),
        _field("split", pa.string(), "train: the run was trained on it; eval: it was held out."),
        _field("prompt_ids", _IDS, "Token ids of the prompt."),
        _field("chosen_ids", _IDS, "Token ids of the chosen response."),
        _field("rejected_ids", _IDS, "Token ids of the rejected response."),
        _field("chosen_mask", _list(pa.bool_()), "True where the policy writes the token of "
               "chosen_ids; null if it writes all of them. The log-probs of the others are 0.",
               nullable=True),
        _field("rejected_mask", _list(pa.bool_()), "The same for rejected_ids.", nullable=True),
        _field("prompt_pieces", _TEXTS, "Text of each token of the prompt; joined, they give the "
               "prompt. A character that spans several tokens is stored with the last of them."),
        _field("chosen_pieces", _TEXTS, "The same for the chosen response."),
        _field("rejected_pieces", _TEXTS, "The same for the rejected response."),
        _field("ref_chosen_logps", _LOGPS, "log pi_ref of each chosen token in nats, as cached."),
        _field("ref_rejected_logps", _LOGPS, "log pi_ref of each rejected token in nats."),
        _field("policy_chosen_logps", _LOGPS, "log pi_theta of each chosen token in nats."),
        _field("policy_rejected_logps", _LOGPS, "log pi_theta of each rejected token in nats."),
        _field("ref_chosen_logp_sum", pa.float64(), "Sum of ref_chosen_logps in nats."),
        _field("ref_rejected_logp_sum", pa.float64(), "Sum of ref_rejected_logps in nats."),
        _field("policy_chosen_logp_sum", pa.float64(), "Sum of policy_chosen_logps in nats."),
        _field("policy_rejected_logp_sum", pa.float64(), "Sum of policy_rejected_logps in nats."),
        _field("chosen_reward", pa.float64(), "Implicit reward of chosen, as the run logs it: beta "
               "times the log-ratio."),
        _field("rejected_reward", pa.float64(), "Implicit reward of rejected."),
        _field("margin", pa.float64(), "chosen_reward minus rejected_reward."),
    ],
    metadata={
        "reflogp.schema": "scored_pairs",
        "reflogp.schema_version": str(SCHEMA_VERSION),
    },
)  # fmt: skip

_BEFORE_MASKS = pa.schema([field for field in SCHEMA if field.name not in _MASKS])
_SCHEMAS = {"1": _BEFORE_MASKS, str(SCHEMA_VERSION): SCHEMA}  # by version


def scored_tokens(row: Mapping[str, Any], side: str) -> int:
    """Return how many tokens of a response the policy writes."""
    mask = row[f"{side}_mask"]
    return len(row[f"{side}_ids"]) if mask is None else sum(mask)


def write(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Write the sample into a run's folder."""
    with atomic_path(folder / FILE_NAME) as path:
        pq.write_table(pa.Table.from_pylist(rows, SCHEMA), path, write_page_checksum=True)


def read(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of a run's sample; empty if the run wrote none.

    Rows of version 1, which had no masks, are returned with masks that are None.

    Raises:
        InputError: the file is damaged or of another schema version.
    """
    path = folder / FILE_NAME
    advice = "Train again, or remove the file: reports work without it."
    try:
        with opened(path) as source:
            schema = pq.read_schema(source)
            found = (schema.metadata or {}).get(b"reflogp.schema_version", b"none").decode()
            expected = _SCHEMAS.get(found)
            if expected is None or not schema.equals(expected):
                raise UnsoundError(
                    f"not the columns of schema version {SCHEMA_VERSION} (it says {found[:20]})"
                )
            table = read_table(source, expected, "sample of pairs")
        rows = [dict.fromkeys(_MASKS) | row for row in table.to_pylist()]
        _require_sound(rows)
    except FileNotFoundError:
        return []
    except UnsoundError as error:
        raise InputError(f"{path}: {error}. {advice}") from error
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        raise InputError(f"{path}: not a readable Parquet file ({error}). {advice}") from error
    return rows


def _require_sound(rows: list[dict[str, Any]]) -> None:
    """Reject rows that cannot be shown: lists of unequal length, or non-finite numbers."""
    for number, row in enumerate(rows):
        for part in ("prompt", "chosen", "rejected"):
            names = [f"{part}_ids", f"{part}_pieces"]
            if part != "prompt":
                names += [f"{model}_{part}_logps" for model in ("ref", "policy")]
                names += [f"{part}_mask"] * (row[f"{part}_mask"] is not None)
            if len({len(row[name]) for name in names}) > 1:
                raise UnsoundError(f"row {number}: {', '.join(names)} differ in length")
        for name, value in row.items():
            values = value if isinstance(value, list) else [value]
            if not all(math.isfinite(one) for one in values if isinstance(one, float)):
                raise UnsoundError(f"row {number}: {name} is not finite")
