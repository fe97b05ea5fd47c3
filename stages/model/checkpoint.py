"""A model on disk, as every part of a stage is given it."""

from dataclasses import dataclass
from pathlib import Path

from reflogp.data_schemas.manifest import Dtype


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint, the LoRA adapter on top of it, and the dtype that it runs in.

    Attributes:
        folder: of the checkpoint.
        adapter: folder of the adapter, or None.
        dtype: of weights and forward. An adapter is float32 in every case.
        trusted: whether Python code from the folder may run.
    """

    folder: Path
    adapter: Path | None
    dtype: Dtype
    trusted: bool = False

    @property
    def tokenizer(self) -> Path:
        """The folder with the tokenizer of fine-tuning: the adapter's, if it has one."""
        if self.adapter is not None and (self.adapter / "tokenizer_config.json").is_file():
            return self.adapter
        return self.folder
