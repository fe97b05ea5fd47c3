"""What does not end, or expands without end, is refused by name in bounded memory."""

import gzip
import resource
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reflogp.data_schemas.errors import InputError
from reflogp.data_schemas.quarantine import Reason
from reflogp.stages.cache.quarantine_file import RowFault
from reflogp.stages.precompute.read import bounded
from reflogp.stages.precompute.read.preferences import Preference
from reflogp.stages.precompute.read.sources import read_source
from reflogp.stages.precompute.tokens import chat_template
from tests.precompute.conftest import (
    PAIR,
    assistant,
    save,
    tokenizer_of,
    trained_tokenizer,
    user,
)

CHAT = Preference(0, [user("Hi.")], [assistant("Ho.")], [assistant("Ha.")])


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.csv.gz", "a.jsonl.zst", "a.tsv"])
def test_an_enormous_line_is_refused_in_bounded_memory(name, tmp_path):
    before = peak_mib()
    path = tmp_path / name
    ways = {"gz": partial(gzip.open, mode="wb", compresslevel=1), "zst": pa.output_stream}
    with ways.get(name.rpartition(".")[2], partial(Path.open, mode="wb"))(path) as to:
        to.write(b'{"prompt": "')
        for _ in range(200):
            to.write(b"a" * (1 << 20))
    with pytest.raises(InputError, match="line 1 is longer than 64 MiB"):
        list(read_source(str(path)))
    assert peak_mib() - before < 400


@pytest.mark.parametrize(
    "name", ["a.jsonl.gz", "a.json.gz", "a.csv.gz", "a.jsonl.zst", "a.csv.zst"]
)
def test_a_file_that_expands_far_beyond_what_text_does_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.setattr(bounded, "_LARGE", 1 << 20)
    path = save(tmp_path / name, [PAIR | {"prompt": "a" * 1_000}] * 10_000)
    with pytest.raises(InputError, match="expands to more than 100 times its size"):
        list(read_source(str(path)))
    few = save(tmp_path / f"few.{name}", [PAIR] * 100)
    assert len(list(read_source(str(few)))) == 100


def test_row_groups_that_expand_are_refused_before_they_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(bounded, "_LARGE", 1 << 20)
    table = pa.table({name: ["a" * 100_000] * 100 for name in PAIR})
    pq.write_table(table, tmp_path / "a.parquet", use_dictionary=False, compression="zstd")
    with pytest.raises(InputError, match="expands to more than 100 times its size"):
        list(read_source(str(tmp_path / "a.parquet")))


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}",
    ],
)
def test_a_template_that_does_not_end_is_refused(template, monkeypatch):
    monkeypatch.setattr(chat_template, "_SECONDS", 0.2)
    tokenizer = tokenizer_of(trained_tokenizer(chat_template=template))
    with pytest.raises(InputError, match="the chat template does not end"):
        tokenizer(CHAT)


def test_a_template_that_writes_without_end_is_refused():
    tokenizer = tokenizer_of(trained_tokenizer(chat_template="{{ 'ab' * 9000000 }}"))
    with pytest.raises(InputError, match="the chat template writes 18,000,000 characters"):
        tokenizer(CHAT)


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(10**9) %}x{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ messages[0].__class__.__mro__ }}",
    ],
)
def test_what_the_sandbox_stops_is_the_rows_fault(template):
    with pytest.raises(RowFault) as caught:
        tokenizer_of(trained_tokenizer(chat_template=template))(CHAT)
    assert caught.value.reason in {Reason.TEMPLATE_FAILED, Reason.EMPTY_PROMPT}
