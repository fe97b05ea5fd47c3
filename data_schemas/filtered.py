"""The manifest's record of what `reflogp filter` did to a cache."""

from typing import Any

from pydantic import Field

from reflogp.data_schemas.record import Count, Record


class RowWeights(Record):
    """Summary of the row weights of a cache."""

    by: list[str] = Field(description="The value of --weight-by in each filter, oldest first.")
    scale: float | None = Field(
        None, description="The scale in the last filter's formula: a median, in the measure's unit."
    )
    without: Count = Field(0, description="Rows that lack the last filter's measure.")
    zero: Count = Field(description="Rows whose weight is 0.")
    least: float = Field(ge=0)
    median: float = Field(ge=0)
    most: float = Field(ge=0)
    effective_rows: float = Field(
        description="(sum of the weights)^2 / sum of their squares (Kish): the number of equally "
        "weighted rows whose means would be as precise."
    )

    def __str__(self) -> str:
        """One line for people."""
        return (
            f"by {' and '.join(self.by)}: {self.least:.3g} to {self.most:.3g}, median "
            f"{self.median:.3g}, mean 1; worth {self.effective_rows:,.0f} rows of equal weight"
        )


class Filtered(Record):
    """The origin of a filtered cache: the cache it was made from, and the rules applied."""

    cache: str = Field(description="The original cache, as the user gave it.")
    cache_seal: str = Field(description="The seal of the original's manifest.")
    cache_rows: Count = Field(description="Rows in the original.")
    filter_rules: dict[str, Any] = Field(description="The rules that were given, by name.")
    dropped_by_reason: dict[str, Count] = Field(
        description="Dropped rows by the first rule that each broke; all are in the quarantine."
    )
    weights: RowWeights | None = Field(None, description="None: all rows count the same.")
