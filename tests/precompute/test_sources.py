"""Every kind of file gives its rows, with their lines; what cannot be read is said in one line."""

import functools
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reflogp.data_schemas.errors import InputError
from reflogp.data_schemas.quarantine import Reason
from reflogp.stages.precompute.read.preferences import Preference, detect, normalize
from reflogp.stages.precompute.read.sources import RawRow, is_hub_id, read_source
from tests.precompute.conftest import PAIR, arrow_bytes, assistant, save, user, zstd

ROWS = [
    {"prompt": "¿Dos y dos?", "chosen": 'Cuatro, "4".', "rejected": "5"},
    {"prompt": "two\nlines,\tand a tab", "chosen": "None", "rejected": "🌍 ✓"},
    {"prompt": "3", "chosen": "true", "rejected": " 007 "},
]
TEXT_KINDS = ["jsonl", "ndjson", "json", "csv", "tsv"]
LINE = json.dumps(PAIR).encode() + b"\n"
TABLE = b"prompt,chosen,rejected\na,b,c\n"
# without the time, which would be part of a test's name
zipped = functools.partial(gzip.compress, mtime=0)


def read(source: object, split: str = "train") -> list[RawRow]:
    return list(read_source(str(source), split))


def data(source: object, split: str = "train") -> list[dict[str, Any] | None]:
    return [row.data for row in read(source, split)]


@pytest.fixture
def file(tmp_path) -> Callable[[str, bytes], Path]:
    def write(name: str, content: bytes) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    return write


@pytest.mark.parametrize(
    "kind",
    [
        *TEXT_KINDS,
        "parquet",
        "arrow",
        *(f"{kind}.{z}" for kind in TEXT_KINDS for z in ("gz", "zst")),
    ],
)
def test_every_kind_of_file_gives_its_rows_in_order_with_their_numbers(kind, tmp_path):
    path = save(tmp_path / f"some.data.{kind}", ROWS)
    assert read(path) == [RawRow(i, str(path), i + 1, row) for i, row in enumerate(ROWS)]


def test_both_arrow_formats_are_read(file):
    assert data(file("stream.arrow", arrow_bytes(ROWS))) == ROWS
    assert data(file("file.arrow", arrow_bytes(ROWS, pa.ipc.new_file))) == ROWS


@pytest.mark.parametrize(
    ("name", "pack"), [("lines.json", bytes), ("lines.json.gz", zipped), ("lines.json.zst", zstd)]
)
def test_a_json_file_that_holds_lines_is_read_as_lines(name, pack, file):
    path = file(name, pack(LINE + b"\xff\n" + LINE))
    assert [(row.line, row.data) for row in read(path)] == [(1, PAIR), (2, None), (3, PAIR)]


@pytest.mark.parametrize("kind", TEXT_KINDS)
def test_a_byte_order_mark_is_no_part_of_the_first_row(kind, file, tmp_path):
    content = save(tmp_path / f"plain.{kind}", ROWS).read_bytes()
    assert data(file(f"marked.{kind}", b"\xef\xbb\xbf" + content)) == ROWS


@pytest.mark.parametrize("pack", [zipped, zstd])
def test_files_that_were_compressed_apart_and_joined_are_read_to_the_end(pack, file):
    name = {zipped: "a.jsonl.gz", zstd: "a.jsonl.zst"}[pack]
    assert [row.line for row in read(file(name, pack(LINE) + pack(LINE * 2)))] == [1, 2, 3]


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "tsv"])
def test_carriage_returns_belong_to_the_end_of_a_line(kind, file, tmp_path):
    content = save(tmp_path / f"plain.{kind}", [PAIR, PAIR]).read_bytes()
    lines = content.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    assert data(file(f"windows.{kind}", lines)) == [PAIR, PAIR]


def test_arrow_types_of_text_are_text_and_those_of_lists_are_lists(tmp_path):
    texts = [row["prompt"] for row in ROWS]
    turns = [[{"role": "user", "content": text}] for text in texts]
    table = pa.table(
        {
            "category": pa.array(texts).dictionary_encode(),
            "large": pa.array(texts, pa.large_string()),
            "view": pa.array(texts, pa.string_view()),
            "messages": pa.array(turns),
            "large_list": pa.array(
                turns, pa.large_list(pa.struct(dict.fromkeys(turns[0][0], "str")))
            ),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    assert data(tmp_path / "a.parquet") == [
        dict.fromkeys(("category", "large", "view"), text)
        | dict.fromkeys(("messages", "large_list"), turn)
        for text, turn in zip(texts, turns, strict=True)
    ]


def test_arrow_gives_the_conversations_of_the_lines(tmp_path):
    """Arrow gives every object the keys of all others, and JSON columns hold any value."""
    rows = [
        {
            "prompt": [user("Seek."), {"role": "assistant", "content": None, "tool_calls": calls}],
            "chosen": [assistant("Here.")],
            "rejected": [assistant("Gone.")],
            "tools": [{"type": "function", "function": {"name": "seek", "parameters": kinds}}],
        }
        for calls, kinds in (
            ([{"function": {"name": "seek", "arguments": {"thing": "keys"}}}], {"thing": "text"}),
            ([{"function": {"name": "seek", "arguments": {"before": "noon"}}}], {"before": "time"}),
        )
    ]

    def preferences(path: Path) -> list[Preference]:
        form = detect(set(rows[0]))
        assert form is not None
        return [normalize(row.data or {}, form, row.index) for row in read(path)]

    expected = preferences(save(tmp_path / "a.jsonl", rows))
    for kind in ("json", "parquet", "arrow"):
        assert preferences(save(tmp_path / f"a.{kind}", rows)) == expected
    texts = [{name: json.dumps(value) for name, value in row.items()} for row in rows]
    for kind in ("csv", "parquet"):
        assert preferences(save(tmp_path / f"text.{kind}", texts)) == expected
    columns = [{name: _turned(value) for name, value in row.items()} for row in rows]
    assert preferences(save(tmp_path / "columns.parquet", columns)) == expected


def _turned(objects: Any) -> dict[str, list[Any]]:
    """A list of objects as an object of lists, as `datasets` can keep it."""
    return {name: [one.get(name) for one in objects] for name in {**objects[0], **objects[-1]}}


def test_what_datasets_keeps_as_json_is_read_as_it_was(tmp_path):
    rows = [{"tools": [{"name": "a", "size": None}]}, {"tools": [{"name": "b", "of": ["c"]}]}]
    saved = datasets.Dataset.from_list(rows, features=datasets.Features(tools=datasets.Json()))
    saved.to_parquet(tmp_path / "a.parquet")
    assert data(tmp_path / "a.parquet") == rows


def test_a_class_is_read_as_its_name_whatever_its_number(tmp_path):
    kind = datasets.ClassLabel(names=["chosen", "rejected"])
    features = datasets.Features(label=kind, index=datasets.Value("int64"))
    columns = {"label": [0, 1, None, -1], "index": [0, 1, None, -1]}
    saved = datasets.Dataset.from_dict(columns, features=features)
    saved.to_parquet(tmp_path / "a.parquet")
    saved.save_to_disk(tmp_path / "folder")
    names = ["chosen", "rejected", None, None]
    expected = [
        {"label": name, "index": index} for name, index in zip(names, columns["index"], strict=True)
    ]
    assert data(tmp_path / "a.parquet") == data(tmp_path / "folder") == expected


def test_blank_lines_are_no_rows_but_count_as_lines(file):
    path = file("a.jsonl", b"\n" + LINE + b"  \r\n\n" + LINE.replace(b"\n", b"\r\n") + LINE[:-1])
    assert [(row.index, row.line, row.data) for row in read(path)] == [
        (0, 2, PAIR),
        (1, 5, PAIR),
        (2, 6, PAIR),
    ]


def test_broken_json_in_line_17_is_set_aside_and_the_other_lines_survive(file):
    lines = [LINE] * 20
    lines[16] = b'{"prompt": "2 + 2 =", "chosen": " 4\n'
    rows = read(file("a.jsonl", b"".join(lines)))
    assert len(rows) == 20
    assert [row.line for row in rows if row.data != PAIR] == [17]
    broken = rows[16]
    assert broken.fault is not None
    assert broken.fault.reason is Reason.BROKEN_JSON
    assert "Unterminated string" in broken.fault.detail
    assert broken.text == lines[16].decode().strip()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"prompt": "caf\xe9"}', Reason.INVALID_UTF8),
        (b'{"prompt": "\xed\xa0\x80"}', Reason.INVALID_UTF8),
        (b'["a", "b"]', Reason.NOT_AN_OBJECT),
        (b"17", Reason.NOT_AN_OBJECT),
        (b"null", Reason.NOT_AN_OBJECT),
        (b'{"a": 1} {"b": 2}', Reason.BROKEN_JSON),
        (b"{'a': 1}", Reason.BROKEN_JSON),
        (b'{"a": ' + b"[" * 100_000, Reason.BROKEN_JSON),
        (b'{"a": ' + b"1" * 5_000 + b"}", Reason.BROKEN_JSON),
    ],
)
def test_a_line_that_is_no_row_says_why(line, reason, file):
    before, faulty, after = read(file("a.jsonl", LINE + line + b"\n" + LINE))
    assert before.data == after.data == PAIR
    assert faulty.data is None
    assert faulty.text == line.decode("utf-8", "backslashreplace")
    assert faulty.fault is not None
    assert faulty.fault.reason is reason


def test_what_is_no_object_in_a_json_array_is_set_aside(file):
    path = file("a.json", b"[" + LINE + b", 3, " + LINE + b"]")
    assert [(row.line, row.data, row.text) for row in read(path)] == [
        (1, PAIR, ""),
        (2, None, "3"),
        (3, PAIR, ""),
    ]


def test_only_an_empty_cell_of_a_table_is_null(file):
    path = file("a.csv", b'p,c,r,n\nq,None,NA,1\nq,,"",nan\nq,null\n')
    assert [list(row.data.values()) for row in read(path) if row.data] == [
        ["q", "None", "NA", "1"],
        ["q", None, None, "nan"],
        ["q", "null", None, None],
    ]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", b""),
        ("a.jsonl", b"\n \n"),
        ("a.jsonl.gz", zipped(b"")),
        ("a.json", b""),
        ("a.json", b"[]"),
        ("a.csv", b"prompt,chosen,rejected\n"),
    ],
)
def test_a_file_without_rows_gives_none(name, content, file):
    assert read(file(name, content)) == []


def test_a_parquet_file_without_rows_gives_none(tmp_path):
    pq.write_table(pa.Table.from_pylist(ROWS).slice(0, 0), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == []


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("cut.jsonl.gz", zipped(LINE * 99)[:-9], "ended before the end-of-stream marker"),
        ("cut.json.gz", zipped(LINE * 99)[:-9], "ended before the end-of-stream marker"),
        ("cut.csv.gz", zipped(TABLE)[:-9], "ended before the end-of-stream marker"),
        ("damaged.jsonl.gz", zipped(b"")[:10] + b"\xff" * 20, "invalid block type"),
        ("cut.jsonl.zst", zstd(LINE * 99)[:-9], "Truncated compressed stream"),
        ("cut.json.zst", zstd(LINE * 99)[:-9], "Truncated compressed stream"),
        ("cut.csv.zst", zstd(TABLE)[:-9], "Truncated compressed stream"),
        ("plain.jsonl.zst", LINE, "Unknown frame descriptor"),
        ("plain.jsonl.gz", LINE, "Not a gzipped file"),
        ("plain.csv.gz", TABLE, "Not a gzipped file"),
        ("broken.json", b"[" + LINE + b",\n{]", "broken JSON: .* line 3 .* save it as JSONL"),
        ("latin.json", b'[{"prompt": "caf\xe9"}]', "not UTF-8 .*Save it as UTF-8"),
        ("latin.csv", TABLE + b"caf\xe9,b,c\n", "not UTF-8 .*Save it as UTF-8"),
        ("empty.csv", b"", "No columns to parse"),
        ("first.csv", b"p,c,r\n1,2,3,4\n1,2,3,4\n", "Expected 3 fields in line 2, saw 4"),
        ("later.csv", TABLE + b"a,b,c,d\n", "Expected 3 fields in line 3, saw 4"),
        ("empty.parquet", b"", "file size is 0 bytes"),
        ("corrupt.parquet", b"PAR1" + b"x" * 99 + b"PAR1", "Parquet file size"),
        ("plain.parquet", LINE, "Parquet magic bytes not found"),
        ("corrupt.arrow", b"x" * 99, "Not an Arrow file"),
        ("zipped.parquet.gz", zipped(b"PAR1"), r"cannot read '\.gz' files.* \.parquet"),
        ("notes.txt", LINE, r"cannot read '\.txt' files\. Give one of .*\.jsonl"),
        ("README", LINE, "cannot read 'README' files. Give one of"),
    ],
)
def test_a_file_that_cannot_be_read_gives_one_line_that_names_it(
    name, content, expected, file, caplog
):
    path = file(name, content)
    with pytest.raises(InputError, match=expected) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.endswith(".")
    assert "\n" not in message
    assert ".. " not in message
    assert caplog.records == []  # no library speaks up beside it


def test_a_file_that_the_system_does_not_open_is_named(file, monkeypatch):
    path = file("a.jsonl", LINE)

    def refuse(*arguments: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InputError, match=r"a\.jsonl: cannot be read: .*Permission denied"):
        read(path)


@pytest.mark.parametrize(
    "name", ["missing", "./missing", "../missing/", "folder/missing.jsonl", "a/b/c", "~/x.csv.gz"]
)
def test_a_file_that_is_not_there_is_named(name):
    with pytest.raises(InputError, match=r"no such file or folder.*Check --data") as caught:
        read(name)
    assert str(caught.value).startswith(f"{name}: ")


def test_a_name_with_wildcards_means_itself(tmp_path):
    folder = tmp_path / "run [1]"
    names = ["a1.parquet", "a[1].csv", "a[1].parquet"]
    for name, row in zip(names, ROWS, strict=True):
        save(folder / name, [row])
    assert [data(folder / name) for name in names] == [[row] for row in ROWS]
    assert data(folder) == ROWS


def test_a_folder_is_read_file_by_file_in_the_order_of_names(tmp_path):
    for name, row in zip(["b.csv", "a/z.jsonl", "c.json.gz"], ROWS, strict=True):
        save(tmp_path / name, [row, row])
    found = read(tmp_path)
    assert [row.data for row in found] == [ROWS[i] for i in (1, 1, 0, 0, 2, 2)]
    assert [row.index for row in found] == list(range(6))
    assert [row.line for row in found] == [1, 2] * 3
    assert [Path(row.file).name for row in found[::2]] == ["z.jsonl", "b.csv", "c.json.gz"]


def test_hidden_files_and_other_kinds_in_a_folder_are_no_rows(tmp_path, file):
    save(tmp_path / "a.jsonl", ROWS)
    for name in [".a.jsonl", ".checkpoints/a.jsonl", "__MACOSX/a.jsonl"]:
        save(tmp_path / name, ROWS)
    file("README.md", b"about")
    assert data(tmp_path) == ROWS


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train.jsonl", "test.jsonl"),
        ("my-train-1.csv", "my-test-1.csv"),
        ("train/a.parquet", "test/a.parquet"),
        ("data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"),
    ],
)
def test_of_a_folder_with_splits_only_the_wanted_one_is_read(train, test, tmp_path):
    save(tmp_path / train, ROWS[:2])
    save(tmp_path / test, ROWS[2:])
    assert data(tmp_path) == ROWS[:2]
    assert data(tmp_path, "test") == ROWS[2:]
    with pytest.raises(
        InputError, match=r"no split 'validation'; it has test, train. Give --split"
    ):
        read(tmp_path, "validation")


def test_splits_whose_names_share_a_word_are_told_apart(tmp_path):
    for split, row in zip(("train_prefs", "train_sft", "test_prefs"), ROWS, strict=True):
        save(tmp_path / f"{split}-00000-of-00001.parquet", [row])
    assert data(tmp_path, "train_prefs") == ROWS[:1]
    assert data(tmp_path, "test_prefs") == ROWS[2:]
    with pytest.raises(
        InputError, match=r"it has test_prefs, train_prefs, train_sft\. Give --split"
    ):
        read(tmp_path)


def test_parts_of_one_set_are_no_splits_and_may_have_other_columns(tmp_path):
    for kind in ("parquet", "jsonl"):
        more = ROWS[1] | {"source": "hh", "scores": [1, None]}
        save(tmp_path / kind / f"pairs-00000-of-00002.{kind}", ROWS[:1])
        save(tmp_path / kind / f"pairs-00001-of-00002.{kind}", [more])
        found = read(tmp_path / kind)
        assert [row.data for row in found] == [ROWS[0], more]
        assert [(Path(row.file).name[:11], row.line) for row in found] == [
            ("pairs-00000", 1), ("pairs-00001", 1),
        ]  # fmt: skip


def test_a_folder_without_the_wanted_split_names_the_one_it_has(tmp_path):
    save(tmp_path / "test.jsonl", ROWS)
    with pytest.raises(InputError, match=r"no split 'train'; it has test. Give --split"):
        read(tmp_path)


@pytest.mark.parametrize("name", [None, "README.md", ".hidden.jsonl"])
def test_a_folder_without_data_says_what_it_would_take(name, tmp_path, file):
    if name:
        file(name, b"about")
    with pytest.raises(InputError, match=r"the folder holds no \.arrow, .*\.tsv file") as caught:
        read(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}: ")


def test_a_folder_from_save_to_disk_is_read_without_what_map_cached_there(tmp_path):
    saved = datasets.Dataset.from_list(ROWS)
    saved.save_to_disk(tmp_path)
    datasets.load_from_disk(tmp_path).map(lambda row: {"prompt": row["prompt"] + "!"})
    assert list(tmp_path.glob("cache-*.arrow"))
    assert data(tmp_path) == ROWS


def test_splits_from_save_to_disk_are_told_apart(tmp_path):
    rows = datasets.Dataset.from_list(ROWS)
    splits = {"train": rows, "train_sft": rows.select([0]), "test": rows.select([1])}
    datasets.DatasetDict(splits).save_to_disk(tmp_path)
    assert data(tmp_path) == ROWS
    assert data(tmp_path, "train_sft") == ROWS[:1]
    assert data(tmp_path, "test") == ROWS[1:2]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Anthropic/hh-rlhf", True),
        ("a/b.c_d-e", True),
        ("squad", False),
        ("./data", False),
        ("../data", False),
        ("/data", False),
        ("a/b/c", False),
        ("data/pairs.jsonl", False),
        ("data/pairs.csv.gz", False),
    ],
)
def test_owner_and_name_mean_the_hub_and_paths_do_not(name, expected):
    assert is_hub_id(name) is expected


def test_a_folder_of_that_name_goes_before_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "owner" / "name" / "a.jsonl", ROWS)
    assert not is_hub_id("owner/name")
    assert data("owner/name") == ROWS


def test_rows_of_the_hub_are_streamed_and_carry_its_name(monkeypatch):
    def load_dataset(path: str, **options: object) -> datasets.IterableDataset:
        wanted = {"name": None, "split": "test", "revision": None, "streaming": True}
        assert (path, options) == ("owner/name", wanted)
        return datasets.Dataset.from_list(ROWS).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert read("owner/name", "test") == [
        RawRow(i, "owner/name", i + 1, row) for i, row in enumerate(ROWS)
    ]


def test_a_hub_that_is_out_of_reach_gives_one_line(monkeypatch):
    def load_dataset(*arguments: object, **options: object) -> None:
        raise ConnectionError("Couldn't reach 'owner/name' on the Hub\nmore")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(InputError) as caught:
        read("owner/name")
    assert str(caught.value) == (
        "hub data set owner/name: cannot be read: Couldn't reach 'owner/name' on the Hub more. "
        "Check the name, the network, --split and --data-config."
    )
