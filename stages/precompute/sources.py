"""SOURCE -> raw rows, each with the file and line it came from.

CSV, Parquet, Arrow and hub data sets are read through `datasets`, streamed, one file after the
other. JSON is parsed here, line by line: `datasets` infers one schema for a whole file, so that a
single broken line, or one field of another type, would cost all the others.
"""

import gzip
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_schemas.errors import InputError
from data_schemas.quarantine import Reason
from stages.precompute.faults import RowFault

_BUILDERS = {".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".arrow": "arrow"}
_JSON = {".jsonl", ".ndjson", ".json"}
SUFFIXES = sorted(_JSON | set(_BUILDERS))


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
        and re.fullmatch(r"[\w.-]+/[\w.-]+", source) is not None
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
                f"{', '.join(SUFFIXES)} (each also as .gz), a folder of them, or a hub data set id."
            )
        return [path]
    if not path.is_dir():
        raise InputError(
            f"{source}: no such file or folder, and not a hub data set id (owner/name). "
            "Check --data."
        )
    return _folder_files(path, split)


def read_source(source: str, split: str = "train") -> Iterator[RawRow]:
    """All rows of `source`, in order; a row that cannot be read comes with its fault.

    Raises:
        InputError: the source as a whole cannot be read.
    """
    index = 0
    if is_hub_id(source):
        parts = [(source, _hub_rows(source, split))]
    else:
        parts = [(str(path), _file_rows(path)) for path in source_files(source, split)]
    for file, rows in parts:
        for line, content in rows:
            if isinstance(content, dict):
                yield RawRow(index, file, line, content)
            else:
                yield RawRow(index, file, line, None, *content)
            index += 1


_Content = dict[str, Any] | tuple[str, RowFault]


def _suffix(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return next((suffix for suffix in reversed(suffixes) if suffix != ".gz"), "")


def _folder_files(folder: Path, split: str) -> list[Path]:
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and _suffix(path) in SUFFIXES
        and not path.name.startswith(".")
        # save_to_disk leaves these beside its Arrow files; they are no rows
        and path.name not in {"state.json", "dataset_info.json", "dataset_dict.json"}
    )
    if not files:
        raise InputError(f"{folder}: the folder holds no {', '.join(SUFFIXES)} file. Check --data.")
    from datasets import data_files

    patterns = data_files.get_data_patterns(str(folder))
    if set(map(str, patterns)) <= {"train"}:
        return files
    if split not in patterns:
        raise InputError(
            f"{folder}: no split '{split}'; it has {', '.join(map(str, patterns))}. Give --split."
        )
    wanted = {
        str(Path(name).resolve())
        for pattern in patterns[split]
        for name in data_files.resolve_pattern(pattern, str(folder))
    }
    return [path for path in files if str(path.resolve()) in wanted]


def _file_rows(path: Path) -> Iterable[tuple[int, _Content]]:
    suffix = _suffix(path)
    if suffix in {".jsonl", ".ndjson"}:
        return _json_lines(path)
    if suffix == ".json":
        return _json_document(path)
    options = {"sep": "\t"} if suffix == ".tsv" else {}
    return _dataset_rows(
        str(path), _BUILDERS[suffix], data_files=str(path), split="train", **options
    )


def _hub_rows(name: str, split: str) -> Iterable[tuple[int, _Content]]:
    return _dataset_rows(f"hub data set {name}", name, split=split)


def _dataset_rows(where: str, builder: str, **options: Any) -> Iterator[tuple[int, _Content]]:
    """Stream rows through `datasets`; whatever it raises becomes one message."""
    from datasets import load_dataset  # takes seconds to import, and JSON does without

    line = 0
    try:
        for line, row in enumerate(load_dataset(builder, streaming=True, **options), 1):
            yield line, dict(row)
    except Exception as error:  # datasets, pandas and Arrow raise all sorts of types
        cause = error.__cause__ or error
        message = str(cause).splitlines()[0] if str(cause) else type(cause).__name__
        after = f" after row {line}" if line else ""
        raise InputError(
            f"{where}: cannot be read{after}: {message}. Check the file, and --split."
        ) from error


def _json_lines(path: Path) -> Iterator[tuple[int, _Content]]:
    with _open(path) as lines:
        try:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield number, _parse(line)
        except (OSError, EOFError) as error:  # a gzip stream that was cut or is none
            raise InputError(f"{path}: cannot be read: {error}. Check the file.") from error


def _json_document(path: Path) -> Iterator[tuple[int, _Content]]:
    """A JSON array of objects; a file of JSON lines that is only called .json is read as such."""
    try:
        with _open(path) as file:
            text = file.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}. Save it as UTF-8.") from error
    except (OSError, EOFError) as error:
        raise InputError(f"{path}: cannot be read: {error}. Check the file.") from error
    if not text.lstrip().startswith("["):
        yield from _json_lines(path)
        return
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: broken JSON: {error}. Mend it, or save it as JSONL.") from error
    for number, row in enumerate(rows, 1):
        yield number, row if isinstance(row, dict) else _not_an_object(json.dumps(row))


def _parse(line: bytes) -> _Content:
    try:
        text = line.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        fault = RowFault(Reason.INVALID_UTF8, None, f"not UTF-8 at byte {error.start} of the line")
        return line.decode("utf-8", "replace"), fault
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        return text, RowFault(Reason.BROKEN_JSON, None, f"broken JSON: {error}")
    return row if isinstance(row, dict) else _not_an_object(text)


def _not_an_object(text: str) -> tuple[str, RowFault]:
    return text, RowFault(Reason.NOT_AN_OBJECT, None, "not a JSON object with named fields")


def _open(path: Path) -> Any:
    return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb")
