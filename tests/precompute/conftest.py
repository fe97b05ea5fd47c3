"""Source files of every kind, and one pass of stage one's input side over them."""

import csv
import functools
import gzip
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import PreTrainedTokenizerBase

from reflogp.stages.cache.quarantine_file import Quarantine
from reflogp.stages.precompute.config import PrecomputeConfig, Truncate
from reflogp.stages.precompute.tokens.ends import TokenRules
from reflogp.stages.precompute.tokens.reader import Reader
from reflogp.stages.precompute.tokens.tokenize import TokenizedRow, Tokenizer
from tests.checkpoints import make_tokenizer

Row = Mapping[str, Any]
PAIR: dict[str, Any] = {"prompt": "2 + 2 =", "chosen": " 4", "rejected": " 5"}
UNLIMITED = 1_000_000

trained_tokenizer = functools.cache(make_tokenizer)


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


user, assistant, system = (
    functools.partial(message, role) for role in ("user", "assistant", "system")
)


def save(path: Path, rows: Sequence[Row]) -> Path:
    """Write `rows` as the kind of file that the name of `path` tells."""
    path.parent.mkdir(parents=True, exist_ok=True)
    plain, _, packing = path.name.rpartition(".")
    pack = _PACKED.get(packing)
    content = _CONTENT[(plain if pack else path.name).rpartition(".")[2]](rows)
    path.write_bytes(pack(content) if pack else content)
    return path


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as packed:
        packed.write(content)
    return bytes(sink.getvalue())


_PACKED: dict[str, Callable[[bytes], bytes]] = {"gz": gzip.compress, "zst": zstd}


def _lines(rows: Sequence[Row]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _array(rows: Sequence[Row]) -> bytes:
    return json.dumps(rows, ensure_ascii=False, indent=1).encode()


def _separated(rows: Sequence[Row], separator: str = ",") -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=separator)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _parquet(rows: Sequence[Row]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


def arrow_bytes(rows: Sequence[Row], new: Callable[..., Any] = pa.ipc.new_stream) -> bytes:
    sink = io.BytesIO()
    table = pa.Table.from_pylist(rows)
    with new(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


_CONTENT: dict[str, Callable[[Sequence[Row]], bytes]] = {
    "jsonl": _lines,
    "ndjson": _lines,
    "json": _array,
    "csv": _separated,
    "tsv": functools.partial(_separated, separator="\t"),
    "parquet": _parquet,
    "arrow": arrow_bytes,
}


def tokenizer_of(
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int = UNLIMITED,
    truncate: Truncate = "response",
    stop_ids: Sequence[int] = (),
) -> Tokenizer:
    """`tokenizer` under these rules; EOS always ends a response."""
    stops = frozenset({tokenizer.eos_token_id, *stop_ids})
    return Tokenizer(tokenizer, TokenRules(max_length, truncate, stops))


@dataclass
class Loaded:
    """What became of a source."""

    form: str
    read: int
    rows: list[TokenizedRow]
    set_aside: list[dict[str, Any]]

    @property
    def reasons(self) -> list[str]:
        return [row["reason"] for row in self.set_aside]


@pytest.fixture(scope="session")
def load(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Loaded]:
    """Read, normalize and tokenize a source; quarantined rows come from the file on disk."""
    path = tmp_path_factory.mktemp("load") / "quarantine.parquet"

    def run(data: Path | str, **options: Any) -> Loaded:
        options = {"max_length": UNLIMITED} | options
        config = PrecomputeConfig(reference="none", data=str(data), cache=path.parent, **options)
        tokenizer = tokenizer_of(
            trained_tokenizer(), max_length=config.max_length, truncate=config.truncate
        )
        with Quarantine(path) as quarantine:
            reader = Reader(config, quarantine)
            usable = list(reader.tokenized(tokenizer, lambda amount: None))
        set_aside = pq.read_table(path).to_pylist()
        assert quarantine.reasons.total() == len(set_aside)
        if reader.form.table is None:  # a row of a table can give several pairs
            assert len(usable) + len(set_aside) == reader.read
        return Loaded(reader.form.name, reader.read, usable, set_aside)

    return run
