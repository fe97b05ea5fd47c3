"""What a diagnosis says of the values of kept columns."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from reflogp.data_schemas import manifest as manifests
from reflogp.pipeline.cli import app
from reflogp.pipeline.curate import run_diagnose
from tests.conftest import Silent
from tests.planted import HOSTILE, plant, row

COUNTS = {"hh": 6, None: 2, HOSTILE: 1}


@pytest.fixture(scope="module")
def some(cache, tmp_path_factory) -> Path:
    """Nine pairs from two sources and none, over three shards; each id is another."""
    sources = [source for source, count in COUNTS.items() for _ in range(count)]
    pairs = [
        row([i], [i] * (3 + i % 3), [i + 1] * 4, logps=(-1.0 - i / 9, -1.5),
            kept={"id": str(3 * i), "source": source})
        for i, source in enumerate(sources)
    ]  # fmt: skip
    order = np.random.default_rng(0).permutation(len(pairs))
    shuffled = [pairs[i] for i in order]
    return plant(tmp_path_factory.mktemp("some"), shuffled, manifests.read(cache), shards=3)


@pytest.fixture(scope="module")
def found(some):
    return run_diagnose(some, None, Silent())


def test_each_value_has_the_figures_of_its_rows(found):
    _, by_source = found.grouped
    assert by_source.column == "source"
    assert [group.value for group in by_source.groups] == list(COUNTS)  # the frequent ones first
    for group in by_source.groups:
        numbers = [i for i, value in enumerate(["hh"] * 6 + [None] * 2 + [HOSTILE])
                   if value == group.value]  # fmt: skip
        lengths = [3 + i % 3 for i in numbers]
        means = [-1.0 - i / 9 for i in numbers]
        gaps = [mean * length + 6.0 for mean, length in zip(means, lengths, strict=True)]
        unequal = [length > 4 for length in lengths if length != 4]
        assert group.rows == len(numbers)
        assert group.share == pytest.approx(len(numbers) / 9)
        assert group.share_good is None
        longer = np.mean(unequal) if unequal else None
        assert group.share_chosen_longer == (longer and pytest.approx(longer))
        assert group.accuracy_sum == pytest.approx(np.mean([gap > 0 for gap in gaps]))
        assert group.accuracy_per_token == pytest.approx(np.mean([mean > -1.5 for mean in means]))
        assert group.mean_reference_gap == pytest.approx(np.mean(gaps), abs=1e-5)


def test_a_column_with_many_values_has_no_table_and_says_so(cache, tmp_path, console, monkeypatch):
    pairs = [row([i], [i, 1], [i, 2], kept={"id": str(i)}) for i in range(21)]
    folder = plant(tmp_path, pairs, manifests.read(cache), shards=3)  # few in each shard
    diagnosis = run_diagnose(folder, None, console)
    assert diagnosis.grouped[0].groups is None
    note = next(one for one in diagnosis.findings if one.name == "columns")
    assert note.advice == "More than 20 different values, so no table: id."
    few = plant(tmp_path / "few", pairs[:20], manifests.read(cache), shards=3)
    assert len(run_diagnose(few, None, console).grouped[0].groups or ()) == 20


def test_of_unpaired_rows_the_labels_are_told(cache, tmp_path, console):
    rows = [row([i], [i, 1], None, kept={"language": "en"}) for i in range(3)]
    rows.append(row([9], None, [9, 1], kept={"language": "en"}))
    diagnosis = run_diagnose(plant(tmp_path, rows, manifests.read(cache)), None, console)
    groups = diagnosis.grouped[0].groups
    assert groups is not None
    group = groups[0]
    assert (group.value, group.rows, group.share_good) == ("en", 4, 3 / 4)
    assert group.accuracy_sum is group.mean_reference_gap is group.share_chosen_longer is None


def test_a_cache_without_kept_columns_says_how_to_have_them(cache, console):
    diagnosis = run_diagnose(cache, None, console)
    assert diagnosis.grouped == []
    note = next(one for one in diagnosis.findings if one.name == "columns")
    assert "--keep source,language: nothing is scored again" in note.advice


def test_tables_are_printed_and_on_the_page(some, tmp_path):
    page = tmp_path / "page.html"
    result = CliRunner().invoke(app, ["diagnose", str(some), "--html", str(page)])
    assert result.exit_code == 0
    said = result.stdout.splitlines()
    header = next(i for i, line in enumerate(said) if line.startswith("source "))
    columns = ["rows", "share", "longer", "preferred", "per", "token", "gap"]
    assert said[header].split() == ["source", *columns]
    assert said[header + 1].split()[:3] == ["hh", "6", "66.7%"]
    assert said[header + 2].startswith("(none)")
    text = page.read_text(encoding="utf-8")
    assert ">By source</h2>" in text
    assert '<th scope="row">hh</th><td>6</td><td>66.7%</td>' in text
    assert "<script" not in text
    printed = CliRunner().invoke(app, ["diagnose", str(some), "--json"])
    assert json.loads(printed.stdout)["grouped"][1]["groups"][0]["rows"] == 6
