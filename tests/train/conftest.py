"""A sealed cache of the tiny checkpoint, made once by the transformers engine."""

from pathlib import Path

import pytest

from data_schemas import manifest as manifests
from pipeline.run import run_precompute
from stages.precompute.config import PrecomputeConfig
from tests.conftest import Silent


@pytest.fixture(scope="session")
def cache(
    checkpoint: Path, few_preferences: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """24 pairs, cut to 192 tokens, scored in float32."""
    folder = tmp_path_factory.mktemp("cache")
    config = PrecomputeConfig(
        reference=str(checkpoint),
        data=str(few_preferences),
        cache=folder,
        engine="transformers",
        max_length=192,
        truncate="response",
        shard_tokens=4000,
    )
    run_precompute(config, Silent())
    assert len(manifests.read(folder).shards) > 1
    return folder
