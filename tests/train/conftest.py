"""A weighted cache, for the tests of one process and of two."""

from pathlib import Path

import pytest

from reflogp.pipeline.curate import run_filter
from reflogp.stages.filter.config import FilterRules
from tests.conftest import Silent


@pytest.fixture(scope="session")
def weighted(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache, weighted by length ratio."""
    folder = tmp_path_factory.mktemp("weighted")
    run_filter(cache, folder, FilterRules(weight_by="length-ratio"), Silent())
    return folder
