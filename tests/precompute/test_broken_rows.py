"""Whatever a file of preferences holds, each row is used or quarantined, or the file is refused."""

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reflogp.data_schemas.quarantine import Reason
from reflogp.stages.cache.quarantine_file import RowFault
from reflogp.stages.precompute.plan.planned_shards import write_plan
from reflogp.stages.precompute.read.preferences import detect, normalize
from reflogp.stages.precompute.tokens.tokenize import TokenizedRow
from tests.checkpoints import EXAMPLES
from tests.mutations import damaged, fuzz, gzipped, mutated, outcome, texts, to_json
from tests.precompute.conftest import (
    arrow_bytes,
    assistant,
    save,
    tokenizer_of,
    trained_tokenizer,
    user,
)


def forms() -> dict[str, list[dict[str, Any]]]:
    """Two valid rows of each form that needs no option."""
    found = {}
    files = set((EXAMPLES / "forms").glob("*.jsonl"))
    for path in sorted(files - {EXAMPLES / "forms" / "system_and_question.jsonl"}):
        lines = path.read_text(encoding="utf-8").splitlines()
        found[path.stem] = [json.loads(line) for line in lines[:2]]
    found["sharegpt"] = json.loads((EXAMPLES / "forms" / "sharegpt.json").read_text())[:2]
    return found


FORMS = forms()
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "max_length": st.sampled_from([2, 16, 64]),
        "truncate": st.sampled_from(["response", "prompt", "never"]),
        "min_confidence": st.sampled_from([-1.0, 0.0, 5.0]),
        "columns": st.sampled_from([{"prompt": "chosen"}, {"label": "prompt"}]),
    },
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def require_sound(row: TokenizedRow, max_length: int) -> None:
    vocabulary = len(trained_tokenizer())
    responses = [ids for ids in (row.chosen_ids, row.rejected_ids) if ids is not None]
    assert responses
    for ids in [row.prompt_ids, *responses]:
        assert ids
        assert all(0 <= i < vocabulary for i in ids)
    assert len(row.prompt_ids) + max(map(len, responses)) <= max_length


def require_used_or_set_aside(load, folder: Path, path: Path, options: dict[str, Any]) -> None:
    loaded = outcome(lambda: load(path, **options))  # asserts that the counts add up
    if loaded is None:
        return
    assert set(loaded.reasons) <= set(Reason)
    for row in loaded.rows:
        require_sound(row, options.get("max_length", 10**9))
    write_plan(loaded.rows, folder / "plan", 1_000)


@st.composite
def rows(draw: st.DrawFn) -> list[Any]:
    return [draw(mutated(row)) for row in FORMS[draw(st.sampled_from(sorted(FORMS)))]]


@st.composite
def text_files(draw: st.DrawFn) -> tuple[str, bytes]:
    """A name and a content: lines or one array, compressed or not, damaged or not."""
    kind = draw(st.sampled_from(["jsonl", "json"]))
    ascii_only = draw(st.booleans())
    parts = [to_json(row, ascii_only=ascii_only) for row in draw(rows())]
    content = b"\n".join(parts) if kind == "jsonl" else b"[" + b", ".join(parts) + b"]"
    if draw(st.booleans()):
        content = draw(damaged(content))
    if draw(st.integers(0, 3)):
        return f"any.{kind}", content
    return f"any.{kind}.gz", draw(gzipped(content))


@fuzz
@given(file=text_files(), options=OPTIONS)
def test_json(file, options, load, folder):
    path = folder / file[0]
    path.write_bytes(file[1])
    require_used_or_set_aside(load, folder, path, options)


@fuzz
@given(
    kind=st.sampled_from(["csv", "tsv", "csv.gz"]),
    cells=st.lists(st.tuples(texts, texts, texts), max_size=3),
    damage=st.data(),
)
def test_tables_of_text(kind, cells, damage, load, folder):
    table = [dict(zip(("prompt", "chosen", "rejected"), row, strict=True)) for row in cells]
    table.append({"prompt": "2 + 2 =", "chosen": " 4", "rejected": " 5"})
    plain = kind.removesuffix(".gz")
    for row in table:
        row.update({name: text.encode("utf-8", "replace").decode() for name, text in row.items()})
    content = damage.draw(damaged(save(folder / f"plain.{plain}", table).read_bytes()))
    path = folder / f"any.{kind}"
    path.write_bytes(content if kind == plain else damage.draw(gzipped(content)))
    require_used_or_set_aside(load, folder, path, {})


def binary_files(table: list[dict[str, Any]]) -> dict[str, bytes]:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(table), sink)
    return {"parquet": sink.getvalue(), "arrow": arrow_bytes(table)}


BINARY = {name: binary_files(table) for name, table in FORMS.items() if name != "sharegpt"}


@fuzz
@given(name=st.sampled_from(sorted(BINARY)), damage=st.data())
def test_parquet_with_damaged_bytes(name, damage, load, folder):
    path = folder / "any.parquet"
    path.write_bytes(damage.draw(damaged(BINARY[name]["parquet"])))
    require_used_or_set_aside(load, folder, path, {})


@fuzz
@given(odd=mutated(FORMS["text"]), kind=st.sampled_from(["parquet", "arrow"]))
def test_parquet_and_arrow_with_odd_types(odd, kind, load, folder):
    try:
        content = binary_files(odd)[kind]
    except (pa.ArrowException, TypeError, ValueError, LookupError, ArithmeticError, AttributeError):
        return  # Arrow cannot hold it at all
    path = folder / f"any.{kind}"
    path.write_bytes(content)
    require_used_or_set_aside(load, folder, path, {})


@fuzz
@given(
    prompt=st.one_of(texts, mutated([user("2 + 2 =")])),
    chosen=st.one_of(texts, mutated([assistant(" 4")])),
    rejected=texts,
    max_length=st.integers(2, 40),
    truncate=st.sampled_from(["response", "prompt", "never"]),
)
def test_tokens(prompt, chosen, rejected, max_length, truncate):
    row = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    form = detect(set(row))
    assert form is not None
    tokenizer = tokenizer_of(trained_tokenizer(), max_length=max_length, truncate=truncate)
    try:
        found = tokenizer(normalize(row, form, 0))
    except RowFault as fault:
        assert fault.detail  # noqa: PT017 - either outcome is right
    else:
        require_sound(found, max_length)


def test_the_files_are_valid_before_they_are_broken(load, folder):
    for name, table in FORMS.items():
        found = load(save(folder / f"{name}.jsonl", table))
        assert (len(found.rows), found.set_aside) == (1 if "per_row" in name else 2, [])
    for name, files in BINARY.items():
        for kind, content in files.items():
            path = folder / f"{name}.{kind}"
            path.write_bytes(content)
            assert len(load(path).rows) == (1 if "per_row" in name else 2)
