"""What `reflogp filter` did to a cache, as its manifest says it."""

from typing import Any

from pydantic import Field

from reflogp.data_schemas.record import Count, Record


class Weights(Record):
    """How the rows of a cache are weighted, over all of them."""

    by: list[str] = Field(description="What --weight-by named, one filter after the other.")
    scale: float | None = Field(
        None, description="Of the last one's formula: a median, in the measure's unit."
    )
    without: Count = Field(0, description="Rows without the last one's measure.")
    zero: Count = Field(description="Rows that weigh nothing.")
    least: float = Field(ge=0)
    median: float = Field(ge=0)
    most: float = Field(ge=0)
    effective_rows: float = Field(
        description="(sum of the weights)^2 / sum of their squares (Kish): so many rows of equal "
        "weight give means as certain."
    )

    def __str__(self) -> str:
        """In a line."""
        return (
            f"by {' and '.join(self.by)}: {self.least:.3g} to {self.most:.3g}, median "
            f"{self.median:.3g}, mean 1; worth {self.effective_rows:,.0f} rows of equal weight"
        )


class Filtered(Record):
    """Where a cache comes from that is another one, less some rows or with weights."""

    cache: str = Field(description="The other cache, as the user gave it.")
    cache_seal: str = Field(description="The seal of its manifest.")
    cache_rows: Count = Field(description="Rows in it.")
    filter_rules: dict[str, Any] = Field(description="The rules that were given, by name.")
    dropped_by_reason: dict[str, Count] = Field(
        description="Rows that went, each by the first rule it broke. They are in the quarantine."
    )
    weights: Weights | None = Field(None, description="None: all rows count the same.")
