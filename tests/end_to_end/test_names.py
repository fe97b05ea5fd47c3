"""Names that are no plain words: colons, patterns, quotes, lines, letters, escapes, markup."""

import json
import os
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reflogp.pipeline.console import visible

ODD = [
    "c:d [e]?*#%", "new\nline 'q\" é&<b>", "-dash \x1b[2J\u202e", "a::b :smile: [red]", "n" * 240,
]  # fmt: skip
NAMES = [
    "-a::b [c]?*#%\n'q\" é&<b> \x1b[2J\u202e:smile: [red]" + "n" * 180,
    *(pytest.param(name, marks=pytest.mark.slow) for name in ODD),
]


@pytest.fixture
def reflogp(command):
    """The command ends well, and shows nothing that a terminal acts on."""

    def call(*arguments: str) -> str:
        done = command(*arguments)
        assert not done.code, done.stderr
        assert all(letter.isprintable() or letter == "\n" for letter in done.stdout + done.stderr)
        return str(done.stdout)

    return call


@pytest.mark.parametrize("name", NAMES)
def test_a_name_works_for_every_input_and_output(
    name, checkpoint, few_preferences, tmp_path, monkeypatch, reflogp
):
    monkeypatch.chdir(tmp_path)
    rows = [json.loads(line) for line in few_preferences.read_text().splitlines()[:12]]
    os.mkdir("data")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data" / f"{name}.parquet")
    for folder in ("model", "cache", "less", "export", "run", "page"):
        os.mkdir(folder)
    shutil.copytree(checkpoint, tmp_path / "model" / name)
    reflogp(
        "precompute", f"--reference=model/{name}", f"--data=data/{name}.parquet",
        f"--cache=cache/{name}", "--engine=transformers", "--max-length=192",
        "--truncate=response", "--verify-sample=2",
    )  # fmt: skip
    shutil.copytree(Path("cache") / name, name)  # and with no folder before it
    cache = f"./{name}" if name.startswith("-") else name
    assert json.loads(reflogp("inspect", cache, "--json"))["counts"]["rows"]
    reflogp("verify", cache)
    page = Path("page") / f"{name[:200]}.html"
    reflogp("diagnose", cache, f"--html={page}", f"--svg=page/{name}")
    assert "<script" not in page.read_text(encoding="utf-8")
    reflogp("filter", cache, f"--output=less/{name}", "--drop-duplicates")
    reflogp("export", cache, f"--output=export/{name}")
    assert pq.read_table(next((tmp_path / "export" / name).rglob("*.parquet"))).num_rows
    settings = Path(f"{name[:200]}.yaml")
    settings.write_text("train: {max_steps: 2, batch_size: 2, accumulation: 1, warmup: 0}\n")
    reflogp("train", f"--config={settings}", f"--cache={name}", f"--output=run/{name}")
    assert visible(f"{name}/report.html") in reflogp("report", f"run/{name}")
