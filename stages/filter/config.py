"""The options of a filter: rules that drop rows, and the measure to weight by."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from reflogp.stages.assignments import ColumnNames

WeightBy = Literal["confidence", "similarity", "length-ratio", "reference-gap"]

_OF_PAIRS = ("min_reference_gap", "max_reference_gap", "max_length_difference", "max_length_ratio",
             "max_similarity")  # fmt: skip


class FilterRules(BaseModel):
    """Which rows go, and how much the others count."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    drop_contradictions: bool = Field(
        False, description="Pairs that also stand there with the opposite preference: both go."
    )
    drop_duplicates: bool = Field(
        False, description="Rows with the token ids and masks of a row before them."
    )
    drop_truncated: bool = Field(
        False, description="Rows with a response that lost its end to max_length."
    )
    min_confidence: float | None = Field(
        None, description="Least confidence, or chosen minus rejected score."
    )
    min_reference_gap: float | None = Field(
        None, gt=0, description="Least distance of the reference's log-probs of both, in nats."
    )
    max_reference_gap: float | None = Field(
        None, gt=0, description="Largest distance of the reference's log-probs of both, in nats."
    )
    max_length_difference: int | None = Field(
        None, ge=0, description="Most tokens that one response may have more than the other."
    )
    max_length_ratio: float | None = Field(
        None, ge=1, description="Most times that one response may be as long as the other."
    )
    min_logp_per_token: float | None = Field(
        None, lt=0, description="Least mean log-prob of a token of a response, in nats; such as -6."
    )
    only: ColumnNames = Field(
        default_factory=dict,
        description="Values that rows must have in columns that the cache keeps (precompute "
        "--keep): source=hh,language=en.",
    )
    max_similarity: float | None = Field(
        None, ge=0, lt=1, description="Largest share of tokens that both responses may have in "
        "common, in order; such as 0.9.",
    )  # fmt: skip
    weight_by: WeightBy | None = Field(
        None,
        description="Weight the rows that stay, for training: more with higher confidence, less "
        "with similarity, length ratio or reference gap; formulas in docs/diagnose.md.",
    )

    def given(self) -> dict[str, Any]:
        """The rules that are in force, by name."""
        return {
            name: value
            for name, value in self
            if not (value is None or value is False or value == {})
        }

    def of_pairs(self) -> list[str]:
        """Those of them that compare two responses."""
        pairs = [name for name in self.given() if name in _OF_PAIRS]
        return pairs + ["weight_by"] * (self.weight_by not in (None, "confidence"))

    @property
    def of_confidence(self) -> str | None:
        """The one of them that needs a confidence, if any does."""
        if self.min_confidence is not None:
            return "min_confidence"
        return "weight_by" if self.weight_by == "confidence" else None
