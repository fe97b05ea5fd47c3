"""The first rows of the data as stage one tokenizes them, without scoring or writing anything."""

from dataclasses import dataclass
from typing import Any

from reflogp.data_schemas.reading import Reading
from reflogp.stages.cache.quarantine_file import HeldRows
from reflogp.stages.model.checkpoint import Checkpoint
from reflogp.stages.precompute.config import DataConfig
from reflogp.stages.precompute.plan.make_plan import load_tokenizer, tell
from reflogp.stages.precompute.tokens.reader import Reader
from reflogp.stages.precompute.tokens.tokenize import TokenizedRow
from reflogp.stages.progress import Console


@dataclass(frozen=True)
class FirstRows:
    """What became of the first rows.

    Attributes:
        read: number of rows that were read.
        form: the detected input form.
        reading: the use of the columns, and notices on these rows.
        rows: the usable rows.
        quarantined: the other rows, in the columns of the quarantine file.
    """

    read: int
    form: str
    reading: Reading
    rows: list[TokenizedRow]
    quarantined: list[dict[str, Any]]


def tokenize_first(
    config: DataConfig, reference: Checkpoint, most: int, console: Console
) -> FirstRows:
    """Read and tokenize the first rows, at most `most`, exactly as stage one would.

    Raises:
        InputError: the data or the tokenizer cannot be used.
    """
    tokenizer, _ = load_tokenizer(reference, config)
    quarantined = HeldRows()
    reader = Reader(config, quarantined)
    with console.track("tokenizing", None, "rows") as advance:
        rows = list(reader.tokenized(tokenizer, advance, most=most))
    reading = reader.reading()
    tell(reading, console)
    return FirstRows(reader.read, reader.form.name, reading, rows, quarantined.rows)
