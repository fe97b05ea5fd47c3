"""A real S3 server on loopback, a bucket for each test, and a proxy between that can fail."""

import json
import logging
import urllib.request
from collections.abc import Iterator
from typing import Any

import boto3
import fsspec.config
import pytest
from moto.server import ThreadedMotoServer
from s3fs import S3FileSystem

from reflogp.pipeline.run import run_precompute
from reflogp.stages.precompute.config import PrecomputeConfig
from tests.caches import rows_by_id
from tests.conftest import Silent
from tests.storage.proxy import Proxy

READ_TIMEOUT = 1.0  # seconds


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of an S3 server."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    moto = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    yield f"http://{host}:{port}"
    moto.stop()


@pytest.fixture
def use(monkeypatch) -> Iterator[Any]:
    """Point every S3 client of this process, and of those that it starts, to an address."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/nowhere",
        "AWS_SHARED_CREDENTIALS_FILE": "/nowhere",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)

    def point(address: str) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        S3FileSystem.clear_instance_cache()  # a client keeps the address that it was made with

    yield point
    S3FileSystem.clear_instance_cache()


@pytest.fixture
def impatient(monkeypatch) -> None:
    """What is waited for minutes, is waited for seconds; in processes that are started, too."""
    options = {
        "config_kwargs": {
            "connect_timeout": 2,
            "read_timeout": READ_TIMEOUT,
            "retries": {"total_max_attempts": 2},
        }
    }
    monkeypatch.setenv("FSSPEC_S3", json.dumps(options))
    monkeypatch.setitem(fsspec.config.conf, "s3", options)
    monkeypatch.setattr("reflogp.data_schemas.files.retries.PATIENCE_SECONDS", 2.0)


@pytest.fixture
def s3(server, use) -> Any:
    """A boto3 client of the server: what is really there, whatever our own client believes."""
    use(server)
    request = urllib.request.Request(f"{server}/moto-api/reset", method="POST")  # noqa: S310
    urllib.request.urlopen(request).close()  # noqa: S310
    client = boto3.client("s3", endpoint_url=server)
    client.create_bucket(Bucket="bucket")
    return client


@pytest.fixture
def proxy(server, s3, use) -> Iterator[Proxy]:
    """A proxy before the server, which every client of ours uses."""
    between = Proxy(server)
    use(between.address)
    yield between
    between.close()


@pytest.fixture
def settings(checkpoint, few_preferences) -> PrecomputeConfig:
    """22 rows in five shards, into a bucket."""
    return PrecomputeConfig(
        reference=str(checkpoint), data=str(few_preferences), cache="s3://bucket/some/cache",
        engine="transformers", max_length=192, shard_tokens=1500, verify_sample=0,
    )  # fmt: skip


@pytest.fixture(scope="session")
def local_rows(checkpoint, few_preferences, tmp_path_factory) -> dict[str, Any]:
    """The rows that the same settings give in a folder on disk."""
    config = PrecomputeConfig(
        reference=str(checkpoint), data=str(few_preferences), engine="transformers",
        cache=tmp_path_factory.mktemp("local"), max_length=192, shard_tokens=1500, verify_sample=0,
    )  # fmt: skip
    run_precompute(config, Silent())
    return rows_by_id(config.cache)


def keys(s3: Any) -> list[str]:
    """The names of all objects in the bucket, without the folder of the cache."""
    found = s3.list_objects_v2(Bucket="bucket").get("Contents", [])
    return [entry["Key"].removeprefix("some/cache/") for entry in found]
