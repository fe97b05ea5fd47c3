"""A cache in a bucket is what it is on disk: made, resumed, shared, verified, trained on."""

import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from fsspec.registry import _registry as fsspec_registry

from reflogp.data_schemas.cache_shard import read_shard
from reflogp.pipeline import cli
from reflogp.pipeline.run import (
    run_integrity,
    run_merge,
    run_precompute,
    run_share,
    run_train,
    run_verify,
)
from reflogp.stages.cache.write_shard import write_shard
from reflogp.stages.precompute.score import worker
from reflogp.stages.precompute.score.engines.transformers import TransformersScorer
from reflogp.stages.train.config import TrainConfig
from tests.caches import file_names, rows_by_id
from tests.checkpoints import EXAMPLES
from tests.storage.conftest import keys

REFLOGP = Path(sys.executable).with_name("reflogp")


def shards(s3) -> list[str]:
    return [key for key in keys(s3) if key.startswith("shard-")]


def command(capsys, monkeypatch, *arguments: object) -> tuple[int, str, str]:
    """The command, in this process: exit code, stdout and stderr."""
    monkeypatch.setattr(sys, "argv", ["reflogp", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    shown = capsys.readouterr()
    return int(ended.value.code or 0), shown.out, shown.err


def test_a_cache_in_a_bucket_has_the_rows_of_one_on_disk(settings, s3, console, local_rows):
    manifest = run_precompute(settings, console)
    assert rows_by_id(settings.cache) == local_rows
    names = [shard.file for shard in manifest.shards]
    assert len(names) == 5
    # plan, accounts and temporary names are gone
    assert keys(s3) == file_names(manifest)
    assert run_integrity(settings.cache, console) == []
    assert run_precompute(settings, console) == manifest
    assert "up to date: s3://bucket/some/cache" in console.said[-1]


def test_a_run_that_died_goes_on_where_it_was(settings, s3, console, local_rows, monkeypatch):
    def dying(table, path):
        if len(shards(s3)) == 2:
            raise KeyboardInterrupt
        write_shard(table, path)

    with monkeypatch.context() as patched:
        patched.setattr(worker, "write_shard", dying)
        with pytest.raises(KeyboardInterrupt):
            run_precompute(settings, console)
    assert len(shards(s3)) == 2
    assert "manifest.json" not in keys(s3)
    manifest = run_precompute(settings, console)
    assert any("2 of 5 shards are finished" in line for line in console.said)
    assert [job.shards for job in manifest.jobs] == [2, 3]
    assert rows_by_id(settings.cache) == local_rows


def test_shares_meet_in_a_bucket_and_merge_seals_it(settings, s3, console, local_rows, tmp_path):
    def share(number: int, **changes):
        run = settings.model_copy(update={"share": f"{number}/3", **changes})
        return run_share(run, console)

    assert share(2) is None
    assert share(3) is None
    assert "manifest.json" not in keys(s3)
    # the first share is done on another machine, and comes in behind the back of this process
    assert share(1, cache=tmp_path / "elsewhere") is None
    for path in (tmp_path / "elsewhere").glob("shard-*"):
        s3.upload_file(str(path), "bucket", f"some/cache/{path.name}")
    manifest = run_merge(settings.cache, console)
    assert len(manifest.jobs) == 2
    assert rows_by_id(settings.cache) == local_rows
    assert keys(s3) == file_names(manifest)


def test_only_rows_that_are_new_are_scored(settings, s3, console, tmp_path, monkeypatch):
    lines = (EXAMPLES / "preferences.jsonl").read_text(encoding="utf-8").splitlines()
    settings = settings.model_copy(update={"data": str(tmp_path / "data.jsonl")})
    asked = []
    score = TransformersScorer.score

    def counting(self, requests, *advance):
        asked.extend(requests)
        return score(self, requests, *advance)

    monkeypatch.setattr(TransformersScorer, "score", counting)
    Path(settings.data).write_text("\n".join(lines[:8]) + "\n", encoding="utf-8")
    run_precompute(settings, console)
    before = rows_by_id(settings.cache)
    asked.clear()
    Path(settings.data).write_text("\n".join(lines[:12]) + "\n", encoding="utf-8")
    manifest = run_precompute(settings, console)
    after = rows_by_id(settings.cache)
    assert len(asked) == 2 * (len(after) - len(before)) > 0
    assert before.items() <= after.items()
    # the cache that was replaced is gone
    assert shards(s3) == [shard.file for shard in manifest.shards]


def test_what_others_do_in_the_bucket_is_seen_at_once(settings, s3, console, local_rows):
    manifest = run_precompute(settings, console)
    gone, flipped = manifest.shards[1].file, manifest.shards[3].file
    content = bytearray(s3.get_object(Bucket="bucket", Key=f"some/cache/{flipped}")["Body"].read())
    content[len(content) // 2] ^= 1
    s3.put_object(Bucket="bucket", Key=f"some/cache/{flipped}", Body=bytes(content))
    s3.delete_object(Bucket="bucket", Key=f"some/cache/{gone}")
    found = run_integrity(settings.cache, console)
    assert [gone in found[0], flipped in found[1], len(found)] == [True, True, 2], found
    s3.delete_object(Bucket="bucket", Key=f"some/cache/{flipped}")
    run_precompute(settings, console)
    assert any(f"{gone} (damaged), {flipped} (damaged)" in line for line in console.said)
    assert any("3 of 5 shards are finished" in line for line in console.said)
    assert rows_by_id(settings.cache) == local_rows


def test_a_sample_is_verified_and_a_policy_trained(settings, s3, console, tmp_path):
    manifest = run_precompute(settings.model_copy(update={"verify_sample": 2}), console)
    assert manifest.verification is not None
    assert run_verify(settings.cache, 4, None, 0, console).passed
    train = TrainConfig(
        cache="s3://bucket/some/cache/", output=tmp_path, lora_r=4, max_steps=2, accumulation=1
    )
    record = run_train(train, console)
    assert record.cache == "s3://bucket/some/cache"
    assert record.first.loss == pytest.approx(0.693147, abs=1e-4)
    run_train(train, console)
    assert "stage two: up to date" in console.said[-1]


@pytest.mark.slow
def test_the_command_is_killed_and_goes_on(settings, s3, proxy, local_rows, capsys, monkeypatch):
    """SIGKILL while the third shard is on its way; then two engines, one of which meets a fault."""
    arguments = [
        "precompute", "--reference", settings.reference, "--data", settings.data, "--cache",
        "s3://bucket/some/cache", "--engine", "transformers", "--max-length", "192",
        "--shard-tokens", "1500", "--verify-sample", "0",
    ]  # fmt: skip
    proxy.fail("stall", "PUT", "00002.parquet")
    process = subprocess.Popen([REFLOGP, *arguments], stderr=subprocess.DEVNULL)
    assert proxy.happened.wait(120)
    process.kill()
    process.wait()
    proxy.fail("503", "PUT", "00003.parquet", times=1)
    assert [key[-13:] for key in shards(s3)] == ["00000.parquet", "00001.parquet"]
    done = subprocess.run(
        [REFLOGP, *arguments, "--engines", "2"], capture_output=True, text=True, check=False,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "2 of 5 shards are finished from an earlier run" in done.stderr
    assert "scoring with 2 engines" in done.stderr
    assert proxy.failed == 1
    assert rows_by_id(settings.cache) == local_rows
    code, shown, _ = command(capsys, monkeypatch, "inspect", "s3://bucket/some/cache/")
    assert code == 0
    assert "22 from 24 rows" in shown
    assert command(capsys, monkeypatch, "verify", "s3://bucket/some/cache")[0] == 0


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("s3://no-such-bucket/x", "no such bucket"),
        ("s3://", "names no bucket"),
        ("s3:/bucket/x", "two slashes"),
        ("nope://bucket/x", "nope:// URLs cannot be used"),
        ("gs://bucket/x", "such as gcsfs"),
        ("s3://bucket/x", "s3://bucket/x: the cache does not exist"),
    ],
)
def test_a_url_that_is_wrong_gives_one_message(s3, capsys, monkeypatch, url, expected):
    code, _, shown = command(capsys, monkeypatch, "inspect", url)
    assert (code, len(shown.splitlines())) == (2, 1), shown
    assert expected in shown


def test_without_s3fs_the_message_says_what_to_install(s3, capsys, monkeypatch, settings):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(fsspec_registry, "s3", raising=False)
    code, _, shown = command(capsys, monkeypatch, "inspect", "s3://bucket/x")
    assert (code, len(shown.splitlines())) == (2, 1), shown
    assert "install reflogp[s3]" in shown


def want_credentials_after(server: str, requests: str) -> None:
    """The server refuses strangers after so many requests."""
    headers = {"Content-Type": "text/plain"}
    url = f"{server}/moto-api/reset-auth"
    request = urllib.request.Request(url, requests.encode(), headers)  # noqa: S310
    urllib.request.urlopen(request).close()  # noqa: S310


def precompute(settings) -> list[str]:
    return ["precompute", "--reference", settings.reference, "--data", settings.data,
            "--cache", str(settings.cache), "--engine", "transformers"]  # fmt: skip


def test_credentials_that_are_refused_or_missing_give_one_message(
    settings, s3, server, use, capsys, monkeypatch
):
    want_credentials_after(server, "0")
    try:
        code, _, shown = command(capsys, monkeypatch, *precompute(settings))
    finally:
        want_credentials_after(server, "inf")
    assert (code, len(shown.splitlines())) == (2, 1), shown
    assert "s3://bucket/some/cache: the storage cannot be used: PermissionError" in shown
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    use(server)
    code, _, shown = command(capsys, monkeypatch, *precompute(settings))
    assert (code, len(shown.splitlines())) == (2, 1), shown
    assert "Unable to locate credentials" in shown


def test_a_server_that_is_not_there_gives_one_message_at_once(settings, use, capsys, monkeypatch):
    """What was never reached is not waited for: there is no second try, and so no pause."""
    use("http://127.0.0.1:9")
    monkeypatch.setattr("reflogp.data_schemas.files.retries.time.sleep", None)
    for arguments in (precompute(settings), ["verify", "s3://bucket/some/cache"]):
        code, _, shown = command(capsys, monkeypatch, *arguments)
        assert (code, len(shown.splitlines())) == (1, 1), shown
        assert "EndpointConnectionError" in shown


def test_a_shard_in_a_bucket_that_is_no_shard_is_made_anew(settings, s3, console, local_rows):
    name = run_precompute(settings, console).shards[0].file
    for content in (b"", os.urandom(100)):
        s3.put_object(Bucket="bucket", Key=f"some/cache/{name}", Body=content)
        run_precompute(settings, console)
        assert (
            f"{name} is damaged or not a shard of this version; it will be scored again"
            in console.warned
        )
        console.warned.clear()
        assert rows_by_id(settings.cache) == local_rows
    assert read_shard(settings.cache / name).num_rows
