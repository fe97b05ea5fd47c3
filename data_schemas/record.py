"""Base classes of all JSON records: frozen, and strict about their fields."""

import hashlib
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field


class Record(BaseModel):
    """A frozen model that rejects unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)


MOST_BYTES = 128 << 20
"""Largest JSON file that is read: far above any real one, but small enough for memory."""

Count = Annotated[int, Field(ge=0, lt=2**63)]
"""A count that fits Arrow's int64; the bound also rejects numbers too large for a float."""


class SealedRecord(Record):
    """A record with its own digest, which reveals a flipped bit when the record is read."""

    seal: str = Field("", description="SHA-256 of the other fields as JSON.")

    def sealed_json(self) -> str:
        """Return this record as JSON, with its seal."""
        return self.model_copy(update={"seal": self._digest()}).model_dump_json()

    @classmethod
    def from_sealed_json(cls, text: bytes) -> Self:
        """Parse the output of `sealed_json`.

        Raises:
            ValueError: the text is not such a record, or its content has changed since the seal.
        """
        record = cls.model_validate_json(text)
        if record.seal != record._digest():
            raise ValueError("its content has changed since it was sealed")
        return record

    def _digest(self) -> str:
        return hashlib.sha256(self.model_dump_json(exclude={"seal"}).encode()).hexdigest()
