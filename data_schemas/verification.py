"""What rescoring a sample said of a cache: in the manifest, and from `reflogp verify --json`."""

from pydantic import Field

from reflogp.data_schemas.record import Record


class WorstResponse(Record):
    """One response whose cached log-prob is far from the rescored one."""

    row_id: str
    side: str = Field(description="chosen or rejected.")
    tokens: int
    difference: float = Field(description="Cached minus rescored sum, in nats.")
    text: str = Field(description="The beginning of the response.")


class Agreement(Record):
    """Cached minus rescored log-probs over a sample of responses, in nats."""

    against: str = Field(description="What was compared with, such as 'float32 forward'.")
    responses: int
    tokens: int
    mean: float = Field(description="Mean difference of a token; a bias if it is not near 0.")
    mean_t: float = Field(description="Mean over its standard error, with responses as the units.")
    rms: float = Field(description="Root mean square difference of a token.")
    max: float = Field(description="Largest absolute difference of a token.")
    slope: float = Field(description="Nats by which a response's difference grows with a token.")
    slope_t: float = Field(description="Slope over its standard error.")
    response_sd: float = Field(description="Standard deviation of a response's difference.")
    worst: list[WorstResponse]


class Verification(Record):
    """The comparisons and the verdict."""

    sampled_rows: int
    passed: bool
    reasons: list[str] = Field(description="Why it failed; empty if it passed.")
    float32: Agreement = Field(description="Against a plain float32 forward: how true it is.")
    training: Agreement = Field(description="Against the training forward: what training sees.")
    training_noise: Agreement = Field(
        description="The training forward against float32: the noise that training has anyway."
    )
    # left out where there is none, so that a manifest of an earlier version still fits its seal
    repeat: Agreement | None = Field(
        None,
        exclude_if=lambda found: found is None,
        description="Of a mixture of experts: the training forward of each response alone against "
        "the same among neighbours. Rounding differs there, and where it changes which expert is "
        "chosen, by nats.",
    )

    def summary(self) -> str:
        """One line: how far the sample is from float32, and how far training itself is."""
        said = (
            f"{self.sampled_rows} rows, {self.float32.mean:+.4f} nats a token from float32 on "
            f"average, RMS {self.float32.rms:.4f} (the training forward: "
            f"{self.training_noise.mean:+.4f}, {self.training_noise.rms:.4f})"
        )
        if self.repeat is None:
            return said
        return (
            f"{said}; a mixture of experts: two scorings of the same responses in other batches "
            f"differ by RMS {self.repeat.rms:.4f}, at most {self.repeat.max:.2g}"
        )
