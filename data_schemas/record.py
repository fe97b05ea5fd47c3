"""The base of everything that is written as JSON: frozen, and strict about its fields."""

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """A model that refuses fields it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)
