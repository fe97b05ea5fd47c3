"""A sealed cache as a plain data set, read by programs that know nothing of caches."""

import http.server
import shutil
import threading
from pathlib import Path
from unittest.mock import create_autospec

import datasets
import pandas as pd  # type: ignore[import-untyped]
import pytest
from huggingface_hub import HfApi
from transformers import AutoTokenizer
from typer.testing import CliRunner

from data_schemas.cache_shard import SHARD_SCHEMA
from data_schemas.errors import InputError, ReflogpError
from pipeline.cli import app
from pipeline.export import run_export
from pipeline.run import run_precompute
from stages.export.hub import push, require_login
from stages.precompute.config import PrecomputeConfig
from tests import caches
from tests.checkpoints import EXAMPLES, make_checkpoint
from tests.conftest import Silent

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
        "22 pairs", "2 of 24 rows set aside", "max_length=192", "float32",
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


def test_what_stands_in_the_output_is_never_touched(cache, console, tmp_path):
    (tmp_path / "mine.txt").write_text("kept")
    with pytest.raises(InputError, match=r"--output .*: there is something already"):
        run_export(cache, "parquet", tmp_path, None, console)
    assert [*tmp_path.iterdir()] == [tmp_path / "mine.txt"]


def test_what_a_killed_run_left_is_cleared(cache, console, tmp_path):
    (tmp_path / ".export.partial" / "data").mkdir(parents=True)
    (tmp_path / ".export.partial" / "data" / "half.parquet").write_bytes(b"PAR1")
    run_export(cache, "trl", tmp_path / "export", None, console)
    assert [*tmp_path.iterdir()] == [tmp_path / "export"]
    assert not (tmp_path / "export" / "data" / "half.parquet").exists()


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
