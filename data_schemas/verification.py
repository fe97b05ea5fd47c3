"""The result of rescoring a sample: stored in the manifest, printed by `reflogp verify --json`."""

from pydantic import Field

from reflogp.data_schemas.record import Record


class WorstResponse(Record):
    """A response whose cached log-prob is far from the rescored one."""

    row_id: str
    side: str = Field(description="chosen or rejected.")
    tokens: int
    difference: float = Field(description="Cached minus rescored sum, in nats.")
    text: str = Field(description="The beginning of the response.")


class Agreement(Record):
    """Cached minus rescored log-probs over a sample of responses, in nats."""

    against: str = Field(description="What the cache was compared with, e.g. 'float32 forward'.")
    responses: int
    tokens: int
    mean: float = Field(description="Mean difference per token; far from 0, it is a bias.")
    mean_t: float = Field(description="Mean over its standard error, with responses as the units.")
    rms: float = Field(description="Root mean square difference per token.")
    max: float = Field(description="Largest absolute difference of a token.")
    slope: float = Field(description="Growth of a response's difference per token of its length.")
    slope_t: float = Field(description="Slope over its standard error.")
    response_sd: float = Field(description="Standard deviation of the responses' differences.")
    worst: list[WorstResponse]


class Verification(Record):
    """The comparisons and the verdict."""

    sampled_rows: int
    passed: bool
    reasons: list[str] = Field(description="Why it failed; empty if it passed.")
    float32: Agreement = Field(description="Cache against a plain float32 forward: its accuracy.")
    training: Agreement = Field(description="Cache against the training forward.")
    training_noise: Agreement = Field(
        description="The training forward against float32: the noise that training has anyway."
    )
    # left out of the JSON if None, so that manifests of earlier releases still match their seal
    repeat: Agreement | None = Field(
        None,
        exclude_if=lambda found: found is None,
        description="For a mixture of experts: the training forward of each response alone against "
        "the same response in a batch. Rounding differs between the two; where it changes the "
        "choice of expert, log-probs differ by nats.",
    )

    def summary(self) -> str:
        """One line: how far the sample is from float32, and how far the training forward is."""
        said = (
            f"{self.sampled_rows} rows, {self.float32.mean:+.4f} nats per token from float32 on "
            f"average, RMS {self.float32.rms:.4f} (the training forward: "
            f"{self.training_noise.mean:+.4f}, {self.training_noise.rms:.4f})"
        )
        if self.repeat is None:
            return said
        return (
            f"{said}; mixture of experts: scoring the same responses in different batches gives "
            f"differences of RMS {self.repeat.rms:.4f}, at most {self.repeat.max:.2g}"
        )
