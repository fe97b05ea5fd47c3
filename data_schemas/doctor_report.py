"""What `reflogp doctor` found on a machine: one JSON file to send."""

from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import Field

from reflogp.data_schemas.errors import InputError
from reflogp.data_schemas.files.storage import read_bytes
from reflogp.data_schemas.record import MOST_BYTES, Count, Record

Part = Literal["installed", "stage one", "stage two"]
Result = Literal["ok", "off", "skipped"]


class Gpu(Record):
    """One GPU, as PyTorch sees it, or the driver if PyTorch does not."""

    name: str
    memory_bytes: Count | None = Field(None, description="None if PyTorch does not see the GPU.")
    capability: str | None = Field(None, description="Compute capability, such as 9.0.")


class Machine(Record):
    """The hardware, the driver and what is installed. Nothing in it names the machine or a user."""

    system: str
    python: str
    cpu: str
    cores: Count = Field(description="Cores that the process can use.")
    memory_bytes: Count
    gpus: list[Gpu]
    driver: str | None = Field(None, description="Version of the NVIDIA driver.")
    driver_cuda: str | None = Field(None, description="Newest CUDA that the driver runs.")
    torch_cuda: str | None = Field(None, description="CUDA that PyTorch is built for.")
    torch_sees_gpus: bool
    kernels: list[str] = Field(description="Attention kernels that PyTorch can choose from.")
    versions: dict[str, str] = Field(description="Version of each library that is installed.")


class Check(Record):
    """One line of the report."""

    part: Part
    name: str
    result: Result
    why: str = Field(description="What was found, or why it is off or skipped.")
    figures: dict[str, float] = Field({}, description="The measured figures, by name.")


class Timing(Record):
    """The speed of a stage on the layers of a model of real size."""

    part: Part
    shape: str = Field(description="The model's shape, and how many of its layers were run.")
    dtype: str
    device: str
    rows: Count
    tokens: Count = Field(description="Tokens of all prompt + response sequences.")
    seconds: float = Field(gt=0, description="Start-up excluded.")
    operations: float = Field(
        gt=0, description="Least number of operations of stage one for these tokens."
    )

    @property
    def reached(self) -> float:
        """Operations of stage one per second; stage two does more for the same tokens."""
        return self.operations / self.seconds


class DoctorReport(Record):
    """All that `reflogp doctor` found."""

    schema_version: Literal[1] = 1
    reflogp_version: str
    made_at: datetime
    seconds: float
    machine: Machine
    checks: list[Check]
    timings: list[Timing]


def read(path: Path) -> DoctorReport:
    """Read the report in `path`.

    Raises:
        InputError: the file cannot be read, or is not such a report.
    """
    try:
        return DoctorReport.model_validate_json(read_bytes(path, MOST_BYTES))
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"{path}: not a report of this version of reflogp: {reason}. Make one with `reflogp "
            "doctor --json`."
        ) from error
