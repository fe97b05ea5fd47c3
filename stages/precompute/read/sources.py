"""SOURCE -> raw rows, each with the file and line it came from.

CSV, Parquet, Arrow and hub data sets are read through `datasets`, streamed, one file after the
other. JSON is parsed here, line by line: `datasets` infers one schema for a whole file, so that a
single broken line, or one field of another type, would cost all the others. How much of a file is
in memory at a time is bounded (bounded.py).
"""

import codecs
import glob
import json
import re
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reflogp.data_schemas.errors import InputError
from reflogp.data_schemas.quarantine import Reason
from reflogp.stages.cache.quarantine_file import RowFault
from reflogp.stages.model.loading import cause
from reflogp.stages.precompute.read import bounded

_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_LINES = {".jsonl", ".ndjson"}
_TEXT = {".json", *_LINES, *_SEPARATORS}
SUFFIXES = sorted(_TEXT | {".parquet", ".arrow"})
# What save_to_disk writes beside its Arrow files, and what map() caches there later.
_NO_ROWS = re.compile(r"(state|dataset_info|dataset_dict)\.json|cache-.*\.arrow")


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row as it stands in the source, or the reason why it could not be read."""

    index: int
    file: str
    line: int
    data: dict[str, Any] | None
    text: str = ""
    fault: RowFault | None = None


def is_hub_id(source: str) -> bool:
    """Whether `source` names a hub data set: `owner/name`, and no such file or folder here."""
    return (
        not Path(source).exists()
        and re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", source) is not None
        and (_suffix(Path(source)) not in SUFFIXES)
    )


def source_files(source: str, split: str = "train") -> list[Path]:
    """The local files behind `source`, in the order in which they are read.

    Of a folder whose file names tell of splits (`train`, `test`, ...), only those of `split`.

    Raises:
        InputError: there is no such file, its form is unknown, or the folder holds no such split.
    """
    path = Path(source)
    if path.is_file():
        if _suffix(path) not in SUFFIXES:
            raise InputError(
                f"{path}: cannot read '{_suffix(path) or path.name}' files. Give one of "
                f"{', '.join(SUFFIXES)} (those of text also as .gz), a folder of them, or a hub "
                "data set id."
            )
        return [path]
    if not path.is_dir():
        raise InputError(
            f"{source}: no such file or folder, and not a hub data set id (owner/name). "
            "Check --data."
        )
    return _folder_files(path, split)


def read_source(
    source: str, split: str = "train", revision: str | None = None, config: str | None = None
) -> Iterator[RawRow]:
    """All rows of `source`, in order; a row that cannot be read comes with its fault.

    Args:
        source: a file, a folder or a hub data set.
        split: of a folder or a hub data set.
        revision: commit, branch or tag of a hub data set; None: main.
        config: configuration of a hub data set; None: its default.

    Raises:
        InputError: the source as a whole cannot be read.
    """
    index = 0
    parts: list[tuple[str, Iterable[tuple[int, _Content]]]]
    if is_hub_id(source):
        parts = [(source, _hub_rows(source, split, revision, config))]
    else:
        parts = [(str(path), _file_rows(path)) for path in source_files(source, split)]
    for name, rows in parts:
        file = name.encode("utf-8", "backslashreplace").decode("utf-8")  # as it can be written
        for line, content in rows:
            if isinstance(content, dict):
                yield RawRow(index, file, line, content)
            else:
                yield RawRow(index, file, line, None, *content)
            index += 1


_Content = dict[str, Any] | tuple[str, RowFault]


def _suffix(path: Path) -> str:
    """The suffix that tells what the file holds: `.json` of `a.json` and of `a.json.gz`."""
    suffix, inner = path.suffix.lower(), Path(path.stem).suffix.lower()
    return inner if suffix == ".gz" and inner in _TEXT else suffix


def _folder_files(folder: Path, split: str) -> list[Path]:
    files = sorted(
        path for path in folder.rglob("*") if path.is_file() and _holds_rows(path, folder)
    )
    if not files:
        raise InputError(f"{folder}: the folder holds no {', '.join(SUFFIXES)} file. Check --data.")
    from datasets import data_files

    base = glob.escape(str(folder))
    patterns = data_files.get_data_patterns(base)
    if set(map(str, patterns)) <= {"train"}:
        return files
    if split not in patterns:
        raise InputError(
            f"{folder}: no split '{split}'; it has {', '.join(map(str, patterns))}. Give --split."
        )
    names = data_files.DataFilesList.from_patterns(patterns[split], base_path=base)
    wanted = {Path(name).resolve() for name in names}
    return [path for path in files if path.resolve() in wanted]


def _holds_rows(path: Path, folder: Path) -> bool:
    hidden = any(part.startswith((".", "__")) for part in path.relative_to(folder).parts)
    return not hidden and _suffix(path) in SUFFIXES and not _NO_ROWS.fullmatch(path.name)


def _file_rows(path: Path) -> Iterable[tuple[int, _Content]]:
    suffix = _suffix(path)
    if suffix == ".json":
        return _json_document(path)
    return _json_lines(path) if suffix in _LINES else _named_rows(path, suffix)


def _named_rows(path: Path, suffix: str) -> Iterator[tuple[int, _Content]]:
    """`_local_rows` of a file whose name may hold ::, which `datasets` takes for two URLs."""
    if "::" not in str(path):
        yield from _local_rows(path, suffix)
        return
    with tempfile.TemporaryDirectory(prefix="reflogp-") as folder:
        link = Path(folder) / f"rows{path.suffix}"
        link.symlink_to(path.absolute())
        yield from _local_rows(link, suffix)


def _local_rows(path: Path, suffix: str) -> Iterator[tuple[int, _Content]]:
    """CSV, Parquet and Arrow through `datasets`."""
    options: dict[str, Any] = {"data_files": glob.escape(str(path)), "split": "train"}
    try:
        if suffix in _SEPARATORS:
            for _ in bounded.lines(path):  # pandas would take a line of any length
                pass
            yield from _dataset_rows("csv", **options, **_csv_options(path, _SEPARATORS[suffix]))
        elif suffix == ".parquet":
            bounded.require_row_groups(path)
            # by default a batch is the first row group, and a file without rows has none
            yield from _dataset_rows("parquet", **options, batch_size=1_000)
        else:
            yield from _dataset_rows("arrow", **options)
    except InputError:
        raise
    except Exception as error:  # datasets, pandas and Arrow raise all sorts of types
        raise _unreadable(path, error) from error


def _csv_options(path: Path, separator: str) -> dict[str, Any]:
    """Every cell is text as it stands: no 4 that becomes a number, no answer "None" a null.

    pandas takes the first column for an index where the first row is longer than the header, and
    shifts all others; reading that row as if there were no header refuses it.
    """
    import pandas as pd
    from datasets import Features, Value

    pd.read_csv(path, sep=separator, header=None, nrows=2)
    columns = pd.read_csv(path, sep=separator, nrows=0).columns
    return {
        "sep": separator,
        "features": Features({str(name): Value("string") for name in columns}),
        "keep_default_na": False,
        "na_values": [""],
    }


def _hub_rows(
    name: str, split: str, revision: str | None, config: str | None
) -> Iterator[tuple[int, _Content]]:
    try:
        yield from _dataset_rows(name, name=config, split=split, revision=revision)
    except Exception as error:  # the hub, its client and every builder: all sorts of types
        raise InputError(
            f"hub data set {name}: cannot be read: {cause(error)}. Check the name, the network, "
            "--split and --data-config."
        ) from error


def _dataset_rows(builder: str, **options: Any) -> Iterator[tuple[int, _Content]]:
    import datasets  # takes seconds to import, and JSON does without

    # It logs each error that it raises; ours is the one message.
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    for line, row in enumerate(datasets.load_dataset(builder, streaming=True, **options), 1):
        yield line, dict(row)


def _json_lines(path: Path) -> Iterator[tuple[int, _Content]]:
    try:
        for number, line in enumerate(bounded.lines(path), 1):
            if line.strip():
                yield number, _parse(line)
    except (OSError, EOFError, zlib.error) as error:  # a gzip stream that was cut or is none
        raise _unreadable(path, error) from error


def _json_document(path: Path) -> Iterator[tuple[int, _Content]]:
    """A JSON array of objects; a file of JSON lines that is only called .json is read as such."""
    try:
        content = bounded.content(path).removeprefix(codecs.BOM_UTF8)
        if not content.lstrip().startswith(b"["):
            yield from _json_lines(path)
            return
        rows = json.loads(content.decode("utf-8"))
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: broken JSON: {error}. Mend it, or save it as JSONL.") from error
    for number, row in enumerate(rows, 1):
        yield number, row if isinstance(row, dict) else _not_an_object(json.dumps(row))


def _parse(line: bytes) -> _Content:
    try:
        text = line.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        fault = RowFault(Reason.INVALID_UTF8, None, f"not UTF-8 at byte {error.start} of the line")
        return line.decode("utf-8", "backslashreplace").strip(), fault
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        return text, RowFault(Reason.BROKEN_JSON, None, f"broken JSON: {error}")
    return row if isinstance(row, dict) else _not_an_object(text)


def _not_an_object(text: str) -> tuple[str, RowFault]:
    return text, RowFault(Reason.NOT_AN_OBJECT, None, "not a JSON object with named fields")


def _unreadable(path: Path, error: Exception) -> InputError:
    if isinstance(error, UnicodeDecodeError):
        return InputError(f"{path}: not UTF-8 ({error.reason}). Save it as UTF-8.")
    return InputError(f"{path}: cannot be read: {cause(error)}. Check the file.")
