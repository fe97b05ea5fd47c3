"""A data source -> raw rows, each with its file and line.

`datasets` streams Parquet, Arrow and hub data sets, one file after another, so files may have
different columns. JSON is parsed here, line by line: `datasets` infers one schema for a whole file,
so one broken line, or one field of another type, would lose all the other rows. pandas reads CSV.
bounded.py limits how much of a file is in memory.
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
# Files that save_to_disk writes next to its Arrow files, and caches that map() adds later.
_NO_ROWS = re.compile(r"(state|dataset_info|dataset_dict)\.json|cache-.*\.arrow")
_CSV_ROWS = 1_000  # in memory at a time
_NUMBERED = re.compile(r"(.+)-\d{5}-of-\d{5}\..+")  # a file of a split, as `datasets` names them
_Content = dict[str, Any] | tuple[str, RowFault]


@dataclass(frozen=True, slots=True)
class RawRow:
    """One unchanged row of the source, or the reason why it could not be read."""

    index: int
    file: str
    line: int
    data: dict[str, Any] | None
    text: str = ""
    fault: RowFault | None = None


def is_hub_id(source: str) -> bool:
    """Whether `source` names a hub data set: `owner/name`, with no local path of that name."""
    return (
        not Path(source).exists()
        and re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", source) is not None
        and (_suffix(Path(source)) not in SUFFIXES)
    )


def source_files(source: str, split: str = "train") -> list[Path]:
    """Return the local files of `source`, in reading order.

    If the file names in a folder contain splits (`train`, `test`, ...), only those of `split`.

    Raises:
        InputError: the path does not exist, its type is unknown, or the folder has no such split.
    """
    path = Path(source)
    if path.is_file():
        if _suffix(path) not in SUFFIXES:
            raise InputError(
                f"{path}: cannot read '{_suffix(path) or path.name}' files. Give one of "
                f"{', '.join(SUFFIXES)} (text formats also as .gz or .zst), a folder of them, or "
                "a hub data set id."
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
    """Yield all rows of `source` in order. An unreadable row has a fault instead of data.

    Args:
        source: a file, a folder or a hub data set.
        split: split of a folder or a hub data set.
        revision: commit, branch or tag of a hub data set; main if None.
        config: configuration of a hub data set; its default if None.

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
        file = name.encode("utf-8", "backslashreplace").decode("utf-8")  # valid UTF-8
        for line, content in rows:
            if isinstance(content, dict):
                yield RawRow(index, file, line, content)
            else:
                yield RawRow(index, file, line, None, *content)
            index += 1


def _suffix(path: Path) -> str:
    """Return the suffix of a file's format: `.json` for both `a.json` and `a.json.gz`."""
    suffix, inner = path.suffix.lower(), Path(path.stem).suffix.lower()
    return inner if suffix in bounded.COMPRESSED and inner in _TEXT else suffix


def _folder_files(folder: Path, split: str) -> list[Path]:
    files = sorted(
        path for path in folder.rglob("*") if path.is_file() and _holds_rows(path, folder)
    )
    if not files:
        raise InputError(f"{folder}: the folder holds no {', '.join(SUFFIXES)} file. Check --data.")
    splits = _saved_splits(folder, files) or _named_splits(folder, files)
    if set(splits) <= {"train"}:
        return files
    if split not in splits:
        raise InputError(
            f"{folder}: no split '{split}'; it has {', '.join(sorted(splits))}. Give --split."
        )
    return splits[split]


def _saved_splits(folder: Path, files: list[Path]) -> dict[str, list[Path]]:
    """Return the files of splits that their writer named; none if it named none.

    `datasets` goes by the words in a path, and takes `train_prefs` and `train_sft` for one split.
    """
    if (folder / "dataset_dict.json").is_file():  # save_to_disk gives each split a folder
        named = [path.relative_to(folder).parts[0] for path in files]
    else:
        numbered = [_NUMBERED.fullmatch(path.name) for path in files]
        named = [match[1] for match in numbered if match]
        if len(named) < len(files) or len(set(named)) == 1:
            return {}
    splits: dict[str, list[Path]] = {}
    for name, path in zip(named, files, strict=True):
        splits.setdefault(name, []).append(path)
    return splits


def _named_splits(folder: Path, files: list[Path]) -> dict[str, list[Path]]:
    """Return the files of splits that `datasets` finds in names of files and folders."""
    from datasets import data_files

    base = glob.escape(str(folder))
    splits = {}
    for split, patterns in data_files.get_data_patterns(base).items():
        names = data_files.DataFilesList.from_patterns(patterns, base_path=base)
        wanted = {Path(name).resolve() for name in names}
        splits[str(split)] = [path for path in files if path.resolve() in wanted]
    return splits


def _holds_rows(path: Path, folder: Path) -> bool:
    hidden = any(part.startswith((".", "__")) for part in path.relative_to(folder).parts)
    return not hidden and _suffix(path) in SUFFIXES and not _NO_ROWS.fullmatch(path.name)


def _file_rows(path: Path) -> Iterable[tuple[int, _Content]]:
    suffix = _suffix(path)
    if suffix == ".json":
        return _json_document(path)
    return _json_lines(path) if suffix in _LINES else _named_rows(path, suffix)


def _named_rows(path: Path, suffix: str) -> Iterator[tuple[int, _Content]]:
    """Read a file through a link if its name has ::, which `datasets` parses as two URLs."""
    if "::" not in str(path):
        yield from _local_rows(path, suffix)
        return
    with tempfile.TemporaryDirectory(prefix="reflogp-") as folder:
        link = Path(folder) / f"rows{path.suffix}"
        link.symlink_to(path.absolute())
        yield from _local_rows(link, suffix)


def _local_rows(path: Path, suffix: str) -> Iterator[tuple[int, _Content]]:
    options: dict[str, Any] = {"data_files": glob.escape(str(path)), "split": "train"}
    try:
        if suffix in _SEPARATORS:
            yield from _cells(path, _SEPARATORS[suffix])
        elif suffix == ".parquet":
            bounded.require_row_groups(path)
            # the default batch size is that of the first row group, which empty files lack
            yield from _dataset_rows("parquet", **options, batch_size=1_000)
        else:
            yield from _dataset_rows("arrow", **options)
    except InputError:
        raise
    except Exception as error:  # datasets, pandas and Arrow raise many types
        raise _unreadable(path, error) from error


def _cells(path: Path, separator: str) -> Iterator[tuple[int, _Content]]:
    """Read every cell as text, so 4 stays a string and "None" is not a null.

    If the first row is longer than the header, pandas uses the first column as an index and shifts
    all others. Reading two rows without a header first makes that an error.
    """
    import pandas as pd

    for _ in bounded.lines(path):  # pandas does not limit the length of a line
        pass
    with bounded.opened(path) as file:
        pd.read_csv(file, sep=separator, header=None, nrows=2)
    with bounded.opened(path) as file:
        options: dict[str, Any] = {"dtype": object, "keep_default_na": False, "na_values": [""]}
        tables = pd.read_csv(file, sep=separator, chunksize=_CSV_ROWS, **options)
        rows = (row for table in tables for row in table.to_dict("records"))
        for number, row in enumerate(rows, 1):
            yield number, {str(name): None if cell != cell else cell for name, cell in row.items()}


def _hub_rows(
    name: str, split: str, revision: str | None, config: str | None
) -> Iterator[tuple[int, _Content]]:
    try:
        yield from _dataset_rows(name, name=config, split=split, revision=revision)
    except Exception as error:  # the hub, its client and the builders raise many types
        raise InputError(
            f"hub data set {name}: cannot be read: {cause(error)}. Check the name, the network, "
            "--split and --data-config."
        ) from error


def _dataset_rows(builder: str, **options: Any) -> Iterator[tuple[int, _Content]]:
    import datasets  # takes seconds to import, and JSON does not need it

    # datasets logs each error that it raises, and users should see only ours
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    rows = datasets.load_dataset(builder, streaming=True, **options)
    # the number of a class can mean anything; its name says whether it is good or bad
    names = {
        column: dict(enumerate(feature.names))
        for column, feature in (rows.features or {}).items()
        if isinstance(feature, datasets.ClassLabel)
    }
    for line, row in enumerate(rows, 1):
        yield line, {**row, **{name: names[name].get(row[name]) for name in names}}


def _json_lines(path: Path) -> Iterator[tuple[int, _Content]]:
    try:
        for number, line in enumerate(bounded.lines(path), 1):
            if line.strip():
                yield number, _parse(line)
    except (OSError, EOFError, zlib.error) as error:  # including a truncated or invalid stream
        raise _unreadable(path, error) from error


def _json_document(path: Path) -> Iterator[tuple[int, _Content]]:
    """Read a JSON array of objects. JSON lines in a .json file are read as lines."""
    try:
        content = bounded.content(path).removeprefix(codecs.BOM_UTF8)
        if not content.lstrip().startswith(b"["):
            yield from _json_lines(path)
            return
        rows = json.loads(content.decode("utf-8"))
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: broken JSON: {error}. Fix it, or save it as JSONL.") from error
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
