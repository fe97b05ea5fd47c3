"""The schemas that `reflogp export` writes, for programs that do not read caches."""

from typing import Literal

import pyarrow as pa

from reflogp.data_schemas.cache_shard import SHARD_SCHEMA

ExportFormat = Literal["parquet", "trl"]
"""`parquet`: every column of a cache, plus text. `trl`: the columns of TRL's own precompute."""


SCHEMA_VERSION = 1

_TEXTS = [
    pa.field(
        part,
        pa.string(),
        nullable=part != "prompt",
        metadata={
            "doc": f"Text of {part}_ids, decoded with the reference's tokenizer, special tokens "
            "included; truncated where the ids are."
        },
    )
    for part in ("prompt", "chosen", "rejected")
]


def _metadata(form: str) -> dict[str, str]:
    return {"reflogp.schema": form, "reflogp.schema_version": str(SCHEMA_VERSION)}


PARQUET_SCHEMA = pa.schema([*_TEXTS, *SHARD_SCHEMA], metadata=_metadata("export_parquet"))
"""Every column of a cache, plus the decoded text."""

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
                metadata={"doc": f"log pi_ref of {side}_ids given prompt_ids, in nats: the sum "
                          "over its tokens, under the name that TRL uses."},
            )
            for side in ("chosen", "rejected")
        ),
    ],
    metadata=_metadata("export_trl"),
)  # fmt: skip
"""The columns that TRL's DPOTrainer has after its own precompute."""
