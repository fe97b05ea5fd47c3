"""Names that are no plain words: colons, patterns, quotes, lines, letters, escapes, markup."""

import json
import os
import shutil
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reflogp.pipeline.cli import main
from reflogp.pipeline.console import visible

NAMES = [
    "c:d [e]?*#%", "new\nline 'q\" é&<b>", "-dash \x1b[2J\u202e", "a::b :smile: [red]", "n" * 240,
]  # fmt: skip


@pytest.fixture
def reflogp(monkeypatch, capsys):
    """The command, in this process: it ends well, and shows nothing that a terminal acts on."""

    def call(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["reflogp", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capsys.readouterr()
        assert not end.value.code, err
        assert all(letter.isprintable() or letter == "\n" for letter in out + err)
        return str(out)

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
