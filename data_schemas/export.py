"""What `reflogp export` writes: data sets for programs that know nothing of caches."""

from typing import Literal

import pyarrow as pa

from reflogp.data_schemas.cache_shard import SHARD_SCHEMA

Form = Literal["parquet", "trl"]
"""`parquet`: all that a cache has of a row, and text. `trl`: what TRL's own precompute makes."""


SCHEMA_VERSION = 1

_TEXTS = [
    pa.field(
        part,
        pa.string(),
        nullable=part != "prompt",
        metadata={
            "doc": f"Text of {part}_ids, decoded with the reference's tokenizer: as the model sees "
            "it, with special tokens, and cut where the ids are."
        },
    )
    for part in ("prompt", "chosen", "rejected")
]


def _metadata(form: str) -> dict[str, str]:
    return {"reflogp.schema": form, "reflogp.schema_version": str(SCHEMA_VERSION)}


PARQUET_SCHEMA = pa.schema([*_TEXTS, *SHARD_SCHEMA], metadata=_metadata("export_parquet"))
"""All that a cache has of a row, and its text."""

TRL_SCHEMA = pa.schema(
    [
        *(field.with_nullable(False) for field in _TEXTS),
        *(
            SHARD_SCHEMA.field(f"{part}_ids").with_nullable(False)
            for part in ("prompt", "chosen", "rejected")
        ),
        *(
            pa.field(
                f"ref_{side}_logps",
                pa.float64(),
                nullable=False,
                metadata={"doc": f"log pi_ref of {side}_ids given prompt_ids: the sum over its "
                          "tokens, in nats; as TRL names it."},
            )
            for side in ("chosen", "rejected")
        ),
    ],
    metadata=_metadata("export_trl"),
)  # fmt: skip
"""The columns of a data set of TRL's DPOTrainer after its own precompute."""
