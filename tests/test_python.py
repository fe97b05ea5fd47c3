"""`import reflogp`: what docs/python.md says to type, and what a cache and a run are as objects."""

import json
import logging
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from transformers.utils import logging as transformers_logging

import reflogp
from reflogp.data_schemas import manifest as manifests
from reflogp.data_schemas.cache_shard import SHARD_SCHEMA
from reflogp.pipeline.cli import main
from reflogp.stages.train.losses.registry import EVERY_LOSS
from tests import caches
from tests.planted import plant, row

PAGE = Path(__file__).parents[1] / "docs" / "python.md"
pytestmark = pytest.mark.usefixtures("cache_of_datasets")
TOKENS = [field.name for field in SHARD_SCHEMA if field.name.endswith(("_ids", "_logps"))]


@pytest.fixture
def copied(cache, tmp_path) -> Path:
    """A cache to do harm to."""
    return Path(shutil.copytree(cache, tmp_path / "copied"))


def first_shard(folder: Path) -> Path:
    return folder / manifests.read(folder).shards[0].file


def damage(shard: Path) -> None:
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)


def plain(found: dict[str, Any]) -> dict[str, Any]:
    """A row with lists in place of arrays, as Parquet gives it."""
    return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in found.items()}


def test_what_the_page_says_to_type_works(checkpoint, few_preferences, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(checkpoint, "MODEL")
    lines = few_preferences.read_text(encoding="utf-8").splitlines(keepends=True)
    Path("preferences.jsonl").write_text("".join(lines[:8]), encoding="utf-8")
    code = "\n".join(re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL))
    for here, there in (
        ("max_length=512", "max_length=512, engine='transformers'"),
        ('DPOConfig("trl-model")', "DPOConfig('trl-model', use_cpu=True, max_steps=1)"),
    ):
        assert here in code
        code = code.replace(here, there)
    names: dict[str, Any] = {}
    exec(code, names)  # noqa: S102
    assert names["losses"] == pytest.approx([step["loss"] for step in names["run"].metrics])
    assert names["trainer"].state.global_step > 0
    assert len(names["parts"]["test"]) == len(names["table"]) // 4
    assert names["loss"].item() == pytest.approx(np.log1p(np.exp(-0.2)))
    assert not Path("other").exists()


def test_rows_are_those_of_the_shards_whichever_way_they_are_asked_for(cache):
    opened, rows = reflogp.open(cache), caches.rows(cache)
    assert len(opened) == len(rows)
    assert [plain(found) for found in opened] == rows
    assert [plain(found) for found in opened[:]] == rows
    assert [plain(found) for found in opened[-3:1:-2]] == rows[-3:1:-2]
    assert plain(opened[-1]) == rows[-1]
    assert plain(opened[np.int64(2)]) == rows[2]
    for outside in (len(rows), -len(rows) - 1):
        with pytest.raises(IndexError, match=f"row {outside} of a cache of {len(rows)} rows"):
            opened[outside]
    assert opened[0]["chosen_ids"].dtype == np.int32
    assert opened[0]["ref_chosen_logps"].dtype == np.float32


def test_a_change_to_a_row_stays_with_whoever_made_it(cache):
    opened = reflogp.open(cache)
    opened[0]["ref_chosen_logps"][:] = 0
    assert opened[0]["ref_chosen_logps"].sum() < -1


def test_a_data_set_and_a_data_frame_hold_the_same_rows(cache, cache_of_datasets):
    opened, rows = reflogp.open(cache), caches.rows(cache)
    data = opened.to_dataset()
    assert data.to_list() == rows
    assert [Path(file["filename"]).parent for file in data.cache_files] == [
        cache_of_datasets / "reflogp"
    ]
    frame = opened.to_pandas()
    assert list(frame.columns) == SHARD_SCHEMA.names
    for name in TOKENS:
        for found, expected in zip(frame[name], rows, strict=True):
            assert (None if found is None else found.tolist()) == expected[name]
    assert frame["ref_chosen_logps"][0].dtype == np.float32
    assert frame["source_row"].tolist() == [expected["source_row"] for expected in rows]


def test_what_unpaired_rows_have_not_is_none(unpaired, tmp_path):
    opened = reflogp.open(unpaired)
    rows = caches.rows(unpaired)
    assert [plain(found) for found in opened] == rows
    assert opened.to_dataset().to_list() == rows
    assert any(found["chosen_ids"] is None for found in opened.to_pandas().to_dict("records"))
    assert "unpaired rows" in repr(opened)


def test_masks_are_arrays_in_rows_and_frames_and_lists_in_a_data_set(manifest, tmp_path):
    marks = [True, False, True]
    given = [row([1], [2, 3, 4], [5], masks=(marks, None, None)), row([6], [7], [8])]
    opened = reflogp.open(plant(tmp_path, given, manifest))
    rows = caches.rows(tmp_path)
    assert [plain(found) for found in opened] == opened.to_dataset().to_list() == rows
    for masks in ([found["chosen_mask"] for found in opened], opened.to_pandas()["chosen_mask"]):
        assert masks[0].dtype == bool
        assert masks[0].tolist() == marks
        assert masks[1] is None
    assert all(found["rejected_mask"] is None for found in opened)


def test_a_cache_is_opened_without_its_shards_and_says_what_it_is(copied):
    for shard in copied.glob("shard-*"):
        shard.unlink()
    opened = reflogp.open(str(copied))
    assert len(opened) == opened.manifest.counts.rows
    assert f"{len(opened)} pairs, {opened.manifest.counts.tokens:,} tokens" in repr(opened)
    assert opened.manifest.reference.name in repr(opened)
    with pytest.raises(reflogp.InputError, match="the file is missing"):
        opened[0]


def test_what_is_not_sealed_or_not_whole_is_refused(copied, tmp_path, cache_of_datasets):
    damage(first_shard(copied))
    opened = reflogp.open(copied)
    assert plain(opened[-1])["row_id"]  # another shard
    for use in (lambda: opened[0], lambda: [*opened], opened.to_dataset, opened.to_pandas):
        with pytest.raises(reflogp.InputError, match="damaged"):
            use()
    assert not [*cache_of_datasets.rglob("*.arrow")]
    (copied / "manifest.json").unlink()
    with pytest.raises(reflogp.InputError, match="is not sealed"):
        reflogp.open(copied)
    with pytest.raises(reflogp.InputError, match="does not exist"):
        reflogp.open(tmp_path / "nowhere")


def test_a_few_shards_stay_in_memory_and_no_more(manifest, tmp_path):
    rows = [row([1, 2], [3, number], [4]) for number in range(6)]
    folder = tmp_path / "planted"
    folder.mkdir()
    opened = reflogp.open(plant(folder, rows, manifest, shards=6))
    for number in (0, 1, 2, 3):
        opened[number]
    first_shard(folder).unlink()
    assert opened[0]["chosen_ids"].tolist() == [3, 0]
    for number in (1, 2, 3, 4):
        opened[number]
    with pytest.raises(reflogp.InputError):
        opened[0]


def test_a_data_set_is_written_once(copied):
    rows = reflogp.open(copied).to_dataset().to_list()
    damage(first_shard(copied))
    assert reflogp.open(copied).to_dataset().to_list() == rows


@pytest.fixture
def options(checkpoint, few_preferences, tmp_path) -> dict[str, Any]:
    return {
        "reference": checkpoint, "data": few_preferences, "cache": tmp_path / "made",
        "engine": "transformers", "max_length": 192, "columns": {}, "verify_sample": 0,
    }  # fmt: skip


def run_command(monkeypatch, capsys, *arguments: str) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["reflogp", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0), capsys.readouterr().err


def test_the_functions_do_what_the_commands_do(
    options, tmp_path, monkeypatch, capsys, caplog, manifest
):
    verbosity = transformers_logging.get_verbosity()
    with caplog.at_level(logging.INFO, "reflogp"):
        made = reflogp.precompute(**options)
    assert not capsys.readouterr().err.count("scoring")
    assert any("prompt_too_long 2" in r.message for r in caplog.records if r.levelname == "WARNING")
    assert [plain(found) for found in made] == caches.rows(options["cache"])
    again = reflogp.precompute(**options, progress=True)
    assert "up to date" in capsys.readouterr().err
    assert again.manifest == made.manifest
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in options.items() if value]
    _, said = run_command(monkeypatch, capsys, "precompute", *arguments, "--verify-sample=0")
    assert "up to date" in said

    run = reflogp.train(cache=made, output=tmp_path / "model", max_steps=2, loss={"dpo": 1})
    assert run.output == tmp_path / "model"
    assert run.record.steps == 2
    lines = (run.output / "metrics.jsonl").read_text().splitlines()
    assert run.metrics == [json.loads(line) for line in lines]
    assert pd.DataFrame(run.metrics)["loss"].notna().sum() == 2
    assert "2 steps" in repr(run)
    _, said = run_command(
        monkeypatch, capsys, "train", f"--cache={options['cache']}", f"--output={run.output}",
        "--max-steps=2", "--loss=dpo=1",
    )  # fmt: skip
    assert "up to date" in said
    assert transformers_logging.get_verbosity() == verbosity


def test_options_are_refused_with_the_words_of_the_command(options, monkeypatch, capsys, tmp_path):
    with pytest.raises(reflogp.InputError, match=r"no option 'bta'; did you mean 'beta'\?"):
        reflogp.train(cache="cache", output="model", bta=0.1)
    with pytest.raises(reflogp.InputError, match="no option 'beta'; it belongs under 'train'"):
        reflogp.precompute(**options, beta=0.1)
    with pytest.raises(reflogp.InputError, match="share makes one part of a cache"):
        reflogp.precompute(**options, share="1/2")
    code, said = run_command(monkeypatch, capsys, "train", "--cache=x", "--output=y", "--beta=-1")
    with pytest.raises(reflogp.InputError) as refused:
        reflogp.train(cache="x", output="y", beta=-1.0)
    assert said == f"error: {refused.value}\n"
    assert (code, refused.value.exit_code) == (2, 2)
    assert isinstance(refused.value, reflogp.ReflogpError)
    assert not options["cache"].exists()


def test_every_loss_is_there_under_its_name():
    for name, loss in EVERY_LOSS.items():
        assert getattr(reflogp.losses, name) is loss.function
    others = {"PairLogps", "UnpairedLogps"}
    assert set(reflogp.losses.__all__) == EVERY_LOSS.keys() | others


def test_every_name_of_the_api_is_found_and_no_other():
    assert dir(reflogp) == sorted(reflogp.__all__)
    for name in reflogp.__all__:
        assert getattr(reflogp, name) is getattr(reflogp, name)
    with pytest.raises(AttributeError, match="'reflogp' has no attribute 'precomput'"):
        reflogp.precomput  # type: ignore[attr-defined]  # noqa: B018
