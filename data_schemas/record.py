"""The base of everything that is written as JSON: frozen, and strict about its fields."""

import hashlib
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field


class Record(BaseModel):
    """A model that refuses fields it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


MOST_BYTES = 128 << 20
"""Of a JSON file that is read: far more than any has, and not more than memory does."""

Count = Annotated[int, Field(ge=0, lt=2**63)]
"""What Arrow can count; a larger one in a file from elsewhere would be too large for a float."""


class SealedRecord(Record):
    """A record that carries its own digest, so that a flipped bit is found when it is read."""

    seal: str = Field("", description="SHA-256 of the other fields as JSON.")

    def sealed_json(self) -> str:
        """This record as JSON, with its seal."""
        return self.model_copy(update={"seal": self._digest()}).model_dump_json()

    @classmethod
    def from_sealed_json(cls, text: bytes) -> Self:
        """The record that `sealed_json` wrote.

        Raises:
            ValueError: it is none, or not what was sealed.
        """
        record = cls.model_validate_json(text)
        if record.seal != record._digest():
            raise ValueError("its content is not what was sealed")
        return record

    def _digest(self) -> str:
        return hashlib.sha256(self.model_dump_json(exclude={"seal"}).encode()).hexdigest()
