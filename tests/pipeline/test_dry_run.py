"""A dry run shows what stage one would make of the first rows, and leaves nothing behind."""

import json
import re
import shutil
import subprocess
import sys

import pytest

GOOD = {"prompt": "Say a.", "completion": "a", "label": True}


@pytest.fixture
def dry(checkpoint, tmp_path, command):
    """Call `reflogp precompute --dry-run` on rows; a text is a line as it is."""

    def call(lines, *options):
        text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        (tmp_path / "data.jsonl").write_text("\n".join(text) + "\n", encoding="utf-8")
        done = command(
            "precompute", "--reference", checkpoint, "--data", tmp_path / "data.jsonl",
            "--cache", tmp_path / "cache", "--max-length", 192, "--dry-run", *options,
        )  # fmt: skip
        assert [path.name for path in tmp_path.iterdir()] == ["data.jsonl"]
        return done

    return call


def test_it_shows_the_rows_that_the_cache_then_has(
    cache, checkpoint, few_preferences, tmp_path, command
):
    folder = tmp_path / "cache"
    done = command(
        "precompute", "--reference", checkpoint, "--data", few_preferences, "--cache", folder,
        "--max-length", 192, "--dry-run",
    )  # fmt: skip
    assert done.code == 0
    scored = command("inspect", cache, "--rows", 3).stdout
    quarantined = command("inspect", cache, "--quarantine").stdout
    assert "log-prob" in scored
    assert done.stdout == quarantined + re.sub(r", log-prob \S+ nats \(\S+ per token\)", "", scored)
    assert "columns: used: prompt, chosen, rejected; not used: category, language" in done.stderr
    assert "read 24 rows as prompt+chosen+rejected, 22 to score. Nothing" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_it_needs_no_weights_and_starts_no_engine(checkpoint, few_preferences, tmp_path):
    reference = tmp_path / "reference"
    shutil.copytree(checkpoint, reference, ignore=shutil.ignore_patterns("*.safetensors"))
    code = """
import sys
from reflogp.pipeline.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code
assert not [name for name in sys.modules if name.startswith("vllm")]
"""
    given = ["precompute", "--reference", reference, "--data", few_preferences, "--engine", "vllm",
             "--cache", tmp_path / "cache", "--max-length", "192", "--dry-run"]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, given)],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "row 0, " in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["reference"]


def test_it_reads_the_first_hundred_rows_only(dry):
    pair = {"prompt": "Say a.", "chosen": "a", "rejected": "b"}
    done = dry([pair] * 99 + ["{broken"] + [pair, "{also broken"])
    assert done.code == 0
    assert "read 100 rows as prompt+chosen+rejected, 99 to score" in done.stderr
    assert "warning: 99 rows: the prompt is plain text" in done.stderr
    assert re.findall("^[a-z_]+: .*", done.stdout, re.MULTILINE)[0] == "broken_json: 1 row"
    assert "data.jsonl, line 100: broken JSON" in done.stdout


def test_bad_rows_that_are_all_quarantined_are_an_error_unless_more_rows_may_follow(dry):
    bad = GOOD | {"completion": "", "label": False}
    assert dry([GOOD] * 99 + [bad]).code == 0
    done = dry([GOOD] * 98 + [bad])
    assert done.code == 2
    assert "label" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("lines", "options", "message"),
    [
        (["{broken", "{broken"], [], "none of the first 2 rows can be read"),
        ([{"prompt": "a", "chosen": "b", "rejected": "b"}], [],
         "none of the first 1 rows can be used. Fix the data"),
        ([{"text": "a"}], [], "text"),
        ([GOOD], ["--max-length", 4096], "512 positions"),
        ([GOOD], ["--columns", "prompt=question"], "question"),
        ([GOOD], ["--engine", "vlm"], "--engine"),
        ([GOOD], ["--share", "3/2"], "--share"),
    ],
)  # fmt: skip
def test_it_gives_the_errors_that_precompute_would_give(dry, lines, options, message):
    done = dry(lines, *options)
    assert done.code == 2
    assert message in done.stderr.splitlines()[-1]


def test_it_refuses_a_folder_that_is_not_a_caches(checkpoint, few_preferences, tmp_path, command):
    (tmp_path / "notes.txt").write_text("mine")
    done = command(
        "precompute", "--reference", checkpoint, "--data", few_preferences, "--cache", tmp_path,
        "--dry-run",
    )  # fmt: skip
    assert done.code == 2
    assert f"--cache {tmp_path}" in done.stderr
