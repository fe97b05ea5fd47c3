"""A sealed cache as a plain data set, read by programs that know nothing of caches."""

import functools
import http.server
import random
import shutil
import threading
from pathlib import Path
from unittest.mock import create_autospec

import datasets
import pandas as pd
import pytest
from huggingface_hub import HfApi
from transformers import AutoTokenizer
from typer.testing import CliRunner

from reflogp.data_schemas.cache_shard import SHARD_SCHEMA
from reflogp.data_schemas.errors import InputError, ReflogpError
from reflogp.pipeline.cli import app
from reflogp.pipeline.publish import run_export
from reflogp.pipeline.run import run_precompute
from reflogp.stages.export.hub import push, require_login
from reflogp.stages.precompute.config import PrecomputeConfig
from tests import caches
from tests.checkpoints import EXAMPLES, make_checkpoint
from tests.conftest import Silent
from tests.faults import processes
from tests.faults.conftest import THOROUGH
from tests.snapshots import contents, snapshot

TEXTS = ("prompt", "chosen", "rejected")


@pytest.fixture(scope="module")
def unpaired(checkpoint, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("unpaired")
    config = PrecomputeConfig(
        reference=str(checkpoint), data=str(EXAMPLES / "forms" / "unpaired.jsonl"), cache=folder,
        engine="transformers", max_length=192, verify_sample=0,
    )  # fmt: skip
    run_precompute(config, Silent())
    return folder


def test_pandas_and_datasets_read_the_rows_of_the_cache_and_their_text(
    cache, checkpoint, manifest, console, tmp_path
):
    output = tmp_path / "export"
    files = run_export(cache, "parquet", output, None, console)
    assert len(files) == len(manifest.shards) > 1
    assert sorted(output.rglob("*.parquet")) == sorted(files)
    expected = caches.rows(cache)
    loaded = datasets.load_dataset(str(output), split="train")
    assert {*loaded.column_names} == {*SHARD_SCHEMA.names, *TEXTS}
    assert loaded.remove_columns(list(TEXTS)).to_list() == expected
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    for row in loaded:
        for part in TEXTS:
            assert row[part] == tokenizer.decode(row[f"{part}_ids"])
        assert "<|im_start|>user\n" in row["prompt"]
    frame = pd.concat(map(pd.read_parquet, files))
    assert [*frame["ref_chosen_logp_sum"]] == [row["ref_chosen_logp_sum"] for row in expected]
    assert [*map(len, frame["ref_rejected_logps"])] == [len(r["rejected_ids"]) for r in expected]


def test_the_form_of_trl_has_the_columns_of_its_own_precompute(cache, console, tmp_path):
    run_export(cache, "trl", tmp_path / "export", None, console)
    loaded = datasets.load_dataset(str(tmp_path / "export"), split="train")
    assert loaded.column_names == [
        *TEXTS, *(f"{part}_ids" for part in TEXTS), "ref_chosen_logps", "ref_rejected_logps",
    ]  # fmt: skip
    for row, cached in zip(loaded, caches.rows(cache), strict=True):
        for part in TEXTS:
            assert row[f"{part}_ids"] == cached[f"{part}_ids"]
        for side in ("chosen", "rejected"):
            assert row[f"ref_{side}_logps"] == cached[f"ref_{side}_logp_sum"]


def test_the_card_says_what_was_scored_with_what_and_what_the_columns_are(
    cache, manifest, console, tmp_path
):
    run_export(cache, "parquet", tmp_path / "export", None, console)
    card = (tmp_path / "export" / "README.md").read_text(encoding="utf-8")
    for expected in (
        manifest.reference.name, manifest.inputs.weights, manifest.source.source, manifest.seal,
        "22 pairs", "24 rows read, 2 quarantined", "max_length=192", "float32",
        "| `ref_chosen_logp_sum` | double | Sum of ref_chosen_logps in nats",
    ):  # fmt: skip
        assert expected in card
    assert "With TRL" not in card


def test_an_unpaired_cache_has_one_response_a_row_and_is_nothing_for_dpo(
    unpaired, console, tmp_path
):
    run_export(unpaired, "parquet", tmp_path / "export", None, console)
    rows = datasets.load_dataset(str(tmp_path / "export"), split="train").to_list()
    assert len(rows) == len(caches.rows(unpaired)) > 0
    assert all((row["chosen"] is None) != (row["rejected"] is None) for row in rows)
    with pytest.raises(InputError, match=r"unpaired, and TRL's DPOTrainer takes pairs"):
        run_export(unpaired, "trl", tmp_path / "trl", None, console)


def test_a_damaged_shard_is_refused_and_nothing_is_left(cache, manifest, console, tmp_path):
    copy = tmp_path / "cache"
    copy.mkdir()
    for path in cache.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    last = copy / manifest.shards[-1].file
    content = bytearray(last.read_bytes())
    content[100] ^= 4
    last.write_bytes(content)
    with pytest.raises(InputError, match=rf"{last.name}: damaged: its SHA-256"):
        run_export(copy, "parquet", tmp_path / "export", None, console)
    assert [*tmp_path.iterdir()] == [copy]


def test_datasets_sees_that_an_export_has_changed(cache, unpaired, console, tmp_path):
    for source in (cache, unpaired):
        run_export(source, "parquet", tmp_path / "export", None, console)
        loaded = datasets.load_dataset(str(tmp_path / "export"), split="train")
        assert loaded["row_id"] == [row["row_id"] for row in caches.rows(source)]
        shutil.rmtree(tmp_path / "export")


def test_what_reflogp_did_not_write_in_the_output_is_never_touched(cache, console, tmp_path):
    output = tmp_path / "export"
    output.mkdir()
    (output / "mine.txt").write_text("kept")
    for overwrite in (False, True):
        before = snapshot(tmp_path)
        with pytest.raises(InputError, match=r"--output .*did not write \(mine\.txt\)"):
            run_export(cache, "parquet", output, None, console, overwrite=overwrite)
        assert snapshot(tmp_path) == before


@pytest.mark.parametrize("mine", ["mine.txt", "data/train-00000-of-00001.parquet"])
def test_an_export_is_replaced_only_when_asked_and_only_if_nothing_else_is_in_it(
    cache, console, tmp_path, mine
):
    output = tmp_path / "export"
    run_export(cache, "parquet", output, None, console)
    before = snapshot(tmp_path)
    with pytest.raises(InputError, match=r"already holds an export.*--overwrite"):
        run_export(cache, "trl", output, None, console)
    (output / mine).write_text("mine")
    with pytest.raises(InputError, match=rf"did not write {mine}"):
        run_export(cache, "trl", output, None, console, overwrite=True)
    (output / mine).unlink()
    assert snapshot(tmp_path) == before
    run_export(cache, "trl", output, None, console, overwrite=True)
    assert (
        datasets.load_dataset(str(output), split="train").column_names[-1] == "ref_rejected_logps"
    )
    assert [*tmp_path.iterdir()] == [output]


def test_an_output_that_is_an_input_or_lies_in_one_is_refused(cache, checkpoint, console, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(cache)
    for output in (cache, cache / "export", checkpoint / "export", link / "export", cache.parent):
        before = snapshot(cache.parent) | snapshot(checkpoint)
        with pytest.raises(InputError, match="--output"):
            run_export(cache, "parquet", output, None, console, overwrite=True)
        assert snapshot(cache.parent) | snapshot(checkpoint) == before


def test_a_run_that_fails_leaves_the_earlier_export_as_it_was(cache, manifest, console, tmp_path):
    copy, output = tmp_path / "cache", tmp_path / "export"
    shutil.copytree(cache, copy)
    run_export(copy, "parquet", output, None, console)
    (copy / manifest.shards[-1].file).write_bytes(b"damaged")
    before = snapshot(tmp_path)
    with pytest.raises(InputError, match="damaged"):
        run_export(copy, "trl", output, None, console, overwrite=True)
    assert snapshot(tmp_path) == before


@pytest.mark.slow
def test_killed_at_any_write_the_earlier_export_or_the_new_one_is_whole(cache, console, tmp_path):
    mine = tmp_path / ".export.0123456789ab.partial"
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    output = tmp_path / "export"
    run_export(cache, "parquet", output, None, console)
    run_export(cache, "trl", tmp_path / "new", None, console)
    shutil.copytree(output, tmp_path / "old")
    wholes = [contents(output), contents(tmp_path / "new")]
    command = functools.partial(_replace, cache, output)
    writes = len(processes.writes(command, tmp_path))
    moments = [(number, moment) for number in range(writes) for moment in ("before", "after")]
    for number, moment in moments if THOROUGH else random.Random(0).sample(moments, 4):
        shutil.rmtree(output)
        shutil.copytree(tmp_path / "old", output)
        assert processes.kill_at(command, tmp_path, number, moment), (number, moment)
        assert contents(output) in wholes, (number, moment)
    processes.run(command)
    assert contents(output) == wholes[1]
    assert {path.name for path in tmp_path.iterdir()} == {mine.name, "export", "new", "old"}
    assert (mine / "notes.txt").read_text() == "mine"


def _replace(cache: Path, output: Path) -> None:
    run_export(cache, "trl", output, None, Silent(), overwrite=True)


def test_another_tokenizer_is_refused(cache, console, tmp_path):
    other = make_checkpoint(tmp_path / "other", vocabulary=600)
    with pytest.raises(InputError, match="its tokenizer is not the one that the cache was made"):
        run_export(cache, "trl", tmp_path / "export", str(other), console)


@pytest.mark.parametrize("arguments", [["--format", "csv", "--output", "x"], []])
def test_another_form_and_no_output_are_refused(cache, arguments):
    assert CliRunner().invoke(app, ["export", str(cache), *arguments]).exit_code == 2


@pytest.mark.parametrize("name", ["name", "a/b/c", "own er/name", "owner/na--me", "/x"])
def test_a_name_that_the_hub_does_not_take_is_refused_before_it_is_asked(name):
    with pytest.raises(InputError, match="--output"):
        require_login(name, HfApi(endpoint="http://127.0.0.1:9", token="hf_none"))


def test_a_hub_out_of_reach_is_said_with_another_way():
    with pytest.raises(ReflogpError, match=r"cannot be reached.*--format parquet.*hf upload"):
        require_login("owner/name", HfApi(endpoint="http://127.0.0.1:9", token="hf_none"))


def test_nobody_logged_in_is_said_with_what_to_run(monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    with pytest.raises(InputError, match=r"nobody is logged in.*`hf auth login`.*HF_TOKEN"):
        require_login("owner/name", HfApi(endpoint="http://127.0.0.1:9"))


@pytest.mark.parametrize(
    ("status", "error", "message"),
    [(401, InputError, "refuses"), (403, InputError, "refuses"), (400, ReflogpError, "failed")],
)
def test_what_the_hub_answers_is_told_by_its_status(status, error, message):
    class Refusing(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        api = HfApi(endpoint=f"http://127.0.0.1:{server.server_port}", token="hf_none")
        with pytest.raises(error, match=rf"owner/name: the hub {message} \({status}\)"):
            require_login("owner/name", api)
        server.shutdown()


@pytest.mark.parametrize("public", [False, True])
def test_a_push_asks_for_a_data_set_that_is_private_and_replaces_its_rows(tmp_path, public):
    api = create_autospec(HfApi, instance=True)  # refuses arguments that the real one does not take
    api.create_repo.return_value = "https://hub/datasets/owner/name"
    assert push(tmp_path, "owner/name", api, public=public) == "https://hub/datasets/owner/name"
    made, sent = api.create_repo.call_args, api.upload_folder.call_args.kwargs
    assert made.args == ("owner/name",)
    assert made.kwargs == {"repo_type": "dataset", "private": not public, "exist_ok": True}
    assert (sent["repo_id"], sent["repo_type"]) == ("owner/name", "dataset")
    assert (sent["folder_path"], sent["delete_patterns"]) == (tmp_path, "data/*")
